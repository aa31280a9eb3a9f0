//! TLS towards clients and towards endpoints.

use std::path::Path;

use http::Version;

use crate::support::certs::Certs;
use crate::support::client::ask_tls;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::Wire;
use crate::support::within;

async fn https(certs: &Certs, baseline: &Upstream, more: &str) -> Proxy {
    Proxy::from_yaml(&format!(
        "listeners:\n  - name: http\n    address: \"127.0.0.1:0\"\n    protocol: https\n    baseline: \"{}\"\n    \
         tls: {{ certificate: {}, privateKey: {} }}\n{more}",
        baseline.address,
        certs.certificate().display(),
        certs.private_key().display(),
    ))
    .await
}

/// A proxy whose baseline is a session at a TLS endpoint.
async fn towards(upstream: &Upstream, ca: &Path, name: &str) -> Proxy {
    let yaml = format!(
        "{{ endpoints: [\"{}\"], protocol: tls, tls: {{ serverName: {name}, ca: {} }} }}",
        upstream.address,
        ca.display()
    );
    Setup::new().session_yaml("pr-42", &yaml).start().await
}

#[tokio::test]
async fn alpn_picks_the_version_and_none_means_http1() {
    let (certs, site) = (Certs::new(), Upstream::site("baseline").await);
    let proxy = https(&certs, &site, "").await;

    for (alpn, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["h2"], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let request = Request::post("/x", "body");
        let asked = ask_tls(proxy.http(), certs.client(alpn), &request);
        let answer = within("an answer", Box::pin(asked))
            .await
            .expect("an answer");
        assert_eq!((answer.status, answer.version), (200, version), "{alpn:?}");
        assert_eq!(answer.json()["length"], 4, "{alpn:?}");
    }
    assert!(proxy.stdout().iter().any(|line| line.ends_with("(https)")));
}

#[tokio::test]
async fn a_client_that_speaks_plain_http_gets_no_answer_and_harms_nobody() {
    let (certs, site) = (Certs::new(), Upstream::site("baseline").await);
    let proxy = https(&certs, &site, "").await;
    let mut plain = raw::connect(proxy.http()).await;

    plain
        .send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("it reads");
    let (bytes, _) = within("the end", plain.rest()).await;

    assert!(!bytes.starts_with(b"HTTP/1.1 2"), "{bytes:?}");
    assert_eq!(site.requests(), 0);
    let answer = ask_tls(proxy.http(), certs.client(&["h2"]), &Request::get("/")).await;
    assert_eq!(answer.expect("an answer").status, 200);
}

#[tokio::test]
async fn a_slow_handshake_is_cut_at_the_deadline() {
    let (certs, site) = (Certs::new(), Upstream::site("baseline").await);
    let proxy = https(&certs, &site, "timeouts: { firstByte: 300ms }\n").await;
    for part in ["", "\x16\x03\x01"] {
        let mut slow = raw::connect(proxy.http()).await;
        slow.send(part).await.expect("it reads");

        within("the end", slow.rest()).await;
    }
}

#[tokio::test]
async fn an_endpoint_is_trusted_by_its_own_authority() {
    let certs = Certs::new();
    for (alpn, ways) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let site = Upstream::tls_site("pr-42", certs.server(alpn)).await;
        let proxy = towards(&site, &certs.certificate(), "app.test").await;
        for way in Way::all() {
            let request = Request::post("/x", "body").session("pr-42");
            let answer = way.send(proxy.http(), request).await;
            assert_eq!(answer.status, 200, "{alpn:?} {way:?}: {answer:#?}");
            assert_eq!(site.last().version, ways, "{alpn:?} {way:?}");
            assert_eq!(site.last().body.length, 4, "{alpn:?} {way:?}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_of_another_authority_or_name_is_a_failed_connect() {
    let (certs, other) = (Certs::new(), Certs::new());
    let site = Upstream::tls_site("pr-42", certs.server(&["h2", "http/1.1"])).await;
    for (ca, name) in [
        (other.certificate(), "app.test"),
        (certs.certificate(), "elsewhere.test"),
    ] {
        let proxy = towards(&site, &ca, name).await;
        for way in Way::all() {
            let answer = way
                .send(proxy.http(), Request::get("/").session("pr-42"))
                .await;
            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (502, "connect-failed"),
                "{way:?} {name}"
            );
        }
    }
    assert_eq!(site.requests(), 0);
}

#[tokio::test]
async fn an_endpoint_that_speaks_no_tls_is_a_failed_connect() {
    let (certs, site) = (Certs::new(), Upstream::site("pr-42").await);
    let proxy = towards(&site, &certs.certificate(), "app.test").await;

    let answer = Way::Direct
        .send(proxy.http(), Request::get("/").session("pr-42"))
        .await;

    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "connect-failed")
    );
}

/// An upgrade needs HTTP/1, whatever the endpoint would rather speak.
#[tokio::test]
async fn a_websocket_goes_over_http1_to_an_endpoint_that_prefers_http2() {
    let certs = Certs::new();
    let acceptor = tokio_rustls::TlsAcceptor::from(certs.server(&["h2", "http/1.1"]));
    let upstream = Upstream::accepting("pr-42", move |stream, _, account| {
        let handshake = acceptor.accept(stream);
        Box::pin(async move {
            let Ok(stream) = handshake.await else { return };
            if stream.get_ref().1.alpn_protocol() != Some(b"http/1.1") {
                return account.cancel();
            }
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head().await else { return };
            account.count(&head.fields);
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            let _ = wire.send(answer).await;
            while let Ok(bytes) = wire.some().await {
                if bytes.is_empty() || wire.send(bytes).await.is_err() {
                    return;
                }
            }
        })
    })
    .await;
    let proxy = towards(&upstream, &certs.certificate(), "app.test").await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send(
        "GET /chat HTTP/1.1\r\nhost: a\r\nx-dev-session: pr-42\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n",
    )
    .await
    .expect("it reads");
    let head = within("an answer", wire.final_head())
        .await
        .expect("an answer");
    assert_eq!(head.status(), 101, "{head:?}");
    wire.send("ping").await.expect("open");
    let back = within("an echo", wire.exactly(4)).await.expect("open");

    assert_eq!(&back[..], b"ping");
    assert_eq!(upstream.cancelled(), 0, "HTTP/2 was picked");
}

#[tokio::test]
async fn tls_on_both_sides_carries_large_bodies() {
    let certs = Certs::new();
    let site = Upstream::tls_site("pr-42", certs.server(&["h2", "http/1.1"])).await;
    let proxy = Proxy::from_yaml(&format!(
        "listeners:\n  - name: http\n    address: \"127.0.0.1:0\"\n    protocol: https\n    \
         tls: {{ certificate: {crt}, privateKey: {key} }}\nsessions:\n  pr-42: {{ endpoints: [\"{site}\"], \
         protocol: tls, tls: {{ serverName: app.test, ca: {crt} }} }}\n",
        crt = certs.certificate().display(),
        key = certs.private_key().display(),
        site = site.address,
    ))
    .await;
    for alpn in ["h2", "http/1.1"] {
        let request = Request::get("/bytes/1000000").session("pr-42");
        let asked = ask_tls(proxy.http(), certs.client(&[alpn]), &request);
        let answer = within("an answer", Box::pin(asked))
            .await
            .expect("an answer");
        assert_eq!(answer.bytes().len(), 1_000_000, "{alpn}");
    }
}
