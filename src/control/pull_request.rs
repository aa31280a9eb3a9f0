//! One pull request's part of a stack: what `deploy` and `verify` are told, judged once.

use super::stack::{App, Stack};
use crate::cli::cluster;
use crate::config::Problem;

/// What is intercepted, for whom.
#[derive(Debug, Clone, PartialEq)]
pub struct PullRequest {
    pub stack: Stack,
    /// The changed apps, callers before callees; at least one, each in the stack.
    pub apps: Vec<String>,
    /// Name of the session header, lower case; the stack's.
    pub header: String,
    /// Fit to be a label's value and, with the name of each changed app, the name of a pod.
    pub session: String,
    /// The apps in the order in which a request passes them, each in the stack.
    pub chain: Vec<String>,
    pub default_namespace: String,
}

impl PullRequest {
    /// Judges what was typed; an empty value counts as not given.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(arguments: &cluster::PullRequest) -> Result<Self, Vec<Problem>> {
        panic!("to be written: {arguments:?}")
    }

    /// Where an app and all that belongs to it lives.
    pub fn namespace_of<'s>(&'s self, app: &'s App) -> &'s str {
        app.namespace.as_deref().unwrap_or(&self.default_namespace)
    }
}
