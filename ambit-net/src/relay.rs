//! Relay: carries bytes between an app's connection and its peer, both ways, until both sides have finished.
//!
//! Called by every conductor as its last step. An end is passed on as an end and a reset as a reset; a relay that is
//! dropped resets both sides, since a cut must not look like an end. One future polls both ways: no task per direction.

mod socket;
mod plain;
mod tunnel;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use ambit_core::reason::Reason;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::hbone::{HboneStream, StreamError};
use socket::End;

/// Most bytes that one direction carries before other connections of the thread get their turn.
const TURN: usize = 1024 * 1024;

/// The other side of an app's connection.
#[derive(Debug)]
pub enum Peer {
    /// A plain connection.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Tunnel(HboneStream),
}

/// Bytes that have passed, readable while the relay runs.
#[derive(Debug, Default)]
pub struct ByteCounts {
    from_app: AtomicU64,
    to_app: AtomicU64,
}

impl ByteCounts {
    /// Bytes that the app has sent and the peer's side has taken.
    pub fn from_app(&self) -> u64 {
        self.from_app.load(Ordering::Relaxed)
    }

    /// Bytes that the app's connection has taken from the peer.
    pub fn to_app(&self) -> u64 {
        self.to_app.load(Ordering::Relaxed)
    }
}

/// Why a relay ended before both sides had finished.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The app's connection failed or was reset.
    #[error("the app's connection failed: {0}")]
    App(#[source] io::Error),
    /// The peer's plain connection failed or was reset.
    #[error("the peer's connection failed: {0}")]
    Peer(#[source] io::Error),
    /// The stream of the tunnel was reset or lost.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl RelayError {
    /// The stable word for this failure.
    pub fn reason(&self) -> Reason {
        match self {
            Self::App(error) | Self::Peer(error) => match error.kind() {
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Reason::PeerReset,
                io::ErrorKind::TimedOut => Reason::ConnectTimeout,
                _ => Reason::SocketFailed,
            },
            Self::Stream(error) => error.reason(),
        }
    }
}

/// Carries bytes both ways and counts them as they pass. There is no idle limit, as TCP has none; dead peers are found
/// by keepalive and PING.
///
/// # Errors
/// One side failed or was reset; the other one has been reset then, unless it had been told the end before.
///
/// # Cancel safety
/// Dropping the future resets both sides.
pub async fn relay(app: TcpStream, peer: Peer, counts: &ByteCounts) -> Result<(), RelayError> {
    let app = End::new(&app);
    match peer {
        Peer::Tcp(peer) => plain::carry(&app, &End::new(&peer), counts).await,
        Peer::Tunnel(mut stream) => tunnel::carry(&app, &mut stream, counts).await,
    }
}

#[cfg(test)]
mod tests;
