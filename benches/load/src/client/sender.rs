//! The ways of mirrord's internal proxy, which hands stolen requests to the process behind it: from
//! loopback, one request at a time on a connection, HTTP/2 too; the connection used last is used
//! first, and one that was idle for three seconds is not used again. Names are in lower case, the
//! client's hop-by-hop headers are there as they were, and a POST without a body is chunked.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;

use super::expected::Failure;
use super::h1::{Client, request};
use super::h2::{Kind, Prepared, dial, exchange};
use super::{Ask, World};

const IDLE: Duration = Duration::from_secs(3);

pub(super) type Pool = Rc<RefCell<Vec<Idle>>>;

/// A connection between two requests.
pub(super) struct Idle {
    connection: Kept,
    since: Instant,
}

enum Kept {
    H1(Client),
    H2(SendRequest<Bytes>),
}

/// Stolen requests of HTTP/1.1: in turn a GET and a POST without a body.
pub(super) async fn h1(world: Rc<World>, pool: Pool) {
    let asked = [
        request(&world.ask, "connection: keep-alive\r\n"),
        bodyless_post(&world.ask),
    ];
    let mut turn = 0;
    handed_over(&world, &pool, async |kept| {
        turn += 1;
        let client = of_h1(kept, &world.ask).await?;
        client
            .exchange(&asked[turn % asked.len()], &world.ask.expected())
            .await
    })
    .await
}

/// Stolen requests of HTTP/2, one stream at a time.
pub(super) async fn h2(world: Rc<World>, pool: Pool) {
    let asks = Prepared::new(&world.ask, Kind::Plain);
    handed_over(&world, &pool, async |kept| {
        if !matches!(kept, Some(Kept::H2(_))) {
            *kept = Some(Kept::H2(dial(world.ask.target).await?));
        }
        let Some(Kept::H2(sender)) = kept else {
            unreachable!("it was put there a moment ago")
        };
        exchange(sender, &asks, &world.ask.expected()).await
    })
    .await
}

/// Stolen requests of HTTP/2 on idle connections of HTTP/1.1: the whole URL as the target, no Host.
pub(super) async fn mixed(world: Rc<World>, pool: Pool) {
    let session = world.ask.session.as_ref();
    let session = session.map_or(String::new(), |name| format!("x-dev-session: {name}\r\n"));
    let asked = format!(
        "GET http://app.test:8080{} HTTP/1.1\r\nuser-agent: load\r\naccept: */*\r\n{session}\r\n",
        world.ask.path
    );
    handed_over(&world, &pool, async |kept| {
        let client = of_h1(kept, &world.ask).await?;
        client
            .exchange(asked.as_bytes(), &world.ask.expected())
            .await
    })
    .await
}

/// One request after the other, each on the connection that was used last.
async fn handed_over(
    world: &World,
    pool: &Pool,
    mut exchange: impl AsyncFnMut(&mut Option<Kept>) -> Result<(), Failure>,
) {
    loop {
        let began = world.pace.turn().await;
        let newest = pool
            .borrow_mut()
            .pop()
            .filter(|idle| idle.since.elapsed() < IDLE);
        let mut kept = newest.map(|idle| idle.connection);
        let result = exchange(&mut kept).await;
        if result.is_ok()
            && let Some(connection) = kept
        {
            pool.borrow_mut().push(Idle {
                connection,
                since: Instant::now(),
            });
        }
        world.tally.count(began, result).await;
    }
}

async fn of_h1<'a>(kept: &'a mut Option<Kept>, ask: &Ask) -> Result<&'a mut Client, Failure> {
    if !matches!(kept, Some(Kept::H1(_))) {
        *kept = Some(Kept::H1(Client::dial(ask.target).await?));
    }
    match kept {
        Some(Kept::H1(client)) => Ok(client),
        _ => unreachable!("it was put there a moment ago"),
    }
}

fn bodyless_post(ask: &Ask) -> Vec<u8> {
    let head = request(
        ask,
        "connection: keep-alive\r\ntransfer-encoding: chunked\r\n",
    );
    let as_post = [
        b"POST",
        head.strip_prefix(b"GET").unwrap_or(&head),
        b"0\r\n\r\n",
    ];
    as_post.concat()
}
