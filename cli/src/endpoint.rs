//! Asks the controller's status endpoint: HTTP/1.1 over its Unix socket.
//!
//! The kernel tells the controller who asks; it answers root and its own user only.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A local socket answers at once; a controller that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest document that is read, in bytes: about 100 000 pods.
const MAX_DOCUMENT: usize = 64 << 20;

/// Why the controller's status could not be read.
#[derive(Debug, Error)]
pub(crate) enum EndpointError {
    /// The socket is not there or not ours to use.
    #[error(
        "cannot reach the controller at {}; is it running on this machine, and are you root or its user? \
         --socket names another place",
        path.display()
    )]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The connection broke or is not HTTP.
    #[error("the controller's answer could not be read")]
    Http(#[source] hyper::Error),
    /// The controller refused.
    #[error("the controller answered {0}; only root and the controller's own user may ask")]
    Refused(StatusCode),
    /// The answer broke off or is too large.
    #[error("the controller's answer broke off or is over {} MiB", MAX_DOCUMENT >> 20)]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not the expected document.
    #[error(
        "the controller's answer is no status document; do the versions of ambit and controller differ much?"
    )]
    Document(#[source] serde_json::Error),
    /// No answer in time.
    #[error("the controller did not answer within {} s", DEADLINE.as_secs())]
    Timeout,
}

/// Reads the status document from the controller's socket.
///
/// # Errors
/// When the controller is not reachable, refuses, or does not answer within ten seconds.
pub(crate) async fn fetch(socket: &Path) -> Result<Bytes, EndpointError> {
    timeout(DEADLINE, exchange(socket))
        .await
        .map_err(|_elapsed| EndpointError::Timeout)?
}

async fn exchange(socket: &Path) -> Result<Bytes, EndpointError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| EndpointError::Connect {
            path: socket.to_path_buf(),
            source,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(EndpointError::Http)?;
    let request = Request::get("/status")
        .header(header::HOST, "controller")
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else {
        return Err(EndpointError::Refused(StatusCode::BAD_REQUEST));
    };
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(EndpointError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(EndpointError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_DOCUMENT)
            .collect()
            .await;
        Ok(body.map_err(EndpointError::Body)?.to_bytes())
    };
    // The connection has to be driven while the answer is awaited; it may end first, once the answer is complete.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended.map_err(EndpointError::Http)?;
            answer.await
        }
    }
}
