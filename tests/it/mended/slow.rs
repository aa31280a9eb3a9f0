//! Clients that read slowly: the last bytes of an answer are as good as its first.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::support::digest::Digest;
use crate::support::proxy::{Proxy, Setup};
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::wire::{Framing, Wire};
use crate::support::{PATIENCE, eventually, settled, within};

use super::frames::{DATA, END_HEADERS, END_STREAM, Frames, GET, HEADERS, head, small_reader};

const LENGTH: u64 = 4 << 20;
/// Longer than `keepAlive`, and than an HTTP/2 client without a request has for its farewell; far
/// shorter than `bodyIdle`.
const PAUSE: Duration = Duration::from_millis(1700);
const TIMEOUTS: &str = "timeouts: { keepAlive: 300ms }";

async fn proxy_to(site: &Upstream) -> Proxy {
    let setup = Setup::new().baseline(site.address).top(TIMEOUTS);
    setup.start().await
}

/// Called after every piece, with the length so far.
type Meanwhile<'a> = &'a mut dyn FnMut(u64);

/// The whole body, 64 KiB at a time with a pause after each.
async fn read_h1(proxy: &Proxy, path: &str, meanwhile: Meanwhile<'_>) -> Digest {
    let mut wire = Wire::new(small_reader(proxy.http()).await);
    let request = Request::get(path).header("host", "a");
    wire.send(request.to_h1(path)).await.expect("open");
    let head = wire.final_head().await.expect("a head");
    assert_eq!(head.status(), 200);
    let mut digest = Digest::new();
    let mut since = 0;
    while digest.length < LENGTH {
        let left = (LENGTH - digest.length).min(16 << 10);
        let piece = next_piece(&mut wire, left, &digest).await;
        digest.update(&piece);
        since += piece.len();
        meanwhile(digest.length);
        if since >= 64 << 10 {
            since = 0;
            sleep(Duration::from_millis(30)).await;
        }
    }
    digest
}

async fn next_piece(wire: &mut Wire<TcpStream>, length: u64, so_far: &Digest) -> bytes::Bytes {
    wire.exactly(length as usize)
        .await
        .unwrap_or_else(|error| panic!("{error} after {} of {LENGTH}", so_far.length))
}

/// Reads the head and a little, pauses, reads the rest.
async fn read_h1_with_a_pause(address: SocketAddr, length: u64) -> Digest {
    let wire = asked_for(address, length).await;
    read_after_a_pause(wire, length).await
}

/// The same, and the client has ended its half of the connection.
async fn read_half_closed_with_a_pause(address: SocketAddr, length: u64) -> Digest {
    let mut wire = asked_for(address, length).await;
    wire.half_close().await.expect("open");
    read_after_a_pause(wire, length).await
}

async fn asked_for(address: SocketAddr, length: u64) -> Wire<TcpStream> {
    let mut wire = Wire::new(small_reader(address).await);
    let path = format!("/bytes/{length}");
    let request = Request::get(&path).header("host", "a");
    wire.send(request.to_h1(&path)).await.expect("open");
    wire
}

async fn read_after_a_pause(mut wire: Wire<TcpStream>, length: u64) -> Digest {
    let head = wire.final_head().await.expect("a head");
    assert_eq!(head.status(), 200);
    sleep(PAUSE).await;
    let mut digest = Digest::new();
    let framing = Framing::Length(length);
    let read = wire.each(framing, |piece| digest.update(piece)).await;
    read.unwrap_or_else(|error| panic!("{error} after {} of {length}", digest.length));
    digest
}

/// The same over HTTP/2.
async fn read_h2_with_a_pause(address: SocketAddr, length: u64) -> Digest {
    let mut h2 = Frames::connect(address).await;
    let block = get(&format!("/bytes/{length}"));
    let flags = END_HEADERS | END_STREAM;
    h2.send(HEADERS, flags, 1, &block).await.expect("open");
    let head = h2.next().await.expect("whole frames").expect("a head");
    assert_eq!(head.kind, HEADERS);
    sleep(PAUSE).await;
    let mut digest = Digest::new();
    loop {
        let frame = h2
            .next()
            .await
            .unwrap_or_else(|error| panic!("{error} after {} of {length}", digest.length));
        let frame = frame.unwrap_or_else(|| panic!("cut after {} of {length}", digest.length));
        assert_eq!(
            frame.kind, DATA,
            "after {} of {length}: {frame:?}",
            digest.length
        );
        digest.update(&frame.payload);
        if frame.flags & END_STREAM != 0 {
            return digest;
        }
    }
}

/// A GET over HTTP/2.
fn get(path: &str) -> Vec<u8> {
    let mut block = head(GET, &[(":authority", "a")]);
    // `:path` as a literal with its name in the static table, in place of `/`.
    let mut literal = vec![0x04, u8::try_from(path.len()).expect("short")];
    literal.extend_from_slice(path.as_bytes());
    block.splice(2..3, literal);
    block
}

/// Answers of many lengths at once: how much of one is in which buffer when its client pauses is
/// the kernel's choice, and some of them end in the proxy's own.
async fn all_lengths<F>(read: impl Fn(u64) -> F)
where
    F: Future<Output = Digest> + Send + 'static,
{
    let mut reading = tokio::task::JoinSet::new();
    for length in (1..=24).map(|step| step * (192 << 10)) {
        let read = read(length);
        reading.spawn(async move { (length, read.await) });
    }
    let mut cut = 0;
    while let Some(read) = within("the answers", reading.join_next()).await {
        match read {
            Ok((length, read)) => assert_eq!(read, Digest::of_pattern(length)),
            Err(_panicked) => cut += 1,
        }
    }
    assert_eq!(cut, 0, "that many answers were cut short");
}

/// The whole body, frame by frame with a pause after every 64 KiB.
async fn read_h2(proxy: &Proxy, path: &str, meanwhile: Meanwhile<'_>) -> Digest {
    let mut h2 = Frames::connect(proxy.http()).await;
    let block = get(path);
    let flags = END_HEADERS | END_STREAM;
    h2.send(HEADERS, flags, 1, &block).await.expect("open");
    let (mut digest, mut since) = (Digest::new(), 0);
    loop {
        let frame = h2.next().await.expect("whole frames");
        let frame = frame.unwrap_or_else(|| panic!("closed after {} of {LENGTH}", digest.length));
        if frame.kind == DATA {
            digest.update(&frame.payload);
            since += frame.payload.len();
            meanwhile(digest.length);
        } else {
            assert_eq!(frame.kind, HEADERS, "after {}: {frame:?}", digest.length);
        }
        if frame.flags & END_STREAM != 0 {
            return digest;
        }
        if since >= 64 << 10 {
            since = 0;
            sleep(Duration::from_millis(30)).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_its_answer() {
    let site = Upstream::site("baseline").await;
    let proxy = proxy_to(&site).await;
    let path = format!("/bytes/{LENGTH}");

    let (mut nothing, mut nothing_else) = (|_| {}, |_| {});
    let reading = async {
        tokio::join!(
            read_h1(&proxy, &path, &mut nothing),
            read_h2(&proxy, &path, &mut nothing_else)
        )
    };
    let (over_h1, over_h2) = within("the answers", reading).await;

    let wanted = Digest::of_pattern(LENGTH);
    assert_eq!((over_h1, over_h2), (wanted, wanted));
}

/// SIGTERM as soon as the app has given all of its answer and the client lacks much of it.
fn drain_at_the_tail<'a>(proxy: &'a Proxy, site: &'a Upstream) -> impl FnMut(u64) + 'a {
    let mut is_told = false;
    move |read| {
        if !is_told && site.account.sent.load(Ordering::SeqCst) == LENGTH {
            assert!(read < LENGTH, "the tail is not leaving any more");
            is_told = true;
            proxy.signal("TERM");
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_its_answer_in_a_drain_over_http1() {
    let site = Upstream::site("baseline").await;
    let mut proxy = proxy_to(&site).await;
    let path = format!("/bytes/{LENGTH}");

    let mut drain = drain_at_the_tail(&proxy, &site);
    let read = within("the answer", read_h1(&proxy, &path, &mut drain)).await;
    drop(drain);

    assert_eq!(read, Digest::of_pattern(LENGTH));
    assert_eq!(proxy.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_its_answer_in_a_drain_over_http2() {
    let site = Upstream::site("baseline").await;
    let mut proxy = proxy_to(&site).await;
    let path = format!("/bytes/{LENGTH}");

    let mut drain = drain_at_the_tail(&proxy, &site);
    let read = within("the answer", read_h2(&proxy, &path, &mut drain)).await;
    drop(drain);

    assert_eq!(read, Digest::of_pattern(LENGTH));
    assert_eq!(proxy.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_pauses_before_the_tail_gets_it_over_http1() {
    let site = Upstream::site("baseline").await;
    let proxy = proxy_to(&site).await;

    all_lengths(|length| read_h1_with_a_pause(proxy.http(), length)).await;
}

#[tokio::test]
async fn a_client_that_pauses_before_the_tail_gets_it_over_http2() {
    let site = Upstream::site("baseline").await;
    let proxy = proxy_to(&site).await;

    all_lengths(|length| read_h2_with_a_pause(proxy.http(), length)).await;
}

/// Sends SIGTERM while the clients pause.
async fn drain_meanwhile(proxy: &Proxy, site: &Upstream, reading: impl Future<Output = ()>) {
    let drain = async {
        eventually("all are under way", || site.requests() == 24).await;
        sleep(Duration::from_millis(300)).await;
        proxy.signal("TERM");
    };
    tokio::join!(reading, drain);
}

#[tokio::test]
async fn a_client_that_pauses_before_the_tail_gets_it_in_a_drain_over_http1() {
    let site = Upstream::site("baseline").await;
    let mut proxy = Proxy::sending_everything_to(&site).await;

    let reading = all_lengths(|length| read_h1_with_a_pause(proxy.http(), length));
    drain_meanwhile(&proxy, &site, reading).await;

    assert_eq!(proxy.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_pauses_before_the_tail_gets_it_in_a_drain_over_http2() {
    let site = Upstream::site("baseline").await;
    let mut proxy = Proxy::sending_everything_to(&site).await;

    let reading = all_lengths(|length| read_h2_with_a_pause(proxy.http(), length));
    drain_meanwhile(&proxy, &site, reading).await;

    assert_eq!(proxy.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_ended_its_half_and_pauses_gets_all_of_its_answer() {
    let site = Upstream::site("baseline").await;
    let proxy = proxy_to(&site).await;
    let address = proxy.http();

    all_lengths(|length| read_half_closed_with_a_pause(address, length)).await;
}

#[tokio::test]
async fn a_broken_answer_that_its_client_does_not_read_ends_after_a_while() {
    let app = Upstream::raw("baseline", |mut peer| async move {
        let head = peer.request().await?.expect("a request");
        let length: usize = head
            .target
            .trim_start_matches('/')
            .parse()
            .expect("a length");
        peer.wire
            .send("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n")
            .await?;
        peer.wire.send(vec![b'x'; length]).await
    })
    .await;
    let timeouts = "timeouts: { bodyIdle: 300ms }";
    let proxy = Setup::new()
        .baseline(app.address)
        .top(timeouts)
        .start()
        .await;
    let mut clients = Vec::new();
    for length in (1..=24).map(|step| step * (128 << 10)) {
        let mut wire = Wire::new(small_reader(proxy.http()).await);
        let request = format!("GET /{length} HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.send(request).await.expect("open");
        clients.push(wire);
    }

    eventually("all are asked for", || app.requests() == clients.len()).await;
    let ended = async {
        while proxy.metric("session_proxy_requests_in_flight", &[]).await > 0.0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of all", ended).await;
}

/// Answers that are small one by one, and together more than the kernel keeps for a reader that is late.
#[tokio::test]
async fn small_answers_that_a_client_takes_late_all_arrive_in_order() {
    const ANSWERS: usize = 4000;
    let length = |turn: usize| 2000 + turn % 1000;
    let app = Upstream::site("baseline").await;
    let proxy = Setup::new().baseline(app.address).start().await;
    let stream = small_reader(proxy.http()).await;
    let stream = stream.into_std().expect("it is registered");
    let twin = stream.try_clone().expect("a descriptor is left");
    let [mut writing, reading] = [twin, stream].map(|stream| {
        let stream = TcpStream::from_std(stream);
        stream.expect("it does not block")
    });

    let asking = tokio::spawn(async move {
        for turn in 0..ANSWERS {
            let request = format!("GET /bytes/{} HTTP/1.1\r\nhost: a\r\n\r\n", length(turn));
            writing.write_all(request.as_bytes()).await.expect("open");
        }
    });
    // Until the proxy has nowhere left to put an answer.
    let answered = settled(Duration::from_millis(500), || app.requests() as u64).await;
    assert!(
        answered < ANSWERS as u64,
        "the kernel took {answered} answers"
    );

    let mut wire = Wire::new(reading);
    for turn in 0..ANSWERS {
        let answer = within("an answer", wire.answer("GET")).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error} instead of answer {turn}"));
        let body = answer.body.expect("all of it");
        assert_eq!((answer.status, body.len()), (200, length(turn)));
    }
    asking.await.expect("all was asked");
    assert_eq!(app.requests(), ANSWERS);
}

/// The head of an upgrade is as small as an answer can be, and the app waits for the client.
#[tokio::test]
async fn an_upgrade_behind_answers_that_a_client_takes_late_is_granted() {
    const UPGRADE: &str =
        "GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let app = Upstream::raw("app", |mut peer| async move {
        while let Some(seen) = peer.request().await? {
            if seen.target != "/tunnel" {
                peer.ok(&"x".repeat(3000)).await?;
                continue;
            }
            let granted =
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            peer.wire.send(granted).await?;
            let word = peer.wire.exactly(4).await?;
            peer.wire.send(word).await?;
        }
        Ok(())
    })
    .await;
    let proxy = Setup::new().baseline(app.address).start().await;
    let quiet = Duration::from_millis(300);

    // As many answers as the kernel takes for a client that reads nothing, and some less and more:
    // behind one of these numbers there is no room for the head of the upgrade.
    let mut wire = Wire::new(small_reader(proxy.http()).await);
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    wire.send(get.repeat(4000)).await.expect("open");
    let most = settled(quiet, || app.requests() as u64).await as usize;
    drop(wire);
    for answers in most.saturating_sub(8)..most + 2 {
        let mut wire = Wire::new(small_reader(proxy.http()).await);
        let before = app.requests() as u64;
        wire.send(format!("{}{UPGRADE}", get.repeat(answers)))
            .await
            .expect("open");
        settled(quiet, || app.requests() as u64 - before).await;
        for _ in 0..answers {
            let answer = within("an answer", wire.answer("GET")).await;
            assert_eq!(answer.expect("an answer").status, 200);
        }
        let head = within("the upgrade", wire.final_head()).await;
        assert_eq!(head.expect("a head").status(), 101, "behind {answers}");
        wire.send("ping").await.expect("open");
        let word = within("the echo", wire.exactly(4)).await;
        assert_eq!(word.expect("a word"), "ping");
    }
}
