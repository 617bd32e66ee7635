//! The root is made once and never replaced in silence.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::testing::Dir;

fn load(dir: &Dir) -> Result<Root, RootError> {
    Root::load_or_create(&dir.path("root.pem"), "cluster.local", SystemTime::now())
}

/// Changes the file and gives what the next start says.
fn after(change: impl FnOnce(String) -> String) -> String {
    let dir = Dir::new();
    load(&dir).unwrap();
    let file = dir.path("root.pem");
    let text = change(fs::read_to_string(&file).unwrap());
    fs::write(&file, &text).unwrap();
    let error = load(&dir).unwrap_err().to_string();
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        text,
        "it is left as it is"
    );
    assert!(error.contains("root.pem"), "{error}");
    error
}

#[test]
fn a_root_is_made_once() {
    let dir = Dir::new();
    let first = load(&dir).unwrap();
    let second = load(&dir).unwrap();
    assert_eq!(first.pem(), second.pem());
    assert!(!first.pem().contains("PRIVATE"));
    let years = (first.not_after()
        - SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs())
        / (365 * 86400);
    assert!((9..=10).contains(&years), "{years}");
    let mode = fs::metadata(dir.path("root.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_root_is_refused_and_kept() {
    let key_of_another = {
        let dir = Dir::new();
        load(&dir).unwrap();
        let text = fs::read_to_string(dir.path("root.pem")).unwrap();
        text.split_once("-----END CERTIFICATE-----")
            .unwrap()
            .1
            .to_owned()
    };
    let certificate = |text: &str| {
        text.split_once("-----END CERTIFICATE-----")
            .unwrap()
            .0
            .to_owned()
            + "-----END CERTIFICATE-----\n"
    };
    assert!(after(|_| String::new()).contains("no certificate"));
    assert!(after(|text| certificate(&text)).contains("no private key"));
    assert!(after(|text| text.replacen("MII", "AAA", 1)).contains("damaged"));
    let mixed = after(|text| certificate(&text) + &key_of_another);
    assert!(mixed.contains("do not belong together"), "{mixed}");
}

#[test]
fn a_certificate_that_is_no_root_is_refused() {
    let leaf = after(|_| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .pem()
            + &key.serialize_pem()
    });
    assert!(leaf.contains("not one of a CA"), "{leaf}");
    let other_key = after(|_| {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
    });
    assert!(other_key.contains("P-256"), "{other_key}");
}

#[test]
fn a_root_that_others_may_read_is_refused() {
    let dir = Dir::new();
    load(&dir).unwrap();
    let file = dir.path("root.pem");
    for mode in [0o640, 0o604] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let error = load(&dir).unwrap_err().to_string();
        assert!(error.contains("open to others"), "{error}");
    }
}

#[test]
fn a_root_out_of_its_time_is_refused() {
    let dir = Dir::new();
    load(&dir).unwrap();
    let file = dir.path("root.pem");
    for now in [
        SystemTime::now() + 2 * LIFETIME,
        SystemTime::now() - 2 * BACKDATED,
    ] {
        let error = Root::load_or_create(&file, "cluster.local", now).unwrap_err();
        assert!(error.to_string().contains("clock"), "{error}");
    }
}

/// Certificate and key of a new root.
fn made() -> (String, String) {
    let made = make("cluster.local", SystemTime::now()).unwrap();
    (made.certificate, made.key)
}

fn with_trusted(trusted: &str, (certificate, key): &(String, String)) -> Result<Root, String> {
    let texts = RootTexts {
        certificate,
        key,
        trusted: Some(trusted),
    };
    Root::parse("the place", texts, SystemTime::now()).map_err(|error| error.to_string())
}

#[test]
fn what_is_trusted_has_the_own_certificate_first_and_once() {
    let (own, other) = (made(), made());
    for trusted in [
        format!("{}{}", other.0, own.0),
        format!("# old\n{}\n# new\n{}{}", own.0, other.0, own.0),
        format!("{}{}", own.0, other.0).replace('\n', "\r\n"),
    ] {
        let root = with_trusted(&trusted, &own).unwrap();
        let first = certificates(&own.0).next().unwrap();
        assert_eq!(root.pem(), first);
        assert!(root.trusted().starts_with(&first));
        assert_eq!(root.trusted().matches("BEGIN CERTIFICATE").count(), 2);
    }
}

#[test]
fn a_bundle_that_would_break_the_mesh_is_refused() {
    let (own, other) = (made(), made());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::default().self_signed(&key).unwrap();
    let cases = [
        (String::new(), "not among those that are trusted"),
        (other.0.clone(), "not among those that are trusted"),
        (format!("{}{}", own.0, leaf.pem()), "trusted certificate 2"),
        (
            own.0.clone() + &own.0.replacen("MII", "AAA", 1),
            "trusted certificate 2",
        ),
        (own.0.clone() + &other.0.repeat(MAX_TRUSTED), "more than 16"),
    ];
    for (trusted, cause) in cases {
        let error = with_trusted(&trusted, &own).unwrap_err();
        assert!(
            error.contains(cause) && error.contains("the place is damaged"),
            "{error}"
        );
    }
}
