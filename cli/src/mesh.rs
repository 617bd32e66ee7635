//! The programs of the mesh in the cluster: which pods they are, and how these are.
//!
//! Pure: Kubernetes objects go in, plain values come out. Made by `cluster.rs`, read by `status.rs` and the checks.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Label that all pods of the mesh carry, and its value.
pub(crate) const SELECTOR: &str = "app.kubernetes.io/part-of=ambit";
/// Label that says which program a pod runs.
const COMPONENT: &str = "app.kubernetes.io/component";
/// Label that says which version.
const VERSION: &str = "app.kubernetes.io/version";

/// A program of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Controller,
    Agent,
    Ztunnel,
}

/// One pod of the mesh's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeshPod {
    pub(crate) name: String,
    pub(crate) program: Program,
    /// Empty while it is not scheduled.
    pub(crate) node: String,
    /// As its label says; empty without one.
    pub(crate) version: String,
    pub(crate) ready: bool,
    pub(crate) deleting: bool,
    /// Why it is not ready, in the kubelet's or the scheduler's words.
    pub(crate) why: String,
}

impl Program {
    const ALL: [Self; 3] = [Self::Controller, Self::Agent, Self::Ztunnel];

    /// The value of the label.
    pub(crate) const fn component(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// The program that pods with these labels run.
    pub(crate) fn of(labels: &BTreeMap<String, String>) -> Option<Self> {
        let component = labels.get(COMPONENT)?;
        Self::ALL
            .into_iter()
            .find(|program| program.component() == component)
    }
}

impl MeshPod {
    /// The pod as a program of the mesh; none when it is another one's.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let labels = pod.metadata.labels.as_ref()?;
        let program = Program::of(labels)?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let ready = condition(pod, "Ready").is_some_and(|(is_true, _why)| is_true);
        Some(Self {
            name: pod.metadata.name.clone()?,
            program,
            node: node.unwrap_or_default(),
            version: labels.get(VERSION).cloned().unwrap_or_default(),
            ready,
            deleting: pod.metadata.deletion_timestamp.is_some(),
            why: if ready { String::new() } else { why(pod) },
        })
    }
}

/// The most telling reason why a pod is not ready.
fn why(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref());
    let of_containers = containers.unwrap_or_default().iter().find_map(of_container);
    let of_scheduler = || condition(pod, "PodScheduled").filter(|(is_true, _why)| !is_true);
    let of_kubelet = || condition(pod, "Ready").filter(|(_, why)| !why.is_empty());
    let phase = || status.and_then(|status| status.phase.clone());
    of_containers
        .or_else(|| of_scheduler().map(|(_, why)| why))
        .or_else(|| of_kubelet().map(|(_, why)| why))
        .or_else(phase)
        .unwrap_or_else(|| "nothing is said about it yet".to_owned())
}

fn of_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let last = container.last_state.as_ref();
        let ended = last.and_then(|state| state.terminated.as_ref());
        let code = ended.map(|ended| format!(", it ended with code {} before", ended.exit_code));
        return Some(format!(
            "container {} waits: {}{}",
            container.name,
            said(waiting.reason.as_deref(), waiting.message.as_deref()),
            code.unwrap_or_default()
        ));
    }
    let ended = state.terminated.as_ref()?;
    Some(format!(
        "container {} ended with code {}",
        container.name, ended.exit_code
    ))
}

/// Whether a condition of the pod is true, and why not.
fn condition(pod: &Pod, kind: &str) -> Option<(bool, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition = conditions.iter().find(|c| c.type_ == kind)?;
    let why = said(condition.reason.as_deref(), condition.message.as_deref());
    Some((condition.status == "True", why))
}

/// Reason and message as one phrase; a message that spans lines is cut to its first.
fn said(reason: Option<&str>, message: Option<&str>) -> String {
    let message = message.and_then(|m| m.lines().next()).unwrap_or_default();
    match (reason.unwrap_or_default(), message) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "labels": {
                "app.kubernetes.io/component": "agent", "app.kubernetes.io/version": "0.1.0" } },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_read_by_its_labels() {
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        let read = MeshPod::of(&pod(ready)).unwrap();
        assert_eq!(
            (read.program, &*read.node, &*read.version, read.ready),
            (Program::Agent, "n1", "0.1.0", true)
        );
        assert_eq!(read.why, "");
        let mut other = pod(json!({}));
        other.metadata.labels = None;
        assert_eq!(MeshPod::of(&other), None);
    }

    #[test]
    fn the_most_telling_reason_is_told() {
        let cases = [
            (
                json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
                    "reason": "Unschedulable", "message": "0/2 nodes are available" }] }),
                "Unschedulable: 0/2 nodes are available",
            ),
            (
                json!({ "conditions": [{ "type": "Ready", "status": "False", "reason": "ContainersNotReady" }],
                    "containerStatuses": [{ "name": "agent", "image": "", "imageID": "", "ready": false,
                        "restartCount": 3, "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                        "lastState": { "terminated": { "exitCode": 2 } } }] }),
                "container agent waits: CrashLoopBackOff, it ended with code 2 before",
            ),
            (
                json!({ "conditions": [{ "type": "Ready", "status": "False", "reason": "ContainersNotReady",
                    "message": "containers with unready status: [agent]\nmore" }] }),
                "ContainersNotReady: containers with unready status: [agent]",
            ),
            (json!({ "phase": "Pending" }), "Pending"),
            (json!({}), "nothing is said about it yet"),
        ];
        for (status, why) in cases {
            let read = MeshPod::of(&pod(status.clone())).unwrap();
            assert_eq!((read.ready, &*read.why), (false, why), "{status}");
        }
    }
}
