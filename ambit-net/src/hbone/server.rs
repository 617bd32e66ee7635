//! The server's end of a tunnel: requests are pulled one by one, each is accepted or refused.
//!
//! Called by the inbound conductor after the TLS handshake. Whoever pulls also drives the connection, so it must go on
//! pulling while streams are open. Knows nothing of targets or policy. RFC 9113 §8.5; statuses as in Istio's ambient mode.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ambit_core::hbone::{Baggage, ConnectTarget, Forwarded, Traceparent};
use ambit_core::reason::Reason;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http::header::HeaderValue;
use http::{HeaderName, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::cork::{Cork, Corked, cork};
use super::keepalive::{Keepalive, Silent};
use super::{HboneError, HboneStream, REASON_HEADER, StreamError, TunnelSettings};
use crate::tls::TlsStream;

/// Largest header list that a client may send, in bytes (istio/ztunnel).
const MAX_HEADERS: u32 = 64 * 1024;

/// Streams that a client may have reset before we looked at them; beyond it is an attack (CVE-2023-44487). One turn can
/// bring as many as there may be streams.
const MAX_EARLY_RESETS: usize = 200;

/// The server's end of one tunnel. Dropping it closes the connection at once.
pub struct Tunnel<T = TlsStream> {
    connection: Connection<Corked<T>, Bytes>,
    cork: Cork<T>,
    keepalive: Keepalive,
    settings: TunnelSettings,
    busy_until: Instant,
    is_closing: bool,
    is_over: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Tunnel<T> {
    /// Waits for HTTP/2's preface.
    ///
    /// # Errors
    /// The client speaks something else, or nothing in time.
    pub async fn handshake(io: T, settings: TunnelSettings) -> Result<Self, HboneError> {
        let (corked, cork) = cork(io);
        let mut handshake = pin!(builder(&settings).handshake(corked));
        let flushed = poll_fn(|cx| {
            let polled = handshake.as_mut().poll(cx).map_err(HboneError::from);
            flush(&cork, cx)?;
            polled
        });
        let mut connection = match timeout(settings.handshake_deadline, flushed).await {
            Ok(result) => result?,
            Err(_elapsed) => return Err(HboneError::Preface),
        };
        Ok(Self {
            keepalive: Keepalive::new(connection.ping_pong(), &settings),
            connection,
            cork,
            settings,
            busy_until: Instant::now(),
            is_closing: false,
            is_over: false,
        })
    }

    /// The next request; none when the tunnel is over. After an error only none follows.
    ///
    /// # Errors
    /// The tunnel broke; streams that are open break with it.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost, and nothing moves until the next call.
    pub async fn next_connect(&mut self) -> Option<Result<ConnectRequest, HboneError>> {
        poll_fn(|cx| self.poll_connect(cx)).await
    }

    /// Tells the client to open no more streams here; those that are open go on, and then the tunnel is over.
    pub fn shutdown(&mut self) {
        self.is_closing = true;
        self.connection.graceful_shutdown();
    }

    fn poll_connect(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ConnectRequest, HboneError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let polled = match self.poll_beats(cx) {
            Ok(()) => self.connection.poll_accept(cx).map_err(HboneError::from),
            Err(error) => Poll::Ready(Some(Err(error))),
        };
        let flushed = flush(&self.cork, cx);
        let error = match (polled, flushed) {
            (Poll::Pending, Ok(())) => return Poll::Pending,
            (Poll::Ready(Some(Ok((request, respond)))), Ok(())) => {
                return Poll::Ready(Some(Ok(ConnectRequest::new(request, respond))));
            }
            (Poll::Ready(None), _) => None,
            (Poll::Ready(Some(Err(error))), _) | (_, Err(error)) => Some(error),
        };
        self.is_over = true;
        // A client that was told to go may close first; then our last words do not reach it.
        let error = error.filter(|_| !self.is_closing);
        let explained = error.map(|error| self.cork.verdict().map_or(error, HboneError::Tls));
        Poll::Ready(explained.map(Err))
    }

    /// Looks after PINGs, and after idleness at their beat.
    fn poll_beats(&mut self, cx: &mut Context<'_>) -> Result<(), HboneError> {
        while let Poll::Ready(beat) = self.keepalive.poll_beat(cx) {
            beat.map_err(|Silent| HboneError::PingDeadline)?;
            if self.connection.has_streams() {
                self.busy_until = Instant::now();
            } else if self.busy_until.elapsed() >= self.settings.idle {
                self.shutdown();
            }
        }
        Ok(())
    }
}

impl<T> fmt::Debug for Tunnel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

fn flush<T: AsyncWrite + Unpin>(cork: &Cork<T>, cx: &mut Context<'_>) -> Result<(), HboneError> {
    match cork.poll_flush(cx) {
        Poll::Ready(Err(error)) => Err(HboneError::Lost(Arc::new(error))),
        // When pending, the connection's task is woken as soon as the socket takes more.
        _ => Ok(()),
    }
}

fn builder(settings: &TunnelSettings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_concurrent_streams(settings.streams)
        .max_send_buffer_size(settings.send_buffer)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(MAX_EARLY_RESETS);
    builder
}

/// One request in a tunnel, neither accepted nor refused yet. Dropping it resets the stream.
pub struct ConnectRequest {
    head: Request<()>,
    body: RecvStream,
    respond: SendResponse<Bytes>,
}

impl ConnectRequest {
    fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        let (head, body) = request.into_parts();
        Self {
            head: Request::from_parts(head, ()),
            body,
            respond,
        }
    }

    /// The `:authority` as it came, for logs; empty when there is none.
    pub fn authority(&self) -> &str {
        let authority = self.head.uri().authority();
        authority.map_or("", http::uri::Authority::as_str)
    }

    /// Where the client wants to go.
    ///
    /// # Errors
    /// [`Reason::NotConnect`] for any other request, [`Reason::BadAuthority`] when it names no usable target.
    pub fn target(&self) -> Result<ConnectTarget, Reason> {
        if self.head.method() != Method::CONNECT {
            return Err(Reason::NotConnect);
        }
        ConnectTarget::parse(self.authority()).map_err(|_malformed| Reason::BadAuthority)
    }

    /// What the client says of its workload.
    pub fn baggage(&self) -> Option<Baggage> {
        self.header("baggage").map(Baggage::parse)
    }

    /// Whom the client says it speaks for.
    pub fn forwarded(&self) -> Option<Forwarded> {
        self.header("forwarded").map(Forwarded::parse)
    }

    /// The connection in traces.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.header("traceparent").and_then(Traceparent::parse)
    }

    fn header(&self, name: &'static str) -> Option<&str> {
        let value = self.head.headers().get(HeaderName::from_static(name))?;
        value.to_str().ok()
    }

    /// Ends when the client has given up, so that what is done for it can be stopped.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn gave_up(&mut self) -> StreamError {
        match poll_fn(|cx| self.respond.poll_reset(cx)).await {
            Ok(reason) => StreamError::Reset(reason),
            Err(error) => error.into(),
        }
    }

    /// Answers 200 and turns the request into a stream; `baggage` says who we are.
    ///
    /// # Errors
    /// The client is gone, or the request is not CONNECT (which is refused here).
    pub fn accept(mut self, baggage: Option<&Baggage>) -> Result<HboneStream, HboneError> {
        if self.head.method() != Method::CONNECT {
            let reason = Reason::NotConnect;
            self.refuse(reason);
            let status = status(reason);
            return Err(HboneError::Answered {
                status,
                reason: Some(reason),
            });
        }
        let mut response = Response::new(());
        let text = baggage.map(ToString::to_string).unwrap_or_default();
        if let Ok(value) = HeaderValue::try_from(text)
            && !value.is_empty()
        {
            let name = HeaderName::from_static("baggage");
            response.headers_mut().insert(name, value);
        }
        let send = self.respond.send_response(response, false)?;
        Ok(HboneStream::new(send, self.body, None))
    }

    /// Answers with the reason's status and its word.
    pub fn refuse(mut self, reason: Reason) {
        let mut response = Response::new(());
        *response.status_mut() = status(reason);
        let value = HeaderValue::from_static(reason.code());
        let name = HeaderName::from_static(REASON_HEADER);
        response.headers_mut().insert(name, value);
        // Fails only when the client is gone, and then there is nobody to tell.
        drop(self.respond.send_response(response, true));
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("method", self.head.method())
            .field("authority", &self.authority())
            .finish_non_exhaustive()
    }
}

fn status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.connect_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

#[cfg(test)]
mod tests;
