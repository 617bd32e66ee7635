//! What operators are told, and who may ask.

use std::time::Duration;

use ambit_core::identity::SpiffeId;
use ambit_net::meters::Meters;
use ambit_net::tasks::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;
use crate::testing::{Dir, index, root, served, token, write_token};
use crate::watch::Event;

const NOW: u64 = 1_900_000_000;

fn overview(dir: &Dir, roster: Option<Roster>) -> Overview {
    Overview {
        trust_domain: "cluster.local".into(),
        root: root(UNIX_EPOCH + Duration::from_secs(NOW)),
        roster: watch::channel(roster.map(Arc::new)).1,
        published: watch::channel(None).1,
        authenticator: Authenticator::open(&dir.0, Meters::new("test", 1)).unwrap(),
        issued: Issued::default(),
        proxies: Proxies::default(),
    }
}

fn roster() -> Roster {
    let mut index = index(
        "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {nodeName: by-pod}}",
    );
    index.apply(Event::Served(served("by-report", &["a/x", "a/y"])));
    Roster::of(&index, Vec::new())
}

#[test]
fn nodes_are_known_by_token_pod_report_or_proxy() {
    let dir = Dir::new();
    write_token(&dir.0, "by-token", &token('a'));
    let overview = overview(&dir, Some(roster()));
    let stream = overview.proxies.opened(&"by-proxy".into(), "z");
    let status = overview.status(NOW);
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|n| (&*n.name, n.connected, n.reported_at, n.pods_served))
        .collect();
    let expected = [
        ("by-pod", false, None, 0),
        ("by-proxy", true, None, 0),
        ("by-report", false, Some(7), 2),
        ("by-token", false, None, 0),
    ];
    assert_eq!(nodes, expected);
    assert_eq!(status.problems, []);
    drop(stream);
    assert!(
        overview
            .status(NOW)
            .nodes
            .iter()
            .all(|node| !node.connected)
    );
}

#[test]
fn identities_that_have_ended_are_not_told() {
    let dir = Dir::new();
    let overview = overview(&dir, Some(roster()));
    overview.issued.note(
        SpiffeId::new("cluster.local", "a", "b"),
        &"n1".into(),
        NOW + 1,
    );
    assert_eq!(overview.status(NOW).identities.len(), 1);
    assert_eq!(overview.status(NOW + 1).identities.len(), 0);
}

#[test]
fn what_a_person_has_to_act_on_is_told() {
    let dir = Dir::new();
    write_token(&dir.0, "n1", "no token");
    write_token(
        &dir.0,
        "n2",
        &token('a').replace("1999999999", "1000000000"),
    );
    let overview = overview(&dir, None);
    let last_day = overview.root.borrow().not_after() - 86400;
    let problems = overview.status(last_day).problems;
    let told = |word: &str| problems.iter().any(|problem| problem.what.contains(word));
    for word in [
        "have not been read",
        "one line",
        "has expired",
        "ends in 1 days",
    ] {
        assert!(told(word), "{word}: {problems:?}");
    }
}

#[tokio::test]
async fn the_status_is_answered_on_a_socket_of_ours_alone() {
    let dir = Dir::new();
    let path = dir.path("run/status.sock");
    let socket = StatusSocket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let tasks = Tasks::new("test");
    tasks.spawn(socket.serve(overview(&dir, Some(roster())), tasks.spawner()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let request = b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(Duration::from_secs(10), read)
        .await
        .unwrap()
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let status: MeshStatus = serde_json::from_str(body).unwrap();
    assert_eq!(status.pods[0].name, "p");
    tasks.drain(Duration::from_secs(5)).await;
    assert!(!path.exists(), "it is removed at the end");
}

#[tokio::test]
async fn another_user_gets_no_answer() {
    let dir = Dir::new();
    let path = dir.path("status.sock");
    let mut socket = StatusSocket::bind(&path).unwrap();
    let (mine, _theirs) = UnixStream::pair().unwrap();
    assert!(socket.may_ask(&mine));
    socket.own_user += 1;
    let is_root = mine.peer_cred().unwrap().uid() == 0;
    assert_eq!(
        socket.may_ask(&mine),
        is_root,
        "only root may ask whoever serves"
    );
}

#[tokio::test]
async fn a_socket_that_nobody_serves_is_replaced_and_no_other() {
    let dir = Dir::new();
    let path = dir.path("status.sock");
    let first = StatusSocket::bind(&path).unwrap();
    assert!(matches!(
        StatusSocket::bind(&path),
        Err(OverviewError::InUse(_))
    ));
    // As a crash leaves it: the file stays and nobody listens.
    let left = dir.path("left.sock");
    fs::rename(&path, &left).unwrap();
    drop(first);
    let replaced = StatusSocket::bind(&left).unwrap();
    drop(replaced);
    fs::write(&path, "no socket").unwrap();
    assert!(matches!(
        StatusSocket::bind(&path),
        Err(OverviewError::NoSocket(_))
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "no socket");
}
