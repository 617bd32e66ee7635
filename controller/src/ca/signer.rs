//! Certificates of the root: for workloads from their signing requests, and for this program's own server.
//!
//! Of a request the public key is taken and nothing else; the request's signature proves that who sends it has the key.
//! A workload's certificate is signed for a [`Caller`] only. Follows the X.509-SVID profile of SPIFFE.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::identity::SpiffeId;
use ambit_net::tls::hash::{NoRandomness, random};
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::authenticate::Caller;
use super::root::Root;

/// Clocks of nodes may be behind ours by as much; for short lifetimes a tenth of it.
const BACKDATED: Duration = Duration::from_secs(60);
/// Largest request that is read, in bytes of PEM; one of ECDSA P-256 has about 600.
const MAX_REQUEST: usize = 8 * 1024;
/// Lifetime of this program's own certificate; renewed at half of it.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(86400);

/// Why nothing is signed.
#[derive(Debug, Error)]
pub enum SignError {
    /// The request is not one, or its key is of another kind than ours; the sender's to correct.
    #[error("the signing request cannot be used: {0}")]
    Request(&'static str),
    /// A name cannot stand in a certificate.
    #[error("{0} cannot stand in a certificate")]
    Name(String),
    /// No serial number can be drawn.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The root cannot sign.
    #[error("the root cannot sign: {0}")]
    Root(#[from] rcgen::Error),
}

/// A signed leaf.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate as PEM.
    pub leaf: String,
    /// The roots to trust, as PEM, the one that signed first.
    pub trusted: String,
    /// Its last second, in seconds since the epoch.
    pub not_after: u64,
}

/// Signs with the root that is in force.
#[derive(Debug)]
pub struct Signer {
    root: watch::Receiver<Arc<Root>>,
    longest: Duration,
}

impl Signer {
    /// Signs for at most `longest`.
    pub fn new(root: watch::Receiver<Arc<Root>>, longest: Duration) -> Self {
        Self { root, longest }
    }

    /// The root in force; it tells of the next one.
    pub fn root(&self) -> &watch::Receiver<Arc<Root>> {
        &self.root
    }

    /// Signs the key of a request (PEM, PKCS #10) for an identity that the caller may have. The lifetime is the one that
    /// was asked for or the longest, whichever is shorter.
    ///
    /// # Errors
    /// When the request cannot be used, or the root cannot sign.
    pub fn sign(
        &self,
        _caller: &Caller,
        request: &str,
        identity: &SpiffeId,
        (lifetime, now): (Option<Duration>, SystemTime),
    ) -> Result<Signed, SignError> {
        let key = request_key(request).map_err(SignError::Request)?;
        let lifetime = lifetime.map_or(self.longest, |asked| asked.min(self.longest));
        let uri = identity.to_string();
        let uri = Ia5String::try_from(uri.as_str()).map_err(|_not_ascii| SignError::Name(uri))?;
        let usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue(&key, vec![SanType::URI(uri)], usages, (lifetime, now))
    }

    /// A certificate chain and key (PEM) by which clients know this program's own server, under these names.
    ///
    /// # Errors
    /// When a name is none, or the root cannot sign.
    pub fn server(&self, names: &[String], now: SystemTime) -> Result<(String, String), SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let names = names
            .iter()
            .map(|name| server_name(name))
            .collect::<Result<_, _>>()?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = self.issue(&key, names, usages, (SERVER_LIFETIME, now))?;
        Ok((signed.leaf, key.serialize_pem()))
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        (lifetime, now): (Duration, SystemTime),
    ) -> Result<Signed, SignError> {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let root = Arc::clone(&self.root.borrow());
        let left = Duration::from_secs(root.not_after()).saturating_sub(since_epoch);
        let not_after = since_epoch + lifetime.min(left);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.serial_number = Some(serial()?);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED.min(lifetime / 10)).into();
        params.not_after = (UNIX_EPOCH + not_after).into();
        let leaf = params.signed_by(key, root.issuer())?;
        Ok(Signed {
            leaf: leaf.pem(),
            trusted: root.trusted().to_owned(),
            not_after: not_after.as_secs(),
        })
    }
}

/// The key of a signing request, once its signature proves that the sender has it.
fn request_key(pem: &str) -> Result<SubjectPublicKeyInfo, &'static str> {
    if pem.len() > MAX_REQUEST {
        return Err("it is too large");
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_form| "it is no PEM of a CERTIFICATE REQUEST")?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_form| "it is no PKCS #10 request")?;
    if !rest.is_empty() {
        return Err("it has bytes after its end");
    }
    let key = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(key).map_err(|_kind| "its key is of no known kind")?;
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err("its key is not one of ECDSA P-256");
    }
    request
        .verify_signature()
        .map_err(|_forged| "it is not signed with its key")?;
    Ok(key)
}

/// 127 random bits, not negative: what RFC 5280 §4.1.2.2 asks for.
fn serial() -> Result<SerialNumber, NoRandomness> {
    let mut bytes = random::<16>()?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x01;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn server_name(name: &str) -> Result<SanType, SignError> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let dns = crate::watch::object::is_subdomain(name);
    let name_error = || SignError::Name(format!("`{name}`"));
    let text = Ia5String::try_from(name).ok().filter(|_| dns);
    text.map(SanType::DnsName).ok_or_else(name_error)
}

#[cfg(test)]
mod tests;
