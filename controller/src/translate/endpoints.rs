//! EndpointSlice → Workloads: one for each address that is no pod.
//!
//! Such an endpoint has no identity and is reached by plain TCP. It is found through its Service only, never by its
//! address, which may belong to a node or to something outside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_core::names::{NamespacedName, Text, WorkloadUid};
use ambit_core::workload::{Health, NetworkMode, PortMapping, Workload};

use super::{Resource, Translated};
use crate::index::Index;
use crate::index::endpoints::{Endpoint, Slice};
use crate::index::services::Service;

/// The workloads of a slice.
pub(super) fn slice(index: &Index, name: &NamespacedName) -> Translated {
    let Some(slice) = index.slice(name) else {
        return Translated::default();
    };
    let Some(service) = service_of(index, slice) else {
        return Translated::problem("it is left out: it names no Service of its namespace");
    };
    let mut workloads = BTreeMap::new();
    for endpoint in slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.pod.is_none())
    {
        for address in &endpoint.addresses {
            let workload = workload(index, slice, service, (endpoint, *address));
            workloads.insert(workload.uid.clone(), workload);
        }
    }
    let workloads = workloads.into_values();
    Translated {
        resources: workloads.map(|w| Resource::Workload(Box::new(w))).collect(),
        ..Translated::default()
    }
}

/// The Service of a slice, if it and its namespace are there.
pub(super) fn service_of<'a>(index: &'a Index, slice: &Slice) -> Option<&'a Service> {
    let namespace = Text::clone(&slice.name.namespace);
    index.namespace(&namespace)?;
    let name = NamespacedName::new(namespace, Text::clone(slice.service.as_ref()?));
    index
        .service(&name)
        .filter(|service| !service.external_name)
}

/// Ports of the Service and the slice's ports behind them, matched by name.
pub(super) fn mappings(service: &Service, slice: &Slice) -> Vec<PortMapping> {
    let behind = |name: &str| slice.ports.iter().find(|port| port.name == name);
    let ports = service.ports.iter();
    ports
        .filter_map(|port| {
            Some(PortMapping {
                service_port: port.port,
                target_port: behind(&port.name)?.port,
            })
        })
        .collect()
}

fn workload(
    index: &Index,
    slice: &Slice,
    service: &Service,
    (endpoint, address): (&Endpoint, IpAddr),
) -> Workload {
    let mesh = &index.mesh;
    let NamespacedName { namespace, name } = &slice.name;
    let uid = format!(
        "{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}",
        mesh.cluster
    );
    Workload {
        trust_domain: Text::clone(&mesh.trust_domain),
        service_account: Text::from(""),
        addresses: vec![address],
        network: mesh.network.clone(),
        network_mode: NetworkMode::HostNetwork,
        node: Text::clone(&endpoint.node),
        cluster: mesh.cluster.clone(),
        locality: index.locality(&endpoint.node),
        canonical_name: Text::clone(&service.name.name),
        workload_name: Text::clone(name),
        health: if endpoint.ready {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        services: BTreeMap::from([(index.service_key(&service.name), mappings(service, slice))]),
        ..Workload::named(WorkloadUid::new(uid), namespace, name)
    }
}

#[cfg(test)]
mod tests;
