//! HboneStream: one CONNECT stream as a flow of chunks, or as a plain byte stream.
//!
//! Made by the tunnel's server and by the pool, carried by the relay. The peer may send again only what was reported as
//! delivered, so a slow reader holds back its own sender and nobody's memory. RFC 9113 §5.2, §6.4, §8.5.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use ambit_core::reason::Reason;
use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that one write as a plain byte stream takes.
const WRITE: usize = 64 * 1024;

/// Why a stream ended before its end.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The peer reset the stream: its side of the connection was reset, or it gave up.
    #[error("the peer reset the stream: {0}")]
    Reset(h2::Reason),
    /// The tunnel below was lost.
    #[error("the tunnel was lost: {0}")]
    Lost(#[source] h2::Error),
}

impl StreamError {
    /// The stable word for this failure.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Reset(_) => Reason::PeerReset,
            Self::Lost(_) => Reason::HbonePeer,
        }
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset(reason),
            _ => Self::Lost(error),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Lost(_) => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

/// What ends together with a stream, such as its place on a tunnel.
pub(crate) type Companion = Box<dyn Send + Sync>;

/// One CONNECT stream. Dropping it before [`finish`](Self::finish) resets it, and what is queued is not sent.
pub struct HboneStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received and not yet handed out by `poll_read`.
    rest: Bytes,
    has_finished: bool,
    _companion: Option<Companion>,
}

impl HboneStream {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        companion: Option<Companion>,
    ) -> Self {
        Self {
            send,
            recv,
            rest: Bytes::new(),
            has_finished: false,
            _companion: companion,
        }
    }

    /// The next bytes from the peer; ready with none when the peer has finished.
    ///
    /// Each chunk counts against the peer's window until [`delivered`](Self::delivered) says otherwise.
    ///
    /// # Errors
    /// The peer reset the stream, or the tunnel was lost.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.rest))));
        }
        match ready!(self.recv.poll_data(cx)) {
            // "Done, and send no more" (RFC 9113 §8.1): the data is complete.
            Some(Err(error)) if is_stop(&error) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            Some(Ok(chunk)) => Poll::Ready(Some(Ok(chunk))),
            None => Poll::Ready(None),
        }
    }

    /// Lets the peer send `bytes` more, since so many have left this process.
    pub fn delivered(&mut self, bytes: usize) {
        // Fails only for more than was received, or on a stream that is over, where nothing is left to allow.
        drop(self.recv.flow_control().release_capacity(bytes));
    }

    /// Ready when a chunk may be given to [`push`](Self::push): what was given before has a place in the peer's window.
    ///
    /// Ready with false when the peer wants no more, though nothing is wrong.
    ///
    /// # Errors
    /// The peer reset the stream, or the tunnel was lost.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        // Never more than one byte is reserved: what an idle stream reserves is lost to the others of the tunnel.
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return self.poll_end(cx),
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Why the peer takes no more bytes; pending as long as it may take some.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        Poll::Ready(match ready!(self.send.poll_reset(cx)) {
            Ok(h2::Reason::NO_ERROR) => Ok(false),
            Ok(reason) => Err(StreamError::Reset(reason)),
            Err(error) => Err(error.into()),
        })
    }

    /// Queues bytes for the peer; one chunk per [`poll_room`](Self::poll_room) keeps the queue bounded.
    ///
    /// # Errors
    /// The stream is over.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        let sent = self.send.send_data(chunk, false);
        sent.map_err(|error| self.cause(error))
    }

    /// Tells the peer that no more bytes come; what is queued still goes out.
    ///
    /// # Errors
    /// The stream is over.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let sent = self.send.send_data(Bytes::new(), true);
        sent.map_err(|error| self.cause(error))?;
        self.has_finished = true;
        Ok(())
    }

    /// What ended the stream, when h2 only says that it has ended.
    fn cause(&mut self, error: h2::Error) -> StreamError {
        match self
            .send
            .poll_reset(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(Ok(reason)) => StreamError::Reset(reason),
            Poll::Ready(Err(cause)) => cause.into(),
            Poll::Pending => error.into(),
        }
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        // Once finished, h2 sends what is queued before it tells the peer, if it still sends, to stop.
        if !self.has_finished {
            self.send.send_reset(h2::Reason::CANCEL);
        }
    }
}

fn is_stop(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

impl fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HboneStream")
            .field("id", &self.recv.stream_id())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.poll_chunk(cx)) {
                Some(chunk) => this.rest = chunk?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.rest.len().min(buf.remaining());
        buf.put_slice(this.rest.get(..length).unwrap_or_default());
        this.rest.advance(length);
        this.delivered(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !ready!(this.poll_room(cx))? {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let part = data.get(..WRITE).unwrap_or(data);
        this.push(Bytes::copy_from_slice(part))?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish().map_err(io::Error::from))
    }
}
