//! EndpointSlices: endpoints that are no pods, and pods of Services without a selector.

use std::net::IpAddr;

use ambit_core::names::{NamespacedName, Text};
use k8s_openapi::api::discovery::v1::{Endpoint as KubeEndpoint, EndpointSlice};

use super::{Dirty, Index, Source, replace, within};

/// Label that names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A TCP port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the Service's port that it is behind; empty for an only port.
    pub name: String,
    /// Its number.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// True when it may receive connections.
    pub ready: bool,
    /// Its node; empty when nobody says.
    pub node: Text,
    /// The pod that it is, if it is one.
    pub pod: Option<NamespacedName>,
}

/// What the mesh needs of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its key.
    pub name: NamespacedName,
    /// Name of its Service, in the same namespace.
    pub service: Option<Text>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Their ports.
    pub ports: Vec<EndpointPort>,
}

impl Slice {
    /// Reduces the object. Slices of names (`addressType: FQDN`) have no endpoints here.
    pub fn of(name: &NamespacedName, object: EndpointSlice) -> Self {
        let labels = object.metadata.labels.unwrap_or_default();
        let ports = object.ports.into_iter().flatten();
        let ports = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let endpoints = object.endpoints.into_iter();
        Self {
            service: labels.get(SERVICE_NAME).map(|name| name.as_str().into()),
            endpoints: endpoints
                .map(|endpoint| read_endpoint(endpoint, &name.namespace))
                .collect(),
            ports: ports
                .filter_map(|port| {
                    Some(EndpointPort {
                        name: port.name.unwrap_or_default(),
                        port: u16::try_from(port.port?).ok().filter(|port| *port != 0)?,
                    })
                })
                .collect(),
            name: name.clone(),
        }
    }

    /// True when it has an endpoint on that node.
    pub fn is_on(&self, node: &str) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| *endpoint.node == *node)
    }

    /// The pods among its endpoints.
    pub fn pods(&self) -> impl Iterator<Item = NamespacedName> + '_ {
        self.endpoints
            .iter()
            .filter_map(|endpoint| endpoint.pod.clone())
    }
}

impl Index {
    /// The slice, if it is there.
    pub fn slice(&self, name: &NamespacedName) -> Option<&Slice> {
        self.slices.get(name)
    }

    /// Slices that name a pod as endpoint.
    pub fn slices_naming<'a>(&'a self, pod: &'a NamespacedName) -> impl Iterator<Item = &'a Slice> {
        let names_it = |slice: &&Slice| slice.endpoints.iter().any(|e| e.pod.as_ref() == Some(pod));
        within(&self.slices, &pod.namespace)
            .map(|(_, slice)| slice)
            .filter(names_it)
    }

    pub(super) fn set_slice(&mut self, name: &NamespacedName, value: Option<Slice>) -> Dirty {
        let now = value.clone();
        let Some(before) = replace(&mut self.slices, name, value) else {
            return Dirty::new();
        };
        let either = before.iter().chain(&now);
        let pods = either.flat_map(|slice| slice.pods().map(Source::Pod));
        pods.chain([Source::EndpointSlice(name.clone())]).collect()
    }
}

fn read_endpoint(endpoint: KubeEndpoint, namespace: &str) -> Endpoint {
    let addresses = endpoint.addresses.iter();
    let target = endpoint
        .target_ref
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let conditions = endpoint.conditions.unwrap_or_default();
    Endpoint {
        addresses: addresses
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .map(|ip| ip.to_canonical())
            .collect(),
        ready: conditions.ready.unwrap_or(true),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        pod: target.and_then(|target| Some(NamespacedName::new(namespace, target.name?))),
    }
}
