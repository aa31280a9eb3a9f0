//! What mirrord's layer relies on: every socket call goes through libc, every address is bound once.

use std::path::Path;
use std::process::Command;

use crate::support::eventually;
use crate::support::proxy::Setup;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;

/// Builds the library that counts; `None` without a C compiler.
fn library(folder: &Path) -> Option<std::path::PathBuf> {
    let library = folder.join("count.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/layer/count.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .status();
    match built {
        Ok(status) => {
            assert!(status.success(), "count.c does not compile");
            Some(library)
        }
        Err(error) => {
            eprintln!("SKIPPED: no C compiler to build the counting library with: {error}");
            None
        }
    }
}

#[tokio::test]
async fn every_socket_goes_through_libc_and_every_address_is_bound_once() {
    let folder = tempfile::tempdir().expect("a writable temp folder");
    let Some(library) = library(folder.path()) else {
        return;
    };
    let log = folder.path().join("calls");
    let baseline = Upstream::plain("baseline").await;
    let proxy = Setup::new()
        .yaml(&format!(
            "listeners:\n  - {{ name: http, address: \"127.0.0.1:0\", baseline: \"{0}\" }}\n  \
             - {{ name: db, address: \"127.0.0.1:0\", protocol: tcp, target: \"{0}\" }}\n",
            baseline.address
        ))
        .env("LD_PRELOAD", library.to_str().expect("a plain path"))
        .env("COUNT_LOG", log.to_str().expect("a plain path"))
        .flag("--workers=2")
        .start()
        .await;
    let calls = || std::fs::read_to_string(&log).unwrap_or_default();
    let count = |call: &str, port: u16| {
        let wanted = format!("{call} {port}");
        calls().lines().filter(|line| **line == wanted).count()
    };
    let listeners =
        [proxy.addr("http"), proxy.addr("db"), proxy.admin()].map(|address| address.port());

    for _ in 0..5 {
        let answer = Way::Direct
            .send(proxy.addr("http"), Request::get("/"))
            .await;
        assert_eq!(answer.served_by(), "baseline");
    }
    let answer = Way::Direct.send(proxy.addr("db"), Request::get("/")).await;
    assert_eq!(answer.served_by(), "baseline");
    assert_eq!(proxy.ask_admin("/readyz").await.status, 200);

    for port in listeners {
        assert_eq!(
            (count("bind", port), count("listen", port)),
            (1, 1),
            "{}",
            calls()
        );
    }
    assert_eq!(
        calls()
            .lines()
            .filter(|line| line.starts_with("bind "))
            .count(),
        3
    );
    for (port, accepted) in listeners.into_iter().zip([5, 1, 1]) {
        eventually("all are seen", || count("accept", port) == accepted).await;
    }
    assert_eq!(
        count("connect", baseline.address.port()),
        baseline.connections(),
        "{}",
        calls()
    );
}
