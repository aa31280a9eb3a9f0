//! To be written.

use super::Failure;
use crate::cli::cluster::Attach;

pub async fn attach(arguments: Attach) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
