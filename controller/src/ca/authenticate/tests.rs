//! What of a header is a token, and how refusals are told.

use super::*;
use crate::testing::{Dir, token, write_token};

#[tokio::test]
async fn only_a_bearer_token_is_looked_at() {
    let dir = Dir::new();
    write_token(&dir.0, "n1", &token('a'));
    let authenticator = Authenticator::open(&dir.0, Meters::new("test", 1)).unwrap();
    let good = token('a');
    let header = format!("Bearer {good}");
    let caller = authenticator.authenticate(Some(&header)).await.unwrap();
    assert_eq!(caller.node(), "n1");
    let headers = [
        None,
        Some(String::new()),
        Some(good.clone()),
        Some(format!("bearer {good}")),
        Some(format!("Basic {good}")),
        Some("Bearer ".to_owned()),
        Some(format!("Bearer  {good}")),
    ];
    for header in headers {
        let refused = authenticator.authenticate(header.as_deref()).await;
        assert_eq!(
            refused.unwrap_err().code(),
            Code::Unauthenticated,
            "{header:?}"
        );
    }
}

#[test]
fn a_request_that_passed_nobody_has_no_caller() {
    let refused = Caller::of(&Request::new(())).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[test]
fn refused_calls_are_logged_now_and_then_and_all_counted() {
    let mut refused = Refused::default();
    let start = Instant::now();
    let told: Vec<_> = [0, 1, 9, 10, 11, 25]
        .map(|seconds| refused.due(start + Duration::from_secs(seconds)))
        .into();
    let expected = [Some(1), None, None, Some(3), None, Some(2)];
    assert_eq!(told, expected);
}
