//! The account of one exchange: metrics, access line, tap; written once, when dropped.
//!
//! A [`Record`] opens with the request's head and lives as long as its answer's body, so whatever
//! ends an exchange ends its record: the last byte, a broken upstream, a client that hangs up.
//! Text is copied only while someone reads it, as access log or tap. Header values never are.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Version};

use self::access::AccessLog;
use self::line::Line;
use self::tap::Tap;
use crate::metrics::{ListenerMetrics, Metrics, Route};

pub mod access;
pub mod line;
pub mod tap;

/// The status counted for a request whose client went away before an answer; nginx's number.
const CLIENT_GONE: u16 = 499;

/// Bytes of a target or session that are kept for an access line or a tap.
const KEPT_TEXT: usize = 2048;

/// What the access log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    /// No access log.
    Off,
    /// One line of `key=value` fields.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where all records of this process are written.
#[derive(Debug)]
pub struct Journal {
    metrics: Arc<Metrics>,
    access: Option<AccessLog>,
    tap: Tap,
}

impl Journal {
    /// An access log goes to stdout, through a thread of its own.
    pub fn new(metrics: Arc<Metrics>, access: AccessFormat) -> Arc<Self> {
        Self::writing_to(std::io::stdout(), metrics, access)
    }

    /// The same with the access log somewhere else.
    fn writing_to(
        output: impl std::io::Write + Send + 'static,
        metrics: Arc<Metrics>,
        access: AccessFormat,
    ) -> Arc<Self> {
        let dropped = metrics.log_dropped.clone();
        let access = match access {
            AccessFormat::Off => None,
            AccessFormat::Text => Some(AccessLog::new(Line::to_text, output, dropped)),
            AccessFormat::Json => Some(AccessLog::new(Line::to_json, output, dropped)),
        };
        let tap = Tap::new(metrics.tap_dropped.clone());
        Arc::new(Self {
            metrics,
            access,
            tap,
        })
    }

    /// Where live requests can be followed.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Waits until the access lines queued so far are out, or for a second. Blocks the thread.
    pub fn flush(&self) {
        if let Some(access) = &self.access {
            access.flush(Duration::from_secs(1));
        }
    }

    fn is_read(&self) -> bool {
        self.access.is_some() || self.tap.is_watched()
    }
}

/// One worker's page in the journal for one listener: what all its records have in common.
///
/// A record holds this by `Rc`, so that opening one touches no counter shared between threads
/// but those that are exported.
#[derive(Debug)]
pub struct Ledger {
    journal: Arc<Journal>,
    listener: Arc<ListenerMetrics>,
    none: Arc<Route>,
}

impl Ledger {
    /// One for each worker and listener.
    pub fn new(journal: &Arc<Journal>, listener: &Arc<ListenerMetrics>) -> Rc<Self> {
        Rc::new(Self {
            journal: Arc::clone(journal),
            listener: Arc::clone(listener),
            none: journal.metrics.route("none"),
        })
    }

    /// An answer to bytes that never became a request, and so have no record.
    pub fn refused(&self, status: u16, reason: &'static str) {
        self.none.on(&self.listener).count(reason, status);
    }
}

/// The account of one request and its answer.
///
/// The deeds are told in the order they happen: [`routed`](Self::routed),
/// [`dispatched`](Self::dispatched), [`answered`](Self::answered), [`released`](Self::released).
/// Any of them may be missing. The drop writes.
#[derive(Debug)]
pub struct Record {
    ledger: Rc<Ledger>,
    /// `None`: the route `none`.
    route: Option<Arc<Route>>,
    reason: &'static str,
    status: Option<u16>,
    retries: u32,
    request_bytes: u64,
    response_bytes: u64,
    opened: Instant,
    /// Time the proxy itself took, without the stretch that is running.
    overhead: Duration,
    /// Since when the request waits for nobody but us.
    ours_since: Option<Instant>,
    /// What only readers need; `None` while there are none.
    notes: Option<Box<Notes>>,
}

/// Text about one exchange, for people.
#[derive(Debug)]
struct Notes {
    started: SystemTime,
    client: SocketAddr,
    method: http::Method,
    target: String,
    version: Version,
    session: Option<String>,
    upstream: Option<String>,
    error: Option<&'static str>,
}

impl Record {
    /// Opens the account of a request whose head has just arrived from `client`.
    pub fn open<B>(ledger: &Rc<Ledger>, request: &Request<B>, client: SocketAddr) -> Self {
        let now = Instant::now();
        ledger.journal.metrics.requests_in_flight.inc();
        Self {
            ledger: Rc::clone(ledger),
            route: None,
            reason: "client-gone",
            status: None,
            retries: 0,
            request_bytes: 0,
            response_bytes: 0,
            opened: now,
            overhead: Duration::ZERO,
            ours_since: Some(now),
            notes: ledger
                .journal
                .is_read()
                .then(|| Box::new(Notes::new(request, client))),
        }
    }

    /// The way was chosen. `session` is what the request said, whether the table knows it or not.
    pub fn routed(&mut self, route: &Arc<Route>, reason: &'static str, session: Option<&str>) {
        self.route = Some(Arc::clone(route));
        self.reason = reason;
        if let Some(notes) = &mut self.notes {
            notes.session = session.map(shortened);
        }
    }

    /// The endpoint the request goes to; formatted only when someone reads it.
    pub fn upstream(&mut self, endpoint: impl fmt::Display) {
        if let Some(notes) = &mut self.notes {
            notes.upstream = Some(endpoint.to_string());
        }
    }

    /// The request is about to be written to the upstream: from here on we wait for others.
    pub fn dispatched(&mut self) {
        self.stop_our_clock();
    }

    /// The request is sent once more; `why` becomes a label. The time is ours again.
    pub fn retried(&mut self, why: &'static str) {
        self.retries += 1;
        self.ledger.journal.metrics.retried(why);
        self.start_our_clock();
    }

    /// The head of the upstream's answer is here, and will be passed on.
    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
        self.start_our_clock();
    }

    /// We answer ourselves; `reason` takes the place of the one the route was chosen for.
    pub fn refused(&mut self, status: u16, reason: &'static str) {
        self.status = Some(status);
        self.reason = reason;
        self.start_our_clock();
    }

    /// The answer's head was handed to the HTTP engine; what follows is the pace of others.
    pub fn released(&mut self) {
        self.stop_our_clock();
    }

    /// More of the request's body went to the upstream.
    pub fn uploaded(&mut self, bytes: u64) {
        self.request_bytes += bytes;
    }

    /// More of the answer's body went to the client.
    pub fn downloaded(&mut self, bytes: u64) {
        self.response_bytes += bytes;
    }

    /// After the head of the answer: the upstream or the client broke off.
    pub fn broken(&mut self, why: &'static str) {
        if let Some(notes) = &mut self.notes {
            notes.error = Some(why);
        }
    }

    /// Time the proxy itself took so far.
    pub fn overhead(&self) -> Duration {
        self.overhead
    }

    fn start_our_clock(&mut self) {
        self.ours_since.get_or_insert_with(Instant::now);
    }

    fn stop_our_clock(&mut self) {
        if let Some(since) = self.ours_since.take() {
            self.overhead += since.elapsed();
        }
    }

    /// The account as people read it.
    fn line(&self, notes: Notes, status: u16, reason: &'static str, took: Duration) -> Line {
        let route = self.route.as_ref().unwrap_or(&self.ledger.none);
        Line {
            time: line::rfc3339(notes.started),
            client: notes.client.to_string(),
            listener: self.ledger.listener.name.to_string(),
            method: notes.method.to_string(),
            target: notes.target,
            version: version_name(notes.version).to_owned(),
            session: notes.session,
            route: route.name().to_owned(),
            reason: reason.to_owned(),
            status,
            upstream: notes.upstream,
            duration_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
            overhead_us: u64::try_from(self.overhead.as_micros()).unwrap_or(u64::MAX),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            retries: self.retries,
            error: notes.error.map(str::to_owned),
            pod: None,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.opened.elapsed();
        let (status, reason) = match self.status {
            Some(status) => (status, self.reason),
            None => (CLIENT_GONE, "client-gone"),
        };
        let ledger = &self.ledger;
        let metrics = &ledger.journal.metrics;

        let numbers = self
            .route
            .as_ref()
            .unwrap_or(&ledger.none)
            .on(&ledger.listener);
        numbers.count(reason, status);
        numbers.request_duration.observe(took.as_secs_f64());
        if !self.overhead.is_zero() {
            metrics
                .overhead_seconds
                .observe(self.overhead.as_secs_f64());
        }
        if self.request_bytes > 0 {
            metrics.request_bytes.inc_by(self.request_bytes);
        }
        if self.response_bytes > 0 {
            metrics.response_bytes.inc_by(self.response_bytes);
        }
        metrics.requests_in_flight.dec();

        if let Some(notes) = self.notes.take() {
            let line = self.line(*notes, status, reason, took);
            if let Some(access) = &self.ledger.journal.access {
                access.write(&line);
            }
            self.ledger.journal.tap.publish(&line);
        }
    }
}

impl Notes {
    fn new<B>(request: &Request<B>, client: SocketAddr) -> Self {
        let uri = request.uri();
        Self {
            started: SystemTime::now(),
            client,
            method: request.method().clone(),
            target: shortened(uri.path_and_query().map_or("", |target| target.as_str())),
            version: request.version(),
            session: None,
            upstream: None,
            error: None,
        }
    }
}

/// A copy of at most [`KEPT_TEXT`] bytes, with `…` where it was cut. What a client sends decides
/// how long a line is, and thousands of lines may wait in a queue.
fn shortened(text: &str) -> String {
    if text.len() <= KEPT_TEXT {
        return text.to_owned();
    }
    let end = (0..=KEPT_TEXT)
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tap::Filter;

    fn ledger() -> Rc<Ledger> {
        let metrics = Metrics::new("0", "0");
        let listener = metrics.listener("http");
        Ledger::new(&Journal::new(metrics, AccessFormat::Off), &listener)
    }

    fn opened(ledger: &Rc<Ledger>) -> Record {
        let request = Request::builder().uri("/a?b=c").body(()).unwrap();
        Record::open(ledger, &request, ([127, 0, 0, 1], 4711).into())
    }

    /// The lines of `requests_total`, without the name.
    fn counted(ledger: &Ledger) -> Vec<String> {
        let text = ledger.journal.metrics.text();
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("session_proxy_requests_total"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn an_answered_request_is_counted_once_when_its_record_is_dropped() {
        let ledger = ledger();
        let route = ledger.journal.metrics.route("pr-42");
        let mut record = opened(&ledger);
        record.routed(&route, "session", Some("pr-42"));
        record.dispatched();
        record.answered(201);
        record.released();
        record.uploaded(3);
        record.downloaded(5);
        assert_eq!(ledger.journal.metrics.requests_in_flight.get(), 1);
        assert!(counted(&ledger).is_empty());

        drop(record);

        let metrics = &ledger.journal.metrics;
        assert_eq!(
            counted(&ledger),
            [r#"{code="201",listener="http",reason="session",route="pr-42"} 1"#]
        );
        assert_eq!(
            route
                .on(&ledger.listener)
                .request_duration
                .get_sample_count(),
            1
        );
        assert_eq!(metrics.overhead_seconds.get_sample_count(), 1);
        assert_eq!(
            (metrics.request_bytes.get(), metrics.response_bytes.get()),
            (3, 5)
        );
        assert_eq!(metrics.requests_in_flight.get(), 0);
    }

    #[test]
    fn a_request_dropped_before_any_answer_is_a_client_that_left() {
        let ledger = ledger();
        let baseline = ledger.journal.metrics.route("baseline");
        drop(opened(&ledger));
        let mut record = opened(&ledger);
        record.routed(&baseline, "no-session", None);

        drop(record);

        assert_eq!(
            counted(&ledger),
            [
                r#"{code="499",listener="http",reason="client-gone",route="baseline"} 1"#,
                r#"{code="499",listener="http",reason="client-gone",route="none"} 1"#,
            ]
        );
    }

    #[test]
    fn our_own_answer_replaces_the_reason_of_the_route() {
        let ledger = ledger();
        let route = ledger.journal.metrics.route("pr-42");
        let mut record = opened(&ledger);
        record.routed(&route, "session", Some("pr-42"));
        record.dispatched();
        record.retried("unsent");
        record.dispatched();
        record.refused(502, "upstream-reset");

        drop(record);

        assert_eq!(
            counted(&ledger),
            [r#"{code="502",listener="http",reason="upstream-reset",route="pr-42"} 1"#]
        );
        let text = ledger.journal.metrics.text();
        assert!(
            text.contains(r#"session_proxy_retries_total{reason="unsent"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn the_time_an_upstream_takes_is_not_our_overhead() {
        let ledger = ledger();
        let mut record = opened(&ledger);
        record.dispatched();
        std::thread::sleep(Duration::from_millis(50));
        record.answered(200);
        record.released();
        std::thread::sleep(Duration::from_millis(50));

        assert!(
            record.overhead < Duration::from_millis(50),
            "{:?}",
            record.overhead
        );
    }

    #[test]
    fn text_is_kept_only_while_someone_reads() {
        let ledger = ledger();
        assert!(opened(&ledger).notes.is_none());

        let subscription = ledger.journal.tap().subscribe(Filter::default());
        assert!(opened(&ledger).notes.is_some());
        drop(subscription);
        assert!(opened(&ledger).notes.is_none());
    }

    #[tokio::test]
    async fn the_tap_and_the_access_log_tell_the_same() {
        let (reader, writer) = std::io::pipe().unwrap();
        let metrics = Metrics::new("0", "0");
        let listener = metrics.listener("http");
        let journal = Journal::writing_to(writer, metrics, AccessFormat::Json);
        let ledger = Ledger::new(&journal, &listener);
        let mut subscription = journal.tap().subscribe(Filter::default());

        let mut record = opened(&ledger);
        record.routed(
            &journal.metrics.route("baseline"),
            "unknown-session",
            Some("x\ny"),
        );
        record.upstream("127.0.0.1:9100");
        record.dispatched();
        record.answered(200);
        record.broken("upstream closed early");
        drop(record);
        journal.flush();

        let event = subscription.next().await.unwrap();
        let line: Line = serde_json::from_str(&event).unwrap();
        assert_eq!(line.target, "/a?b=c");
        assert_eq!(line.session.as_deref(), Some("x\ny"));
        assert_eq!(line.upstream.as_deref(), Some("127.0.0.1:9100"));
        assert_eq!(line.error.as_deref(), Some("upstream closed early"));
        drop((ledger, journal));
        assert_eq!(
            std::io::read_to_string(reader).unwrap(),
            format!("{event}\n")
        );
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(shortened("/short"), "/short");
        let cut = shortened(&format!("a{}", "\u{e9}".repeat(4000)));
        assert_eq!(cut.len(), KEPT_TEXT - 1 + "…".len());
    }
}
