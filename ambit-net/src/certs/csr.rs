//! A new key and the request to have it certified.
//!
//! Called by the store for each fetch, so that no key outlives its certificate. ECDSA P-256, PKCS#8, and the identity as
//! the only URI name, as Istio's CA expects it (RFC 2986, SPIFFE X509-SVID §4).

use ambit_core::identity::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

/// A key that nobody else has, and the request for its certificate.
pub struct CertificateRequest {
    /// The private key, PKCS#8 as PEM.
    pub key: String,
    /// The request, PKCS#10 as PEM.
    pub request: String,
}

impl std::fmt::Debug for CertificateRequest {
    /// Never prints the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateRequest").finish_non_exhaustive()
    }
}

impl CertificateRequest {
    /// Makes a key and asks for `identity`.
    ///
    /// # Errors
    /// When the provider cannot make a key; ours.
    pub fn new(identity: &SpiffeId) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        Ok(Self {
            request: params.serialize_request(&key)?.pem()?,
            key: key.serialize_pem(),
        })
    }
}
