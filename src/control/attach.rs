//! To be written.

mod child;
mod files;
mod household;
mod ports;

use super::Failure;
use crate::cli::cluster::Attach;

pub async fn attach(arguments: Attach) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
