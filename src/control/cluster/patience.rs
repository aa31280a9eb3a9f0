//! How long an API server is given that does not answer as it should.
//!
//! One that answered before may be restarting, and is asked again for a while. One that never
//! answered is most likely the wrong one, and whoever named it should hear so at once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::kubernetes::{Deed, Doing, Refusal};

/// How long one request may take.
const ANSWER: Duration = Duration::from_secs(30);

/// How long an API server may fail: one that is being restarted comes back.
const OUTAGE: Duration = Duration::from_secs(20);

/// Between two requests to one that fails.
const BREATH: Duration = Duration::from_millis(500);

/// What is left of it, and why. Clones share what they have learnt.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    known: Arc<Mutex<Known>>,
    /// Nothing is tried again after this.
    pub(super) deadline: Instant,
}

/// What is known of the API server.
#[derive(Debug, Default)]
struct Known {
    has_answered: bool,
    /// Verbs, resources and namespaces that it has allowed.
    allowed: HashSet<(&'static str, &'static str, String)>,
}

impl Patience {
    pub(super) fn until(deadline: Instant) -> Self {
        Self {
            known: Arc::default(),
            deadline,
        }
    }

    /// The same, with another deadline.
    pub(super) fn prolonged(&self, deadline: Instant) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Sends a request, again and again while the API server ails.
    pub(super) async fn persist<T, F: Future<Output = kube::Result<T>>>(
        &self,
        verb: &'static str,
        resource: &'static str,
        namespace: &str,
        request: impl Fn() -> F,
    ) -> Result<T, Refusal> {
        let mut outage_ends = None;
        loop {
            let answer = timeout(ANSWER, request()).await.unwrap_or_else(|_| {
                let silence = format!("no answer within {ANSWER:?}");
                Err(kube::Error::Service(silence.into()))
            });
            let refusal = match answer.doing(verb, resource, namespace) {
                Err(refusal) if self.may_pass(&refusal) => refusal,
                judged => {
                    let mut known = self.known();
                    known.has_answered = true;
                    if judged.is_ok() {
                        let deed = (verb, resource, namespace.to_owned());
                        known.allowed.insert(deed);
                    }
                    return judged;
                }
            };
            let ends = *outage_ends.get_or_insert_with(|| Instant::now() + OUTAGE);
            if Instant::now() >= ends.min(self.deadline) || !self.known().has_answered {
                return Err(refusal);
            }
            sleep(BREATH).await;
        }
    }

    /// Whether the same request may well succeed in a moment.
    fn may_pass(&self, refusal: &Refusal) -> bool {
        match refusal.code() {
            // One that has just started answers before it has read who may do what.
            Some(401) => self.known().has_answered,
            Some(403) => refusal.lacks_right() && self.known().has_allowed(&refusal.deed),
            Some(429) | None => true,
            Some(code) => code >= 500,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn has_allowed(&self, deed: &Deed) -> bool {
        let deed = (deed.verb, deed.resource, deed.namespace.clone());
        self.allowed.contains(&deed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kube::core::Status;

    use super::*;

    fn answer(code: u16) -> kube::Result<()> {
        match code {
            200 => Ok(()),
            code => {
                let message = "pods is forbidden: User \"x\" cannot get resource \"pods\"";
                let status = Status::failure(message, "Reason").with_code(code);
                Err(kube::Error::Api(status.boxed()))
            }
        }
    }

    /// Asks once for each of these lists; each is what the API server answers, in turn, the last for ever.
    async fn asked(patience: &Patience, answers: &[u16]) -> (Option<u16>, usize) {
        let count = Cell::new(0);
        let asked = patience.persist("get", "pods", "staging", || {
            let answer = answer(answers[count.get().min(answers.len() - 1)]);
            count.set(count.get() + 1);
            async { answer }
        });
        let code = asked.await.err().and_then(|refusal| refusal.code());
        (code, count.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answered_is_not_asked_twice() {
        let patience = Patience::until(Instant::now() + Duration::from_secs(300));
        assert_eq!(asked(&patience, &[503, 200]).await, (Some(503), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answered_before_is_asked_until_it_does_again() {
        let patience = Patience::until(Instant::now() + Duration::from_secs(300));
        assert_eq!(asked(&patience, &[200]).await, (None, 1));
        assert_eq!(asked(&patience, &[503, 429, 200]).await, (None, 3));
        // What it had allowed it does not know yet.
        assert_eq!(asked(&patience, &[401, 403, 200]).await, (None, 3));
        // What nothing will mend is told at once.
        for code in [400, 404, 409, 422] {
            assert_eq!(asked(&patience, &[code]).await, (Some(code), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_that_was_never_there_is_told_at_once() {
        let patience = Patience::until(Instant::now() + Duration::from_secs(300));
        assert_eq!(asked(&patience, &[404]).await, (Some(404), 1));
        assert_eq!(asked(&patience, &[403]).await, (Some(403), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_with_the_outage_or_the_deadline() {
        let start = Instant::now();
        let patience = Patience::until(start + Duration::from_secs(300));
        asked(&patience, &[200]).await;
        assert_eq!(asked(&patience, &[503]).await.0, Some(503));
        assert_eq!(start.elapsed(), OUTAGE);

        let short = patience.prolonged(Instant::now() + Duration::from_secs(2));
        let start = Instant::now();
        asked(&short, &[503]).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
