//! HBONE: TCP connections as CONNECT streams of one HTTP/2 connection over mutual TLS.
//!
//! Called by the conductors of both proxies. [`server`] takes streams, [`pool`] opens them over tunnels that [`client`]
//! dials, [`stream`] carries the bytes. Follows Istio's ambient mode and RFC 9113 §8.5; decides nothing about targets.

pub(crate) mod cork;
pub(crate) mod keepalive;
pub mod stream;
pub mod server;
pub mod client;
pub mod pool;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::hbone::{Baggage, ConnectTarget, Forwarded, Traceparent};
use ambit_core::reason::Reason;
use http::StatusCode;
use thiserror::Error;

use crate::certs::CertError;
use crate::tls::TlsError;

pub use stream::{HboneStream, StreamError};

/// Header of a refusal that carries the stable word for its reason; ours, other proxies ignore it.
pub const REASON_HEADER: &str = "x-ambit-reason";

/// Bounds and windows of one tunnel. Windows, frames, PINGs and numbers of streams are istio/ztunnel's.
#[derive(Clone, Copy, Debug)]
pub struct TunnelSettings {
    /// Bytes that a stream may have under way to us.
    pub stream_window: u32,
    /// Bytes that all streams together may have under way to us. Apps that do not read share it: four of them hold back
    /// the other streams of their tunnel (docs/decisions/0007).
    pub connection_window: u32,
    /// Largest frame that we take, in bytes.
    pub max_frame: u32,
    /// Bytes of one stream that wait to be sent.
    pub send_buffer: usize,
    /// Time between PINGs.
    pub ping_interval: Duration,
    /// A tunnel whose PING is not answered for so long is lost.
    pub ping_timeout: Duration,
    /// How long HTTP/2's preface may take after TLS.
    pub handshake_deadline: Duration,
    /// A tunnel without streams is closed after this; seen at the next PING.
    pub idle: Duration,
    /// Streams on one tunnel at once: what a server lets clients open, and what a client opens.
    pub streams: u32,
}

impl TunnelSettings {
    /// For the server's side, which lets clients end an idle tunnel first.
    pub const SERVER: Self = Self {
        stream_window: 4 * 1024 * 1024,
        connection_window: 16 * 1024 * 1024,
        max_frame: 1024 * 1024,
        send_buffer: 512 * 1024,
        ping_interval: Duration::from_secs(10),
        ping_timeout: Duration::from_secs(20),
        handshake_deadline: Duration::from_secs(10),
        idle: Duration::from_secs(15 * 60),
        streams: 200,
    };

    /// For the client's side.
    pub const CLIENT: Self = Self {
        idle: Duration::from_secs(5 * 60),
        streams: 100,
        ..Self::SERVER
    };
}

/// What a CONNECT request says: where to, and for logs and metrics on the other side, on whose behalf.
#[derive(Clone, Debug)]
pub struct ConnectHead {
    /// The `:authority`.
    pub target: ConnectTarget,
    /// Who the source workload is.
    pub baggage: Option<Baggage>,
    /// The client's own address and the name that it asked for.
    pub forwarded: Option<Forwarded>,
    /// The connection in traces.
    pub traceparent: Option<Traceparent>,
}

/// Why there is no stream, or no tunnel any more. Cheap to clone, since all who wait for one dial get the same answer.
#[derive(Clone, Debug, Error)]
pub enum HboneError {
    /// No certificate to prove ourselves with.
    #[error("no certificate: {0}")]
    Certificate(#[source] CertError),
    /// No socket could be made; ours.
    #[error("no socket: {0}")]
    Socket(#[source] Arc<io::Error>),
    /// The TCP connection to the tunnel's port failed.
    #[error("the tunnel's port cannot be reached: {0}")]
    Connect(#[source] Arc<io::Error>),
    /// The TCP connection to the tunnel's port took too long.
    #[error("the tunnel's port does not answer")]
    ConnectDeadline,
    /// The TLS handshake failed, or the peer refused our certificate after it.
    #[error(transparent)]
    Tls(TlsError),
    /// HTTP/2 did not begin in time.
    #[error("the HTTP/2 preface did not come in time")]
    Preface,
    /// The peer answered with another status than 200.
    #[error("the peer answered {status} ({})", reason.map_or("no reason given", Reason::code))]
    Answered {
        /// The status.
        status: StatusCode,
        /// The peer's reason, when it is one of ours.
        reason: Option<Reason>,
    },
    /// The peer did not answer the CONNECT request in time.
    #[error("the peer did not answer the CONNECT request in time")]
    AnswerDeadline,
    /// A PING was not answered in time.
    #[error("the peer did not answer a PING in time")]
    PingDeadline,
    /// The tunnel or the stream broke.
    #[error("the tunnel broke: {0}")]
    Broken(#[source] Arc<h2::Error>),
    /// The tunnel's connection failed.
    #[error("the tunnel's connection failed: {0}")]
    Lost(#[source] Arc<io::Error>),
    /// Our request cannot be put into HTTP/2; ours.
    #[error("the CONNECT request cannot be written: {0}")]
    Request(#[source] Arc<http::Error>),
    /// Too many dials to this destination at once.
    #[error("too many tunnels to this destination are being dialled")]
    TooManyDials,
    /// The peer's tunnels take no streams: each was full or given up as soon as it stood.
    #[error("the peer's tunnels take no streams")]
    NoPlace,
    /// The pool is closing.
    #[error("the proxy is stopping")]
    Closing,
}

impl HboneError {
    /// The stable word for this failure.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Certificate(error) => error.reason(),
            Self::Socket(_) => Reason::SocketFailed,
            Self::Connect(error) if error.kind() == io::ErrorKind::TimedOut => {
                Reason::TunnelTimeout
            }
            Self::Connect(_) => Reason::ConnectRefused,
            Self::ConnectDeadline => Reason::TunnelTimeout,
            Self::Tls(error) => error.reason(),
            Self::Answered { .. } => Reason::TunnelRefused,
            Self::Preface
            | Self::AnswerDeadline
            | Self::PingDeadline
            | Self::Broken(_)
            | Self::Lost(_)
            | Self::NoPlace
            | Self::Request(_) => Reason::HbonePeer,
            Self::TooManyDials => Reason::LimitReached,
            Self::Closing => Reason::Drained,
        }
    }

    /// True when the peer has certainly not acted on the request: it was never sent, or the peer says so (RFC 9113 §6.8
    /// for streams above GOAWAY's last, §8.7 for REFUSED_STREAM).
    fn is_unprocessed(&self) -> bool {
        let Self::Broken(error) = self else {
            return false;
        };
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (error.is_go_away() || refused)
    }
}

impl From<h2::Error> for HboneError {
    fn from(error: h2::Error) -> Self {
        Self::Broken(Arc::new(error))
    }
}
