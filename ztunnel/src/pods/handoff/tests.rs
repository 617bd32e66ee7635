//! Claims about the conversation with the node agent, over real packets and descriptors.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::names::NamespacedName;
use ambit_net::handoff::Listener;
use ambit_net::wire::handoff::{HandoffPod, check_hello, decode_ack};
use tokio::sync::watch;

use super::super::Roster;
use super::*;
use crate::proxy::testing::mesh;

const SOON: Duration = Duration::from_secs(10);

/// A node agent, and a ztunnel without workers that follows it.
struct Stage {
    listener: Listener,
    roster: watch::Receiver<Roster>,
    served: watch::Receiver<ambit_net::node_report::ServedPods>,
    follower: ambit_net::tasks::Tasks,
}

impl Stage {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ambit-handoff-{}-{number}.sock", std::process::id());
        let path: PathBuf = std::env::temp_dir().join(name);
        let listener = Listener::bind(&path).unwrap();
        let own = Netns::current().unwrap().id();
        let mut pods = PodSet::new(mesh(), Vec::new(), own);
        let (roster, served) = (pods.roster(), pods.served());
        let follower = ambit_net::tasks::Tasks::new("test");
        follower.spawn(async move { run(&mut pods, &path).await });
        Self {
            listener,
            roster,
            served,
            follower,
        }
    }

    /// The next connection, after its greeting.
    async fn greeted(&self) -> Agent {
        let agent = timeout(SOON, self.listener.accept())
            .await
            .unwrap()
            .unwrap();
        let hello = timeout(SOON, agent.recv()).await.unwrap().unwrap().unwrap();
        check_hello(&hello).unwrap();
        Agent(agent)
    }
}

struct Agent(Connection);

impl Agent {
    /// Sends a request and returns the answer; none when ztunnel hung up instead.
    async fn ask(&self, request: &Request, descriptor: Option<OwnedFd>) -> Result<(), String> {
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        self.0.send(&request.encode(), descriptor).await.unwrap();
        let packet = timeout(SOON, self.0.recv()).await.unwrap().unwrap();
        decode_ack(&packet.expect("an answer")).unwrap()
    }

    /// True when ztunnel closes the connection without another word.
    async fn is_hung_up(&self) -> bool {
        matches!(
            timeout(SOON, self.0.recv()).await.unwrap(),
            Ok(None) | Err(_)
        )
    }
}

fn add(name: &str) -> Request {
    Request::Add(HandoffPod {
        uid: uid(name),
        name: NamespacedName::new("shop", name),
        service_account: name.into(),
    })
}

fn uid(name: &str) -> PodUid {
    PodUid::new(format!("uid-{name}"))
}

fn own_netns() -> OwnedFd {
    File::open("/proc/self/ns/net").unwrap().into()
}

fn no_netns() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

#[tokio::test]
async fn is_in_step_after_the_snapshot_and_not_before() {
    let mut stage = Stage::new();
    let agent = stage.greeted().await;
    assert!(!stage.roster.borrow().complete);
    assert_eq!(*stage.served.borrow(), None);
    agent.ask(&Request::SnapshotSent, None).await.unwrap();
    stage
        .roster
        .wait_for(|roster| roster.in_step && roster.complete)
        .await
        .unwrap();
    assert_eq!(*stage.served.borrow(), Some(Vec::new()));
}

#[tokio::test]
async fn own_namespace_is_refused_and_kept_pending() {
    let stage = Stage::new();
    let agent = stage.greeted().await;
    let error = agent.ask(&add("web"), Some(own_netns())).await.unwrap_err();
    assert!(error.contains("own network namespace"), "{error}");
    let roster = stage.roster.borrow().clone();
    let [pending] = roster.pods.as_slice() else {
        panic!("{roster:?}");
    };
    assert_eq!(pending.pending.as_deref(), Some(&*error));
    // The conversation goes on, and what is not served is not reported.
    agent.ask(&Request::SnapshotSent, None).await.unwrap();
    assert_eq!(*stage.served.borrow(), Some(Vec::new()));
}

#[tokio::test]
async fn removed_pods_and_those_missing_from_a_snapshot_are_gone() {
    let stage = Stage::new();
    let agent = stage.greeted().await;
    for name in ["kept", "removed", "forgotten"] {
        agent.ask(&add(name), Some(own_netns())).await.unwrap_err();
    }
    agent
        .ask(&Request::Remove(uid("removed")), None)
        .await
        .unwrap();
    agent
        .ask(&Request::Remove(uid("never-seen")), None)
        .await
        .unwrap();
    agent.ask(&Request::SnapshotSent, None).await.unwrap();
    let names = |stage: &Stage| -> Vec<String> {
        let roster = stage.roster.borrow();
        roster
            .pods
            .iter()
            .map(|pod| pod.pod.uid.to_string())
            .collect()
    };
    assert_eq!(names(&stage), ["uid-forgotten", "uid-kept"]);
    drop(agent);

    let agent = stage.greeted().await;
    assert!(!stage.roster.borrow().in_step, "the agent was gone");
    agent.ask(&Request::Keep(uid("kept")), None).await.unwrap();
    let error = agent
        .ask(&Request::Keep(uid("stranger")), None)
        .await
        .unwrap_err();
    assert!(error.contains("send it again"), "{error}");
    agent.ask(&Request::SnapshotSent, None).await.unwrap();
    assert_eq!(names(&stage), ["uid-kept"]);
}

#[tokio::test]
async fn breaches_are_answered_and_hung_up_and_serve_nothing() {
    let stage = Stage::new();
    let two_more: Vec<(Request, Option<OwnedFd>, &str)> = vec![
        (add("web"), None, "0 descriptors"),
        (add("web"), Some(no_netns()), "not a network namespace"),
        (Request::SnapshotSent, Some(own_netns()), "1 descriptors"),
    ];
    for (request, descriptor, why) in two_more {
        let agent = stage.greeted().await;
        let error = agent.ask(&request, descriptor).await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(agent.is_hung_up().await, "{why}");
        assert!(stage.roster.borrow().pods.is_empty());
    }
}

#[tokio::test]
async fn requests_of_the_snapshot_are_a_breach_after_it() {
    let stage = Stage::new();
    for late in [Request::SnapshotSent, Request::Keep(uid("web"))] {
        let agent = stage.greeted().await;
        agent.ask(&Request::SnapshotSent, None).await.unwrap();
        let error = agent.ask(&late, None).await.unwrap_err();
        assert!(error.contains("after the snapshot"), "{error}");
        assert!(agent.is_hung_up().await);
    }
    assert!(stage.follower.live() == 1, "it goes on following");
}
