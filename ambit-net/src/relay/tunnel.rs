//! Between a plain connection and a stream of a tunnel: chunks of HTTP/2 are written as they are, with no copy between.
//!
//! Used for everything that goes through HBONE, on both nodes.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;

use super::socket::{End, poll_read, poll_write};
use super::{ByteCounts, RelayError, TURN};
use crate::hbone::HboneStream;

/// Parts that one call writes; more would need more than one call with HTTP/2's frames anyway.
const PARTS: usize = 64;

/// While the app does not read, chunks up to this size are gathered: a chunk costs more than its bytes.
const SMALL: usize = 1024;

/// Size of what is gathered.
const GATHER: usize = 16 * 1024;

/// Carries both ways until both sides have finished.
pub(super) async fn carry(
    app: &End<'_>,
    stream: &mut HboneStream,
    counts: &ByteCounts,
) -> Result<(), RelayError> {
    let (mut up_done, mut down_done) = (false, false);
    let mut down = Down::default();
    let mut app_failed = pin!(app.failure());
    poll_fn(|cx| {
        // Up comes first: an app that answers early and closes has its answer read before a write to it fails.
        if !up_done {
            up_done = poll_up(cx, app, stream, counts)?.is_ready();
        }
        if !down_done && down.poll(cx, app, stream, counts)?.is_ready() {
            app.finish(up_done).map_err(RelayError::App)?;
            down_done = true;
        }
        match (up_done, down_done) {
            (true, true) => return Poll::Ready(Ok(())),
            // A side that has finished sending can still be reset, which reading does not notice.
            (true, false) => {
                if let Poll::Ready(error) = app_failed.as_mut().poll(cx) {
                    return Poll::Ready(Err(RelayError::App(error)));
                }
            }
            (false, true) => {
                if let Poll::Ready(stopped) = stream.poll_end(cx) {
                    return Poll::Ready(stopped.map(drop).map_err(RelayError::from));
                }
            }
            (false, false) => {}
        }
        Poll::Pending
    })
    .await
}

/// From the app into the tunnel.
fn poll_up(
    cx: &mut Context<'_>,
    app: &End<'_>,
    stream: &mut HboneStream,
    counts: &ByteCounts,
) -> Poll<Result<(), RelayError>> {
    let mut turn = 0;
    while turn < TURN {
        if !ready!(stream.poll_room(cx))? {
            return Poll::Ready(Ok(()));
        }
        let chunk = ready!(poll_read(app.tcp(), cx)).map_err(RelayError::App)?;
        let length = chunk.len();
        if length == 0 {
            return Poll::Ready(Ok(stream.finish()?));
        }
        stream.push(chunk)?;
        counts.from_app.fetch_add(length as u64, Ordering::Relaxed);
        turn += length;
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// From the tunnel to the app.
#[derive(Default)]
struct Down {
    waiting: Chunks,
    has_ended: bool,
}

impl Down {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        app: &End<'_>,
        stream: &mut HboneStream,
        counts: &ByteCounts,
    ) -> Poll<Result<(), RelayError>> {
        let mut turn = 0;
        while turn < TURN {
            self.take(cx, stream)?;
            if self.waiting.is_empty() {
                return match self.has_ended {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                };
            }
            let written =
                ready!(self.waiting.poll_write(app.tcp(), cx)).map_err(RelayError::App)?;
            stream.delivered(written);
            counts.to_app.fetch_add(written as u64, Ordering::Relaxed);
            turn += written;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes all that has arrived, even while the app does not read: the peer's window bounds its bytes, and HTTP/2 would
    /// end a tunnel in which many small frames wait.
    fn take(&mut self, cx: &mut Context<'_>, stream: &mut HboneStream) -> Result<(), RelayError> {
        while !self.has_ended {
            match stream.poll_chunk(cx) {
                Poll::Ready(Some(chunk)) => self.waiting.push(chunk?),
                Poll::Ready(None) => self.has_ended = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

/// Chunks that wait for the app, in their order.
#[derive(Default)]
struct Chunks {
    parts: VecDeque<Bytes>,
    /// Small ones, gathered; they come after `parts`.
    tail: BytesMut,
}

impl Chunks {
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tail.is_empty()
    }

    fn push(&mut self, chunk: Bytes) {
        if chunk.len() <= SMALL && self.parts.len() >= PARTS {
            self.tail.extend_from_slice(&chunk);
            if self.tail.len() >= GATHER {
                self.seal();
            }
        } else if !chunk.is_empty() {
            self.seal();
            self.parts.push_back(chunk);
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push_back(self.tail.split().freeze());
        }
    }

    fn poll_write(&mut self, app: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); PARTS];
        let chunks = self
            .parts
            .iter()
            .map(Bytes::as_ref)
            .chain([self.tail.as_ref()]);
        let mut used = 0;
        for (slice, chunk) in slices.iter_mut().zip(chunks) {
            *slice = IoSlice::new(chunk);
            used += 1;
        }
        let written = ready!(poll_write(app, cx, slices.get(..used).unwrap_or_default()))?;
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, mut bytes: usize) {
        while let Some(first) = self.parts.front_mut() {
            if bytes < first.len() {
                first.advance(bytes);
                return;
            }
            bytes -= first.len();
            self.parts.pop_front();
        }
        self.tail.advance(bytes);
        if self.parts.capacity() > 4 * PARTS {
            // What a time of not reading made large is not kept for the rest of the connection.
            self.parts = VecDeque::new();
        }
    }
}
