//! A request's head as bytes, and an answer's head out of bytes.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version, request, response};
use hyper::ext::ReasonPhrase;

use super::Nonsense;
use super::body::Framing;
use super::upload::Coding;

/// Fields of an answer's head, at the most.
const FIELDS: usize = 100;

/// Fields that most heads do not exceed. Room for all that are allowed costs 80 instructions more.
const FEW: usize = 24;

/// Ends of line before an answer, which the parser skips, every time that more has come.
const EMPTY_LINES: usize = 16;

/// The head of an answer, without its fields.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The peer keeps the connection, as far as the head says.
    pub(super) stays: bool,
    closes: bool,
    version: Version,
    /// Where it is not the one that everybody knows.
    reason: Option<ReasonPhrase>,
    /// What the fields say of the body.
    length: Option<Result<u64, Nonsense>>,
    lengths: usize,
    coding: Option<Result<(), Nonsense>>,
}

/// Writes the head of a request whose target is in origin-form or `*`, and says how its body is framed.
pub(super) fn write(head: &request::Parts, output: &mut Vec<u8>) -> Coding {
    output.extend_from_slice(head.method.as_str().as_bytes());
    output.push(b' ');
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if target.is_empty() || target.starts_with('?') {
        output.push(b'/');
    }
    output.extend_from_slice(target.as_bytes());
    output.extend_from_slice(b" HTTP/1.1\r\n");
    let mut is_framed = false;
    for (name, value) in &head.headers {
        is_framed |= matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING);
        write_field(name, value, output);
    }
    output.extend_from_slice(b"\r\n");
    if is_framed {
        Coding::of(&head.headers)
    } else {
        Coding::Length(0)
    }
}

/// Writes fields, each with its end of line.
pub(super) fn write_fields<'h>(
    fields: impl IntoIterator<Item = (&'h HeaderName, &'h HeaderValue)>,
    output: &mut Vec<u8>,
) {
    for (name, value) in fields {
        write_field(name, value, output);
    }
}

fn write_field(name: &HeaderName, value: &HeaderValue, output: &mut Vec<u8>) {
    output.extend_from_slice(name.as_str().as_bytes());
    output.extend_from_slice(b": ");
    output.extend_from_slice(value.as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// Takes the head of an answer from `input`, and appends its fields to `fields`. `None` while it is
/// not complete.
pub(super) fn read(
    input: &mut BytesMut,
    fields: &mut HeaderMap,
) -> Result<Option<Answer>, Nonsense> {
    let is_empty_line = |byte: &u8| matches!(byte, b'\r' | b'\n');
    if input
        .iter()
        .take_while(|byte| is_empty_line(byte))
        .nth(EMPTY_LINES)
        .is_some()
    {
        return Err(httparse::Error::NewLine.into());
    }
    let mut parsed = [const { MaybeUninit::uninit() }; FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let status = parser.parse_response_with_uninit_headers(&mut head, input, &mut parsed)?;
    let httparse::Status::Complete(end) = status else {
        return Ok(None);
    };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
    let mut answer = Answer {
        status: status.ok_or(Nonsense::Status)?,
        // HTTP/1.0 has to say so.
        stays: head.version == Some(1),
        closes: false,
        version: match head.version {
            Some(1) => Version::HTTP_11,
            _ => Version::HTTP_10,
        },
        reason: None,
        length: None,
        lengths: 0,
        coding: None,
    };
    if head.reason != answer.status.canonical_reason() {
        answer.reason = head
            .reason
            .and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    }
    // Places are remembered because the bytes become those of the values, and nothing may borrow then.
    let count = head.headers.len();
    let (mut few, mut many) = ([Place::default(); FEW], Vec::new());
    let places = match few.get_mut(..count) {
        Some(few) => few,
        None => {
            many.resize(count, Place::default());
            &mut many[..]
        }
    };
    let start = input.as_ptr().addr();
    for (place, field) in places.iter_mut().zip(&*head.headers) {
        *place = Place::of(field, start);
    }
    let bytes = input.split_to(end).freeze();
    fields.reserve(count);
    for place in places {
        let name = HeaderName::from_bytes(&bytes[place.name()]);
        let name = name.map_err(|_| httparse::Error::HeaderName)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(place.value()));
        let value = value.map_err(|_| httparse::Error::HeaderValue)?;
        if answer.heed(&name, &value) {
            fields.append(name, value);
        }
    }
    Ok(Some(answer))
}

/// Where one field stands in a head; a head is far shorter than 4 GiB.
#[derive(Clone, Copy, Default)]
struct Place {
    name: (u32, u32),
    value: (u32, u32),
}

impl Place {
    fn of(field: &httparse::Header<'_>, start: usize) -> Self {
        let place = |bytes: &[u8]| {
            let from = bytes.as_ptr().addr() - start;
            (from as u32, (from + bytes.len()) as u32)
        };
        Self {
            name: place(field.name.as_bytes()),
            value: place(field.value),
        }
    }

    fn name(self) -> Range<usize> {
        self.name.0 as usize..self.name.1 as usize
    }

    fn value(self) -> Range<usize> {
        self.value.0 as usize..self.value.1 as usize
    }
}

impl Answer {
    /// An interim answer: another follows. 101 is the last, there is no HTTP behind it.
    pub(super) fn is_interim(&self) -> bool {
        self.status.is_informational() && !self.is_upgrade()
    }

    pub(super) fn is_upgrade(&self) -> bool {
        self.status == StatusCode::SWITCHING_PROTOCOLS
    }

    /// Whether a body is announced where none can be.
    pub(super) fn has_stray_body(&self) -> bool {
        let is_announced = self.coding.is_some() || matches!(self.length, Some(Ok(1..)));
        self.status == StatusCode::NO_CONTENT && is_announced
    }

    /// Learns what a field says of the body and the connection. False: it says no more than that.
    fn heed(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        if *name == header::CONTENT_LENGTH {
            let length = length(value);
            self.length = match self.length {
                Some(before) if before != length => Some(Err(Nonsense::Length)),
                Some(_) => self.length,
                None => Some(length),
            };
            self.lengths += value.as_bytes().split(|byte| *byte == b',').count();
        } else if *name == header::TRANSFER_ENCODING {
            let is_chunked = value
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(b"chunked");
            // RFC 9112, section 6.1: HTTP/1.0 knows no transfer codings.
            let is_sound = is_chunked && self.coding.is_none() && self.version == Version::HTTP_11;
            self.coding = Some(is_sound.then_some(()).ok_or(Nonsense::TransferCoding));
        } else if *name == header::CONNECTION {
            // Once said, `close` is not taken back by what another line says.
            self.closes |= has_option(value, "close");
            // An odd value is a reason to close, and none to stay.
            let is_asked_to = || value.to_str().is_ok() && has_option(value, "keep-alive");
            self.stays = !self.closes && (self.stays || is_asked_to());
            // Most apps say one of these with every answer, and say it to us alone.
            let value = value.as_bytes();
            return !value.eq_ignore_ascii_case(b"keep-alive")
                && !value.eq_ignore_ascii_case(b"close");
        }
        true
    }

    /// How the body is framed (RFC 9112, section 6.3), as the answer to a request with `method`.
    pub(super) fn framing(&self, method: &Method) -> Result<Framing, Nonsense> {
        let length = self.length.transpose()?;
        let coding = self.coding.transpose()?;
        let has_none = *method == Method::HEAD
            || self.status.is_informational()
            || matches!(
                self.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        match (length, coding) {
            (Some(_), Some(())) => Err(Nonsense::TwoFramings),
            _ if has_none => Ok(Framing::Length(0)),
            (Some(length), None) => Ok(Framing::Length(length)),
            (None, Some(())) => Ok(Framing::Chunked),
            (None, None) => Ok(Framing::UntilClose),
        }
    }

    /// The head as the exchange sees it.
    pub(super) fn into_parts(self, fields: HeaderMap) -> response::Parts {
        let mut parts = Response::new(()).into_parts().0;
        parts.status = self.status;
        parts.version = self.version;
        parts.headers = fields;
        if let Some(reason) = self.reason {
            parts.extensions.insert(reason);
        }
        if let (2.., Some(Ok(length))) = (self.lengths, self.length) {
            // Said twice, it is said once (RFC 9110, section 8.6).
            parts.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        parts
    }
}

/// The number of a `content-length`, which may be a list of the same one (RFC 9110, section 8.6).
fn length(value: &HeaderValue) -> Result<u64, Nonsense> {
    let mut lengths = value.as_bytes().split(|byte| *byte == b',').map(number);
    let first = lengths.next().flatten();
    match first {
        Some(length) if lengths.all(|other| other == first) => Ok(length),
        _ => Err(Nonsense::Length),
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let digits = digits.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn has_option(value: &HeaderValue, option: &str) -> bool {
    let mut options = value.as_bytes().split(|byte| *byte == b',');
    options.any(|o| o.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn written(request: http::request::Builder) -> String {
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let mut output = Vec::new();
        write(&head, &mut output);
        String::from_utf8(output).expect("text")
    }

    fn read_all(bytes: &[u8]) -> Result<Option<(Answer, HeaderMap, BytesMut)>, Nonsense> {
        let mut input = BytesMut::from(bytes);
        let mut fields = HeaderMap::new();
        let answer = read(&mut input, &mut fields)?;
        Ok(answer.map(|answer| (answer, fields, input)))
    }

    #[test]
    fn targets_are_written_in_origin_form() {
        let table = [
            ("/", "/"),
            ("/a/b?c=d&e", "/a/b?c=d&e"),
            ("*", "*"),
            ("http://app", "/"),
            ("http://app?q=1", "/?q=1"),
            ("http://app:80/a?", "/a?"),
            ("//app/a", "//app/a"),
        ];
        for (uri, target) in table {
            let head = written(Request::builder().uri(uri));

            assert_eq!(head, format!("GET {target} HTTP/1.1\r\n\r\n"), "{uri}");
        }
    }

    #[test]
    fn fields_are_written_one_to_a_line() {
        let request = Request::post("/a").header("Host", "app");
        let request = request.header("x-many", "1").header("x-many", "2");

        let head = written(request.header("x-empty", ""));

        let fields = "host: app\r\nx-many: 1\r\nx-many: 2\r\nx-empty: \r\n";
        assert_eq!(head, format!("POST /a HTTP/1.1\r\n{fields}\r\n"));
    }

    #[test]
    fn all_fields_of_a_head_are_read_up_to_the_limit() {
        for count in [0, 1, FEW - 1, FEW, FEW + 1, FIELDS, FIELDS + 1] {
            let lines: String = (0..count).map(|n| format!("x-{n}: v{n}\r\n")).collect();

            let read = read_all(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes());

            if count > FIELDS {
                let too_many = httparse::Error::TooManyHeaders;
                assert_eq!(read.err(), Some(Nonsense::Syntax(too_many)), "{count}");
                continue;
            }
            let (_, fields, _) = read.expect("an answer").expect("a whole one");
            assert_eq!(fields.len(), count);
            for n in 0..count {
                assert_eq!(fields[&format!("x-{n}")], format!("v{n}"), "of {count}");
            }
        }
    }

    #[test]
    fn a_head_is_read_when_it_is_complete_and_what_follows_is_left() {
        let head = b"HTTP/1.1 299 Fine\r\nX-A: 1\r\nx-b:  two \r\nx-a: 3\r\n\r\n";
        for end in 0..head.len() {
            assert!(read_all(&head[..end]).expect("a beginning").is_none());
        }
        let bytes = [&head[..], b"body"].concat();

        let (answer, fields, rest) = read_all(&bytes).expect("a head").expect("all of it");

        assert_eq!(answer.status, 299);
        let reason = answer.reason.as_ref().map(ReasonPhrase::as_bytes);
        assert_eq!(reason, Some(&b"Fine"[..]));
        assert!(answer.stays && !answer.is_interim());
        let fields: Vec<_> = fields
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_bytes()))
            .collect();
        assert_eq!(fields, [("x-a", &b"1"[..]), ("x-a", b"3"), ("x-b", b"two")]);
        assert_eq!(&rest[..], b"body");
    }

    #[test]
    fn a_few_empty_lines_may_stand_before_a_head() {
        let head =
            |lines: usize| read_all(format!("{}HTTP/1.1 204\n\n", "\n".repeat(lines)).as_bytes());

        assert!(head(EMPTY_LINES).expect("a head").is_some());
        assert!(head(EMPTY_LINES + 1).is_err());
    }

    #[test]
    fn the_framing_is_what_the_head_says_if_it_says_one_thing() {
        use Framing::{Chunked, Length, UntilClose};
        let get = Method::GET;
        let head = Method::HEAD;
        let too_much = Err(Nonsense::Length);
        let coding = Err(Nonsense::TransferCoding);
        let table = [
            (&get, "1.1 200", "", Ok(UntilClose)),
            (&get, "1.1 200", "content-length: 7\r\n", Ok(Length(7))),
            (
                &get,
                "1.1 200",
                "content-length: 7, 7\r\ncontent-length: 07\r\n",
                Ok(Length(7)),
            ),
            (
                &get,
                "1.1 200",
                "content-length: 18446744073709551616\r\n",
                too_much,
            ),
            (
                &get,
                "1.1 200",
                "content-length: 7\r\ncontent-length: 8\r\n",
                too_much,
            ),
            (&get, "1.1 200", "content-length: 7,\r\n", too_much),
            (&get, "1.1 200", "content-length: +7\r\n", too_much),
            (&get, "1.1 200", "content-length:\r\n", too_much),
            (&head, "1.1 200", "content-length: x\r\n", too_much),
            (
                &get,
                "1.1 200",
                "transfer-encoding: Chunked\r\n",
                Ok(Chunked),
            ),
            (
                &get,
                "1.1 200",
                "transfer-encoding: gzip, chunked\r\n",
                coding,
            ),
            (&get, "1.1 200", "transfer-encoding: gzip\r\n", coding),
            (
                &get,
                "1.1 200",
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                coding,
            ),
            (&get, "1.0 200", "transfer-encoding: chunked\r\n", coding),
            (
                &get,
                "1.1 200",
                "transfer-encoding: chunked\r\ncontent-length: 1\r\n",
                Err(Nonsense::TwoFramings),
            ),
            (&head, "1.1 200", "content-length: 7\r\n", Ok(Length(0))),
            (
                &head,
                "1.1 200",
                "transfer-encoding: chunked\r\n",
                Ok(Length(0)),
            ),
            (&get, "1.1 204", "content-length: 7\r\n", Ok(Length(0))),
            (&get, "1.1 304", "content-length: 7\r\n", Ok(Length(0))),
            (&get, "1.1 101", "", Ok(Length(0))),
        ];
        for (method, line, fields, framing) in table {
            let head = format!("HTTP/{line}\r\n{fields}\r\n");
            let (answer, ..) = read_all(head.as_bytes())
                .expect("a head")
                .expect("all of it");

            assert_eq!(answer.framing(method), framing, "{method} {head:?}");
        }
    }

    #[test]
    fn a_connection_stays_if_its_version_or_its_options_say_so() {
        let table = [
            ("1.1", "", true),
            ("1.1", "connection: x, Close\r\n", false),
            (
                "1.1",
                "connection: close\r\nconnection: keep-alive\r\n",
                false,
            ),
            ("1.0", "", false),
            ("1.0", "connection: Keep-Alive\r\n", true),
            ("1.0", "connection: keep-alive\r\nconnection: x\r\n", true),
            (
                "1.0",
                "connection: close\r\nconnection: keep-alive\r\n",
                false,
            ),
            ("1.0", "connection: keep-alive, close\r\n", false),
        ];
        for (version, fields, stays) in table {
            let head = format!("HTTP/{version} 200 OK\r\n{fields}\r\n");
            let (answer, ..) = read_all(head.as_bytes())
                .expect("a head")
                .expect("all of it");

            assert_eq!(answer.stays, stays, "{head:?}");
        }
    }
}
