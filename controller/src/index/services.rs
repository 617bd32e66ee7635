//! Services.

use std::net::IpAddr;

use ambit_core::names::{NamespacedName, ServiceKey, Text};
use k8s_openapi::api::core::v1::{
    Service as KubeService, ServicePort as KubePort, ServiceSpec as KubeSpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pods::Pod;
use super::{Dirty, Index, Source, replace, within};
use crate::crds::{Labels, contains_all};

/// Type of the condition that says whether an object could be translated.
pub const ACCEPTED: &str = "ambit.mesh/Accepted";

/// Where a port of a Service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// To this port.
    Number(u16),
    /// To the port that each pod gives this name.
    Name(Text),
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; may be empty when it is the only one.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// What the mesh needs of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its key.
    pub name: NamespacedName,
    /// Its annotations.
    pub annotations: Labels,
    /// Its virtual addresses; none when it is headless.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<Port>,
    /// Labels of the pods behind it; empty when its endpoints are named by EndpointSlices.
    pub selector: Labels,
    /// True when it is another name for something outside.
    pub external_name: bool,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub local_only: bool,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<String>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.ipFamilies`.
    pub ip_families: Vec<String>,
    /// It has a condition that this controller has written.
    pub has_condition: bool,
    /// Addresses and ports that are none, as they stand in the object.
    pub bad: Vec<String>,
}

impl Service {
    /// Reduces the object.
    pub fn of(name: &NamespacedName, object: KubeService) -> Self {
        let spec = object.spec.unwrap_or_default();
        let (addresses, mut bad) = addresses(&spec);
        let conditions = object.status.and_then(|status| status.conditions);
        let mut conditions = conditions.iter().flatten();
        let mut ports = Vec::new();
        for port in spec.ports.iter().flatten().filter(|port| is_tcp(port)) {
            match read_port(port) {
                Some(port) => ports.push(port),
                None => bad.push(format!("port {}", port.port)),
            }
        }
        Self {
            name: name.clone(),
            annotations: object.metadata.annotations.unwrap_or_default(),
            addresses,
            ports,
            selector: spec.selector.unwrap_or_default(),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            traffic_distribution: spec.traffic_distribution,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            ip_families: spec.ip_families.unwrap_or_default(),
            has_condition: conditions.any(|condition| condition.type_ == ACCEPTED),
            bad,
        }
    }

    /// True when the pod is behind it by its labels.
    pub fn selects(&self, pod: &Pod) -> bool {
        !self.selector.is_empty()
            && !self.external_name
            && self.name.namespace == pod.name.namespace
            && contains_all(&pod.labels, &self.selector)
    }
}

impl Index {
    /// The Service, if it is there.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Key of a Service in the mesh: its namespace and `name.namespace.svc.DOMAIN`.
    pub fn service_key(&self, name: &NamespacedName) -> ServiceKey {
        let NamespacedName { namespace, name } = name;
        let hostname = format!("{name}.{namespace}.svc.{}", self.mesh.cluster_domain);
        ServiceKey::new(Text::clone(namespace), &hostname)
    }

    /// Services of a namespace, by name.
    pub fn services_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Service> {
        within(&self.services, namespace).map(|(_, service)| service)
    }

    pub(super) fn set_service(&mut self, name: &NamespacedName, value: Option<Service>) -> Dirty {
        let now = value.clone();
        let Some(before) = replace(&mut self.services, name, value) else {
            return Dirty::new();
        };
        let either = [before, now];
        let behind = |pod: &&Pod| either.iter().flatten().any(|service| service.selects(pod));
        let pods = within(&self.pods, &name.namespace).map(|(_, pod)| pod);
        let selected = pods.filter(behind).map(|pod| Source::Pod(pod.name.clone()));
        let slices: Vec<_> = within(&self.slices, &name.namespace)
            .filter(|(_, slice)| slice.service.as_ref() == Some(&name.name))
            .collect();
        let named = slices
            .iter()
            .flat_map(|(_, slice)| slice.pods().map(Source::Pod));
        let slices = slices
            .iter()
            .map(|(name, _)| Source::EndpointSlice((*name).clone()));
        let itself = [Source::Service(name.clone())];
        selected.chain(named).chain(slices).chain(itself).collect()
    }
}

fn is_tcp(port: &KubePort) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

fn addresses(spec: &KubeSpec) -> (Vec<IpAddr>, Vec<String>) {
    let listed = spec.cluster_ips.iter().flatten();
    let mut texts: Vec<&String> = listed.filter(|ip| !ip.is_empty()).collect();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty()));
    }
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for text in texts.into_iter().filter(|text| *text != "None") {
        match text.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() && !ip.is_loopback() => good.push(ip.to_canonical()),
            _ => bad.push(format!("address {text}")),
        }
    }
    (good, bad)
}

fn read_port(port: &KubePort) -> Option<Port> {
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        port: number(port.port)?,
        target: match &port.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number(port.port)?),
            Some(IntOrString::Int(target)) => TargetPort::Number(number(*target)?),
            Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
        },
        app_protocol: port.app_protocol.clone(),
    })
}
