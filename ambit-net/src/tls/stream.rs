//! TlsStream: an established TLS connection that makes few and large system calls.
//!
//! Made by the handshakes, read and written by HTTP/2. One read takes all that the kernel has, up to a block; small writes
//! wait for the flush and leave in one record and one call. Knows nothing of what it carries.

use std::fmt;
use std::future::Future;
use std::io::{self, BufRead, IoSlice, Write};
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::{Connection, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{ALPN_H2, TlsError};
use crate::blocks;

/// Bound that rustls itself keeps on encrypted bytes; its default of 64 KiB would cut our writes (docs/performance.md).
const SEND_LIMIT: usize = 1024 * 1024;

/// Bytes that one write encrypts, and that wait at most before a write sends them instead of leaving that to the flush:
/// what is encrypted is sent while the cache still has it.
const WRITE: usize = 64 * 1024;

/// Bytes of one piece that rustls gets. It copies each piece into a record at an odd address; glibc copies from 4 KiB on
/// (8 KiB with AVX-512) by `rep movsb`, which made that copy three times as slow and cost a fifth of all CPU time.
const PIECE: usize = 2 * 1024;

/// Pieces of one write: those that are full, and what is left over of a frame's head and its end.
const PIECES: usize = WRITE / PIECE + 4;

/// Writes up to this size are gathered; for larger ones the copy would cost more than the record.
const SMALL_WRITE: usize = 4 * 1024;

/// Most bytes gathered: one full TLS record (RFC 8446 §5.1).
const GATHER: usize = 16 * 1024;

/// An established TLS 1.3 connection.
///
/// Written data is sent by `poll_flush`, or earlier when much of it waits. End of file without `close_notify` is an error.
pub struct TlsStream<T = TcpStream> {
    io: T,
    session: Connection,
    /// Received and not yet decrypted; a lent block, given back when it is empty.
    received: BytesMut,
    /// Written and not yet encrypted.
    gathered: Vec<u8>,
    /// Bytes encrypted since the session was last empty.
    queued: usize,
    closing: bool,
}

impl<T> TlsStream<T> {
    /// Takes over after a handshake.
    ///
    /// # Errors
    /// When ALPN did not settle on `h2`, or another version than TLS 1.3 was spoken.
    pub(crate) fn new(io: T, mut session: Connection) -> Result<Self, TlsError> {
        if session.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            let error = rustls::Error::General("the peer did not speak TLS 1.3".to_owned());
            return Err(TlsError::Protocol(error));
        }
        if session.alpn_protocol() != Some(ALPN_H2) {
            return Err(TlsError::Protocol(rustls::Error::NoApplicationProtocol));
        }
        session.set_buffer_limit(Some(SEND_LIMIT));
        Ok(Self {
            io,
            session,
            received: BytesMut::new(),
            gathered: Vec::new(),
            queued: 0,
            closing: false,
        })
    }

    /// The connection below, for its addresses and options.
    pub fn tcp(&self) -> &T {
        &self.io
    }

    /// The key exchange that was used.
    pub fn key_exchange(&self) -> Option<NamedGroup> {
        Some(self.session.negotiated_key_exchange_group()?.name())
    }

    /// The cipher suite that was used.
    pub fn cipher_suite(&self) -> Option<rustls::CipherSuite> {
        Some(self.session.negotiated_cipher_suite()?.suite())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Sends all that is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut socket = Socket {
                io: &mut self.io,
                cx,
            };
            match self.session.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.queued = 0;
        Poll::Ready(Ok(()))
    }

    /// Encrypts what was gathered.
    fn poll_encrypt(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let taken = encrypt(&mut self.session, &[IoSlice::new(&self.gathered)])?;
            self.gathered.drain(..taken);
            self.queued += taken;
            if taken == 0 {
                ready!(self.poll_send(cx))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Decrypts from what was received until there is something to hand out or nothing left.
    fn decrypt(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.session.wants_read() && !self.received.is_empty() {
            let taken = self.session.read_tls(&mut self.received.chunk())?;
            self.received.advance(taken);
            if let Err(error) = self.session.process_new_packets() {
                // The alert goes out if the kernel takes it now; the error matters more.
                drop(self.poll_send(cx));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        if self.received.is_empty() {
            blocks::give(mem::take(&mut self.received));
        }
        Ok(())
    }

    /// Hands out one piece of what is decrypted. Ready with none at the end, pending when more has to be received.
    fn read_plain(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let mut reader = self.session.reader();
        let plain = match reader.fill_buf() {
            Ok(plain) => plain,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let part = plain.get(..buf.remaining()).unwrap_or(plain);
        let taken = part.len();
        buf.put_slice(part);
        reader.consume(taken);
        Poll::Ready(Ok(taken))
    }

    /// Takes all that the kernel has, up to a block.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut block = blocks::take();
        let polled = pin!(self.io.read_buf(&mut block)).poll(cx);
        match polled {
            Poll::Ready(Ok(0)) => {
                blocks::give(block);
                // Tells rustls of the end, so that one without close_notify becomes an error.
                self.session.read_tls(&mut io::empty())?;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(_)) => {
                self.received = block;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                blocks::give(block);
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                blocks::give(block);
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            let has_some = buf.filled().len() > before;
            match this.read_plain(buf) {
                Poll::Ready(Ok(1..)) if buf.remaining() > 0 => continue,
                // What ends the stream shows again on the next call.
                Poll::Ready(_) if has_some => return Poll::Ready(Ok(())),
                Poll::Ready(result) => return Poll::Ready(result.map(drop)),
                Poll::Pending => {}
            }
            if !this.received.is_empty() {
                this.decrypt(cx)?;
            } else if has_some {
                return Poll::Ready(Ok(()));
            } else {
                ready!(this.poll_receive(cx))?;
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.queued >= WRITE {
            ready!(this.poll_send(cx))?;
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length <= SMALL_WRITE && this.gathered.len() + length <= GATHER {
            parts
                .iter()
                .for_each(|part| this.gathered.extend_from_slice(part));
            return Poll::Ready(Ok(length));
        }
        ready!(this.poll_encrypt(cx))?;
        let taken = encrypt(&mut this.session, parts)?;
        this.queued += taken;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_encrypt(cx))?;
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            ready!(this.poll_encrypt(cx))?;
            this.session.send_close_notify();
            this.closing = true;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<T> fmt::Debug for TlsStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("key_exchange", &self.key_exchange())
            .field("cipher_suite", &self.cipher_suite())
            .finish_non_exhaustive()
    }
}

/// Encrypts about [`WRITE`] bytes at most, and tells how many.
fn encrypt(session: &mut Connection, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut pieces = [IoSlice::new(&[]); PIECES];
    let all = parts.iter().flat_map(|part| part.chunks(PIECE));
    let mut used = 0;
    for (piece, bytes) in pieces.iter_mut().zip(all) {
        *piece = IoSlice::new(bytes);
        used += 1;
    }
    session
        .writer()
        .write_vectored(pieces.get(..used).unwrap_or_default())
}

/// The socket as rustls wants to write to it: it says when it would block.
struct Socket<'a, 'b, T> {
    io: &'a mut T,
    cx: &'a mut Context<'b>,
}

impl<T: AsyncWrite + Unpin> Write for Socket<'_, '_, T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, data))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn or_would_block<R>(polled: Poll<io::Result<R>>) -> io::Result<R> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests;
