//! To be written.

use super::Failure;
use crate::cli::cluster::Resolve;

/// What is to be printed.
pub fn resolve(arguments: &Resolve) -> Result<String, Failure> {
    panic!("to be written: {arguments:?}")
}
