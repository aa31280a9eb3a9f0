//! The matcher against a second reading of the same rules.
//!
//! The oracles here are written to be plainly right and unlike what they judge: baggage is read by
//! a machine that looks at one character at a time and copies everything, a table is a list that
//! is searched from end to end.
//!
//! A million inputs come from a generator that is fast without optimization, each from its own
//! number; proptest adds new ones at every run and shrinks what fails.

use std::collections::BTreeSet;

use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use proptest::sample::select;

use session_proxy::matcher::{Claim, Rule, SessionRule, TableBuilder};

const SESSION: HeaderName = HeaderName::from_static("x-dev-session");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const KEY: &str = "dev-session";

/// A request head as far as the matcher looks at it.
type Head = Vec<(HeaderName, Vec<u8>)>;

#[test]
fn claims_of_a_million_heads_are_those_of_the_oracle() {
    const HEADS: u64 = 1_000_000;

    let mut seen = Tally::default();
    for number in 0..HEADS {
        let head = generate::head(&mut Rng::with_seed(number));

        let expected = oracle::claim(&head);
        assert_eq!(
            claim(&head),
            expected,
            "head number {number}: {}",
            shown(&head)
        );

        seen.count(&expected);
    }

    // A generator that has gone astray agrees with everything.
    let least = seen
        .none
        .min(seen.sessions)
        .min(seen.conflicts)
        .min(seen.malformed);
    assert!(
        least > HEADS / 20,
        "some answer is hardly ever asked for: {seen:?}"
    );
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn claims_of_fragments_in_any_order_are_those_of_the_oracle(head in any_head()) {
        prop_assert_eq!(claim(&head), oracle::claim(&head), "{}", shown(&head));
    }
}

proptest! {
    // Patterns are slow to compile without optimization: few tables, many names each.
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_lookup_finds_what_a_linear_search_finds(
        rules in prop::collection::vec(any_rule(), 0..12),
        names in prop::collection::vec("[ab]{0,5}", 20),
    ) {
        let mut builder = TableBuilder::new();
        for (place, rule) in rules.iter().enumerate() {
            match rule {
                Written::Exact(name) => builder.exact(name, place),
                Written::Prefix(prefix) => builder.prefix(prefix, place),
                Written::Regex(pattern, _) => builder.regex(pattern, place).expect("a good pattern"),
            }
        }
        let table = builder.build().expect("a few small patterns");

        for name in &names {
            let expected = oracle::lookup(&rules, name);
            prop_assert_eq!(table.find(name).copied(), expected, "{:?}", name);

            let rule = table.lookup(name).map(|found| written(found.rule, name));
            prop_assert_eq!(rule, expected.map(|place| rules[place].to_string()), "{:?}", name);
        }
    }
}

fn cases(cases: u32) -> ProptestConfig {
    // What fails becomes a named case beside the code, not a seed in a file.
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What the matcher says of `head`, in the words of the oracle.
fn claim(head: &Head) -> oracle::Claim {
    let rule = SessionRule {
        header: SESSION,
        baggage_key: Some(KEY.into()),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in head {
        headers.append(
            name,
            HeaderValue::from_bytes(value).expect("no control bytes"),
        );
    }
    match rule.claim(&headers) {
        Claim::None => oracle::Claim::None,
        Claim::Session(name) => oracle::Claim::Session(name.into_owned()),
        Claim::Conflict => oracle::Claim::Conflict,
        Claim::Malformed => oracle::Claim::Malformed,
    }
}

/// `head` as one would write it down.
fn shown(head: &Head) -> String {
    head.iter()
        .map(|(name, value)| format!("\n  {name}: {}", value.escape_ascii()))
        .collect()
}

fn written(rule: Rule<'_>, name: &str) -> String {
    match rule {
        Rule::Exact => name.to_owned(),
        Rule::Prefix(written) | Rule::Regex(written) => written.to_owned(),
    }
}

/// How often each answer was expected.
#[derive(Debug, Default)]
struct Tally {
    none: u64,
    sessions: u64,
    conflicts: u64,
    malformed: u64,
}

impl Tally {
    fn count(&mut self, claim: &oracle::Claim) {
        match claim {
            oracle::Claim::None => self.none += 1,
            oracle::Claim::Session(_) => self.sessions += 1,
            oracle::Claim::Conflict => self.conflicts += 1,
            oracle::Claim::Malformed => self.malformed += 1,
        }
    }
}

/// A rule as someone wrote it; a pattern comes with what it means.
#[derive(Debug, Clone)]
enum Written {
    Exact(String),
    Prefix(String),
    Regex(&'static str, fn(&str) -> bool),
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Regex(pattern, _) => write!(f, "~{pattern}"),
        }
    }
}

/// Few letters and short names, so that rules meet.
fn any_rule() -> impl Strategy<Value = Written> {
    let patterns: Vec<Written> = vec![
        Written::Regex("a.*", |name| name.starts_with('a')),
        Written::Regex(".*b", |name| name.ends_with('b')),
        Written::Regex("a|ab", |name| name == "a" || name == "ab"),
        Written::Regex("(?i)BA+", |name| {
            name.len() > 1 && name.strip_prefix('b').is_some_and(is_all_a)
        }),
        Written::Regex(r"\w{3}", |name| name.len() == 3),
        Written::Regex("", |name| name.is_empty()),
    ];
    prop_oneof![
        "[ab]{1,5}".prop_map(Written::Exact),
        "[ab]{0,4}".prop_map(Written::Prefix),
        select(patterns),
    ]
}

fn is_all_a(text: &str) -> bool {
    text.chars().all(|letter| letter == 'a')
}

/// Fields made of the pieces that matter, put together without any grammar.
fn any_head() -> impl Strategy<Value = Head> {
    let fragments: Vec<&'static [u8]> = vec![
        b"dev-session",
        b"dev-session=",
        b"dev-session=pr-1",
        b"pr-1",
        b"pr-2",
        b"p",
        b"=",
        b",",
        b";",
        b" ",
        b"\t",
        b"%",
        b"%2",
        b"%2d",
        b"%2D",
        b"%31",
        b"%20",
        b"%2C",
        b"%ff",
        b"\xff",
        b"\"",
        b"\\",
        b"a=b",
    ];
    let value = prop::collection::vec(select(fragments), 0..10).prop_map(|pieces| pieces.concat());
    prop::collection::vec((select(vec![SESSION, BAGGAGE, BAGGAGE]), value), 0..4)
}

/// Heads that are nearly right: what senders write, and what they get wrong.
mod generate {
    use super::*;

    pub(super) fn head(rng: &mut Rng) -> Head {
        let mut head = Head::new();
        // One name is said again and again, so that values agree as often as not.
        let usual = session(rng);
        for _ in 0..pick(rng, &[0, 0, 0, 1, 1, 2]) {
            let name = if rng.u8(..) < 200 {
                usual.clone()
            } else {
                session(rng)
            };
            head.push((SESSION, in_blanks(rng, &name)));
        }
        for _ in 0..pick(rng, &[0, 1, 1, 1, 2, 3]) {
            head.push((BAGGAGE, baggage(rng, &usual)));
        }
        head
    }

    /// The text that a session header has.
    fn session(rng: &mut Rng) -> Vec<u8> {
        match rng.u8(..32) {
            0 => Vec::new(),
            1 => b"pr 42".to_vec(),
            2 => "pr-\u{e9}".as_bytes().to_vec(),
            3 => vec![b'p', rng.u8(0x80..)],
            4 => vec![b'a'; rng.usize(250..258)],
            5 => b"a=b==".to_vec(),
            6 => b"100%41%".to_vec(),
            7 => b"pr-1, pr-2".to_vec(),
            _ => format!("pr-{}", rng.u8(..3)).into_bytes(),
        }
    }

    fn baggage(rng: &mut Rng, usual: &[u8]) -> Vec<u8> {
        let mut field = Vec::new();
        for place in 0..pick(rng, &[0, 1, 1, 2, 3, 4]) {
            if place > 0 {
                field.push(b',');
            }
            let member = match rng.u8(..8) {
                0..=2 => ours(rng, usual),
                3..=5 => other(rng),
                _ => broken(rng),
            };
            field.extend(in_blanks(rng, &member));
        }
        field
    }

    fn ours(rng: &mut Rng, usual: &[u8]) -> Vec<u8> {
        let name = if rng.u8(..) < 200 {
            usual.to_vec()
        } else {
            session(rng)
        };
        let value = encoded(rng, &name);
        member(rng, KEY, &value)
    }

    /// A member whose key is not ours, sometimes by little.
    fn other(rng: &mut Rng) -> Vec<u8> {
        let keys = [
            "userId",
            "dev-sessio",
            "dev-session2",
            "Dev-Session",
            "dev_session",
            "dev%2Dsession",
            "x",
        ];
        let key = pick(rng, &keys);
        let value = pick(rng, &["alice", "DF%2028", "pr-1", "dev-session=pr-2", ""]);
        member(rng, key, value.as_bytes())
    }

    fn member(rng: &mut Rng, key: &str, value: &[u8]) -> Vec<u8> {
        let mut member = in_blanks(rng, key.as_bytes());
        member.push(b'=');
        member.extend(in_blanks(rng, value));
        for _ in 0..pick(rng, &[0, 0, 0, 1, 2]) {
            member.push(b';');
            let property = pick(
                rng,
                &["p", "p=1", "dev-session=pr-2", "", "=", "p = %2C", "\""],
            );
            member.extend(in_blanks(rng, property.as_bytes()));
        }
        member
    }

    /// What is no member, or only looks like one.
    fn broken(rng: &mut Rng) -> Vec<u8> {
        match rng.u8(..10) {
            0 => b"dev-session".to_vec(),
            1 => b"dev-session;p=pr-2".to_vec(),
            2 => b"=pr-2".to_vec(),
            3 => b"dev-session x=pr-2".to_vec(),
            4 => b"\"dev-session=pr-2\"".to_vec(),
            5 => b"\xffdev-session=pr-2".to_vec(),
            6 => b"dev-session=\"pr-2".to_vec(),
            7 => b";dev-session=pr-2".to_vec(),
            8 => Vec::new(),
            _ => (0..rng.usize(..12)).map(|_| field_byte(rng)).collect(),
        }
    }

    /// Any byte a header may have.
    fn field_byte(rng: &mut Rng) -> u8 {
        match rng.u8(..) {
            0..=31 | 127 => b'\t',
            byte => byte,
        }
    }

    /// `name` with escapes where they are needed, sometimes elsewhere, and sometimes broken.
    fn encoded(rng: &mut Rng, name: &[u8]) -> Vec<u8> {
        let often = pick(rng, &[0, 0, 0, 8, 128]);
        let mut value = Vec::new();
        for &byte in name {
            let must = !byte.is_ascii_graphic() || b"\",;\\%".contains(&byte);
            if (must && rng.u8(..) > 8) || rng.u8(..) < often {
                let escape = if rng.bool() {
                    format!("%{byte:02x}")
                } else {
                    format!("%{byte:02X}")
                };
                value.extend_from_slice(escape.as_bytes());
            } else {
                value.push(byte);
            }
        }
        if rng.u8(..) < 16 {
            value.extend_from_slice(
                pick(
                    rng,
                    &["%", "%4", "%zz", "%%41", "%+1", "%00", "%0a", "%2541"],
                )
                .as_bytes(),
            );
        }
        value
    }

    fn in_blanks(rng: &mut Rng, text: &[u8]) -> Vec<u8> {
        let before = pick(rng, &["", "", "", " ", "\t", " \t "]);
        let after = pick(rng, &["", "", "", " ", "\t", "\t  "]);
        [before.as_bytes(), text, after.as_bytes()].concat()
    }

    fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
        choices[rng.usize(..choices.len())]
    }
}

/// The same answers, found another way.
mod oracle {
    use super::*;

    #[derive(Debug, PartialEq)]
    pub(super) enum Claim {
        None,
        Session(String),
        Conflict,
        Malformed,
    }

    pub(super) fn claim(head: &Head) -> Claim {
        let mut values = BTreeSet::new();
        let mut all_baggage = String::new();
        for (name, value) in head {
            if *name == SESSION {
                values.insert(trimmed(&latin1(value)));
            } else {
                all_baggage += &latin1(value);
                all_baggage.push(',');
            }
        }
        values.extend(values_in(&all_baggage));
        values.remove("");

        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (None, _) => Claim::None,
            (Some(_), Some(_)) => Claim::Conflict,
            (Some(value), None) if is_name(&value) => Claim::Session(value),
            (Some(_), None) => Claim::Malformed,
        }
    }

    fn is_name(value: &str) -> bool {
        value.chars().all(|letter| ('!'..='~').contains(&letter)) && value.chars().count() <= 253
    }

    /// Where in a member the machine stands.
    #[derive(Clone, Copy, PartialEq)]
    enum In {
        Key,
        Value,
        Property,
    }

    /// Every value of ours in `baggage`, in which each member ends with a comma.
    fn values_in(baggage: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut place = In::Key;
        let mut has_value = false;
        let (mut key, mut value) = (String::new(), String::new());
        for letter in baggage.chars() {
            match (place, letter) {
                (_, ',') => {
                    if has_value && trimmed(&key) == KEY {
                        found.push(decoded(&trimmed(&value)));
                    }
                    key.clear();
                    value.clear();
                    has_value = false;
                    place = In::Key;
                }
                (In::Property, _) => {}
                (_, ';') => place = In::Property,
                (In::Key, '=') => {
                    has_value = true;
                    place = In::Value;
                }
                (In::Key, _) => key.push(letter),
                (In::Value, _) => value.push(letter),
            }
        }
        found
    }

    fn decoded(value: &str) -> String {
        let letters: Vec<char> = value.chars().collect();
        let mut decoded = String::new();
        let mut at = 0;
        while at < letters.len() {
            let digit = |offset: usize| {
                letters
                    .get(at + offset)
                    .and_then(|letter| letter.to_digit(16))
            };
            match (letters[at], digit(1), digit(2)) {
                ('%', Some(high), Some(low)) => {
                    decoded.extend(char::from_u32(16 * high + low));
                    at += 3;
                }
                (letter, _, _) => {
                    decoded.push(letter);
                    at += 1;
                }
            }
        }
        decoded
    }

    fn trimmed(text: &str) -> String {
        text.trim_matches([' ', '\t']).to_owned()
    }

    /// One character for each byte, so that bytes can be compared as text.
    fn latin1(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| char::from(*byte)).collect()
    }

    /// The place of the rule that `name` finds, where a later rule that reads the same has taken
    /// the value but not the rank of the earlier one.
    pub(super) fn lookup(rules: &[Written], name: &str) -> Option<usize> {
        let exact = rules
            .iter()
            .rposition(|rule| matches!(rule, Written::Exact(known) if known == name));
        let longest_prefix = || {
            (0..=name.len()).rev().find_map(|length| {
                let prefix = &name[..length];
                rules
                    .iter()
                    .rposition(|rule| matches!(rule, Written::Prefix(known) if known == prefix))
            })
        };
        let first_regex = || {
            let first = rules
                .iter()
                .find(|rule| matches!(rule, Written::Regex(_, matches) if matches(name)))?;
            rules
                .iter()
                .rposition(|rule| rule.to_string() == first.to_string())
        };
        exact.or_else(longest_prefix).or_else(first_regex)
    }
}
