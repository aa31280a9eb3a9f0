//! Stack files that load, ones that do not, and whatever else anyone may write.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder("tests/data/stacks")).expect("a folder");
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().expect("a file").to_string_lossy();
        name.starts_with(prefix) && (name.ends_with(".yaml") || name.ends_with(".json"))
    };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(is_wanted)
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no {prefix}*");
    files
}

fn parsed(path: &Path) -> Result<Stack, String> {
    let name = path.file_name().expect("a file").to_string_lossy();
    let bytes = std::fs::read(path).expect("readable");
    Stack::parse(&name, &bytes).map_err(|problems| told(&problems))
}

fn told(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("{problem}\n"));
    lines.collect()
}

fn names(apps: &[&App]) -> String {
    let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
    names.join(" ")
}

/// `BLESS=1 cargo test stack::` writes what comes out now; read the difference before you commit it.
fn compare(text: &str, golden: &Path) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(golden, text).expect("writable");
    }
    let expected = std::fs::read_to_string(golden).expect("a golden file");
    assert_eq!(text, expected, "{}", golden.display());
}

#[test]
fn good_files_load_and_come_back_from_json_as_the_same() {
    let mut files = files("good-");
    files.push(folder("config/stacks/stack-one.yaml"));
    for path in files {
        let stack =
            parsed(&path).unwrap_or_else(|problems| panic!("{}:\n{problems}", path.display()));
        let json = stack.to_json();

        let again = Stack::parse("again", json.as_bytes()).map_err(|problems| told(&problems));

        assert_eq!(again.as_ref(), Ok(&stack), "{}", path.display());
        assert_eq!(again.map(|stack| stack.to_json()), Ok(json));
    }
}

#[test]
fn json_has_everything_filled_in() {
    for name in ["good-field", "good-minimal", "good-null", "good-roots"] {
        let path = files(name).remove(0);
        let stack = parsed(&path).expect("good");
        let pretty = serde_json::to_string_pretty(&stack).expect("JSON") + "\n";
        compare(&pretty, &path.with_extension("resolved"));
    }
}

#[test]
fn bad_files_tell_every_problem_at_its_place() {
    for path in files("bad-") {
        let problems = parsed(&path).expect_err("bad");
        compare(&problems, &path.with_extension("problems"));
    }
}

#[test]
fn of_several_roots_the_first_in_the_file_is_the_entry() {
    let stack = parsed(&folder("tests/data/stacks/good-roots.yaml")).expect("good");
    assert_eq!(names(&stack.order()), "first second middle shared lonely");
    assert_eq!(stack.entry().name, "first");
    assert_eq!(names(&stack.chain()), "first middle shared");
    assert_eq!(
        stack.app("lonely").map(|app| app.ports[0].protocol),
        Some(AppProtocol::Grpc)
    );
    assert_eq!(stack.app("nobody"), None);
}

#[test]
fn hostile_files_are_refused_in_few_words() {
    let apps = |each: &dyn Fn(usize) -> String, count: usize| {
        let apps: String = (0..count)
            .map(|index| format!("- {}\n", each(index)))
            .collect();
        format!("name: x\napps:\n{apps}")
    };
    let all: Vec<String> = (0..1000).map(|index| format!("a{index}")).collect();
    let all = all.join(",");
    let dense = apps(
        &|index| format!("{{name: a{index}, downstream: [{all}]}}"),
        150,
    );
    let strangers = (0..60_000)
        .map(|index| format!("shop-{index}"))
        .collect::<Vec<_>>()
        .join(", ");
    for (what, text) in [
        ("large", "#".repeat(2 << 20)),
        (
            "unknown keys",
            (0..60_000).map(|key| format!("k{key}: 1\n")).collect(),
        ),
        (
            "many apps",
            apps(&|index| format!("name: a{index}"), 50_000),
        ),
        ("one name", apps(&|_| "name: a".to_owned(), 1000)),
        ("dense", dense),
        (
            "strangers",
            format!("name: x\napps: [{{name: a, downstream: [{strangers}]}}]"),
        ),
        (
            "large when filled in",
            apps(
                &|index| format!("{{name: a{index}, repo: {}}}", "x".repeat(1000)),
                1000,
            ),
        ),
        ("long name", format!("name: {}\n", "x".repeat(1 << 19))),
        ("long key", format!("? {}\n: 1\n", "x".repeat(900))),
        (
            "deep build",
            format!(
                "name: x\napps: [{{name: a, build: {{a: {}}}}}]",
                "[".repeat(100_000)
            ),
        ),
        ("nothing but lines", "\n".repeat(1 << 20)),
        ("zeros", "\0".repeat(1 << 20)),
    ] {
        let problems = Stack::parse(what, text.as_bytes()).expect_err(what);
        assert!(problems.len() <= 101, "{what}: {}", problems.len());
        for problem in problems {
            let line = problem.to_string();
            assert!(line.len() < 800 && !line.contains('\n'), "{what}: {line}");
        }
    }
}

/// Who calls whom, as pairs of caller and callee with the caller first, and an order in which the
/// apps are written.
fn any_graph() -> impl Strategy<Value = (Vec<usize>, Vec<(usize, usize)>)> {
    (1..12_usize).prop_flat_map(|apps| {
        let order = Just((0..apps).collect::<Vec<_>>()).prop_shuffle();
        let calls = prop::collection::btree_set((0..apps, 0..apps), 0..30).prop_map(|calls| {
            let forward = calls.into_iter().filter(|(caller, callee)| caller < callee);
            forward.collect()
        });
        (order, calls)
    })
}

fn written(order: &[usize], calls: &[(usize, usize)]) -> Result<Stack, String> {
    let app = |app: &usize| {
        let callees = calls.iter().filter(|(caller, _)| caller == app);
        let callees: Vec<String> = callees.map(|(_, callee)| format!("a{callee}")).collect();
        format!("- {{name: a{app}, downstream: [{}]}}\n", callees.join(", "))
    };
    let apps: String = order.iter().map(app).collect();
    Stack::parse("any", format!("name: x\napps:\n{apps}").as_bytes())
        .map_err(|problems| told(&problems))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn callers_stand_before_callees((order, calls) in any_graph()) {
        let stack = written(&order, &calls).expect("no way leads back");

        let list = names(&stack.order());
        let place = |app: usize| list.split(' ').position(|name| name == format!("a{app}"));
        prop_assert_eq!(list.split(' ').count(), order.len());
        for (caller, callee) in calls {
            prop_assert!(place(caller) < place(callee), "{} calls {}: {}", caller, callee, list);
        }
    }

    #[test]
    fn the_chain_is_what_the_entry_reaches((order, calls) in any_graph()) {
        let stack = written(&order, &calls).expect("no way leads back");

        let entry = stack.entry().name.clone();
        let is_called = |app: &App| stack.apps.iter().any(|caller| caller.downstream.contains(&app.name));
        prop_assert_eq!(stack.apps.iter().find(|app| !is_called(app)), stack.app(&entry));
        let mut reached = vec![entry];
        for app in stack.order() {
            if reached.contains(&app.name) {
                reached.extend(app.downstream.iter().cloned());
            }
        }
        reached.sort();
        reached.dedup();
        let mut chain: Vec<String> = stack.chain().iter().map(|app| app.name.clone()).collect();
        chain.sort();
        prop_assert_eq!(chain, reached);
    }

    /// A way there and a call back, wherever they stand in whatever else there is.
    #[test]
    fn a_circle_is_always_found((order, mut calls) in any_graph(), from in 0..12_usize, to in 0..12_usize) {
        let (from, to) = (from % order.len(), to % order.len());
        let (first, last) = (from.min(to), from.max(to));
        calls.extend((first..last).map(|app| (app, app + 1)));
        calls.push((last, first));
        calls.sort_unstable();
        calls.dedup();

        let told = written(&order, &calls).expect_err("a way leads back");

        let expected = if first == last { "cannot call itself" } else { "in a circle: " };
        prop_assert!(told.contains(expected), "{}", told);
    }

    #[test]
    fn any_text_comes_back_from_json_as_it_was(description in any_text(), value in any_text(), key in any_text()) {
        let text = serde_json::json!({
            "name": "x", "description": description,
            "apps": [{ "name": "a", "build": { (key): value } }],
        });
        let stack = Stack::parse("first", text.to_string().as_bytes()).map_err(|problems| told(&problems));
        let stack = stack.expect("good");
        prop_assert_eq!(stack.description.as_deref(), Some(description.as_str()));
        let again = Stack::parse("again", stack.to_json().as_bytes()).map_err(|problems| told(&problems));
        prop_assert_eq!(again, Ok(stack));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Stack::parse("any", &bytes);
    }

    /// Bytes at random are hardly ever a stack; these mostly are something like it.
    #[test]
    fn any_pieces_of_a_file_are_read_or_refused(pieces in prop::collection::vec(piece(), 0..40)) {
        if let Err(problems) = Stack::parse("any", pieces.concat().as_bytes()) {
            prop_assert!(!problems.is_empty());
        }
    }
}

/// With line breaks, marks of direction, and separators that some readers take for line breaks.
fn any_text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        '\n', '\r', '\t', '\u{2028}', '\u{202e}', '"', '\\', ' ', '#',
    ]);
    let character = prop_oneof![3 => any::<char>(), 1 => special];
    prop::collection::vec(character, 0..20)
        .prop_map(String::from_iter)
        .prop_filter("printable", |text: &String| values::printable(text).is_ok())
}

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "name",
        "apps",
        "propagation",
        "defaults",
        "downstream",
        "ports",
        "container-port",
        "target",
        "build",
        "tests",
        "role",
        "a",
        "b",
        "8080",
        "grpc",
        "pod/a",
        "~",
        "&a ",
        "*a",
        "<<",
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\"",
        "'",
        "|\n",
        "? ",
        "!!str ",
        "---\n",
        "# x\n",
        "\t",
        "null",
        "é",
    ])
}
