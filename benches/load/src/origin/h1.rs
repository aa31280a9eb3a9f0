//! The origin's HTTP/1.1: a head, perhaps a body, a prepared answer; again, until the client closes.

use std::io;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::{Answer, Answers};
use crate::wire::{Connection, Framing, fields, framing};

pub async fn serve(stream: TcpStream, answers: Rc<Answers>) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some(asked) = connection.head(|head| Asked::read(head, &answers)).await? {
        connection.discard(asked.framing).await?;
        connection.send(&asked.answer.h1).await?;
        if asked.close {
            break;
        }
    }
    Ok(())
}

/// What of a request's head decides anything here.
struct Asked<'a> {
    answer: &'a Answer,
    framing: Framing,
    close: bool,
}

impl<'a> Asked<'a> {
    fn read(head: &[u8], answers: &'a Answers) -> Self {
        let mut asked = Self {
            answer: answers.to(head.split(|byte| *byte == b' ').nth(1).unwrap_or_default()),
            framing: Framing::Unsaid,
            close: false,
        };
        for (name, value) in fields(head) {
            if let Some(said) = framing(name, value) {
                asked.framing = said;
            } else if name.eq_ignore_ascii_case(b"connection") {
                asked.close = value.eq_ignore_ascii_case(b"close");
            }
        }
        asked
    }
}
