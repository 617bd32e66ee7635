//! Handshakes between two sides in memory: who is let in, who is refused, and with which word.

use std::time::Duration;

use ambit_core::identity::SpiffeId;
use ambit_core::reason::Reason;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::accept::accept;
use super::connect::connect;
use super::testing::{Leaf, TestAuthority};
use super::*;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const DEADLINE: Duration = Duration::from_secs(5);

type Accepted = Result<(TlsStream<DuplexStream>, SpiffeId), TlsError>;
type Connected = Result<TlsStream<DuplexStream>, TlsError>;

async fn handshake(
    client: &Credential,
    server: &Credential,
    expect: &str,
) -> (Accepted, Connected) {
    let (near, far) = duplex(64 * 1024);
    let expect = [SpiffeId::parse(expect).unwrap()];
    tokio::join!(
        accept(far, server, DEADLINE),
        connect(near, client, &expect, DEADLINE)
    )
}

fn reason<T>(result: Result<T, TlsError>) -> Reason {
    match result {
        Ok(_) => Reason::Ok,
        Err(error) => error.reason(),
    }
}

#[tokio::test]
async fn both_sides_learn_the_identity_of_the_other() {
    let ca = TestAuthority::new();
    let (accepted, connected) =
        handshake(&ca.credential(CLIENT), &ca.credential(SERVER), SERVER).await;
    let (mut server, peer) = accepted.unwrap();
    assert_eq!(peer.to_string(), CLIENT);
    let mut client = connected.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test]
async fn post_quantum_group_and_aes_128_are_negotiated_between_our_sides() {
    let ca = TestAuthority::new();
    let (_, connected) = handshake(&ca.credential(CLIENT), &ca.credential(SERVER), SERVER).await;
    let client = connected.unwrap();
    assert_eq!(client.key_exchange(), Some(NamedGroup::X25519MLKEM768));
    let suite = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    assert_eq!(client.cipher_suite(), Some(suite));
}

#[tokio::test]
async fn servers_refuse_clients_by_certificate() {
    let ca = TestAuthority::new();
    let other_root = TestAuthority::new();
    let foreign = "spiffe://elsewhere.example/ns/shop/sa/client";
    let leaf = || Leaf::new([CLIENT]);
    let for_servers = leaf().only_for(ExtendedKeyUsagePurpose::ServerAuth);
    let cases = [
        ("good", ca.credential(CLIENT), Reason::Ok),
        (
            "other root",
            other_root.credential_trusting(CLIENT, &ca),
            Reason::PeerUntrusted,
        ),
        (
            "expired",
            ca.credential_with(CLIENT, &leaf().expired()),
            Reason::PeerUntrusted,
        ),
        (
            "too early",
            ca.credential_with(CLIENT, &leaf().not_yet_valid()),
            Reason::PeerUntrusted,
        ),
        (
            "other use",
            ca.credential_with(CLIENT, &for_servers),
            Reason::PeerUntrusted,
        ),
        (
            "foreign",
            ca.credential(foreign),
            Reason::PeerForeignTrustDomain,
        ),
    ];
    for (name, client, expected) in cases {
        let (accepted, _) = handshake(&client, &ca.credential(SERVER), SERVER).await;
        assert_eq!(reason(accepted), expected, "{name}");
    }
}

#[tokio::test]
async fn clients_refuse_servers_by_certificate() {
    let ca = TestAuthority::new();
    let other_root = TestAuthority::new();
    let leaf = || Leaf::new([SERVER]);
    let for_clients = leaf().only_for(ExtendedKeyUsagePurpose::ClientAuth);
    let foreign = "spiffe://elsewhere.example/ns/shop/sa/server";
    let cases = [
        ("good", ca.credential(SERVER), Reason::Ok),
        (
            "other root",
            other_root.credential(SERVER),
            Reason::PeerUntrusted,
        ),
        (
            "expired",
            ca.credential_with(SERVER, &leaf().expired()),
            Reason::PeerUntrusted,
        ),
        (
            "too early",
            ca.credential_with(SERVER, &leaf().not_yet_valid()),
            Reason::PeerUntrusted,
        ),
        (
            "other use",
            ca.credential_with(SERVER, &for_clients),
            Reason::PeerUntrusted,
        ),
        (
            "somebody else",
            ca.credential(CLIENT),
            Reason::PeerUnexpected,
        ),
        ("foreign", ca.credential(foreign), Reason::PeerUnexpected),
    ];
    for (name, server, expected) in cases {
        let (_, connected) = handshake(&ca.credential(CLIENT), &server, SERVER).await;
        assert_eq!(reason(connected), expected, "{name}");
    }
}

#[tokio::test]
async fn a_client_that_expects_nobody_refuses_everybody() {
    let ca = TestAuthority::new();
    let (near, far) = duplex(64 * 1024);
    let (client, server) = (ca.credential(CLIENT), ca.credential(SERVER));
    let (_, connected) = tokio::join!(
        accept(far, &server, DEADLINE),
        connect(near, &client, &[], DEADLINE)
    );
    assert_eq!(reason(connected), Reason::PeerUnexpected);
}

#[tokio::test]
async fn a_refusal_names_what_was_found_and_what_was_expected() {
    let ca = TestAuthority::new();
    let (_, connected) = handshake(&ca.credential(CLIENT), &ca.credential(CLIENT), SERVER).await;
    let text = connected.unwrap_err().to_string();
    assert!(
        text.contains(&format!("found {CLIENT}, expected {SERVER}")),
        "{text}"
    );
}

/// A client of the mesh as its author might have written it, with one thing changed.
async fn handshake_with(config: ClientConfig, server: &Credential) -> Reason {
    let (near, far) = duplex(64 * 1024);
    let connector = TlsConnector::from(Arc::new(config));
    let name = "127.0.0.1".try_into().unwrap();
    let (accepted, _client) =
        tokio::join!(accept(far, server, DEADLINE), connector.connect(name, near));
    reason(accepted)
}

#[tokio::test]
async fn classical_key_exchange_is_accepted() {
    let ca = TestAuthority::new();
    let server = ca.credential(SERVER);
    for group in [aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1] {
        let classical = CryptoProvider {
            kx_groups: vec![group],
            ..(*provider()).clone()
        };
        let expect = [SpiffeId::parse(SERVER).unwrap()];
        let ours = ca.credential(CLIENT).client(&expect);
        let mut config = ClientConfig::builder_with_provider(Arc::new(classical))
            .with_protocol_versions(VERSIONS)
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_client_cert_resolver(Arc::clone(&ours.client_auth_cert_resolver));
        let rule = verify::ServerRule::new(ca.roots(), expect.to_vec());
        config.dangerous().set_certificate_verifier(Arc::new(rule));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        assert_eq!(handshake_with(config, &server).await, Reason::Ok);
    }
}

#[tokio::test]
async fn clients_without_a_certificate_or_with_another_protocol_are_refused() {
    let ca = TestAuthority::new();
    let server = ca.credential(SERVER);
    let expect = [SpiffeId::parse(SERVER).unwrap()];
    let ours = ca.credential(CLIENT).client(&expect);

    let mut other_protocol = (*ours).clone();
    other_protocol.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert_eq!(
        handshake_with(other_protocol, &server).await,
        Reason::TlsFailed
    );

    let mut no_protocol = (*ours).clone();
    no_protocol.alpn_protocols.clear();
    assert_eq!(
        handshake_with(no_protocol, &server).await,
        Reason::TlsFailed
    );

    let mut anonymous = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let rule = verify::ServerRule::new(ca.roots(), expect.to_vec());
    anonymous
        .dangerous()
        .set_certificate_verifier(Arc::new(rule));
    anonymous.alpn_protocols = vec![ALPN_H2.to_vec()];
    assert_eq!(
        handshake_with(anonymous, &server).await,
        Reason::PeerUntrusted
    );
}

#[tokio::test]
async fn garbage_is_refused_as_tls_failure() {
    let ca = TestAuthority::new();
    let server = ca.credential(SERVER);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(
        reason(accept(far, &server, DEADLINE).await),
        Reason::TlsFailed
    );
}

#[tokio::test(start_paused = true)]
async fn handshakes_end_at_their_deadline() {
    let ca = TestAuthority::new();
    let (near, far) = duplex(64 * 1024);
    let begun = Instant::now();
    let accepted = accept(far, &ca.credential(SERVER), DEADLINE).await;
    assert!(matches!(accepted, Err(TlsError::Deadline)));
    let connected = connect(near, &ca.credential(CLIENT), &[], DEADLINE).await;
    // The far side is gone by now, which may be noticed before the deadline.
    assert!(connected.is_err());
    assert!(begun.elapsed() >= DEADLINE);
    assert!(begun.elapsed() <= 2 * DEADLINE);
}

mod credential {
    use super::*;
    use crate::tls::credential::CredentialError;

    fn id() -> SpiffeId {
        SpiffeId::parse(SERVER).unwrap()
    }

    #[test]
    fn knows_its_times_and_hides_its_key() {
        let ca = TestAuthority::new();
        let leaf = Leaf::new([SERVER]);
        let credential = ca.credential_with(SERVER, &leaf);
        assert_eq!(credential.not_before(), leaf.not_before);
        assert_eq!(credential.not_after(), leaf.not_after);
        assert!(credential.is_valid_at(leaf.not_after));
        assert!(!credential.is_valid_at(leaf.not_after + 1));
        assert!(!credential.is_valid_at(leaf.not_before - 1));
        let shown = format!("{credential:?}");
        assert!(
            shown.contains(credential.serial()) && !shown.contains("key"),
            "{shown}"
        );
    }

    #[test]
    fn is_for_exactly_the_identity_that_was_asked_for() {
        let ca = TestAuthority::new();
        let cases: [&[&str]; 4] = [
            &[],
            &[CLIENT],
            &[SERVER, CLIENT],
            &["https://server.example"],
        ];
        for uris in cases {
            let (chain, key) = ca.issue(&Leaf::new(uris.iter().copied()));
            let made = Credential::from_pem(&id(), &chain, &key);
            assert!(
                matches!(made, Err(CredentialError::Identity { .. })),
                "{uris:?}"
            );
        }
    }

    #[test]
    fn needs_the_key_of_its_leaf() {
        let ca = TestAuthority::new();
        let (chain, _) = ca.issue(&Leaf::new([SERVER]));
        let (_, other_key) = ca.issue(&Leaf::new([SERVER]));
        let made = Credential::from_pem(&id(), &chain, &other_key);
        assert!(
            matches!(made, Err(CredentialError::Unusable(_))),
            "{made:?}"
        );
    }

    #[test]
    fn refuses_chains_that_are_incomplete_or_not_pem() {
        let ca = TestAuthority::new();
        let (chain, key) = ca.issue(&Leaf::new([SERVER]));
        let garbage = vec![chain[0].clone(), "garbage".to_owned()];
        for bad in [vec![], vec![chain[0].clone()], garbage] {
            assert!(Credential::from_pem(&id(), &bad, &key).is_err(), "{bad:?}");
        }
        assert!(Credential::from_pem(&id(), &chain, "garbage").is_err());
    }

    #[tokio::test]
    async fn trusts_every_root_of_the_bundle() {
        let (old, new) = (TestAuthority::new(), TestAuthority::new());
        let server = new.credential_trusting(SERVER, &old);
        let client = old.credential_trusting(CLIENT, &new);
        let (accepted, _) = handshake(&client, &server, SERVER).await;
        assert_eq!(reason(accepted), Reason::Ok);
    }
}
