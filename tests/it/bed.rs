//! The bed itself, without a proxy: what the other tests lean on does what its name says.

use std::time::Duration;

use http::Version;

use crate::support::certs::Certs;
use crate::support::client::{self, ask_tls};
use crate::support::config::ConfigFile;
use crate::support::digest::Digest;
use crate::support::grpc;
use crate::support::h2_frames::Unacted;
use crate::support::mirrord::Sender;
use crate::support::ports::{Blackhole, dead_addr};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::scripts::Break;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::{Ending, Framing};
use crate::support::within;

#[tokio::test]
async fn the_site_echoes_on_every_way() {
    let site = Upstream::site("baseline").await;

    for way in Way::all() {
        let answer = way
            .send(
                site.address,
                Request::post("/a/../b?q=%20", "body").header("x-one", "1"),
            )
            .await;

        assert_eq!(
            (answer.status, answer.served_by().as_str()),
            (200, "baseline"),
            "{way:?}"
        );
        assert_eq!(answer.json()["target"], "/a/../b?q=%20", "{way:?}");
        assert_eq!(answer.json()["length"], 4, "{way:?}");
    }
}

#[tokio::test]
async fn large_bodies_come_out_as_they_went_in() {
    let site = Upstream::site("baseline").await;

    for target in ["/bytes/1000000", "/stream/1000000"] {
        let answer = Way::Direct.send(site.address, Request::get(target)).await;

        assert_eq!(Digest::of(&answer.bytes()), Digest::of_pattern(1_000_000));
    }
}

#[tokio::test]
async fn the_sender_tries_ten_times_and_then_says_502() {
    let closing = Upstream::that_breaks_before_answering("closing", Break::Close).await;
    let sender = Sender::new(closing.address).impatient();

    let answer = within("ten tries", sender.send(&Request::post("/", "once"))).await;

    assert_eq!((answer.status, answer.tries), (502, 10));
    assert_eq!(closing.requests(), 10);
}

#[tokio::test]
async fn the_sender_puts_http2_on_an_idle_http1_connection() {
    let upstream = Upstream::plain("baseline").await;
    let sender = Sender::new(upstream.address);

    sender.send(&Request::get("/one")).await;
    sender
        .send(&Request::get("/two").version(Version::HTTP_2))
        .await;

    assert_eq!(sender.connections(), 1);
    assert_eq!(upstream.last().target, "http://app.test:8080/two");
    assert!(!upstream.last().fields.has("host"));
}

#[tokio::test]
async fn a_reset_is_told_from_an_end() {
    for (how, ending) in [(Break::Close, Ending::Fin), (Break::Reset, Ending::Reset)] {
        let upstream = Upstream::that_breaks_before_answering("breaking", how).await;
        let mut wire = raw::connect(upstream.address).await;

        wire.send("GET / HTTP/1.1\r\n\r\n").await.expect("it reads");

        assert_eq!(within("the end", wire.rest()).await.1, ending);
    }
}

#[tokio::test]
async fn a_body_cut_in_the_middle_is_an_error() {
    for framing in [Framing::Length(0), Framing::Chunked] {
        let upstream = Upstream::that_breaks_in_the_middle("breaking", framing, Break::Close).await;

        let answer = Way::Direct.send(upstream.address, Request::get("/")).await;

        assert_eq!(answer.status, 200);
        assert!(answer.body.is_err());
    }
}

#[tokio::test]
async fn streams_are_turned_down_and_then_served() {
    for how in [Unacted::Refused, Unacted::GoneAway] {
        let upstream = Upstream::h2_that_turns_down("baseline", how, 1).await;

        let refused =
            client::ask_h2(&mut client::h2(upstream.address).await, &Request::get("/")).await;
        let served =
            client::ask_h2(&mut client::h2(upstream.address).await, &Request::get("/")).await;

        assert!(refused.is_err(), "{how:?}");
        assert_eq!(served.expect("an answer").served_by(), "baseline");
    }
}

#[tokio::test]
async fn grpc_streams_message_by_message() {
    let site = Upstream::site("baseline").await;
    let mut call = grpc::Call::open(site.address, &grpc::request("/echo", b""))
        .await
        .expect("a head");

    for payload in [b"one", b"two"] {
        call.send(payload).await;
        assert_eq!(
            within("an echo", call.next())
                .await
                .expect("open")
                .as_deref(),
            Some(&payload[..])
        );
    }
    call.finish();

    assert_eq!(
        within("the end", call.next()).await.expect("in order"),
        None
    );
    assert_eq!(call.trailers().first("grpc-status").as_deref(), Some("0"));
}

#[tokio::test]
async fn tls_speaks_what_alpn_picks() {
    let certs = Certs::new();
    let site = Upstream::tls_site("baseline", certs.server(&["h2", "http/1.1"])).await;

    for (alpn, version) in [("h2", Version::HTTP_2), ("http/1.1", Version::HTTP_11)] {
        let answer = ask_tls(site.address, certs.client(&[alpn]), &Request::get("/"))
            .await
            .expect("an answer");

        assert_eq!(answer.version, version);
    }
}

#[tokio::test]
async fn nobody_is_at_home_in_two_ways() {
    let refused = tokio::net::TcpStream::connect(dead_addr().await).await;
    assert_eq!(
        refused.map(drop).map_err(|error| error.kind()),
        Err(std::io::ErrorKind::ConnectionRefused)
    );

    let hole = Blackhole::new().await;
    let connecting = tokio::net::TcpStream::connect(hole.address);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), connecting)
            .await
            .is_err()
    );
}

#[test]
fn a_mounted_file_changes_by_a_swap() {
    let mut file = ConfigFile::mounted("one");
    file.swap_symlink("two");

    assert_eq!(
        std::fs::read_to_string(file.path()).expect("it is there"),
        "two"
    );
}
