//! The agent's side of the handoff against a ztunnel that the test plays by hand.

use std::path::Path;

use ambit_core::names::NamespacedName;
use ambit_net::handoff::Packet;
use ambit_net::tasks::Tasks;
use ambit_net::wire::handoff::{Request, ack, hello};

use super::*;

/// A ztunnel in the test's hands.
struct Ztunnel(Connection);

impl Ztunnel {
    /// Connects and greets.
    async fn connect(handoff: &Handoff, links: &Tasks) -> Self {
        let ztunnel = Self::connect_silently(handoff, links);
        ztunnel.0.send(&hello(), None).await.unwrap();
        ztunnel
    }

    fn connect_silently(handoff: &Handoff, links: &Tasks) -> Self {
        let (ours, theirs) = Connection::pair().unwrap();
        handoff.welcome(theirs, &links.spawner());
        Self(ours)
    }

    /// The next request, and whether a namespace came with it.
    async fn next(&self) -> (Request, bool) {
        let packet = self.packet().await.expect("a request");
        let (request, netns) = Request::decode(packet).unwrap();
        (request, netns.is_some())
    }

    async fn packet(&self) -> Option<Packet> {
        timeout(2 * WITHDRAW_DEADLINE, self.0.recv())
            .await
            .expect("something")
            .unwrap()
    }

    async fn answer(&self, outcome: Result<(), &str>) {
        self.0.send(&ack(outcome), None).await.unwrap();
    }

    /// Takes a snapshot of pods by their names and acknowledges all of it.
    async fn take_snapshot(&self) -> Vec<String> {
        let mut pods = Vec::new();
        loop {
            let (request, _) = self.next().await;
            self.answer(Ok(())).await;
            match request {
                Request::Add(pod) => pods.push(format!("add {}", pod.name)),
                Request::Keep(uid) => pods.push(format!("keep {uid}")),
                Request::SnapshotSent => return pods,
                Request::Remove(uid) => panic!("{uid} is removed in a snapshot"),
            }
        }
    }

    async fn expect_add(&self, name: &str) {
        let (request, netns) = self.next().await;
        assert!(
            matches!(&request, Request::Add(pod) if &*pod.name.name == name),
            "{request:?}"
        );
        assert!(netns, "the namespace comes with it");
    }

    /// Waits until the agent has closed the connection; fails if it sends something.
    async fn expect_end(&self) {
        assert!(
            self.packet().await.is_none(),
            "the connection is still used"
        );
    }
}

fn pod(name: &str) -> HandoffPod {
    HandoffPod {
        uid: PodUid::new(format!("uid-{name}")),
        name: NamespacedName::new("ns", name),
        service_account: "default".into(),
    }
}

fn announcement(name: &str) -> Announcement {
    Announcement {
        pod: pod(name),
        netns: Some(Netns::current().unwrap()),
    }
}

fn remembered(name: &str) -> Announcement {
    Announcement {
        pod: pod(name),
        netns: None,
    }
}

async fn becomes(serving: &mut watch::Receiver<Serving>, wanted: Serving) {
    let seen = timeout(2 * ANSWER_DEADLINE, serving.wait_for(|now| *now == wanted))
        .await
        .is_ok();
    assert!(seen, "still {:?}", *serving.borrow());
}

#[tokio::test(start_paused = true)]
async fn who_connects_gets_everything_and_then_what_changes() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let mut a = handoff.announce(announcement("a"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    assert_eq!(ztunnel.take_snapshot().await, ["add ns/a"]);
    becomes(&mut a, Serving::Served).await;

    let mut b = handoff.announce(announcement("b"));
    ztunnel.expect_add("b").await;
    assert_eq!(*b.borrow(), Serving::Waiting);
    ztunnel.answer(Ok(())).await;
    becomes(&mut b, Serving::Served).await;

    let uid = pod("a").uid;
    let withdrawn = handoff.withdraw(&uid);
    let seen = async {
        assert_eq!(ztunnel.next().await, (Request::Remove(pod("a").uid), false));
        ztunnel.answer(Ok(())).await;
    };
    tokio::join!(withdrawn, seen);
    let next = Ztunnel::connect(&handoff, &links).await;
    assert_eq!(next.take_snapshot().await, ["add ns/b"]);
}

#[tokio::test(start_paused = true)]
async fn one_order_at_a_time() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    ztunnel.take_snapshot().await;
    handoff.announce(announcement("a"));
    handoff.announce(announcement("b"));
    ztunnel.expect_add("a").await;
    let early = timeout(ANSWER_DEADLINE / 2, ztunnel.0.recv()).await;
    assert!(early.is_err(), "b was sent before a was acknowledged");
    ztunnel.answer(Ok(())).await;
    ztunnel.expect_add("b").await;
}

#[tokio::test(start_paused = true)]
async fn remembered_pods_are_kept_until_their_namespace_is_open() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    handoff.announce(remembered("a"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    assert_eq!(ztunnel.take_snapshot().await, ["keep uid-a"]);
    let mut a = handoff.announce(announcement("a"));
    ztunnel.expect_add("a").await;
    ztunnel.answer(Ok(())).await;
    becomes(&mut a, Serving::Served).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_the_pod_is_sent_again_on_demand() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    ztunnel.take_snapshot().await;
    let mut a = handoff.announce(announcement("a"));
    ztunnel.expect_add("a").await;
    ztunnel.answer(Err("port 15008 is in use")).await;
    becomes(&mut a, Serving::Refused("port 15008 is in use".into())).await;
    handoff.announce(announcement("a"));
    ztunnel.expect_add("a").await;
    ztunnel.answer(Ok(())).await;
    becomes(&mut a, Serving::Served).await;
    handoff.announce(announcement("a"));
    let again = timeout(ANSWER_DEADLINE, ztunnel.0.recv()).await;
    assert!(again.is_err(), "what is served was sent again");
}

#[tokio::test(start_paused = true)]
async fn during_an_upgrade_pods_go_to_the_newest_and_leave_all() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    handoff.announce(announcement("a"));
    let old = Ztunnel::connect(&handoff, &links).await;
    old.take_snapshot().await;
    let new = Ztunnel::connect(&handoff, &links).await;
    new.take_snapshot().await;
    assert_eq!(*handoff.connected().borrow(), 2);

    let mut b = handoff.announce(announcement("b"));
    new.expect_add("b").await;
    new.answer(Ok(())).await;
    becomes(&mut b, Serving::Served).await;
    let uid = pod("a").uid;
    let seen = async {
        for ztunnel in [&old, &new] {
            // The old one's first packet since its snapshot: it was not told of b.
            assert_eq!(ztunnel.next().await, (Request::Remove(pod("a").uid), false));
            ztunnel.answer(Ok(())).await;
        }
    };
    tokio::join!(handoff.withdraw(&uid), seen);

    // The new one fails: the old one is told of what it missed.
    drop(new);
    old.expect_add("b").await;
    assert_eq!(*b.borrow(), Serving::Waiting);
    old.answer(Ok(())).await;
    becomes(&mut b, Serving::Served).await;
    assert_eq!(*handoff.connected().borrow(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_for_what_was_asked() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    ztunnel.take_snapshot().await;
    drop(handoff.announce(announcement("a")));
    ztunnel.expect_add("a").await;
    // While ztunnel thinks about it, the pod is another one.
    let mut successor = announcement("a");
    successor.pod.service_account = "another".into();
    let mut serving = handoff.announce(successor);
    ztunnel.answer(Ok(())).await;
    ztunnel.expect_add("a").await;
    assert_eq!(*serving.borrow(), Serving::Waiting);
    ztunnel.answer(Ok(())).await;
    becomes(&mut serving, Serving::Served).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_protocol_ends_the_connection() {
    let handoff = Handoff::default();
    handoff.announce(announcement("a"));
    let links = Tasks::new("links");

    let garbage = Ztunnel::connect_silently(&handoff, &links);
    garbage.0.send(b"\xffgarbage", None).await.unwrap();
    garbage.expect_end().await;

    let foreign_version = Ztunnel::connect_silently(&handoff, &links);
    foreign_version.0.send(&[0x08, 2], None).await.unwrap();
    foreign_version.expect_end().await;

    let bad_answer = Ztunnel::connect(&handoff, &links).await;
    bad_answer.next().await;
    bad_answer.0.send(b"\xff\xff\xff", None).await.unwrap();
    bad_answer.expect_end().await;

    let unasked = Ztunnel::connect(&handoff, &links).await;
    unasked.take_snapshot().await;
    unasked.answer(Ok(())).await;
    unasked.expect_end().await;
    links.drain(ANSWER_DEADLINE).await;
    assert_eq!(*handoff.connected().borrow(), 0);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_connection_after_the_deadline() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    handoff.announce(announcement("a"));
    let mute = Ztunnel::connect_silently(&handoff, &links);
    let started = tokio::time::Instant::now();
    mute.expect_end().await;
    let no_answer = Ztunnel::connect(&handoff, &links).await;
    no_answer.next().await;
    no_answer.expect_end().await;
    let waited = started.elapsed();
    assert!(
        waited >= 2 * ANSWER_DEADLINE && waited < 3 * ANSWER_DEADLINE,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn withdrawing_does_not_wait_for_the_dead() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    handoff.announce(announcement("a"));
    handoff.withdraw(&pod("a").uid).await;
    handoff.announce(announcement("a"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    ztunnel.take_snapshot().await;
    let uid = pod("a").uid;
    let dies = async {
        ztunnel.next().await;
        drop(ztunnel);
    };
    let started = tokio::time::Instant::now();
    tokio::join!(handoff.withdraw(&uid), dies);
    assert!(
        started.elapsed() < ANSWER_DEADLINE,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn names_that_do_not_fit_a_packet_harm_only_their_pod() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let mut long = handoff.announce(announcement(&"x".repeat(2000)));
    let mut short = handoff.announce(announcement("z"));
    let ztunnel = Ztunnel::connect(&handoff, &links).await;
    assert_eq!(ztunnel.take_snapshot().await, ["add ns/z"]);
    becomes(&mut short, Serving::Served).await;
    assert!(matches!(*long.borrow_and_update(), Serving::Refused(_)));
}

#[tokio::test(start_paused = true)]
async fn connections_are_bounded() {
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let mut open = Vec::new();
    for _ in 0..MOST_LINKS {
        open.push(Ztunnel::connect_silently(&handoff, &links));
    }
    Ztunnel::connect_silently(&handoff, &links)
        .expect_end()
        .await;
    assert_eq!(*handoff.connected().borrow(), MOST_LINKS);
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = std::env::temp_dir().join(format!("ambit-handoff-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("ztunnel.sock");
    let (handoff, links) = (Handoff::default(), Tasks::new("links"));
    let listener = Listener::bind(&path).unwrap();
    links.spawn(handoff.clone().run(listener, links.spawner()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ztunnel = Ztunnel(Connection::connect(&path).unwrap());
    ztunnel.0.send(&hello(), None).await.unwrap();
    assert!(ztunnel.take_snapshot().await.is_empty());
    links.drain(ANSWER_DEADLINE).await;
    assert!(!Path::new(&path).exists());
    std::fs::remove_dir_all(&dir).unwrap();
}
