//! The body of an answer out of bytes (RFC 9112, sections 6 and 7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http_body::SizeHint;

use super::BodyError;

/// Bytes of a chunk's size and its extensions, which nobody uses.
const CHUNK_LINE_LIMIT: usize = 4 << 10;

/// Bytes of all trailers, and their number.
const TRAILERS_LIMIT: usize = 16 << 10;
const TRAILERS: usize = 100;

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Takes a body apart as its bytes come.
#[derive(Debug)]
pub(super) struct Decoder(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Over,
    Length(u64),
    UntilClose,
    /// The line with a chunk's size comes next.
    ChunkLine,
    /// So much is left of a chunk.
    Chunk(u64),
    /// The end of line behind a chunk.
    ChunkEnd,
    /// Fields, and the empty line behind them.
    Trailers,
}

/// What came out.
#[derive(Debug)]
pub(super) enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Nothing follows.
    End,
    /// Nothing without more bytes.
    More,
}

impl Framing {
    /// Whether the end can be told from the bytes.
    pub(super) fn has_end(self) -> bool {
        self != Self::UntilClose
    }
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Over,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Of no body.
    pub(super) fn none() -> Self {
        Self(State::Over)
    }

    /// Whether nothing follows.
    pub(super) fn is_over(&self) -> bool {
        self.0 == State::Over
    }

    /// What is known of the length that is left.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.0 {
            State::Over => SizeHint::with_exact(0),
            State::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The peer has ended its stream. Whether that is the end of the body.
    pub(super) fn end_of_stream(&mut self) -> bool {
        if self.0 == State::UntilClose {
            self.0 = State::Over;
        }
        self.is_over()
    }

    /// Takes all that is left, if its length is known and it is there.
    pub(super) fn whole(&mut self, input: &mut BytesMut) -> Option<Bytes> {
        let left = match self.0 {
            State::Length(left) => usize::try_from(left).ok()?,
            _ => return None,
        };
        (left <= input.len()).then(|| {
            self.0 = State::Over;
            input.split_to(left).freeze()
        })
    }

    /// Takes what comes next from `input`; bytes behind the end stay there.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, BodyError> {
        self.skip_frame(input)?;
        match self.0 {
            State::Over => Ok(Decoded::End),
            _ if input.is_empty() => Ok(Decoded::More),
            State::UntilClose => Ok(Decoded::Data(input.split().freeze())),
            State::Length(left) => {
                let (data, left) = take(input, left);
                self.0 = match left {
                    0 => State::Over,
                    left => State::Length(left),
                };
                Ok(Decoded::Data(data))
            }
            State::Chunk(left) => {
                let (data, left) = take(input, left);
                self.0 = match left {
                    0 => State::ChunkEnd,
                    left => State::Chunk(left),
                };
                // With the end at hand nobody needs to ask once more. What is malformed stays, and is
                // told behind the data.
                let _ = self.skip_frame(input);
                Ok(Decoded::Data(data))
            }
            State::Trailers => match trailers(input)? {
                Some(trailers) => {
                    self.0 = State::Over;
                    Ok(Decoded::Trailers(trailers))
                }
                None => Ok(Decoded::More),
            },
            State::ChunkLine | State::ChunkEnd => Ok(Decoded::More),
        }
    }

    /// Steps over what stands between the data of two chunks, as far as it is there.
    fn skip_frame(&mut self, input: &mut BytesMut) -> Result<(), BodyError> {
        loop {
            self.0 = match self.0 {
                State::ChunkEnd => match end_of_line(input)? {
                    true => State::ChunkLine,
                    false => return Ok(()),
                },
                State::ChunkLine => match chunk_line(input)? {
                    Some(0) => State::Trailers,
                    Some(size) => State::Chunk(size),
                    None => return Ok(()),
                },
                State::Trailers if input.first() == Some(&b'\r') => match end_of_line(input)? {
                    true => State::Over,
                    false => return Ok(()),
                },
                _ => return Ok(()),
            };
        }
    }
}

/// At most `left` bytes, and how many are left then.
fn take(input: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let bytes = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
    (input.split_to(bytes).freeze(), left - bytes as u64)
}

/// Takes CR LF. False: it has not come yet.
fn end_of_line(input: &mut BytesMut) -> Result<bool, BodyError> {
    const END: &[u8] = b"\r\n";
    let known = input.len().min(END.len());
    if input[..known] != END[..known] {
        return Err(BodyError::Chunk);
    }
    if known == END.len() {
        input.advance(known);
    }
    Ok(known == END.len())
}

/// Takes the line with a chunk's size. `None`: it has not come yet.
fn chunk_line(input: &mut BytesMut) -> Result<Option<u64>, BodyError> {
    let looked_at = &input[..input.len().min(CHUNK_LINE_LIMIT)];
    // A size that is none is told before its line is complete; the parser takes an empty one for zero.
    if looked_at
        .first()
        .is_some_and(|byte| !byte.is_ascii_hexdigit())
    {
        return Err(BodyError::Chunk);
    }
    // A bare LF inside an extension is the end of the line to others.
    let has_lf = |line: &[u8]| line.contains(&b'\n');
    match httparse::parse_chunk_size(looked_at) {
        Ok(httparse::Status::Complete((end, size))) if !has_lf(&looked_at[..end - 1]) => {
            input.advance(end);
            Ok(Some(size))
        }
        Ok(httparse::Status::Partial)
            if looked_at.len() < CHUNK_LINE_LIMIT && !has_lf(looked_at) =>
        {
            Ok(None)
        }
        _ => Err(BodyError::Chunk),
    }
}

/// Takes the trailers and the empty line behind them. `None`: they have not come yet.
fn trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, BodyError> {
    let mut parsed = [httparse::EMPTY_HEADER; TRAILERS];
    let (end, fields) = match httparse::parse_headers(input, &mut parsed) {
        Ok(httparse::Status::Complete((end, _)))
            if end > TRAILERS_LIMIT || has_bare_lf(&input[..end]) =>
        {
            return Err(BodyError::Chunk);
        }
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Ok(httparse::Status::Partial) if input.len() <= TRAILERS_LIMIT => return Ok(None),
        _ => return Err(BodyError::Chunk),
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(BodyError::Chunk);
        };
        trailers.append(name, value);
    }
    input.advance(end);
    Ok(Some(trailers))
}

/// Whether a line ends without CR, in lines that are complete: to some that is the end of a line, and
/// of the answer, to others not.
fn has_bare_lf(lines: &[u8]) -> bool {
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
    let mut lines = lines.split(|byte| *byte == b'\n');
    lines.any(|line| !line.ends_with(b"\r"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that comes out of these pieces: data, trailers, and how it ended.
    #[derive(Debug, Default, PartialEq)]
    struct Read {
        data: Vec<u8>,
        trailers: Option<HeaderMap>,
        is_over: bool,
        is_malformed: bool,
        left: Vec<u8>,
    }

    fn read(framing: Framing, pieces: &[&[u8]]) -> Read {
        let mut decoder = Decoder::new(framing);
        let mut input = BytesMut::new();
        let mut read = Read::default();
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut input) {
                    Ok(Decoded::Data(data)) => read.data.extend_from_slice(&data),
                    Ok(Decoded::Trailers(trailers)) => read.trailers = Some(trailers),
                    Ok(Decoded::End | Decoded::More) => break,
                    Err(_) => {
                        read.is_malformed = true;
                        return read;
                    }
                }
            }
        }
        read.is_over = decoder.is_over();
        read.left = input.to_vec();
        read
    }

    /// Reads them in one piece, byte by byte, and cut in two at every place: always the same.
    fn read_in_all_splits(framing: Framing, bytes: &[u8]) -> Read {
        let whole = read(framing, &[bytes]);
        let each: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(framing, &each), whole, "{}", bytes.escape_ascii());
        for place in 0..bytes.len() {
            let (now, later) = bytes.split_at(place);
            let read = read(framing, &[now, later]);
            assert_eq!(read, whole, "{} at {place}", bytes.escape_ascii());
        }
        whole
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        use Framing::{Chunked, Length, UntilClose};
        /// Bytes, the data in them, whether they are all of it, and what is left.
        type Row = (Framing, &'static [u8], &'static [u8], bool, &'static [u8]);
        let table: [Row; 11] = [
            (Length(0), b"next", b"", true, b"next"),
            (Length(5), b"hellonext", b"hello", true, b"next"),
            (Length(5), b"hell", b"hell", false, b""),
            (UntilClose, b"anything\r\n", b"anything\r\n", false, b""),
            (Chunked, b"0\r\n\r\nnext", b"", true, b"next"),
            (Chunked, b"5\r\nhello\r\n0\r\n\r\n", b"hello", true, b""),
            (
                Chunked,
                b"00A;a=\"b\" \r\n0123456789\r\n1 \r\n!\r\n000\r\n\r\n",
                b"0123456789!",
                true,
                b"",
            ),
            (Chunked, b"5\r\nhel", b"hel", false, b""),
            (Chunked, b"5\r\nhello\r", b"hello", false, b"\r"),
            (Chunked, b"5\r\nhello\r\n0\r\n", b"hello", false, b""),
            (Chunked, b"ffffffffffffffff\r\na", b"a", false, b""),
        ];
        for (framing, bytes, data, is_over, left) in table {
            let read = read_in_all_splits(framing, bytes);

            let expected = Read {
                data: data.to_vec(),
                is_over,
                left: left.to_vec(),
                ..Read::default()
            };
            assert_eq!(read, expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn chunks_that_can_be_read_in_two_ways_are_refused_behind_their_data() {
        let table: [(&[u8], &[u8]); 16] = [
            (b"\r\n", b""),
            (b"x\r\n", b""),
            (b" 5\r\nhello\r\n", b""),
            (b"+5\r\nhello\r\n", b""),
            (b"0x5\r\nhello\r\n", b""),
            (b"5 0\r\nhello\r\n", b""),
            (b"5\nhello\r\n", b""),
            (b"5;a\nb\r\nhello\r\n", b""),
            (b"5;\r\r\nhello\r\n", b""),
            (b"10000000000000000\r\n", b""),
            (b"5\r\nhelloX\r\n", b"hello"),
            (b"5\r\nhello\n0\r\n\r\n", b"hello"),
            (b"0\r\n\n", b""),
            (b"0\r\na: b\n\n", b""),
            (b"0\r\na: b\nc: d\r\n\r\n", b""),
            (b"0\r\n\rX", b""),
        ];
        for (bytes, data) in table {
            let read = read_in_all_splits(Framing::Chunked, bytes);

            assert!(read.is_malformed, "{}", bytes.escape_ascii());
            assert_eq!(read.data, data, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn trailers_come_behind_the_data() {
        let bytes = b"1\r\na\r\n0\r\nX-Sum: 1\r\nx-sum:  2\r\n\r\nnext";

        let read = read_in_all_splits(Framing::Chunked, bytes);

        let trailers = read.trailers.expect("trailers");
        let sums: Vec<_> = trailers.get_all("x-sum").iter().collect();
        assert_eq!(sums, ["1", "2"]);
        assert!(read.is_over);
        assert_eq!((&read.data[..], &read.left[..]), (&b"a"[..], &b"next"[..]));
    }

    #[test]
    fn what_stands_between_data_has_a_limit() {
        let long = "a".repeat(TRAILERS_LIMIT);
        let many = "a: b\r\n".repeat(TRAILERS + 1);
        for bytes in [
            format!("1;{long}"),
            format!("1;{long}\r\n"),
            format!("0\r\nx-long: {long}"),
            format!("0\r\nx-long: {long}\r\n\r\n"),
            format!("0\r\n{many}\r\n"),
        ] {
            assert!(
                read(Framing::Chunked, &[bytes.as_bytes()]).is_malformed,
                "{bytes:.20}"
            );
        }
        let some = "a: b\r\n".repeat(TRAILERS);
        let bytes = format!(
            "1;{}\r\na\r\n0\r\n{some}\r\n",
            &long[..CHUNK_LINE_LIMIT - 5]
        );
        assert!(read(Framing::Chunked, &[bytes.as_bytes()]).is_over);
    }

    #[test]
    fn the_end_of_the_stream_is_the_end_of_a_body_that_lasts_until_then_alone() {
        let ends = |framing| Decoder::new(framing).end_of_stream();

        assert!(ends(Framing::UntilClose) && ends(Framing::Length(0)));
        assert!(!ends(Framing::Chunked) && !ends(Framing::Length(1)));
    }
}
