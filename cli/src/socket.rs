//! Asks a controller on this machine, over its Unix socket.
//!
//! The kernel tells the controller who asks; it answers root and its own user only.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::http::{self, HttpError};

/// Why the controller's status could not be read.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
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
    /// The controller did not answer; only root and its own user may ask.
    #[error(
        "the controller at {} gave no answer; it answers root and its own user only",
        path.display()
    )]
    Http {
        path: PathBuf,
        #[source]
        source: HttpError,
    },
}

/// Reads the status document from the controller's socket.
///
/// # Errors
/// When the controller is not reachable, refuses, or does not answer within ten seconds.
pub(crate) async fn fetch(socket: &Path) -> Result<Bytes, SocketError> {
    let path = socket.to_path_buf();
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(source) => return Err(SocketError::Connect { path, source }),
    };
    let answer = http::get(stream, "/status").await;
    answer.map_err(|source| SocketError::Http { path, source })
}
