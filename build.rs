//! Tells the program which commit it was built from.

use std::process::Command;

fn main() {
    // An image build has no repository at hand and passes the commit instead.
    println!("cargo::rerun-if-env-changed=SESSION_PROXY_COMMIT");
    let given = std::env::var("SESSION_PROXY_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = given
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=SESSION_PROXY_COMMIT={commit}");
    // The log of HEAD grows with every commit and checkout; HEAD itself only names a branch.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
