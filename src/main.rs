//! Arguments, logging, one command, an exit code.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use session_proxy::admin::client;
use session_proxy::cli::{AccessLog, Cli, Command, Run};
use session_proxy::config::Problem;
use session_proxy::record::AccessFormat;
use session_proxy::server::{Ending, Options, Server, StartError};
use session_proxy::signals::Signals;
use session_proxy::{control, demo, inspect};
use tracing_subscriber::EnvFilter;

/// What a command ended with, beside success.
enum Failed {
    /// The configuration makes no sense: exit code 2.
    Usage(Vec<Problem>),
    /// Nor does what was typed: exit code 2.
    Typed(anyhow::Error),
    /// Exit code 1.
    Error(anyhow::Error),
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Check(arguments) => inspect::check(arguments)
            .map_err(Failed::Usage)
            .and_then(print),
        Command::Explain(arguments) => inspect::explain(&arguments)
            .map_err(Failed::Usage)
            .and_then(print),
        Command::Demo(arguments) => demo(arguments),
        Command::Schema => print(inspect::schema()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "session-proxy", &mut script);
            print(String::from_utf8_lossy(&script).into_owned())
        }
        Command::Healthcheck(arguments) => ask(&arguments.admin, client::healthcheck),
        Command::Tap(arguments) => ask(&arguments.admin, |admin| {
            client::tap(admin, arguments.session, arguments.status, arguments.json)
        }),
        Command::Resolve(arguments) => control::resolve::resolve(&arguments)
            .map_err(Failed::from)
            .and_then(print),
        Command::Deploy(arguments) => in_cluster(control::deploy::deploy(arguments)),
        Command::Verify(arguments) => in_cluster(control::verify::verify(arguments)),
        Command::Cleanup(arguments) => in_cluster(control::cleanup::cleanup(arguments)),
        Command::Attach(arguments) => log_to_stderr(&arguments.log)
            .and_then(|()| in_cluster(control::attach::attach(arguments))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Usage(problems)) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            ExitCode::from(2)
        }
        Err(Failed::Typed(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
        Err(Failed::Error(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Run) -> Result<(), Failed> {
    log_to_stderr(&arguments.log)?;
    let options = Options {
        sources: arguments.sources,
        workers: arguments.workers.map(usize::from),
        access: match arguments.access_log {
            AccessLog::Off => AccessFormat::Off,
            AccessLog::Text => AccessFormat::Text,
            AccessLog::Json => AccessFormat::Json,
        },
        target: arguments.target_name,
    };
    runtime()?.block_on(async {
        let mut signals = Signals::catch().context("cannot catch signals")?;
        // Ended before anything was served, there is nothing to bring to an end.
        let Some(started) = signals.or(Server::start(options)).await else {
            return Ok(());
        };
        let server = started?;
        let mut lines = String::new();
        for bound in &server.addresses {
            lines += &format!(
                "listening on {} {} ({})\n",
                bound.name, bound.address, bound.protocol
            );
        }
        if let Some(admin) = server.admin {
            lines += &format!("admin on {admin}\n");
        }
        print(lines + "ready\n")?;
        match server.run(signals).await {
            Ending::Drained => Ok(()),
            Ending::Cut => Err(anyhow::anyhow!("ended by a second signal").into()),
        }
    })
}

fn demo(arguments: session_proxy::cli::Demo) -> Result<(), Failed> {
    log_to_stderr("warn")?;
    runtime()?.block_on(async {
        let signals = Signals::catch().context("cannot catch signals")?;
        let demo = demo::Demo::start(arguments).await?;
        print(demo.greeting())?;
        demo.server.run(signals).await;
        Ok(())
    })
}

/// Asks a running proxy something.
fn ask<F>(admin: &str, question: impl FnOnce(std::net::SocketAddr) -> F) -> Result<(), Failed>
where
    F: Future<Output = Result<(), String>>,
{
    let admin = admin.parse().with_context(|| {
        format!("{admin:?} is not an address; write IP:PORT, for example 127.0.0.1:9901")
    });
    let admin = admin.map_err(Failed::Typed)?;
    runtime()?
        .block_on(question(admin))
        .map_err(|error| anyhow::anyhow!(error).into())
}

/// Runs a command of the cluster side.
fn in_cluster(command: impl Future<Output = Result<(), control::Failure>>) -> Result<(), Failed> {
    Ok(runtime()?.block_on(command)?)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    Ok(runtime.context("cannot start the runtime")?)
}

fn log_to_stderr(levels: &str) -> Result<(), Failed> {
    // What goes wrong on the way to the API server is told in our own words, and not each time.
    let filter = EnvFilter::try_new(format!("kube_client=off,kube_runtime=off,{levels}"));
    let filter = filter.with_context(|| {
        format!(
            "--log {levels:?} is not understood; write for example info, or warn,session_proxy=debug"
        )
    });
    let filter = filter.map_err(Failed::Typed)?;
    let is_colourful = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_colourful)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// Writes a result to stdout. A reader that has gone away wants no more of it, which is no failure.
fn print(text: String) -> Result<(), Failed> {
    let mut stdout = std::io::stdout();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error)
                .context("cannot write to standard output")
                .into())
        }
        _ => Ok(()),
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

impl From<control::Failure> for Failed {
    fn from(failure: control::Failure) -> Self {
        match failure {
            control::Failure::Usage(problems) => Self::Usage(problems),
            control::Failure::Failed(error) => Self::Error(error),
        }
    }
}

impl From<StartError> for Failed {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Configuration(problems) => Self::Usage(problems),
            error => Self::Error(error.into()),
        }
    }
}
