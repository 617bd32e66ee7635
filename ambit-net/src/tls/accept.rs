//! The server's handshake, with a deadline, and the identity of the client that passed it.
//!
//! Called for every connection to port 15008. Knows nothing of HTTP/2 or of policy.

use std::time::Duration;

use ambit_core::identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::stream::TlsStream;
use super::verify::client_identity;
use super::{Credential, TlsError};

/// Proves `credential` to a client and returns the stream with the identity that the client proved.
///
/// # Errors
/// The client is not trusted, is of another trust domain, speaks something else, or was too slow.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn accept<T>(
    tcp: T,
    credential: &Credential,
    deadline: Duration,
) -> Result<(TlsStream<T>, SpiffeId), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(credential.server()).accept(tcp);
    let accepted = match timeout(deadline, handshake).await {
        Ok(result) => result.map_err(TlsError::from_io)?,
        Err(_elapsed) => return Err(TlsError::Deadline),
    };
    let (tcp, session) = accepted.into_inner();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or(TlsError::Untrusted(rustls::Error::NoCertificatesPresented))?;
    let trust_domain = &credential.identity().trust_domain;
    let peer = client_identity(leaf, trust_domain).map_err(TlsError::from_rustls)?;
    let stream = TlsStream::new(tcp, session.into())?;
    Ok((stream, peer))
}
