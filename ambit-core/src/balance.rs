//! Picks one endpoint of a service: by health, port, address family, locality and weight, leaving out those tried before.
//!
//! Called by the outbound decision, for services and for waypoints. Randomness is an argument: one `roll` per decision,
//! evenly spread over all of `u64`. Follows ztunnel's load balancing over WDS `LoadBalancing`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::names::WorkloadUid;
use crate::reason::Reason;
use crate::service::{BalanceMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service};
use crate::workload::{Health, Workload};

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Who asks; localities are compared with its own.
    pub source: &'a Workload,
    /// The service whose endpoints are offered.
    pub service: &'a Service,
    /// The service's port; for a waypoint its HBONE port.
    pub port: u16,
    /// The address that the client wanted: it is kept where an endpoint has it, else its family where possible.
    pub wanted: IpAddr,
    /// True when the endpoint is a waypoint: then ztunnel in front of it may take the port.
    pub as_waypoint: bool,
    /// Endpoints that were tried before.
    pub exclude: &'a [WorkloadUid],
}

/// An endpoint and the address and port on which it takes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'v> {
    /// The endpoint.
    pub workload: &'v Arc<Workload>,
    /// Its address and target port.
    pub address: SocketAddr,
}

/// Picks one of the endpoints, each as often as its capacity says.
///
/// # Errors
/// [`Reason::OtherNetwork`] when what could take the connection is on another network only, else
/// [`Reason::NoHealthyEndpoint`].
pub fn pick<'v>(
    endpoints: &'v [Arc<Workload>],
    query: &Query<'_>,
    roll: u64,
) -> Result<Endpoint<'v>, Reason> {
    let mut candidates: Vec<_> = endpoints
        .iter()
        .filter_map(|w| query.candidate(w))
        .collect();
    let best = candidates.iter().map(|c| c.rank).max();
    candidates.retain(|c| Some(c.rank) == best);
    let weights = candidates.iter().map(|c| c.endpoint.workload.capacity);
    match pick_weighted(weights, roll).and_then(|index| candidates.get(index)) {
        Some(candidate) => Ok(candidate.endpoint),
        None if endpoints.iter().any(|w| query.is_elsewhere(w)) => Err(Reason::OtherNetwork),
        None => Err(Reason::NoHealthyEndpoint),
    }
}

/// Index of one of the weights, each as often as its share of the sum; none when the sum is zero.
pub(crate) fn pick_weighted(
    weights: impl Iterator<Item = u32> + Clone,
    roll: u64,
) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    // Scales the roll to 0..total; the high word of the product is always less than `total`.
    let mut point = u64::try_from((u128::from(roll) * u128::from(total)) >> 64).ok()?;
    for (index, weight) in weights.map(u64::from).enumerate() {
        match point.checked_sub(weight) {
            Some(rest) => point = rest,
            None => return Some(index),
        }
    }
    None
}

/// A second roll that says nothing about the first one (the finalizer of SplitMix64).
pub(crate) const fn another_roll(roll: u64) -> u64 {
    let z = roll.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The address of a workload that a connection is sent to: the wanted one if it is its own, else one of an allowed
/// family, of the wanted one's family where there is a choice.
fn address_of(workload: &Workload, families: IpFamilies, wanted: IpAddr) -> Option<IpAddr> {
    let own = || workload.addresses.iter().map(IpAddr::to_canonical);
    let is_allowed = |ip: &IpAddr| match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => ip.is_ipv4(),
        IpFamilies::Ipv6Only => ip.is_ipv6(),
    };
    let allowed = || own().filter(is_allowed);
    own()
        .find(|ip| *ip == wanted)
        .or_else(|| allowed().find(|ip| ip.is_ipv4() == wanted.is_ipv4()))
        .or_else(|| allowed().next())
}

struct Candidate<'v> {
    endpoint: Endpoint<'v>,
    rank: usize,
}

impl Query<'_> {
    fn candidate<'v>(&self, workload: &'v Arc<Workload>) -> Option<Candidate<'v>> {
        if !self.is_usable(workload) || workload.network != self.source.network {
            return None;
        }
        let rank = rank(&self.service.load_balancing, self.source, workload)?;
        let ip = address_of(workload, self.service.ip_families, self.wanted)?;
        let address = SocketAddr::new(ip, self.port_of(workload)?);
        Some(Candidate {
            endpoint: Endpoint { workload, address },
            rank,
        })
    }

    fn is_elsewhere(&self, workload: &Workload) -> bool {
        self.is_usable(workload)
            && workload.network != self.source.network
            && self.port_of(workload).is_some()
    }

    fn is_usable(&self, workload: &Workload) -> bool {
        let all = self.service.load_balancing.health_policy == HealthPolicy::AllowAll;
        (all || workload.health == Health::Healthy) && !self.exclude.contains(&workload.uid)
    }

    fn port_of(&self, workload: &Workload) -> Option<u16> {
        let behind_ztunnel = self.as_waypoint && workload.application_tunnel.is_some();
        let declared = self.service.target_port(workload, self.port);
        declared.or(behind_ztunnel.then_some(self.port))
    }
}

/// How near an endpoint is: the number of preferences that it matches before the first that it does not; none when all
/// are required and it misses one.
///
/// A preference for the same network that comes first is special: it outweighs all others together, and missing it does
/// not end the comparison, so that endpoints elsewhere are still ranked by their locality.
fn rank(balancing: &LoadBalancing, source: &Workload, endpoint: &Workload) -> Option<usize> {
    let preferences = &balancing.routing_preference;
    if balancing.mode == BalanceMode::Unspecified {
        return Some(0);
    }
    let matches = |scope: &Scope| is_same(*scope, source, endpoint);
    if balancing.mode == BalanceMode::Strict && !preferences.iter().all(matches) {
        return None;
    }
    let (network_bonus, ordered) = match preferences.split_first() {
        Some((Scope::Network, rest)) if matches(&Scope::Network) => (preferences.len(), rest),
        Some((Scope::Network, rest)) => (0, rest),
        _ => (0, preferences.as_slice()),
    };
    Some(network_bonus + ordered.iter().take_while(|scope| matches(scope)).count())
}

fn is_same(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster == b.cluster,
        Scope::Network => a.network == b.network,
    }
}

#[cfg(test)]
mod tests;
