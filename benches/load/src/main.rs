//! Both ends of the side-by-side measurement: the origins behind the proxies, and the clients in
//! front of them. One thread each, and as little work per request as can be, because they share a
//! core and must never be what limits a proxy.

mod client;
mod cpu;
mod grpc;
mod hold;
mod origin;
mod stalls;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::task::LocalSet;

#[derive(Parser)]
#[command(about = "The origin and the load generator of the side-by-side measurement")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers HTTP/1.1 and HTTP/2 on one port, until it is ended
    Origin(origin::Options),
    /// Sends requests for a while, checks every answer and prints one JSON object
    Client(client::Options),
    /// Opens connections that each ask once, and holds them until stdin closes
    Hold(hold::Options),
    /// Says how long this core stands still by itself
    Stalls(stalls::Options),
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime without threads needs only an epoll descriptor");
    let outcome = LocalSet::new().block_on(&runtime, async {
        match Arguments::parse().command {
            Command::Origin(options) => origin::run(options).await.map_err(Into::into),
            Command::Client(options) => client::run(options).await,
            Command::Hold(options) => hold::run(options).await,
            Command::Stalls(options) => {
                stalls::run(options);
                Ok(())
            }
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::FAILURE
        }
    }
}
