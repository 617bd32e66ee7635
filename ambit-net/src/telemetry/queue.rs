//! A bounded queue of log lines and the thread that writes them out.
//!
//! Called by `telemetry`. Threads that serve connections put lines in and never wait; under load many lines are one
//! write.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait: at 300 bytes a line about 1 MB, and a second of a node that closes 4000 connections in it.
const LINES: usize = 4096;
/// Bytes that are written at once, unless one line is longer. The capacity of a pipe (`man 7 pipe`).
const BATCH: usize = 64 * 1024;
/// How long a flush waits for whoever reads the log.
const FLUSH: Duration = Duration::from_secs(1);
/// How often a flush looks for room in a full queue in that time.
const FLUSH_TRIES: u32 = 100;

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Where lines are put in; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    items: SyncSender<Item>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
}

impl Queue {
    /// Starts the thread that writes to `out` for the rest of the process's life.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::with_bound(out, LINES)
    }

    fn with_bound(out: impl Write + Send + 'static, lines: usize) -> io::Result<Self> {
        let (items, queued) = sync_channel(lines);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_out(&queued, out))?;
        Ok(Self { items })
    }

    /// Waits until what was put in before is written; gives up when whoever reads the log takes nothing for a second.
    pub(super) fn flush(&self) {
        let (written, done) = sync_channel(1);
        let mut item = Item::Flush(written);
        for _ in 0..FLUSH_TRIES {
            match self.items.try_send(item) {
                Err(TrySendError::Full(back)) => item = back,
                // Either way there is nothing left to do.
                Ok(()) | Err(TrySendError::Disconnected(_)) => break,
            }
            thread::park_timeout(FLUSH / FLUSH_TRIES);
        }
        let _all_written = done.recv_timeout(FLUSH).is_ok();
    }
}

/// Lines that were dropped because the queue was full.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Writes one line past the queue; a failure has nobody left to be told to.
pub(super) fn write_line(mut out: impl Write, line: &str) {
    drop(writeln!(out, "{line}"));
    drop(out.flush());
}

/// Takes each event as one write, which is how `tracing_subscriber::fmt` gives them.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write_out(queued: &Receiver<Item>, mut out: impl Write) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut told = dropped();
    while let Ok(first) = queued.recv() {
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Line(line) => batch.extend_from_slice(&line),
                Item::Flush(done) => waiting.push(done),
            }
            next = if batch.len() < BATCH {
                queued.try_recv().ok()
            } else {
                None
            };
        }
        // A closed standard output must not end the program, and there is nowhere else to say it.
        drop(out.write_all(&batch).and_then(|()| out.flush()));
        batch.clear();
        for done in waiting {
            let _still_awaited = done.try_send(()).is_ok();
        }
        let lost = dropped().wrapping_sub(told);
        if lost > 0 {
            told = told.wrapping_add(lost);
            warn!(
                lines = lost,
                "log lines were dropped; whoever reads the log does not keep up"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_in_order_and_a_flush_waits_for_them() {
        let paper = Paper::default();
        let mut queue = Queue::start(paper.clone()).unwrap();
        let mut expected = String::new();
        for number in 0..1000 {
            let line = format!("line {number}\n");
            queue.write_all(line.as_bytes()).unwrap();
            expected.push_str(&line);
        }
        queue.flush();
        assert_eq!(
            String::from_utf8(paper.0.lock().unwrap().clone()).unwrap(),
            expected
        );
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_never_the_writer() {
        let paper = Paper::default();
        let stalled = paper.0.lock().unwrap();
        let mut queue = Queue::with_bound(paper.clone(), 4).unwrap();
        let before = dropped();
        for _ in 0..100 {
            queue.write_all(b"line\n").unwrap();
        }
        assert!(dropped() > before);
        drop(stalled);
        queue.flush();
        assert!(paper.0.lock().unwrap().starts_with(b"line\n"));
    }
}
