//! Pods and the service accounts that they run as.

use std::net::IpAddr;

use ambit_core::enrollment::{Enrollment, Metadata, PodFacts, enrollment, pod_uid};
use ambit_core::identity::SpiffeId;
use ambit_core::names::{NamespacedName, PodUid, Text};
use k8s_openapi::api::core::v1::{Container, Pod as KubePod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Dirty, Index, Source, replace};
use crate::crds::Labels;

/// The service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// A port that a container declares with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: Text,
    /// Its number.
    pub port: u16,
}

/// The controller that owns a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Kind, such as `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// What the mesh needs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its key.
    pub name: NamespacedName,
    /// Its uid, or what stands for it.
    pub uid: PodUid,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// Its node; empty while it has none.
    pub node: Text,
    /// Its service account.
    pub service_account: Text,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// True when it may receive connections.
    pub ready: bool,
    /// `status.phase`.
    pub phase: Option<String>,
    /// True when it shares its node's network.
    pub host_network: bool,
    /// The controller that owns it.
    pub owner: Option<Owner>,
    /// TCP ports of its containers that have a name.
    pub ports: Vec<NamedPort>,
    /// Addresses that are none, as they stand in the object.
    pub bad_addresses: Vec<String>,
}

impl Pod {
    /// Reduces the object.
    pub fn of(name: &NamespacedName, object: KubePod) -> Self {
        let spec = object.spec.unwrap_or_default();
        let status = object.status.unwrap_or_default();
        let (addresses, bad_addresses) = addresses(&status);
        let account = spec
            .service_account_name
            .as_deref()
            .filter(|name| !name.is_empty());
        let uid = pod_uid(object.metadata.uid.as_deref(), &name.namespace, &name.name);
        Self {
            uid,
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            service_account: account.unwrap_or(DEFAULT_ACCOUNT).into(),
            addresses,
            ready: object.metadata.deletion_timestamp.is_none() && is_ready(&status),
            host_network: spec.host_network.unwrap_or(false),
            owner: owner(&object.metadata),
            ports: named_ports(&spec),
            labels: object.metadata.labels.unwrap_or_default(),
            annotations: object.metadata.annotations.unwrap_or_default(),
            phase: status.phase,
            bad_addresses,
            name: name.clone(),
        }
    }

    /// True once it has ended for good.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// The number behind the name of a port.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        let named = self.ports.iter().find(|port| *port.name == *name);
        named.map(|port| port.port)
    }

    fn facts(&self) -> PodFacts<'_> {
        PodFacts {
            namespace: &self.name.namespace,
            metadata: Metadata {
                labels: Some(&self.labels),
                annotations: Some(&self.annotations),
            },
            host_network: self.host_network,
            phase: self.phase.as_deref(),
        }
    }
}

impl Index {
    /// The pod, if it is there.
    pub fn pod(&self, name: &NamespacedName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Whether a pod belongs to the mesh; none when its namespace does not exist.
    pub fn enrollment(&self, pod: &Pod) -> Option<Enrollment> {
        let namespace = self.namespace(&pod.name.namespace)?;
        if self.mesh.excluded.contains(&pod.name.namespace) {
            return Some(Enrollment::SystemNamespace);
        }
        Some(enrollment(&pod.facts(), &namespace.metadata()))
    }

    /// The identity that a pod's certificate proves.
    pub fn identity(&self, pod: &Pod) -> SpiffeId {
        SpiffeId::new(
            Text::clone(&self.mesh.trust_domain),
            Text::clone(&pod.name.namespace),
            Text::clone(&pod.service_account),
        )
    }

    /// True when there is such a ServiceAccount; `default` exists in every namespace.
    pub fn has_service_account(&self, pod: &Pod) -> bool {
        let account = &pod.service_account;
        let name = NamespacedName::new(Text::clone(&pod.name.namespace), Text::clone(account));
        **account == *DEFAULT_ACCOUNT || self.service_accounts.contains(&name)
    }

    pub(super) fn set_pod(&mut self, name: &NamespacedName, value: Option<Pod>) -> Dirty {
        let changed = replace(&mut self.pods, name, value).is_some();
        changed
            .then(|| Source::Pod(name.clone()))
            .into_iter()
            .collect()
    }

    pub(super) fn set_service_account(&mut self, name: &NamespacedName, there: bool) -> Dirty {
        let changed = if there {
            self.service_accounts.insert(name.clone())
        } else {
            self.service_accounts.remove(name)
        };
        let of_account = |pod: &&Pod| pod.service_account == name.name;
        let pods = super::within(&self.pods, &name.namespace).map(|(_, pod)| pod);
        let pods = pods.filter(of_account).filter(|_| changed);
        pods.map(|pod| Source::Pod(pod.name.clone())).collect()
    }
}

fn addresses(status: &PodStatus) -> (Vec<IpAddr>, Vec<String>) {
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut texts: Vec<&String> = all.filter(|ip| !ip.is_empty()).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_ref().filter(|ip| !ip.is_empty()));
    }
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for text in texts {
        match text.parse::<IpAddr>() {
            Ok(ip) if is_unicast(ip) => good.push(ip.to_canonical()),
            _ => bad.push(text.clone()),
        }
    }
    (good, bad)
}

fn is_unicast(ip: IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// A pod is ready when it says so; where nobody reports conditions, it is taken to be.
fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    ready.is_none_or(|condition| condition.status == "True")
}

fn owner(metadata: &ObjectMeta) -> Option<Owner> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some(Owner {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
    })
}

fn named_ports(spec: &PodSpec) -> Vec<NamedPort> {
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| is_sidecar(c));
    let containers = spec.containers.iter().chain(init);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|port| {
            Some(NamedPort {
                name: port.name.as_deref()?.into(),
                port: u16::try_from(port.container_port)
                    .ok()
                    .filter(|p| *p != 0)?,
            })
        })
        .collect()
}

/// An init container that runs on beside the others (Kubernetes sidecar containers).
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}
