//! One owner for each target pod: a Lease of `coordination.k8s.io`.
//!
//! Two sessions that start on one pod at the same time leave a proxy that looks healthy and gets
//! nothing. So a session is started by the lease's holder alone, and the lease is held for as long as
//! something of the session may be left. It names the target pod as its owner and goes with it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::control::objects::labels;
use crate::kubernetes::{Doing, Refusal};

/// How long a holder that says nothing keeps the pod.
const LASTS: Duration = Duration::from_secs(15);

/// How often a holder says that it is there, and how often others look.
const PERIOD: Duration = Duration::from_secs(4);

/// For how long after it was written a lease is ours beyond doubt. It lasts longer by the time in which
/// a start that was begun shows on the pod.
const SURE: Duration = Duration::from_secs(10);

/// How long one renewal may take: one that hangs must not cost the lease.
const ANSWER: Duration = Duration::from_secs(4);

/// How often a refused request is tried again: rights may be granted.
const RETRY: Duration = Duration::from_secs(5);

/// How long the end may wait for a lease to be given back.
const GIVING_BACK: Duration = Duration::from_secs(3);

/// What is wanted: the lease of one target pod.
#[derive(Clone)]
pub(super) struct Claim {
    pub client: Client,
    pub namespace: String,
    pub app: String,
    /// Name and uid of the target pod.
    pub pod: String,
    pub pod_uid: String,
    /// Who we are: the proxy pod's uid. A proxy that is started anew in its pod is still the holder.
    pub holder: String,
}

/// The lease as its holder wrote it last.
pub(super) struct Held {
    claim: Claim,
    lease: Lease,
    /// When the last writing that succeeded was begun.
    written_tx: watch::Sender<Instant>,
}

/// Whether a lease is held beyond doubt, for those who do not keep it.
#[derive(Clone)]
pub(super) struct Hold(watch::Receiver<Instant>);

/// Why the lease is not ours yet.
pub(super) enum Obstacle<'o> {
    /// Its holder.
    Holder(&'o str),
    /// The API server does not let us, or cannot be reached.
    Refusal(Refusal),
}

impl Claim {
    /// Waits until the lease is ours; `told` hears each time why it is not.
    pub(super) async fn acquire(&self, mut told: impl FnMut(Obstacle<'_>)) -> Held {
        let mut patience = Patience::default();
        loop {
            let begun = Instant::now();
            let pause = match self.attempt(&mut patience).await {
                Ok(Ok(lease)) => {
                    return Held {
                        claim: self.clone(),
                        lease,
                        written_tx: watch::Sender::new(begun),
                    };
                }
                Ok(Err(holder)) => {
                    told(Obstacle::Holder(&holder));
                    PERIOD.min(patience.left())
                }
                Err(refusal) => {
                    // Whoever could not look does not know for how long nobody wrote.
                    patience = Patience::default();
                    told(Obstacle::Refusal(refusal));
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    /// The lease, or who has it.
    async fn attempt(&self, patience: &mut Patience) -> Result<Result<Lease, String>, Refusal> {
        let api = self.api();
        let found = api.get_opt(&self.name()).await;
        let written = match found.doing("get", "leases", &self.namespace)? {
            None => {
                let lease = self.lease(None);
                let created = api.create(&PostParams::default(), &lease).await;
                created.doing("create", "leases", &self.namespace)
            }
            Some(lease) => {
                if let Some(holder) = self.other_holder(&lease)
                    && !patience.is_over(&lease, Instant::now())
                {
                    return Ok(Err(holder.to_owned()));
                }
                let lease = self.lease(Some(&lease));
                let replaced = api
                    .replace(&self.name(), &PostParams::default(), &lease)
                    .await;
                replaced.doing("update", "leases", &self.namespace)
            }
        };
        match written {
            Ok(lease) => Ok(Ok(lease)),
            // Somebody was faster.
            Err(refusal) if refusal.code() == Some(409) => Ok(Err("another proxy".to_owned())),
            Err(refusal) => Err(refusal),
        }
    }

    fn other_holder<'l>(&self, lease: &'l Lease) -> Option<&'l str> {
        let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
        (!holder.is_empty() && holder != self.holder).then_some(holder)
    }

    /// The lease with us as its holder, made from the one that is there.
    fn lease(&self, known: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let known_spec = known.and_then(|lease| lease.spec.as_ref());
        let held =
            known_spec.filter(|spec| spec.holder_identity.as_deref() == Some(self.holder.as_str()));
        let transitions = known_spec.map(|spec| spec.lease_transitions.unwrap_or(0));
        Lease {
            metadata: ObjectMeta {
                resource_version: known.and_then(|lease| lease.metadata.resource_version.clone()),
                ..self.metadata()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.holder.clone()),
                lease_duration_seconds: Some(i32::try_from(LASTS.as_secs()).unwrap_or(i32::MAX)),
                acquire_time: held
                    .and_then(|spec| spec.acquire_time.clone())
                    .or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: match (transitions, held) {
                    (None, _) => Some(0),
                    (transitions, Some(_)) => transitions,
                    (Some(transitions), None) => Some(transitions.saturating_add(1)),
                },
                ..LeaseSpec::default()
            }),
        }
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name()),
            namespace: Some(self.namespace.clone()),
            labels: Some([(labels::APP.to_owned(), self.app.clone())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: self.pod.clone(),
                uid: self.pod_uid.clone(),
                controller: None,
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        }
    }

    /// By uid: a StatefulSet's next pod has the same name.
    fn name(&self) -> String {
        format!("session-proxy-{}", self.pod_uid)
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Held {
    /// Renews the lease until somebody else has it.
    ///
    /// One that cannot be renewed is no reason to end what lives: most often the API server is away for
    /// all. But nothing may be started under it, see [`Hold`].
    pub(super) async fn keep(&mut self) {
        let mut is_told = false;
        loop {
            sleep(PERIOD).await;
            let begun = Instant::now();
            let why = match timeout(ANSWER, self.renew()).await {
                Ok(Ok(true)) => {
                    self.written_tx.send_replace(begun);
                    is_told = false;
                    continue;
                }
                Ok(Ok(false)) => return,
                Ok(Err(refusal)) => refusal.to_string(),
                Err(_) => format!("no answer within {ANSWER:?}"),
            };
            let pod = &self.claim.pod;
            if is_told || self.hold().is_sure() {
                debug!(pod, why, "the lease is not renewed");
            } else {
                warn!(pod, why, "the lease is not renewed: no session is started");
                is_told = true;
            }
        }
    }

    /// Keeps the lease until that is done. When somebody else has it first, that is done all the same.
    pub(super) async fn keep_until(&mut self, done: impl Future<Output = ()>) {
        tokio::pin!(done);
        tokio::select! {
            () = &mut done => {}
            () = self.keep() => done.await,
        }
    }

    pub(super) fn hold(&self) -> Hold {
        Hold(self.written_tx.subscribe())
    }

    /// Whether the lease is still ours.
    async fn renew(&mut self) -> Result<bool, Refusal> {
        let claim = &self.claim;
        let lease = claim.lease(Some(&self.lease));
        let replaced = claim
            .api()
            .replace(&claim.name(), &PostParams::default(), &lease)
            .await;
        match replaced.doing("update", "leases", &claim.namespace) {
            Ok(lease) => self.lease = lease,
            // Written by somebody else, or gone: take another look.
            Err(refusal) if matches!(refusal.code(), Some(404 | 409)) => {
                match claim.attempt(&mut Patience::default()).await? {
                    Ok(lease) => self.lease = lease,
                    Err(_) => return Ok(false),
                }
            }
            Err(refusal) => return Err(refusal),
        }
        Ok(true)
    }

    /// Gives the pod free, unless somebody else has taken it.
    pub(super) async fn release(self) {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: self.lease.metadata.uid.clone(),
            resource_version: self.lease.metadata.resource_version.clone(),
        });
        let (api, name) = (self.claim.api(), self.claim.name());
        match timeout(GIVING_BACK, api.delete(&name, &params)).await {
            Ok(deleted) => {
                if let Err(refusal) = deleted.doing("delete", "leases", &self.claim.namespace) {
                    // It went with its pod, or runs out by itself.
                    debug!(%refusal, "the lease is not given back");
                }
            }
            Err(_) => debug!("the lease is not given back in time"),
        }
    }
}

impl Hold {
    pub(super) fn is_sure(&self) -> bool {
        self.0.borrow().elapsed() < SURE
    }

    /// Waits until the lease is held beyond doubt; for ever when it is kept no more.
    pub(super) async fn sure(&mut self) {
        while !self.is_sure() {
            if self.0.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}

/// For how long somebody else's lease has been seen without a change.
///
/// Judged by our own clock alone: the times in a lease are those of another machine.
#[derive(Default)]
struct Patience {
    seen: Option<Sighting>,
}

struct Sighting {
    version: Option<String>,
    until: Instant,
}

impl Patience {
    /// Whether the holder has said nothing for as long as its lease lasts.
    fn is_over(&mut self, lease: &Lease, now: Instant) -> bool {
        let version = &lease.metadata.resource_version;
        match &self.seen {
            Some(seen) if seen.version == *version => now >= seen.until,
            _ => {
                let seconds = lease
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.lease_duration_seconds);
                let lasts = seconds.and_then(|seconds| u64::try_from(seconds).ok());
                self.seen = Some(Sighting {
                    version: version.clone(),
                    until: now + lasts.map_or(LASTS, Duration::from_secs),
                });
                false
            }
        }
    }

    /// How long it is until patience is over.
    fn left(&self) -> Duration {
        let until = self.seen.as_ref().map(|seen| seen.until);
        let left = until.map_or(PERIOD, |until| {
            until.saturating_duration_since(Instant::now())
        });
        left.max(Duration::from_millis(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(client: Client) -> Claim {
        Claim {
            client,
            namespace: "staging".into(),
            app: "orders".into(),
            pod: "orders-1".into(),
            pod_uid: "u1".into(),
            holder: "me".into(),
        }
    }

    fn lease(holder: Option<&str>, version: &str, seconds: Option<i32>) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: seconds,
                lease_transitions: Some(4),
                ..LeaseSpec::default()
            }),
        }
    }

    fn nowhere() -> Client {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Client::try_from(config).unwrap()
    }

    #[tokio::test]
    async fn a_lease_is_somebody_elses_only_while_it_names_somebody_else() {
        let claim = claim(nowhere());

        for (holder, expected) in [
            (None, None),
            (Some(""), None),
            (Some("me"), None),
            (Some("you"), Some("you")),
        ] {
            assert_eq!(claim.other_holder(&lease(holder, "1", None)), expected);
        }
        assert_eq!(claim.other_holder(&Lease::default()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_when_nothing_was_written_for_as_long_as_the_lease_lasts() {
        let mut patience = Patience::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        assert!(!patience.is_over(&lease(Some("you"), "1", Some(10)), start));
        assert!(!patience.is_over(&lease(Some("you"), "1", Some(10)), at(9)));
        assert!(!patience.is_over(&lease(Some("you"), "2", Some(10)), at(9)));
        assert!(!patience.is_over(&lease(Some("you"), "2", Some(10)), at(18)));
        assert!(patience.is_over(&lease(Some("you"), "2", Some(10)), at(19)));
        for silent in [None, Some(-1)] {
            let mut patience = Patience::default();
            assert!(!patience.is_over(&lease(Some("you"), "1", silent), start));
            assert!(!patience.is_over(&lease(Some("you"), "1", silent), at(14)));
            assert!(patience.is_over(&lease(Some("you"), "1", silent), at(15)));
        }
    }

    #[tokio::test]
    async fn a_lease_goes_with_its_pod_and_counts_its_holders() {
        let claim = claim(nowhere());

        let first = claim.lease(None);
        let renewed = claim.lease(Some(&first));
        let taken = claim.lease(Some(&lease(Some("you"), "7", None)));

        assert_eq!(first.metadata.name.as_deref(), Some("session-proxy-u1"));
        let owner = &first.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.name.as_str(), owner.uid.as_str()),
            ("orders-1", "u1")
        );
        let transitions = |lease: &Lease| lease.spec.as_ref().unwrap().lease_transitions;
        assert_eq!(transitions(&first), Some(0));
        assert_eq!(transitions(&renewed), Some(0));
        assert_eq!(transitions(&taken), Some(5));
        let acquired = |lease: &Lease| lease.spec.as_ref().unwrap().acquire_time.clone();
        assert_eq!(acquired(&renewed), acquired(&first));
        assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
    }
}
