//! Many connections that each asked once and are idle since, for as long as somebody looks.

use std::error::Error;
use std::io;
use std::rc::Rc;

use clap::Args;
use tokio::task::JoinSet;

use crate::client::{Ask, Client, request};

/// Connections that are opened and ask at the same time.
const AT_ONCE: usize = 32;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    ask: Ask,
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// Prints `holding` when all have asked; when stdin closes, proves that they are still open.
pub async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let ask = Rc::new(options.ask);
    let mut held = Vec::with_capacity(options.connections);
    while held.len() < options.connections {
        let mut opening = JoinSet::new();
        for _ in 0..AT_ONCE.min(options.connections - held.len()) {
            opening.spawn_local(opened(Rc::clone(&ask)));
        }
        for client in opening.join_all().await {
            held.push(client?);
        }
    }
    println!("holding");
    let closed = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()));
    closed.await??;
    let request = request(&ask, "");
    for client in [
        0,
        options.connections / 2,
        options.connections.saturating_sub(1),
    ] {
        if let Some(client) = held.get_mut(client) {
            client.exchange(&request, &ask.expected()).await?;
        }
    }
    Ok(())
}

async fn opened(ask: Rc<Ask>) -> io::Result<Client> {
    let mut client = Client::dial(ask.target).await?;
    let asked = client.exchange(&request(&ask, ""), &ask.expected()).await;
    asked.map(|()| client).map_err(io::Error::other)
}
