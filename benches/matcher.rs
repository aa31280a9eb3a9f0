//! A table against a head, no I/O: what it costs to find a request's session.
//!
//! The promise is that the number of sessions does not matter. To hold it to that, every lookup is of
//! another session and reads another head, as it is with requests: one name over and over would be
//! found in the processor's nearest cache whatever the table's size.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};

use session_proxy::config::File;
use session_proxy::matcher::Claim;
use session_proxy::metrics::Metrics;
use session_proxy::plan::Plan;
use session_proxy::upstream::Upstream;

/// How many heads take turns; the same for every size of table, so that reading them costs the same.
const HEADS: usize = 1_000;

fn lookups(criterion: &mut Criterion) {
    for (case, field, is_known) in CASES {
        let mut group = criterion.benchmark_group(case);
        for sessions in [1, 100, 100_000] {
            let plan = plan(sessions);
            let heads: Vec<_> = (0..HEADS)
                .map(|turn| head(field, turn * 7_919 % sessions))
                .collect();
            for head in &heads {
                assert_eq!(session(&plan, head).is_some(), is_known, "{head:?}");
            }
            let mut turn = heads.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(sessions), |bencher| {
                bencher.iter(|| session(black_box(&plan), turn.next().expect("it has no end")));
            });
        }
        group.finish();
    }
}

/// A name, how a head names the session of that number, and whether the table has it.
type Case = (&'static str, fn(&mut HeaderMap, usize), bool);

const CASES: [Case; 4] = [
    ("by header", by_header, true),
    ("by baggage", by_baggage, true),
    ("unknown session", unknown, false),
    ("no session", |_, _| {}, false),
];

fn by_header(head: &mut HeaderMap, number: usize) {
    head.insert("x-dev-session", value(format!("pr-{number}")));
}

fn by_baggage(head: &mut HeaderMap, number: usize) {
    let members =
        format!("userId=alice,serverNode=DF%2028,dev-session=pr-{number},isProduction=false");
    head.insert("baggage", value(members));
}

fn unknown(head: &mut HeaderMap, number: usize) {
    head.insert("x-dev-session", value(format!("nobody-{number}")));
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("visible ASCII")
}

/// What a browser sends to an API, and one field or none that names the session.
fn head(names_session: fn(&mut HeaderMap, usize), number: usize) -> HeaderMap {
    let mut head = HeaderMap::new();
    for (name, text) in [
        ("host", "orders.staging.example.com"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        ),
        ("accept", "application/json"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("cookie", "session=0123456789abcdef; theme=dark"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ] {
        head.insert(name, HeaderValue::from_static(text));
    }
    names_session(&mut head, number);
    head
}

/// The table of a file with so many sessions.
fn plan(sessions: usize) -> Plan {
    let mut file =
        String::from("listeners: [{ address: \"127.0.0.1:0\", appPort: 8080 }]\nsessions:\n");
    for number in 0..sessions {
        writeln!(file, "  pr-{number}: 127.0.0.1").expect("a string takes everything");
    }
    let file = File::parse("matcher.yaml", file.as_bytes()).expect("its shape is right");
    Plan::compile(&file, &Metrics::new("bench", "none")).expect("it has no mistakes")
}

/// What an exchange asks first.
fn session<'p>(plan: &'p Plan, head: &HeaderMap) -> Option<&'p Arc<Upstream>> {
    match plan.rule.claim(head) {
        Claim::Session(name) => plan.sessions.find(&name),
        Claim::None | Claim::Conflict | Claim::Malformed => None,
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);
