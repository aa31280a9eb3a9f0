//! The two programs against each other, without a proxy between.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

const LOAD: &str = env!("CARGO_BIN_EXE_load");

/// An origin that ends with the test.
struct Origin {
    child: Child,
    address: String,
}

impl Origin {
    fn named(name: &str) -> Self {
        let mut child = Command::new(LOAD)
            .args(["origin", "--name", name])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was built");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it prints its address");
        let address = line.trim().to_owned();
        Self { child, address }
    }

    fn asked(&self, arguments: &str) -> Output {
        let mut command = Command::new(LOAD);
        command.args(["client", "--target", &self.address, "--warm-up", "0"]);
        if !arguments.contains("--seconds") {
            command.args(["--seconds", "0.05"]);
        }
        command.args(arguments.split_whitespace());
        command.output().expect("it was built")
    }

    fn measured(&self, arguments: &str) -> serde_json::Value {
        let output = self.asked(arguments);
        serde_json::from_slice(&output.stdout).expect("it prints one object")
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_protocol_and_size_is_answered_right() {
    let origin = Origin::named("pr");
    for work in [
        "--protocol h1",
        "--protocol h1-close",
        "--protocol h2 --streams 10 --connections 3",
        "--protocol h2 --upload 5000 --connections 3",
        "--protocol grpc --streams 10 --connections 3",
        "--protocol grpc --upload 20 --connections 3",
        "--protocol sender",
        "--protocol sender-h2",
        "--protocol sender-mixed",
        "--path /10k --answer 10240",
        "--path /1m --answer 1048576 --connections 4",
        "--path /1m --answer 1048576 --connections 2 --protocol h2",
        "--upload 1048576 --connections 4",
    ] {
        let report = origin.measured(&format!("--origin pr --session pr-42 --at-least 50 {work}"));
        assert_eq!(report["errors"], 0, "{work}: {report}");
        assert!(report["requests"].as_u64() >= Some(50), "{work}: {report}");
    }
}

#[test]
fn the_wrong_origin_and_the_wrong_length_are_errors_in_every_protocol() {
    let origin = Origin::named("baseline");
    for protocol in [
        "h1",
        "h1-close",
        "h2",
        "grpc",
        "sender",
        "sender-h2",
        "sender-mixed",
    ] {
        for (wrong, why) in [
            ("--origin pr", "answered by the wrong origin"),
            ("--origin baseline --answer 99", "a body of 100 bytes"),
        ] {
            let once = origin.asked(&format!("--once --protocol {protocol} {wrong}"));
            assert_eq!(once.status.code(), Some(1), "{protocol} {wrong}");
            assert!(
                String::from_utf8_lossy(&once.stderr).contains(why),
                "{once:?}"
            );
            let report = origin.measured(&format!("--protocol {protocol} {wrong} --connections 2"));
            assert!(report["errors"].as_u64() > Some(0), "{report}");
            assert_eq!(report["first_error"], why);
            assert_eq!(report["requests"], 0);
        }
    }
}

#[test]
fn an_open_loop_counts_what_was_due_even_if_nobody_answers() {
    // It accepts and never says a word.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let mut origin = Origin::named("pr");
    origin.address = deaf.local_addr().expect("it is bound").to_string();
    let report = origin.measured("--origin pr --rate 1000 --connections 4 --seconds 0.5");
    assert_eq!(report["requests"], 0);
    let count = |name: &str| report[name].as_f64().expect("it is a number");
    let due = count("seconds") * 1000.0;
    let lost = count("unsent") + count("unanswered");
    assert!((lost - due).abs() < 10.0, "{report}");
    assert_eq!(report["unanswered"], 4);
    // They have waited since they were due, half of them for more than half of the time.
    let p50 = report["latency_us"]["p50"].as_f64();
    assert!(p50 > Some(200_000.0), "{report}");
}

#[test]
fn an_open_loop_accounts_for_all_that_was_due() {
    let origin = Origin::named("pr");
    let report = origin.measured("--origin pr --rate 2000 --seconds 1");
    let count = |name: &str| report[name].as_f64().expect("it is a number");
    let due = count("seconds") * 2000.0;
    let all = count("requests") + count("unsent");
    assert!((all - due).abs() < 10.0, "{report}");
    assert!(
        count("requests") > 0.0 && count("unanswered") == 0.0,
        "{report}"
    );
}

#[test]
fn held_connections_are_still_open_at_the_end() {
    let origin = Origin::named("pr");
    let mut holder = Command::new(LOAD)
        .args([
            "hold",
            "--target",
            &origin.address,
            "--origin",
            "pr",
            "--connections",
            "100",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it was built");
    let mut said = BufReader::new(holder.stdout.take().expect("it is piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says when it holds");
    assert_eq!(line, "holding\n");
    let mut stdin = holder.stdin.take().expect("it is piped");
    stdin.flush().expect("it is open");
    drop(stdin);
    assert!(holder.wait().expect("it ends").success());
}
