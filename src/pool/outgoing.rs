//! The request body on its way to the upstream, and the memory of whether any of it has gone.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::wire::Pace;

/// What is sent to the upstream: the client's body, passed through.
#[derive(Debug)]
pub struct Outgoing {
    /// `None`: there is no body, and so nothing to remember.
    upload: Option<Rc<Upload>>,
}

/// What became of a request body, seen from the exchange.
#[derive(Debug)]
pub struct Upload {
    /// Gone once the exchange has taken it back for another try.
    incoming: RefCell<Option<Incoming>>,
    progress: Cell<Progress>,
    bytes: Cell<u64>,
    moved: Cell<Instant>,
    version: Version,
    /// Told when the last byte has been read from the client.
    pace: Rc<Pace>,
}

/// Why a request body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client's connection or stream failed.
    #[error("the client broke off: {0}")]
    Client(#[from] hyper::Error),
    /// RFC 9113, section 8.1: reset without an error, but without an end either.
    #[error("the client ended its stream in the middle of the body")]
    Cut,
}

/// How far a request body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No byte of it was asked for: the request may be sent again.
    Untouched,
    /// The upstream would take more, the client has not sent it yet.
    AwaitsClient,
    /// The upstream has not asked for more yet.
    AwaitsUpstream,
    Finished,
    /// The client broke off.
    Broken,
}

impl Outgoing {
    /// The body of a request that came by `version`, and its memory when there is one. `pace` is
    /// told when the last byte has been read from the client.
    pub fn new(incoming: Incoming, version: Version, pace: Rc<Pace>) -> (Self, Option<Rc<Upload>>) {
        if incoming.is_end_stream() {
            return (Self { upload: None }, None);
        }
        let upload = Rc::new(Upload {
            incoming: RefCell::new(Some(incoming)),
            progress: Cell::new(Progress::Untouched),
            bytes: Cell::new(0),
            moved: Cell::new(Instant::now()),
            version,
            pace,
        });
        (
            Self {
                upload: Some(upload.clone()),
            },
            Some(upload),
        )
    }

    pub fn empty() -> Self {
        Self { upload: None }
    }
}

impl Upload {
    pub fn progress(&self) -> Progress {
        self.progress.get()
    }

    /// Payload bytes handed to the upstream connection.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// When the body last moved.
    pub fn moved(&self) -> Instant {
        self.moved.get()
    }

    /// The body once more, for another try; only while it is untouched.
    pub fn again(&self) -> Option<(Outgoing, Option<Rc<Self>>)> {
        if self.progress.get() != Progress::Untouched {
            return None;
        }
        let incoming = self.incoming.borrow_mut().take()?;
        Some(Outgoing::new(incoming, self.version, self.pace.clone()))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(upload) = &self.upload else {
            return Poll::Ready(None);
        };
        let mut incoming = upload.incoming.borrow_mut();
        let Some(body) = incoming.as_mut() else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        let frame = match polled {
            Poll::Pending => {
                upload.progress.set(Progress::AwaitsClient);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        upload.moved.set(Instant::now());
        let is_over = body.is_end_stream();
        let (progress, frame) = match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                upload.bytes.set(upload.bytes.get() + bytes as u64);
                let is_over = is_over || frame.is_trailers();
                let progress = if is_over {
                    Progress::Finished
                } else {
                    Progress::AwaitsUpstream
                };
                (progress, Some(Ok(frame)))
            }
            None if upload.version == Version::HTTP_2 && !is_over => {
                (Progress::Broken, Some(Err(UploadError::Cut)))
            }
            None => (Progress::Finished, None),
            Some(Err(error)) => (Progress::Broken, Some(Err(error.into()))),
        };
        upload.progress.set(progress);
        if progress == Progress::Finished {
            upload.pace.has_read_all();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let Some(upload) = &self.upload else {
            return true;
        };
        upload
            .incoming
            .borrow()
            .as_ref()
            .is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let Some(upload) = &self.upload else {
            return SizeHint::with_exact(0);
        };
        upload
            .incoming
            .borrow()
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Outgoing {
    /// The engine lets go of a body it will not finish, say after an early answer; then the
    /// client's side of it must end too, and not wait for an exchange that still remembers it.
    fn drop(&mut self) {
        if let Some(upload) = &self.upload
            && upload.progress.get() != Progress::Untouched
        {
            upload.incoming.borrow_mut().take();
        }
    }
}
