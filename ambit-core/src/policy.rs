//! L4 authorization: the types of a policy and the decision over a set of them.
//!
//! The wire form is `istio.security.Authorization`. A policy that is not wholly understood is kept as *unreadable*
//! and refuses what it selects; it is never dropped and never matched in part.

use std::cell::OnceCell;
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
    /// Why it cannot be understood; then it refuses what it selects, whatever action and rules say.
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

impl Verdict {
    /// True when the connection is let through.
    pub const fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Decides over a connection by the policies that select its destination; policies in dry run have no say.
///
/// A DENY that matches refuses, then a policy that is unreadable; then, where there are ALLOW policies, one of them has
/// to match. The order of `policies` decides only which of several equal policies is named.
pub fn authorize<'a>(
    policies: impl IntoIterator<Item = &'a Authorization>,
    connection: &Connection<'_>,
) -> Verdict {
    judge(policies.into_iter().filter(|p| !p.dry_run), connection)
}

/// What [`authorize`] would say if the policies in dry run were enforced; none when there are none in dry run.
pub fn preview(policies: &[&Authorization], connection: &Connection<'_>) -> Option<Verdict> {
    let any = policies.iter().any(|p| p.dry_run);
    any.then(|| judge(policies.iter().copied(), connection))
}

fn judge<'a>(
    policies: impl Iterator<Item = &'a Authorization>,
    connection: &Connection<'_>,
) -> Verdict {
    let facts = Facts::of(connection);
    let mut allowed_by = None;
    let (mut not_allowing, mut unreadable) = (Vec::new(), Vec::new());
    for policy in policies {
        match policy.action {
            _ if policy.unreadable.is_some() => unreadable.push(policy.name.clone()),
            PolicyAction::Deny => {
                if let Some(rule) = facts.matching(policy) {
                    return Verdict::Deny(facts.denied_because(rule), vec![policy.name.clone()]);
                }
            }
            PolicyAction::Allow if allowed_by.is_some() => {}
            PolicyAction::Allow => match facts.matching(policy) {
                Some(_) => allowed_by = Some(policy.name.clone()),
                None => not_allowing.push(policy.name.clone()),
            },
        }
    }
    if !unreadable.is_empty() {
        return Verdict::Deny(Reason::PolicyUnreadable, unreadable);
    }
    if allowed_by.is_none() && !not_allowing.is_empty() {
        return Verdict::Deny(Reason::PolicyNotAllowed, not_allowing);
    }
    Verdict::Allow(allowed_by)
}

/// A connection in the forms that rules compare.
struct Facts<'a> {
    peer: Option<&'a SpiffeId>,
    principal: OnceCell<String>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Facts<'a> {
    fn of(connection: &Connection<'a>) -> Self {
        Self {
            peer: connection.peer,
            principal: OnceCell::new(),
            source_ip: connection.source_ip.to_canonical(),
            destination_ip: connection.destination.ip().to_canonical(),
            destination_port: connection.destination.port(),
        }
    }

    fn matching<'p>(&self, policy: &'p Authorization) -> Option<&'p Rule> {
        policy.rules.iter().find(|rule| self.fit_rule(rule))
    }

    fn fit_rule(&self, rule: &Rule) -> bool {
        rule.clauses
            .iter()
            .all(|clause| clause.matches.is_empty() || clause.matches.iter().any(|m| self.fit(m)))
    }

    /// A match without any attribute fits nothing: it is what remains of a rule that could not be carried over.
    fn fit(&self, m: &Match) -> bool {
        *m != Match::default()
            && within(&m.namespaces, &m.not_namespaces, |t| self.is_namespace(t))
            && within(&m.principals, &m.not_principals, |t| self.is_principal(t))
            && within(&m.service_accounts, &m.not_service_accounts, |a| {
                self.is_service_account(a)
            })
            && within(&m.source_ips, &m.not_source_ips, |net| {
                net.contains(&self.source_ip)
            })
            && within(&m.destination_ips, &m.not_destination_ips, |net| {
                net.contains(&self.destination_ip)
            })
            && within(&m.destination_ports, &m.not_destination_ports, |port| {
                *port == self.destination_port
            })
    }

    fn is_namespace(&self, text: &StringMatch) -> bool {
        self.peer.is_some_and(|peer| text.fits(&peer.namespace))
    }

    fn is_principal(&self, text: &StringMatch) -> bool {
        self.peer
            .is_some_and(|peer| text.fits(self.principal.get_or_init(|| peer.principal())))
    }

    fn is_service_account(&self, account: &ServiceAccountMatch) -> bool {
        self.peer.is_some_and(|peer| {
            peer.namespace == account.namespace && peer.service_account == account.service_account
        })
    }

    /// A rule that matches *because* there is no identity is how STRICT is written: `not_principals: [presence]`.
    fn denied_because(&self, rule: &Rule) -> Reason {
        let wants_identity = |m: &Match| m.not_principals.contains(&StringMatch::Presence);
        let mut matches = rule.clauses.iter().flat_map(|clause| &clause.matches);
        if matches.any(|m| wants_identity(m) && self.fit(m)) {
            Reason::PlaintextRefused
        } else {
            Reason::PolicyDenied
        }
    }
}

/// One kind of attribute: one of the positive ones where there are any, and none of the negative ones.
fn within<T>(positive: &[T], negative: &[T], fits: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&fits)) && !negative.iter().any(&fits)
}

impl StringMatch {
    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(want) => text == &**want,
            Self::Prefix(want) => text.starts_with(&**want),
            Self::Suffix(want) => text.ends_with(&**want),
            Self::Presence => !text.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests;
