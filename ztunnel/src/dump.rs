//! Dump: all that the proxy knows and does, as `/config_dump` shows it to operators.
//!
//! Called by the admin endpoint on the control thread. The keys are those that `istioctl ztunnel-config` reads, with
//! our own beside them; it holds no key material.

use std::sync::Arc;

use ambit_core::policy::Authorization;
use ambit_core::service::{Service, ServiceAddress};
use ambit_core::view::MeshView;
use ambit_core::workload::Workload;
use ambit_net::certs::Held;
use ambit_net::telemetry::VERSION;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::flows::{Direction, Route};
use crate::pods::{Roster, RosterPod};
use crate::proxy::Mesh;
use crate::workers::Worker;

/// Shows what there is at the moment; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Dump {
    mesh: Arc<Mesh>,
    roster: watch::Receiver<Roster>,
    workers: Vec<Worker>,
}

impl Dump {
    /// Reads from these.
    pub(crate) fn new(
        mesh: Arc<Mesh>,
        roster: watch::Receiver<Roster>,
        workers: Vec<Worker>,
    ) -> Self {
        Self {
            mesh,
            roster,
            workers,
        }
    }

    /// Everything, as it is now.
    pub(crate) fn now(&self) -> Value {
        let certificates: Vec<Value> = self.mesh.certs.snapshot().iter().map(certificate).collect();
        let (workloads, services, policies, unreadable) = self.mesh.view.read(|view| {
            let workloads: Vec<Value> = view.workloads().map(|w| workload(w)).collect();
            let services: Vec<Value> = view.services().map(|s| service(view, s)).collect();
            let policies: Vec<Value> = view.policies().map(|p| policy(p)).collect();
            let unreadable: Vec<Value> = view.unreadable().map(|u| json!(u)).collect();
            (workloads, services, policies, unreadable)
        });
        json!({
            "version": { "version": VERSION },
            "workloads": workloads,
            "services": services,
            "policies": policies,
            "unreadable": unreadable,
            "certificates": certificates,
            "workloadState": self.pods(),
            "synced": { "waitsFor": self.mesh.synced.waits_for() },
        })
    }

    fn pods(&self) -> Map<String, Value> {
        let routes: Vec<Route> = self.workers.iter().flat_map(|w| w.flows.routes()).collect();
        let roster = self.roster.borrow();
        roster
            .pods
            .iter()
            .map(|pod| (pod.pod.uid.to_string(), state(pod, &routes)))
            .collect()
    }
}

/// One pod: whether it is served, and its open connections.
fn state(pod: &RosterPod, routes: &[Route]) -> Value {
    let connections = |direction| -> Vec<Value> {
        let own = routes
            .iter()
            .filter(|r| r.pod == pod.pod.uid && r.direction == direction);
        own.map(connection).collect()
    };
    let admitted: Vec<_> = pod
        .admissions
        .iter()
        .flat_map(|admission| admission.open())
        .collect();
    json!({
        "state": if pod.pending.is_none() { "Up" } else { "Pending" },
        "error": pod.pending.as_deref(),
        "info": {
            "name": pod.pod.name.name,
            "namespace": pod.pod.name.namespace,
            "serviceAccount": pod.pod.identity.service_account,
        },
        "connections": {
            "inbound": connections(Direction::Inbound),
            "outbound": connections(Direction::Outbound),
        },
        "admitted": admitted,
    })
}

fn connection(route: &Route) -> Value {
    json!({
        "src": route.source,
        "originalDst": route.wanted,
        "actualDst": route.destination,
        "protocol": if route.hbone { "HBONE" } else { "TCP" },
    })
}

fn certificate(held: &Held) -> Value {
    let state = match (&held.serial, &held.error) {
        (Some(_), _) => "Available".to_owned(),
        (None, Some(error)) => format!("Unavailable: {error}"),
        (None, None) => "Initializing".to_owned(),
    };
    let chain = held.serial.iter().map(|serial| {
        json!({
            "serialNumber": serial,
            "validFrom": held.not_before,
            "expirationTime": held.not_after,
        })
    });
    json!({
        "identity": held.identity,
        "state": state,
        "certChain": chain.collect::<Vec<_>>(),
        "received": held.received,
        "lastError": held.error,
    })
}

fn workload(workload: &Workload) -> Value {
    let names = [
        ("addresses", "workloadIps"),
        ("tunnelProtocol", "protocol"),
        ("cluster", "clusterId"),
        ("health", "status"),
    ];
    let mut shown = renamed(workload, &names);
    let services: Vec<String> = workload.services.keys().map(ToString::to_string).collect();
    shown.insert("services".to_owned(), json!(services));
    Value::Object(shown)
}

fn service(view: &MeshView, service: &Service) -> Value {
    let mut shown = renamed(service, &[("loadBalancing", "loadBalancer")]);
    let vip = |a: &ServiceAddress| match a.prefix {
        None => a.address.to_string(),
        Some(prefix) => format!("{}/{prefix}", a.address),
    };
    let (single, ranges): (Vec<_>, Vec<_>) =
        service.addresses.iter().partition(|a| a.prefix.is_none());
    let vips = |addresses: Vec<&ServiceAddress>| addresses.into_iter().map(vip).collect::<Vec<_>>();
    let ports = service
        .ports
        .iter()
        .map(|p| (p.service_port.to_string(), json!(p.target_port)));
    let endpoints = view.endpoints(&service.key).iter().map(|w| {
        let ports = w.services.get(&service.key).into_iter().flatten();
        let ports = ports.map(|p| (p.service_port.to_string(), json!(p.target_port)));
        let endpoint = json!({
            "workloadUid": w.uid,
            "port": ports.collect::<Map<_, _>>(),
            "status": w.health,
        });
        (w.uid.to_string(), endpoint)
    });
    for gone in ["key", "addresses"] {
        shown.remove(gone);
    }
    shown.extend([
        ("namespace".to_owned(), json!(service.key.namespace)),
        ("hostname".to_owned(), json!(service.key.hostname)),
        ("vips".to_owned(), json!(vips(single))),
        ("cidrVips".to_owned(), json!(vips(ranges))),
        ("ports".to_owned(), Value::Object(ports.collect())),
        ("endpoints".to_owned(), Value::Object(endpoints.collect())),
    ]);
    Value::Object(shown)
}

/// A policy's name is two keys in Istio's dump.
fn policy(policy: &Authorization) -> Value {
    let mut shown = renamed(policy, &[]);
    shown.insert("name".to_owned(), json!(policy.name.name));
    shown.insert("namespace".to_owned(), json!(policy.name.namespace));
    Value::Object(shown)
}

/// The fields of a value, some under Istio's name.
fn renamed(value: &impl Serialize, names: &[(&str, &str)]) -> Map<String, Value> {
    // The mesh's types are plain structs: they become objects.
    let Ok(Value::Object(fields)) = serde_json::to_value(value) else {
        return Map::new();
    };
    let rename = |(key, value): (String, Value)| {
        let name = names.iter().find(|(ours, _)| *ours == key);
        (name.map_or(key, |(_, theirs)| (*theirs).to_owned()), value)
    };
    fields.into_iter().map(rename).collect()
}

#[cfg(test)]
mod tests {
    use ambit_core::view::unreadable::Unreadable;
    use ambit_core::view::update::Update;

    use super::*;

    #[test]
    fn what_could_not_be_read_is_shown() {
        let mesh = crate::proxy::testing::mesh();
        mesh.view
            .apply(vec![Update::Unreadable(Box::new(Unreadable {
                name: "Kubernetes//Pod/shop/web".to_owned(),
                addresses: Vec::new(),
            }))]);
        let (_roster, pods) = watch::channel(Roster::default());
        let shown = Dump::new(mesh, pods, Vec::new()).now();
        let expected = json!([{ "name": "Kubernetes//Pod/shop/web", "addresses": [] }]);
        assert_eq!(shown["unreadable"], expected);
    }
}
