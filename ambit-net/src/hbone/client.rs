//! The client's end of one tunnel: opens CONNECT streams, and the driver that moves its bytes.
//!
//! Used by the pool, which decides when a tunnel is dialled, shared and given up. RFC 9113 §3.4, §6.8, §8.5.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ambit_core::hbone::Baggage;
use ambit_core::reason::Reason;
use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use http::header::HeaderValue;
use http::uri::Uri;
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::cork::{Cork, Corked, cork};
use super::keepalive::{Keepalive, Silent};
use super::{ConnectHead, HboneError, HboneStream, REASON_HEADER, TunnelSettings};
use crate::tls::TlsError;

/// Largest header list that a server may send, in bytes (istio/ztunnel).
const MAX_HEADERS: u32 = 16 * 1024;

/// One tunnel as those see it who open streams on it.
pub(crate) struct TunnelClient {
    state: Mutex<State>,
    streams: usize,
}

struct State {
    /// None once the tunnel takes no more streams; h2 closes the connection when the last one has ended.
    send: Option<SendRequest<Bytes>>,
    open: usize,
    idle_since: Instant,
    verdict: Option<TlsError>,
}

/// Why a tunnel has no place for another stream.
#[derive(Debug)]
pub(crate) enum NoPlace {
    /// All places are taken.
    Full,
    /// It is lost or going away.
    Over(HboneError),
}

/// A place for one stream on a tunnel.
pub(crate) struct Place {
    occupied: Occupied,
    send: SendRequest<Bytes>,
}

/// Keeps a place until it is dropped.
struct Occupied(Arc<TunnelClient>);

/// A stream that the peer has accepted.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: HboneStream,
    /// Who the peer says the destination is.
    pub baggage: Option<Baggage>,
}

/// Moves the bytes of one tunnel until it is over.
pub(crate) struct Driver<T> {
    connection: Connection<Corked<T>, Bytes>,
    cork: Cork<T>,
    keepalive: Keepalive,
    idle: Duration,
    tunnel: Arc<TunnelClient>,
}

/// Begins HTTP/2 as a client.
///
/// # Errors
/// The connection failed or did not take our preface in time.
pub(crate) async fn handshake<T>(
    io: T,
    settings: &TunnelSettings,
) -> Result<(Arc<TunnelClient>, Driver<T>), HboneError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (corked, cork) = cork(io);
    let handshake = builder(settings).handshake(corked);
    let (send, mut connection) = match timeout(settings.handshake_deadline, handshake).await {
        Ok(result) => result?,
        Err(_elapsed) => return Err(HboneError::Preface),
    };
    let tunnel = Arc::new(TunnelClient {
        state: Mutex::new(State {
            send: Some(send),
            open: 0,
            idle_since: Instant::now(),
            verdict: None,
        }),
        streams: usize::try_from(settings.streams).unwrap_or(usize::MAX),
    });
    let driver = Driver {
        keepalive: Keepalive::new(connection.ping_pong(), settings),
        connection,
        cork,
        idle: settings.idle,
        tunnel: Arc::clone(&tunnel),
    };
    Ok((tunnel, driver))
}

fn builder(settings: &TunnelSettings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_send_buffer_size(settings.send_buffer)
        .max_header_list_size(MAX_HEADERS)
        .enable_push(false);
    builder
}

impl TunnelClient {
    /// Takes a place for one more stream.
    ///
    /// # Errors
    /// The tunnel is full, or takes no more streams ever.
    pub(crate) fn place(self: &Arc<Self>) -> Result<Place, NoPlace> {
        let mut state = self.locked();
        let Some(mut send) = state.send.clone() else {
            return Err(NoPlace::Over(state.explained(None)));
        };
        // Asks only whether the connection has failed or received GOAWAY; nothing is waited for.
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(error)) = send.poll_ready(&mut cx) {
            state.send = None;
            return Err(NoPlace::Over(state.explained(Some(error))));
        }
        let limit = self.streams.min(send.current_max_send_streams());
        if limit == 0 && state.open == 0 {
            // Of no use as long as the peer says so; kept, there would be one more with each attempt.
            state.send = None;
            return Err(NoPlace::Over(state.explained(None)));
        }
        if state.open >= limit {
            return Err(NoPlace::Full);
        }
        state.open += 1;
        Ok(Place {
            occupied: Occupied(Arc::clone(self)),
            send,
        })
    }

    /// True when no stream can ever be opened on it again.
    pub(crate) fn is_retired(&self) -> bool {
        self.locked().send.is_none()
    }

    /// Opens no more streams on it; it closes when the last one has ended.
    pub(crate) fn retire(&self) {
        let send = self.locked().send.take();
        // Outside of the lock: this may wake the driver.
        drop(send);
    }

    fn is_idle(&self, limit: Duration) -> bool {
        let state = self.locked();
        state.open == 0 && state.idle_since.elapsed() >= limit
    }

    fn explained(&self, error: h2::Error) -> HboneError {
        self.locked().explained(Some(error))
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What ended the tunnel: the word of TLS, which HTTP/2 does not know, before HTTP/2's own.
    fn explained(&self, error: Option<h2::Error>) -> HboneError {
        let verdict = self.verdict.clone().map(HboneError::Tls);
        let error = verdict.or_else(|| error.map(HboneError::from));
        error.unwrap_or(HboneError::NoPlace)
    }
}

impl Place {
    /// Sends the request and waits for the answer.
    ///
    /// # Errors
    /// The peer refused or did not answer in time, or the tunnel broke.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream.
    pub(crate) async fn connect(
        self,
        head: &ConnectHead,
        deadline: Duration,
    ) -> Result<Opened, HboneError> {
        let Self { occupied, mut send } = self;
        let tunnel = &occupied.0;
        let request = request(head).map_err(|error| HboneError::Request(Arc::new(error)))?;
        let sent = send.send_request(request, false);
        drop(send);
        let (answer, stream) = sent.map_err(|error| tunnel.explained(error))?;
        let answer = match timeout(deadline, answer).await {
            Ok(result) => result.map_err(|error| tunnel.explained(error))?,
            Err(_elapsed) => return Err(HboneError::AnswerDeadline),
        };
        let (answer, body) = answer.into_parts();
        if answer.status != StatusCode::OK {
            return Err(HboneError::Answered {
                status: answer.status,
                reason: reason(&answer.headers),
            });
        }
        Ok(Opened {
            baggage: text(&answer.headers, "baggage").map(Baggage::parse),
            stream: HboneStream::new(stream, body, Some(Box::new(occupied))),
        })
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut state = self.0.locked();
        state.open = state.open.saturating_sub(1);
        state.idle_since = Instant::now();
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Runs until the tunnel has ended; dropping the future closes the connection at once.
    ///
    /// # Errors
    /// Why the tunnel broke; its streams break with it.
    pub(crate) async fn run(mut self) -> Result<(), HboneError> {
        let result = poll_fn(|cx| self.poll_turn(cx)).await;
        self.tunnel.retire();
        result
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HboneError>> {
        while let Poll::Ready(beat) = self.keepalive.poll_beat(cx) {
            if let Err(Silent) = beat {
                return Poll::Ready(Err(HboneError::PingDeadline));
            }
            if self.tunnel.is_idle(self.idle) {
                self.tunnel.retire();
            }
        }
        let polled = Pin::new(&mut self.connection).poll(cx);
        if let Poll::Ready(Err(error)) = polled {
            self.tunnel.locked().verdict = self.cork.verdict();
            return Poll::Ready(Err(self.tunnel.explained(error)));
        }
        match self.cork.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(HboneError::Lost(Arc::new(error)))),
            // When pending, this task is woken as soon as the socket takes more.
            _ => polled.map_err(HboneError::from),
        }
    }
}

impl fmt::Debug for TunnelClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.locked();
        f.debug_struct("TunnelClient")
            .field("open", &state.open)
            .field("is_retired", &state.send.is_none())
            .finish_non_exhaustive()
    }
}

fn request(head: &ConnectHead) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().authority(head.target.to_string()).build()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    let texts = [
        (
            "baggage",
            head.baggage.as_ref().map(ToString::to_string),
            true,
        ),
        (
            "forwarded",
            head.forwarded.as_ref().map(ToString::to_string),
            false,
        ),
        (
            "traceparent",
            head.traceparent.map(|trace| trace.to_string()),
            false,
        ),
    ];
    for (name, text, is_repeated) in texts {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            let mut value = HeaderValue::try_from(text)?;
            // What differs with every connection has no place in the compression's table (RFC 7541 §7.1.3).
            value.set_sensitive(!is_repeated);
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    Ok(request)
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(HeaderName::from_static(name))?.to_str().ok()
}

fn reason(headers: &HeaderMap) -> Option<Reason> {
    let word = text(headers, REASON_HEADER)?;
    Reason::ALL
        .iter()
        .copied()
        .find(|reason| reason.code() == word)
}
