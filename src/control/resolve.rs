//! `resolve`: what a stack file means for one pull request, for people and as results of a pipeline.

mod results;

use anyhow::Context;
use serde::Serialize;

use self::results::Results;
use super::Failure;
use super::pull_request::{pod_names_fit, session};
use super::stack::{App, Stack};
use crate::cli::cluster::Resolve;
use crate::config::{Place, Problem, Text};
use crate::sources::{given, given_path};
use crate::yaml::shortened;

/// What is printed, and under which names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Resolved<'s> {
    /// Callers before callees.
    app_list: String,
    entry_app: &'s str,
    /// From the entry, depth first.
    propagation_chain: String,
    build_apps: String,
    /// Empty when nobody named a session.
    intercept_header_value: String,
    stack_json: &'s Stack,
}

/// What is to be printed. Values are also written to files when that is asked for, but none of them when
/// one of them does not fit.
///
/// # Errors
/// The stack or what was typed makes no sense, values do not fit into results, or cannot be written.
pub fn resolve(arguments: &Resolve) -> Result<String, Failure> {
    let stack = read(arguments).map_err(Failure::Usage)?;
    let resolved = judge(arguments, &stack).map_err(Failure::Usage)?;
    let stack_file = given_path(arguments.stack_json_file.as_deref());
    let folder = given_path(arguments.results_dir.as_deref());
    let results = Results::of(&resolved, stack_file.is_some());
    if folder.is_some() {
        let unfit = |message| vec![problem(Place::Flag("--results-dir"), message)];
        results
            .fit()
            .map_err(|message| Failure::Usage(unfit(message)))?;
    }
    if let Some(path) = stack_file {
        let written = std::fs::write(path, stack.to_json());
        written.with_context(|| format!("cannot write the stack to {}", path.display()))?;
    }
    if let Some(folder) = folder {
        results.write(folder)?;
    }
    let text = serde_json::to_string_pretty(&resolved).context("cannot write JSON")?;
    Ok(text + "\n")
}

fn read(arguments: &Resolve) -> Result<Stack, Vec<Problem>> {
    match given_path(arguments.stack_file.as_deref()) {
        Some(path) => Stack::read(path),
        None => Err(vec![problem(
            Place::BuiltIn,
            "which stack? write session-proxy resolve FILE, or set STACK_FILE".to_owned(),
        )]),
    }
}

fn judge<'s>(arguments: &Resolve, stack: &'s Stack) -> Result<Resolved<'s>, Vec<Problem>> {
    let mut problems = Vec::new();
    let order = stack.order();
    let build = changed(arguments, stack)
        .map_err(|problem| problems.push(problem))
        .unwrap_or_default()
        .map_or_else(|| order.clone(), |app| vec![app]);
    let session = named_session(arguments)
        .map_err(|problem| problems.push(problem))
        .unwrap_or_default();
    if let Some((place, session)) = &session {
        let unfit = build
            .iter()
            .filter_map(|app| pod_names_fit(&app.name, session).err());
        problems.extend(unfit.map(|message| problem(*place, message)));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Resolved {
        app_list: joined(&order),
        entry_app: &stack.entry().name,
        propagation_chain: joined(&stack.chain()),
        build_apps: joined(&build),
        intercept_header_value: session.map_or(String::new(), |(_, session)| {
            format!("{}:{session}", stack.propagation.header_name)
        }),
        stack_json: stack,
    })
}

/// The changed app; `None` when all are built.
fn changed<'s>(arguments: &Resolve, stack: &'s Stack) -> Result<Option<&'s App>, Problem> {
    let name = given(
        arguments.changed_app.as_deref(),
        "--changed-app",
        "CHANGED_APP",
    );
    let Some(Text { value, place }) = name else {
        return Ok(None);
    };
    let app = stack.app(&value);
    app.map(Some)
        .ok_or_else(|| problem(place, stack.unknown_app(&value)))
}

/// The session and where it was named.
fn named_session(arguments: &Resolve) -> Result<Option<(Place, String)>, Problem> {
    if let Some(text) = given(arguments.session.as_deref(), "--session", "SESSION") {
        let session = session(&text.value).map_err(|message| problem(text.place, message))?;
        return Ok(Some((text.place, session)));
    }
    let Some(number) = given(arguments.pr_number.as_deref(), "--pr-number", "PR_NUMBER") else {
        return Ok(None);
    };
    let is_number = number.value.bytes().all(|byte| byte.is_ascii_digit())
        && !number.value.starts_with('0')
        && number.value.len() < 20;
    if !is_number {
        let message = format!(
            "{:?} is not the number of a pull request; write for example 42",
            shortened(&number.value)
        );
        return Err(problem(number.place, message));
    }
    Ok(Some((number.place, format!("pr-{}", number.value))))
}

fn joined(apps: &[&App]) -> String {
    let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
    names.join(" ")
}

fn problem(place: Place, message: String) -> Problem {
    Problem {
        file: None,
        place,
        path: String::new(),
        message,
    }
}
