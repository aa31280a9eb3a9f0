//! What a person sees of a deployment while it goes on: one line per step, on standard error.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Speaks of one app. Clones speak of the same.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    subject: Arc<str>,
    since: Instant,
    /// What is being waited for, in case that it never comes.
    awaited: Arc<Mutex<String>>,
    noted: Arc<Mutex<HashSet<String>>>,
}

impl Voice {
    /// Its clock starts now.
    pub(super) fn of(subject: &str) -> Self {
        Self {
            subject: subject.into(),
            since: Instant::now(),
            awaited: Arc::default(),
            noted: Arc::default(),
        }
    }

    /// Something was done, after this time.
    pub(super) fn done(&self, what: impl Display) {
        let took = seconds(self.since.elapsed());
        self.say(format_args!("{what} {took}"));
    }

    /// Something that people should know.
    pub(super) fn say(&self, what: impl Display) {
        eprintln!("{}: {what}", self.subject);
    }

    /// Something is being waited for; said once, however often it is looked for.
    pub(super) fn waits_for(&self, what: impl Display) {
        let what = what.to_string();
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        if *awaited != what {
            self.say(format_args!("waiting for {what}"));
            *awaited = what;
        }
    }

    /// Something that people should know, said once, however often it is seen.
    pub(super) fn note(&self, what: impl Display) {
        let what = what.to_string();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.insert(what.clone()) {
            self.say(what);
        }
    }

    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// What was waited for last.
    pub(super) fn awaited(&self) -> String {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.clone()
    }
}

/// `3.2s`
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}
