//! To be written.

use super::Failure;
use crate::cli::cluster::Verify;

pub async fn verify(arguments: Verify) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
