//! kubectl, as an operator types it, in the folder of this repository.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::cluster::Cluster;
use super::run::Ended;

/// The variable that names the program.
const VARIABLE: &str = "SESSION_PROXY_TEST_KUBECTL";

/// The program: that of our images, built for these tests.
pub fn program() -> PathBuf {
    let named = std::env::var_os(VARIABLE);
    named
        .unwrap_or_else(|| {
            panic!("{VARIABLE} names no kubectl: use tests/cluster/run, or what tests/cluster/kubectl prints")
        })
        .into()
}

/// Runs it as the administrator, to its end.
pub async fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Ended {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        // `kubectl diff` calls diff.
        .env("PATH", "/usr/bin:/bin")
        .env("KUBECONFIG", cluster.kubeconfig())
        // Without a home its cache would be here.
        .env(
            "KUBECACHEDIR",
            cluster.kubeconfig().with_file_name("kubectl"),
        )
        .stdin(Stdio::null());
    run(command).await
}

/// Runs any program to its end.
pub async fn run(mut command: Command) -> Ended {
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.expect("running a program does not panic");
    let output = output.expect("the program is there");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
