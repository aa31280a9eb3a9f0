//! The commands of the cluster side.
//!
//! Every flag has an environment variable, because parameters of a pipeline reach its steps that way;
//! a variable that is set to nothing counts as not set. Values are text here, judged by `control`; an
//! empty path is no path.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{
    BoolishValueParser, EnumValueParser, PathBufValueParser, PossibleValue, TypedValueParser,
};
use clap::{Arg, Args, Command, Error, ValueEnum};

/// How to reach the cluster, as kubectl is told.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Cluster {
    /// Kubeconfig file [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Act as this user
    #[arg(long = "as", value_name = "USER")]
    pub impersonate: Option<String>,

    /// Act as a member of this group. Repeatable
    #[arg(long = "as-group", value_name = "GROUP")]
    pub impersonate_groups: Vec<String>,
}

/// The stack, and what one pull request changes in it.
#[derive(Debug, Clone, Args)]
pub struct PullRequest {
    /// The stack as JSON, as `resolve` prints it
    #[arg(long, value_name = "JSON", env = "STACK_JSON")]
    pub stack_json: Option<String>,

    /// The stack as a file, YAML or JSON
    #[arg(long, value_name = "FILE", env = "STACK_FILE", value_parser = path())]
    pub stack_file: Option<PathBuf>,

    /// The changed apps, divided by blanks
    #[arg(long, value_name = "APPS", env = "BUILD_APPS")]
    pub build_apps: Option<String>,

    /// The session header: `x-dev-session:pr-42`
    #[arg(long, value_name = "NAME:VALUE", env = "INTERCEPT_HEADER")]
    pub intercept_header: Option<String>,

    /// The apps in the order in which a request passes them, divided by blanks [default: the stack's]
    #[arg(long, value_name = "APPS", env = "PROPAGATION_CHAIN")]
    pub propagation_chain: Option<String>,

    /// Namespace of apps for which the stack names none [default: staging]
    #[arg(long, value_name = "NAMESPACE", env = "DEFAULT_NAMESPACE")]
    pub default_namespace: Option<String>,
}

/// `session-proxy resolve`
#[derive(Debug, Args)]
pub struct Resolve {
    /// The stack file, YAML or JSON
    #[arg(value_name = "FILE", env = "STACK_FILE", value_parser = path())]
    pub stack_file: Option<PathBuf>,

    /// The app whose pull request this is [default: all are built]
    #[arg(long, value_name = "APP", env = "CHANGED_APP")]
    pub changed_app: Option<String>,

    /// The pull request's number: its session becomes pr-N
    #[arg(long, value_name = "N", env = "PR_NUMBER")]
    pub pr_number: Option<String>,

    /// The session's name, instead of one made from the pull request's number
    #[arg(long, value_name = "NAME", env = "SESSION")]
    pub session: Option<String>,

    /// Also write each value to a file of its name in this folder (Tekton results)
    #[arg(long, value_name = "DIR", env = "RESULTS_DIR", value_parser = path())]
    pub results_dir: Option<PathBuf>,

    /// Write the stack as JSON to this file, and leave its result empty: results have little room
    #[arg(long, value_name = "FILE", env = "STACK_JSON_FILE", value_parser = path())]
    pub stack_json_file: Option<PathBuf>,
}

/// `session-proxy deploy`
#[derive(Debug, Args)]
pub struct Deploy {
    /// How requests reach the PR pod: mirrord or telepresence [default: mirrord]
    #[arg(long, value_name = "NAME", env = "BACKEND")]
    pub backend: Option<String>,

    /// The pull request.
    #[command(flatten)]
    pub pull_request: PullRequest,

    /// The built images: a JSON map of app to image
    #[arg(long, value_name = "JSON", env = "BUILT_IMAGES")]
    pub built_images: Option<String>,

    /// Image of the proxy pod, with session-proxy and the backend's program in it [default:
    /// localhost:5001/tekton-dag-build-BACKEND:VERSION]
    #[arg(long, value_name = "IMAGE", env = "PROXY_IMAGE")]
    pub proxy_image: Option<String>,

    /// Service account of the proxy pod [default: one is made for each app, with its role]
    #[arg(long, value_name = "NAME", env = "PROXY_SERVICE_ACCOUNT")]
    pub proxy_service_account: Option<String>,

    /// Namespace of mirrord's agents, which must admit privileged pods [default: the app's]
    #[arg(long, value_name = "NAMESPACE", env = "AGENT_NAMESPACE")]
    pub agent_namespace: Option<String>,

    /// Image of mirrord's agents [default: mirrord's own]
    #[arg(long, value_name = "IMAGE", env = "AGENT_IMAGE")]
    pub agent_image: Option<String>,

    /// How mirrord's agent is started: job, or ephemeral for a container in the target's pod [default: job]
    #[arg(long, value_name = "KIND", env = "AGENT_KIND")]
    pub agent_kind: Option<String>,

    /// Namespace of Telepresence's traffic manager [default: ambassador]
    #[arg(long, value_name = "NAMESPACE", env = "MANAGER_NAMESPACE")]
    pub manager_namespace: Option<String>,

    /// Mark the intercept as expired after this long, for `cleanup --expired`
    #[arg(long, value_name = "DURATION", env = "TTL")]
    pub ttl: Option<String>,

    /// Uid of the pipeline run, for `cleanup --pipeline-run`
    #[arg(long, value_name = "UID", env = "PIPELINE_RUN")]
    pub pipeline_run: Option<String>,

    /// Write the JSON map of app to PR pod here, after each app
    #[arg(long, value_name = "FILE", env = "OUT", value_parser = path())]
    pub out: Option<PathBuf>,

    /// Print the objects as YAML and touch nothing; the targets are read where they can be
    #[arg(long, env = "DRY_RUN", value_parser = switch())]
    pub dry_run: bool,

    /// Give up, and take away what was made, after this long [default: 5m]
    #[arg(long, value_name = "DURATION", env = "TIMEOUT")]
    pub timeout: Option<String>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// What beside the proxy's own word must show that the PR pod answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Witness {
    /// The probe's id in the pod's answer or in its log
    App,
    /// Nothing: for apps that neither echo nor log what they are asked
    Proxy,
}

/// What of it all is to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// Both
    All,
    /// Where requests with and without the session go, and that it travels along the chain
    Propagation,
    /// That untagged traffic stays with the baseline, and is as it was before
    Traffic,
}

/// `session-proxy verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// The pull request.
    #[command(flatten)]
    pub pull_request: PullRequest,

    /// The JSON map of app to PR pod that `deploy` wrote
    #[arg(long, value_name = "JSON", env = "DEPLOYED_PODS")]
    pub deployed_pods: Option<String>,

    /// Path of the probes [default: /]
    #[arg(long, value_name = "PATH", env = "PROBE_PATH")]
    pub path: Option<String>,

    /// Path of the request that passes the whole chain; of a gRPC entry a method [default: --path]
    #[arg(long, value_name = "PATH", env = "CHAIN_PATH")]
    pub chain_path: Option<String>,

    /// What must show that the PR pod answered
    #[arg(long, env = "WITNESS", default_value = "app", value_parser = word(Witness::App))]
    pub witness: Witness,

    /// What to prove
    #[arg(long, env = "ONLY", default_value = "all", value_parser = word(Only::All))]
    pub only: Only,

    /// Compare untagged traffic with this measurement, taken before the intercept
    #[arg(long, value_name = "FILE", env = "BASELINE_MEASUREMENT", value_parser = path())]
    pub baseline_measurement: Option<PathBuf>,

    /// Only measure untagged traffic, and write that here
    #[arg(long, value_name = "FILE", env = "MEASURE_BASELINE", value_parser = path())]
    pub measure_baseline: Option<PathBuf>,

    /// How many times slower untagged traffic may be than measured; 100 ms are always quick enough [default: 10]
    #[arg(long, value_name = "FACTOR", env = "MAX_SLOWDOWN")]
    pub max_slowdown: Option<String>,

    /// Write the report as JSON here
    #[arg(long, value_name = "FILE", env = "OUT", value_parser = path())]
    pub out: Option<PathBuf>,

    /// Give up after this long [default: 2m]
    #[arg(long, value_name = "DURATION", env = "TIMEOUT")]
    pub timeout: Option<String>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `session-proxy cleanup`
#[derive(Debug, Args)]
pub struct Cleanup {
    /// The session whose intercepts go
    #[arg(long, value_name = "NAME", env = "SESSION")]
    pub session: Option<String>,

    /// The pipeline run, by uid, whose intercepts go
    #[arg(long, value_name = "UID", env = "PIPELINE_RUN")]
    pub pipeline_run: Option<String>,

    /// All intercepts whose time is over
    #[arg(long, env = "EXPIRED", value_parser = switch())]
    pub expired: bool,

    /// Accepted for symmetry with deploy; whatever the backend, objects are found by label
    #[arg(long, value_name = "NAME", env = "BACKEND")]
    pub backend: Option<String>,

    /// The JSON map of app to PR pod that `deploy` wrote, to hold against what is found
    #[arg(long, value_name = "JSON", env = "DEPLOYED_PODS")]
    pub deployed_pods: Option<String>,

    /// Namespaces to look in, divided by blanks [default: staging]
    #[arg(long, value_name = "NAMESPACES", env = "NAMESPACES")]
    pub namespaces: Option<String>,

    /// Namespace of mirrord's agents [default: the same namespaces]
    #[arg(long, value_name = "NAMESPACE", env = "AGENT_NAMESPACE")]
    pub agent_namespace: Option<String>,

    /// Give up waiting until all is gone after this long [default: 2m]
    #[arg(long, value_name = "DURATION", env = "TIMEOUT")]
    pub timeout: Option<String>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `session-proxy attach`
#[derive(Debug, Args)]
pub struct Attach {
    /// What to intercept: the file that `deploy` puts into the proxy pod's ConfigMap
    #[arg(long, value_name = "FILE", env = "SESSION_PROXY_INTERCEPT")]
    pub intercept: PathBuf,

    /// Port for health, metrics, targets and the page for people
    #[arg(
        long,
        value_name = "ADDR",
        env = "SESSION_PROXY_ADMIN",
        default_value = "0.0.0.0:9901"
    )]
    pub admin: String,

    /// The mirrord executable
    #[arg(long, value_name = "FILE", env = "MIRRORD", default_value = "mirrord")]
    pub mirrord: PathBuf,

    /// The telepresence executable
    #[arg(
        long,
        value_name = "FILE",
        env = "TELEPRESENCE",
        default_value = "telepresence"
    )]
    pub telepresence: PathBuf,

    /// Where telepresence's daemon listens; that is part of the executable
    #[arg(
        long,
        hide = true,
        value_name = "FILE",
        env = "TELEPRESENCE_SOCKET",
        default_value = "/tmp/telepresence-connector.socket"
    )]
    pub telepresence_socket: PathBuf,

    /// Delete a target pod whose port refuses everything after its agent was killed
    #[arg(long, env = "DELETE_BROKEN_TARGETS", value_parser = switch())]
    pub delete_broken_targets: bool,

    /// How long a session may take to be proven once its agent runs [default: 20s]
    #[arg(long, value_name = "DURATION", env = "START_TIMEOUT")]
    pub start_timeout: Option<String>,

    /// First of the local ports that the proxies listen on, one for each port of the app and one more
    #[arg(long, value_name = "PORT", default_value = "18080", value_parser = clap::value_parser!(u16).range(1024..))]
    pub local_ports: u16,

    /// What to log to standard error, as for `run`
    #[arg(
        long,
        value_name = "LEVELS",
        env = "SESSION_PROXY_LOG",
        default_value = "info"
    )]
    pub log: String,

    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// Reads nothing at all as one value, and everything else as another reader does: a pipeline passes each
/// parameter on, also those that nobody gave.
#[derive(Clone)]
struct EmptyIs<V, P> {
    empty: V,
    otherwise: P,
}

impl<V, P> TypedValueParser for EmptyIs<V, P>
where
    V: Clone + Send + Sync + 'static,
    P: TypedValueParser<Value = V>,
{
    type Value = V;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<V, Error> {
        if value.is_empty() {
            return Ok(self.empty.clone());
        }
        self.otherwise.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.otherwise.possible_values()
    }
}

fn path() -> impl TypedValueParser<Value = PathBuf> {
    EmptyIs {
        empty: PathBuf::new(),
        otherwise: PathBufValueParser::new(),
    }
}

fn word<W: ValueEnum + Clone + Send + Sync + 'static>(
    usual: W,
) -> impl TypedValueParser<Value = W> {
    EmptyIs {
        empty: usual,
        otherwise: EnumValueParser::new(),
    }
}

fn switch() -> impl TypedValueParser<Value = bool> {
    EmptyIs {
        empty: false,
        otherwise: BoolishValueParser::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{self, Cli};

    #[test]
    fn an_empty_value_counts_as_not_given() {
        let line = "session-proxy verify --witness= --only= --out= --stack-file= --build-apps=";
        let cli::Command::Verify(verify) = Cli::parse_from(line.split(' ')).command else {
            panic!("{line}")
        };
        assert_eq!((verify.witness, verify.only), (Witness::App, Only::All));
        assert_eq!(verify.out, Some(PathBuf::new()));
    }

    #[test]
    fn a_switch_is_on_off_or_empty_and_nothing_else() {
        let command = Command::new("test");
        let read = |text: &str| switch().parse_ref(&command, None, OsStr::new(text)).ok();
        for (text, expected) in [
            ("", Some(false)),
            ("false", Some(false)),
            ("true", Some(true)),
            ("1", Some(true)),
            ("perhaps", None),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_word_is_one_of_the_known_ones() {
        let refused = Cli::try_parse_from(["session-proxy", "verify", "--witness", "crystal"]);
        let told = refused.expect_err("no witness").to_string();
        assert!(told.contains("app") && told.contains("proxy"), "{told}");
    }
}
