//! The file source of pods: Namespaces and Pods in a directory of plain Kubernetes YAML.
//!
//! The controller may read the same directory; both refuse the same objects and decide enrollment by the same function.
//! A pod says where its network namespace is by the annotation `ambit.mesh/netns`. What cannot be read or makes no sense
//! is logged once with file and line, and what it said before stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use ambit_core::enrollment::{Metadata, PodFacts, enrollment, pod_uid};
use ambit_core::names::{NamespacedName, Text};
use ambit_net::documents::{Directory, Document, Snapshot};
use ambit_net::wire::handoff::HandoffPod;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::warn;

use super::{NodePods, Options, Spec, Wanted};

/// Annotation of a pod: path of its network namespace.
pub const NETNS: &str = "ambit.mesh/netns";
/// Where an object is when it does not say, and the account of a pod that names none, as with `kubectl`.
const DEFAULT: &str = "default";

/// A watched directory and what it said last.
#[derive(Debug)]
pub struct Files {
    directory: Directory,
    reader: Reader,
}

impl Files {
    /// Reads the pods of `node` from `directory`.
    pub fn new(directory: Directory, node: Text) -> Self {
        Self {
            directory,
            reader: Reader {
                node,
                ..Reader::default()
            },
        }
    }

    /// Waits for the next state of the directory.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> NodePods {
        let snapshot = self.directory.next().await;
        self.reader.read(&snapshot)
    }
}

/// Turns documents into pods; remembers the good ones, so that a bad one does not take them away.
#[derive(Debug, Default)]
struct Reader {
    node: Text,
    namespaces: BTreeMap<Text, Placed<Namespace>>,
    pods: BTreeMap<NamespacedName, Placed<Pod>>,
    faults: BTreeSet<Fault>,
}

/// An object and where it is from.
#[derive(Clone, Debug)]
struct Placed<T> {
    place: String,
    object: Arc<T>,
}

/// What is wrong with an object, said once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    place: String,
    cause: String,
}

impl Reader {
    fn read(&mut self, snapshot: &Snapshot) -> NodePods {
        let mut faults = BTreeSet::new();
        let mut namespaces = BTreeMap::new();
        let mut pods = BTreeMap::new();
        let mut whole = snapshot.complete && snapshot.problems.iter().all(|p| p.previous_in_force);
        for document in snapshot
            .documents
            .iter()
            .flat_map(|document| items(document))
        {
            let placed = match document.kind() {
                Some("Namespace") => {
                    document.read_into(&mut namespaces, &self.namespaces, |name| name.name)
                }
                Some("Pod") => document.read_into(&mut pods, &self.pods, |name| name),
                _ => Ok(()),
            };
            if let Err((fault, hidden)) = placed {
                whole &= !hidden;
                faults.insert(fault);
            }
        }
        self.namespaces = namespaces;
        self.pods = pods;
        let mut found = NodePods {
            heard: snapshot.complete,
            whole,
            ..NodePods::default()
        };
        for (name, pod) in &self.pods {
            if let Err(cause) = self.enroll(name, &pod.object, &mut found) {
                let place = pod.place.clone();
                faults.insert(Fault { place, cause });
            }
        }
        for fault in faults.difference(&self.faults) {
            warn!(
                place = fault.place,
                cause = fault.cause,
                "an object is refused"
            );
        }
        self.faults = faults;
        found
    }

    /// Adds a pod of this node to what was found, if it belongs to the mesh.
    fn enroll(&self, name: &NamespacedName, pod: &Pod, found: &mut NodePods) -> Result<(), String> {
        let spec = pod.spec.as_ref();
        if spec.and_then(|spec| spec.node_name.as_deref()) != Some(&*self.node) {
            return Ok(());
        }
        let Some(namespace) = self.namespaces.get(&name.namespace) else {
            return Err(format!(
                "Pod {name}: there is no Namespace {}",
                name.namespace
            ));
        };
        let facts = PodFacts {
            namespace: &name.namespace,
            metadata: metadata(&pod.metadata),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            phase: pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref()),
        };
        let uid = pod_uid(pod.metadata.uid.as_deref(), &name.namespace, &name.name);
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or(DEFAULT);
        let described = placement(pod).map(|(netns, options)| Spec {
            addresses: Vec::new(),
            pod: HandoffPod {
                uid: uid.clone(),
                name: name.clone(),
                service_account: account.into(),
            },
            netns,
            options,
        });
        if !enrollment(&facts, &metadata(&namespace.object.metadata)).is_enrolled() {
            found.others.insert(uid, described.ok());
            return Ok(());
        }
        match described.and_then(|spec| found.not_taken(spec)) {
            Ok(spec) => {
                found.enrolled.insert(uid, spec.into());
                Ok(())
            }
            Err(cause) => {
                let cause = format!("Pod {name} cannot be captured: {cause}");
                found.unclear.insert(uid, cause.clone());
                Err(cause)
            }
        }
    }
}

impl NodePods {
    /// The pod, unless one that was found before has its uid or its namespace.
    fn not_taken(&self, spec: Spec) -> Result<Spec, String> {
        let mut others = self.enrolled.values();
        let same = |other: &&Wanted| {
            other.place.netns.as_ref() == Some(&spec.netns) || other.pod.uid == spec.pod.uid
        };
        match others.find(same) {
            Some(other) => Err(format!(
                "{} has the same uid or network namespace",
                other.pod.name
            )),
            None => Ok(spec),
        }
    }
}

/// Where the pod's network is and what it asks for.
fn placement(pod: &Pod) -> Result<(PathBuf, Options), String> {
    let annotations = pod.metadata.annotations.as_ref();
    let netns = annotations
        .and_then(|all| all.get(NETNS))
        .ok_or(format!("it has no annotation {NETNS}"))?;
    if !netns.starts_with('/') {
        return Err(format!("{NETNS} is not an absolute path: {netns}"));
    }
    Ok((netns.into(), Options::read(annotations)?))
}

fn metadata(object: &ObjectMeta) -> Metadata<'_> {
    Metadata {
        labels: object.labels.as_ref(),
        annotations: object.annotations.as_ref(),
    }
}

/// One object of a document: the document itself, or an item of a `v1` List.
struct Item<'a> {
    document: &'a Document,
    value: &'a Value,
}

fn items(document: &Document) -> Vec<Item<'_>> {
    let whole = Item {
        document,
        value: &document.value,
    };
    match (whole.kind(), document.value.get("items")) {
        (Some("List"), Some(Value::Array(items))) => {
            items.iter().map(|value| Item { document, value }).collect()
        }
        _ => vec![whole],
    }
}

impl Item<'_> {
    /// The kind, of objects of `v1` only: all that are read here.
    fn kind(&self) -> Option<&str> {
        let text = |field| self.value.get(field).and_then(Value::as_str);
        text("kind").filter(|_| text("apiVersion") == Some("v1"))
    }

    /// Reads the object into `found`, or keeps what it was before. Fails with the fault, and whether a pod may be hidden by it.
    fn read_into<K: Ord, T: DeserializeOwned>(
        &self,
        found: &mut BTreeMap<K, Placed<T>>,
        before: &BTreeMap<K, Placed<T>>,
        key: impl Fn(NamespacedName) -> K,
    ) -> Result<(), (Fault, bool)>
    where
        Placed<T>: Clone,
    {
        let place = format!("{}:{}", self.document.file.display(), self.document.line);
        let text = |pointer| self.value.pointer(pointer).and_then(Value::as_str);
        let name = text("/metadata/name").unwrap_or_default();
        let namespace = text("/metadata/namespace").unwrap_or(DEFAULT);
        let fault = |cause: String| Fault {
            place: place.clone(),
            cause,
        };
        if name.is_empty() {
            return Err((fault("metadata.name is missing".into()), true));
        }
        let name = NamespacedName::new(namespace, name);
        let said = name.to_string();
        let key = key(name);
        if let Some(first) = found.get(&key) {
            return Err((
                fault(format!("{said} is already in {}", first.place)),
                false,
            ));
        }
        match T::deserialize(self.value) {
            Ok(object) => {
                let object = Arc::new(object);
                found.insert(key, Placed { place, object });
                Ok(())
            }
            Err(error) => {
                let previous = before.get(&key).cloned();
                let hidden = previous.is_none();
                found.extend(previous.map(|previous| (key, previous)));
                Err((fault(format!("{said}: {error}")), hidden))
            }
        }
    }
}

#[cfg(test)]
mod tests;
