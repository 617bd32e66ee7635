//! The file source: a directory of plain Kubernetes YAML becomes the events that Kubernetes would send.
//!
//! Run as one task by the app. What the API server would refuse is refused here: an object in a namespace that does not
//! exist, a second object of one name, a field of the wrong type. A refusal names file and line and touches nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ambit_core::names::Text;
use ambit_core::status::Problem;
use ambit_net::documents::{self, Directory, Document, Snapshot};
use serde_json::Value;
use tokio::sync::mpsc;

use super::object::identify;
use super::{Applied, Event, Kind, Object, ObjectKey};

/// Sends what is in the directory, then what changes in it, until the publisher is gone.
///
/// # Cancel safety
/// Not resumable: a change may have been sent in part. Dropped only when the controller stops.
pub async fn run(mut directory: Directory, root_namespace: Text, events: mpsc::Sender<Event>) {
    let mut source = Source::new(root_namespace);
    let mut synced = false;
    loop {
        let snapshot = directory.next().await;
        let mut changes = source.take(&snapshot);
        // A directory that was never readable says nothing about what is not in it.
        if snapshot.complete && !synced {
            changes.push(Event::Synced);
            synced = true;
        }
        for event in changes {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// One object in force.
#[derive(Debug)]
struct Placed {
    document: Arc<Document>,
    fault: Option<String>,
}

/// What the directory said last.
#[derive(Debug)]
struct Source {
    root_namespace: Text,
    objects: BTreeMap<ObjectKey, Placed>,
    problems: Vec<Problem>,
}

/// A document with a name: what one directory says about one object.
#[derive(Debug)]
struct Claim {
    key: ObjectKey,
    placed: Placed,
}

impl Source {
    fn new(root_namespace: Text) -> Self {
        Self {
            root_namespace,
            objects: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Compares with what was said before.
    fn take(&mut self, snapshot: &Snapshot) -> Vec<Event> {
        let mut problems: Vec<_> = snapshot.problems.iter().map(read_problem).collect();
        let read_faults = problems.len();
        let claims = claims(snapshot, &mut problems);
        let claims = self.admit(claims, &mut problems);
        let mut events = Vec::new();
        let gone: Vec<_> = self
            .objects
            .keys()
            .filter(|k| !claims.contains_key(k))
            .cloned()
            .collect();
        for key in gone {
            self.objects.remove(&key);
            events.push(Event::Deleted(key));
        }
        for (key, placed) in claims {
            let known = self.objects.get(&key);
            if known.is_some_and(|known| known.says_the_same(&placed)) {
                self.objects.insert(key, placed);
                continue;
            }
            match Object::read(&key, &placed.document.value, placed.fault.as_deref()) {
                Ok(object) => {
                    events.push(Event::Applied(Applied {
                        key: key.clone(),
                        origin: Some(place(&placed.document).into()),
                        object: Box::new(object),
                    }));
                    self.objects.insert(key, placed);
                }
                Err(error) => problems.push(refused(&placed.document, &key, &error.to_string())),
            }
        }
        self.report(problems, read_faults, &mut events);
        events
    }

    /// Leaves out what the API server would refuse.
    fn admit(
        &self,
        claims: Vec<Claim>,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<ObjectKey, Placed> {
        let namespaces: BTreeSet<Text> = claims
            .iter()
            .filter(|claim| claim.key.kind == Kind::Namespace)
            .map(|claim| Text::clone(&claim.key.name.name))
            // Mesh-wide policies live there; they must not depend on a document that says so.
            .chain([Text::clone(&self.root_namespace)])
            .collect();
        let mut admitted: BTreeMap<ObjectKey, Placed> = BTreeMap::new();
        for Claim { key, placed } in claims {
            let namespace = &key.name.namespace;
            if !key.kind.is_cluster_wide() && !namespaces.contains(namespace) {
                let cause = format!("there is no Namespace {namespace}");
                problems.push(refused(&placed.document, &key, &cause));
            } else if let Some(first) = admitted.get(&key) {
                let cause = format!("it is already in {}", place(&first.document));
                problems.push(refused(&placed.document, &key, &cause));
            } else {
                admitted.insert(key, placed);
            }
        }
        admitted
    }

    /// Logs what is newly wrong, except what reading the files already logged.
    fn report(&mut self, problems: Vec<Problem>, read_faults: usize, events: &mut Vec<Event>) {
        if problems == self.problems {
            return;
        }
        for problem in problems.iter().skip(read_faults) {
            if !self.problems.contains(problem) {
                tracing::warn!(
                    place = problem.place,
                    cause = problem.what,
                    "an object is refused"
                );
            }
        }
        self.problems.clone_from(&problems);
        events.push(Event::Problems(problems));
    }
}

impl Placed {
    /// An object that only moved within its file is said again, so that problems name the right line.
    fn says_the_same(&self, other: &Self) -> bool {
        self.fault == other.fault && self.document == other.document
    }
}

/// Every document with a name, in the order of the files; of broken ones only policies, which then refuse.
fn claims(snapshot: &Snapshot, problems: &mut Vec<Problem>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for document in snapshot.documents.iter().flat_map(items) {
        match identify(&document.value) {
            Ok(key) => claims.push(Claim {
                key,
                placed: Placed {
                    document,
                    fault: None,
                },
            }),
            Err(error) => problems.push(Problem {
                place: place(&document),
                what: error.to_string(),
            }),
        }
    }
    let broken = snapshot.problems.iter().filter(|p| !p.previous_in_force);
    for (head, problem) in broken.filter_map(|p| Some((p.head.as_ref()?, p))) {
        let Some(key) = identify(&head.value)
            .ok()
            .filter(|key| key.kind.is_policy())
        else {
            continue;
        };
        claims.push(Claim {
            key,
            placed: Placed {
                document: Arc::new(head.clone()),
                fault: Some(problem.cause.clone()),
            },
        });
    }
    claims
}

/// The document itself, or what is in it when it is a `v1` List.
fn items(document: &Arc<Document>) -> Vec<Arc<Document>> {
    let text = |field| document.value.get(field).and_then(Value::as_str);
    let list = match (text("apiVersion"), text("kind")) {
        (Some("v1"), Some("List")) => document.value.get("items").and_then(Value::as_array),
        _ => None,
    };
    let Some(list) = list else {
        return vec![Arc::clone(document)];
    };
    list.iter()
        .map(|value| {
            Arc::new(Document {
                value: value.clone(),
                ..Document::clone(document)
            })
        })
        .collect()
}

fn read_problem(problem: &documents::Problem) -> Problem {
    let file = problem.file.display();
    let place = match problem.line {
        Some(line) => format!("{file}:{line}"),
        None => file.to_string(),
    };
    let then = if problem.previous_in_force {
        "; what it said before stays in force"
    } else {
        ""
    };
    Problem {
        place,
        what: format!("{}{then}", problem.cause),
    }
}

fn refused(document: &Document, key: &ObjectKey, cause: &str) -> Problem {
    let name = match key.kind.is_cluster_wide() {
        true => key.name.name.to_string(),
        false => key.name.to_string(),
    };
    Problem {
        place: place(document),
        what: format!("{} {name} is refused: {cause}", key.kind.as_str()),
    }
}

fn place(document: &Document) -> String {
    format!("{}:{}", document.file.display(), document.line)
}

#[cfg(test)]
mod tests;
