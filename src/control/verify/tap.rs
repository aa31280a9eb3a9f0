//! What a proxy tells of the requests of one session, as they pass.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::question::id_in;
use crate::admin::client::{self, Events};
use crate::record::line::Line;

/// Requests that are remembered, the latest ones: a session may be busy while it is verified.
const MOST: usize = 10_000;

/// An open tap. It is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Tap {
    heard_rx: watch::Receiver<Heard>,
    _reader: JoinSet<()>,
}

/// All that a tap has told so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    sightings: VecDeque<Sighting>,
    /// Those that had an id in their target, by that; found at once, however busy the session is.
    probes: HashMap<String, Line>,
    /// The tap ended, for this reason: what it did not tell may have happened.
    pub ended: Option<String>,
}

/// One request that passed.
#[derive(Debug)]
pub(super) struct Sighting {
    pub line: Line,
    /// When it was told, which is when its answer was through.
    pub told: Instant,
}

impl Tap {
    /// Listens to the requests of that session, and to all others that take its route.
    ///
    /// # Errors
    /// The admin port cannot be asked, in words for people.
    pub(super) async fn open(admin: SocketAddr, session: &str) -> Result<Self, String> {
        let session = utf8_percent_encode(session, NON_ALPHANUMERIC);
        let response = client::get(admin, &format!("/tap?session={session}")).await?;
        if response.status() != StatusCode::OK {
            return Err(format!(
                "the admin port at {admin} answers {} to a request for its tap",
                response.status()
            ));
        }
        let (heard_tx, heard_rx) = watch::channel(Heard::default());
        let mut reader = JoinSet::new();
        reader.spawn(listen(Events::of(response.into_body()), heard_tx));
        Ok(Self {
            heard_rx,
            _reader: reader,
        })
    }

    /// Waits until what was heard is enough, or will never be more, or it is too late.
    pub(super) async fn until(&self, late: Instant, mut is_enough: impl FnMut(&Heard) -> bool) {
        let mut heard_rx = self.heard_rx.clone();
        let enough = heard_rx.wait_for(|heard| heard.ended.is_some() || is_enough(heard));
        // Whoever waited looks for themselves at what there is.
        let _ = timeout_at(late, enough).await;
    }

    pub(super) fn heard(&self) -> watch::Ref<'_, Heard> {
        self.heard_rx.borrow()
    }
}

impl Heard {
    pub(super) fn sightings(&self) -> impl DoubleEndedIterator<Item = &Sighting> {
        self.sightings.iter()
    }

    /// The request that had this id in its target.
    pub(super) fn of(&self, id: &str) -> Option<&Line> {
        self.probes.get(id)
    }

    pub(super) fn add(&mut self, line: Line) {
        if self.sightings.len() == MOST {
            self.sightings.pop_front();
        }
        if let Some(id) = id_in(&line.target)
            && self.probes.len() < MOST
        {
            self.probes.insert(id.to_owned(), line.clone());
        }
        let told = Instant::now();
        self.sightings.push_back(Sighting { line, told });
    }
}

async fn listen(mut events: Events, heard_tx: watch::Sender<Heard>) {
    let reason = loop {
        match events.next().await {
            Ok(Some(event)) => match serde_json::from_slice(&event) {
                Ok(line) => heard_tx.send_modify(|heard| heard.add(line)),
                Err(_) => {
                    break "its events are those of another version of session-proxy".to_owned();
                }
            },
            Ok(None) => break "the proxy went away".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    heard_tx.send_modify(|heard| heard.ended = Some(reason));
}
