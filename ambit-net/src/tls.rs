//! TLS of the mesh: which provider, versions, suites and groups there are. With `hash.rs` the only
//! file that names the provider.
//!
//! Called by the tunnel and by whoever speaks TLS to the controller. A workload's side of TLS is a [`Credential`]; the
//! handshakes are in [`accept`] and [`connect`]. Follows RFC 8446, draft-ietf-tls-ecdhe-mlkem and Istio's ambient mode
//! (TLS 1.3 only, both sides prove a SPIFFE identity, ALPN `h2`, no server name, no resumption).

pub mod verify;
pub mod credential;
pub mod stream;
pub mod accept;
pub mod connect;
pub mod hash;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::io;
use std::sync::{Arc, LazyLock};

use ambit_core::reason::Reason;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{AlertDescription, CertificateError, SupportedProtocolVersion};
use thiserror::Error;

pub use credential::{Credential, CredentialError};
pub use stream::TlsStream;
pub use verify::IdentityError;

/// The application protocol of HBONE, required on both sides (RFC 7301, RFC 9113 §3.2).
pub const ALPN_H2: &[u8] = b"h2";

/// TLS 1.3 and nothing else (Istio: `TLS12_ENABLED` is off).
pub const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The provider of the whole process: AES-GCM suites, post-quantum key exchange first.
///
/// AES-128 comes before AES-256 because the client's order decides and it is the cheaper one (docs/performance.md);
/// both are what istio/ztunnel offers. ChaCha20 is left out, as there.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ],
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

/// Why there is no TLS connection. Cheap to clone, since all who wait for one dial get the same answer.
#[derive(Clone, Debug, Error)]
pub enum TlsError {
    /// The peer's certificate does not lead to our roots, is out of its time, is for another use, or is not there.
    #[error("the peer's certificate is not trusted: {0}")]
    Untrusted(#[source] rustls::Error),
    /// The certificate is good but proves an identity that is not wanted here.
    #[error("the peer's identity is refused: {0}")]
    Identity(#[source] Arc<IdentityError>),
    /// The peer ended the handshake with this alert; its log says why.
    #[error("the peer refused the handshake: {0:?}")]
    RefusedByPeer(AlertDescription),
    /// The handshake did not end in time.
    #[error("the TLS handshake did not end in time")]
    Deadline,
    /// The peer does not speak our TLS: version, suites, ALPN or malformed messages.
    #[error("the TLS handshake failed: {0}")]
    Protocol(#[source] rustls::Error),
    /// The TCP connection failed.
    #[error("the connection failed during the TLS handshake: {0}")]
    Io(#[source] Arc<io::Error>),
}

impl TlsError {
    /// The stable word for this failure.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Untrusted(_) => Reason::PeerUntrusted,
            Self::Identity(error) => error.reason(),
            Self::RefusedByPeer(_) | Self::Deadline | Self::Protocol(_) | Self::Io(_) => {
                Reason::TlsFailed
            }
        }
    }

    /// Finds the verdict of rustls (and of our verifiers inside it) in the error of an input or output operation.
    pub(crate) fn from_io(error: io::Error) -> Self {
        Self::verdict(&error).unwrap_or_else(|| Self::Io(Arc::new(error)))
    }

    /// What TLS itself says in an error of an input or output operation; none when the failure is below TLS.
    pub(crate) fn verdict(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        inner
            .downcast_ref::<rustls::Error>()
            .map(|found| Self::from_rustls(found.clone()))
    }

    fn from_rustls(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(ref other)) => {
                match IdentityError::inside(other) {
                    Some(verdict) => Self::Identity(verdict),
                    None => Self::Untrusted(error),
                }
            }
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::Untrusted(error)
            }
            rustls::Error::AlertReceived(alert) => Self::RefusedByPeer(alert),
            other => Self::Protocol(other),
        }
    }
}

#[cfg(test)]
mod tests;
