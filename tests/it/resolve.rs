//! `resolve`, as a person types it and as a pipeline's step calls it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::awaited::{stderr, stdout};
use crate::support::proxy::binary;

const VARIABLES: [&str; 6] = [
    "STACK_FILE",
    "CHANGED_APP",
    "PR_NUMBER",
    "SESSION",
    "RESULTS_DIR",
    "STACK_JSON_FILE",
];

const RESULTS: [&str; 6] = [
    "app-list",
    "build-apps",
    "entry-app",
    "intercept-header-value",
    "propagation-chain",
    "stack-json",
];

/// Calls the binary in the repository's folder, where none of its variables is set but these.
fn resolve(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("resolve")
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .expect("the binary can be started")
}

/// What was printed, by a call that went well.
fn resolved(arguments: &[&str], variables: &[(&str, &str)]) -> Value {
    let output = resolve(arguments, variables);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    serde_json::from_str(&stdout(&output)).expect("JSON")
}

/// What a call was refused with; nothing was printed.
fn refused(arguments: &[&str], variables: &[(&str, &str)], code: i32) -> String {
    let output = resolve(arguments, variables);
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    stderr(&output)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a writable temp folder")
}

/// Apps in a row, enough to need more room than a step's results have.
fn long_row(apps: usize) -> String {
    let app = |index: usize| {
        let downstream = if index + 1 < apps {
            format!("app-number-{}", index + 1)
        } else {
            String::new()
        };
        format!(
            "  - {{ name: app-number-{index}, role: middleware, build: {{ tool: npm, build-command: \"npm ci && npm run build\" }}, downstream: [{downstream}] }}\n"
        )
    };
    format!(
        "name: row\napps:\n{}",
        (0..apps).map(app).collect::<String>()
    )
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("readable");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn the_example_means_what_its_comments_say() {
    let arguments = [
        "config/stacks/stack-one.yaml",
        "--changed-app",
        "shop-api",
        "--pr-number",
        "42",
    ];
    let output = resolve(&arguments, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stacks/stack-one.printed");
    // BLESS=1 writes what is printed now; read the difference before you commit it.
    if std::env::var_os("BLESS").is_some() {
        fs::write(&golden, &output.stdout).expect("writable");
    }
    assert_eq!(
        stdout(&output),
        fs::read_to_string(golden).expect("a golden file")
    );
}

#[test]
fn without_a_pull_request_all_is_built_and_there_is_no_session() {
    let value = resolved(&["config/stacks/stack-one.yaml"], &[]);
    assert_eq!(value["app-list"], "shop-web shop-api shop-db-api");
    assert_eq!(value["build-apps"], value["app-list"]);
    assert_eq!(value["propagation-chain"], value["app-list"]);
    assert_eq!(value["entry-app"], "shop-web");
    assert_eq!(value["intercept-header-value"], "");
    assert!(value["stack-json"].is_object());
}

#[test]
fn a_pipeline_says_it_all_in_variables_and_what_is_empty_is_not_set() {
    let stack = ("STACK_FILE", "config/stacks/stack-one.yaml");
    let value = resolved(
        &[],
        &[stack, ("CHANGED_APP", "shop-web"), ("PR_NUMBER", "7")],
    );
    assert_eq!(value["build-apps"], "shop-web");
    assert_eq!(value["intercept-header-value"], "x-dev-session:pr-7");

    let value = resolved(&[], &[stack, ("SESSION", "anna"), ("PR_NUMBER", "7")]);
    assert_eq!(value["intercept-header-value"], "x-dev-session:anna");

    let empty = [
        "CHANGED_APP",
        "PR_NUMBER",
        "SESSION",
        "RESULTS_DIR",
        "STACK_JSON_FILE",
    ];
    let mut variables = vec![stack];
    variables.extend(empty.map(|name| (name, "")));
    let value = resolved(&[], &variables);
    assert_eq!(value["build-apps"], value["app-list"]);
    assert_eq!(value["intercept-header-value"], "");
}

#[test]
fn what_it_prints_as_the_stack_is_a_stack() {
    let folder = folder();
    let first = resolved(&["config/stacks/stack-one.yaml"], &[]);
    let path = folder.path().join("stack.json");
    fs::write(&path, first["stack-json"].to_string()).expect("writable");
    assert_eq!(resolved(&[text(&path)], &[]), first);
}

#[test]
fn every_value_becomes_a_file_without_a_line_break() {
    let folder = folder();
    let arguments = [
        "config/stacks/stack-one.yaml",
        "--results-dir",
        text(folder.path()),
    ];
    let value = resolved(&arguments, &[]);
    assert_eq!(names(folder.path()), RESULTS);
    for name in RESULTS {
        let written = fs::read_to_string(folder.path().join(name)).expect("UTF-8");
        if name == "stack-json" {
            let stack: Value = serde_json::from_str(&written).expect("JSON");
            assert_eq!(stack, value[name]);
            assert!(!written.contains(['\n', '\r']), "{written}");
        } else {
            assert_eq!(written, value[name].as_str().expect("a text"));
        }
    }
}

#[test]
fn values_that_do_not_fit_are_refused_before_anything_is_written() {
    let folder = folder();
    let stack = folder.path().join("row.yaml");
    fs::write(&stack, long_row(30)).expect("writable");
    let results = folder.path().join("results");
    fs::create_dir(&results).expect("writable");
    let arguments = [text(&stack), "--results-dir", text(&results)];

    let told = refused(&arguments, &[], 2);

    assert!(
        told.starts_with("--results-dir: the values need "),
        "{told}"
    );
    assert!(
        told.contains("of the 4096 bytes") && told.contains("(stack-json "),
        "{told}"
    );
    assert!(told.contains("--stack-json-file"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(names(&results), Vec::<String>::new());

    // The remedy works: the stack goes to a file, its result stays empty.
    let file = folder.path().join("stack.json");
    let value = resolved(&arguments, &[("STACK_JSON_FILE", text(&file))]);
    assert_eq!(names(&results), RESULTS);
    assert_eq!(fs::read(results.join("stack-json")).expect("readable"), b"");
    let written: Value = serde_json::from_slice(&fs::read(&file).expect("readable")).expect("JSON");
    assert_eq!(written, value["stack-json"]);
    assert_eq!(resolved(&[text(&file)], &[]), value);
}

#[test]
fn even_names_alone_may_be_too_many() {
    let folder = folder();
    let stack = folder.path().join("row.yaml");
    fs::write(&stack, long_row(150)).expect("writable");
    let results = folder.path().join("results");
    fs::create_dir(&results).expect("writable");
    let file = folder.path().join("stack.json");

    let told = refused(
        &[
            text(&stack),
            "--results-dir",
            text(&results),
            "--stack-json-file",
            text(&file),
        ],
        &[],
        2,
    );

    assert!(
        told.contains("app-list ") && told.contains("split the stack"),
        "{told}"
    );
    assert_eq!(names(folder.path()), ["results", "row.yaml"]);
    assert_eq!(names(&results), Vec::<String>::new());
}

#[test]
fn what_makes_no_sense_is_exit_code_2_with_the_remedy() {
    let stack = "config/stacks/stack-one.yaml";
    let long = "x".repeat(1 << 16);
    for (arguments, expected) in [
        (&[][..], "STACK_FILE"),
        (
            &["nowhere.yaml"],
            "cannot read the stack nowhere.yaml: no such file",
        ),
        (&["tests/data/stacks"], "it is a directory"),
        (
            &["tests/data/stacks/bad-graph.yaml"],
            "bad-graph.yaml:5:29: apps[2].downstream[0]: apps call each other in a circle: a -> b -> c -> a",
        ),
        (
            &[stack, "--changed-app", "shop-apo"],
            "--changed-app: \"shop-apo\" is no app of this stack; did you mean \"shop-api\"?",
        ),
        (
            &[stack, "--changed-app", "$(id)"],
            "known are shop-web, shop-api, shop-db-api",
        ),
        (
            &[stack, "--pr-number", "forty-two"],
            "--pr-number: \"forty-two\" is not the number",
        ),
        (&[stack, "--pr-number=-1"], "--pr-number: \"-1\""),
        (&[stack, "--pr-number", "042"], "write for example 42"),
        (
            &[stack, "--session", "Anna's"],
            "--session: the session \"Anna's\" is not a name",
        ),
        (&[stack, "--session", "session-proxy-probe"], "reserved"),
        (&[stack, "--session", &long], "a name has at most 63"),
        (&[stack, "--changed-app", &long], "is no app of this stack"),
        (
            &[
                stack,
                "--session",
                "a-very-long-session-that-nobody-would-ever-type-in",
            ],
            "choose a session of at most",
        ),
    ] {
        let told = refused(arguments, &[], 2);
        assert!(told.contains(expected), "{expected}\n{told}");
        assert!(told.lines().all(|line| line.len() < 900), "{told}");
    }
}

#[test]
fn a_variable_is_named_when_it_is_the_culprit() {
    let told = refused(
        &["config/stacks/stack-one.yaml"],
        &[("CHANGED_APP", "nobody"), ("PR_NUMBER", "x")],
        2,
    );
    assert!(
        told.contains("CHANGED_APP: \"nobody\"") && told.contains("PR_NUMBER: \"x\""),
        "{told}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_exit_code_1() {
    let stack = "config/stacks/stack-one.yaml";
    for arguments in [
        [stack, "--results-dir", "/nowhere/results"],
        [stack, "--stack-json-file", "/nowhere/stack.json"],
    ] {
        let told = refused(&arguments, &[], 1);
        assert!(
            told.starts_with("error: cannot write the ") && told.contains("/nowhere/"),
            "{told}"
        );
    }
}
