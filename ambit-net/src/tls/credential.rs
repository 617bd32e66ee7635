//! Credential: what a workload proves its identity with, ready for both sides of a handshake.
//!
//! Made by [`crate::certs`] from what the CA signed, used by [`super::accept`] and [`super::connect`]. Holds no socket
//! and asks nobody; whether it is still in its time is for the caller to check.

use std::fmt;
use std::sync::Arc;

use ambit_core::identity::SpiffeId;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::{ClientRule, ServerRule, identities};
use super::{ALPN_H2, VERSIONS, provider};

/// Most certificates that a chain or a root bundle may have; more is a mistake of the CA.
const MAX_CERTIFICATES: usize = 64;

/// A certificate with its key and the roots that its peers are checked against.
pub struct Credential {
    identity: SpiffeId,
    serial: String,
    not_before: u64,
    not_after: u64,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// Why PEM texts do not make a credential.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// The chain needs a leaf and, last, the roots.
    #[error("the chain has {0} certificate texts; it needs a leaf first and the roots last")]
    Chain(usize),
    /// Over 64 certificates.
    #[error("the chain has too many certificates")]
    TooMany,
    /// A text is not PEM, or has no certificate or key in it.
    #[error("a PEM text cannot be read: {0}")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// A certificate cannot be parsed.
    #[error("a certificate cannot be parsed: {0}")]
    Certificate(String),
    /// The leaf names nobody, somebody else, or somebody else too.
    #[error("the certificate is for {found:?} and not for {wanted} alone")]
    Identity {
        /// The identity that was asked for.
        wanted: SpiffeId,
        /// The identities that the certificate names.
        found: Vec<SpiffeId>,
    },
    /// The key does not belong to the leaf, or rustls cannot use the pair.
    #[error("the certificate and the key cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
}

impl Credential {
    /// Reads what a CA returned for `identity`: the leaf first, then intermediates, the roots last (possibly several).
    ///
    /// # Errors
    /// When a text cannot be read, the leaf is not for exactly this identity, or the key does not match. The CA's fault,
    /// except for the key, which is ours.
    pub fn from_pem(
        identity: &SpiffeId,
        chain: &[String],
        key: &str,
    ) -> Result<Self, CredentialError> {
        let (chain, roots) = read_chain(chain)?;
        let leaf = chain.first().ok_or(CredentialError::Chain(0))?;
        let found = identities(leaf).map_err(CredentialError::Unusable)?;
        if found.as_slice() != std::slice::from_ref(identity) {
            return Err(CredentialError::Identity {
                wanted: identity.clone(),
                found,
            });
        }
        let (serial, not_before, not_after) = facts(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(CredentialError::Pem)?;
        let certified =
            CertifiedKey::from_der(chain, key, &provider()).map_err(CredentialError::Unusable)?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let server = server_config(identity, &roots, &certified);
        let client = client_config(&roots, &certified);
        Ok(Self {
            identity: identity.clone(),
            serial,
            not_before,
            not_after,
            roots,
            server: Arc::new(server.map_err(CredentialError::Unusable)?),
            client: client.map_err(CredentialError::Unusable)?,
        })
    }

    /// Who this credential proves to be.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The certificate's serial number in hexadecimal, for logs and status.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// First second of validity, in seconds since the epoch.
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// Last second of validity, in seconds since the epoch.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// True when the certificate may be shown at `now`, in seconds since the epoch.
    pub fn is_valid_at(&self, now: u64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// The server's side, made once.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The client's side for a destination that is one of `expected`; costs a few allocations.
    pub(crate) fn client(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        let rule = ServerRule::new(Arc::clone(&self.roots), expected.to_vec());
        config.dangerous().set_certificate_verifier(Arc::new(rule));
        Arc::new(config)
    }
}

impl fmt::Debug for Credential {
    /// Never prints key material.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

type Chain = (Vec<CertificateDer<'static>>, Arc<RootCertStore>);

fn read_chain(texts: &[String]) -> Result<Chain, CredentialError> {
    let Some((roots_text, chain_texts)) = texts.split_last() else {
        return Err(CredentialError::Chain(0));
    };
    let mut chain = Vec::new();
    for text in chain_texts {
        chain.append(&mut read_certificates(text)?);
    }
    if chain.is_empty() {
        return Err(CredentialError::Chain(texts.len()));
    }
    let mut roots = RootCertStore::empty();
    for root in read_certificates(roots_text)? {
        roots.add(root).map_err(CredentialError::Unusable)?;
    }
    if chain.len() > MAX_CERTIFICATES || roots.len() > MAX_CERTIFICATES {
        return Err(CredentialError::TooMany);
    }
    Ok((chain, Arc::new(roots)))
}

fn read_certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if found.is_empty() => Err(CredentialError::Pem(
            rustls::pki_types::pem::Error::NoItemsFound,
        )),
        Ok(found) => Ok(found),
        Err(error) => Err(CredentialError::Pem(error)),
    }
}

/// Serial number and validity of a certificate.
fn facts(leaf: &CertificateDer<'_>) -> Result<(String, u64, u64), CredentialError> {
    let (_, cert) = X509Certificate::from_der(leaf)
        .map_err(|error| CredentialError::Certificate(error.to_string()))?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = cert.validity();
    let serial = cert.raw_serial().iter().map(|byte| format!("{byte:02x}"));
    Ok((
        serial.collect(),
        seconds(validity.not_before),
        seconds(validity.not_after),
    ))
}

fn server_config(
    identity: &SpiffeId,
    roots: &Arc<RootCertStore>,
    certified: &Arc<SingleCertAndKey>,
) -> Result<ServerConfig, rustls::Error> {
    let rule = ClientRule::new(roots, Arc::clone(&identity.trust_domain))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(Arc::new(rule))
        .with_cert_resolver(Arc::<SingleCertAndKey>::clone(certified));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // Clients of the mesh do not resume, so tickets would be bytes and memory for nothing.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The client's side without a destination: it accepts nobody until [`Credential::client`] says whom.
fn client_config(
    roots: &Arc<RootCertStore>,
    certified: &Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    let nobody = ServerRule::new(Arc::clone(roots), Vec::new());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(certified));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}
