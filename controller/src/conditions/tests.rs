//! Authors are told once, on what they wrote, and beside what others say.

use http::StatusCode;
use std::time::Duration;

use super::*;
use crate::testing::api::Api as Server;
use crate::testing::name_of;

const POLICY: &str = "/apis/security.istio.io/v1/namespaces/a/authorizationpolicies/p";
const OLD_POLICY: &str = "/apis/security.istio.io/v1beta1/namespaces/a/authorizationpolicies/p";
const SERVICE: &str = "/api/v1/namespaces/a/services/s";

fn policy() -> Source {
    Source::AuthorizationPolicy(name_of("a/p"))
}

fn service() -> Source {
    Source::Service(name_of("a/s"))
}

fn verdict(acceptance: Acceptance, generation: i64) -> Verdict {
    Verdict {
        generation: Some(generation),
        acceptance,
        message: format!("{acceptance:?} in words"),
    }
}

/// An object of a generation that others have said something about.
fn object(generation: i64) -> Value {
    json!({
        "metadata": { "generation": generation },
        "spec": { "action": "DENY" },
        "status": { "theirs": 1, "conditions": [{ "type": "Reconciled", "status": "True" }] },
    })
}

fn ours(server: &Server, path: &str) -> Option<Value> {
    let object = server.at(path)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    conditions
        .into_iter()
        .find(|condition| condition["type"] == ACCEPTED)
}

/// Runs with these verdicts while `check` changes them.
async fn telling(
    server: &Server,
    first: &[(Source, Verdict)],
    check: impl AsyncFnOnce(watch::Sender<Arc<Verdicts>>),
) {
    let (sender, verdicts) = watch::channel(Arc::new(first.iter().cloned().collect()));
    tokio::select! {
        () = run(server.client(), verdicts) => {}
        () = check(sender) => {}
    }
}

fn says(path: &'static str, status: &'static str) -> impl Fn(&Server) -> bool {
    move |server| ours(server, path).is_some_and(|ours| ours["status"] == status)
}

#[tokio::test(start_paused = true)]
async fn a_policys_condition_says_what_became_of_it_beside_what_others_say() {
    let server = Server::new();
    server.put(POLICY, object(4));
    let first = [(policy(), verdict(Acceptance::NotUnderstood, 4))];
    telling(&server, &first, async |verdicts| {
        server.until("refused", says(POLICY, "False")).await;
        let told = ours(&server, POLICY).unwrap();
        assert_eq!(told["reason"], "NotUnderstood");
        assert_eq!(told["message"], "NotUnderstood in words");
        assert_eq!(told["observedGeneration"], 4);
        server.put(POLICY, with_generation(&server, 5));
        verdicts.send_replace(Arc::new(
            [(policy(), verdict(Acceptance::Accepted, 5))].into(),
        ));
        server.until("accepted", says(POLICY, "True")).await;
        let whole = server.at(POLICY).unwrap();
        assert_eq!(whole["status"]["theirs"], 1);
        assert_eq!(whole["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(whole["spec"]["action"], "DENY");
    })
    .await;
}

/// The policy as its author writes it anew.
fn with_generation(server: &Server, generation: i64) -> Value {
    let mut object = server.at(POLICY).unwrap();
    object["metadata"]["generation"] = json!(generation);
    object
}

#[tokio::test(start_paused = true)]
async fn what_is_already_said_is_not_written_again() {
    let server = Server::new();
    server.put(POLICY, object(4));
    let first = [(policy(), verdict(Acceptance::NoEffect, 4))];
    for _leader in 0..2 {
        telling(&server, &first, async |_verdicts| {
            server.until("told", says(POLICY, "False")).await;
            sleep(Duration::from_secs(60)).await;
        })
        .await;
    }
    assert_eq!(server.writes(), [format!("PUT {POLICY}/status")]);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_never_written_on_another_generation() {
    let server = Server::new();
    server.put(POLICY, object(5));
    let first = [(policy(), verdict(Acceptance::Accepted, 4))];
    telling(&server, &first, async |verdicts| {
        sleep(Duration::from_secs(60)).await;
        assert_eq!(ours(&server, POLICY), None);
        verdicts.send_replace(Arc::new(
            [(policy(), verdict(Acceptance::NoEffect, 5))].into(),
        ));
        server
            .until("the verdict on this one", says(POLICY, "False"))
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_with_the_older_version_alone_is_told_as_well() {
    let server = Server::new();
    server.put(OLD_POLICY, object(1));
    let first = [(policy(), verdict(Acceptance::Accepted, 1))];
    telling(&server, &first, async |_verdicts| {
        server.until("told", says(OLD_POLICY, "True")).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_services_condition_goes_when_all_of_it_is_understood() {
    let server = Server::new();
    server.put(
        SERVICE,
        json!({ "metadata": {}, "spec": {}, "status": { "loadBalancer": {} } }),
    );
    let of = |acceptance| Verdict {
        generation: None,
        ..verdict(acceptance, 0)
    };
    let first = [(service(), of(Acceptance::NotUnderstood))];
    telling(&server, &first, async |verdicts| {
        server.until("told", says(SERVICE, "False")).await;
        verdicts.send_replace(Arc::new([(service(), of(Acceptance::Accepted))].into()));
        let gone = |server: &Server| ours(server, SERVICE).is_none();
        server.until("taken back", gone).await;
        assert_eq!(
            server.at(SERVICE).unwrap()["status"]["loadBalancer"],
            json!({})
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_gone_or_a_server_that_refuses_stops_nothing() {
    let server = Server::new();
    server.put(POLICY, object(1));
    let gone = Source::PeerAuthentication(name_of("a/gone"));
    let first = [
        (gone, verdict(Acceptance::Accepted, 1)),
        (policy(), verdict(Acceptance::Accepted, 1)),
    ];
    server.refuse_writes(Some(StatusCode::FORBIDDEN));
    telling(&server, &first, async |_verdicts| {
        sleep(Duration::from_secs(60)).await;
        let tried = server.writes().len();
        assert!((2..100).contains(&tried), "{tried} writes in a minute");
        server.refuse_writes(None);
        server.until("told", says(POLICY, "True")).await;
    })
    .await;
}

#[test]
fn the_time_of_a_transition_stays_while_the_status_does() {
    let object = |value: Value| serde_json::from_value::<DynamicObject>(value).unwrap();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let told = |acceptance, seconds| condition(&policy(), &verdict(acceptance, 1), at(seconds));
    let time = |object: &DynamicObject| {
        object.data["status"]["conditions"][0]["lastTransitionTime"].clone()
    };
    let first = object(json!({ "metadata": {}, "spec": {} }));
    let first = with_condition(first, told(Acceptance::NoEffect, 100)).unwrap();
    let later = with_condition(first.clone(), told(Acceptance::NotUnderstood, 200)).unwrap();
    assert_eq!(time(&later), time(&first));
    let other = with_condition(later, told(Acceptance::Accepted, 300)).unwrap();
    assert_ne!(time(&other), time(&first));
    let odd = object(json!({ "metadata": {}, "status": { "conditions": "broken" } }));
    assert!(with_condition(odd, told(Acceptance::Accepted, 1)).is_none());
}
