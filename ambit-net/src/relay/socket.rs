//! System calls on a connection as the relay makes them: large, few, and none that is known to say "not now".
//!
//! Used by both kinds of relay. Works on shared references, so that one future can read, write and watch for errors.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::blocks;

/// Up to this size bytes are copied out of the block that they were read into; more keep the block. So what waits for a
/// slow peer holds at most four times its size.
const COPY: usize = blocks::BLOCK / 4;

/// Reads what the kernel has, up to a block; empty at the end.
pub(super) fn poll_read(tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    // Asked first, so that a connection with nothing to read borrows no block.
    ready!(tcp.poll_read_ready(cx))?;
    let mut block = blocks::take();
    let bytes = poll_fill(tcp, cx, &mut block).map_ok(|length| match length > COPY {
        true => block.split().freeze(),
        false => Bytes::copy_from_slice(&block),
    });
    blocks::give(block);
    bytes
}

/// Reads into the block what the kernel has; zero at the end.
pub(super) fn poll_fill(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    block: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let room = block.capacity() - block.len();
        let mut read = 0;
        let outcome = tcp.try_io(Interest::READABLE, || {
            read = tcp.try_read_buf(block)?;
            // All was read, so the next call would say "not now" (man 7 epoll, "Questions and answers" 9).
            drained(read > 0 && read < room)
        });
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && read == 0 => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            _ => return Poll::Ready(Ok(read)),
        }
    }
}

/// Writes what the kernel takes of these parts, at least one byte.
pub(super) fn poll_write(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let mut written = 0;
        let outcome = tcp.try_io(Interest::WRITABLE, || {
            written = tcp.try_write_vectored(parts)?;
            drained(written > 0 && written < length)
        });
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && written == 0 => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            _ => return Poll::Ready(Ok(written)),
        }
    }
}

/// Tells tokio to wait for the next event, if the kernel is known to have no more.
fn drained(is_drained: bool) -> io::Result<()> {
    match is_drained {
        true => Err(io::ErrorKind::WouldBlock.into()),
        false => Ok(()),
    }
}

/// Our end of a connection. When it is dropped before [`finish`](Self::finish), the close is a reset: whoever is at the
/// other end must not take a cut for an end.
pub(super) struct End<'a> {
    tcp: &'a TcpStream,
    is_finished: AtomicBool,
}

impl<'a> End<'a> {
    pub(super) const fn new(tcp: &'a TcpStream) -> Self {
        Self {
            tcp,
            is_finished: AtomicBool::new(false),
        }
    }

    pub(super) const fn tcp(&self) -> &'a TcpStream {
        self.tcp
    }

    /// Tells the other side that no more bytes come; when nothing is left to do, the close at once afterwards tells it.
    pub(super) fn finish(&self, is_last: bool) -> io::Result<()> {
        if !is_last {
            SockRef::from(self.tcp).shutdown(Shutdown::Write)?;
        }
        self.is_finished.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends when the connection fails. For a side that has finished sending, where reading would not tell.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn failure(&self) -> io::Error {
        match self.tcp.ready(Interest::ERROR).await {
            Ok(_) => match self.tcp.take_error() {
                Ok(Some(error)) | Err(error) => error,
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            },
            Err(error) => error,
        }
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if !self.is_finished.load(Ordering::Relaxed) {
            // Fails only on a socket that is gone already.
            drop(self.tcp.set_zero_linger());
        }
    }
}
