//! Raw TCP listeners: all that a byte relay did.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::digest::{Digest, pattern};
use crate::support::ports::dead_addr;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::upstream::Upstream;
use crate::support::wire::{Ending, Wire};
use crate::support::{eventually, within};

async fn relay(target: SocketAddr, more: &str) -> Proxy {
    Proxy::from_yaml(&format!(
        "listeners:\n  - {{ name: db, address: \"127.0.0.1:0\", protocol: tcp, target: \"{target}\" }}\n{more}"
    ))
    .await
}

/// Sends back what comes, and a word when the client's half ends.
async fn echo() -> Upstream {
    Upstream::raw("echo", |mut peer| async move {
        loop {
            let bytes = peer.wire.some().await?;
            if bytes.is_empty() {
                return peer.wire.send("bye").await;
            }
            peer.wire.send(bytes).await?;
        }
    })
    .await
}

#[tokio::test]
async fn bytes_pass_both_ways_and_a_client_may_end_its_half() {
    let upstream = echo().await;
    let proxy = relay(upstream.address, "").await;
    let mut wire = raw::connect(proxy.addr("db")).await;

    for word in ["\0\u{1}any", "bytes\r\n\r\n"] {
        wire.send(word).await.expect("open");
        let back = within("an echo", wire.exactly(word.len()))
            .await
            .expect("open");
        assert_eq!(&back[..], word.as_bytes());
    }
    wire.half_close().await.expect("open");

    let (rest, ending) = within("the end", wire.rest()).await;
    assert_eq!((&rest[..], ending), (&b"bye"[..], Ending::Fin));
}

#[tokio::test]
async fn an_upstream_may_speak_first_and_end_its_half() {
    let upstream = Upstream::raw("db", |mut peer| async move {
        peer.wire.send("hello").await?;
        peer.wire.half_close().await?;
        let (bytes, _) = peer.wire.rest().await;
        peer.account
            .taken
            .fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    })
    .await;
    let proxy = relay(upstream.address, "").await;
    let mut wire = raw::connect(proxy.addr("db")).await;

    let (greeting, ending) = within("the greeting", wire.rest()).await;
    assert_eq!((&greeting[..], ending), (&b"hello"[..], Ending::Fin));
    wire.send("still here").await.expect("our half is open");
    wire.half_close().await.expect("our half is open");

    let taken = || {
        upstream
            .account
            .taken
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    eventually("the upstream reads on", || taken() == 10).await;
}

#[tokio::test]
async fn large_transfers_come_out_as_they_went_in() {
    const LENGTH: u64 = 20_000_000;
    let upstream = echo().await;
    let proxy = relay(upstream.address, "").await;
    let stream = raw::connect(proxy.addr("db")).await.stream;
    let (mut reader, mut writer) = stream.into_split();

    let writing = tokio::spawn(async move {
        for piece in pattern(LENGTH) {
            writer.write_all(&piece).await.expect("open");
        }
        writer
    });
    let mut digest = Digest::new();
    let mut chunk = vec![0; 64 * 1024];
    while digest.length < LENGTH {
        let read = within("bytes", reader.read(&mut chunk))
            .await
            .expect("open");
        assert!(read > 0, "ended after {}", digest.length);
        digest.update(&chunk[..read]);
    }

    writing.await.expect("all was written");
    assert_eq!(digest, Digest::of_pattern(LENGTH));
}

#[tokio::test]
async fn a_silent_connection_ends_at_the_idle_limit() {
    let upstream = echo().await;
    let proxy = relay(upstream.address, "timeouts: { bodyIdle: 300ms }\n").await;
    let mut wire = raw::connect(proxy.addr("db")).await;

    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        wire.send("x").await.expect("bytes that move keep it open");
        within("an echo", wire.exactly(1)).await.expect("open");
    }
    within("the end", wire.rest()).await;

    eventually("the upstream's side closes too", || upstream.open() == 0).await;
}

#[tokio::test]
async fn a_refusing_upstream_is_a_reset_and_no_proper_end() {
    let proxy = relay(dead_addr().await, "").await;

    let ending = match TcpStream::connect(proxy.addr("db")).await {
        Ok(stream) => within("the end", Wire::new(stream).rest()).await.1,
        // It may come before this side has looked whether it is connected.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ending::Reset,
        Err(error) => panic!("the proxy listens: {error}"),
    };

    assert_eq!(ending, Ending::Reset);
}

#[tokio::test]
async fn a_reset_upstream_is_a_reset() {
    let upstream = Upstream::raw("db", |mut peer| async move {
        peer.wire.some().await?;
        peer.reset()
    })
    .await;
    let proxy = relay(upstream.address, "").await;
    let mut wire = raw::connect(proxy.addr("db")).await;

    wire.send("x").await.expect("open");

    assert_eq!(within("the end", wire.rest()).await.1, Ending::Reset);
}

#[tokio::test]
async fn many_connections_at_once_do_not_mix() {
    let upstream = echo().await;
    // So many at once can overflow the app's backlog; the kernel then tries again after a second.
    let proxy = relay(upstream.address, "timeouts: { connect: 10s }\n").await;
    let mut wires = Vec::new();
    for _ in 0..300 {
        wires.push(raw::connect(proxy.addr("db")).await);
    }

    for (number, wire) in wires.iter_mut().enumerate() {
        wire.send(format!("{number:08}")).await.expect("open");
    }
    for (number, wire) in wires.iter_mut().enumerate() {
        let back = within("an echo", wire.exactly(8)).await.expect("open");
        assert_eq!(back, format!("{number:08}"));
    }

    assert_eq!(upstream.connections(), 300);
    let gauge = proxy
        .metric("session_proxy_connections", &[("listener", "db")])
        .await;
    assert_eq!(gauge, 300.0);
}

#[tokio::test]
async fn a_flag_alone_makes_a_relay() {
    let upstream = echo().await;
    let proxy = Setup::new()
        .without_file()
        .flag("--tcp")
        .flag(&format!("127.0.0.1:0={}", upstream.address))
        .start()
        .await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("x").await.expect("open");

    let back = within("an echo", wire.exactly(1)).await.expect("open");
    assert_eq!(&back[..], b"x");
    assert!(proxy.stdout().iter().any(|line| line.ends_with("(tcp)")));
}
