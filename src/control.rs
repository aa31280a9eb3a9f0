//! The cluster side: one function per command.
//!
//! It stands beside the proxy's rooms and uses their ground floor, and what `plan` and `sources` know of
//! the meaning of what was typed. [`attach`] speaks for several proxies, so it speaks as they do: through
//! the same kind of admin port, in the same words.
//!
//! To read it in order: [`stack`] (the apps, who calls whom), [`pull_request`] (what is changed, for whom) and
//! [`resolve`]; [`intercept`] (what is intercepted, and how), [`mirrord`], [`telepresence`] and [`objects`] (what
//! is written for it), [`cluster`] and [`workload`] (what is read and applied), [`proof`] (one request that shows
//! where requests go); then the commands on them: [`deploy`], [`cleanup`], [`verify`] and [`attach`].

pub mod attach;
pub mod cleanup;
pub mod cluster;
pub mod deploy;
pub mod intercept;
pub mod mirrord;
pub mod objects;
pub mod proof;
pub mod pull_request;
pub mod resolve;
pub mod stack;
mod targets;
pub mod telepresence;
pub mod verify;
pub mod words;
pub mod workload;

use crate::config::Problem;

/// How a command ended, when not well.
#[derive(Debug)]
pub enum Failure {
    /// What was typed makes no sense, and nothing was touched: exit code 2.
    Usage(Vec<Problem>),
    /// Exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
