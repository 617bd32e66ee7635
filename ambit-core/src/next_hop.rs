//! The outbound decision: where a captured connection goes, and how.
//!
//! Called once per connection by ztunnel's outbound conductor, and again with the tried endpoints excluded when an
//! attempt failed. Touches no socket. Follows ztunnel's outbound algorithm for one network: what leads to another network
//! is refused, and so is what is bound to a waypoint that cannot be reached.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{self, Query};
use crate::gateway::{self, Journey};
use crate::hbone::ConnectTarget;
use crate::identity::SpiffeId;
use crate::names::{NetworkAddress, WorkloadUid};
use crate::ports;
use crate::reason::Reason;
use crate::service::{BalanceMode, Service};
use crate::view::{Destination, MeshView};
use crate::workload::{GatewayAddress, TunnelProtocol, Workload};

/// What an outbound tunnel ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// The proxy of the endpoint itself.
    Workload,
    /// A waypoint, which decides where to go from there.
    Waypoint,
}

/// Where a connection goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// To where the client wanted, in plain TCP: the mesh does not know the destination.
    Passthrough {
        /// The address that the client wanted.
        to: SocketAddr,
    },
    /// To an endpoint that is not in the mesh, in plain TCP.
    Plain {
        /// The endpoint's address and port.
        to: SocketAddr,
    },
    /// Through HBONE.
    Tunnel {
        /// Address and port of the proxy at the other end.
        via: SocketAddr,
        /// The authority of the CONNECT request.
        target: ConnectTarget,
        /// Identities of which the other end has to prove one.
        expect: Vec<SpiffeId>,
        /// What the other end is.
        kind: TunnelKind,
    },
    /// Nowhere.
    Refuse(Reason),
}

/// The outbound decision, with what logs and metrics say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where the connection goes.
    pub hop: NextHop,
    /// The service that the client addressed.
    pub service: Option<Arc<Service>>,
    /// The workload at the other end: the endpoint, or the waypoint's pod.
    pub workload: Option<Arc<Workload>>,
}

/// Decides where a connection of `source` to `wanted` goes.
///
/// `exclude` names endpoints that were tried before, and is the end of trying: a workload in it is never the answer.
/// `roll` is one random number for all choices.
pub fn next_hop(
    view: &MeshView,
    source: &Workload,
    wanted: SocketAddr,
    exclude: &[WorkloadUid],
    roll: u64,
) -> Decision {
    let wanted = canonical(wanted);
    let journey = Journey {
        source,
        wanted,
        exclude,
        roll,
    };
    let address = NetworkAddress::new(view.network().clone(), wanted.ip());
    let decision = match view.destination(&source.namespace, &address) {
        Destination::Workload(workload) => to_workload(view, workload, &journey),
        Destination::Service(service) => to_service(view, service, &journey),
        Destination::Unreadable => Decision::refuse(Reason::ResourceUnreadable, None),
        Destination::Unknown => Decision::passthrough(wanted, None),
    };
    decision
        .without_clear_text_to_unreadable(view)
        .without_capture_ports(source)
}

fn to_workload(view: &MeshView, workload: &Arc<Workload>, journey: &Journey<'_>) -> Decision {
    match &workload.waypoint {
        Some(waypoint) if !gateway::is_behind(view, waypoint, journey.source) => {
            through_waypoint(view, &[waypoint], None, journey)
        }
        _ if journey.exclude.contains(&workload.uid) => {
            Decision::refuse(Reason::NoHealthyEndpoint, None)
        }
        _ => straight(workload, journey.wanted, None),
    }
}

fn to_service(view: &MeshView, service: &Arc<Service>, journey: &Journey<'_>) -> Decision {
    if service.waypoint.is_some() || !service.weighted_waypoints.is_empty() {
        let waypoints = waypoints(service, journey.roll);
        return through_waypoint(view, &waypoints, Some(service), journey);
    }
    let Journey {
        source,
        wanted,
        exclude,
        roll,
    } = *journey;
    let (port, ip) = (wanted.port(), wanted.ip());
    let query = Query {
        source,
        service,
        port,
        wanted: ip,
        as_waypoint: false,
        exclude,
    };
    let endpoints = view.endpoints(&service.key);
    match balance::pick(endpoints, &query, balance::another_roll(roll)) {
        Ok(endpoint) => straight(endpoint.workload, endpoint.address, Some(service)),
        Err(_) if service.load_balancing.mode == BalanceMode::Passthrough => {
            Decision::passthrough(wanted, Some(service))
        }
        Err(Reason::NoHealthyEndpoint) if service.port(port).is_none() => {
            Decision::refuse(Reason::TargetUnknown, Some(service))
        }
        Err(reason) => Decision::refuse(reason, Some(service)),
    }
}

/// The waypoints to try in order: the one that the weights choose, then the plain one.
fn waypoints(service: &Service, roll: u64) -> Vec<&GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let chosen = balance::pick_weighted(weighted.iter().map(|w| w.weight), roll)
        .and_then(|index| weighted.get(index))
        .map(|w| &w.destination);
    chosen.into_iter().chain(&service.waypoint).collect()
}

/// Fails closed: a destination that is bound to a waypoint is never reached around it.
fn through_waypoint(
    view: &MeshView,
    waypoints: &[&GatewayAddress],
    service: Option<&Arc<Service>>,
    journey: &Journey<'_>,
) -> Decision {
    let roll = balance::another_roll(journey.roll);
    let journey = Journey { roll, ..*journey };
    let mut refusal = Reason::WaypointUnavailable;
    for waypoint in waypoints {
        match gateway::reach(view, waypoint, &journey) {
            Ok(pod) => {
                let target = ConnectTarget::Address(journey.wanted);
                let (via, expect, kind) = (pod.via, pod.expect, TunnelKind::Waypoint);
                let hop = NextHop::Tunnel {
                    via,
                    target,
                    expect,
                    kind,
                };
                return Decision::to(hop, service, pod.workload);
            }
            Err(reason) => refusal = reason,
        }
    }
    Decision::refuse(refusal, service)
}

fn straight(workload: &Arc<Workload>, to: SocketAddr, service: Option<&Arc<Service>>) -> Decision {
    let hop = match workload.tunnel_protocol {
        TunnelProtocol::None => NextHop::Plain { to },
        TunnelProtocol::Hbone => NextHop::Tunnel {
            via: SocketAddr::new(to.ip(), ports::INBOUND_HBONE),
            target: ConnectTarget::Address(to),
            expect: gateway::identities(workload, service.map(|s| &**s)),
            kind: TunnelKind::Workload,
        },
    };
    Decision::to(hop, service, workload)
}

impl Decision {
    fn to(hop: NextHop, service: Option<&Arc<Service>>, workload: &Arc<Workload>) -> Self {
        Self {
            hop,
            service: service.cloned(),
            workload: Some(Arc::clone(workload)),
        }
    }

    fn passthrough(to: SocketAddr, service: Option<&Arc<Service>>) -> Self {
        Self {
            hop: NextHop::Passthrough { to },
            service: service.cloned(),
            workload: None,
        }
    }

    fn refuse(reason: Reason, service: Option<&Arc<Service>>) -> Self {
        Self {
            hop: NextHop::Refuse(reason),
            service: service.cloned(),
            workload: None,
        }
    }

    /// What could not be read may have joined the mesh: what has its address beside it, or had it before, does not open it
    /// to plain text. A tunnel shows by its identity who answers.
    fn without_clear_text_to_unreadable(self, view: &MeshView) -> Self {
        let (NextHop::Plain { to } | NextHop::Passthrough { to }) = &self.hop else {
            return self;
        };
        if !view.is_unreadable(&NetworkAddress::new(view.network().clone(), to.ip())) {
            return self;
        }
        Self {
            hop: NextHop::Refuse(Reason::ResourceUnreadable),
            ..self
        }
    }

    /// A capture port is never the end of a connection: a tunnel to one is refused at its other end, and a plain connection
    /// to one of our own would come back to us for ever.
    fn without_capture_ports(self, source: &Workload) -> Self {
        let loops = match &self.hop {
            NextHop::Tunnel { target, .. } => ports::is_capture_port(target.port()),
            NextHop::Plain { to } | NextHop::Passthrough { to } => {
                is_own(source, to.ip()) && ports::is_capture_port(to.port())
            }
            NextHop::Refuse(_) => false,
        };
        if loops {
            return Self {
                hop: NextHop::Refuse(Reason::CapturePort),
                ..self
            };
        }
        self
    }
}

/// Keeps the zone of a link-local address.
fn canonical(wanted: SocketAddr) -> SocketAddr {
    match wanted.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, wanted.port())),
        IpAddr::V6(_) => wanted,
    }
}

fn is_own(source: &Workload, ip: IpAddr) -> bool {
    ip.is_loopback()
        || ip.is_unspecified()
        || source.addresses.iter().any(|own| own.to_canonical() == ip)
}

#[cfg(test)]
mod tests;
