//! What the node's own namespace needs: kubelet's probes of captured pods come from an address that pods do not capture.
//!
//! Called by the agent, on a thread in the node's namespace; everything here blocks. One nftables table, `ambit-host`, which
//! belongs to us alone: TCP that a process of root on this node opens to a probed port of a captured pod gets the probe
//! address as its source, which the pod's rules let pass (`redirect/ruleset.rs`). Only the ports that a pod has probes on:
//! what else runs on the node as root does not get around the mesh. Knows nothing of Kubernetes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::redirect::nft::{self, Found};
use crate::redirect::ruleset::{
    Action, Chain, ChainKind, Condition, Hook, Probes, Rule, Ruleset, Set, Table,
};
use crate::redirect::{Applied, RedirectError};

/// Name of the table.
pub const HOST_TABLE: &str = "ambit-host";
/// Names of the sets of probed addresses and ports, IPv4 and IPv6.
const SETS: [&str; 2] = ["probed4", "probed6"];
/// The user that kubelet runs as.
const ROOT: u32 = 0;

/// Makes the table say exactly these targets. Where it does so already, nothing is written; otherwise it is replaced in one
/// transaction, and probes under way go on. Without targets or without a probe address there is no table.
///
/// # Errors
/// When the kernel refuses or lacks something; then what was there is there still.
pub fn apply(probes: &Probes, targets: &BTreeSet<SocketAddr>) -> Result<Applied, RedirectError> {
    let wanted = rules(probes, targets);
    if is_as(&wanted)? {
        return Ok(Applied::Unchanged);
    }
    if wanted.tables.is_empty() {
        nft::remove(&[HOST_TABLE])?;
    } else {
        nft::replace(&wanted)?;
    }
    Ok(Applied::Written)
}

/// True when the table says exactly these targets.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn verify(probes: &Probes, targets: &BTreeSet<SocketAddr>) -> Result<bool, RedirectError> {
    is_as(&rules(probes, targets))
}

/// Removes the table. Nothing there is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), RedirectError> {
    nft::remove(&[HOST_TABLE])
}

/// Does everything of this file once, in a namespace that is good for nothing else.
///
/// # Errors
/// What would fail in the node's namespace as well.
pub fn rehearse() -> Result<(), RedirectError> {
    let stand_ins: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let targets = stand_ins.into_iter().map(|ip| (ip, 1).into()).collect();
    apply(&Probes::ISTIO, &targets)?;
    if !verify(&Probes::ISTIO, &targets)? {
        return Err(RedirectError::Disputed);
    }
    remove()
}

fn is_as(wanted: &Ruleset) -> Result<bool, RedirectError> {
    let found = nft::compare(&[HOST_TABLE], wanted)?;
    Ok(match found {
        Found::Same => true,
        Found::Nothing => wanted.tables.is_empty(),
        Found::Other => false,
    })
}

/// The table as a value, printable as nft text.
pub fn rules(probes: &Probes, targets: &BTreeSet<SocketAddr>) -> Ruleset {
    let sources = [probes.v4.map(IpAddr::V4), probes.v6.map(IpAddr::V6)];
    let (mut sets, mut rules) = (Vec::new(), Vec::new());
    for (name, source) in SETS.into_iter().zip(sources) {
        let Some(source) = source else {
            continue;
        };
        let v6 = source.is_ipv6();
        let elements: BTreeSet<_> = targets
            .iter()
            .copied()
            .filter(|to| to.is_ipv6() == v6)
            .collect();
        if elements.is_empty() {
            continue;
        }
        sets.push(Set { name, v6, elements });
        rules.push(Rule {
            when: vec![
                Condition::Tcp,
                Condition::User(ROOT),
                Condition::DestinationIn(name, v6),
            ],
            then: Action::TranslateSource(source),
        });
    }
    let chain = Chain {
        name: Hook::Postrouting.name(),
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        rules,
    };
    let table = Table {
        name: HOST_TABLE,
        sets,
        chains: vec![chain],
    };
    Ruleset {
        tables: (!table.sets.is_empty())
            .then_some(table)
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(of: &[&str]) -> BTreeSet<SocketAddr> {
        of.iter().map(|target| target.parse().unwrap()).collect()
    }

    #[test]
    fn probed_ports_get_the_probe_address() {
        let targets = targets(&["10.244.1.7:8080", "[fd44::7]:8080", "10.244.1.7:9000"]);
        let golden = include_str!("redirect/golden/host.nft");
        assert_eq!(rules(&Probes::ISTIO, &targets).to_string(), golden);
    }

    #[test]
    fn without_targets_or_a_source_there_is_no_table() {
        let none = Ruleset { tables: vec![] };
        assert_eq!(rules(&Probes::ISTIO, &BTreeSet::new()), none);
        assert_eq!(rules(&Probes::default(), &targets(&["10.0.0.1:80"])), none);
        let v4 = Probes {
            v6: None,
            ..Probes::ISTIO
        };
        assert_eq!(rules(&v4, &targets(&["[fd44::7]:80"])), none);
    }
}
