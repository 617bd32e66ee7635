//! What is signed, and what of a request is ignored.

use rcgen::{BasicConstraints, DnType, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

use super::*;
use crate::testing::{caller, root};

fn signer(longest: u64) -> Signer {
    Signer::new(root(SystemTime::now()), Duration::from_secs(longest))
}

fn identity() -> SpiffeId {
    SpiffeId::new("cluster.local", "a", "web")
}

/// A request as the nodes' proxies make it.
fn request(key: &impl SigningKey) -> String {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

fn sign(signer: &Signer, request: &str, asked: Option<u64>) -> Result<Signed, SignError> {
    let asked = asked.map(Duration::from_secs);
    signer.sign(
        &caller("n1"),
        request,
        &identity(),
        (asked, SystemTime::now()),
    )
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Hands the parsed certificate to a check.
fn inspect(pem: &str, check: impl FnOnce(&X509Certificate<'_>)) {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    check(&X509Certificate::from_der(&der).unwrap().1);
}

#[test]
fn a_leaf_has_the_identity_and_nothing_that_was_asked_for() {
    let signer = signer(3600);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = sign(&signer, &request, None).unwrap();
    inspect(&signed.leaf, |leaf| {
        assert_eq!(leaf.subject().iter().count(), 0);
        assert!(!leaf.is_ca());
        assert_eq!(
            *leaf.public_key().subject_public_key.data,
            *key.public_key_raw()
        );
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(
            names.critical,
            "an empty subject needs it (RFC 5280 §4.2.1.6)"
        );
        let expected = identity().to_string();
        assert_eq!(names.value.general_names, [GeneralName::URI(&expected)]);
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
    });
}

#[test]
fn a_leaf_is_signed_by_the_root() {
    let signer = signer(3600);
    let signed = sign(&signer, &request(&KeyPair::generate().unwrap()), None).unwrap();
    inspect(signer.root.borrow().pem(), |root| {
        inspect(&signed.leaf, |leaf| {
            leaf.verify_signature(Some(root.public_key())).unwrap();
            assert_eq!(leaf.issuer(), root.subject());
        });
    });
}

#[test]
fn the_lifetime_is_what_was_asked_for_or_the_longest() {
    let signer = signer(3600);
    let request = request(&KeyPair::generate().unwrap());
    for (asked, expected) in [
        (None, 3600),
        (Some(60), 60),
        (Some(7200), 3600),
        (Some(u64::MAX), 3600),
    ] {
        let before = now();
        let signed = sign(&signer, &request, asked).unwrap();
        let lifetime = signed.not_after - before;
        assert!(
            (expected..=expected + 5).contains(&lifetime),
            "{asked:?}: {lifetime}"
        );
        inspect(&signed.leaf, |leaf| {
            let until = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
            assert_eq!(until, signed.not_after);
            let from = u64::try_from(leaf.validity().not_before.timestamp()).unwrap();
            assert!(from <= before && before - from <= 61, "{from}");
        });
    }
}

#[test]
fn no_leaf_outlives_the_root() {
    let signer = signer(86400);
    let request = request(&KeyPair::generate().unwrap());
    let end = signer.root.borrow().not_after();
    let late = UNIX_EPOCH + Duration::from_secs(end - 100);
    let signed = signer
        .sign(&caller("n1"), &request, &identity(), (None, late))
        .unwrap();
    assert_eq!(signed.not_after, end);
}

#[test]
fn serial_numbers_differ_for_one_key() {
    let signer = signer(3600);
    let request = request(&KeyPair::generate().unwrap());
    let serial = || {
        let mut serial = String::new();
        let signed = sign(&signer, &request, None).unwrap();
        inspect(&signed.leaf, |leaf| serial = leaf.raw_serial_as_string());
        serial
    };
    assert_ne!(serial(), serial());
}

#[test]
fn malformed_requests_are_refused() {
    let signer = signer(3600);
    let good = request(&KeyPair::generate().unwrap());
    let body = |from: &str, to: &str| good.replacen(from, to, 1);
    let lines: Vec<_> = good.lines().collect();
    let forged = {
        // The last line is the end of the signature.
        let last = lines[lines.len() - 2];
        let changed: String = last.chars().rev().collect();
        good.replacen(last, &changed, 1)
    };
    let of_kind = |algorithm| request(&KeyPair::generate_for(algorithm).unwrap());
    let cases = [
        (String::new(), "no PEM"),
        ("garbage".to_owned(), "no PEM"),
        (body("CERTIFICATE REQUEST", "CERTIFICATE"), "no PEM"),
        (lines[..lines.len() - 2].join("\n"), "no PEM"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
                .to_owned(),
            "no PKCS",
        ),
        (forged, ""),
        ("x".repeat(100_000), "too large"),
        (of_kind(&PKCS_ECDSA_P384_SHA384), "P-256"),
        (of_kind(&PKCS_ED25519), "P-256"),
    ];
    for (request, word) in cases {
        match sign(&signer, &request, None) {
            Err(SignError::Request(why)) => assert!(why.contains(word), "{request}: {why}"),
            other => panic!("{request}: {other:?}"),
        }
    }
}

#[test]
fn a_request_signed_with_another_key_is_refused() {
    let (victim, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let der = |key: &KeyPair| {
        CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .der()
            .to_vec()
    };
    let (theirs, mine) = (der(&victim), der(&thief));
    let at = theirs
        .windows(65)
        .position(|w| w == victim.public_key_raw())
        .unwrap();
    let mut stolen = mine;
    let to = stolen
        .windows(65)
        .position(|w| w == thief.public_key_raw())
        .unwrap();
    stolen[to..to + 65].copy_from_slice(&theirs[at..at + 65]);
    assert!(
        X509CertificationRequest::from_der(&stolen)
            .unwrap()
            .1
            .verify_signature()
            .is_err()
    );
    let pem = pem_of(&stolen);
    match sign(&signer(3600), &pem, None) {
        Err(SignError::Request(why)) => assert_eq!(why, "it is not signed with its key"),
        other => panic!("{other:?}"),
    }
}

/// PEM of DER bytes.
fn pem_of(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let byte = |at: usize| u32::from(*chunk.get(at).unwrap_or(&0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= chunk.len() { digit.into() } else { '=' });
        }
    }
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn the_servers_certificate_has_its_names_and_no_identity() {
    let signer = signer(3600);
    let names = [
        "localhost".to_owned(),
        "10.0.0.1".to_owned(),
        "fd00::1".to_owned(),
    ];
    let (chain, key) = signer.server(&names, SystemTime::now()).unwrap();
    ambit_net::grpc::server::ServerTls::new(&chain, &key).unwrap();
    inspect(&chain, |leaf| {
        let names = &leaf
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        assert_eq!(names.len(), 3);
        assert!(!names.iter().any(|name| matches!(name, GeneralName::URI(_))));
        let usages = leaf
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::ExtendedKeyUsage(usages) => Some(usages.clone()),
                _ => None,
            });
        let usages = usages.unwrap();
        assert!(usages.server_auth && !usages.client_auth);
    });
    for bad in ["", "a b", "*.example", "spiffe://a"] {
        assert!(
            signer.server(&[bad.to_owned()], SystemTime::now()).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn another_root_signs_as_soon_as_it_is_in_force() {
    let new = || Arc::clone(&root(SystemTime::now()).borrow());
    let (old, next) = (new(), new());
    let (sender, in_force) = watch::channel(Arc::clone(&old));
    let signer = Signer::new(in_force, Duration::from_secs(3600));
    let request = request(&KeyPair::generate().unwrap());
    let signed_by = |root: &Root| {
        let signed = sign(&signer, &request, None).unwrap();
        assert_eq!(signed.trusted, root.trusted());
        let der = CertificateDer::from_pem_slice(root.pem().as_bytes()).unwrap();
        let (_, root) = X509Certificate::from_der(&der).unwrap();
        inspect(&signed.leaf, |leaf| {
            leaf.verify_signature(Some(root.public_key())).unwrap();
        });
    };
    signed_by(&old);
    sender.send_replace(Arc::clone(&next));
    signed_by(&next);
}
