//! Pod → Workload: addresses, identity, how it is reached, its services, its policies.
//!
//! It is reached by HBONE only where its node's proxy says that it serves it; until then it is announced as plain TCP.

use std::collections::BTreeMap;

use ambit_core::names::{NamespacedName, ServiceKey, Text, WorkloadUid};
use ambit_core::workload::{
    Health, NetworkMode, PortMapping, TunnelProtocol, Workload, WorkloadType,
};

use super::Translated;
use super::authentication::{self, STRICT_POLICY};
use crate::crds::Labels;
use crate::index::Index;
use crate::index::pods::{Owner, Pod};
use crate::index::services::{Port, TargetPort};

/// The workload of a pod; none without an address or after its end.
pub(super) fn pod(index: &Index, name: &NamespacedName) -> Translated {
    let Some(pod) = index.pod(name) else {
        return Translated::default();
    };
    let Some(enrollment) = index.enrollment(pod) else {
        let namespace = &name.namespace;
        return Translated::problem(format!("it is left out: there is no Namespace {namespace}"));
    };
    if pod.has_ended() {
        return Translated::default();
    }
    let problems = problems(index, pod);
    if pod.addresses.is_empty() {
        return Translated {
            problems,
            ..Translated::default()
        };
    }
    let captured = enrollment.is_enrolled() && index.is_captured(pod);
    let mut translated = Translated::workload(workload(index, pod, captured));
    translated.problems = problems;
    translated
}

fn workload(index: &Index, pod: &Pod, captured: bool) -> Workload {
    let mesh = &index.mesh;
    let NamespacedName { namespace, name } = &pod.name;
    let owner = owner(pod);
    let policies = policies(index, pod);
    let mut workload = Workload {
        trust_domain: Text::clone(&mesh.trust_domain),
        service_account: Text::clone(&pod.service_account),
        addresses: pod.addresses.clone(),
        network: mesh.network.clone(),
        node: Text::clone(&pod.node),
        cluster: mesh.cluster.clone(),
        locality: index.locality(&pod.node),
        canonical_name: canonical_name(&pod.labels, &owner),
        canonical_revision: canonical_revision(&pod.labels),
        workload_type: WorkloadType::Pod,
        workload_name: owner.as_str().into(),
        authorization_policies: policies.named,
        policy_unreadable: policies.unreadable,
        services: services(index, pod),
        ..Workload::named(
            WorkloadUid::pod(&mesh.cluster, namespace, name),
            namespace,
            name,
        )
    };
    if captured {
        workload.tunnel_protocol = TunnelProtocol::Hbone;
    }
    if pod.host_network {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    if !pod.ready {
        workload.health = Health::Unhealthy;
    }
    workload
}

fn problems(index: &Index, pod: &Pod) -> Vec<String> {
    let mut problems = Vec::new();
    for address in &pod.bad_addresses {
        problems.push(format!(
            "its address `{address}` is left out: that is no pod address"
        ));
    }
    if !index.has_service_account(pod) {
        let account = &pod.service_account;
        problems.push(format!(
            "there is no ServiceAccount {account} in its namespace"
        ));
    }
    problems
}

/// Which policies stand on a pod.
struct Standing {
    /// Those that the workload names, sorted.
    named: Vec<NamespacedName>,
    /// True when one of them cannot be expressed: refuse everything.
    unreadable: bool,
}

fn policies(index: &Index, pod: &Pod) -> Standing {
    let rules = index.authorization_selecting(pod);
    let mut named: Vec<_> = rules
        .filter(|p| super::policy::is_sent(p))
        .map(|p| p.name.clone())
        .collect();
    let mode = authentication::effective(index, pod);
    if mode.strict {
        named.push(NamespacedName::new(
            Text::clone(&index.mesh.root_namespace),
            STRICT_POLICY,
        ));
    }
    named.extend(mode.port_level);
    named.sort();
    Standing {
        named,
        unreadable: mode.unreadable,
    }
}

/// Every Service that the pod is an endpoint of, with the pod's own ports.
fn services(index: &Index, pod: &Pod) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
    let mut services = BTreeMap::new();
    for service in index
        .services_in(&pod.name.namespace)
        .filter(|s| s.selects(pod))
    {
        let ports = service.ports.iter();
        let ports = ports.filter_map(|port| mapping(port, target_in_pod(port, pod)?));
        services.insert(index.service_key(&service.name), ports.collect());
    }
    for slice in index.slices_naming(&pod.name) {
        // Where a selector decides, slices only repeat it.
        let behind = super::endpoints::service_of(index, slice);
        if let Some(service) = behind.filter(|service| service.selector.is_empty()) {
            let key = index.service_key(&service.name);
            services.insert(key, super::endpoints::mappings(service, slice));
        }
    }
    services
}

fn target_in_pod(port: &Port, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.port_named(name),
    }
}

fn mapping(port: &Port, target_port: u16) -> Option<PortMapping> {
    Some(PortMapping {
        service_port: port.port,
        target_port,
    })
}

/// Name of what made the pod, as people know it: the Deployment behind its ReplicaSet, the CronJob behind its Job.
fn owner(pod: &Pod) -> String {
    let Some(Owner { kind, name }) = &pod.owner else {
        return pod.name.name.to_string();
    };
    let made_by_template = pod.labels.get("pod-template-hash");
    let trimmed = match (kind.as_str(), made_by_template) {
        ("ReplicaSet", Some(hash)) => name
            .strip_suffix(hash.as_str())
            .and_then(|n| n.strip_suffix('-')),
        // A CronJob appends the scheduled time, in minutes since the epoch.
        ("Job", _) => name
            .rsplit_once('-')
            .and_then(|(job, at)| is_schedule(at).then_some(job)),
        _ => None,
    };
    trimmed
        .filter(|name| !name.is_empty())
        .unwrap_or(name)
        .to_owned()
}

fn is_schedule(text: &str) -> bool {
    text.len() >= 8 && text.bytes().all(|b| b.is_ascii_digit())
}

fn canonical_name(labels: &Labels, owner: &str) -> Text {
    let keys = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ];
    first_label(labels, &keys).unwrap_or(owner).into()
}

fn canonical_revision(labels: &Labels) -> Text {
    let keys = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    first_label(labels, &keys).unwrap_or("latest").into()
}

fn first_label<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    let values = keys.iter().filter_map(|key| labels.get(*key));
    values.map(String::as_str).find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests;
