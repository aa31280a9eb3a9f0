//! The file as the operator writes it: its keys and their shapes, no opinions.
//!
//! Every value keeps the text that was written and the [`Place`] where it was written. What a text
//! means, and whether it is allowed, is for `plan` to say; so is what is required and what the
//! defaults are. All this room promises is that reading goes on after a mistake: a [`File`] carries
//! the [`Problem`]s met on the way.

mod reader;
mod shapes;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::yaml;
use shapes::{ListenerProtocol, OnUnavailable, Size};

/// A text and where it was written.
pub type Text = Placed<String>;

/// One configuration, read but not judged. YAML; JSON is YAML.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(
    deny_unknown_fields,
    title = "session-proxy configuration",
    description = "Which requests go where, and within which bounds"
)]
pub struct File {
    /// How a request names its session.
    pub session: SessionKeys,
    /// The ports to listen on. Read at start only.
    pub listeners: Vec<Placed<Listener>>,
    /// Session name to endpoints. A trailing `*` is a prefix; `~REGEX` an anchored regular expression.
    pub sessions: Sessions,
    /// Sessions that come from somewhere else than this file.
    pub discovery: Option<Placed<Discovery>>,
    /// The port for health, metrics and the page for people: `off`, or where it listens.
    /// Read at start only.
    pub admin: Option<Admin>,
    /// How long each thing may take.
    pub timeouts: Timeouts,
    /// How much of each thing there may be.
    pub limits: Limits,
    /// What is added to answers on their way back.
    pub responses: Responses,
    /// The name of the file, for messages; `None` when there is none.
    #[serde(skip)]
    pub name: Option<Arc<str>>,
    /// What could not be read as the shape it should have.
    #[serde(skip)]
    pub problems: Vec<Problem>,
}

impl File {
    /// Reads a file from disk.
    ///
    /// # Errors
    /// When it cannot be opened, is not UTF-8, or is not YAML: nothing more can be said then. Keys and
    /// shapes that are wrong are not errors here: they are in [`File::problems`].
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let name = path.display().to_string();
        let unreadable = |error: &io::Error| Problem {
            file: None,
            place: Place::BuiltIn,
            path: String::new(),
            message: format!("cannot read the configuration {name}: {}", reason(error)),
        };
        let bytes = std::fs::read(path).map_err(|error| unreadable(&error))?;
        Self::parse(&name, &bytes)
    }

    /// Reads the bytes of a file; `name` is what messages call it. Errors as [`File::read`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        reader::read(&Arc::from(name), bytes)
    }

    /// A problem at a place of this configuration. `path` is the key's way from the root
    /// (`listeners[0].address`), shown for places in a file.
    pub fn problem(
        &self,
        place: Place,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.name.clone(),
            place,
            path: path.into(),
            message: message.into(),
        }
    }
}

/// Why a file cannot be read, in the words of a message.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory; name a file in it".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Where a value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// In the file; both count from 1, columns in characters.
    At {
        /// The line.
        line: u32,
        /// The column.
        column: u32,
    },
    /// On the command line: the flag's name, `--session`.
    Flag(&'static str),
    /// In the environment: the variable's name, `SESSION_PROXY_LISTEN`.
    Env(&'static str),
    /// Nowhere: the default, or something that is missing.
    #[default]
    BuiltIn,
}

impl Place {
    /// Of a value in a file.
    pub fn of(node: &yaml::Node<'_>) -> Self {
        Self::At {
            line: node.line,
            column: node.column,
        }
    }
}

/// A mistake, where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file the place is in.
    pub file: Option<Arc<str>>,
    /// Where.
    pub place: Place,
    /// The key's way from the root, `listeners[0].address`; empty for the whole.
    pub path: String,
    /// Lower case, without a full stop, quotes the offending text, gives advice.
    pub message: String,
}

impl Problem {
    /// A file that is no YAML.
    pub fn of_fault(file: &Arc<str>, fault: yaml::Fault) -> Self {
        Self {
            file: Some(Arc::clone(file)),
            place: Place::At {
                line: fault.line,
                column: fault.column,
            },
            path: String::new(),
            message: fault.message,
        }
    }
}

/// One line: `file:line:column: path: message`, which editors can jump to; for a flag or a variable its
/// name instead of file and path.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self.place {
            Place::Flag(name) | Place::Env(name) => name,
            Place::At { .. } | Place::BuiltIn => &self.path,
        };
        match (self.place, &self.file) {
            (Place::At { line, column }, Some(file)) => write!(f, "{file}:{line}:{column}: ")?,
            (Place::BuiltIn, Some(file)) => write!(f, "{file}: ")?,
            _ => {}
        }
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placed<T> {
    /// What was written.
    pub value: T,
    /// Where.
    pub place: Place,
}

impl<T> Placed<T> {
    /// What was written there.
    pub fn new(value: T, place: Place) -> Self {
        Self { value, place }
    }
}

/// One text, or a list of them.
#[derive(Debug, Clone, Default)]
pub struct OneOrList(pub Vec<Text>);

/// How a request names its session.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct SessionKeys {
    /// The header whose value is the session. Default: `x-dev-session`.
    pub header: Option<Text>,
    /// The W3C baggage member read when the header is absent; empty turns baggage off. Default: `dev-session`.
    pub baggage_key: Option<Text>,
}

/// One port.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Listener {
    /// Its name in logs and metrics. Default: `listener-1` and so on.
    pub name: Option<Text>,
    /// IP:PORT.
    #[schemars(required, with = "String")]
    pub address: Option<Text>,
    /// `http` (HTTP/1 and HTTP/2 on one port), `https` or `tcp`. Default: `http`.
    #[schemars(with = "Option<ListenerProtocol>")]
    pub protocol: Option<Text>,
    /// The port of a session endpoint that names none. Default: the address's own port.
    #[schemars(with = "Option<u16>")]
    pub app_port: Option<Text>,
    /// Where everything goes that no session claims: one endpoint or a list.
    pub baseline: OneOrList,
    /// What a known session without a live endpoint gets: `error` (503) or `baseline`. Default: `error`.
    #[schemars(with = "Option<OnUnavailable>")]
    pub on_unavailable: Option<Text>,
    /// With `protocol: https`.
    pub tls: Option<Placed<ListenerTls>>,
    /// With `protocol: tcp`: where every connection goes: one endpoint or a list.
    pub target: OneOrList,
}

/// PEM files, read again when they change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct ListenerTls {
    /// The certificate chain, the leaf first.
    #[schemars(required, with = "String")]
    pub certificate: Option<Text>,
    /// Its private key.
    #[schemars(required, with = "String")]
    pub private_key: Option<Text>,
}

/// Sessions in file order, names as written.
#[derive(Debug, Default)]
pub struct Sessions(pub Vec<(Text, Session)>);

/// Where one session's requests go: an endpoint, a list of them, or the long form.
#[derive(Debug, Default)]
pub struct Session {
    /// May be empty: a session whose pod is not there yet. `None`: not written at all.
    pub endpoints: Option<OneOrList>,
    /// `auto`, `h1`, `h2c` or `tls`.
    pub protocol: Option<Text>,
    /// With `protocol: tls`.
    pub tls: Option<Placed<UpstreamTls>>,
}

/// How to prove the identity of a session's TLS endpoints.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name to verify and to send as SNI. Default: the endpoint's own host.
    pub server_name: Option<Text>,
    /// A PEM file of authorities to trust. Default: those of the system.
    pub ca: Option<Text>,
}

/// Where else sessions come from.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Discovery {
    /// Pods of a Kubernetes cluster.
    #[schemars(required, with = "KubernetesPods")]
    pub kubernetes: Option<Placed<KubernetesPods>>,
}

/// The pods with the labels `session-proxy/app` and `session-proxy/session`; those that are ready get requests. A
/// session of the file wins over one of the same name found here.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct KubernetesPods {
    /// The namespace they run in.
    #[schemars(required, with = "String")]
    pub namespace: Option<Text>,
    /// What their label `session-proxy/app` says.
    #[schemars(required, with = "String")]
    pub app: Option<Text>,
}

/// Where the admin port listens.
#[derive(Debug, Clone, Default)]
pub struct Admin {
    /// IP:PORT, or `off`.
    pub address: Option<Text>,
}

/// Durations: `500ms`, `2s`, `1m30s`, `1h`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Timeouts {
    /// From accepting a connection to its first byte. Default: `10s`.
    pub first_byte: Option<Text>,
    /// From the first byte of a request head to its last. Default: `10s`.
    pub request_headers: Option<Text>,
    /// To connect to an endpoint. Default: `1s`.
    pub connect: Option<Text>,
    /// From a request's end to the head of its answer. Default: `60s`.
    pub response_headers: Option<Text>,
    /// Without a byte of a body in either direction. Default: `5m`.
    pub body_idle: Option<Text>,
    /// A client connection without a request. Default: `75s`.
    pub keep_alive: Option<Text>,
    /// An unused connection to an endpoint; `0s` keeps none. Default: `2s`.
    pub pool_idle: Option<Text>,
    /// From SIGTERM to the end, whatever is still in flight. Default: `30s`.
    pub drain: Option<Text>,
}

/// Counts and sizes; sizes are bytes, `64KiB` or `1MiB`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Limits {
    /// Client connections at once. Default: 10000.
    #[schemars(with = "Option<usize>")]
    pub connections: Option<Text>,
    /// A request head. Default: `64KiB`.
    #[schemars(with = "Option<Size>")]
    pub header_bytes: Option<Text>,
    /// Header fields of a request. Default: 100.
    #[schemars(with = "Option<usize>")]
    pub headers: Option<Text>,
    /// Concurrent HTTP/2 streams of one client connection. Default: 100.
    #[schemars(with = "Option<u32>")]
    pub h2_streams: Option<Text>,
    /// Requests in flight to one endpoint. Default: 1024.
    #[schemars(with = "Option<usize>")]
    pub requests_per_endpoint: Option<Text>,
    /// Requests that wait for one endpoint. Default: 1024.
    #[schemars(with = "Option<usize>")]
    pub queued_per_endpoint: Option<Text>,
}

/// What is added to answers on their way back.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Responses {
    /// Say in `x-dev-session-route` where the answer came from. Default: true.
    #[schemars(with = "Option<bool>")]
    pub route_header: Option<Text>,
    /// Say in `server-timing` how long it took. Default: false.
    #[schemars(with = "Option<bool>")]
    pub server_timing: Option<Text>,
}

/// The known word a misspelt one is close to: the same but for case and dashes, or two keystrokes away.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let (distance, near) = known
        .iter()
        .map(|candidate| (keystrokes(&plain(word), &plain(candidate)), *candidate))
        .min_by_key(|(distance, _)| *distance)?;
    // A word of three letters is two keystrokes from half the dictionary.
    (distance <= 2 && distance * 2 < near.len().max(2)).then_some(near)
}

/// Insertions, removals and replacements that turn one word into the other (Levenshtein).
fn keystrokes(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, left) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
