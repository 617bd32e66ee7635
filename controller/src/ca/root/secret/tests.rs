//! One root for all replicas, never made twice, and followed when it is exchanged.

use http::StatusCode;
use serde_json::{Value, json};

use super::*;
use crate::testing::api::Api as Server;

const PATH: &str = "/api/v1/namespaces/ambit-system/secrets/ambit-ca";
const PUBLISHED: &str = "/api/v1/namespaces/ambit-system/configmaps/ambit-root-cert";

async fn opened(server: &Server) -> Result<Root, String> {
    let root = open(&server.client(), "ambit-system", "cluster.local").await;
    root.map_err(|error| error.to_string())
}

/// The object of a Secret that holds these texts.
fn secret(texts: &[(&str, &str)]) -> Value {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = texts
        .iter()
        .map(|(key, text)| ((*key).to_owned(), bytes(text)));
    let secret = Secret {
        data: Some(data.collect()),
        ..Secret::default()
    };
    serde_json::to_value(secret).unwrap()
}

fn made() -> super::super::Made {
    make("cluster.local", SystemTime::now()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn replicas_that_start_together_have_one_root() {
    let server = Server::new();
    let (one, other, third) = tokio::join!(opened(&server), opened(&server), opened(&server));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.pem(), other.pem());
    assert_eq!(one.pem(), third.unwrap().pem());
    assert_eq!(one.trusted(), one.pem());
    let again = opened(&server).await.unwrap();
    assert_eq!(again.pem(), one.pem());
    let stored = server.at(PATH).unwrap();
    assert_eq!(stored["data"].as_object().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_secret_ends_the_start_and_is_left_as_it_is() {
    let (own, other) = (made(), made());
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "no certificate"),
        (&[(CERTIFICATE, &own.certificate)], "no private key"),
        (
            &[(CERTIFICATE, &own.certificate), (KEY, "x")],
            "no private key",
        ),
        (
            &[(CERTIFICATE, &own.certificate), (KEY, &other.key)],
            "do not belong together",
        ),
        (
            &[
                (CERTIFICATE, &own.certificate),
                (KEY, &own.key),
                (TRUSTED, &other.certificate),
            ],
            "not among those that are trusted",
        ),
    ];
    for (texts, cause) in cases {
        let server = Server::new();
        server.put(PATH, secret(texts));
        let error = opened(&server).await.unwrap_err();
        assert!(error.contains(cause), "{error}");
        assert!(error.contains("Secret ambit-system/ambit-ca"), "{error}");
        assert_eq!(server.writes(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn no_new_root_is_made_while_pods_trust_one_that_is_gone() {
    let server = Server::new();
    let (label, value) = OURS;
    server.put(
        PUBLISHED,
        json!({ "metadata": { "labels": { label: value } } }),
    );
    let error = opened(&server).await.unwrap_err();
    assert!(
        error.contains("is gone") && error.contains("ambit-root-cert"),
        "{error}"
    );
    assert_eq!(server.writes(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_or_refuses_is_waited_for() {
    for code in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::FORBIDDEN] {
        let server = Server::new();
        server.refuse(Some(code));
        let (root, ()) = tokio::join!(opened(&server), async {
            tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            server.refuse(None);
        });
        assert!(root.is_ok(), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_exchanged_counts_and_a_damaged_one_does_not() {
    let server = Server::new();
    let first = opened(&server).await.unwrap();
    let first_pem = first.pem().to_owned();
    let (sender, mut root) = watch::channel(Arc::new(first));
    let following = follow(server.client(), "ambit-system".into(), sender);
    let changing = async {
        let next = made();
        let both = format!("{first_pem}{}", next.certificate);
        let key = server.at(PATH).unwrap();
        // First both are trusted, then the new one signs; what makes no sense in between changes nothing.
        let mut trusting = key.clone();
        trusting["data"][TRUSTED] = secret(&[(TRUSTED, &both)])["data"][TRUSTED].clone();
        server.put(PATH, trusting);
        root.changed().await.unwrap();
        assert_eq!(root.borrow_and_update().pem(), first_pem);
        assert_eq!(root.borrow().trusted().matches("BEGIN").count(), 2);
        server.put(PATH, secret(&[(CERTIFICATE, &next.certificate)]));
        server.delete(PATH);
        let texts = [
            (CERTIFICATE, &*next.certificate),
            (KEY, &next.key),
            (TRUSTED, &both),
        ];
        server.put(PATH, secret(&texts));
        root.changed().await.unwrap();
        assert_eq!(root.borrow_and_update().pem(), next.certificate);
        assert_eq!(root.borrow().trusted().matches("BEGIN").count(), 2);
    };
    tokio::select! {
        () = following => {}
        () = changing => {}
    }
}
