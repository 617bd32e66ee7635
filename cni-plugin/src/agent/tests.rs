//! What the agent wants of its pods after each word of their source. No task runs here: the wishes are the answer.

use ambit_core::names::NamespacedName;
use ambit_net::wire::handoff::HandoffPod;

use super::*;
use crate::agent::pods::{Options, Spec};
use crate::redirect::ruleset::Probes;

fn spec(name: &str) -> Spec {
    Spec {
        pod: HandoffPod {
            uid: PodUid::new(name),
            name: NamespacedName::new("ns", name),
            service_account: "default".into(),
        },
        netns: format!("/nowhere/{name}").into(),
        addresses: Vec::new(),
        options: Options::default(),
    }
}

/// An agent that remembers these pods, and whether they leave.
fn agent(remembered: &[(&str, bool)]) -> Agent {
    let thread = std::thread::current().id();
    let dir = std::env::temp_dir().join(format!("ambit-agent-{}-{thread:?}", std::process::id()));
    let records = remembered.iter().map(|(name, leaving)| {
        let (spec, leaving) = (spec(name), *leaving);
        (spec.pod.uid.clone(), Record { spec, leaving })
    });
    let settings = Settings {
        probes: Probes::default(),
        leave_timeout: Duration::from_secs(600),
        verify_interval: Duration::from_secs(30),
    };
    let memory = memory::open(&dir).unwrap().memory;
    std::fs::remove_dir_all(&dir).unwrap();
    let means = Means {
        handoff: Handoff::default(),
        memory,
        settings,
        rules_written: Counter::default(),
        readiness: Readiness::new(),
        orders: orders::channel().1,
        kubernetes: None,
    };
    Agent::new(means, records.collect()).unwrap()
}

fn says(agent: &mut Agent, enrolled: &[&str], others: &[&str], whole: bool) {
    let enrolled = enrolled
        .iter()
        .map(|name| (PodUid::new(*name), spec(name).into()));
    agent.said = Some(NodePods {
        enrolled: enrolled.collect(),
        others: others
            .iter()
            .map(|name| (PodUid::new(*name), None))
            .collect(),
        whole,
        ..NodePods::default()
    });
    agent.reconcile();
}

/// Each pod and whether it is wanted.
fn wishes(agent: &Agent) -> Vec<(&str, bool)> {
    let pods = agent.pods.iter();
    pods.map(|(uid, pod)| (uid.as_str(), pod.wish.borrow().is_captured()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn pods_join_and_leave_as_the_source_says() {
    let mut agent = agent(&[]);
    says(&mut agent, &["a", "b"], &[], true);
    assert_eq!(wishes(&agent), [("a", true), ("b", true)]);
    // What was seen once is let go at once, whatever else cannot be read.
    says(&mut agent, &["b"], &[], false);
    assert_eq!(wishes(&agent), [("a", false), ("b", true)]);
    says(&mut agent, &["a", "b"], &[], true);
    assert_eq!(wishes(&agent), [("a", true), ("b", true)]);
}

#[tokio::test(start_paused = true)]
async fn remembered_pods_stay_until_the_source_is_certain() {
    let mut agent = agent(&[("a", false), ("b", false), ("c", true)]);
    assert_eq!(wishes(&agent), [("a", true), ("b", true), ("c", false)]);
    // At the first look a file may be half written.
    says(&mut agent, &[], &["a"], true);
    assert_eq!(wishes(&agent), [("a", true), ("b", true), ("c", false)]);
    tokio::time::sleep(RELEASE_GRACE).await;
    // A file that cannot be read may hold b; a is known to be out.
    says(&mut agent, &[], &["a"], false);
    assert_eq!(wishes(&agent), [("a", false), ("b", true), ("c", false)]);
    says(&mut agent, &[], &["a"], true);
    assert_eq!(wishes(&agent), [("a", false), ("b", false), ("c", false)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_unclear_stays_as_it_is() {
    let mut agent = agent(&[]);
    says(&mut agent, &["a"], &[], true);
    let unclear = BTreeMap::from([(PodUid::new("a"), "why".to_owned())]);
    agent.said = Some(NodePods {
        unclear,
        whole: true,
        ..NodePods::default()
    });
    agent.reconcile();
    assert_eq!(wishes(&agent), [("a", true)]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_left_is_struck_unless_it_is_wanted_again() {
    let mut agent = agent(&[]);
    says(&mut agent, &["a", "b"], &[], true);
    says(&mut agent, &["b"], &[], true);
    agent.strike(&PodUid::new("a"));
    agent.strike(&PodUid::new("b"));
    agent.strike(&PodUid::new("never"));
    assert_eq!(wishes(&agent), [("b", true)]);
}
