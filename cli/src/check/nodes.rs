//! What Ambit needs of the nodes, as far as Kubernetes knows it; the agents look closer once they are there.
//!
//! Pure. Called by `prerequisites.rs`.

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::checks::{Check, Grade};

use super::facts::{Node, Read};

/// Oldest kernel: nftables can redirect in family inet, and take a packet's mark from its connection.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// What images are made for.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Runtimes that chain CNI plugins by configuration lists.
const RUNTIMES: [&str; 2] = ["containerd", "cri-o"];

/// Kernels and architectures.
pub(super) fn machines(nodes: &Read<Vec<Node>>) -> Check {
    const NAME: &str = "nodes";
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(why) => {
            let next = "the ClusterRole ambit-operator grants it (docs/install.md, Rights)";
            return Check::bad(NAME, format!("cannot be looked at: {why}"), next);
        }
    };
    let judged: Vec<_> = nodes.iter().filter_map(machine).collect();
    let bad = judged.iter().any(|(grade, _)| *grade == Grade::Bad);
    let unfit = judged.len();
    let details: Vec<_> = judged.into_iter().map(|(_, what)| what).collect();
    let kernels = each(nodes, |node| format!("Linux {}", node.kernel));
    let kinds = each(nodes, |node| node.architecture.clone());
    let all = format!("{}: {kernels}; {kinds}", count(nodes.len(), "node"));
    if nodes.is_empty() {
        Check::bad(NAME, "the cluster has no node", "add one")
    } else if bad {
        let found = format!(
            "{unfit} of {} cannot carry the mesh",
            count(nodes.len(), "node")
        );
        let next = format!(
            "Ambit needs Linux {}.{} or later on {}: upgrade these nodes or keep the mesh's pods off them",
            OLDEST_KERNEL.0,
            OLDEST_KERNEL.1,
            ARCHITECTURES.join(" or ")
        );
        Check::bad(NAME, found, next).with(details)
    } else if unfit > 0 {
        Check::note(NAME, all, "pods join only on Linux nodes that are ready").with(details)
    } else {
        Check::good(NAME, all)
    }
}

fn machine(node: &Node) -> Option<(Grade, String)> {
    let name = &node.name;
    if node.os != "linux" {
        return Some((
            Grade::Note,
            format!("{name}: runs {}, its pods cannot join", node.os),
        ));
    }
    if !ARCHITECTURES.contains(&node.architecture.as_str()) {
        let what = format!("{name}: no image is made for {}", node.architecture);
        return Some((Grade::Bad, what));
    }
    let (major, minor) = OLDEST_KERNEL;
    match kernel(&node.kernel) {
        Some(version) if version < OLDEST_KERNEL => Some((
            Grade::Bad,
            format!(
                "{name}: Linux {} is older than {major}.{minor}",
                node.kernel
            ),
        )),
        Some(_) if node.ready => None,
        Some(_) => Some((
            Grade::Note,
            format!("{name}: Kubernetes says that it is not ready"),
        )),
        None => Some((
            Grade::Note,
            format!(
                "{name}: its kernel's version {:?} cannot be read",
                node.kernel
            ),
        )),
    }
}

/// Major and minor of `6.1.0-18-amd64` and `5.15+`.
fn kernel(version: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        text.get(..end)?.parse().ok()
    };
    let (major, rest) = version.split_once('.')?;
    Some((number(major)?, number(rest)?))
}

/// Container runtimes.
pub(super) fn runtimes(nodes: &Read<Vec<Node>>) -> Check {
    const NAME: &str = "runtimes";
    let nodes = nodes.as_deref().unwrap_or_default();
    let linux = || nodes.iter().filter(|node| node.os == "linux");
    let known = |node: &&Node| RUNTIMES.iter().any(|name| node.runtime.starts_with(name));
    let found = each(linux(), |node| node.runtime.replace("://", " "));
    let details: Vec<_> = linux()
        .filter(|node| !known(node))
        .map(|node| format!("{}: {}", node.name, node.runtime))
        .collect();
    if details.is_empty() {
        Check::good(NAME, found)
    } else {
        let next =
            "Ambit needs a runtime that reads CNI configuration lists; containerd and CRI-O do";
        Check::note(NAME, "not tested with every runtime here", next).with(details)
    }
}

/// What Cilium must be told, where it is the network: <https://docs.cilium.io> "Integration with Istio".
pub(super) fn cilium(settings: &BTreeMap<String, String>) -> Check {
    const NAME: &str = "cilium";
    let is = |key: &str, value: &str| settings.get(key).is_some_and(|set| set == value);
    let mut details = Vec::new();
    if !is("cni-exclusive", "false") {
        details.push(
            "it takes other plugins out of the CNI chain: set cni.exclusive=false".to_owned(),
        );
    }
    let replaces = is("kube-proxy-replacement", "true") || is("kube-proxy-replacement", "strict");
    if replaces && !is("bpf-lb-sock-hostns-only", "true") {
        details.push(
            "it resolves Services at the socket, before the mesh sees them: set socketLB.hostNamespaceOnly=true".to_owned(),
        );
    }
    if is("enable-bpf-masquerade", "true") {
        details.push("it may drop kubelet's probes of captured pods, which come from 169.254.7.127: set bpf.masquerade=false".to_owned());
    }
    if details.is_empty() {
        return Check::good(NAME, "it lets the mesh work");
    }
    let next = "change these values of its Helm chart and restart its pods";
    Check::bad(NAME, "its settings keep the mesh from working", next).with(details)
}

/// The different values of all nodes, with how many have each where they differ.
fn each<'a>(nodes: impl IntoIterator<Item = &'a Node>, value: impl Fn(&Node) -> String) -> String {
    let values: Vec<_> = nodes.into_iter().map(value).collect();
    let different: BTreeSet<_> = values.iter().collect();
    let with_count = |one: &&String| {
        let times = values.iter().filter(|value| value == one).count();
        format!("{one} ({times})")
    };
    match different.len() {
        0 => "none".to_owned(),
        1 => values.first().cloned().unwrap_or_default(),
        _ => different
            .iter()
            .map(with_count)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// `1 node`, `2 nodes`.
pub(super) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests;
