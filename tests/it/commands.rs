//! The commands beside `run`, as a person types them.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use crate::awaited::{command, stderr, stdout};
use crate::support::config::ConfigFile;
use crate::support::proxy::{Proxy, binary};
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, within};

const GOOD: &str = "listeners:\n  - { name: http, address: \"127.0.0.1:0\", appPort: 8080, baseline: \"127.0.0.1:9100\" }\n\
                    sessions: { pr-42: 127.0.0.2 }\n";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn check_prints_the_table_or_every_problem() {
    let good = ConfigFile::plain(GOOD);
    let output = command(&["check", good.path().to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for part in ["pr-42", "127.0.0.2", "127.0.0.1:9100"] {
        assert!(
            stdout(&output).contains(part),
            "{part}: {}",
            stdout(&output)
        );
    }

    let bad = ConfigFile::plain("listeners: []\nsesions: {}\n");
    let output = command(&["check", bad.path().to_str().expect("a plain path")]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(2), "")
    );
    assert!(
        stderr(&output).contains(":2:1") && stderr(&output).contains("sesions"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn explain_says_where_and_why() {
    let file = ConfigFile::plain(GOOD);
    let path = file.path();
    let path = path.to_str().expect("a plain path");
    for (header, expected) in [
        ("x-dev-session: pr-42", "127.0.0.2:8080"),
        ("x-dev-session: pr-43", "unknown-session"),
        ("baggage: dev-session=pr-42", "127.0.0.2:8080"),
        ("accept: */*", "no-session"),
    ] {
        let output = command(&["explain", "--config", path, "-H", header, "--path", "/x"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(
            stdout(&output).contains(expected),
            "{header}: {}",
            stdout(&output)
        );
    }
}

#[test]
fn schema_version_and_completions_are_printed() {
    let schema = stdout(&command(&["schema"]));
    assert!(
        serde_json::from_str::<serde_json::Value>(&schema)
            .expect("JSON")
            .is_object()
    );
    let version = stdout(&command(&["--version"]));
    assert!(
        version.starts_with("session-proxy ") && version.contains('('),
        "{version}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let output = command(&["completions", shell]);
        assert!(
            output.status.success() && stdout(&output).contains("explain"),
            "{shell}"
        );
    }
}

#[test]
fn what_makes_no_sense_is_exit_code_2() {
    for arguments in [
        &["run", "--no-such-flag"][..],
        &["no-such-command"],
        &["run", "--admin", "127.0.0.1:0"],
        &["run", "--listen", "nowhere"],
        &["run", "--listen", "127.0.0.1:0", "--workers", "0"],
        &["completions", "no-such-shell"],
        &[],
    ] {
        let output = command(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    for arguments in [&["schema"][..], &["completions", "bash"], &["--help"]] {
        let (reader, writer) = std::io::pipe().expect("pipes can be made");
        drop(reader);
        let output = Command::new(binary())
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .expect("the binary can be started");
        assert!(
            !stderr(&output).contains("panicked"),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_tells_ready_from_gone() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let admin = proxy.admin().to_string();

    assert_eq!(
        command(&["healthcheck", "--admin", &admin]).status.code(),
        Some(0)
    );
    drop(proxy);
    let output = command(&["healthcheck", "--admin", &admin]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&admin), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn tap_prints_one_line_for_each_request_asked_for() {
    let site = Upstream::site("pr-42").await;
    let proxy = Proxy::routing(&site, &[("pr-42", &site)]).await;
    let mut child = Ended(
        Command::new(binary())
            .args([
                "tap",
                "--json",
                "--session",
                "pr-42",
                "--admin",
                &proxy.admin().to_string(),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary can be started"),
    );
    let mut lines = BufReader::new(child.0.stdout.take().expect("stdout is piped")).lines();
    let first = tokio::task::spawn_blocking(move || lines.next());

    eventually("a line", || {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                Way::Direct.send(proxy.http(), Request::get("/plain")).await;
                Way::Direct
                    .send(proxy.http(), Request::get("/wanted").session("pr-42"))
                    .await;
            });
        });
        first.is_finished()
    })
    .await;

    let line = first
        .await
        .expect("no panic")
        .expect("a line")
        .expect("UTF-8");
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        (&line["target"], &line["session"]),
        (&"/wanted".into(), &"pr-42".into())
    );
}

/// What the demo promises is what its proxy answers, and Ctrl-C ends it.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_keeps_its_promises() {
    let mut child = Ended(
        Command::new(binary())
            .args(["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary can be started"),
    );
    let mut reader = BufReader::new(child.0.stdout.take().expect("stdout is piped"));
    let mut text = String::new();
    while !text.contains("Ctrl-C") {
        assert!(
            reader.read_line(&mut text).expect("UTF-8") > 0,
            "ended: {text}"
        );
    }

    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut tried = 0;
    for pair in lines.windows(2) {
        let Some(call) = pair[0].strip_prefix("curl ") else {
            continue;
        };
        let (header, url) = match call.strip_prefix("-H '") {
            Some(rest) => rest.split_once("' ").expect("a quoted header"),
            None => ("", call),
        };
        let url = url.strip_prefix("http://").expect("a URL");
        let (address, path) = url.split_once('/').expect("a path");
        let mut request = Request::get(&format!("/{path}"));
        if let Some((name, value)) = header.split_once(": ") {
            request = request.header(name, value);
        }
        let answer = Way::Direct
            .send(address.parse().expect("an address"), request)
            .await;
        let promised = pair[1].strip_prefix("-> ").expect("an expectation");
        assert_eq!(answer.text().trim_end(), promised, "{call}");
        tried += 1;
    }
    assert_eq!(tried, 3, "{text}");

    let sent = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.0.id())])
        .status();
    assert!(sent.expect("there is a shell").success());
    let ended = tokio::task::spawn_blocking(move || {
        let _ = reader.read_to_string(&mut text);
        child.0.wait().expect("a child can be waited for")
    });
    assert_eq!(
        within("the end", ended).await.expect("no panic").code(),
        Some(0)
    );
}
