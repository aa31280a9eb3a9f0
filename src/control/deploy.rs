//! To be written.

use super::Failure;
use crate::cli::cluster::Deploy;

pub async fn deploy(arguments: Deploy) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
