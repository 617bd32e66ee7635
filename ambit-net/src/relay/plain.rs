//! Between two plain connections: each way is read into a lent block and written from there.
//!
//! Used for what passes through without a tunnel and for plaintext inbound.

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

use super::socket::{End, poll_fill, poll_write};
use super::{ByteCounts, RelayError, TURN};
use crate::blocks;

/// Carries both ways until both sides have finished.
pub(super) async fn carry(
    app: &End<'_>,
    peer: &End<'_>,
    counts: &ByteCounts,
) -> Result<(), RelayError> {
    let mut up = Way::new(app, peer, &counts.from_app);
    let mut down = Way::new(peer, app, &counts.to_app);
    let mut app_failed = pin!(app.failure());
    let mut peer_failed = pin!(peer.failure());
    poll_fn(|cx| {
        // Both get their turn before a failure of one counts: who answers early and closes has its answer read.
        let up_polled = up.poll(cx, down.is_done);
        let down_polled = down.poll(cx, up.is_done);
        let up_done = up_polled.map_err(|side| side.of(RelayError::App, RelayError::Peer))?;
        let down_done = down_polled.map_err(|side| side.of(RelayError::Peer, RelayError::App))?;
        // A side that has finished sending can still be reset, which reading does not notice.
        match (up_done, down_done) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Ready(()), Poll::Pending) => app_failed
                .as_mut()
                .poll(cx)
                .map(|error| Err(RelayError::App(error))),
            (Poll::Pending, Poll::Ready(())) => peer_failed
                .as_mut()
                .poll(cx)
                .map(|error| Err(RelayError::Peer(error))),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    })
    .await
}

/// Which side of a way failed.
enum Side {
    From(std::io::Error),
    To(std::io::Error),
}

impl Side {
    fn of(
        self,
        from: fn(std::io::Error) -> RelayError,
        to: fn(std::io::Error) -> RelayError,
    ) -> RelayError {
        match self {
            Self::From(error) => from(error),
            Self::To(error) => to(error),
        }
    }
}

/// One direction.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a End<'a>,
    count: &'a AtomicU64,
    /// Read and not yet written.
    rest: Bytes,
    has_ended: bool,
    is_done: bool,
}

impl<'a> Way<'a> {
    const fn new(from: &'a End<'a>, to: &'a End<'a>, count: &'a AtomicU64) -> Self {
        Self {
            from: from.tcp(),
            to,
            count,
            rest: Bytes::new(),
            has_ended: false,
            is_done: false,
        }
    }

    /// `is_last`: the other way is done.
    fn poll(&mut self, cx: &mut Context<'_>, is_last: bool) -> Poll<Result<(), Side>> {
        let mut turn = 0;
        while !self.is_done {
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn += ready!(self.poll_step(cx, is_last))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves one buffer's worth, and tells how much that was.
    fn poll_step(&mut self, cx: &mut Context<'_>, is_last: bool) -> Poll<Result<usize, Side>> {
        if !self.rest.is_empty() {
            let part = [IoSlice::new(&self.rest)];
            let written = ready!(poll_write(self.to.tcp(), cx, &part)).map_err(Side::To)?;
            self.rest.advance(written);
            return Poll::Ready(Ok(self.passed(written)));
        }
        if self.has_ended {
            self.to.finish(is_last).map_err(Side::To)?;
            self.is_done = true;
            return Poll::Ready(Ok(0));
        }
        ready!(self.from.poll_read_ready(cx)).map_err(Side::From)?;
        let mut block = blocks::take();
        let polled = self.poll_through(cx, &mut block);
        blocks::give(block);
        polled
    }

    /// Reads and writes at once; only what the other side does not take is copied.
    fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        block: &mut bytes::BytesMut,
    ) -> Poll<Result<usize, Side>> {
        let read = ready!(poll_fill(self.from, cx, block)).map_err(Side::From)?;
        if read == 0 {
            self.has_ended = true;
            return Poll::Ready(Ok(0));
        }
        let written = match poll_write(self.to.tcp(), cx, &[IoSlice::new(block)]) {
            Poll::Ready(written) => written.map_err(Side::To)?,
            Poll::Pending => 0,
        };
        block.advance(written);
        self.rest = Bytes::copy_from_slice(block);
        Poll::Ready(Ok(self.passed(written)))
    }

    fn passed(&self, bytes: usize) -> usize {
        self.count.fetch_add(bytes as u64, Ordering::Relaxed);
        bytes
    }
}
