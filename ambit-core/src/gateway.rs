//! What a [`GatewayAddress`] means: which workloads stand behind it, and which of them a connection goes to.
//!
//! Called by the outbound decision to reach a waypoint and by both directions to ask "is this pod that waypoint?".

use std::net::SocketAddr;
use std::sync::Arc;

use crate::balance::{self, Endpoint, Query};
use crate::identity::SpiffeId;
use crate::names::{NetworkAddress, WorkloadUid};
use crate::reason::Reason;
use crate::service::Service;
use crate::view::MeshView;
use crate::workload::{GatewayAddress, GatewayDestination, Workload};

/// Who wants to go where, and what was tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journey<'a> {
    /// The workload that opened the connection.
    pub(crate) source: &'a Workload,
    /// Where it wanted to go.
    pub(crate) wanted: SocketAddr,
    /// Endpoints that were tried before.
    pub(crate) exclude: &'a [WorkloadUid],
    /// One random number for all choices.
    pub(crate) roll: u64,
}

/// A pod behind a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayPod<'v> {
    /// The pod.
    pub(crate) workload: &'v Arc<Workload>,
    /// Its HBONE address.
    pub(crate) via: SocketAddr,
    /// Identities of which it has to prove one.
    pub(crate) expect: Vec<SpiffeId>,
}

/// Picks the pod of a gateway that a connection goes through.
///
/// # Errors
/// [`Reason::OtherNetwork`] when it can only be reached through another network, else [`Reason::WaypointUnavailable`]:
/// there is no such gateway or it has no endpoint.
pub(crate) fn reach<'v>(
    view: &'v MeshView,
    gateway: &GatewayAddress,
    journey: &Journey<'_>,
) -> Result<GatewayPod<'v>, Reason> {
    let port = gateway.hbone_mtls_port;
    let service = match &gateway.destination {
        GatewayDestination::Hostname(key) => view.service(key),
        GatewayDestination::Address(address) => match view.workload_at(address) {
            Some(workload) => return reach_workload(workload, address, port, journey),
            None => view.service_at(&journey.source.namespace, address),
        },
    };
    let service = service.ok_or(Reason::WaypointUnavailable)?;
    let Journey {
        source, exclude, ..
    } = *journey;
    let wanted = journey.wanted.ip();
    let query = Query {
        source,
        service,
        port,
        wanted,
        as_waypoint: true,
        exclude,
    };
    match balance::pick(view.endpoints(&service.key), &query, journey.roll) {
        Ok(Endpoint { workload, address }) => Ok(GatewayPod {
            workload,
            via: address,
            expect: identities(workload, Some(service)),
        }),
        Err(Reason::OtherNetwork) => Err(Reason::OtherNetwork),
        Err(_) => Err(Reason::WaypointUnavailable),
    }
}

/// True when a workload is one of the pods behind a gateway.
pub(crate) fn is_behind(view: &MeshView, gateway: &GatewayAddress, workload: &Workload) -> bool {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => workload.services.contains_key(key),
        GatewayDestination::Address(address) => match view.workload_at(address) {
            Some(pod) => pod.uid == workload.uid,
            None => view
                .service_at(&workload.namespace, address)
                .is_some_and(|service| workload.services.contains_key(&service.key)),
        },
    }
}

/// The identities that may answer for a workload: its own and those that the service allows beside it.
pub(crate) fn identities(workload: &Workload, service: Option<&Service>) -> Vec<SpiffeId> {
    let mut expect = vec![workload.identity()];
    let others = service.into_iter().flat_map(|s| &s.subject_alt_names);
    for other in others {
        if !expect.contains(other) {
            expect.push(other.clone());
        }
    }
    expect
}

fn reach_workload<'v>(
    workload: &'v Arc<Workload>,
    address: &NetworkAddress,
    port: u16,
    journey: &Journey<'_>,
) -> Result<GatewayPod<'v>, Reason> {
    if workload.network != journey.source.network {
        return Err(Reason::OtherNetwork);
    }
    if journey.exclude.contains(&workload.uid) {
        return Err(Reason::WaypointUnavailable);
    }
    let via = SocketAddr::new(address.ip, port);
    Ok(GatewayPod {
        workload,
        via,
        expect: identities(workload, None),
    })
}

#[cfg(test)]
mod tests;
