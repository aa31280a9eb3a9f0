//! Answers of upstreams, read by the codec of this house and by hyper's client as its oracle.
//!
//! Random answers, whole and mutilated, in random splits: what ours accepts, hyper accepts as the
//! same; what ours refuses, hyper refuses too, but for the refusals in [`excuse`]; a connection that
//! ours would use again, hyper would use again; and how the bytes were cut matters to none of it.
//!
//! Every answer comes from its own number, and what fails is printed with it, as a line for the
//! table of regressions. `cargo test` reads some thousand; more are read on demand, from another
//! number on if told so:
//!
//! ```text
//! ANSWERS=10000000 FROM=0 cargo test --release --test answers
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fastrand::Rng;
use http::{HeaderMap, Method, Request, StatusCode, Version, header, response};
use http_body::{Body, Frame};
use http_body_util::Empty;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use session_proxy::http1::{BodyError, Connection, Nonsense, Posting, SendError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read by `cargo test`.
const FEW: u64 = 4_000;

#[test]
fn random_answers_are_read_as_the_oracle_reads_them() {
    let from = number("FROM").unwrap_or(0);
    let answers = number("ANSWERS").unwrap_or(FEW);
    let mut tally = Tally::default();
    for number in from..from + answers {
        let mut rng = Rng::with_seed(number);
        let case = generate::case(&mut rng);
        let splits = [Split::Whole, Split::Bytes, Split::Random(rng.u64(..))];

        tally.add(&judge(&case, &splits, &format_args!("answer {number}")));
    }
    eprintln!("answers {from}..{}: {tally:?}", from + answers);
    // Else the generator makes nothing but nonsense, or nothing that is any.
    let share = answers / 20;
    assert!(tally.clean > share && tally.refused > share, "{tally:?}");
    assert!(tally.reusable > share && tally.broken > share, "{tally:?}");
}

/// Read otherwise than by the oracle once: method, whether the connection stays open, answers.
#[test]
fn answers_that_were_read_otherwise_once_are_read_as_the_oracle_reads_them() {
    let table: &[(&str, bool, &[&[u8]])] = &[
        // A length that is a list of one and the same went on as a list.
        ("GET", true, &[b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nab"]),
        ("HEAD", true, &[b"HTTP/1.1 200 OK\r\ncontent-length: 07,7\r\n\r\n"]),
        // A bare LF was the end of the trailers, and what followed another answer.
        ("GET", true, &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\n"]),
        (
            "GET",
            true,
            &[
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\n\nHTTP/1.1 200 OK\r\n\r\n",
                b"HTTP/1.1 204 No Content\r\n\r\n",
            ],
        ),
        // A close was taken back by the line after it.
        (
            "GET",
            true,
            &[b"HTTP/1.0 200 OK\r\nconnection: close\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"],
        ),
        ("GET", true, &[b"HTTP/1.0 200 OK\r\nconnection: \xf8, keep-alive\r\ncontent-length: 0\r\n\r\n"]),
        // A bare LF in a chunk's extension was waited on, for a CR that might follow.
        ("GET", true, &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;\na"]),
        // What has become another protocol was used for another request.
        ("GET", true, &[b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]),
    ];
    for (method, stays, answers) in table {
        let case = Case {
            method: method.parse().expect("a method"),
            stays: *stays,
            answers: answers.iter().map(|answer| answer.to_vec()).collect(),
        };
        let longest = answers.iter().map(|answer| answer.len()).max().unwrap_or(0);
        let splits = (0..longest).map(Split::At);
        let splits: Vec<Split> = [Split::Whole, Split::Bytes]
            .into_iter()
            .chain(splits)
            .collect();

        judge(&case, &splits, &"once read otherwise");
    }
}

#[test]
fn a_head_has_the_same_limit_however_it_is_cut() {
    const LIMIT: usize = 256 << 10;
    for length in [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT] {
        let begin = "HTTP/1.1 204 No Content\r\nx-long: ";
        let long = "x".repeat(length - begin.len() - 4);
        let case = Case {
            method: Method::GET,
            answers: vec![format!("{begin}{long}\r\n\r\n").into()],
            stays: true,
        };
        for split in [Split::Whole, Split::Bytes, Split::Random(1)] {
            let answer = by_ours(&case, split).swap_remove(0).answer;

            let is_refused = answer == Answer::Refused(Refusal::Nonsense(Nonsense::TooLong));
            assert_eq!(is_refused, length > LIMIT, "{length} {split:?}");
            assert!(
                is_refused
                    || matches!(
                        answer,
                        Answer::Read {
                            end: End::Clean,
                            ..
                        }
                    )
            );
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// What came of the answers, in numbers.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    excused: u64,
    broken: u64,
    clean: u64,
    waiting: u64,
    reusable: u64,
}

impl Tally {
    fn add(&mut self, verdict: &Verdict) {
        self.excused += u64::from(verdict.is_excused);
        for reading in &verdict.ours {
            match &reading.answer {
                Answer::Refused(_) => self.refused += 1,
                Answer::None => self.waiting += 1,
                Answer::Read { end, .. } => match end {
                    End::Clean => self.clean += 1,
                    End::Broken(_) => self.broken += 1,
                    End::Waiting => self.waiting += 1,
                },
            }
            self.reusable += u64::from(reading.is_reusable);
        }
    }
}

/// What upstreams may say to the requests on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    method: Method,
    /// One for each request; the second is sent if the first leaves the connection fit for it.
    answers: Vec<Vec<u8>>,
    /// The connection stays open behind them.
    stays: bool,
}

impl Case {
    /// The last may be ended by the end of the connection.
    fn stays_open_behind(&self, number: usize) -> bool {
        self.stays || number + 1 < self.answers.len()
    }
}

/// As a line of the table of regressions.
impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(\"{}\", {}, &[", self.method, self.stays)?;
        for answer in &self.answers {
            write!(f, "b\"{}\", ", answer.escape_ascii())?;
        }
        write!(f, "])")
    }
}

/// How the bytes of an answer come.
#[derive(Debug, Clone, Copy)]
enum Split {
    Whole,
    Bytes,
    /// Cut at random places, with waits between.
    Random(u64),
    /// In two, with a wait between.
    At(usize),
}

/// How one client reads one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    answer: Answer,
    /// The connection may carry another exchange.
    is_reusable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Refused(Refusal),
    /// Neither read nor refused: more may come.
    None,
    Read {
        head: Head,
        body: Raw,
        trailers: Fields,
        end: End,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    status: StatusCode,
    version: Version,
    reason: Option<Raw>,
    fields: Fields,
}

type Fields = Vec<(String, Raw)>;

/// Bytes that are shown as what they mostly are.
#[derive(Clone, Default, PartialEq, Eq)]
struct Raw(Vec<u8>);

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    Broken(Break),
    Waiting,
}

/// Why ours says that a body broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Cut,
    Chunk,
    /// What hyper says cannot be told apart.
    Oracle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Nonsense(Nonsense),
    Lost,
    Oracle,
}

impl Head {
    fn of(parts: &response::Parts) -> Self {
        let reason = parts.extensions.get::<ReasonPhrase>();
        Self {
            status: parts.status,
            version: parts.version,
            reason: reason.map(|reason| Raw(reason.as_bytes().to_vec())),
            fields: fields(&parts.headers),
        }
    }

    fn values<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h [u8]> {
        let of_name = self.fields.iter().filter(move |(known, _)| known == name);
        of_name.map(|(_, value)| value.0.as_slice())
    }
}

/// In the order of the map, which is that of the first field of each name.
fn fields(map: &HeaderMap) -> Fields {
    map.iter()
        .map(|(name, value)| (name.to_string(), Raw(value.as_bytes().to_vec())))
        .collect()
}

/// How both read a case.
struct Verdict {
    ours: Vec<Reading>,
    is_excused: bool,
}

/// Reads a case in all those splits, and fails where ours and the oracle's differ.
fn judge(case: &Case, splits: &[Split], name: &dyn Display) -> Verdict {
    let oracle = by_hyper(case, splits[0]);
    let mut verdict = None::<Verdict>;
    for split in splits {
        let ours = by_ours(case, *split);
        let context = || format!("{name}, {split:?}: {case}\n  ours: {ours:?}\noracle: {oracle:?}");
        let mut is_excused = false;
        for (number, read) in ours.iter().enumerate() {
            let Some(wanted) = oracle.get(number) else {
                panic!("the oracle had given up: {}", context());
            };
            let stays = case.stays_open_behind(number);
            match agree(read, wanted, stays) {
                Ok(()) => {}
                Err(difference) => match excuse(read, wanted, case) {
                    Some(_reason) => is_excused = true,
                    None => panic!("{difference}: {}", context()),
                },
            }
        }
        if let Some(before) = &verdict {
            let is_same = before.ours.len() == ours.len()
                && before.ours.iter().zip(&ours).all(|(a, b)| same(a, b));
            assert!(
                is_same,
                "{:?} in {:?}, but {}",
                before.ours,
                splits[0],
                context()
            );
        } else {
            verdict = Some(Verdict { ours, is_excused });
        }
    }
    verdict.expect("a split")
}

/// Whether ours is right, by what the oracle reads.
fn agree(ours: &Reading, oracle: &Reading, stays: bool) -> Result<(), &'static str> {
    if ours.is_reusable && !oracle.is_reusable {
        return Err("ours would use the connection again");
    }
    match (&ours.answer, &oracle.answer) {
        (Answer::Refused(_), Answer::Refused(_)) | (Answer::None, Answer::None) => Ok(()),
        // Nonsense may be told before its end; if there is no end, the oracle refuses it then.
        (Answer::Refused(_), Answer::None) if stays => Ok(()),
        // Ours waits for the end of a head before it looks what is wrong with it.
        (Answer::None, Answer::Refused(_)) if stays => Ok(()),
        (
            Answer::Read {
                head,
                body,
                trailers,
                end,
            },
            Answer::Read {
                head: their_head,
                body: their_body,
                trailers: their_trailers,
                end: their_end,
            },
        ) => {
            if by_name(head.clone()) != by_name(said_once(their_head)) {
                return Err("another head");
            }
            let is_same_end = match (end, their_end) {
                (End::Broken(_), End::Broken(_)) => true,
                (End::Broken(_), End::Waiting) => stays,
                (end, their_end) => end == their_end,
            };
            if !is_same_end {
                return Err("another end");
            }
            if body != their_body {
                return Err("another body");
            }
            if trailers != their_trailers {
                return Err("other trailers");
            }
            Ok(())
        }
        _ => Err("read by one"),
    }
}

/// Fields of one name in their order; that of the names says nothing (RFC 9110, section 5.3).
fn by_name(mut head: Head) -> Head {
    head.fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    head
}

/// RFC 9110, section 8.6: a length said more than once is said once before it goes on.
fn said_once(head: &Head) -> Head {
    let mut head = head.clone();
    let mut is_first = true;
    let numbers: Vec<Vec<u8>> = head
        .values("content-length")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|number| number.trim_ascii().to_vec())
        .collect();
    if numbers.len() > 1 {
        let text = String::from_utf8_lossy(&numbers[0]).parse::<u64>();
        let number = text.map_or(numbers[0].clone(), |number| number.to_string().into());
        head.fields.retain_mut(|(name, value)| {
            if name != "content-length" {
                return true;
            }
            value.0.clone_from(&number);
            std::mem::take(&mut is_first)
        });
    }
    // What ours keeps to itself: it is said to the next hop alone, and names no other field.
    head.fields.retain(|(name, value)| {
        name != "connection"
            || !(value.0.eq_ignore_ascii_case(b"keep-alive")
                || value.0.eq_ignore_ascii_case(b"close"))
    });
    head
}

/// Why ours may refuse what the oracle accepts, or the reverse.
fn excuse(ours: &Reading, oracle: &Reading, case: &Case) -> Option<&'static str> {
    match (&ours.answer, &oracle.answer) {
        (Answer::Refused(Refusal::Nonsense(nonsense)), Answer::Read { head, .. }) => {
            let has_coding = head.values("transfer-encoding").count() > 0;
            let has_length = head.values("content-length").count() > 0;
            let has_no_body =
                case.method == Method::HEAD || matches!(head.status.as_u16(), 101 | 204 | 304);
            match nonsense {
                Nonsense::TwoFramings if has_coding && has_length => {
                    Some("who reads the length sees another answer behind it")
                }
                Nonsense::TransferCoding if !is_plainly_chunked(head) => {
                    Some("a coding that is not undone here is not passed on as if it were")
                }
                Nonsense::Length if has_length && (has_coding || has_no_body) => {
                    Some("a length that is none may be one to the client")
                }
                _ => None,
            }
        }
        (
            Answer::Read {
                end: End::Broken(Break::Chunk),
                body,
                ..
            },
            Answer::Read {
                body: their_body, ..
            },
        ) if their_body.0.starts_with(&body.0) => {
            if has_long_number(case) {
                Some("a chunk whose size has more digits than the largest")
            } else if body == their_body && has_bare_lf_behind_a_last_chunk(case) {
                Some("who ends the trailers at a bare LF sees another answer behind it")
            } else {
                None
            }
        }
        (Answer::Read { head, .. }, Answer::Refused(_)) => {
            let lengths = head
                .values("content-length")
                .flat_map(|value| value.split(|b| *b == b','));
            let mut lengths = lengths.filter_map(|length| std::str::from_utf8(length).ok());
            let is_largest = lengths.any(|length| {
                length
                    .trim()
                    .parse::<u64>()
                    .is_ok_and(|length| length >= u64::MAX - 1)
            });
            is_largest.then_some("the oracle uses the two largest lengths for something else")
        }
        _ => None,
    }
}

fn has_bare_lf_behind_a_last_chunk(case: &Case) -> bool {
    let mut answers = case.answers.iter();
    answers.any(|answer| {
        let chunk = answer.windows(2).position(|bytes| bytes == b"\n0");
        let mut behind = answer[chunk.unwrap_or(answer.len())..].windows(2);
        behind.any(|bytes| bytes[1] == b'\n' && bytes[0] != b'\r')
    })
}

/// Whether there are more hexadecimal digits in a row than a chunk's size can have.
fn has_long_number(case: &Case) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
    let mut bytes = case.answers.iter().flat_map(|answer| answer.windows(17));
    bytes.any(|bytes| bytes.iter().all(is_digit))
}

/// Whether a head names the one coding that is understood, once, where it may be named.
fn is_plainly_chunked(head: &Head) -> bool {
    let codings: Vec<_> = head.values("transfer-encoding").collect();
    let is_chunked = matches!(&codings[..], [coding] if coding.eq_ignore_ascii_case(b"chunked"));
    is_chunked && head.version == Version::HTTP_11
}

/// Whether two readings of the same bytes in different splits are the same.
fn same(one: &Reading, other: &Reading) -> bool {
    let is_syntax = |reading: &Reading| {
        matches!(
            reading.answer,
            Answer::Refused(Refusal::Nonsense(Nonsense::Syntax(_)))
        )
    };
    // A head that comes in pieces is parsed when its end is there: until then nothing is wrong with
    // it, and if there is no end, that is what is wrong.
    let is_unfinished = |reading: &Reading| {
        matches!(
            reading.answer,
            Answer::None | Answer::Refused(Refusal::Nonsense(Nonsense::Cut))
        )
    };
    one == other || is_syntax(one) && is_unfinished(other) || is_syntax(other) && is_unfinished(one)
}

/// A byte stream that says what is written here, and forgets what it is told.
#[derive(Clone)]
struct Script(Rc<RefCell<Scripted>>);

struct Scripted {
    /// What is still to be said to each request.
    answers: VecDeque<VecDeque<Step>>,
    stays: bool,
    /// Requests that have come.
    asked: usize,
    begun: usize,
    /// The end of what was written, as long as the end of a head.
    tail: Vec<u8>,
    reads: usize,
}

enum Step {
    Say(Vec<u8>),
    /// Once.
    Wait,
}

impl Script {
    fn new(case: &Case, split: Split) -> Self {
        let answers = case.answers.iter().map(|answer| steps(answer, split));
        Self(Rc::new(RefCell::new(Scripted {
            answers: answers.collect(),
            stays: case.stays,
            asked: 0,
            begun: 0,
            tail: Vec::new(),
            reads: 0,
        })))
    }

    /// Polls that are enough to come to anything: each may end at a wait, and the oracle needs some
    /// for itself.
    fn polls(&self) -> usize {
        let steps: usize = self.0.borrow().answers.iter().map(VecDeque::len).sum();
        steps + 16
    }

    /// Nothing is left to be said to the requests that have come.
    fn is_silent(&self) -> bool {
        let script = self.0.borrow();
        script.begun == script.asked && script.answers.front().is_none_or(VecDeque::is_empty)
    }
}

fn steps(answer: &[u8], split: Split) -> VecDeque<Step> {
    let say = |bytes: &[u8]| Step::Say(bytes.to_vec());
    match split {
        Split::Whole => [say(answer)].into(),
        Split::Bytes => answer
            .chunks(1)
            .flat_map(|byte| [Step::Wait, say(byte)])
            .collect(),
        Split::At(place) => {
            let (now, later) = answer.split_at(place.min(answer.len()));
            [say(now), Step::Wait, say(later)].into()
        }
        Split::Random(seed) => {
            let mut rng = Rng::with_seed(seed);
            let mut left = answer;
            let mut steps = VecDeque::new();
            while !left.is_empty() {
                let (now, later) = left.split_at(rng.usize(1..=left.len().min(40)));
                if rng.bool() {
                    steps.push_back(Step::Wait);
                }
                steps.push_back(say(now));
                left = later;
            }
            steps
        }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut script = self.0.borrow_mut();
        script.reads += 1;
        assert!(script.reads < 1_000_000, "an endless loop");
        if script.begun < script.asked {
            if script.begun > 0 {
                script.answers.pop_front();
            }
            script.begun += 1;
        }
        if script.begun == 0 {
            return Poll::Pending;
        }
        loop {
            let is_last = script.answers.len() <= 1;
            let ends = is_last && !script.stays;
            let Some(steps) = script.answers.front_mut() else {
                return Poll::Pending;
            };
            match steps.pop_front() {
                None if ends => return Poll::Ready(Ok(())),
                None | Some(Step::Wait) => return Poll::Pending,
                Some(Step::Say(bytes)) if bytes.is_empty() => {}
                Some(Step::Say(mut bytes)) => {
                    let rest = bytes.split_off(bytes.len().min(buffer.remaining()));
                    buffer.put_slice(&bytes);
                    if !rest.is_empty() {
                        steps.push_front(Step::Say(rest));
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Posting for Script {}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        const END: &[u8] = b"\r\n\r\n";
        let mut script = self.0.borrow_mut();
        for byte in bytes {
            script.tail.push(*byte);
            if script.tail.ends_with(END) {
                script.asked += 1;
                script.tail.clear();
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn request(method: &Method) -> Request<Empty<Bytes>> {
    let request = Request::builder().method(method).uri("/");
    let request = request.header(header::HOST, "app");
    request.body(Empty::new()).expect("a request")
}

/// A body as far as it has come.
#[derive(Default)]
struct Collected {
    bytes: Raw,
    trailers: Fields,
}

impl Collected {
    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.bytes.0.extend_from_slice(&data),
            Err(frame) => {
                let trailers = frame.into_trailers().expect("data or trailers");
                self.trailers = fields(&trailers);
            }
        }
    }

    fn read(self, head: Head, end: End) -> Answer {
        Answer::Read {
            head,
            body: self.bytes,
            trailers: self.trailers,
            end,
        }
    }
}

/// Reads a case with the codec under test.
fn by_ours(case: &Case, split: Split) -> Vec<Reading> {
    let script = Script::new(case, split);
    let mut connection = Connection::new(script.clone());
    let mut readings = Vec::new();
    for number in 0..case.answers.len() {
        let answer = one_by_ours(&mut connection, &script, &case.method);
        // Whether the peer stays quiet is asked until there is nothing more to come.
        let mut is_reusable = matches!(
            &answer,
            Answer::Read {
                end: End::Clean,
                ..
            }
        );
        is_reusable &= connection.is_ready();
        let mut polls = script.polls();
        while is_reusable && polls > 0 {
            is_reusable = connection.is_quiet();
            polls -= 1;
            if script.is_silent() && case.stays_open_behind(number) {
                break;
            }
        }
        readings.push(Reading {
            answer,
            is_reusable,
        });
        if !is_reusable {
            break;
        }
    }
    readings
}

fn one_by_ours(connection: &mut Connection<Script>, script: &Script, method: &Method) -> Answer {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut head, body) = request(method).into_parts();
    let polls = script.polls();
    let sent = {
        let mut sending = pin!(connection.send(&mut head, body));
        within(polls, || sending.as_mut().poll(&mut cx))
    };
    let head = match sent {
        None => return Answer::None,
        Some(Ok(parts)) => Head::of(&parts),
        Some(Err(SendError::Nonsense(nonsense))) => {
            return Answer::Refused(Refusal::Nonsense(nonsense));
        }
        Some(Err(SendError::Lost(_))) => return Answer::Refused(Refusal::Lost),
        Some(Err(failure)) => panic!("{failure:?} of a request that was sent"),
    };
    let mut body = Collected::default();
    loop {
        let is_over = connection.is_end_stream();
        let frame = within(polls, || connection.poll_frame(&mut cx));
        if is_over {
            assert!(
                matches!(frame, Some(None)),
                "more behind the end: {frame:?}"
            );
        }
        let end = match frame {
            None => End::Waiting,
            Some(None) => End::Clean,
            Some(Some(Ok(frame))) => {
                body.take(frame);
                continue;
            }
            Some(Some(Err(BodyError::Cut))) => End::Broken(Break::Cut),
            Some(Some(Err(BodyError::Chunk))) => End::Broken(Break::Chunk),
            Some(Some(Err(BodyError::Io(error)))) => panic!("{error}"),
        };
        return body.read(head, end);
    }
}

/// Polls until it is ready, but not for ever.
fn within<T>(polls: usize, mut poll: impl FnMut() -> Poll<T>) -> Option<T> {
    for _ in 0..polls {
        if let Poll::Ready(ready) = poll() {
            return Some(ready);
        }
    }
    None
}

/// Reads a case with hyper's client.
fn by_hyper(case: &Case, split: Split) -> Vec<Reading> {
    let mut cx = Context::from_waker(Waker::noop());
    let script = Script::new(case, split);
    let polls = script.polls();
    let mut readings = Vec::new();
    let shaken = pin!(hyper::client::conn::http1::handshake(TokioIo::new(script)));
    let Poll::Ready(Ok((mut sender, connection))) = shaken.poll(&mut cx) else {
        panic!("the oracle waits for nothing");
    };
    // None once it has ended.
    let mut connection = Some(Box::pin(connection));
    let mut drive = |cx: &mut Context<'_>| {
        if let Some(running) = &mut connection
            && running.as_mut().poll(cx).is_ready()
        {
            connection = None;
        }
    };
    for _ in &case.answers {
        let mut sending = pin!(sender.send_request(request(&case.method)));
        let sent = within(polls, || {
            drive(&mut cx);
            sending.as_mut().poll(&mut cx)
        });
        let answer = match sent {
            None => Answer::None,
            Some(Err(_)) => Answer::Refused(Refusal::Oracle),
            Some(Ok(response)) => {
                let (parts, mut incoming) = response.into_parts();
                let mut body = Collected::default();
                let end = loop {
                    let frame = within(polls, || {
                        drive(&mut cx);
                        Pin::new(&mut incoming).poll_frame(&mut cx)
                    });
                    match frame {
                        None => break End::Waiting,
                        Some(None) => break End::Clean,
                        Some(Some(Ok(frame))) => body.take(frame),
                        Some(Some(Err(_))) => break End::Broken(Break::Oracle),
                    }
                };
                body.read(Head::of(&parts), end)
            }
        };
        for _ in 0..3 {
            drive(&mut cx);
        }
        let is_reusable = sender.is_ready();
        readings.push(Reading {
            answer,
            is_reusable,
        });
        if !is_reusable {
            break;
        }
    }
    readings
}

/// Answers from a grammar, with mistakes.
mod generate {
    use fastrand::Rng;
    use http::Method;

    use super::Case;

    pub(super) fn case(rng: &mut Rng) -> Case {
        let count = if rng.u8(..4) == 0 { 2 } else { 1 };
        let mut answers: Vec<Vec<u8>> = (0..count).map(|_| answer(rng)).collect();
        if rng.u8(..3) == 0 {
            let answer = rng.usize(..count);
            mutilate(&mut answers[answer], rng);
        }
        Case {
            method: if rng.u8(..6) == 0 {
                Method::HEAD
            } else {
                Method::GET
            },
            answers,
            stays: rng.bool(),
        }
    }

    /// One of them.
    fn pick<'a>(choices: &[&'a str], rng: &mut Rng) -> &'a str {
        rng.choice(choices).expect("choices")
    }

    fn answer(rng: &mut Rng) -> Vec<u8> {
        let mut answer = Vec::new();
        while rng.u8(..8) == 0 {
            let statuses = ["100 Continue", "103 Early Hints", "102 ", "199 x", "101 S"];
            answer.extend_from_slice(b"HTTP/1.1 ");
            answer.extend_from_slice(pick(&statuses, rng).as_bytes());
            answer.extend_from_slice(b"\r\n");
            fields(rng.usize(..3), &mut answer, rng);
            answer.extend_from_slice(b"\r\n");
        }
        status_line(&mut answer, rng);
        let body = body(rng);
        fields(rng.usize(..3), &mut answer, rng);
        framing(&body, &mut answer, rng);
        fields(rng.usize(..3), &mut answer, rng);
        end_of_line(&mut answer, rng);
        answer.extend_from_slice(&body.bytes);
        if rng.u8(..12) == 0 {
            let surplus = ["x", "\r\n", "\n", "HTTP/1.1 200 OK\r\n\r\n", "0\r\n\r\n"];
            answer.extend_from_slice(pick(&surplus, rng).as_bytes());
        }
        answer
    }

    fn status_line(answer: &mut Vec<u8>, rng: &mut Rng) {
        let is_odd = rng.u8(..20) == 0;
        answer.extend_from_slice(match rng.u8(..30) {
            0 => b"\r\n",
            1 => b"\n\n",
            _ => b"",
        });
        let versions = [
            "HTTP/1.2",
            "HTTP/2.0",
            "HTTP/0.9",
            "http/1.1",
            "HTTP/1.1 ",
            "HTTP/1",
            "ICY",
        ];
        let version = match rng.u8(..10) {
            _ if is_odd => pick(&versions, rng),
            0..2 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let rare = [
            "100", "101", "103", "199", "099", "000", "1000", "20", "999", "600", "2x0", "+20", "",
        ];
        let common = ["204", "304", "404", "201", "206", "302", "500", "599"];
        let status = match rng.u8(..20) {
            0 => pick(&rare, rng),
            1..6 => pick(&common, rng),
            _ => "200",
        };
        let reasons = [
            " ",
            "",
            " OK",
            " No Content",
            " Not Found",
            " very  odd \t",
            " \u{e9}",
            " a\u{1}",
        ];
        let reason = match rng.u8(..4) {
            0 => pick(&reasons, rng),
            _ => " OK",
        };
        answer.extend_from_slice(version.as_bytes());
        answer.push(b' ');
        answer.extend_from_slice(status.as_bytes());
        answer.extend_from_slice(reason.as_bytes());
        end_of_line(answer, rng);
    }

    fn end_of_line(answer: &mut Vec<u8>, rng: &mut Rng) {
        answer.extend_from_slice(match rng.u8(..100) {
            0..3 => b"\n",
            3 => b"\r",
            4 => b"\r\r\n",
            5 => b"\n\r",
            _ => b"\r\n",
        });
    }

    /// Fields that say nothing of the framing, for the most part.
    fn fields(count: usize, answer: &mut Vec<u8>, rng: &mut Rng) {
        const FIELDS: &[&str] = &[
            "content-type: text/plain",
            "Server:x",
            "set-cookie: a=1",
            "set-cookie:  b=2 ",
            "X-Long: 0123456789012345678901234567890123456789012345678901234567890123456789",
            "x-empty:",
            "x-empty: \t ",
            "trailer: x-checksum",
            "connection: close",
            "Connection: keep-alive",
            "connection: Close, x-hop",
            "connection: x-hop ,KEEP-ALIVE",
            "connection: keep-alive, close",
            "connection: upgrade",
            "connection:",
            "keep-alive: timeout=5",
            "upgrade: websocket",
            "x-latin: \u{e9}\u{ff}",
            "te: trailers",
            "date: now",
        ];
        const ODD: &[&str] = &[
            "x folded: a",
            "x-folded: a\r\n b",
            "x-folded: a\r\n\tb",
            " leading: a",
            "blank : a",
            "content-length : 3",
            "transfer-encoding : chunked",
            "no colon",
            ": no name",
            "x-nul: a\0b",
            "x-bell: \u{7}",
            "x-del: \u{7f}",
            "x-cr: a\rb",
            "x\u{e9}: a",
            "x(): a",
            "x\t: a",
            "content-length\t: 1",
        ];
        for _ in 0..count {
            let field = match rng.u8(..25) {
                0 => pick(ODD, rng),
                _ => pick(FIELDS, rng),
            };
            answer.extend_from_slice(field.as_bytes());
            end_of_line(answer, rng);
        }
        if count > 0 && rng.u16(..1000) == 0 {
            for number in 0..rng.usize(90..110) {
                answer.extend_from_slice(format!("x-{number}: a\r\n").as_bytes());
            }
        }
    }

    struct Body {
        bytes: Vec<u8>,
        is_chunked: bool,
    }

    fn body(rng: &mut Rng) -> Body {
        let is_chunked = rng.u8(..5) < 3;
        let mut bytes = Vec::new();
        if is_chunked {
            for _ in 0..rng.usize(..4) {
                chunk(&mut bytes, rng);
            }
            last_chunk(&mut bytes, rng);
        } else {
            payload(&mut bytes, rng);
        }
        Body { bytes, is_chunked }
    }

    fn payload(bytes: &mut Vec<u8>, rng: &mut Rng) {
        let length = match rng.u16(..300) {
            0 => rng.usize(..20_000),
            1..30 => rng.usize(..200),
            _ => rng.usize(..20),
        };
        bytes.extend((0..length).map(|_| match rng.u8(..8) {
            0 => b'\r',
            1 => b'\n',
            2 => b'0',
            3 => rng.u8(..),
            _ => b'a',
        }));
    }

    fn chunk(bytes: &mut Vec<u8>, rng: &mut Rng) {
        let mut data = Vec::new();
        payload(&mut data, rng);
        if data.is_empty() {
            data.push(b'a');
        }
        size(data.len(), bytes, rng);
        bytes.extend_from_slice(&data);
        end_of_line(bytes, rng);
    }

    fn size(size: usize, bytes: &mut Vec<u8>, rng: &mut Rng) {
        let text = match rng.u16(..250) {
            0..10 => format!("{size:X}"),
            10..20 => format!("000{size:x}"),
            20 => format!("0x{size:x}"),
            21 => format!(" {size:x}"),
            22 => format!("+{size:x}"),
            23 => format!("-{size:x}"),
            24 => String::new(),
            25 => "ffffffffffffffff".into(),
            26 => "10000000000000000".into(),
            27 => format!("{size:x}g"),
            28 => format!("{:x}", size + 1),
            29 => format!("{:x}", size - 1.min(size)),
            30 => format!("{size:014x}"),
            31 => format!("{size:x}_0"),
            32 => format!("{size:015x}"),
            33 => format!("{size:016x}"),
            34 => format!("{size:017x}"),
            35 => format!("{size:040x}"),
            _ => format!("{size:x}"),
        };
        bytes.extend_from_slice(text.as_bytes());
        let extensions = [
            ";a",
            ";a=b",
            " ;a=\"b\"",
            ";",
            "; ",
            " ",
            "\t",
            "  ; a=b;c",
            ";a\nb",
            ";a\rb",
            ";\n",
            " 0",
            ";\u{e9}",
            "\n",
            ";a=\"\\\"\r\n\"",
            ";0123456789012345678901234567890123456789",
            " \n",
            ";\0",
        ];
        if rng.u8(..12) == 0 {
            bytes.extend_from_slice(pick(&extensions, rng).as_bytes());
        }
        end_of_line(bytes, rng);
    }

    fn last_chunk(bytes: &mut Vec<u8>, rng: &mut Rng) {
        size(0, bytes, rng);
        if rng.u8(..4) == 0 {
            let trailers = [
                "x-checksum: abc",
                "x-other:1",
                "x-empty:",
                "content-length: 5",
                "transfer-encoding: x",
                "x-checksum: d",
                "x-latin: \u{e9}",
            ];
            for _ in 0..rng.usize(1..4) {
                if rng.u8(..3) == 0 {
                    fields(1, bytes, rng);
                    continue;
                }
                bytes.extend_from_slice(pick(&trailers, rng).as_bytes());
                end_of_line(bytes, rng);
            }
        }
        end_of_line(bytes, rng);
    }

    /// The fields that say where the body ends; right ones, mostly.
    fn framing(body: &Body, answer: &mut Vec<u8>, rng: &mut Rng) {
        let length = body.bytes.len();
        let mut line = |text: &str, rng: &mut Rng| {
            answer.extend_from_slice(text.as_bytes());
            end_of_line(answer, rng);
        };
        let is_odd = rng.u8(..6) == 0;
        match (body.is_chunked, is_odd) {
            (true, false) => {
                let chunked = ["transfer-encoding: chunked", "Transfer-Encoding:Chunked "];
                line(pick(&chunked, rng), rng);
            }
            // Else the end of the connection is the end of the body.
            (false, false) if rng.u8(..5) > 0 => line(&format!("content-length: {length}"), rng),
            (false, false) => {}
            (_, true) => {
                for _ in 0..rng.usize(1..3) {
                    let text = odd_framing(length, rng);
                    line(&text, rng);
                }
            }
        }
    }

    fn odd_framing(length: usize, rng: &mut Rng) -> String {
        let codings = [
            "chunked",
            "gzip",
            "gzip, chunked",
            "chunked, gzip",
            "chunked, chunked",
            "identity",
            "identity, chunked",
            "\"chunked\"",
            "xchunked",
            "chunked;q=1",
            "",
            "chunked,",
            ", chunked",
            "CHUNKED",
            "chunked\t",
            "chun ked",
        ];
        let other = length.wrapping_add(rng.usize(..5)).wrapping_sub(2);
        let value = match rng.u8(..18) {
            0..6 => return format!("transfer-encoding: {}", pick(&codings, rng)),
            6 => format!("+{length}"),
            7 => format!("-{length}"),
            8 => String::new(),
            9 => format!("{length}, {length}"),
            10 => format!("{length},{other}"),
            11 => format!("00{length}"),
            12 => u64::MAX.wrapping_sub(rng.u64(..5)).to_string(),
            13 => "18446744073709551616".into(),
            14 => format!("{length} {length}"),
            15 => format!("0x{length:x}"),
            16 => format!("{length},"),
            _ => if rng.bool() { length } else { other }.to_string(),
        };
        format!("content-length: {value}")
    }

    /// Cuts, flips, puts in, takes out.
    fn mutilate(answer: &mut Vec<u8>, rng: &mut Rng) {
        const BYTES: &[u8] = b"\r\n \t:;,0159afAF\0\x7f\x80\xffxc";
        for _ in 0..rng.usize(1..4) {
            if answer.is_empty() {
                return;
            }
            let place = rng.usize(..answer.len());
            let byte = match rng.u8(..3) {
                0 => rng.u8(..),
                _ => *rng.choice(BYTES).expect("bytes"),
            };
            match rng.u8(..6) {
                0 => answer.truncate(place),
                1 => answer[place] ^= 1 << rng.u8(..8),
                2 => answer[place] = byte,
                3 => answer.insert(place, byte),
                4 => drop(answer.remove(place)),
                _ => {
                    let end = rng.usize(place..answer.len().min(place + 20));
                    let copy = answer[place..end].to_vec();
                    let place = rng.usize(..=answer.len());
                    answer.splice(place..place, copy);
                }
            }
        }
    }
}
