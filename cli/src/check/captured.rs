//! Whether the pods that are in the mesh are captured, and what the controllers cannot serve.
//!
//! Pure. Called by `installed.rs`.

use std::collections::BTreeSet;

use ambit_core::checks::Check;
use ambit_core::enrollment::Enrollment;
use ambit_core::status::{CaptureState, MeshStatus, PodStatus};

use super::facts::{AgentAnswer, Facts, HandledPod};
use super::nodes::count;
use super::prerequisites::asks;

/// More lines than a person reads; `ambit status` has them all.
const LINES: usize = 20;

/// All checks of pods.
pub(super) fn all(facts: &Facts, status: &MeshStatus, agents: &[AgentAnswer]) -> Vec<Check> {
    let mut checks = vec![captured(status, agents)];
    checks.extend(left_out(facts, status));
    checks.push(problems(status));
    checks
}

fn captured(status: &MeshStatus, agents: &[AgentAnswer]) -> Check {
    const NAME: &str = "captured";
    let of_state = |state| status.pods.iter().filter(move |pod| pod.capture == state);
    let (pending, is) = (
        of_state(CaptureState::Pending).count(),
        of_state(CaptureState::Captured).count(),
    );
    let enrolled = pending + is;
    let handled = |pod: &PodStatus| find(agents, &pod.namespace, &pod.name);
    let waiting = of_state(CaptureState::Pending).map(|pod| {
        format!(
            "{}/{} on {}: {}",
            pod.namespace,
            pod.name,
            pod.node,
            why(pod, agents)
        )
    });
    let held = of_state(CaptureState::Captured).filter_map(|pod| {
        let line = handled(pod).filter(|line| line.state == "held")?;
        Some(format!(
            "{}/{} on {}: new connections are refused: {}",
            pod.namespace, pod.name, pod.node, line.why
        ))
    });
    let details: Vec<_> = waiting.chain(held).collect();
    if enrolled == 0 {
        let next =
            "kubectl annotate namespace NAME ambit.mesh/dataplane-mode=ambient (docs/join.md)";
        return Check::note(NAME, "no pod is in the mesh yet", next);
    }
    if details.is_empty() {
        return Check::good(NAME, format!("all {} of the mesh", count(enrolled, "pod")));
    }
    let found = format!(
        "{} of {} of the mesh are not served",
        details.len(),
        count(enrolled, "pod")
    );
    let next = "docs/troubleshoot.md, A pod is not captured; the log of the agent on that node has every attempt";
    Check::bad(NAME, found, next).with(cut(details))
}

/// Why a pod is not captured: the agent's words, or what keeps the agent from having any.
fn why(pod: &PodStatus, agents: &[AgentAnswer]) -> String {
    if pod.node.is_empty() {
        return "it is not scheduled to a node yet".to_owned();
    }
    if let Some(line) = find(agents, &pod.namespace, &pod.name) {
        return match (&*line.state, &*line.why) {
            ("captured", _) => {
                "its agent says captured; the controllers have not heard yet".to_owned()
            }
            (state, "") => state.to_owned(),
            (state, why) => format!("{state}: {why}"),
        };
    }
    match agents.iter().find(|agent| agent.node == pod.node) {
        None => "its node has no agent".to_owned(),
        Some(agent) if agent.says.is_err() => "its node's agent does not answer".to_owned(),
        Some(_) if pod.addresses.is_empty() => "it has no address yet".to_owned(),
        Some(_) => "its node's agent has not taken it up yet".to_owned(),
    }
}

fn find<'a>(agents: &'a [AgentAnswer], namespace: &str, name: &str) -> Option<&'a HandledPod> {
    let says = agents.iter().filter_map(|agent| agent.says.as_ref().ok());
    let mut pods = says.flat_map(|says| &says.pods);
    pods.find(|pod| pod.namespace == namespace && pod.name == name)
}

/// Pods of namespaces that have joined which stay out for a reason of their own.
fn left_out(facts: &Facts, status: &MeshStatus) -> Option<Check> {
    let namespaces = facts.namespaces.as_deref().unwrap_or_default();
    let joined: BTreeSet<_> = namespaces
        .iter()
        .filter(|n| asks(n))
        .map(|n| &*n.name)
        .collect();
    let wanted = [Enrollment::PodOptsOut, Enrollment::Ended].map(Enrollment::why);
    let out = status.pods.iter().filter(|pod| {
        pod.capture == CaptureState::Out
            && joined.contains(&*pod.namespace)
            && !wanted.contains(&&*pod.why)
    });
    let details: Vec<_> = out
        .map(|pod| format!("{}/{}: {}", pod.namespace, pod.name, pod.why))
        .collect();
    if details.is_empty() {
        return None;
    }
    let found = format!(
        "{} of namespaces that have joined",
        count(details.len(), "pod")
    );
    let next = "their connections are in clear; policies that demand mutual TLS refuse them";
    Some(Check::note("left-out", found, next).with(cut(details)))
}

/// What the controllers cannot serve.
fn problems(status: &MeshStatus) -> Check {
    const NAME: &str = "objects";
    let details = status
        .problems
        .iter()
        .map(|one| format!("{}: {}", one.place, one.what));
    let details: Vec<_> = details.collect();
    if details.is_empty() {
        return Check::good(NAME, "the controllers serve everything that they read");
    }
    let found = format!("{} for a person to solve", count(details.len(), "matter"));
    let next = "correct these; until then what they select is refused, never let through";
    Check::bad(NAME, found, next).with(cut(details))
}

/// The first lines, and how many more there are.
fn cut(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(LINES);
    if more > 0 {
        lines.truncate(LINES);
        lines.push(format!("and {more} more; `ambit status` has them all"));
    }
    lines
}

#[cfg(test)]
mod tests;
