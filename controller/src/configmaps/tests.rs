//! Every namespace has the root, and nobody else's ConfigMap is touched.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::testing::api::Api as Server;
use crate::testing::root;

fn namespace_path(name: &str) -> String {
    format!("/api/v1/namespaces/{name}")
}

fn path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/{name}")
}

fn namespace_of(server: &Server, name: &str) {
    server.put(&namespace_path(name), json!({}));
}

fn text(server: &Server, namespace: &str, name: &str) -> Option<String> {
    let map = server.at(&path(namespace, name))?;
    Some(map["data"][KEY].as_str().unwrap_or_default().to_owned())
}

fn has(server: &Server, namespace: &str, wanted: &str) -> bool {
    let same = |name| text(server, namespace, name).as_deref() == Some(wanted);
    NAMES.into_iter().all(same)
}

/// Runs against a server while `check` does.
async fn publishing(
    server: &Server,
    root: watch::Receiver<Arc<Root>>,
    check: impl Future<Output = ()>,
) {
    tokio::select! {
        () = run(server.client(), root) => {}
        () = check => {}
    }
}

#[tokio::test(start_paused = true)]
async fn every_namespace_has_the_root_also_a_later_one_and_a_later_root() {
    let server = Server::new();
    namespace_of(&server, "a");
    let (next, first) = (root(SystemTime::now()), root(SystemTime::now()));
    let first = Arc::clone(&first.borrow());
    let (sender, in_force) = watch::channel(Arc::clone(&first));
    publishing(&server, in_force, async {
        let all = |root: &Root| {
            let wanted = root.trusted().to_owned();
            move |server: &Server| ["a", "b"].iter().all(|ns| has(server, ns, &wanted))
        };
        server
            .until("the first namespace", |s| has(s, "a", first.trusted()))
            .await;
        namespace_of(&server, "b");
        server.until("a later namespace", all(&first)).await;
        let next = Arc::clone(&next.borrow());
        sender.send_replace(Arc::clone(&next));
        server.until("a later root", all(&next)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_another_owner_wrote_is_never_changed() {
    let server = Server::new();
    namespace_of(&server, "a");
    let foreign: Value = json!({ "data": { KEY: "another mesh" } });
    for name in NAMES {
        server.put(&path("a", name), foreign.clone());
    }
    namespace_of(&server, "b");
    let root = root(SystemTime::now());
    let trusted = root.borrow().trusted().to_owned();
    publishing(&server, root, async {
        server
            .until("the free namespace", |s| has(s, "b", &trusted))
            .await;
        // Where the other owner leaves, ours comes.
        server.delete(&path("a", COMPATIBLE));
        let came = |s: &Server| text(s, "a", COMPATIBLE).as_deref() == Some(&trusted);
        server.until("the one that is gone", came).await;
    })
    .await;
    assert_eq!(
        text(&server, "a", ROOT_CONFIG_MAP).as_deref(),
        Some("another mesh")
    );
    let writes = server.writes();
    assert!(
        writes.iter().all(|write| !write.starts_with("PUT")),
        "{writes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn ours_comes_back_when_it_is_changed_or_deleted() {
    let server = Server::new();
    namespace_of(&server, "a");
    let root = root(SystemTime::now());
    let trusted = root.borrow().trusted().to_owned();
    publishing(&server, root, async {
        let whole = |s: &Server| has(s, "a", &trusted);
        server.until("at first", whole).await;
        let mut changed = server.at(&path("a", ROOT_CONFIG_MAP)).unwrap();
        changed["data"][KEY] = json!("broken");
        changed["metadata"]["labels"]["theirs"] = json!("kept");
        server.put(&path("a", ROOT_CONFIG_MAP), changed);
        server.until("after a change", whole).await;
        server.delete(&path("a", COMPATIBLE));
        server.until("after a deletion", whole).await;
    })
    .await;
    let kept = server.at(&path("a", ROOT_CONFIG_MAP)).unwrap();
    assert_eq!(kept["metadata"]["labels"]["theirs"], "kept");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_into_a_namespace_that_is_being_deleted() {
    let server = Server::new();
    let going = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    server.put(&namespace_path("a-going"), going);
    namespace_of(&server, "stays");
    let root = root(SystemTime::now());
    let trusted = root.borrow().trusted().to_owned();
    publishing(&server, root, async {
        server
            .until("the one that stays", |s| has(s, "stays", &trusted))
            .await;
    })
    .await;
    assert_eq!(text(&server, "a-going", ROOT_CONFIG_MAP), None);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_is_asked_again_and_not_without_a_pause() {
    let server = Server::new();
    namespace_of(&server, "a");
    let root = root(SystemTime::now());
    let trusted = root.borrow().trusted().to_owned();
    publishing(&server, root, async {
        server.refuse_writes(Some(StatusCode::FORBIDDEN));
        sleep(Duration::from_secs(60)).await;
        let tried = server.writes().len();
        assert!((2..100).contains(&tried), "{tried} writes in a minute");
        server.refuse_writes(None);
        server
            .until("when it may be written", |s| has(s, "a", &trusted))
            .await;
    })
    .await;
}
