//! What can be typed: commands, flags, their environment variables. Nothing else.
//!
//! Values that also have a key in the configuration file stay text here, so that a mistake in one is
//! told by `plan`, in the same words and beside all others.

pub mod cluster;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, `unknown` outside a repository.
pub const COMMIT: &str = env!("SESSION_PROXY_COMMIT");
const VERSION_AND_COMMIT: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("SESSION_PROXY_COMMIT"),
    ")"
);

/// Where the admin port listens, and where its clients look, when nothing is said.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:9901";

/// Routes each HTTP request by its session: tagged requests to their pull request's pod, everything else
/// to the baseline.
#[derive(Debug, Parser)]
#[command(name = "session-proxy", version = VERSION_AND_COMMIT, propagate_version = true)]
#[command(
    after_help = "Try it: session-proxy demo\n\nExit codes: 0 done, 1 it failed, 2 wrong usage or invalid configuration."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One thing to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    Run(Run),
    /// Validate a configuration: print what it means, or every problem with its line and column
    Check(Check),
    /// Say where a request would go, and why
    Explain(Explain),
    /// See it work: a baseline, two pull-request apps and the proxy, all in this process
    Demo(Demo),
    /// Show the requests of a running proxy as they happen, one line each
    Tap(Tap),
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Print completions for a shell
    Completions {
        /// The shell to complete in
        shell: Shell,
    },
    /// Exit 0 when a running proxy is ready, 1 when it is not
    Healthcheck(Healthcheck),
    /// Read a stack file: its graph, build order, propagation chain and session header
    Resolve(cluster::Resolve),
    /// Bring up the intercepts of a pull request, and prove that they are live
    Deploy(cluster::Deploy),
    /// Prove where requests with and without the session go, for every app and replica
    Verify(cluster::Verify),
    /// Take away the intercepts of one session, and nothing of any other
    Cleanup(cluster::Cleanup),
    /// Keep one mirrord session per ready target pod: the first process of a proxy pod
    Attach(cluster::Attach),
}

/// Where a configuration comes from: a file, and flags which override it.
#[derive(Debug, Clone, Default, Args)]
pub struct Sources {
    /// Configuration file, YAML or JSON; flags override it
    #[arg(long, value_name = "FILE", env = "SESSION_PROXY_CONFIG")]
    pub config: Option<OsString>,

    /// Listen here for HTTP/1 and HTTP/2: IP:PORT or :PORT. Repeatable; replaces the file's listeners
    #[arg(
        long,
        value_name = "ADDR",
        env = "SESSION_PROXY_LISTEN",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,

    /// Send a session to its endpoints. Repeatable; replaces that session of the file
    #[arg(long, value_name = "NAME=ENDPOINT[,ENDPOINT...]")]
    pub session: Vec<String>,

    /// Send everything that no session claims here
    #[arg(
        long,
        value_name = "ENDPOINT[,ENDPOINT...]",
        env = "SESSION_PROXY_BASELINE"
    )]
    pub baseline: Option<String>,

    /// Join raw TCP connections to an endpoint. Repeatable; replaces the file's listeners
    #[arg(long, value_name = "ADDR=ENDPOINT")]
    pub tcp: Vec<String>,

    /// Header that carries the session [default: x-dev-session]
    #[arg(long, value_name = "NAME", env = "SESSION_PROXY_HEADER")]
    pub header: Option<String>,

    /// W3C baggage member read when the header is absent; empty turns baggage off [default: dev-session]
    #[arg(long, value_name = "KEY", env = "SESSION_PROXY_BAGGAGE_KEY")]
    pub baggage_key: Option<String>,

    /// Port for health, metrics and the page for people, or off [default: 127.0.0.1:9901]
    #[arg(long, value_name = "ADDR", env = "SESSION_PROXY_ADMIN")]
    pub admin: Option<String>,

    /// After SIGTERM, end at the latest after this long [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
}

/// `session-proxy run`
#[derive(Debug, Args)]
pub struct Run {
    /// What to serve.
    #[command(flatten)]
    pub sources: Sources,

    /// Worker threads [default: the CPUs this process may use]
    #[arg(long, value_name = "N", env = "SESSION_PROXY_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Write a line for each request to standard output
    #[arg(
        long,
        value_name = "FORMAT",
        env = "SESSION_PROXY_ACCESS_LOG",
        default_value = "off"
    )]
    pub access_log: AccessLog,

    /// What to log to standard error: error, warn, info, debug, trace, or MODULE=LEVEL,...
    #[arg(
        long,
        value_name = "LEVELS",
        env = "SESSION_PROXY_LOG",
        default_value = "info"
    )]
    pub log: String,

    /// What the session `session-proxy-probe` is told we stand in front of
    #[arg(long, value_name = "NAME", env = "SESSION_PROXY_TARGET_NAME")]
    pub target_name: Option<String>,
}

/// How a request becomes a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// Not at all.
    Off,
    /// For people.
    Text,
    /// For programs, one object a line.
    Json,
}

/// `session-proxy check`
#[derive(Debug, Args)]
pub struct Check {
    /// Configuration file, as --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub file: Option<OsString>,

    /// What to check.
    #[command(flatten)]
    pub sources: Sources,

    /// Print every session, not just the first 20
    #[arg(long)]
    pub all: bool,
}

/// `session-proxy explain`
#[derive(Debug, Args)]
#[command(
    after_help = "Example: session-proxy explain --config session-proxy.yaml -H 'x-dev-session: pr-42'"
)]
pub struct Explain {
    /// What decides.
    #[command(flatten)]
    pub sources: Sources,

    /// A header field of the request, as curl takes it. Repeatable
    #[arg(short = 'H', value_name = "NAME: VALUE")]
    pub headers: Vec<String>,

    /// The request's path
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub path: String,

    /// The request's method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub method: String,

    /// The listener it arrives at [default: the first that reads HTTP]
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
}

/// `session-proxy demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// Where the proxy listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: String,

    /// Where its admin port listens, or off
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    pub admin: String,
}

/// `session-proxy tap`
#[derive(Debug, Args)]
pub struct Tap {
    /// The proxy's admin port
    #[arg(long, value_name = "ADDR", env = "SESSION_PROXY_ADMIN", default_value = DEFAULT_ADMIN)]
    pub admin: String,

    /// Only requests of this session
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,

    /// Only answers with this status: 404, or 5xx for a class
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,

    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `session-proxy healthcheck`
#[derive(Debug, Args)]
pub struct Healthcheck {
    /// The proxy's admin port
    #[arg(long, value_name = "ADDR", env = "SESSION_PROXY_ADMIN", default_value = DEFAULT_ADMIN)]
    pub admin: String,
}

impl Check {
    /// The sources, with the positional file where `--config` would be.
    pub fn into_sources(self) -> Sources {
        Sources {
            config: self.file.or(self.sources.config),
            ..self.sources
        }
    }
}

impl Sources {
    /// The file to read, if any.
    pub fn path(&self) -> Option<PathBuf> {
        self.config
            .as_ref()
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_file_is_named_with_or_without_a_flag() {
        for line in [
            "session-proxy check a.yaml",
            "session-proxy check --config a.yaml",
        ] {
            let Command::Check(check) = Cli::parse_from(line.split(' ')).command else {
                panic!("{line}")
            };
            assert_eq!(check.into_sources().path(), Some(PathBuf::from("a.yaml")));
        }
    }

    #[test]
    fn the_version_names_the_commit() {
        let version = Cli::command().render_version();
        assert!(
            version.contains(VERSION) && version.contains(COMMIT),
            "{version}"
        );
    }
}
