//! The client's handshake, with a deadline, towards a server that must be one of the expected identities.
//!
//! Called when a tunnel is dialled. Knows nothing of HTTP/2, of pools or of how the addresses were found.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::stream::TlsStream;
use super::{Credential, TlsError};

/// Stands where rustls wants a server name; none is sent and none is compared (istio/ztunnel does the same).
const NO_NAME: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Proves `credential` to a server that proves one of the `expected` identities.
///
/// With TLS 1.3 a server can still refuse our certificate after this has returned; that shows on the first read.
///
/// # Errors
/// The server is not trusted, is somebody else, speaks something else, or was too slow.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn connect<T>(
    tcp: T,
    credential: &Credential,
    expected: &[SpiffeId],
    deadline: Duration,
) -> Result<TlsStream<T>, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(credential.client(expected));
    let handshake = connector.connect(ServerName::IpAddress(NO_NAME.into()), tcp);
    let connected = match timeout(deadline, handshake).await {
        Ok(result) => result.map_err(TlsError::from_io)?,
        Err(_elapsed) => return Err(TlsError::Deadline),
    };
    let (tcp, session) = connected.into_inner();
    TlsStream::new(tcp, session.into())
}
