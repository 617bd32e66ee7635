//! The root of all identities: one key and certificate, and which roots beside it are trusted while one replaces another.
//!
//! Kept in a file of this program's own, or with Kubernetes in a Secret ([`secret`]). Made once, when there is none; never
//! made anew in silence, since every certificate of the mesh hangs on it. One that is damaged, open to others or out of its
//! time ends the start with words for the operator.

pub mod secret;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tracing::info;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::private_file::{self, PrivateFileError};

/// Lifetime of a root: 10 years, as istiod's own.
const LIFETIME: Duration = Duration::from_secs(3650 * 86400);
/// Clocks of nodes may be behind ours by as much.
const BACKDATED: Duration = Duration::from_secs(3600);
/// Most roots that are trusted at a time: the old one, the new one, and those of meshes that this one joins with.
const MAX_TRUSTED: usize = 16;

/// Why there is no root.
#[derive(Debug, Error)]
pub enum RootError {
    /// The file cannot be read or written, or is open to others.
    #[error("the root of the CA cannot be used: {0}")]
    File(#[from] PrivateFileError),
    /// The file or Secret does not hold a root and its key.
    #[error(
        "{place} is damaged: {cause}. Put back a copy; with a new root every pod needs a new certificate, and nodes a new root file"
    )]
    Damaged {
        /// The file or Secret.
        place: String,
        /// What is wrong.
        cause: String,
    },
    /// The Secret is not there though a root of it is trusted.
    #[error(
        "{place} is gone, and {published} says that pods trust a root of it. Put back a copy; to begin with a new root, \
         delete that ConfigMap, and know that pods refuse each other until each has a new certificate"
    )]
    Gone {
        /// The Secret.
        place: String,
        /// Where the root was found to be trusted.
        published: String,
    },
    /// A root cannot be made.
    #[error("a root cannot be made: {0}")]
    Make(#[source] rcgen::Error),
}

/// The root.
#[derive(Debug)]
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    trusted: String,
    not_after: u64,
}

/// The texts that a root is made of, each PEM.
#[derive(Clone, Copy, Debug)]
pub struct RootTexts<'a> {
    /// The certificate that signs.
    pub certificate: &'a str,
    /// Its private key.
    pub key: &'a str,
    /// All certificates that are trusted, that one among them; none trusts that one alone.
    pub trusted: Option<&'a str>,
}

impl Root {
    /// Reads the root, or makes one if there is no file; `trust_domain` names its organisation.
    ///
    /// # Errors
    /// When there is a file and it cannot be used, or one cannot be made.
    pub fn load_or_create(
        path: &Path,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Self, RootError> {
        match private_file::read(path) {
            Ok(bytes) => return Self::of_file(path, &bytes, now),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let made = make(trust_domain, now).map_err(RootError::Make)?;
        let text = made.certificate + &made.key;
        if private_file::create(path, text.as_bytes())? {
            info!(path = %path.display(), "a root is made");
        }
        // Another process may have been first; what is in the file counts.
        Self::of_file(path, &private_file::read(path)?, now)
    }

    /// Reads a root from its texts; `place` says in errors where they are from.
    ///
    /// # Errors
    /// When they are not a root of ECDSA P-256 in its time with its key, or it is not among what is trusted.
    pub fn parse(place: &str, texts: RootTexts<'_>, now: SystemTime) -> Result<Self, RootError> {
        Self::read(texts, now).map_err(|cause| RootError::Damaged {
            place: place.to_owned(),
            cause,
        })
    }

    /// What signs.
    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The certificate that signs, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// All certificates that are trusted, as PEM, the one that signs first.
    pub fn trusted(&self) -> &str {
        &self.trusted
    }

    /// Its last second, in seconds since the epoch.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    fn of_file(path: &Path, bytes: &[u8], now: SystemTime) -> Result<Self, RootError> {
        let text = String::from_utf8_lossy(bytes);
        let texts = RootTexts {
            certificate: &text,
            key: &text,
            trusted: None,
        };
        Self::parse(&path.display().to_string(), texts, now)
    }

    fn read(texts: RootTexts<'_>, now: SystemTime) -> Result<Self, String> {
        let pem = certificates(texts.certificate).next();
        let pem = pem.ok_or_else(|| "no certificate".to_owned())?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        let certificate = certificate.map_err(|e| format!("its certificate: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(texts.key.as_bytes());
        let key = key.map_err(|e| format!("no private key: {e}"))?;
        let key = KeyPair::try_from(&key).map_err(|e| format!("its key: {e}"))?;
        let not_after = check(&certificate, &key, now)?;
        let trusted = texts
            .trusted
            .map_or_else(|| Ok(pem.clone()), |trusted| bundle(&pem, trusted))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key);
        let issuer = issuer.map_err(|e| format!("its certificate: {e}"))?;
        Ok(Self {
            issuer,
            pem,
            trusted,
            not_after,
        })
    }
}

/// What is trusted, `own` first; an error when `own` is not among it or one is no certificate of a CA.
fn bundle(own: &str, trusted: &str) -> Result<String, String> {
    let mut bundle = own.to_owned();
    let mut has_own = false;
    for (at, pem) in certificates(trusted).enumerate() {
        if at == MAX_TRUSTED {
            return Err(format!("more than {MAX_TRUSTED} certificates are trusted"));
        }
        let bad = |cause: String| format!("trusted certificate {}: {cause}", at + 1);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| bad(e.to_string()))?;
        if !parsed.is_ca() {
            return Err(bad("it is not one of a CA".to_owned()));
        }
        if pem == own {
            has_own = true;
        } else {
            bundle.push_str(&pem);
        }
    }
    if !has_own {
        return Err("the certificate that signs is not among those that are trusted".to_owned());
    }
    Ok(bundle)
}

/// Checks that a certificate is a root of this key and in its time; gives its last second.
fn check(certificate: &[u8], key: &KeyPair, now: SystemTime) -> Result<u64, String> {
    let (rest, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| format!("its certificate: {e}"))?;
    if !rest.is_empty() || !parsed.is_ca() {
        return Err("its certificate is not one of a CA".to_owned());
    }
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err("its key is not one of ECDSA P-256".to_owned());
    }
    if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
        return Err("certificate and key do not belong together".to_owned());
    }
    parsed
        .verify_signature(None)
        .map_err(|e| format!("it is not signed by itself: {e}"))?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let not_before = seconds(parsed.validity().not_before.timestamp());
    let not_after = seconds(parsed.validity().not_after.timestamp());
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if !(not_before..not_after).contains(&now) {
        return Err("its certificate is out of its time; is the clock right?".to_owned());
    }
    Ok(not_after)
}

/// The PEM texts of a new root.
struct Made {
    certificate: String,
    key: String,
}

/// Makes a root.
fn make(trust_domain: &str, now: SystemTime) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LIFETIME).into();
    let certificate = params.self_signed(&key)?;
    Ok(Made {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// The parts of a PEM text that are certificates, each with one form of line ends.
fn certificates(text: &str) -> impl Iterator<Item = String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    text.split(BEGIN).skip(1).filter_map(|part| {
        let (body, _) = part.split_once(END)?;
        let lines = body.lines().map(str::trim).filter(|line| !line.is_empty());
        let body: String = lines.map(|line| format!("{line}\n")).collect();
        Some(format!("{BEGIN}\n{body}{END}\n"))
    })
}

#[cfg(test)]
mod tests;
