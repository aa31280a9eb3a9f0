//! One exchange as one line, for people (text) and for programs (JSON).
//!
//! Clients choose some of these values. Both forms are printable ASCII alone, so that no value
//! can begin a line of its own, close its quotes or steer a terminal.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What is said about one exchange. Read back by the `tap` command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When the request's head arrived: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Address and port of the client.
    pub client: String,
    /// The listener's name.
    pub listener: String,
    /// The request's method.
    pub method: String,
    /// Path and query as sent; cut at 2048 bytes.
    pub target: String,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub version: String,
    /// What the request said, known or not; cut at 2048 bytes.
    pub session: Option<String>,
    /// The route's label.
    pub route: String,
    /// Why that route, or why we answered ourselves.
    pub reason: String,
    /// The answer's status; 499 when the client left before there was one.
    pub status: u16,
    /// The endpoint that got the request.
    pub upstream: Option<String>,
    /// From the request's head to the last byte of its answer.
    pub duration_ms: f64,
    /// Of that, the time the proxy itself took.
    pub overhead_us: u64,
    /// Length of the request's body.
    pub request_bytes: u64,
    /// Length of the answer's body.
    pub response_bytes: u64,
    /// How often the request was sent once more.
    pub retries: u32,
    /// What broke after the head of the answer.
    pub error: Option<String>,
    /// The target pod whose request it was, where one tap tells about several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

impl Line {
    /// One line of `key=value`, without its end. Absent values are `-`.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(320);
        self.write_text(&mut text)
            .expect("a String takes everything");
        text
    }

    /// One JSON object, without a line end. Absent values are `null`.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string(self).expect("strings and numbers only");
        if json.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return json;
        }
        // serde_json escapes what JSON requires. The rest outside of ASCII, and DEL, can only
        // stand inside of strings here, where \u means the same.
        let mut ascii = String::with_capacity(json.len() * 2);
        for c in json.chars() {
            match c {
                ' '..='~' => ascii.push(c),
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(ascii, "\\u{unit:04x}").expect("a String takes everything");
                    }
                }
            }
        }
        ascii
    }

    fn write_text(&self, out: &mut impl Write) -> fmt::Result {
        let Self {
            status,
            duration_ms,
            overhead_us,
            ..
        } = self;
        let Self {
            request_bytes,
            response_bytes,
            retries,
            ..
        } = self;
        let or_none = |value: &Option<String>| Value(value.as_deref()).to_string();
        write!(
            out,
            "time={} client={}",
            self.time,
            Value(Some(&self.client))
        )?;
        write!(out, " listener={}", Value(Some(&self.listener)))?;
        write!(out, " method={}", Value(Some(&self.method)))?;
        write!(out, " target={}", Value(Some(&self.target)))?;
        write!(out, " version={}", Value(Some(&self.version)))?;
        write!(out, " session={}", or_none(&self.session))?;
        write!(out, " route={}", Value(Some(&self.route)))?;
        write!(out, " reason={} status={status}", Value(Some(&self.reason)))?;
        write!(out, " upstream={}", or_none(&self.upstream))?;
        write!(
            out,
            " duration_ms={duration_ms:.3} overhead_us={overhead_us}"
        )?;
        write!(
            out,
            " request_bytes={request_bytes} response_bytes={response_bytes}"
        )?;
        write!(out, " retries={retries} error={}", or_none(&self.error))?;
        match &self.pod {
            Some(pod) => write!(out, " pod={}", Value(Some(pod))),
            None => Ok(()),
        }
    }
}

/// A value of a text line: bare when it is plain, else in quotes with escapes.
struct Value<'a>(Option<&'a str>);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else {
            return f.write_str("-");
        };
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
        if !text.is_empty() && text != "-" && text.bytes().all(is_plain) {
            return f.write_str(text);
        }
        f.write_char('"')?;
        for c in text.chars() {
            match c {
                ' ' => f.write_char(' ')?,
                // The escapes of a Rust string: quotes and backslash, and \u{…} outside of ASCII.
                c => write!(f, "{}", c.escape_default())?,
            }
        }
        f.write_char('"')
    }
}

/// RFC 3339 in UTC with milliseconds, such as `2024-02-29T23:59:59.999Z`.
pub fn rfc3339(time: SystemTime) -> String {
    // A clock before 1970 is a broken clock; it reads as 1970.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of the proleptic Gregorian calendar, from days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of year 0, so that a leap day is the last of its year, and in spans of
    // 400 years, which all have 146,097 days.
    let days = days + 719_468;
    let (span, day_of_span) = (days / 146_097, days % 146_097);
    let leap_days = day_of_span / 1_460 - day_of_span / 36_524 + day_of_span / 146_096;
    let year_of_span = (day_of_span - leap_days) / 365;
    let day_of_year = day_of_span - (365 * year_of_span + year_of_span / 4 - year_of_span / 100);
    // From March on, every five months have 153 days.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = 400 * span + year_of_span + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    /// A line in which a client chose everything it can choose.
    pub(crate) fn line(session: &str, target: &str) -> Line {
        Line {
            time: rfc3339(UNIX_EPOCH),
            client: "[::1]:4711".into(),
            listener: "http".into(),
            method: "GET".into(),
            target: target.into(),
            version: "HTTP/1.1".into(),
            session: Some(session.into()),
            route: "baseline".into(),
            reason: "unknown-session".into(),
            status: 200,
            upstream: None,
            duration_ms: 1.5,
            overhead_us: 40,
            request_bytes: 0,
            response_bytes: 3,
            retries: 0,
            error: None,
            pod: None,
        }
    }

    #[test]
    fn a_line_says_whose_pod_it_was_only_where_there_are_several() {
        let alone = line("a", "/");
        let one_of_many = Line {
            pod: Some("orders-1".into()),
            ..alone.clone()
        };

        assert!(!alone.to_json().contains("pod") && !alone.to_text().contains("pod="));
        assert!(one_of_many.to_text().ends_with(" error=- pod=orders-1"));
        let read: Line = serde_json::from_str(&one_of_many.to_json()).unwrap();
        assert_eq!(read, one_of_many);
    }

    #[test]
    fn a_text_line_names_every_field_once() {
        assert_eq!(
            line("pr-42", "/a/b").to_text(),
            "time=1970-01-01T00:00:00.000Z client=[::1]:4711 listener=http method=GET target=/a/b \
             version=HTTP/1.1 session=pr-42 route=baseline reason=unknown-session status=200 \
             upstream=- duration_ms=1.500 overhead_us=40 request_bytes=0 response_bytes=3 \
             retries=0 error=-"
        );
    }

    #[test]
    fn hostile_values_forge_neither_lines_nor_fields_nor_colours() {
        for hostile in [
            "x\nstatus=500",
            "x\r\n",
            "x status=500",
            "\" status=500 \"",
            "\\\" status=500",
            "\u{1b}[31m",
            "\u{9b}31m",
            "\u{202e}",
            "\u{7f}",
            "-",
            "",
            "a=b",
            "\u{1f980}",
        ] {
            let line = line(hostile, hostile);
            for written in [line.to_text(), line.to_json()] {
                let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
                assert!(written.bytes().all(printable), "{written:?}");
            }
            assert_eq!(serde_json::from_str::<Line>(&line.to_json()).unwrap(), line);
            assert_eq!(fields_named(&line.to_text(), "status"), 1, "{hostile:?}");
        }
    }

    /// How many fields of that name a reader finds who knows quotes and backslashes.
    fn fields_named(text: &str, name: &str) -> usize {
        let (mut quoted, mut escaped, mut fields) = (false, false, vec![String::new()]);
        for c in text.chars() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                ' ' if !quoted => fields.push(String::new()),
                c => fields.last_mut().unwrap().push(c),
            }
        }
        assert!(!quoted);
        fields
            .iter()
            .filter(|field| field.split('=').next() == Some(name))
            .count()
    }

    #[test]
    fn times_are_calendar_times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn every_day_of_two_centuries_agrees_with_httpdate() {
        for day in 0..73_000 {
            let time = UNIX_EPOCH + Duration::from_secs(day * 86_400);
            let http = httpdate::fmt_http_date(time);
            let (year, month, day_of_month) = civil(day);
            assert_eq!(http[12..16], format!("{year}"));
            assert_eq!(http[5..7], format!("{day_of_month:02}"));
            let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
            assert_eq!(months.find(&http[8..11]), Some(3 * (month as usize - 1)));
        }
    }
}
