//! The source against an API server in memory that can refuse, forget and break off.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ambit_core::names::NamespacedName;
use ambit_net::tasks::Tasks;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::crds::Selection;
use crate::watch::ObjectKey;

const DEADLINE: Duration = Duration::from_secs(300);
const PODS: &str = "/api/v1/pods";
const RULES: &str = "/apis/security.istio.io/v1/authorizationpolicies";
const MODES: &str = "/apis/security.istio.io/v1/peerauthentications";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Lists and watches of collections, by path.
#[derive(Clone)]
struct Server {
    state: Arc<Mutex<State>>,
    wake: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By path of the collection and name; with the change that made it.
    objects: BTreeMap<(String, String), Value>,
    /// Changes: path, type, object.
    log: Vec<(String, &'static str, Value)>,
    /// Codes that collections are refused with.
    refusals: BTreeMap<String, u16>,
    /// Versions of the policies' group.
    versions: Vec<&'static str>,
    /// Changes up to here are forgotten.
    forgotten: usize,
    /// Watches begun before this number are broken off.
    generation: u64,
    requests: Vec<String>,
}

impl Server {
    fn new() -> Self {
        let server = Self {
            state: Arc::default(),
            wake: watch::channel(0).0,
        };
        for kind in KINDS {
            if kind.is_policy() {
                server.refuse(&format!("/apis/{}/v1/{}", kind.group(), kind.plural()), 404);
                server.refuse(
                    &format!("/apis/{}/v1beta1/{}", kind.group(), kind.plural()),
                    404,
                );
            }
        }
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(&request)) }
        });
        Client::new(service, "default")
    }

    fn put(&self, path: &str, name: &str, mut object: Value) {
        let mut state = self.state();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!((state.log.len() + 1).to_string());
        let key = (path.to_owned(), name.to_owned());
        let before = state.objects.insert(key, object.clone());
        let kind = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        state.log.push((path.to_owned(), kind, object));
        drop(state);
        self.wake();
    }

    fn delete(&self, path: &str, name: &str) {
        let mut state = self.state();
        let gone = state.objects.remove(&(path.to_owned(), name.to_owned()));
        state.log.push((path.to_owned(), "DELETED", gone.unwrap()));
        drop(state);
        self.wake();
    }

    fn refuse(&self, path: &str, code: u16) {
        self.state().refusals.insert(path.to_owned(), code);
    }

    fn allow(&self, path: &str) {
        self.state().refusals.remove(path);
    }

    /// Ends all watches, as a server does that stops.
    fn break_off(&self) {
        self.state().generation += 1;
        self.wake();
    }

    /// Forgets all changes, as a server does after a while.
    fn forget(&self) {
        let mut state = self.state();
        state.forgotten = state.log.len();
    }

    fn wake(&self) {
        self.wake.send_modify(|count| *count += 1);
    }

    fn answer(&self, request: &Request<Body>) -> Answer {
        let (path, query) = (
            request.uri().path(),
            request.uri().query().unwrap_or_default(),
        );
        self.state().requests.push(request.uri().to_string());
        if path == "/apis" {
            let versions = self.state().versions.clone();
            let versions = versions.iter().map(|version| json!({"version": version, "groupVersion": format!("security.istio.io/{version}")}));
            let group =
                json!({"name": "security.istio.io", "versions": versions.collect::<Vec<_>>()});
            return whole(
                200,
                &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}),
            );
        }
        if let Some(code) = self.state().refusals.get(path) {
            return refusal(*code);
        }
        if query.contains("watch=true") {
            return self.watch(path.to_owned(), number(query, "resourceVersion="));
        }
        self.list(path, query)
    }

    /// Pages of two.
    fn list(&self, path: &str, query: &str) -> Answer {
        let state = self.state();
        let from = number(query, "continue=");
        let of_path = state.objects.iter().filter(|((p, _), _)| p == path);
        let all: Vec<&Value> = of_path.map(|(_, object)| object).collect();
        let items: Vec<_> = all.iter().skip(from).take(2).collect();
        let more = (from + 2 < all.len()).then(|| (from + 2).to_string());
        whole(
            200,
            &json!({
                "kind": "List", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": state.log.len().to_string(), "continue": more},
            }),
        )
    }

    fn watch(&self, path: String, from: usize) -> Answer {
        if from < self.state().forgotten {
            return refusal(410);
        }
        let (server, generation) = (self.clone(), self.state().generation);
        let from = (from, self.wake.subscribe());
        let lines = stream::unfold(from, move |(at, wake)| {
            let (server, path) = (server.clone(), path.clone());
            async move { server.next(&path, at, wake, generation).await }
        });
        let lines = lines.filter(|line| std::future::ready(!line.is_empty()));
        Response::new(streamed(lines))
    }

    /// The line of the change after `at`, once there is one; empty when it is of another collection.
    async fn next(
        &self,
        path: &str,
        at: usize,
        mut wake: watch::Receiver<u64>,
        generation: u64,
    ) -> Option<(String, (usize, watch::Receiver<u64>))> {
        let change = loop {
            if self.state().generation > generation {
                return None;
            }
            let change = self.state().log.get(at).cloned();
            match change {
                Some(change) => break change,
                None => wake.changed().await.unwrap(),
            }
        };
        let (of, kind, object) = change;
        let mut line = String::new();
        if of == path {
            line = format!("{}\n", json!({"type": kind, "object": object}));
        }
        Some((line, (at + 1, wake)))
    }
}

fn number(query: &str, name: &str) -> usize {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn refusal(code: u16) -> Answer {
    whole(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "as told", "code": code}),
    )
}

fn whole(code: u16, value: &Value) -> Answer {
    let text = value.to_string();
    let mut answer = Response::new(streamed(stream::once(async { text })));
    *answer.status_mut() = code.try_into().unwrap();
    answer
}

fn streamed(
    lines: impl Stream<Item = String> + Send + 'static,
) -> UnsyncBoxBody<Bytes, Infallible> {
    StreamBody::new(lines.map(|line| Ok(Frame::data(Bytes::from(line))))).boxed_unsync()
}

/// What the source has said, as an index would have it.
struct Listener {
    events: mpsc::Receiver<Event>,
    there: BTreeSet<(Kind, NamespacedName)>,
    problems: Vec<Problem>,
    synced: bool,
    /// Policies whose spec is not understood.
    unread: BTreeSet<NamespacedName>,
    _source: Tasks,
}

impl Listener {
    fn of(server: &Server) -> Self {
        let (sender, events) = mpsc::channel(4);
        let tasks = Tasks::new("source");
        tasks.spawn(run(server.client(), sender));
        Self {
            events,
            there: BTreeSet::new(),
            problems: Vec::new(),
            synced: false,
            unread: BTreeSet::new(),
            _source: tasks,
        }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let event = timeout(DEADLINE, self.events.recv()).await;
            let said = format!("{what}: {:?} {:?}", self.there, self.problems);
            self.hear(event.expect(&said).expect(&said));
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Applied(applied) => {
                let ObjectKey { kind, name } = applied.key;
                if let Object::AuthorizationPolicy(policy) = &*applied.object {
                    assert_eq!(policy.selection, Selection::All);
                    if policy.spec.is_err() {
                        self.unread.insert(name.clone());
                    }
                }
                self.there.insert((kind, name));
            }
            Event::Deleted(ObjectKey { kind, name }) => {
                self.there.remove(&(kind, name));
            }
            Event::Problems(problems) => self.problems = problems,
            Event::Synced => {
                assert!(!self.synced, "said once");
                self.synced = true;
            }
            Event::Served(_) => panic!("{event:?}"),
        }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        let name = NamespacedName::new("a", name);
        self.there.contains(&(kind, name))
    }

    fn pods(&self) -> usize {
        let pods = self.there.iter().filter(|(kind, _)| *kind == Kind::Pod);
        pods.count()
    }
}

fn in_a() -> Value {
    json!({"metadata": {"namespace": "a"}})
}

fn policy(version: &str) -> Value {
    json!({"apiVersion": format!("security.istio.io/{version}"), "kind": "AuthorizationPolicy", "metadata": {"namespace": "a"}, "spec": {}})
}

#[tokio::test(start_paused = true)]
async fn everything_is_said_in_pages_before_it_is_synced_and_changes_follow() {
    let server = Server::new();
    for name in ["p1", "p2", "p3", "p4", "p5"] {
        server.put(PODS, name, in_a());
    }
    server.put("/api/v1/namespaces", "a", json!({}));
    server.put("/api/v1/nodes", "n1", json!({}));
    server.put("/api/v1/services", "s", in_a());
    server.put("/api/v1/serviceaccounts", "x", in_a());
    server.put(
        "/apis/discovery.k8s.io/v1/endpointslices",
        "s-1",
        json!({"metadata": {"namespace": "a"}, "addressType": "IPv4", "endpoints": []}),
    );
    let mut listener = Listener::of(&server);
    listener.until("synced", |l| l.synced).await;
    assert_eq!(listener.pods(), 5);
    assert_eq!(listener.there.len(), 10, "{:?}", listener.there);
    assert_eq!(listener.problems, []);
    let pages = |server: &Server| {
        let state = server.state();
        let lists = state
            .requests
            .iter()
            .filter(|r| r.starts_with(PODS) && !r.contains("watch"));
        lists.map(|r| r.contains("limit=200")).collect::<Vec<_>>()
    };
    assert_eq!(pages(&server), [true, true, true]);
    server.delete(PODS, "p1");
    server.put(PODS, "p6", in_a());
    listener.until("changes", |l| l.has(Kind::Pod, "p6")).await;
    assert!(!listener.has(Kind::Pod, "p1"));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_may_not_be_read_is_never_taken_for_an_empty_one() {
    for path in [PODS, "/api/v1/namespaces", RULES] {
        let server = Server::new();
        server.refuse(path, 403);
        let mut listener = Listener::of(&server);
        listener
            .until("a problem", |l| !l.problems.is_empty())
            .await;
        let plural = path.rsplit('/').next().unwrap();
        let problem = &listener.problems[0].what;
        for part in [
            plural,
            "may not list",
            "ClusterRole",
            "nothing is served until",
        ] {
            assert!(problem.contains(part), "{part}: {problem}");
        }
        let waits = timeout(DEADLINE / 5, listener.until("never", |l| l.synced)).await;
        assert!(waits.is_err(), "{path}");
        server.allow(path);
        listener.until("synced", |l| l.synced).await;
        assert_eq!(listener.problems, []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_went_while_nobody_watched_is_gone_after_the_next_list() {
    let server = Server::new();
    for name in ["p1", "p2", "p3"] {
        server.put(PODS, name, in_a());
    }
    let mut listener = Listener::of(&server);
    listener.until("synced", |l| l.synced).await;
    server.refuse(PODS, 503);
    server.break_off();
    listener
        .until("a problem", |l| !l.problems.is_empty())
        .await;
    assert!(
        listener.problems[0].what.contains("stays in force"),
        "{:?}",
        listener.problems
    );
    assert_eq!(listener.pods(), 3);
    server.delete(PODS, "p2");
    server.put(PODS, "p4", in_a());
    server.forget();
    server.allow(PODS);
    listener
        .until("well again", |l| {
            l.problems.is_empty() && !l.has(Kind::Pod, "p2")
        })
        .await;
    assert!(listener.has(Kind::Pod, "p4") && listener.pods() == 3);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_goes_on_where_it_was_without_a_new_list() {
    let server = Server::new();
    server.put(PODS, "p1", in_a());
    let mut listener = Listener::of(&server);
    listener.until("synced", |l| l.synced).await;
    let lists = |server: &Server| {
        let state = server.state();
        let lists = state
            .requests
            .iter()
            .filter(|r| r.starts_with(PODS) && !r.contains("watch"));
        lists.count()
    };
    assert_eq!(lists(&server), 1);
    server.break_off();
    server.put(PODS, "p2", in_a());
    listener
        .until("the change", |l| l.has(Kind::Pod, "p2"))
        .await;
    assert_eq!(lists(&server), 1);
    assert_eq!(listener.problems, []);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_one_problem_of_all_kinds_and_takes_nothing_back() {
    let server = Server::new();
    server.put(PODS, "p1", in_a());
    let mut listener = Listener::of(&server);
    listener.until("synced", |l| l.synced).await;
    let paths: Vec<_> = KINDS
        .iter()
        .filter(|kind| !kind.is_policy())
        .map(|kind| match kind.group() {
            "" => format!("/api/v1/{}", kind.plural()),
            group => format!("/apis/{group}/v1/{}", kind.plural()),
        })
        .collect();
    for path in &paths {
        server.refuse(path, 500);
    }
    server.break_off();
    let all = |l: &Listener| match l.problems.as_slice() {
        [one] => one.what.contains("Pod") && one.what.contains("Namespace"),
        _ => false,
    };
    listener.until("one problem", all).await;
    assert!(listener.has(Kind::Pod, "p1"));
    for path in &paths {
        server.allow(path);
    }
    listener
        .until("well again", |l| l.problems.is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_kind_is_empty_while_absent_and_noticed_when_it_appears_and_goes() {
    let server = Server::new();
    let mut listener = Listener::of(&server);
    listener.until("synced", |l| l.synced).await;
    assert_eq!(listener.problems, []);
    server.state().versions = vec!["v1"];
    server.put(RULES, "deny", policy("v1"));
    server.allow(RULES);
    server.allow(MODES);
    listener
        .until("the policy", |l| l.has(Kind::AuthorizationPolicy, "deny"))
        .await;
    assert!(listener.unread.is_empty());
    server.refuse(RULES, 404);
    server.break_off();
    listener
        .until("gone", |l| !l.has(Kind::AuthorizationPolicy, "deny"))
        .await;
    assert_eq!(listener.problems, []);
}

#[tokio::test(start_paused = true)]
async fn policies_of_a_version_that_is_not_understood_refuse_instead_of_being_passed_over() {
    let server = Server::new();
    server.state().versions = vec!["v7"];
    server.put(
        "/apis/security.istio.io/v7/authorizationpolicies",
        "deny",
        policy("v7"),
    );
    let mut listener = Listener::of(&server);
    listener.until("synced", |l| l.synced).await;
    let name = NamespacedName::new("a", "deny");
    assert_eq!(listener.unread, BTreeSet::from([name]));
}
