//! The file compiled into an immutable table, or every problem named with its place.
//!
//! Turning what was written ([`config::File`]) into what is true ([`Plan`]) is the only validation there
//! is: behind this door nothing is checked twice. It never stops at the first mistake, and it holds the
//! defaults, because a default is an opinion.

mod address;
mod compile;
mod discovered;
mod inherit;
mod ports;
mod routes;
pub mod text;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use self::discovered::{Unused, Why};
use crate::config::{self, Problem};
use crate::matcher::{SessionRule, Table};
use crate::metrics::Metrics;
pub use crate::tls::TlsFiles;
use crate::upstream::{Endpoint, Upstream};

/// The session the proxy answers itself.
pub const PROBE: &str = "session-proxy-probe";
/// The header of such a request whose value is in the answer again.
pub const PROBE_NONCE: &str = "x-session-proxy-nonce";

/// A duration as a person writes it, `500ms`, `2s` or `1m30s`: at least 1 ms, at most a day.
///
/// # Errors
/// It is none, or out of range: what to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    text::duration(text, false)
}

/// What is true: everything a worker needs to serve, checked once.
#[derive(Debug)]
pub struct Plan {
    /// How a request names its session.
    pub rule: SessionRule,
    /// Session name to upstream.
    pub sessions: Table<Arc<Upstream>>,
    /// Where sessions come from beside the file.
    pub discovery: Option<Discovery>,
    /// Read at start only.
    pub listeners: Arc<[Listener]>,
    /// Read at start only; `None` is `off`.
    pub admin: Option<SocketAddr>,
    /// How long each thing may take.
    pub timeouts: Timeouts,
    /// How much of each thing there may be.
    pub limits: Limits,
    /// What is added to answers.
    pub responses: Responses,
    /// Of all endpoints that requests may be sent to.
    endpoint_ids: HashSet<u64>,
}

impl Plan {
    /// Judges a configuration. Certificates and keys it names are read, names in it are not resolved.
    ///
    /// # Errors
    /// Every problem of the file, those of its shape included, in the order of their places.
    pub fn compile(file: &config::File, metrics: &Arc<Metrics>) -> Result<Self, Vec<Problem>> {
        compile::compile(file, metrics)
    }

    /// This plan in the place of `old`: listeners and the admin port stay what they were, and
    /// endpoints that stay are the same, with their connections.
    pub fn succeed(mut self, old: &Self) -> Self {
        self.listeners = Arc::clone(&old.listeners);
        self.admin = old.admin;
        self.inherit(old);
        self.with_endpoint_ids()
    }

    /// Whether requests may be sent to the endpoint with this id.
    pub fn has_endpoint(&self, id: u64) -> bool {
        self.endpoint_ids.contains(&id)
    }

    /// Whether a newer plan changes what is read at start only, so that the process must start again to
    /// obey it: listeners, what they lead to, and the admin port.
    pub fn needs_restart_for(&self, newer: &Self) -> bool {
        let same_listeners = self.listeners.len() == newer.listeners.len()
            && self
                .listeners
                .iter()
                .zip(newer.listeners.iter())
                .all(|(ours, theirs)| ours.is_same_as(theirs));
        !same_listeners || self.admin != newer.admin
    }
}

/// Which pods make sessions: those whose labels name this app and a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub namespace: String,
    pub app: String,
}

impl ListenerKind {
    /// The word for it in the file.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Https(..) => "https",
            Self::Tcp(_) => "tcp",
        }
    }
}

/// One port.
#[derive(Debug)]
pub struct Listener {
    /// Its name in logs and metrics; unique.
    pub name: Arc<str>,
    /// Port 0 lets the system choose.
    pub address: SocketAddr,
    /// What is spoken there.
    pub kind: ListenerKind,
}

impl Listener {
    fn is_same_as(&self, other: &Self) -> bool {
        let same_kind = match (&self.kind, &other.kind) {
            (ListenerKind::Http(ours), ListenerKind::Http(theirs)) => ours.is_same_as(theirs),
            (ListenerKind::Https(ours, files), ListenerKind::Https(theirs, other_files)) => {
                ours.is_same_as(theirs) && files == other_files
            }
            (ListenerKind::Tcp(ours), ListenerKind::Tcp(theirs)) => are_same(ours, theirs),
            _ => false,
        };
        same_kind && self.name == other.name && self.address == other.address
    }
}

/// Whether two lists name the same endpoints; how healthy they are does not matter.
fn are_same(ours: &[Arc<Endpoint>], theirs: &[Arc<Endpoint>]) -> bool {
    ours.len() == theirs.len()
        && ours
            .iter()
            .zip(theirs)
            .all(|(one, other)| one.host == other.host && one.port == other.port)
}

/// What a listener speaks, and what it needs for that.
#[derive(Debug)]
pub enum ListenerKind {
    /// h1 and h2c on one port.
    Http(Arc<HttpListener>),
    /// h1 and h2 by ALPN, over TLS.
    Https(Arc<HttpListener>, TlsFiles),
    /// Every connection goes to one of these, bytes untouched. Each has a port.
    Tcp(Vec<Arc<Endpoint>>),
}

/// How a listener that reads HTTP treats requests.
#[derive(Debug)]
pub struct HttpListener {
    /// The port of a session endpoint that names none. 0 only when the address has port 0 and every
    /// endpoint names its port.
    pub app_port: u16,
    /// Where everything goes that no session claims. Each endpoint has a port.
    pub baseline: Option<Arc<Upstream>>,
    /// What a known session without a live endpoint gets.
    pub on_unavailable: OnUnavailable,
}

impl HttpListener {
    fn is_same_as(&self, other: &Self) -> bool {
        let same_baseline = match (&self.baseline, &other.baseline) {
            (Some(ours), Some(theirs)) => are_same(&ours.endpoints, &theirs.endpoints),
            (None, None) => true,
            _ => false,
        };
        same_baseline
            && self.app_port == other.app_port
            && self.on_unavailable == other.on_unavailable
    }
}

/// What a known session without a live endpoint gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// 503.
    Error,
    /// What the baseline answers.
    Baseline,
}

/// How long each thing may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From accepting a connection to its first byte.
    pub first_byte: Duration,
    /// From the first byte of a request head to its last.
    pub request_headers: Duration,
    /// To connect to an endpoint.
    pub connect: Duration,
    /// From a request's end to the head of its answer.
    pub response_headers: Duration,
    /// Without a byte of a body in either direction.
    pub body_idle: Duration,
    /// A client connection without a request.
    pub keep_alive: Duration,
    /// An unused connection to an endpoint; zero keeps none.
    pub pool_idle: Duration,
    /// From SIGTERM to the end; zero ends at once.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            request_headers: Duration::from_secs(10),
            connect: Duration::from_secs(1),
            response_headers: Duration::from_secs(60),
            body_idle: Duration::from_secs(5 * 60),
            // Longer than the 3 s for which mirrord's sender keeps a connection it may use again.
            keep_alive: Duration::from_secs(75),
            // Shorter than the 5 s after which Node closes its side.
            pool_idle: Duration::from_secs(2),
            drain: Duration::from_secs(30),
        }
    }
}

/// How much of each thing there may be; only the queue may be zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections: usize,
    /// Bytes of a request head;.
    pub header_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// Concurrent HTTP/2 streams of one client connection.
    pub h2_streams: u32,
    /// Requests in flight to one endpoint.
    pub requests_per_endpoint: usize,
    /// Requests that wait for one endpoint.
    pub queued_per_endpoint: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            header_bytes: 64 * 1024,
            headers: 100,
            h2_streams: 100,
            requests_per_endpoint: 1024,
            queued_per_endpoint: 1024,
        }
    }
}

/// What is added to answers on their way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Responses {
    /// `x-dev-session-route`.
    pub route_header: bool,
    /// `server-timing`.
    pub server_timing: bool,
}

impl Default for Responses {
    fn default() -> Self {
        Self {
            route_header: true,
            server_timing: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;

    fn compile(name: &str, bytes: &[u8]) -> Result<Plan, Vec<Problem>> {
        let file = config::File::parse(name, bytes).map_err(|problem| vec![problem])?;
        Plan::compile(&file, &Metrics::new("test", "none"))
    }

    fn told(problems: &[Problem]) -> String {
        problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect()
    }

    fn data(prefix: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .expect("the folder is part of the repository")
            .map(|entry| entry.expect("readable").path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "yaml")
            })
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            })
            .collect();
        files.sort();
        assert!(!files.is_empty(), "no {prefix}*.yaml");
        files
    }

    #[test]
    fn good_files_load() {
        for path in data("good-") {
            let bytes = std::fs::read(&path).expect("readable");
            if let Err(problems) = compile("good.yaml", &bytes) {
                panic!("{}:\n{}", path.display(), told(&problems));
            }
        }
    }

    /// `BLESS=1 cargo test bad_files` writes what is told now; read the difference before you commit it.
    #[test]
    fn bad_files_tell_every_problem_at_its_place() {
        for path in data("bad-") {
            let name = path
                .file_name()
                .expect("a file")
                .to_string_lossy()
                .into_owned();
            let bytes = std::fs::read(&path).expect("readable");
            let problems = told(&compile(&name, &bytes).expect_err(&name));
            let golden = path.with_extension("problems");
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(&golden, &problems).expect("writable");
            }
            assert_eq!(
                problems,
                std::fs::read_to_string(&golden).expect("a golden file"),
                "{name}"
            );
        }
    }

    #[test]
    fn a_hundred_thousand_sessions_load_as_yaml_and_as_json() {
        let pod = |n: usize| format!("10.{}.{}.{}", n >> 16, n >> 8 & 0xff, n & 0xff);
        let mut yaml = "listeners: [{ address: ':80' }]\nsessions:\n".to_owned();
        let mut json = "{\"listeners\": [{\"address\": \":80\"}], \"sessions\": {".to_owned();
        for n in 0..100_000 {
            yaml += &format!("  pr-{n}: {}\n", pod(n));
            json += &format!(
                "{}\"pr-{n}\": {{\"endpoints\": [\"{}\"]}}",
                if n == 0 { "" } else { "," },
                pod(n)
            );
        }
        json += "}}";
        for text in [yaml, json] {
            let plan = compile("many.yaml", text.as_bytes()).expect("valid");
            assert_eq!(plan.sessions.len(), 100_000);
            assert_eq!(
                plan.sessions.find("pr-99999").expect("known").endpoints[0].to_string(),
                pod(99_999)
            );
        }
    }

    #[test]
    fn only_what_is_read_at_start_needs_a_restart() {
        let plan = |text: &str| {
            compile("f.yaml", text.as_bytes())
                .map_err(|problems| told(&problems))
                .expect("valid")
        };
        let running =
            plan("listeners: [{ address: ':80', baseline: 10.0.0.1 }]\nsessions: { a: 10.0.0.2 }");

        assert!(!running.needs_restart_for(&plan(
            "listeners: [{ address: ':80', baseline: 10.0.0.1 }]\ntimeouts: { drain: 1s }"
        )));
        assert!(
            running.needs_restart_for(&plan("listeners: [{ address: ':80', baseline: 10.0.0.3 }]"))
        );
        assert!(
            running.needs_restart_for(&plan("listeners: [{ address: ':81', baseline: 10.0.0.1 }]"))
        );
        assert!(running.needs_restart_for(&plan(
            "listeners: [{ address: ':80', baseline: 10.0.0.1 }]\nadmin: off"
        )));
    }

    #[test]
    fn a_missing_file_and_a_folder_are_named_with_the_cause() {
        let missing =
            config::File::read(Path::new("/nowhere/session-proxy.yaml")).expect_err("missing");
        let folder = config::File::read(Path::new("/")).expect_err("a folder");

        assert_eq!(
            missing.to_string(),
            "cannot read the configuration /nowhere/session-proxy.yaml: no such file"
        );
        assert_eq!(
            folder.to_string(),
            "cannot read the configuration /: it is a directory; name a file in it"
        );
    }

    /// A self-signed certificate for `orders.local` and its key.
    fn pair() -> (String, String) {
        let made =
            rcgen::generate_simple_self_signed(["orders.local".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn example() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example.yaml");
        std::fs::read_to_string(path).expect("part of the repository")
    }

    #[test]
    fn the_example_holds_the_defaults() {
        let plan = compile("example.yaml", example().as_bytes())
            .map_err(|problems| told(&problems))
            .expect("valid");

        assert_eq!(plan.timeouts, Timeouts::default());
        assert_eq!(plan.limits, Limits::default());
        assert_eq!(plan.responses, Responses::default());
        let least = compile("least.yaml", b"listeners: [{ address: ':80' }]")
            .map_err(|problems| told(&problems))
            .expect("valid");
        assert_eq!((plan.rule, plan.admin), (least.rule, least.admin));
    }

    #[test]
    fn the_commented_parts_of_the_example_load_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = pair();
        for (name, text) in [
            ("tls.crt", &certificate),
            ("ca.crt", &certificate),
            ("tls.key", &key),
        ] {
            std::fs::write(folder.path().join(name), text).expect("writable");
        }
        // Prose has one blank after its #; what is commented out has more.
        let uncommented: String = example()
            .lines()
            .map(|line| {
                if line.starts_with("#  ") && !line.starts_with("#   session-proxy") {
                    &line[1..]
                } else {
                    line
                }
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let text = uncommented.replace("/tls/", &format!("{}/", folder.path().display()));

        let plan = compile("example.yaml", text.as_bytes())
            .map_err(|problems| told(&problems))
            .expect("valid");

        assert!(
            plan.listeners
                .iter()
                .any(|listener| matches!(listener.kind, ListenerKind::Https(..)))
        );
        let secure = plan.sessions.find("pr-45").expect("known");
        assert!(matches!(secure.protocol, crate::upstream::Protocol::Tls(_)));
    }

    #[test]
    fn a_key_of_another_certificate_is_a_problem() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        std::fs::write(&certificate, pair().0).expect("writable");
        std::fs::write(&key, pair().1).expect("writable");
        let text = format!(
            "listeners: [{{ address: ':80', protocol: https, tls: {{ certificate: {}, privateKey: {} }} }}]",
            certificate.display(),
            key.display()
        );

        let problems = told(&compile("f.yaml", text.as_bytes()).expect_err("a mismatch"));

        assert!(
            problems.contains("listeners[0].tls.privateKey: the key in "),
            "{problems}"
        );
        assert!(
            problems.contains("does not belong to the certificate in "),
            "{problems}"
        );
    }

    #[test]
    fn sessions_that_trust_the_same_share_their_settings() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = folder.path().join("ca.crt");
        std::fs::write(&ca, pair().0).expect("writable");
        let session = format!(
            "{{ endpoints: [10.0.0.1], protocol: tls, tls: {{ ca: {} }} }}",
            ca.display()
        );
        let text = format!(
            "listeners: [{{ address: ':80' }}]\nsessions: {{ a: {session}, b: {session} }}"
        );

        let plan = compile("f.yaml", text.as_bytes())
            .map_err(|problems| told(&problems))
            .expect("valid");

        let settings = |name: &str| match &plan.sessions.find(name).expect("known").protocol {
            crate::upstream::Protocol::Tls(tls) => Arc::clone(&tls.config),
            other => panic!("{other:?}"),
        };
        assert!(Arc::ptr_eq(&settings("a"), &settings("b")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = compile("any.yaml", &bytes);
        }

        /// Bytes at random are hardly ever YAML; these mostly are.
        #[test]
        fn any_pieces_of_a_file_are_read_or_refused(pieces in proptest::collection::vec(piece(), 0..40)) {
            let _ = compile("any.yaml", pieces.concat().as_bytes());
        }
    }

    fn piece() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            "listeners",
            "sessions",
            "session",
            "admin",
            "timeouts",
            "limits",
            "responses",
            "discovery",
            "address",
            "endpoints",
            "protocol",
            "tls",
            "baseline",
            "target",
            "pr-1",
            "10.0.0.1",
            ":80",
            "~",
            "*",
            "&a ",
            "*a",
            "<<",
            ": ",
            ":",
            "- ",
            "\n",
            "\n  ",
            "\n    ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "\"",
            "'",
            "|\n",
            ">\n",
            "? ",
            "!!str ",
            "---\n",
            "...\n",
            "# x\n",
            "\t",
            "null",
            "off",
            "é",
            "\u{feff}",
        ])
    }
}
