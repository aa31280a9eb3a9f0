//! To be written.

mod agents;
mod child;
mod files;
mod household;
mod lease;
mod ports;
mod targets;
mod watched;

use super::Failure;
use crate::cli::cluster::Attach;

pub async fn attach(arguments: Attach) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
