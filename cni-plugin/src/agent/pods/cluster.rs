//! What the API server has said of this node's pods and of all namespaces, and what follows for the mesh: without I/O.
//!
//! Fed by the watches (`kubernetes.rs`) and by the fresh reads that CNI requests cause; a newer version of an object beats an
//! older one wherever it comes from. Keeps a few fields of each object, whatever its size.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ambit_core::enrollment::{
    CAPTURED_BY, DATAPLANE_MODE, Enrollment, ISTIO_DATAPLANE_MODE, Metadata, PodFacts, REDIRECTION,
    SIDECAR_STATUS, asks, enrollment, enrollment_beside_another,
};
use ambit_core::names::{NamespacedName, PodUid, Text};
use ambit_net::wire::handoff::HandoffPod;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::shelf::{Said, Shelf, Version};
use super::{NodePods, Options, Place, Wanted, probes};

/// Annotation of a static pod's copy in the API: the uid by which the kubelet knows the pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Account of a pod that names none.
const DEFAULT: &str = "default";
/// Labels and annotations that decide about a pod; all others are forgotten at once.
const KEYS: [&str; 6] = [
    DATAPLANE_MODE,
    ISTIO_DATAPLANE_MODE,
    SIDECAR_STATUS,
    REDIRECTION,
    CAPTURED_BY,
    CONFIG_HASH,
];

type Map = BTreeMap<String, String>;

/// What matters of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Who it is.
    pub pod: HandoffPod,
    /// The node that it runs on.
    pub node: Option<String>,
    /// Its addresses; none before it has a network.
    pub addresses: Vec<IpAddr>,
    /// The uid that the kubelet calls it by, where that is another one.
    pub static_uid: Option<String>,
    /// What it asks for, or what is wrong with that.
    pub options: Result<Options, String>,
    host_network: bool,
    phase: Option<String>,
    settings: Settings,
}

/// The labels and annotations of an object that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    labels: Map,
    annotations: Map,
}

/// What is said to this node, and its namespaces.
#[derive(Debug)]
pub struct Cluster {
    excluded: Arc<BTreeSet<Text>>,
    pods: Shelf<PodUid, KnownPod>,
    namespaces: Shelf<Text, Settings>,
}

impl KnownPod {
    /// Takes from a Pod what matters; nothing if it has no uid or name, as no pod of an API server.
    pub fn of(pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        let no_spec = PodSpec::default();
        let no_status = PodStatus::default();
        let spec = pod.spec.as_ref().unwrap_or(&no_spec);
        let status = pod.status.as_ref().unwrap_or(&no_status);
        let name = NamespacedName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        let account = spec.service_account_name.as_deref();
        let settings = Settings::of(metadata);
        Some(Self {
            pod: HandoffPod {
                uid: PodUid::new(metadata.uid.as_deref()?),
                name,
                service_account: account
                    .filter(|name| !name.is_empty())
                    .unwrap_or(DEFAULT)
                    .into(),
            },
            node: spec.node_name.clone(),
            addresses: addresses(status),
            static_uid: settings.annotations.get(CONFIG_HASH).cloned(),
            options: Options::read(metadata.annotations.as_ref()).map(|options| Options {
                probed: probes::ports(spec),
                ..options
            }),
            host_network: spec.host_network.unwrap_or(false),
            phase: status.phase.clone(),
            settings,
        })
    }

    fn facts(&self) -> PodFacts<'_> {
        PodFacts {
            namespace: &self.pod.name.namespace,
            metadata: self.settings.metadata(),
            host_network: self.host_network,
            phase: self.phase.as_deref(),
        }
    }
}

impl Settings {
    /// Takes from an object's metadata what matters.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            labels: kept(metadata.labels.as_ref()),
            annotations: kept(metadata.annotations.as_ref()),
        }
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata {
            labels: Some(&self.labels),
            annotations: Some(&self.annotations),
        }
    }
}

impl Cluster {
    /// Knows nothing yet. Pods of `excluded` namespaces never join.
    pub fn new(excluded: Arc<BTreeSet<Text>>) -> Self {
        Self {
            excluded,
            pods: Shelf::default(),
            namespaces: Shelf::default(),
        }
    }

    /// Takes what the watch of pods says; true when that is news.
    pub fn hear_of_pods(&mut self, said: Said<PodUid, KnownPod>) -> bool {
        self.pods.hear(said)
    }

    /// Takes what the watch of namespaces says; true when that is news.
    pub fn hear_of_namespaces(&mut self, said: Said<Text, Settings>) -> bool {
        self.namespaces.hear(said)
    }

    /// Takes a pod and its namespace as they were read just now.
    pub fn learn(&mut self, pod: &(Version, KnownPod), namespace: &(Version, Settings)) {
        let (version, known) = pod;
        self.namespaces
            .learn(&known.pod.name.namespace, namespace.0, namespace.1.clone());
        self.pods.learn(&known.pod.uid, *version, known.clone());
    }

    /// True once both watches have said everything once.
    pub fn is_heard(&self) -> bool {
        self.pods.is_complete() && self.namespaces.is_complete()
    }

    /// Whether a pod belongs to the mesh; nothing while its namespace is not known. `beside` is true where the agent of
    /// another ambient mesh is at work.
    pub fn enrollment(&self, pod: &KnownPod, beside: bool) -> Option<Enrollment> {
        let namespace = self.namespaces.find(&pod.pod.name.namespace)?.metadata();
        let facts = pod.facts();
        if self.excluded.contains(&pod.pod.name.namespace) {
            return Some(Enrollment::SystemNamespace);
        }
        Some(match beside {
            true => enrollment_beside_another(&facts, &namespace),
            false => enrollment(&facts, &namespace),
        })
    }

    /// A pod that is known.
    pub fn pod(&self, uid: &PodUid) -> Option<&KnownPod> {
        self.pods.find(uid)
    }

    /// All pods of this node and whether they belong to the mesh.
    pub fn node_pods(&self, beside: bool) -> NodePods {
        let mut found = NodePods {
            heard: true,
            whole: true,
            ..NodePods::default()
        };
        for (uid, pod) in self.pods.iter() {
            match self.enrollment(pod, beside) {
                Some(enrollment) if enrollment.is_enrolled() => match pod.wanted() {
                    Ok(wanted) => {
                        found.enrolled.insert(uid.clone(), wanted);
                    }
                    Err(cause) => {
                        found.unclear.insert(uid.clone(), cause);
                    }
                },
                Some(_out) => {
                    found.others.insert(uid.clone(), None);
                }
                // The two watches are not of the same moment.
                None => {
                    let cause = "its namespace is not known yet".to_owned();
                    found.unclear.insert(uid.clone(), cause);
                }
            }
        }
        found
    }

    /// The pods that ask for the mesh and cannot have it, and why: their owners should know.
    pub fn left_alone(&self, beside: bool) -> BTreeMap<PodUid, (NamespacedName, Enrollment)> {
        let told = |(uid, pod): (&PodUid, &KnownPod)| {
            let why = self.enrollment(pod, beside)?;
            let namespace = self.namespaces.find(&pod.pod.name.namespace)?;
            let asked = asks(&pod.settings.metadata(), &namespace.metadata());
            let told = matches!(
                why,
                Enrollment::HostNetwork | Enrollment::AnotherMesh | Enrollment::Sidecar
            );
            (asked && told).then(|| (uid.clone(), (pod.pod.name.clone(), why)))
        };
        self.pods.iter().filter_map(told).collect()
    }
}

impl KnownPod {
    /// The pod as it is to be captured. One without a network waits for CNI, which will say where it is.
    fn wanted(&self) -> Result<Wanted, String> {
        if self.addresses.is_empty() {
            return Err("it has no address yet".to_owned());
        }
        Ok(Wanted {
            pod: self.pod.clone(),
            options: self.options.clone()?,
            place: Place {
                netns: None,
                addresses: self.addresses.clone(),
                static_uid: self.static_uid.clone(),
            },
        })
    }
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    if all.is_empty() {
        let one = status.pod_ip.as_deref().map(str::parse::<IpAddr>);
        all.extend(one.and_then(Result::ok));
    }
    all
}

fn kept(map: Option<&Map>) -> Map {
    let pairs = map.into_iter().flatten();
    pairs
        .filter(|(key, _)| KEYS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
