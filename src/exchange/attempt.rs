//! One request sent to one upstream: an endpoint chosen, a connection leased, the head of the answer
//! awaited; once more if that is certain to do no harm.

use std::cell::Cell;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use http::uri::Scheme;
use http::{Version, header, request, response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Exchange;
use super::failure::Failure;
use super::retry::Loss;
use crate::forward::{self, Crossing, Flaw, Survey};
use crate::metrics::ConnectResult;
use crate::plan::{Plan, Timeouts};
use crate::pool::{Lease, LeaseError, Outgoing, Progress, SendError, Speaks, Upload, Want};
use crate::record::Record;
use crate::upstream::{Endpoint, Pass, Protocol, Upstream};
use crate::wire::Pace;

/// A request on its way out: what is left of it to send.
pub(super) struct Outbound {
    pub(super) head: request::Parts,
    body: Outgoing,
    pub(super) upload: Option<Rc<Upload>>,
    pub(super) crossing: Crossing,
    /// An attempt was lost on its way: the app may have seen the request.
    pub(super) was_lost: bool,
    /// What the client spoke; the head is rewritten for whom it is sent to.
    version: Version,
}

impl Outbound {
    /// `pace` is told when the last byte of the body has been read.
    pub(super) fn new(
        mut head: request::Parts,
        survey: &Survey,
        incoming: Incoming,
        pace: Rc<Pace>,
        plan: &Plan,
    ) -> Self {
        head.extensions.clear();
        let version = head.version;
        let crossing = forward::request(&mut head, survey, &plan.rule.header);
        let (body, upload) = Outgoing::new(incoming, version, pace);
        Self {
            head,
            body,
            upload,
            crossing,
            was_lost: false,
            version,
        }
    }

    pub(super) fn progress(&self) -> Option<Progress> {
        self.upload.as_ref().map(|upload| upload.progress())
    }

    /// The body back from an attempt that did not touch it.
    fn restore_body(&mut self) -> bool {
        match &self.upload {
            None => self.body = Outgoing::empty(),
            Some(upload) => match upload.again() {
                Some((body, upload)) => (self.body, self.upload) = (body, upload),
                None => return false,
            },
        }
        true
    }
}

impl Exchange<'_> {
    /// Sends the request, once more if that is certain to do no harm, and waits for the head of
    /// the answer.
    pub(super) async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        outbound: &mut Outbound,
        record: &mut Record,
    ) -> Result<(response::Parts, Lease), Failure> {
        let mut tried = None;
        loop {
            let endpoint = pick(&upstream.endpoints, tried).ok_or(Failure::NoEndpoint)?;
            record.upstream(endpoint);
            let is_again = tried.replace(endpoint.id).is_some();
            let (loss, failure) = match self.lease(upstream, endpoint, outbound, is_again).await? {
                Err(failure) => (Loss::NotConnected, failure),
                Ok(lease) => match self.send(lease, endpoint, outbound, record).await? {
                    Ok(answer) => return Ok(answer),
                    Err(lost) => lost,
                },
            };
            // Nobody else to ask: an endpoint that does not take connections will not in no time.
            let is_pointless = loss == Loss::NotConnected && upstream.endpoints.len() == 1;
            let may = loss.allows_another_try(&outbound.head.method, outbound.progress());
            if is_again || is_pointless || !may || !outbound.restore_body() {
                return Err(failure);
            }
            outbound.was_lost |= matches!(loss, Loss::Lost(_));
            record.retried(loss.label());
        }
    }

    /// A connection for the request: outer errors end the exchange, inner ones one attempt.
    async fn lease(
        &self,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        outbound: &Outbound,
        is_again: bool,
    ) -> Result<Result<Lease, Failure>, Failure> {
        let Plan {
            limits, timeouts, ..
        } = self.plan;
        let deadlines = &self.ground.deadlines;
        let pass = match endpoint.try_enter(limits.requests_per_endpoint) {
            Some(pass) => pass,
            None => {
                let pass = self.wait_for(endpoint).await?;
                if self.has_left(endpoint) {
                    return Ok(Err(Failure::NoEndpoint));
                }
                pass
            }
        };
        let want = Want {
            endpoint,
            upstream,
            port: self.listener.app_port,
            speaks: speaks(&upstream.protocol, outbound),
            idle: timeouts.pool_idle,
            is_precious: outbound.upload.is_some() || !outbound.head.method.is_idempotent(),
            is_fresh: is_again,
            is_dialling: Cell::new(false),
        };
        let pool = self.ground.pools.to(endpoint, self.listener.app_port);
        let pass = match pool.reuse(&want, pass) {
            Ok(lease) => return Ok(Ok(lease)),
            Err(pass) => pass,
        };
        // Boxed: it is needed seldom, and large, and an idle connection keeps room for its exchange.
        let dialling = Box::pin(pool.dial(&want, pass));
        match deadlines.within(timeouts.connect, dialling).await {
            Ok(Ok(_)) if self.has_left(endpoint) => Ok(Err(Failure::NoEndpoint)),
            Ok(Ok(lease)) => Ok(Ok(lease)),
            Ok(Err(LeaseError::Dial(error))) if error.is_out_of_files() => {
                Err(Failure::Overloaded("the limit of open files"))
            }
            Ok(Err(error)) => Ok(Err(Failure::ConnectFailed(plain(&error)))),
            Err(_elapsed) => {
                if want.is_dialling.get() {
                    endpoint.health.failed();
                    upstream.route.connected(ConnectResult::Timeout);
                }
                Ok(Err(Failure::ConnectTimeout))
            }
        }
    }

    /// Whether the endpoint is a pod that has left the table while the request waited for it: its
    /// address may be another's by now. An address that somebody wrote means whoever has it.
    fn has_left(&self, endpoint: &Endpoint) -> bool {
        endpoint.pod.is_some() && !self.ground.plan.borrow().has_endpoint(endpoint.id)
    }

    /// A place at an endpoint that is busy. Places become free at the pace of the app's answers.
    async fn wait_for(&self, endpoint: &Arc<Endpoint>) -> Result<Pass, Failure> {
        let Plan {
            limits, timeouts, ..
        } = self.plan;
        let entering = endpoint.enter(limits.requests_per_endpoint, limits.queued_per_endpoint);
        let entering = Box::pin(entering);
        match self
            .ground
            .deadlines
            .within(timeouts.response_headers, entering)
            .await
        {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_full)) => Err(Failure::Overloaded("limits.queuedPerEndpoint")),
            Err(_elapsed) => Err(Failure::Overloaded("limits.requestsPerEndpoint")),
        }
    }

    /// One attempt on one connection: outer errors end the exchange, inner ones the attempt.
    async fn send(
        &self,
        mut lease: Lease,
        endpoint: &Endpoint,
        outbound: &mut Outbound,
        record: &mut Record,
    ) -> Result<Result<(response::Parts, Lease), (Loss, Failure)>, Failure> {
        let fallback = || format!("{endpoint}");
        // HTTP/1.0 knows requests without a host; what stands in for it is this endpoint's alone.
        let is_nameless = outbound.version == Version::HTTP_10
            && outbound.head.uri.authority().is_none()
            && !outbound.head.headers.contains_key(header::HOST);
        let fitted = match lease.version() {
            Version::HTTP_2 => forward::to_h2(&mut outbound.head, scheme(&lease), fallback),
            _ => {
                let has_body = outbound.upload.is_some();
                forward::to_h1(&mut outbound.head, outbound.crossing, has_body, fallback)
            }
        };
        fitted.map_err(Failure::BadRequest)?;
        let body = mem::replace(&mut outbound.body, Outgoing::empty());
        record.dispatched();
        let sent = {
            let sending = pin!(lease.send(&mut outbound.head, body));
            self.in_time(sending, outbound.upload.as_deref()).await
        };
        if let Err(Failure::ResponseTimeout) = &sent {
            lease.distrust();
        }
        match sent? {
            Ok(answer) => Ok(Ok((answer, lease))),
            // What the engine says then is that the connection broke; it was the client.
            Err(_) if outbound.progress() == Some(Progress::Broken) => {
                Err(Failure::BadRequest(Flaw::Body))
            }
            Err(error) => {
                if is_nameless {
                    outbound.head.headers.remove(header::HOST);
                }
                let loss = Loss::of(&error, lease.origin());
                let failure = Failure::UpstreamReset(match error {
                    SendError::Unsent => "closed before the request was sent".into(),
                    SendError::Refused => "the stream was refused".into(),
                    SendError::Reset(error) | SendError::Lost(error) => plain(&*error),
                });
                Ok(Err((loss, failure)))
            }
        }
    }

    /// Waits for the head of the answer. The clock stands while the client is still sending.
    async fn in_time<T>(
        &self,
        mut sending: Pin<&mut impl Future<Output = T>>,
        upload: Option<&Upload>,
    ) -> Result<T, Failure> {
        let timeouts = &self.plan.timeouts;
        let mut waiting = None;
        poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(Ok(sent));
            }
            let (alarm, start) = waiting.get_or_insert_with(|| {
                let alarm = self.ground.deadlines.alarm();
                let start = alarm.set(timeouts.response_headers);
                (alarm, start)
            });
            loop {
                ready!(alarm.poll(cx));
                match patience(*start, upload, timeouts) {
                    Ok(left) => alarm.set(left),
                    Err(failure) => return Poll::Ready(Err(failure)),
                };
            }
        })
        .await
    }
}

/// How much longer to wait for an answer, or that it has been too long.
fn patience(
    start: Instant,
    upload: Option<&Upload>,
    timeouts: &Timeouts,
) -> Result<Duration, Failure> {
    let (since, limit, failure) = match upload {
        None => (start, timeouts.response_headers, Failure::ResponseTimeout),
        Some(upload) => match upload.progress() {
            Progress::AwaitsClient => (upload.moved(), timeouts.body_idle, Failure::BodyTimeout),
            _ => (
                start.max(upload.moved()),
                timeouts.response_headers,
                Failure::ResponseTimeout,
            ),
        },
    };
    match limit.saturating_sub(since.elapsed()) {
        Duration::ZERO => Err(failure),
        left => Ok(left),
    }
}

/// What the connection must speak for this request.
fn speaks(protocol: &Protocol, outbound: &Outbound) -> Speaks {
    match protocol {
        Protocol::H1 => Speaks::H1,
        Protocol::H2c => Speaks::H2,
        // An upgrade is a matter of HTTP/1.1.
        Protocol::Tls(_) if outbound.crossing.upgrade => Speaks::H1,
        Protocol::Tls(_) => Speaks::Either,
        Protocol::Auto if outbound.version == Version::HTTP_2 => Speaks::H2,
        Protocol::Auto => Speaks::H1,
    }
}

fn scheme(lease: &Lease) -> Scheme {
    if lease.is_tls() {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    }
}

/// One of the endpoints: of two random ones that are not being avoided, the less busy. `tried` is
/// taken only when there is no other.
fn pick(endpoints: &[Arc<Endpoint>], tried: Option<u64>) -> Option<&Arc<Endpoint>> {
    if let [only] = endpoints {
        return Some(only);
    }
    let other = |endpoint: &&Arc<Endpoint>| Some(endpoint.id) != tried;
    let good = |endpoint: &&Arc<Endpoint>| other(endpoint) && endpoint.health.is_good();
    let count = endpoints.iter().filter(good).count();
    if count == 0 {
        // All are avoided: better one of them than none.
        let others = endpoints.iter().filter(other).count();
        let chosen = fastrand::usize(..others.max(1));
        return endpoints
            .iter()
            .filter(other)
            .nth(chosen)
            .or(endpoints.first());
    }
    let first = fastrand::usize(..count);
    let second = (first + 1 + fastrand::usize(..count.max(2) - 1)) % count;
    let first = endpoints.iter().filter(good).nth(first)?;
    // Health may have changed in between; the first is as good as any then.
    let second = endpoints.iter().filter(good).nth(second).unwrap_or(first);
    Some(if second.outstanding() < first.outstanding() {
        second
    } else {
        first
    })
}

/// An error with its causes, in one line.
fn plain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
