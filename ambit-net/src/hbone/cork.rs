//! Holds back the flushes that HTTP/2 makes after every frame, so that all frames of one turn leave in one call.
//!
//! Used by both ends of a tunnel. HTTP/2 owns one half and writes; the tunnel's driver owns the other and flushes after
//! each turn. Also remembers why TLS ended, which HTTP/2 would turn into text.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::TlsError;

/// The half that HTTP/2 reads and writes.
pub(crate) struct Corked<T>(Arc<Mutex<Shared<T>>>);

/// The half that flushes.
pub(crate) struct Cork<T>(Arc<Mutex<Shared<T>>>);

struct Shared<T> {
    io: T,
    verdict: Option<TlsError>,
    /// Bytes read in this turn.
    read: usize,
}

/// Most bytes that HTTP/2 reads in one turn, so that one busy tunnel does not keep the thread from all others.
const TURN: usize = 1024 * 1024;

/// Splits a connection. Both halves stay on one thread, so the lock between them is never waited for.
pub(crate) fn cork<T>(io: T) -> (Corked<T>, Cork<T>) {
    let shared = Arc::new(Mutex::new(Shared {
        io,
        verdict: None,
        read: 0,
    }));
    (Corked(Arc::clone(&shared)), Cork(shared))
}

impl<T: AsyncWrite + Unpin> Cork<T> {
    /// Ends a turn: sends what was written in it.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = locked(&self.0);
        shared.read = 0;
        Pin::new(&mut shared.io).poll_flush(cx)
    }
}

impl<T> Cork<T> {
    /// Why TLS ended, if it did by a verdict of one of the sides.
    pub(crate) fn verdict(&self) -> Option<TlsError> {
        locked(&self.0).verdict.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Corked<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = locked(&self.0);
        if shared.read >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut shared.io).poll_read(cx, buf);
        shared.read += buf.filled().len() - before;
        if let Poll::Ready(Err(error)) = &polled {
            shared.verdict = TlsError::verdict(error);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut locked(&self.0).io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut locked(&self.0).io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        locked(&self.0).io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut locked(&self.0).io).poll_shutdown(cx)
    }
}

impl<T> fmt::Debug for Corked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Corked")
    }
}

fn locked<T>(shared: &Mutex<Shared<T>>) -> MutexGuard<'_, Shared<T>> {
    // After a panic inside of TLS the connection is of no use, but saying so is TLS's matter.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
