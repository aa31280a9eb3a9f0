//! The access log: lines handed to a thread of its own, which writes them to stdout.
//!
//! A request never waits for a slow reader of stdout. What does not fit into the queue is lost,
//! and counted.

use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use super::line::Line;

/// Lines that may wait; at some hundred bytes each, about a megabyte.
const QUEUE: usize = 4096;

/// The sending end of the access log.
#[derive(Debug)]
pub struct AccessLog {
    format: fn(&Line) -> String,
    entries_tx: SyncSender<Entry>,
    dropped: IntCounter,
}

#[derive(Debug)]
enum Entry {
    Line(String),
    /// To be answered once everything before it is out.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Starts the thread. It ends when this is dropped and the queue is empty.
    pub fn new(
        format: fn(&Line) -> String,
        output: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> Self {
        let (entries_tx, entries_rx) = sync_channel(QUEUE);
        let lost = dropped.clone();
        let thread = thread::Builder::new().name("access-log".into());
        if let Err(error) = thread.spawn(move || write_all(&entries_rx, output, &lost)) {
            // The receiver is gone with the closure, so every line will be counted as lost.
            tracing::error!(%error, "no thread for the access log");
        }
        Self {
            format,
            entries_tx,
            dropped,
        }
    }

    /// Queues one line, or counts it as lost.
    pub fn write(&self, line: &Line) {
        let mut text = (self.format)(line);
        text.push('\n');
        if self.entries_tx.try_send(Entry::Line(text)).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits until everything queued so far is out, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (done_tx, done_rx) = sync_channel(1);
        let mut entry = Entry::Flush(done_tx);
        loop {
            match self.entries_tx.try_send(entry) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    entry = back;
                    thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return,
            }
        }
        // A timeout is the answer of a stdout nobody reads: those lines are lost either way.
        let _ = done_rx.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// The life of the thread: writes while there is something, flushes when there is nothing.
fn write_all(entries_rx: &Receiver<Entry>, output: impl Write, lost: &IntCounter) {
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    while let Ok(first) = entries_rx.recv() {
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Entry::Line(line)) => {
                    if output.write_all(line.as_bytes()).is_err() {
                        lost.inc();
                    }
                }
                Ok(Entry::Flush(done_tx)) => {
                    let _ = output.flush();
                    let _ = done_tx.send(());
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            next = entries_rx.try_recv();
        }
        let _ = output.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::record::line::tests::line;

    fn counter() -> IntCounter {
        IntCounter::new("n", "n").unwrap()
    }

    #[test]
    fn a_flush_waits_until_every_line_is_out() {
        let (reader, writer) = std::io::pipe().unwrap();
        let log = AccessLog::new(Line::to_text, writer, counter());

        (0..100).for_each(|n| log.write(&line("pr-42", &format!("/{n}"))));
        log.flush(Duration::from_secs(10));
        drop(log);

        let text = std::io::read_to_string(reader).unwrap();
        assert_eq!(text.lines().count(), 100);
        assert!(
            text.lines().last().unwrap().contains("target=/99 "),
            "{text}"
        );
    }

    /// An output that takes nothing until told.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_output_loses_lines_and_counts_them_but_holds_nobody_up() {
        let (release, stuck) = mpsc::channel();
        let dropped = counter();
        let log = AccessLog::new(Line::to_json, Stuck(stuck), dropped.clone());

        (0..3 * QUEUE).for_each(|_| log.write(&line("pr-42", "/")));
        log.flush(Duration::from_millis(20));

        assert!(dropped.get() >= QUEUE as u64, "{}", dropped.get());
        drop(release);
    }
}
