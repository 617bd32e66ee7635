//! The inbound decision: may a CONNECT request name this target at this pod, and which local address is meant.
//!
//! Called by ztunnel's inbound conductor after the handshake and before policy. A pod's proxy only ever connects to the
//! address at which the tunnel arrived: the request supplies the port and nothing else. Follows ztunnel's inbound
//! algorithm.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::gateway;
use crate::hbone::ConnectTarget;
use crate::names::{Hostname, NetworkAddress};
use crate::ports;
use crate::reason::Reason;
use crate::service::Service;
use crate::view::MeshView;
use crate::workload::{ApplicationTunnel, TunnelPreamble, Workload};

/// Where a tunnelled connection goes inside the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The app's address and port: what policy judges and what is connected to.
    pub to: SocketAddr,
    /// The service that the client addressed, as far as it can be told; for logs and metrics.
    pub service: Option<Arc<Service>>,
}

/// Decides where a CONNECT request at `local`, an address of `pod`, goes.
///
/// `claimed` is the host that the client's proxy says was addressed (`forwarded`).
///
/// # Errors
/// [`Reason::NotOurTarget`] when the target is neither this pod nor something it serves; [`Reason::TargetUnknown`] when
/// the service or its port is not known; [`Reason::CapturePort`]; [`Reason::NotServed`] for PROXY protocol.
pub fn deliver(
    view: &MeshView,
    pod: &Workload,
    local: SocketAddr,
    target: &ConnectTarget,
    claimed: Option<&Hostname>,
) -> Result<Delivery, Reason> {
    let ip = local.ip().to_canonical();
    let (port, named) = match target {
        ConnectTarget::Address(address) => {
            let wanted = NetworkAddress::new(view.network().clone(), address.ip());
            if !is_ours(view, pod, ip, &wanted) {
                return Err(Reason::NotOurTarget);
            }
            (address.port(), None)
        }
        ConnectTarget::Hostname(host, port) => {
            let service = view
                .service_named(&pod.namespace, host)
                .ok_or(Reason::TargetUnknown)?;
            (port_for(view, pod, service, *port)?, Some(service))
        }
    };
    let to = into_app(pod, SocketAddr::new(ip, port))?;
    let service = named.or_else(|| service_behind(view, pod, claimed, port));
    Ok(Delivery {
        to,
        service: service.cloned(),
    })
}

/// The service by which a connection to a port of a pod came: the claimed one if the pod belongs to it, else the first of
/// the pod's that leads to this port.
pub fn service_behind<'v>(
    view: &'v MeshView,
    pod: &Workload,
    claimed: Option<&Hostname>,
    port: u16,
) -> Option<&'v Arc<Service>> {
    let own = || pod.services.keys().filter_map(|key| view.service(key));
    let named = claimed
        .and_then(|host| view.service_named(&pod.namespace, host))
        .filter(|service| pod.services.contains_key(&service.key));
    let leads_here = |service: &&Arc<Service>| {
        let mut ports = service.ports.iter();
        ports.any(|p| service.target_port(pod, p.service_port) == Some(port))
    };
    named.or_else(|| own().find(leads_here))
}

/// An address is ours when the tunnel arrived at it, or when the pod is the waypoint of what has that address.
fn is_ours(view: &MeshView, pod: &Workload, local: IpAddr, wanted: &NetworkAddress) -> bool {
    if wanted.ip == local || pod.application_tunnel.is_some() {
        return true;
    }
    if let Some(workload) = view.workload_at(wanted) {
        let waypoint = workload.waypoint.as_ref();
        return waypoint.is_some_and(|waypoint| gateway::is_behind(view, waypoint, pod));
    }
    view.service_at(&pod.namespace, wanted)
        .is_some_and(|service| serves(view, pod, service))
}

/// True when the pod is a waypoint of the service.
fn serves(view: &MeshView, pod: &Workload, service: &Service) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|w| &w.destination);
    let mut waypoints = weighted.chain(&service.waypoint);
    waypoints.any(|waypoint| gateway::is_behind(view, waypoint, pod))
}

fn port_for(view: &MeshView, pod: &Workload, service: &Service, port: u16) -> Result<u16, Reason> {
    if pod.services.contains_key(&service.key) {
        return service.target_port(pod, port).ok_or(Reason::TargetUnknown);
    }
    let is_waypoint = pod.application_tunnel.is_some() || serves(view, pod, service);
    if is_waypoint {
        Ok(port)
    } else {
        Err(Reason::NotOurTarget)
    }
}

/// Applies the pod's application tunnel; never leads to a capture port.
fn into_app(pod: &Workload, to: SocketAddr) -> Result<SocketAddr, Reason> {
    let refused = |to: SocketAddr| {
        if ports::is_capture_port(to.port()) {
            Err(Reason::CapturePort)
        } else {
            Ok(to)
        }
    };
    let to = refused(to)?;
    match pod.application_tunnel {
        None => Ok(to),
        Some(ApplicationTunnel {
            preamble: TunnelPreamble::None,
            port,
        }) => refused(SocketAddr::new(to.ip(), port)),
        Some(ApplicationTunnel {
            preamble: TunnelPreamble::Proxy,
            ..
        }) => Err(Reason::NotServed),
    }
}

#[cfg(test)]
mod tests;
