//! From the command line to the first served request, and the deadlines and limits of connections.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::awaited::{ask, command, stderr, stdout};
use crate::support::config::ConfigFile;
use crate::support::proxy::{Proxy, Setup, binary};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, within};

#[tokio::test]
async fn flags_alone_are_enough() {
    let (baseline, session) = (
        Upstream::site("baseline").await,
        Upstream::site("pr-42").await,
    );
    let mut setup = Setup::new().without_file();
    for flag in [
        "--listen=127.0.0.1:0".to_owned(),
        format!("--session=pr-42={}", session.address),
        format!("--baseline={}", baseline.address),
        "--header=X-Branch".to_owned(),
        "--baggage-key=branch".to_owned(),
    ] {
        setup = setup.flag(&flag);
    }
    let proxy = setup.start().await;

    for (request, upstream) in [
        (Request::get("/"), "baseline"),
        (Request::get("/").session("pr-42"), "baseline"),
        (Request::get("/").header("x-branch", "pr-42"), "pr-42"),
        (Request::get("/").header("baggage", "branch=pr-42"), "pr-42"),
    ] {
        assert_eq!(
            Way::Direct.send(proxy.http(), request).await.served_by(),
            upstream
        );
    }
}

#[tokio::test]
async fn the_environment_alone_is_enough() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Setup::new()
        .without_file()
        .env("SESSION_PROXY_LISTEN", "127.0.0.1:0")
        .env("SESSION_PROXY_BASELINE", &baseline.address.to_string())
        .env("SESSION_PROXY_ACCESS_LOG", "json")
        .env("SESSION_PROXY_WORKERS", "1")
        .start()
        .await;

    assert_eq!(
        Way::Direct
            .send(proxy.http(), Request::get("/"))
            .await
            .status,
        200
    );
    eventually("a line", || {
        proxy.stdout().iter().any(|line| line.starts_with('{'))
    })
    .await;
}

#[tokio::test]
async fn flags_override_the_file() {
    let (file, flag) = (Upstream::site("file").await, Upstream::site("flag").await);
    let setup = Setup::new()
        .session("pr-42", file.address)
        .session("pr-43", file.address);
    let proxy = setup
        .flag(&format!("--session=pr-42={}", flag.address))
        .start()
        .await;

    for (session, upstream) in [("pr-42", "flag"), ("pr-43", "file")] {
        let answer = Way::Direct
            .send(proxy.http(), Request::get("/").session(session))
            .await;
        assert_eq!(answer.served_by(), upstream);
    }
}

#[tokio::test]
async fn the_lines_of_a_start_are_exactly_these() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::from_yaml(&format!(
        "listeners:\n  - {{ name: web, address: \"127.0.0.1:0\", baseline: \"{0}\" }}\n  \
         - {{ name: db, address: \"127.0.0.1:0\", protocol: tcp, target: \"{0}\" }}\n",
        baseline.address
    ))
    .await;

    assert_eq!(
        proxy.stdout(),
        [
            format!("listening on web {} (http)", proxy.addr("web")),
            format!("listening on db {} (tcp)", proxy.addr("db")),
            format!("admin on {}", proxy.admin()),
            "ready".to_owned(),
        ]
    );
}

#[tokio::test]
async fn a_busy_port_fails_the_start_and_nothing_is_served() {
    let busy = Upstream::site("busy").await;
    let taken = busy.address.to_string();
    for arguments in [
        ["run", "--listen", &taken, "--admin", "127.0.0.1:0"],
        ["run", "--listen", "127.0.0.1:0", "--admin", &taken],
    ] {
        let output = command(&arguments);

        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains(&taken), "{}", stderr(&output));
        assert_eq!(stdout(&output), "", "nothing was announced");
    }
}

#[tokio::test]
async fn the_admin_port_can_be_off() {
    let mut child = Command::new(binary())
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "off"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        child.stdout.take().expect("stdout is piped"),
    ));
    let lines: Vec<_> = [lines.next(), lines.next()]
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    child.kill().expect("it runs");
    child.wait().expect("it was killed");

    assert!(lines[0].starts_with("listening on "), "{lines:?}");
    assert_eq!(lines[1], "ready");
}

#[test]
fn an_invalid_configuration_is_told_whole() {
    let file = ConfigFile::plain("listeners: []\nsesions: {}\nlimits: { headers: many }\n");
    let path = file.path();
    let path = path.to_str().expect("a plain path");

    let output = command(&["run", "--admin", "127.0.0.1:0", "--config", path]);

    assert_eq!(output.status.code(), Some(2));
    for part in ["sesions", "many", ":2:", ":3:"] {
        assert!(
            stderr(&output).contains(part),
            "{part}: {}",
            stderr(&output)
        );
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(baseline.address);
    let proxy = setup.top("limits: { connections: 2 }").start().await;
    let mut two = [
        raw::connect(proxy.http()).await,
        raw::connect(proxy.http()).await,
    ];
    for wire in &mut two {
        let answer = wire.ask(&Request::get("/").header("host", "a")).await;
        assert_eq!(answer.expect("an answer").status, 200);
    }

    let answer = within("an answer", ask(proxy.http(), &Request::get("/")))
        .await
        .expect("an answer");

    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (503, "overloaded")
    );
    assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
    drop(two);
    let start = Instant::now();
    while ask(proxy.http(), &Request::get("/"))
        .await
        .is_ok_and(|answer| answer.status != 200)
    {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "the places are never free again"
        );
    }
}

#[tokio::test]
async fn silent_and_idle_connections_end_at_their_deadlines() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(baseline.address);
    let proxy = setup
        .top("timeouts: { firstByte: 400ms, keepAlive: 400ms }")
        .start()
        .await;
    let start = Instant::now();
    let mut silent = raw::connect(proxy.http()).await;
    within("the end of a silent one", silent.rest()).await;
    assert!(start.elapsed() > Duration::from_millis(350));

    let mut idle = raw::connect(proxy.http()).await;
    let answer = idle.ask(&Request::get("/").header("host", "a")).await;
    assert_eq!(answer.expect("an answer").status, 200);
    let start = Instant::now();
    let (bytes, _) = within("the end of an idle one", idle.rest()).await;
    assert!(bytes.is_empty() && start.elapsed() > Duration::from_millis(350));
}

#[tokio::test]
async fn http_1_0_closes_unless_asked_to_stay() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut stays = raw::connect(proxy.http()).await;
    for _ in 0..2 {
        stays
            .send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            .await
            .expect("open");
        let answer = within("an answer", stays.answer("GET"))
            .await
            .expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection").as_deref(), Some("keep-alive"));
    }

    let mut closes = raw::connect(proxy.http()).await;
    closes.send("GET / HTTP/1.0\r\n\r\n").await.expect("open");
    let answer = within("an answer", closes.answer("GET"))
        .await
        .expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(within("the end", closes.rest()).await.0.is_empty());
}
