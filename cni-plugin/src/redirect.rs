//! A pod's redirection: applies, verifies, drains and removes it, in the namespace of the calling thread.
//!
//! Called by the agent on a thread that is inside the pod's namespace (`ambit_net::netns::run_on_thread`), never on a
//! runtime's worker: everything here blocks. Knows nothing of Kubernetes, files or ztunnel. What it makes: two nftables
//! tables (`ruleset.rs`), and one routing rule and one route for each family (`routes.rs`).

mod netlink;
pub mod ruleset;
mod error;
pub(crate) mod nft;
mod routes;
mod connections;

pub use error::{Feature, RedirectError, Step};

use nft::Found;
use routes::{Entry, Routing};
use ruleset::{Families, MANGLE_TABLE, NAT_TABLE, Phase, PodNet};

/// The tables of a pod.
const TABLES: [&str; 2] = [NAT_TABLE, MANGLE_TABLE];

/// What [`apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Everything was there already, exactly so.
    Unchanged,
    /// Something was written.
    Written,
}

impl Families {
    /// The families of the calling thread's namespace. IPv6 counts when loopback speaks it: redirection goes there.
    pub fn of_this_namespace() -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        Self {
            v4: true,
            v6: disabled.is_ok_and(|value| value.trim() == "0"),
        }
    }
}

/// Makes the namespace's redirection that of `pod` in `phase`. Where it is so already, nothing is written; otherwise the
/// tables are replaced in one transaction, and open connections keep their way.
///
/// # Errors
/// When the kernel refuses or lacks something: then what this call made is undone, in reverse order, and what was there
/// before is there still.
pub fn apply(pod: &PodNet, phase: Phase) -> Result<Applied, RedirectError> {
    let wanted = ruleset::for_pod(pod, phase);
    let mut routing = Routing::open()?;
    let mut made = Vec::new();
    let result = (|| {
        for entry in Entry::all(pod.families) {
            if routing.add(entry)? {
                made.push(entry);
            }
        }
        if nft::compare(&TABLES, &wanted)? == Found::Same {
            return Ok(made.is_empty());
        }
        nft::replace(&wanted)?;
        Ok(false)
    })();
    match result {
        Ok(true) => Ok(Applied::Unchanged),
        Ok(false) => Ok(Applied::Written),
        Err(error) => {
            for entry in made.into_iter().rev() {
                // The first error is the one to report; this one can only be a consequence of the same cause.
                let _undone: Result<(), RedirectError> = routing.delete(entry);
            }
            Err(error)
        }
    }
}

/// True when the namespace's redirection is exactly that of `pod` in `phase`.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn verify(pod: &PodNet, phase: Phase) -> Result<bool, RedirectError> {
    let mut routing = Routing::open()?;
    for entry in Entry::all(pod.families) {
        if !routing.has(entry)? {
            return Ok(false);
        }
    }
    Ok(nft::compare(&TABLES, &ruleset::for_pod(pod, phase))? == Found::Same)
}

/// True when the namespace has none of our tables, in whatever state.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_absent() -> Result<bool, RedirectError> {
    Ok(nft::compare(&TABLES, &ruleset::Ruleset { tables: vec![] })? == Found::Nothing)
}

/// Removes everything that [`apply`] makes, in reverse order. Nothing there is fine.
///
/// # Errors
/// The first refusal; the rest is tried all the same.
pub fn remove() -> Result<(), RedirectError> {
    let mut result = nft::remove(&TABLES);
    let mut routing = Routing::open()?;
    for entry in Entry::all(Families::DUAL).rev() {
        result = result.and(routing.delete(entry));
    }
    result
}

/// Number of captured connections in the namespace that are not over yet.
///
/// # Errors
/// When connection tracking cannot be read, for example because the kernel has no `nf_conntrack_netlink`.
pub fn captured_connections() -> Result<usize, RedirectError> {
    connections::count()
}

/// Does everything of this file once, in a namespace that is good for nothing else. Returns the feature that is missing
/// and can be done without, if one is.
///
/// # Errors
/// What would fail in a pod's namespace as well.
pub fn rehearse() -> Result<Option<Feature>, RedirectError> {
    Routing::open()?.bring_loopback_up()?;
    let pod = PodNet {
        families: Families::of_this_namespace(),
        probes: ruleset::Probes::ISTIO,
        bypass_inbound: false,
        virtual_interfaces: Vec::new(),
    };
    for phase in [Phase::Joining, Phase::Captured, Phase::Leaving] {
        apply(&pod, phase)?;
        if !verify(&pod, phase)? {
            return Err(RedirectError::Disputed);
        }
    }
    let missing = match captured_connections() {
        Err(RedirectError::Feature { feature, .. }) => Some(feature),
        other => other.map(|_none| None)?,
    };
    remove()?;
    Ok(missing)
}
