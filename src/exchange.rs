//! One request and its answer.
//!
//! Whatever goes wrong before the first byte of an answer is a [`Failure`] and becomes a response
//! here: a connection that closes without one would make mirrord send the request again. After
//! that byte all we can do is end the stream, visibly.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, request, response};
use http_body::Body as _;
use hyper::body::Incoming;

use self::attempt::Outbound;
use crate::deadline::Deadlines;
use crate::drain::Draining;
use crate::forward::{self, Flaw, Survey};
use crate::outbox::Outbox;
use crate::plan::{HttpListener, OnUnavailable, Plan};
use crate::pool::{Lease, Pools, Progress};
use crate::record::{Ledger, Record};
use crate::wire::Wire;

mod answer;
mod attempt;
mod failure;
mod probe;
mod retry;
mod route;

pub use answer::{Account, Body};
pub use failure::{Failure, ROUTE_HEADER};
use route::{Choice, Route, Session, choose};

/// What every exchange of a worker stands on.
pub struct Ground {
    /// Replaced as a whole when the configuration changes; a request keeps the one it met.
    ///
    /// Counted once more by this worker alone: a request clones the outer count, which no other
    /// thread touches.
    pub plan: RefCell<Rc<Arc<Plan>>>,
    pub pools: Pools,
    pub outbox: Rc<Outbox>,
    pub deadlines: Rc<Deadlines>,
    pub draining: Draining,
    /// Whether the drain has started, without asking another thread.
    pub is_draining: Cell<bool>,
    pub identity: Arc<Identity>,
}

/// Who this proxy is.
#[derive(Debug)]
pub struct Identity {
    /// Random, new at every start: what our `Via` is known by.
    pub instance: String,
    /// The pod whose traffic is stolen, when told.
    pub target: Option<String>,
    via: HeaderValue,
}

/// One client connection, as its exchanges see it.
pub struct Client {
    pub address: SocketAddr,
    pub listener: Arc<HttpListener>,
    pub ledger: Rc<Ledger>,
    pub wire: Rc<Wire>,
    /// Too many connections are open: this one gets an answer, and nothing else.
    pub is_one_too_many: bool,
    /// Set when an upgrade was granted; the connection becomes a tunnel then.
    pub upgraded: RefCell<Option<Upgraded>>,
}

/// The upstream's half of an upgrade.
pub struct Upgraded {
    pub lease: Lease,
    pub account: Box<Account>,
}

/// Serves one request. Cannot fail, which the engine wants to read in the type: a [`Failure`] is
/// answered, not returned.
///
/// The account is opened before the first poll: from the moment the engine hands over a request,
/// its bytes are no head any more, and it is in flight.
pub fn exchange(
    ground: Rc<Ground>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + 'static {
    let record = Record::open(&client.ledger, &request, client.address);
    let survey = Survey::of(request.headers());
    let has_two_framings = survey.has_coding() && client.wire.had_two_framings();
    let mut account = Box::new(Account {
        record,
        flight: ground.draining.take_off(),
        turn: client.wire.take_turn(request.body().is_end_stream()),
        upload: None,
    });
    let flaw = has_two_framings.then_some(Flaw::TwoFramings);
    // All that needs no wait, before the future: what it takes by value it would hold twice.
    let plan = ground.plan.borrow().clone();
    let (head, incoming) = request.into_parts();
    let asker = Asker {
        version: head.version,
        is_head: head.method == Method::HEAD,
        is_grpc: survey.is_grpc,
        wants_route: plan.responses.route_header,
    };
    let admitted = admit(&ground, &client, &plan, &head, &survey, flaw);
    let pace = account.turn.pace().clone();
    let mut outbound = Outbound::new(head, &survey, incoming, pace, &plan);
    async move {
        let exchange = Exchange {
            ground: &ground,
            plan: &plan,
            listener: &client.listener,
            client: &client,
        };
        let way = exchange.way(admitted, &outbound.head.headers, &mut account.record);
        match way {
            Ok((route, session)) => {
                // Pinned where it is made: awaited, it would be copied once more, for 150 instructions.
                let following =
                    pin!(exchange.follow(route, session, &mut outbound, asker, account));
                Ok(following.await)
            }
            Err((failure, session)) => {
                let name = session.as_ref().map(Session::name);
                let header = none_header(failure.reason());
                Ok(asker.refuse(&failure, name, header, account))
            }
        }
    }
}

/// What is refused before any route is looked for.
fn admit(
    ground: &Ground,
    client: &Client,
    plan: &Plan,
    head: &request::Parts,
    survey: &Survey,
    flaw: Option<Flaw>,
) -> Result<(), Failure> {
    if client.is_one_too_many {
        return Err(Failure::Overloaded("limits.connections"));
    }
    if head.method == Method::CONNECT {
        return Err(Failure::Connect);
    }
    // HTTP/1 heads are counted while they are parsed.
    if head.headers.len() > plan.limits.headers {
        return Err(Failure::HeadTooLarge);
    }
    if let Some(flaw) = flaw.or_else(|| forward::flaw(head, survey)) {
        return Err(Failure::BadRequest(flaw));
    }
    if survey.has_via && ground.identity.is_in_via(head) {
        return Err(Failure::Loop);
    }
    Ok(())
}

impl Identity {
    /// A new identity in front of `target`.
    pub fn new(target: Option<String>) -> Self {
        let instance = format!("session-proxy-{:016x}", fastrand::u64(..));
        let via =
            HeaderValue::try_from(format!("1.1 {instance}")).expect("hexadecimal is visible ASCII");
        Self {
            instance,
            target,
            via,
        }
    }

    /// Whether a request has been through this very proxy before (RFC 9110, section 7.6.3).
    fn is_in_via(&self, head: &request::Parts) -> bool {
        let is_ours = |member: &str| member.split_ascii_whitespace().nth(1) == Some(&self.instance);
        head.headers
            .get_all(header::VIA)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(is_ours))
    }
}

fn is_unasked_switch(answer: &response::Parts, outbound: &Outbound) -> bool {
    answer.status == StatusCode::SWITCHING_PROTOCOLS && !outbound.crossing.upgrade
}

fn none_header(reason: &'static str) -> HeaderValue {
    HeaderValue::try_from(format!("none; reason={reason}")).expect("reasons are plain words")
}

/// How the client wants to be answered.
#[derive(Clone, Copy)]
struct Asker {
    version: Version,
    is_head: bool,
    is_grpc: bool,
    wants_route: bool,
}

impl Asker {
    fn refuse(
        self,
        failure: &Failure,
        session: Option<&str>,
        route: HeaderValue,
        mut account: Box<Account>,
    ) -> Response<Body> {
        account
            .record
            .refused(failure.status().as_u16(), failure.reason());
        let response = if self.is_grpc {
            failure.grpc_response()
        } else {
            failure.response(session)
        };
        self.answer(response, route, account)
    }

    fn answer(
        self,
        mut response: Response<Bytes>,
        route: HeaderValue,
        mut account: Box<Account>,
    ) -> Response<Body> {
        if self.wants_route {
            response.headers_mut().insert(ROUTE_HEADER, route);
        }
        account.record.released();
        account.turn.gave();
        if self.version != Version::HTTP_2 && !account.turn.pace().is_read() {
            // What is left of the request's body is not read any more.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if self.is_head {
            // The length that GET would have; the HTTP/2 engine would send the bytes too.
            let length = HeaderValue::from(response.body().len());
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
            return response.map(|_| Body::own(Bytes::new(), account));
        }
        response.map(|bytes| Body::own(bytes, account))
    }
}

/// The parts of one exchange that do not change on its way.
struct Exchange<'a> {
    ground: &'a Rc<Ground>,
    plan: &'a Plan,
    listener: &'a HttpListener,
    client: &'a Client,
}

impl Exchange<'_> {
    /// Which way the request goes, or why nowhere; with the session that it names. One that is known is
    /// in the record even if nothing goes to it.
    fn way(
        &self,
        admitted: Result<(), Failure>,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<(Route<'_>, Option<Session>), (Failure, Option<Session>)> {
        admitted.map_err(|failure| (failure, None))?;
        let Choice { session, route } = choose(self.plan, self.listener, headers);
        let session = session.map(|name| Session::new(&name));
        match route {
            Ok(route) => Ok((route, session)),
            Err(failure) => {
                let name = session.as_ref().map(Session::name);
                if let Some(upstream) = name.and_then(|name| self.plan.sessions.find(name)) {
                    record.routed(&upstream.route, failure.reason(), name);
                }
                Err((failure, session))
            }
        }
    }

    async fn follow(
        &self,
        mut route: Route<'_>,
        session: Option<Session>,
        outbound: &mut Outbound,
        asker: Asker,
        mut account: Box<Account>,
    ) -> Response<Body> {
        loop {
            let (upstream, is_baseline) = match route {
                Route::Probe => {
                    let asked = &outbound.head.headers;
                    return self.answer_probe(&route, asked, asker, account);
                }
                Route::Session(upstream) => (upstream, false),
                Route::Baseline(upstream, _) => (upstream, true),
            };
            let name = session.as_ref().map(Session::name);
            account.record.routed(&upstream.route, route.reason(), name);
            if is_baseline {
                outbound
                    .head
                    .headers
                    .append(header::VIA, self.ground.identity.via.clone());
            }
            let sent = self.attempt(upstream, outbound, &mut account.record).await;
            let failure = match sent {
                Ok((answer, _)) if is_unasked_switch(&answer, outbound) => {
                    Failure::UpstreamReset("it switched protocols unasked".into())
                }
                Ok((answer, lease)) => {
                    account.upload = outbound.upload.take();
                    let header = route.header(session);
                    return self.pass_on(answer, lease, outbound, header, asker, account);
                }
                Err(failure) => failure,
            };
            if !is_baseline
                && self.may_fall_back(&failure, outbound)
                && let Ok(baseline) = route::unavailable(self.listener)
            {
                route = baseline;
                continue;
            }
            account.upload = outbound.upload.take();
            let name = session.as_ref().map(Session::name);
            return asker.refuse(&failure, name, route.header(session.clone()), account);
        }
    }

    /// A session that cannot be connected to has no live endpoint either; nothing was sent.
    fn may_fall_back(&self, failure: &Failure, outbound: &Outbound) -> bool {
        self.listener.on_unavailable == OnUnavailable::Baseline
            && !outbound.was_lost
            && matches!(
                failure,
                Failure::ConnectFailed(_) | Failure::ConnectTimeout | Failure::NoEndpoint
            )
            && matches!(outbound.progress(), None | Some(Progress::Untouched))
    }

    /// Hands the upstream's answer to the client.
    fn pass_on(
        &self,
        mut head: response::Parts,
        lease: Lease,
        outbound: &Outbound,
        route: HeaderValue,
        asker: Asker,
        mut account: Box<Account>,
    ) -> Response<Body> {
        let is_upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let takes_trailers = outbound.crossing.trailers;
        forward::response(
            &mut head,
            asker.version,
            takes_trailers,
            is_upgraded,
            &self.plan.rule.header,
        );
        if asker.wants_route {
            head.headers.insert(ROUTE_HEADER, route);
        } else {
            head.headers.remove(ROUTE_HEADER);
        }
        account.record.answered(head.status.as_u16());
        account.record.released();
        account.turn.gave();
        if self.plan.responses.server_timing {
            let took = account.record.overhead();
            let value = format!("session-proxy;dur={:.3}", took.as_secs_f64() * 1e3);
            if let Ok(value) = HeaderValue::try_from(value) {
                head.headers.append("server-timing", value);
            }
        }
        if is_upgraded {
            self.client
                .upgraded
                .replace(Some(Upgraded { lease, account }));
            return Response::from_parts(head, Body::nothing());
        }
        if head.status == StatusCode::NOT_MODIFIED && asker.version != Version::HTTP_2 {
            lease.home();
            return Response::from_parts(head, Body::not_modified(account));
        }
        let ends_by_close =
            asker.version == Version::HTTP_10 && !head.headers.contains_key(header::CONTENT_LENGTH);
        let idle = self.plan.timeouts.body_idle;
        let deadlines = &self.ground.deadlines;
        let body = Body::forwarded(lease, account, idle, deadlines, ends_by_close);
        Response::from_parts(head, body)
    }
}
