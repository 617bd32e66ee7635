//! An API server in memory: objects by path with resource versions, lists, watches, status, and refusals on demand.
//!
//! Enough of the API's behaviour for what this crate does with single objects; one replica more is one client more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The server; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    /// How many changes there have been.
    changes: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Place, Value>,
    log: Vec<(&'static str, Place, Value)>,
    /// Writes that were asked for, as `METHOD path`.
    writes: Vec<String>,
    /// Code of every answer, while set.
    refusal: Option<StatusCode>,
    /// Code of every answer to a write, while set.
    write_refusal: Option<StatusCode>,
}

/// Where an object or a collection is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    group: String,
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
}

impl Api {
    /// An empty server.
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changes: watch::channel(0).0,
        }
    }

    /// A client of its own.
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "ambit-system")
    }

    /// The object at a path, if it is there.
    pub(crate) fn at(&self, path: &str) -> Option<Value> {
        self.state().objects.get(&Place::of(path)).cloned()
    }

    /// Puts an object there, as somebody else does.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.change(Place::of(path), Some(object));
    }

    /// Takes an object away, as somebody else does.
    pub(crate) fn delete(&self, path: &str) {
        self.change(Place::of(path), None);
    }

    /// Answers every call with this code, or well again.
    pub(crate) fn refuse(&self, with: Option<StatusCode>) {
        self.state().refusal = with;
    }

    /// Answers every write with this code, or well again.
    pub(crate) fn refuse_writes(&self, with: Option<StatusCode>) {
        self.state().write_refusal = with;
    }

    /// The writes that were asked for since the last time.
    pub(crate) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().writes)
    }

    /// Waits until something holds, for up to a minute.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changes = self.changes.subscribe();
        let waiting = async {
            while !holds(self) {
                changes.changed().await.unwrap();
            }
        };
        let deadline = std::time::Duration::from_secs(60);
        let waited = tokio::time::timeout(deadline, waiting).await;
        assert!(waited.is_ok(), "{what}: {:#?}", self.state().objects);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, place: Place, object: Option<Value>) -> Value {
        let mut state = self.state();
        let version = (state.log.len() + 1).to_string();
        let known = state.objects.get(&place).cloned();
        let (kind, mut object) = match (object, &known) {
            (Some(object), Some(_)) => ("MODIFIED", object),
            (Some(object), None) => ("ADDED", object),
            (None, Some(known)) => ("DELETED", known.clone()),
            (None, None) => panic!("{place:?} is not there"),
        };
        object["metadata"]["resourceVersion"] = json!(version);
        object["metadata"]["name"] = json!(place.name);
        if place.namespace.is_some() {
            object["metadata"]["namespace"] = json!(place.namespace);
        }
        if kind == "DELETED" {
            state.objects.remove(&place);
        } else {
            state.objects.insert(place.clone(), object.clone());
        }
        state.log.push((kind, place, object.clone()));
        drop(state);
        self.changes.send_modify(|changes| *changes += 1);
        object
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = head.uri.path().to_owned();
        let mut told = self.state().refusal;
        if head.method != Method::GET {
            let mut state = self.state();
            state.writes.push(format!("{} {path}", head.method));
            told = told.or(state.write_refusal);
        }
        if let Some(code) = told {
            return refusal(code, "told to refuse");
        }
        let place = Place::of(&path);
        let query = head.uri.query().unwrap_or_default();
        match head.method {
            Method::GET if place.name.is_some() => match self.at(&path) {
                Some(object) => json_body(&object),
                None => refusal(StatusCode::NOT_FOUND, "not found"),
            },
            Method::GET if query.contains("watch=true") => self.watch(place, query),
            Method::GET => self.list(&place, query),
            Method::POST => self.create(place, serde_json::from_slice(&body).unwrap()),
            Method::PUT => self.replace(place, serde_json::from_slice(&body).unwrap()),
            method => panic!("{method} {path}"),
        }
    }

    fn list(&self, of: &Place, query: &str) -> Answer {
        let state = self.state();
        let items = state.objects.iter();
        let items = items.filter(|(place, _)| of.has(place, &parameter(query, "fieldSelector")));
        let items: Vec<_> = items.map(|(_, object)| object).collect();
        json_body(&json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": state.log.len().to_string() }, "items": items,
        }))
    }

    fn watch(&self, of: Place, query: &str) -> Answer {
        let from: usize = parameter(query, "resourceVersion").parse().unwrap();
        let (fields, server) = (parameter(query, "fieldSelector"), self.clone());
        let from = (from, self.changes.subscribe());
        let events = stream::unfold(from, move |(at, mut changes)| {
            let server = server.clone();
            async move {
                loop {
                    let next = server.state().log.get(at).cloned();
                    match next {
                        Some(entry) => return Some((entry, (at + 1, changes))),
                        None => changes.changed().await.unwrap(),
                    }
                }
            }
        });
        let lines = events.filter_map(move |(kind, place, object)| {
            let line = format!("{}\n", json!({ "type": kind, "object": object }));
            let fits = of.has(&place, &fields);
            async move { fits.then_some(line) }
        });
        Response::new(streamed(lines))
    }

    fn create(&self, mut place: Place, object: Value) -> Answer {
        place.name = Some(object["metadata"]["name"].as_str().unwrap().to_owned());
        if self.state().objects.contains_key(&place) {
            return refusal(StatusCode::CONFLICT, "already exists");
        }
        json_body(&self.change(place, Some(object)))
    }

    fn replace(&self, mut place: Place, mut object: Value) -> Answer {
        let status = std::mem::take(&mut place.status);
        let known = self.state().objects.get(&place).cloned();
        let Some(known) = known else {
            return refusal(StatusCode::NOT_FOUND, "not found");
        };
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        if !version(&object).is_null() && version(&object) != version(&known) {
            return refusal(StatusCode::CONFLICT, "the object has been modified");
        }
        // Each half is written through its own path only.
        let kept = if status {
            std::mem::replace(&mut object["status"], Value::Null)
        } else {
            known["status"].clone()
        };
        let mut object = if status { known } else { object };
        object["status"] = kept;
        json_body(&self.change(place, Some(object)))
    }
}

impl Place {
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let group = if parts[0] == "api" { 2 } else { 3 };
        let (group, rest) = parts.split_at(group);
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        Self {
            group: group.join("/"),
            plural: rest[0].to_owned(),
            namespace: namespace.map(str::to_owned),
            name: rest.get(1).map(|name| (*name).to_owned()),
            status: rest.get(2) == Some(&"status"),
        }
    }

    /// True when a collection, seen through a field selector, holds an object.
    fn has(&self, object: &Self, fields: &str) -> bool {
        let name = fields.strip_prefix("metadata.name=");
        (&self.group, &self.plural) == (&object.group, &object.plural)
            && (self.namespace.is_none() || self.namespace == object.namespace)
            && name.is_none_or(|name| object.name.as_deref() == Some(name))
    }
}

fn parameter(query: &str, name: &str) -> String {
    let values = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = values.filter(|(key, _)| *key == name);
    let value = values.next().map_or("", |(_, value)| value);
    value.replace("%3D", "=")
}

fn refusal(code: StatusCode, message: &str) -> Answer {
    let reason = match (code, message) {
        (StatusCode::CONFLICT, "already exists") => "AlreadyExists".to_owned(),
        _ => code.canonical_reason().unwrap().replace(' ', ""),
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16(),
    });
    let mut response = json_body(&status);
    *response.status_mut() = code;
    response
}

fn json_body(value: &Value) -> Answer {
    let text = value.to_string();
    Response::new(streamed(stream::once(async { text })))
}

fn streamed(
    lines: impl Stream<Item = String> + Send + 'static,
) -> UnsyncBoxBody<Bytes, Infallible> {
    StreamBody::new(lines.map(|line| Ok(Frame::data(Bytes::from(line))))).boxed_unsync()
}
