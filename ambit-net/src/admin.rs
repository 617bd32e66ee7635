//! Small HTTP/1.1 servers for operators: readiness, metrics, and the admin endpoint with routes of each program.
//!
//! Called by each program's `app.rs`, which owns the listeners and adds its routes. An answer is made by a function
//! that does not wait, so a route can hold up nothing but its own thread. Connections are few and short: both are
//! bounded.

mod pages;
mod readiness;

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tracing::debug;

pub use self::pages::{logging, metrics, quit, readiness};
pub use self::readiness::Readiness;
use crate::serve::serve;
use crate::shares::Shares;
use crate::tasks::{Spawner, Stop};

/// Connections of one endpoint at a time: probes, a scraper or two, and a person.
const CONNECTIONS: usize = 32;
/// Of these, connections of one client address: a pod that holds its own must not keep the probes out.
const OF_ONE_CLIENT: usize = 8;
/// How long a client may take for the head of a request, and may leave a connection idle between two.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last in all; clients open another one.
const CONNECTION: Duration = Duration::from_secs(120);
/// How long a connection may last once the endpoint is being stopped.
const CLOSING: Duration = Duration::from_secs(1);
/// Longest head of a request in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// What an endpoint answers to; built once, then served.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

struct Route {
    method: Method,
    path: &'static str,
    answer: Box<dyn Fn(&Query<'_>) -> Answer + Send + Sync>,
}

/// The part of a request's target behind the question mark.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a>(&'a str);

/// What is sent back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of the response.
    pub status: StatusCode,
    /// Its `content-type`.
    pub content_type: &'static str,
    /// Its body.
    pub body: Bytes,
}

impl Routes {
    /// No routes; `/` lists those that are added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET (and HEAD) for a path.
    #[must_use]
    pub fn get(
        self,
        path: &'static str,
        answer: impl Fn(&Query<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.route(Method::GET, path, Box::new(answer))
    }

    /// Answers POST for a path, which is for what changes something. The body is not read.
    #[must_use]
    pub fn post(
        self,
        path: &'static str,
        answer: impl Fn(&Query<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.route(Method::POST, path, Box::new(answer))
    }

    /// Adds the routes of another endpoint.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self
    }

    /// Answers a request for a path and query, without HTTP around it.
    pub fn answer(&self, method: &Method, path: &str, query: &str) -> Answer {
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        let at_path = || self.routes.iter().filter(|route| route.path == path);
        if let Some(route) = at_path().find(|route| route.method == *method) {
            return (route.answer)(&Query(query));
        }
        match at_path().next() {
            Some(route) => Answer::text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} answers {} only\n", route.method),
            ),
            None if path == "/" => Answer::text(StatusCode::OK, self.index()),
            None => Answer::text(StatusCode::NOT_FOUND, self.index()),
        }
    }

    fn route(
        mut self,
        method: Method,
        path: &'static str,
        answer: Box<dyn Fn(&Query<'_>) -> Answer + Send + Sync>,
    ) -> Self {
        self.routes.push(Route {
            method,
            path,
            answer,
        });
        self
    }

    fn index(&self) -> String {
        self.routes.iter().fold(String::new(), |mut list, route| {
            // Writing to a String cannot fail.
            let _written = writeln!(list, "{} {}", route.method, route.path).is_ok();
            list
        })
    }

    fn allowed(&self, path: &str) -> Option<HeaderValue> {
        let methods = self.routes.iter().filter(|route| route.path == path);
        let methods: Vec<&str> = methods.map(|route| route.method.as_str()).collect();
        HeaderValue::from_str(&methods.join(", ")).ok()
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let answer = self.answer(request.method(), path, request.uri().query().unwrap_or(""));
        let content_type = HeaderValue::from_static(answer.content_type);
        let mut response = Response::new(Full::new(answer.body));
        *response.status_mut() = answer.status;
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        if answer.status == StatusCode::METHOD_NOT_ALLOWED
            && let Some(allowed) = self.allowed(path)
        {
            response.headers_mut().insert(ALLOW, allowed);
        }
        response
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Query<'_> {
    /// The value of a parameter with `%XX` decoded; empty when it has none, none when it is not there.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.0.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decode(value))
        })
    }
}

impl Answer {
    /// A plain text.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// A value as JSON, indented for people; 500 when it cannot be written as JSON.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(body) => Self {
                status: StatusCode::OK,
                content_type: "application/json",
                body: body.into(),
            },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

/// Serves an endpoint until the group of `tasks` is stopped.
pub async fn serve_routes(listener: TcpListener, routes: Arc<Routes>, tasks: Spawner) {
    let stop = tasks.stop_signal();
    let shares = Shares::new(OF_ONE_CLIENT);
    let handle = move |stream, peer: SocketAddr| {
        let share = shares.try_take(peer.ip());
        let (routes, stop) = (Arc::clone(&routes), stop.clone());
        async move {
            if let Some(_held) = share {
                serve_connection(stream, routes, stop).await;
            }
        }
    };
    serve(listener, CONNECTIONS, tasks, handle).await;
}

/// Serves one connection of any kind, for example of a Unix socket, until its end, a deadline or the stop.
pub async fn serve_connection<IO>(io: IO, routes: Arc<Routes>, stop: Stop)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let respond = move |request: Request<Incoming>| {
        let response = routes.respond(&request);
        async move { Ok::<_, Infallible>(response) }
    };
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(io), service_fn(respond))
    );
    let ended = tokio::select! {
        ended = timeout(CONNECTION, connection.as_mut()) => ended,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            timeout(CLOSING, connection).await
        }
    };
    if let Ok(Err(error)) = ended {
        debug!(%error, "an admin connection ended early");
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.split_at_checked(2).filter(|_| first == b'%');
        let decoded = escaped.and_then(|(digits, after)| Some((hex(digits)?, after)));
        let (byte, after) = decoded.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    let plain = text.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(text, 16).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests;
