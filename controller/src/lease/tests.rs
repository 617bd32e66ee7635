//! Never two holders, and soon another one when the first is gone.

use ambit_net::tasks::Tasks;
use http::StatusCode;
use serde_json::json;

use super::*;
use crate::testing::api::Api as Server;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ambit-system/leases/ambit-controller";

/// A replica that runs against a server.
struct Replica {
    leads: watch::Receiver<bool>,
    tasks: Tasks,
}

fn replica(server: &Server, name: &str) -> Replica {
    let (sender, leads) = watch::channel(false);
    let tasks = Tasks::new("test");
    let names = ("ambit-system".into(), name.into());
    tasks.spawn(run(server.client(), names, sender, tasks.stop_signal()));
    Replica { leads, tasks }
}

fn lease(holder: &str) -> Lease {
    serde_json::from_value(json!({
        "metadata": { "resourceVersion": "7" },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3 },
    }))
    .unwrap()
}

#[test]
fn only_a_free_or_silent_lease_is_taken() {
    let seconds = Duration::from_secs;
    let cases = [
        (None, 0, Step::Create),
        (Some(""), 0, Step::Take),
        (Some("me"), 0, Step::Renew),
        (Some("me"), 99, Step::Renew),
        (Some("other"), 14, Step::Wait),
        (Some("other"), 15, Step::Take),
    ];
    for (holder, unchanged, expected) in cases {
        let lease = holder.map(lease);
        assert_eq!(
            step(lease.as_ref(), "me", seconds(unchanged)),
            expected,
            "{holder:?} {unchanged}"
        );
    }
    let mut long = lease("other");
    long.spec.as_mut().unwrap().lease_duration_seconds = Some(60);
    assert_eq!(step(Some(&long), "me", seconds(59)), Step::Wait);
}

#[test]
fn who_takes_a_lease_counts_a_transition_and_keeps_the_version() {
    let now = SystemTime::now();
    let taken = held(Some(&lease("other")), "me", now);
    assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
    let spec = taken.spec.clone().unwrap();
    assert_eq!(spec.lease_transitions, Some(4));
    assert_eq!(spec.acquire_time, spec.renew_time);
    let later = held(Some(&taken), "me", now + DURATION).spec.unwrap();
    assert_eq!(later.lease_transitions, Some(4));
    assert_eq!(later.acquire_time, spec.acquire_time);
    assert_ne!(later.renew_time, spec.renew_time);
}

#[tokio::test(start_paused = true)]
async fn one_of_two_replicas_leads_and_hands_over_at_once_when_it_stops() {
    let server = Server::new();
    let mut one = replica(&server, "one");
    one.leads.wait_for(|leads| *leads).await.unwrap();
    let mut two = replica(&server, "two");
    sleep(Duration::from_secs(120)).await;
    assert!(*one.leads.borrow() && !*two.leads.borrow());
    let stopping = Instant::now();
    one.tasks.drain(Duration::from_secs(1)).await;
    two.leads.wait_for(|leads| *leads).await.unwrap();
    assert!(stopping.elapsed() <= TURN, "{:?}", stopping.elapsed());
    assert_eq!(server.at(PATH).unwrap()["spec"]["holderIdentity"], "two");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_before_another_one_takes_over() {
    let server = Server::new();
    let mut one = replica(&server, "one");
    one.leads.wait_for(|leads| *leads).await.unwrap();
    // Its holder is cut off from the server; the other one is not.
    let broken = Instant::now();
    server.refuse(Some(StatusCode::INTERNAL_SERVER_ERROR));
    one.leads.wait_for(|leads| !*leads).await.unwrap();
    let gave_up = broken.elapsed();
    assert!(gave_up <= GIVE_UP + TURN, "{gave_up:?}");
    drop(one);
    server.refuse(None);
    let mut two = replica(&server, "two");
    let began = Instant::now();
    two.leads.wait_for(|leads| *leads).await.unwrap();
    assert!(began.elapsed() >= DURATION, "{:?}", began.elapsed());
    assert!(
        began.elapsed() <= DURATION + 2 * TURN,
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_one_took_is_noticed() {
    let server = Server::new();
    let mut one = replica(&server, "one");
    one.leads.wait_for(|leads| *leads).await.unwrap();
    server.put(PATH, serde_json::to_value(lease("other")).unwrap());
    one.leads.wait_for(|leads| !*leads).await.unwrap();
    assert_eq!(server.at(PATH).unwrap()["spec"]["holderIdentity"], "other");
}
