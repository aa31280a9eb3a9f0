//! The load generator: a closed loop, or an open one at a fixed rate. Checks every answer, and reads
//! the proxy's account of CPU time at the very start and end of what it measures.

mod expected;
mod h1;
mod h2;
mod pace;
mod sender;
mod tally;

use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::cpu::Cpu;
pub use h1::{Client, request};
use pace::Pace;
use tally::Tally;

/// How much longer a measurement may last that has too few requests.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long answers may still come in after the end of an open loop.
const LATE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    pub ask: Ask,
    /// How requests are put on connections
    #[arg(long, value_enum, default_value = "h1")]
    protocol: Protocol,
    /// Connections; for the sender's ways, requests in flight
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests in flight on each connection of HTTP/2
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Requests per second in all, sent when they are due; without it, each follows the one before
    #[arg(long)]
    rate: Option<u64>,
    /// Not measured: the time before
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Measured
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measure on, for ten seconds at most, until so many requests are answered
    #[arg(long, default_value_t = 0)]
    at_least: u64,
    /// Send one request on one connection instead, and say whether its answer is right
    #[arg(long)]
    once: bool,
    /// NAME=PID: say how much CPU time this process and its descendants used; may be repeated
    #[arg(long)]
    watch: Vec<Watched>,
}

/// What is asked, of whom, and who must answer.
#[derive(Args)]
pub struct Ask {
    /// The proxy
    #[arg(long)]
    pub target: SocketAddr,
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The length of the answer's body
    #[arg(long, default_value_t = 100)]
    pub answer: u64,
    /// Bytes to upload, as a POST
    #[arg(long)]
    pub upload: Option<usize>,
    /// The session of every request
    #[arg(long)]
    pub session: Option<String>,
    /// What x-origin of every answer must say
    #[arg(long)]
    pub origin: String,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Protocol {
    /// HTTP/1.1, each connection kept
    H1,
    /// HTTP/1.1, a new connection for each request
    H1Close,
    /// HTTP/2 with prior knowledge
    H2,
    /// gRPC unary over the same
    Grpc,
    /// HTTP/1.1 the way mirrord hands over stolen requests
    Sender,
    /// HTTP/2 the way mirrord hands over stolen requests
    SenderH2,
    /// HTTP/2 requests that mirrord puts on a connection of HTTP/1.1
    SenderMixed,
}

#[derive(Clone)]
struct Watched {
    name: String,
    pid: u32,
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').ok_or("not NAME=PID")?;
        let pid = pid.parse().map_err(|_| format!("{pid} is no process id"))?;
        Ok(Self {
            name: name.to_owned(),
            pid,
        })
    }
}

/// What all connections share.
struct World {
    ask: Ask,
    pace: Pace,
    tally: Tally,
}

/// Runs one measurement and prints it.
pub async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    if options.once {
        return once(options).await;
    }
    let world = Rc::new(World {
        ask: options.ask,
        pace: options.rate.map_or(Pace::closed(), Pace::open),
        tally: Tally::default(),
    });
    start(
        &world,
        options.protocol,
        options.connections,
        options.streams,
    );
    if options.rate.is_some() {
        tokio::task::spawn_local(pace::keep(Rc::clone(&world)));
    }
    tokio::time::sleep(Duration::from_secs_f64(options.warm_up)).await;

    let before = accounts(&options.watch)?;
    let began = Instant::now();
    world.tally.measure(began, options.rate.is_some());
    tokio::time::sleep_until((began + Duration::from_secs_f64(options.seconds)).into()).await;
    world.tally.at_least(options.at_least, PATIENCE).await;
    let ended = Instant::now();
    world.tally.close(ended);
    let after = accounts(&options.watch)?;
    world.tally.wait_for_late(&world.pace, LATE).await;

    let mut report = world
        .tally
        .report(ended - began, bytes_per_request(&world.ask));
    let used = options.watch.iter().zip(before.iter().zip(&after));
    let cpu: Map<String, Value> = used
        .map(|(watched, (before, after))| (watched.name.clone(), used_json(*after - *before)))
        .collect();
    report["cpu"] = cpu.into();
    println!("{report}");
    Ok(())
}

async fn once(options: Options) -> Result<(), Box<dyn Error>> {
    let world = Rc::new(World {
        ask: options.ask,
        pace: Pace::closed(),
        tally: Tally::default(),
    });
    start(&world, options.protocol, 1, 1);
    world.tally.first(Duration::from_secs(5)).await?;
    Ok(())
}

fn start(world: &Rc<World>, protocol: Protocol, connections: usize, streams: usize) {
    let pool = sender::Pool::default();
    for _ in 0..connections {
        let world = Rc::clone(world);
        let pool = Rc::clone(&pool);
        match protocol {
            Protocol::H1 => tokio::task::spawn_local(h1::keep_alive(world)),
            Protocol::H1Close => tokio::task::spawn_local(h1::one_each(world)),
            Protocol::H2 => tokio::task::spawn_local(h2::shared(world, h2::Kind::Plain, streams)),
            Protocol::Grpc => tokio::task::spawn_local(h2::shared(world, h2::Kind::Grpc, streams)),
            Protocol::Sender => tokio::task::spawn_local(sender::h1(world, pool)),
            Protocol::SenderH2 => tokio::task::spawn_local(sender::h2(world, pool)),
            Protocol::SenderMixed => tokio::task::spawn_local(sender::mixed(world, pool)),
        };
    }
}

fn accounts(watched: &[Watched]) -> Result<Vec<Cpu>, Box<dyn Error>> {
    watched
        .iter()
        .map(|watched| {
            Cpu::of_family(watched.pid)
                .map_err(|error| format!("{} ({}): {error}", watched.name, watched.pid).into())
        })
        .collect()
}

fn used_json(used: Cpu) -> Value {
    let (total, user) = (used.seconds(), used.user_seconds());
    json!({ "seconds": total, "user": user, "system": total - user })
}

fn bytes_per_request(ask: &Ask) -> u64 {
    ask.answer + ask.upload.unwrap_or(0) as u64
}
