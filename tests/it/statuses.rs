//! When the proxy answers itself: every row of the table, for every kind of client.

mod refused;
mod unparsed;
mod upstream;

use std::net::SocketAddr;

use http::Version;

use crate::support::client::{self, ask_h2};
use crate::support::grpc;
use crate::support::mirrord::Sender;
use crate::support::request::{Answer, Request};
use crate::support::way::Way;
use crate::support::within;

/// What a client must be told.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    status: u16,
    reason: &'static str,
}

impl Refusal {
    const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// Asks in every way, with GET, POST and HEAD and as gRPC, and expects this refusal each time.
    ///
    /// `tag` says what the request tells about its session.
    async fn is_given(self, address: SocketAddr, tag: impl Fn(Request) -> Request) {
        for way in Way::all() {
            let mut client = way.client(address).await;
            for request in [Request::get("/x"), Request::post("/x", "body")] {
                self.check(&client.send(tag(request)).await, way);
            }
            let head = client.send(tag(Request::new("HEAD", "/x"))).await;
            assert_eq!(
                (head.status, head.bytes().len()),
                (self.status, 0),
                "HEAD, {way:?}: {head:#?}"
            );
            self.check_fields(&head, way);
        }
        let request = tag(grpc::request("/shop.Orders/Get", b"question"));
        let mut h2 = client::h2(address).await;
        self.check_grpc(
            &within("gRPC", ask_h2(&mut h2, &request))
                .await
                .expect("an answer"),
        );
        let sender = Sender::new(address);
        let answer = within(
            "gRPC by mirrord",
            sender.send(&request.version(Version::HTTP_2)),
        )
        .await;
        assert_eq!(answer.tries, 1);
        self.check_grpc(&answer);
    }

    fn check(self, answer: &Answer, way: Way) {
        assert_eq!(answer.status, self.status, "{way:?}: {answer:#?}");
        assert_eq!(
            answer.header("content-type").as_deref(),
            Some("application/problem+json"),
            "{way:?}"
        );
        let json = answer.json();
        assert_eq!(json["status"], self.status, "{way:?}: {json}");
        assert_eq!(json["reason"], self.reason, "{way:?}: {json}");
        for text in ["type", "title", "detail"] {
            assert!(json[text].is_string(), "{way:?}: {text} in {json}");
        }
        self.check_fields(answer, way);
    }

    fn check_fields(self, answer: &Answer, way: Way) {
        assert!(answer.route().is_some(), "{way:?}: no route in {answer:#?}");
        assert!(
            answer.header("proxy-status").is_some(),
            "{way:?}: no proxy-status in {answer:#?}"
        );
        let retry_after = (self.status == 503).then_some("1");
        assert_eq!(
            answer.header("retry-after").as_deref(),
            retry_after,
            "{way:?}"
        );
    }

    fn check_grpc(self, answer: &Answer) {
        // Trailers-only: one HEADERS frame, so that the status is in what looks like the head.
        assert_eq!(answer.status, 200, "{answer:#?}");
        assert_eq!(
            answer.header("grpc-status").as_deref(),
            Some("14"),
            "{answer:#?}"
        );
        assert!(
            answer
                .header("grpc-message")
                .is_some_and(|message| !message.is_empty()),
            "{answer:#?}"
        );
        assert!(
            answer
                .header("content-type")
                .is_some_and(|kind| kind.starts_with("application/grpc")),
            "{answer:#?}"
        );
        assert_eq!(answer.bytes().len(), 0, "{answer:#?}");
        assert!(answer.route().is_some(), "{answer:#?}");
    }
}
