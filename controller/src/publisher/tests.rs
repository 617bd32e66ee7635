//! What is published when.

use ambit_core::status::CaptureState;

use super::*;
use crate::testing::{applied, mesh, name_of, objects, served};
use crate::watch::ObjectKey;

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {nodeName: n1}, status: {podIP: 10.0.0.1}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: bad, namespace: a}, spec: {rulez: []}}
";

struct Bench {
    publisher: Publisher,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    roster: watch::Receiver<Option<Arc<Roster>>>,
    verdicts: watch::Receiver<Arc<Verdicts>>,
}

impl Bench {
    fn new() -> Self {
        let (to_snapshots, snapshots) = watch::channel(None);
        let (to_roster, roster) = watch::channel(None);
        let (to_verdicts, verdicts) = watch::channel(Arc::default());
        let outputs = Outputs {
            snapshots: to_snapshots,
            roster: to_roster,
            verdicts: to_verdicts,
        };
        Self {
            publisher: Publisher::new(
                mesh(),
                CaptureSource::Reports,
                outputs,
                Meters::new("test", 1),
            ),
            snapshots,
            roster,
            verdicts,
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        self.publisher.take(events.into_iter());
    }

    fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone().unwrap()
    }
}

fn world() -> Vec<Event> {
    let objects = objects(WORLD).into_iter();
    objects.map(|(key, object)| applied(key, object)).collect()
}

#[test]
fn nothing_is_published_before_the_sources_have_been_read() {
    let mut bench = Bench::new();
    bench.take(world());
    assert!(bench.snapshots.borrow().is_none() && bench.roster.borrow().is_none());
    bench.take(vec![Event::Synced]);
    let snapshot = bench.snapshots.borrow().clone().unwrap();
    assert_eq!(snapshot.shelf(Kind::Address).len(), 1);
    assert_eq!(bench.roster().pods.len(), 1);
}

#[test]
fn sources_without_anything_are_published_too() {
    let mut bench = Bench::new();
    bench.take(vec![Event::Synced]);
    assert!(
        bench
            .snapshots
            .borrow()
            .clone()
            .unwrap()
            .shelf(Kind::Address)
            .is_empty()
    );
}

#[test]
fn what_changes_nothing_wakes_no_subscriber() {
    let mut bench = Bench::new();
    bench.take(world());
    bench.take(vec![Event::Synced]);
    bench.snapshots.mark_unchanged();
    bench.roster.mark_unchanged();
    bench.take(world());
    assert!(!bench.snapshots.has_changed().unwrap());
    assert!(!bench.roster.has_changed().unwrap());
    bench.take(vec![Event::Served(served("n1", &["a/p"]))]);
    assert!(bench.snapshots.has_changed().unwrap());
    assert_eq!(bench.roster().pods[0].capture, CaptureState::Captured);
}

#[test]
fn problems_name_their_place_and_end_with_their_cause() {
    let mut bench = Bench::new();
    let mut events = world();
    if let Some(Event::Applied(policy)) = events.last_mut() {
        policy.origin = Some("m/a.yaml:7".into());
    }
    events.push(Event::Synced);
    bench.take(events);
    let problems = bench.roster().problems.clone();
    assert_eq!(problems[0].place, "m/a.yaml:7 (AuthorizationPolicy a/bad)");
    assert!(problems[0].what.contains("rulez"), "{problems:?}");
    let of_source = Problem {
        place: "m/b.yaml:1".into(),
        what: "broken".into(),
    };
    bench.take(vec![Event::Problems(vec![of_source.clone()])]);
    assert_eq!(bench.roster().problems.len(), 2);
    let key: ObjectKey = objects(WORLD).pop().unwrap().0;
    bench.take(vec![Event::Deleted(key)]);
    assert_eq!(bench.roster().problems, [of_source]);
}

#[tokio::test]
async fn it_runs_until_nobody_can_send() {
    let bench = Bench::new();
    let (events, queue) = mpsc::channel(4);
    for event in world().into_iter().chain([Event::Synced]) {
        events.send(event).await.unwrap();
    }
    drop(events);
    bench.publisher.run(queue).await;
    assert!(bench.roster.borrow().is_some());
}

#[test]
fn verdicts_follow_their_objects_and_wake_only_when_they_change() {
    let policy = |spec: &str| {
        let yaml = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a}}}}\n---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: a}}, spec: {spec}}}"
        );
        let events = objects(&yaml).into_iter();
        events
            .map(|(key, object)| applied(key, object))
            .collect::<Vec<_>>()
    };
    let mut bench = Bench::new();
    bench.take(policy("{action: CUSTOM}"));
    assert!(
        bench.verdicts.borrow().is_empty(),
        "the sources have not been read"
    );
    bench.take(vec![Event::Synced]);
    let source = Source::AuthorizationPolicy(name_of("a/p"));
    let refused = bench.verdicts.borrow_and_update()[&source].clone();
    assert!(refused.message.contains("CUSTOM"), "{refused:?}");
    bench.take(policy("{action: CUSTOM}"));
    assert!(!bench.verdicts.has_changed().unwrap());
    bench.take(policy("{}"));
    assert_ne!(bench.verdicts.borrow_and_update()[&source], refused);
    let key = objects(POLICY).remove(0).0;
    bench.take(vec![Event::Deleted(key)]);
    assert!(bench.verdicts.borrow().is_empty());
}

const POLICY: &str = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: a}}";
