//! To be written.

use super::Failure;
use crate::cli::cluster::Cleanup;

pub async fn cleanup(arguments: Cleanup) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
