//! Verifiers for both sides: the chain leads to our roots, then the SPIFFE identity is one that we want.
//!
//! Called by rustls during a handshake, and by [`super::accept`] for the identity of a verified client. Follows SPIFFE
//! X509-SVID §5 (path validation, then the URI SAN); the rules of who may talk to whom beyond that are policy's.

use std::sync::Arc;

use ambit_core::identity::SpiffeId;
use ambit_core::names::Text;
use ambit_core::reason::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use thiserror::Error;

use super::provider;

/// Why a valid certificate is not the peer that we want.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// No URI name of the certificate is an identity of a mesh.
    #[error("the certificate has no SPIFFE identity")]
    None,
    /// Every identity is of another trust domain than ours.
    #[error("{found} is not of the trust domain {ours}")]
    ForeignTrustDomain {
        /// Our trust domain.
        ours: Text,
        /// The first identity of the peer.
        found: SpiffeId,
    },
    /// The identity is not among those that the destination may have.
    #[error("found {found}, expected {}", list(expected))]
    Unexpected {
        /// What the destination may be.
        expected: Vec<SpiffeId>,
        /// The first identity of the peer.
        found: SpiffeId,
    },
}

impl IdentityError {
    /// The stable word for this refusal.
    pub fn reason(&self) -> Reason {
        match self {
            Self::None => Reason::PeerUntrusted,
            Self::ForeignTrustDomain { .. } => Reason::PeerForeignTrustDomain,
            Self::Unexpected { .. } => Reason::PeerUnexpected,
        }
    }

    /// Finds the verdict that one of our verifiers gave to rustls.
    pub(crate) fn inside(other: &OtherError) -> Option<Arc<Self>> {
        other.0.downcast_ref::<Self>().cloned().map(Arc::new)
    }
}

impl From<IdentityError> for rustls::Error {
    fn from(verdict: IdentityError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(verdict))))
    }
}

fn list(ids: &[SpiffeId]) -> String {
    let texts: Vec<_> = ids.iter().map(ToString::to_string).collect();
    match texts.is_empty() {
        true => "nobody".to_owned(),
        false => texts.join(" or "),
    }
}

/// The SPIFFE identities that a certificate names, in its order; names of any other form are passed over.
///
/// # Errors
/// When the certificate is not well-formed.
pub(crate) fn identities(leaf: &CertificateDer<'_>) -> Result<Vec<SpiffeId>, rustls::Error> {
    let cert = webpki::EndEntityCert::try_from(leaf)
        .map_err(|_malformed| rustls::Error::from(CertificateError::BadEncoding))?;
    let uris = cert.valid_uri_names();
    Ok(uris.filter_map(|uri| SpiffeId::parse(uri).ok()).collect())
}

/// The identity under which a client of our trust domain is known: the first one of that domain.
///
/// Taking the first of *our* domain means that what was verified is also what policy sees.
///
/// # Errors
/// When there is no identity, or none of the trust domain.
pub(crate) fn client_identity(
    leaf: &CertificateDer<'_>,
    trust_domain: &Text,
) -> Result<SpiffeId, rustls::Error> {
    let mut found = identities(leaf)?;
    if let Some(ours) = found.iter().position(|id| id.trust_domain == *trust_domain) {
        return Ok(found.swap_remove(ours));
    }
    match found.into_iter().next() {
        None => Err(IdentityError::None.into()),
        Some(found) => {
            let ours = Arc::clone(trust_domain);
            Err(IdentityError::ForeignTrustDomain { ours, found }.into())
        }
    }
}

/// What a server asks of clients: our roots, client authentication, our trust domain.
#[derive(Debug)]
pub(crate) struct ClientRule {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Text,
}

impl ClientRule {
    /// Builds the rule for servers of one trust domain.
    ///
    /// # Errors
    /// When there are no roots.
    pub(crate) fn new(
        roots: &Arc<RootCertStore>,
        trust_domain: Text,
    ) -> Result<Self, rustls::Error> {
        // The names of the roots are not sent to clients: every client of the mesh has exactly one certificate.
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self {
            chain,
            trust_domain,
        })
    }
}

impl ClientCertVerifier for ClientRule {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.chain.verify_client_cert(leaf, intermediates, now)?;
        client_identity(leaf, &self.trust_domain)?;
        Ok(verdict)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What a client asks of a server: our roots, server authentication, one of the expected identities.
#[derive(Debug)]
pub(crate) struct ServerRule {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Vec<SpiffeId>,
}

impl ServerRule {
    /// Builds the rule for one destination; with nobody expected, everybody is refused.
    pub(crate) fn new(roots: Arc<RootCertStore>, expected: Vec<SpiffeId>) -> Self {
        Self {
            roots,
            algorithms: provider().signature_verification_algorithms,
            expected,
        }
    }

    fn check_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let found = identities(leaf)?;
        if found.iter().any(|id| self.expected.contains(id)) {
            return Ok(());
        }
        Err(match found.into_iter().next() {
            None => IdentityError::None,
            Some(found) => IdentityError::Unexpected {
                expected: self.expected.clone(),
                found,
            },
        }
        .into())
    }
}

impl ServerCertVerifier for ServerRule {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.check_identity(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
