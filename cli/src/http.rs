//! One GET over a stream that is already open: HTTP/1.1, bounded in time and size.
//!
//! Called by `socket.rs` with a Unix socket and by `cluster.rs` with a forwarded port. Knows neither.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// Who is asked answers from memory, at once; one that takes longer is stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Largest document that is read, in bytes: about 100 000 pods.
const MAX_DOCUMENT: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    /// The connection broke or is not HTTP.
    #[error("the answer could not be read")]
    Broken(#[source] hyper::Error),
    /// Another status than 200.
    #[error("the answer was {0}")]
    Refused(StatusCode),
    /// The answer broke off or is too large.
    #[error("the answer broke off or is over {} MiB", MAX_DOCUMENT >> 20)]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("there was no answer within {} s", DEADLINE.as_secs())]
    Timeout,
}

/// Asks for `path` and returns the body.
///
/// # Errors
/// When the answer is not 200, breaks off, or does not come within ten seconds.
pub(crate) async fn get<S>(stream: S, path: &str) -> Result<Bytes, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    timeout(DEADLINE, exchange(stream, path))
        .await
        .map_err(|_elapsed| HttpError::Timeout)?
}

async fn exchange<S>(stream: S, path: &str) -> Result<Bytes, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(HttpError::Broken)?;
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else {
        return Err(HttpError::Refused(StatusCode::BAD_REQUEST));
    };
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(HttpError::Broken)?;
        if response.status() != StatusCode::OK {
            return Err(HttpError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_DOCUMENT)
            .collect()
            .await;
        Ok(body.map_err(HttpError::Body)?.to_bytes())
    };
    // The connection has to be driven while the answer is awaited; it may end first, once the answer is complete.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended.map_err(HttpError::Broken)?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What `get` makes of an answer; the server closes afterwards.
    async fn answered(answer: &'static str) -> Result<Bytes, HttpError> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let server = async move {
            let mut asked = [0; 512];
            let length = theirs.read(&mut asked).await.unwrap();
            theirs.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        };
        let (got, asked) = tokio::join!(get(ours, "/status"), server);
        assert!(asked.starts_with("GET /status HTTP/1.1\r\n"), "{asked}");
        got
    }

    #[tokio::test]
    async fn the_body_of_a_200_is_the_answer() {
        let body = answered("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(&*body.unwrap(), b"{}");
        let until_the_end = answered("HTTP/1.1 200 OK\r\n\r\n{}").await;
        assert_eq!(&*until_the_end.unwrap(), b"{}");
    }

    #[tokio::test]
    async fn everything_else_is_an_error() {
        let refused = answered("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(refused, Err(HttpError::Refused(s)) if s == 403));
        let short = answered("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}").await;
        assert!(matches!(short, Err(HttpError::Body(_))), "{short:?}");
        let noise = answered("SSH-2.0-OpenSSH_9.2\r\n").await;
        assert!(matches!(noise, Err(HttpError::Broken(_))), "{noise:?}");
        let silence = answered("").await;
        assert!(matches!(silence, Err(HttpError::Broken(_))), "{silence:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_is_not_waited_for_longer_than_the_deadline() {
        let (ours, _theirs) = tokio::io::duplex(4096);
        assert!(matches!(
            get(ours, "/status").await,
            Err(HttpError::Timeout)
        ));
    }
}
