//! To be written.

mod agents;
mod board;
mod cause;
mod child;
mod figures;
mod files;
mod gather;
mod household;
mod lease;
mod merge;
mod ports;
mod targets;
mod watched;
mod witness;

use super::Failure;
use crate::cli::cluster::Attach;

pub async fn attach(arguments: Attach) -> Result<(), Failure> {
    drop(arguments);
    panic!("to be written")
}
