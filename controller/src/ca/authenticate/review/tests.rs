//! Which tokens name a node, in tables; then an API server in memory that counts what it is asked.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use http::{Request, Response};
use kube::client::Body;
use serde_json::json;

use super::*;

const AUDIENCE: &str = "istio-ca";
const USER: &str = "system:serviceaccount:ambit-system:ztunnel";
/// 2033.
const LATE: u64 = 1_999_999_999;

fn trusted() -> Trusted {
    Trusted {
        audience: AUDIENCE.to_owned(),
        accounts: vec![NamespacedName::new("ambit-system", "ztunnel")],
    }
}

/// A token with these claims, base64url as RFC 7515 has it.
fn token(claims: &Value) -> String {
    let text = claims.to_string();
    let encoded = serde_json::to_value(ByteString(text.into_bytes())).unwrap();
    let encoded = encoded.as_str().unwrap().trim_end_matches('=');
    let encoded = encoded.replace('+', "-").replace('/', "_");
    format!("e30.{encoded}.c2ln")
}

fn good_token() -> String {
    token(&json!({"sub": USER, "exp": LATE, "more": "ÿ?>~"}))
}

fn status(value: Value) -> TokenReviewStatus {
    serde_json::from_value(value).unwrap()
}

fn good_review() -> Value {
    json!({
        "authenticated": true, "audiences": [AUDIENCE],
        "user": {"username": USER, "extra": {(POD_NAME): ["ztunnel-x"], (POD_UID): ["u1"]}},
    })
}

fn good_pod() -> Value {
    json!({
        "metadata": {"name": "ztunnel-x", "namespace": "ambit-system", "uid": "u1"},
        "spec": {"nodeName": "n1", "serviceAccountName": "ztunnel", "containers": []},
    })
}

#[test]
fn what_cannot_be_a_good_token_is_refused_without_asking() {
    assert_eq!(trusted().precheck(&good_token()), Ok(LATE));
    let other = |sub: &str| token(&json!({"sub": sub, "exp": LATE}));
    let cases = [
        (String::new(), NO_TOKEN),
        ("a.b.c".to_owned(), NO_TOKEN),
        (good_token().replace("e30.", ""), NO_TOKEN),
        (format!("{}.x", good_token()), NO_TOKEN),
        ("x".repeat(MAX_TOKEN + 1), NO_TOKEN),
        (token(&json!({"sub": USER})), NO_TOKEN),
        (token(&json!({"sub": USER, "exp": 1_700_000_000})), EXPIRED),
        (other("alice"), NO_TOKEN),
        (other("system:serviceaccount:ambit-system"), NO_TOKEN),
        (
            other("system:serviceaccount:ambit-system:other"),
            NOT_TRUSTED,
        ),
        (other("system:serviceaccount:other:ztunnel"), NOT_TRUSTED),
        (
            other("system:serviceaccount:ambit-system:ztunnel:x"),
            NOT_TRUSTED,
        ),
    ];
    for (token, why) in cases {
        assert_eq!(trusted().precheck(&token), Err(why), "{token}");
    }
}

#[test]
fn only_a_token_of_our_audience_that_is_bound_to_a_trusted_pod_counts() {
    let pod = trusted().bound_pod(&status(good_review())).unwrap();
    assert_eq!((&*pod.name.name, pod.uid.as_str()), ("ztunnel-x", "u1"));
    let changes: [(&str, Value); 10] = [
        ("/authenticated", json!(false)),
        ("/authenticated", Value::Null),
        ("/audiences", json!(["https://kubernetes.default.svc"])),
        ("/audiences", json!([])),
        ("/audiences", Value::Null),
        ("/user", Value::Null),
        (
            "/user/username",
            json!("system:serviceaccount:default:default"),
        ),
        ("/user/extra", Value::Null),
        (
            "/user/extra/authentication.kubernetes.io~1pod-uid",
            json!([]),
        ),
        (
            "/user/extra/authentication.kubernetes.io~1pod-name",
            json!(["a", "b"]),
        ),
    ];
    for (place, value) in changes {
        let mut review = good_review();
        *review.pointer_mut(place).unwrap() = value;
        let refused = trusted().bound_pod(&status(review.clone()));
        assert!(refused.is_err(), "{review}");
    }
}

#[test]
fn only_the_very_pod_of_the_token_names_its_node() {
    let bound = trusted().bound_pod(&status(good_review())).unwrap();
    let pod = |value: Value| -> Pod { serde_json::from_value(value).unwrap() };
    assert_eq!(bound.node(Some(&pod(good_pod()))).as_deref(), Ok("n1"));
    assert_eq!(bound.node(None), Err(POD_GONE));
    let changes = [
        ("/metadata/uid", json!("u2")),
        ("/spec/serviceAccountName", json!("other")),
        ("/spec/nodeName", Value::Null),
        ("/spec/nodeName", json!("")),
    ];
    for (place, value) in changes {
        let mut changed = good_pod();
        *changed.pointer_mut(place).unwrap() = value;
        assert!(
            bound.node(Some(&pod(changed.clone()))).is_err(),
            "{changed}"
        );
    }
}

/// Knows one token and one pod.
#[derive(Default)]
struct Server {
    reviews: AtomicUsize,
    /// What everything is refused with; 0 refuses nothing.
    code: AtomicU16,
    pod_is_gone: AtomicU16,
}

impl Server {
    fn reviews(self: &Arc<Self>) -> Reviews {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(server.answer(request.uri().path())) }
        });
        Reviews::new(Client::new(service, "default"), trusted())
    }

    fn answer(&self, path: &str) -> Response<Body> {
        let is_review = path == "/apis/authentication.k8s.io/v1/tokenreviews";
        if is_review {
            self.reviews.fetch_add(1, Ordering::Relaxed);
        } else {
            assert_eq!(path, "/api/v1/namespaces/ambit-system/pods/ztunnel-x");
        }
        let failure = |code: u16| {
            (
                code,
                json!({"kind": "Status", "status": "Failure", "message": "as told", "reason": if code == 404 { "NotFound" } else { "Other" }, "code": code}),
            )
        };
        let (code, body) = match (self.code.load(Ordering::Relaxed), is_review) {
            (0, true) => (201, json!({"spec": {}, "status": good_review()})),
            (0, false) if self.pod_is_gone.load(Ordering::Relaxed) != 0 => failure(404),
            (0, false) => (200, good_pod()),
            (code, _) => failure(code),
        };
        let mut response = Response::new(Body::from(body.to_string().into_bytes()));
        *response.status_mut() = code.try_into().unwrap();
        response
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_holds_for_a_minute_and_is_asked_for_again_after() {
    let server = Arc::<Server>::default();
    let reviews = server.reviews();
    for _ in 0..3 {
        let token = reviews.authenticate(&good_token()).await.unwrap();
        assert_eq!(&**token.node(), "n1");
    }
    assert_eq!(server.reviews.load(Ordering::Relaxed), 1);
    tokio::time::advance(HOLDS).await;
    server.pod_is_gone.store(1, Ordering::Relaxed);
    let refused = reviews.authenticate(&good_token()).await.unwrap_err();
    assert_eq!(refused, (Code::Unauthenticated, POD_GONE));
    // A refusal is kept too, for less.
    server.pod_is_gone.store(0, Ordering::Relaxed);
    assert!(reviews.authenticate(&good_token()).await.is_err());
    assert_eq!(server.reviews.load(Ordering::Relaxed), 2);
    tokio::time::advance(REFUSED_FOR).await;
    assert!(reviews.authenticate(&good_token()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nobody_is_let_in_or_turned_away_for_good_while_the_api_server_cannot_be_asked() {
    let server = Arc::<Server>::default();
    let reviews = server.reviews();
    server.code.store(403, Ordering::Relaxed);
    let refused = reviews.authenticate(&good_token()).await.unwrap_err();
    assert_eq!(refused, (Code::Unavailable, NOT_ASKED));
    let problems = reviews.problems();
    assert!(
        problems[0].what.contains("create tokenreviews"),
        "{problems:?}"
    );
    server.code.store(0, Ordering::Relaxed);
    assert!(reviews.authenticate(&good_token()).await.is_ok());
    assert_eq!(reviews.problems(), []);
}

#[tokio::test(start_paused = true)]
async fn a_callers_time_ends_with_its_pod_and_not_with_the_api_server() {
    let server = Arc::<Server>::default();
    let token = server.reviews().authenticate(&good_token()).await.unwrap();
    server.code.store(500, Ordering::Relaxed);
    let waits = timeout(10 * HOLDS, token.ended()).await;
    assert!(waits.is_err(), "{waits:?}");
    server.code.store(0, Ordering::Relaxed);
    server.pod_is_gone.store(1, Ordering::Relaxed);
    let ended = timeout(2 * HOLDS, token.ended()).await;
    assert_eq!(ended.unwrap(), POD_GONE);
    let expired = ReviewedToken {
        expires: 1_700_000_000,
        ..token
    };
    assert_eq!(expired.ended().await, EXPIRED);
}
