//! Certificates for tests: an authority of a test's own, and credentials that are good or wrong in one chosen way.
//!
//! Used by the tests of this crate and, with the feature `testing`, by the package `tests`. Never part of a program.
#![expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot make its certificates has failed"
)]

use std::fmt;
#[cfg(test)]
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::identity::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    date_time_ymd,
};

#[cfg(test)]
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::Credential;

/// What a test wants in a leaf certificate.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The URI names, in this order.
    pub uris: Vec<String>,
    /// First second of validity, in seconds since the epoch.
    pub not_before: u64,
    /// Last second of validity, in seconds since the epoch.
    pub not_after: u64,
    /// The extended key usages.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    /// A good leaf for these URIs: valid from a minute ago, for an hour, for both sides.
    pub fn new<'a>(uris: impl IntoIterator<Item = &'a str>) -> Self {
        let now = now();
        Self {
            uris: uris.into_iter().map(str::to_owned).collect(),
            not_before: now - 60,
            not_after: now + 3600,
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }

    /// The same, but its time is over.
    pub fn expired(mut self) -> Self {
        self.not_before = now() - 7200;
        self.not_after = now() - 3600;
        self
    }

    /// The same, but its time has not come.
    pub fn not_yet_valid(mut self) -> Self {
        self.not_before = now() + 3600;
        self.not_after = now() + 7200;
        self
    }

    /// The same, for this use only.
    pub fn only_for(mut self, usage: ExtendedKeyUsagePurpose) -> Self {
        self.usages = vec![usage];
        self
    }
}

/// A root of a test's own.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl fmt::Debug for TestAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestAuthority")
    }
}

impl TestAuthority {
    /// A new root, which no other authority's peers trust.
    #[expect(
        clippy::new_without_default,
        reason = "a root made by default would hide that each is another one"
    )]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::OrganizationName, "test root");
        let root = params.self_signed(&key).expect("a root").pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, root }
    }

    /// The root certificate as PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The root as our verifiers take it.
    #[cfg(test)]
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let der = CertificateDer::from_pem_slice(self.root.as_bytes()).expect("a root");
        let mut roots = RootCertStore::empty();
        roots.add(der).expect("a root");
        Arc::new(roots)
    }

    /// A good credential for an identity given as `spiffe://…` text.
    pub fn credential(&self, identity: &str) -> Credential {
        self.credential_with(identity, &Leaf::new([identity]))
    }

    /// A credential whose leaf is as the test wants it; the first identity in it must be `identity`.
    pub fn credential_with(&self, identity: &str, leaf: &Leaf) -> Credential {
        let (chain, key) = self.issue(leaf);
        let identity = SpiffeId::parse(identity).expect("an identity");
        Credential::from_pem(&identity, &chain, &key).expect("a credential")
    }

    /// A good credential signed by this root, whose holder trusts another root too.
    pub fn credential_trusting(&self, identity: &str, other: &TestAuthority) -> Credential {
        let (mut chain, key) = self.issue(&Leaf::new([identity]));
        if let Some(roots) = chain.last_mut() {
            roots.push_str(&other.root);
        }
        let identity = SpiffeId::parse(identity).expect("an identity");
        Credential::from_pem(&identity, &chain, &key).expect("a credential")
    }

    /// A chain as a CA returns it (leaf, then root) and the leaf's key, all PEM.
    pub fn issue(&self, leaf: &Leaf) -> (Vec<String>, String) {
        let key = KeyPair::generate().expect("a key");
        (self.chain(leaf, &key), key.serialize_pem())
    }

    /// The chain for a PEM certificate request, of which only the key is used, as a CA should.
    pub fn sign(&self, request: &str, leaf: &Leaf) -> Vec<String> {
        let request = CertificateSigningRequestParams::from_pem(request).expect("a request");
        self.chain(leaf, &request.public_key)
    }

    /// The chain and the key, both PEM, of a server with these DNS names or addresses, as the controller's.
    pub fn issue_for_names(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("DNS names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("a leaf");
        (cert.pem() + &self.root, key.serialize_pem())
    }

    fn chain(&self, leaf: &Leaf, key: &impl PublicKeyData) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(leaf.not_before);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(leaf.not_after);
        params.extended_key_usages.clone_from(&leaf.usages);
        params.subject_alt_names = leaf.uris.iter().map(|uri| san(uri)).collect();
        let cert = params.signed_by(key, &self.issuer).expect("a leaf");
        vec![cert.pem(), self.root.clone()]
    }
}

fn san(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("an ASCII URI"))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("a clock after 1970").as_secs()
}
