//! L4 authorization: the types of a policy and the decision over a set of them.
//!
//! The wire form is `istio.security.Authorization`. A policy that is not wholly understood is kept as *unreadable*
//! and refuses what it selects; it is never dropped and never matched in part.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use crate::identity::SpiffeId;
use crate::names::{NamespacedName, Text};
use crate::reason::Reason;

/// Which workloads a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PolicyScope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PolicyAction {
    /// Lets the connection through unless a DENY matches.
    Allow,
    /// Refuses the connection.
    Deny,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum StringMatch {
    /// Equal.
    Exact(Text),
    /// Begins with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Is there at all.
    Presence,
}

/// A service account by name, never by pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub service_account: Text,
}

/// Attributes that must all fit: within a kind, one of the positive ones and none of the negative ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Namespace of the peer's identity.
    pub namespaces: Vec<StringMatch>,
    /// Namespaces that it must not be.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Identities that it must not be.
    pub not_principals: Vec<StringMatch>,
    /// Address of the L3 peer.
    pub source_ips: Vec<IpNet>,
    /// Addresses that it must not have.
    pub not_source_ips: Vec<IpNet>,
    /// Address of the destination after port mapping.
    pub destination_ips: Vec<IpNet>,
    /// Addresses that it must not have.
    pub not_destination_ips: Vec<IpNet>,
    /// Port of the destination after port mapping.
    pub destination_ports: Vec<u16>,
    /// Ports that it must not be.
    pub not_destination_ports: Vec<u16>,
    /// Service account of the peer's identity.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Service accounts that it must not be.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// Alternatives of which one must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// The alternatives; none at all fits everything.
    pub matches: Vec<Match>,
}

/// Clauses that must all fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The clauses; none at all fits everything.
    pub clauses: Vec<Clause>,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Its key.
    pub name: NamespacedName,
    /// Which workloads it selects.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: PolicyAction,
    /// Rules of which one must fit; none at all fits nothing.
    pub rules: Vec<Rule>,
    /// True when it is only to be reported, never enforced.
    pub dry_run: bool,
    /// Why it cannot be understood; then it refuses what it selects, whatever the other fields say.
    pub unreadable: Option<Text>,
}

/// The facts of a connection that policies look at.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Identity that the peer proved by mutual TLS.
    pub peer: Option<&'a SpiffeId>,
    /// Address of the L3 peer.
    pub source_ip: IpAddr,
    /// Real destination after port mapping.
    pub destination: SocketAddr,
}

/// The decision over a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it through; the policy that allowed it, if one had to.
    Allow(Option<NamespacedName>),
    /// Refuse it: why, and which policies (the one that denies, or all ALLOW policies that did not match).
    Deny(Reason, Vec<NamespacedName>),
}
