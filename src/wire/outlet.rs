//! Where a client's byte stream is written to, at once or at the end of the turn.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

use super::Wire;
use crate::outbox::{Mailer, Outbox};

/// A byte stream whose small writes may be posted. Bytes leave in the order of their writes.
pub(super) struct Outlet<S> {
    stream: RefCell<S>,
    wire: Rc<Wire>,
    outbox: Rc<Outbox>,
    /// Writes in the outbox.
    posted: Cell<usize>,
    /// What the stream did not take at the end of a turn.
    rest: RefCell<BytesMut>,
    /// Why it took nothing.
    failure: Cell<Option<io::Error>>,
    /// Of the task that has posted.
    waker: RefCell<Waker>,
}

impl<S> Outlet<S> {
    pub(super) fn new(stream: S, wire: Rc<Wire>, outbox: &Rc<Outbox>) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(stream),
            wire,
            outbox: outbox.clone(),
            posted: Cell::new(0),
            rest: RefCell::default(),
            failure: Cell::default(),
            waker: RefCell::new(Waker::noop().clone()),
        })
    }

    pub(super) fn into_inner(self: Rc<Self>) -> S {
        let outlet = Rc::into_inner(self).expect("an outbox holds it only while it writes");
        outlet.stream.into_inner()
    }

    pub(super) fn stream(&self) -> Ref<'_, S> {
        self.stream.borrow()
    }

    pub(super) fn stream_mut(&self) -> RefMut<'_, S> {
        self.stream.borrow_mut()
    }

    /// Writes what is posted before anything else happens to the stream.
    pub(super) fn send_posted(&self) {
        if self.posted.get() > 0 {
            self.outbox.send();
        }
    }
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Leaves a write to the end of the turn.
    pub(super) fn poll_post(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>
    where
        S: 'static,
    {
        ready!(self.poll_rest(cx))?;
        self.waker.borrow_mut().clone_from(cx.waker());
        self.posted.set(self.posted.get() + 1);
        let mailer: Weak<Self> = Rc::downgrade(self);
        self.outbox.post(mailer, parts);
        Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
    }

    /// Writes at once, behind what was posted.
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.send_posted();
        ready!(self.poll_rest(cx))?;
        match parts {
            [part] => self.on_stream(|stream| stream.poll_write(cx, part)),
            _ => self.on_stream(|stream| stream.poll_write_vectored(cx, parts)),
        }
    }

    /// What is posted counts as flushed: the end of the turn is near, and who waited for it would be
    /// woken for nothing.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        if self.posted.get() > 0 {
            return Poll::Ready(Ok(()));
        }
        self.on_stream(|stream| stream.poll_flush(cx))
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send_posted();
        ready!(self.poll_rest(cx))?;
        self.on_stream(|stream| stream.poll_shutdown(cx))
    }

    /// Writes what the end of a turn has left, and tells what went wrong there.
    fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Err(failure));
        }
        let mut rest = self.rest.borrow_mut();
        while !rest.is_empty() {
            match ready!(self.on_stream(|stream| stream.poll_write(cx, &rest)))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    rest.advance(written);
                    self.wire.moved.set(self.wire.moved.get() + written as u64);
                }
            }
            if rest.is_empty() {
                *rest = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes over all of `bytes`: what the stream does not take is left, and pending.
    fn poll_write_all(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<()>> {
        let written = match self.poll_rest(cx) {
            Poll::Ready(Ok(())) => self.on_stream(|stream| stream.poll_write(cx, bytes)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        let written = match written {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < bytes.len() {
            self.rest.borrow_mut().extend_from_slice(&bytes[written..]);
            return Poll::Pending;
        }
        self.on_stream(|stream| stream.poll_flush(cx))
    }

    fn on_stream<T>(&self, call: impl FnOnce(Pin<&mut S>) -> T) -> T {
        call(Pin::new(&mut *self.stream.borrow_mut()))
    }
}

impl<S: AsyncWrite + Unpin> Mailer for Outlet<S> {
    fn send(&self, bytes: &[u8]) {
        self.posted.set(self.posted.get() - 1);
        let waker = self.waker.borrow();
        match self.poll_write_all(&mut Context::from_waker(&waker), bytes) {
            Poll::Ready(Ok(())) => return,
            Poll::Ready(Err(error)) => self.failure.set(Some(error)),
            Poll::Pending => {}
        }
        // The engine takes it for flushed: it has to come by again, and who watches over it too.
        self.wire.has_unflushed.set(true);
        waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use super::*;
    use crate::drain::Drain;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Alarm(AtomicUsize);

    impl Wake for Alarm {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        alarm: Arc<Alarm>,
        outlet: Rc<Outlet<DuplexStream>>,
        outbox: Rc<Outbox>,
        wire: Rc<Wire>,
        peer: DuplexStream,
    }

    /// An outlet to a stream that holds so many bytes until its peer reads.
    fn bench(room: usize) -> Bench {
        let (stream, peer) = duplex(room);
        let outbox = Outbox::new(Drain::new().draining());
        let wire = Wire::new(1024);
        Bench {
            alarm: Arc::default(),
            outlet: Outlet::new(stream, wire.clone(), &outbox),
            outbox,
            wire,
            peer,
        }
    }

    impl Bench {
        fn post(&self, text: &str) -> Poll<io::Result<usize>> {
            let waker = self.alarm.clone().into();
            let parts = [IoSlice::new(text.as_bytes())];
            self.outlet
                .poll_post(&mut Context::from_waker(&waker), &parts)
        }

        fn flush(&self) -> Poll<io::Result<()>> {
            self.outlet
                .poll_flush(&mut Context::from_waker(Waker::noop()))
        }

        fn woken(&self) -> usize {
            self.alarm.0.load(Ordering::Relaxed)
        }

        async fn read(&mut self, bytes: usize) -> String {
            let mut text = vec![0; bytes];
            self.peer.read_exact(&mut text).await.expect("it is there");
            String::from_utf8(text).expect("text was posted")
        }
    }

    #[tokio::test]
    async fn what_the_stream_does_not_take_follows_in_order() {
        let mut bench = bench(4);
        for text in ["one ", "two ", "three"] {
            assert!(bench.post(text).is_ready());
        }
        assert!(bench.flush().is_ready(), "the end of the turn is near");
        bench.outbox.send();
        assert!(bench.wire.has_unflushed());
        assert!(bench.woken() > 0, "nobody else looks after it");
        assert!(bench.flush().is_pending());
        assert!(bench.post("four").is_pending(), "nothing is added to it");
        let moved = bench.wire.moved();
        assert_eq!(bench.read(4).await, "one ");
        assert!(bench.flush().is_pending());
        assert_eq!(bench.wire.moved() - moved, 4, "the client takes it");
        assert_eq!(bench.read(4).await, "two ");
        assert!(bench.flush().is_pending());
        assert_eq!(bench.read(4).await, "thre");
        assert!(bench.flush().is_ready());
        assert_eq!(bench.read(1).await, "e");
        assert!(bench.post("four").is_ready());
        let woken = bench.woken();
        bench.outbox.send();
        assert_eq!(bench.woken(), woken, "there is nothing left to do");
        assert_eq!(bench.read(4).await, "four");
    }

    #[tokio::test]
    async fn nothing_overtakes_what_is_posted() {
        let mut bench = bench(64);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(bench.post("small ").is_ready());
        let large = [IoSlice::new(b"large ")];
        assert!(bench.outlet.poll_write(&mut cx, &large).is_ready());
        assert!(bench.post("last").is_ready());
        assert!(bench.outlet.poll_shutdown(&mut cx).is_ready());
        let mut text = String::new();
        let reading = bench.peer.read_to_string(&mut text);
        reading.await.expect("the stream was ended");
        assert_eq!(text, "small large last");
    }

    #[test]
    fn what_failed_at_the_end_of_a_turn_is_told_once() {
        let Bench {
            outlet,
            outbox,
            wire,
            peer,
            ..
        } = bench(64);
        let mut cx = Context::from_waker(Waker::noop());
        let parts = [IoSlice::new(b"text")];
        assert!(outlet.poll_post(&mut cx, &parts).is_ready());
        drop(peer);
        outbox.send();
        assert!(wire.has_unflushed());
        let told = outlet.poll_flush(&mut cx);
        assert!(matches!(outlet.poll_flush(&mut cx), Poll::Ready(Ok(()))));
        assert!(
            matches!(told, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe)
        );
    }
}
