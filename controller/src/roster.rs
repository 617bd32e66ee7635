//! Who runs where, and how far capture is: what the CA may sign and what the overview shows. Pure.
//!
//! Made by the publisher after each batch; read as an immutable value behind a `watch`.

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::identity::SpiffeId;
use ambit_core::names::Text;
use ambit_core::status::{CaptureState, PodStatus, Problem};

use crate::index::Index;
use crate::index::pods::Pod;
use crate::index::served::CaptureSource;

/// What a node's proxy said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// How many pods it serves.
    pub pods: usize,
}

/// Who runs where.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// Identities of enrolled pods, by their node.
    identities: BTreeMap<Text, BTreeSet<SpiffeId>>,
    /// Every pod, by namespace and name.
    pub pods: Vec<PodStatus>,
    /// What the nodes said, by node.
    pub reports: BTreeMap<Text, NodeReport>,
    /// What is wrong in the sources.
    pub problems: Vec<Problem>,
}

impl Roster {
    /// Reads the index; `problems` is what is known to be wrong.
    pub fn of(index: &Index, problems: Vec<Problem>) -> Self {
        let mut roster = Self {
            problems,
            ..Self::default()
        };
        for pod in index.pods() {
            let enrolled = index.enrollment(pod).is_some_and(|e| e.is_enrolled());
            if enrolled && !pod.node.is_empty() {
                let of_node = roster.identities.entry(Text::clone(&pod.node)).or_default();
                of_node.insert(index.identity(pod));
            }
            roster.pods.push(status(index, pod));
        }
        for (node, report) in index.reports() {
            let report = NodeReport {
                at: report.at,
                pods: report.pods.len(),
            };
            roster.reports.insert(Text::clone(node), report);
        }
        roster
    }

    /// True when an enrolled pod with this identity runs on the node.
    pub fn runs(&self, node: &str, identity: &SpiffeId) -> bool {
        self.identities
            .get(node)
            .is_some_and(|identities| identities.contains(identity))
    }
}

fn status(index: &Index, pod: &Pod) -> PodStatus {
    let (capture, why) = capture(index, pod);
    PodStatus {
        namespace: pod.name.namespace.to_string(),
        name: pod.name.name.to_string(),
        node: pod.node.to_string(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        identity: index.identity(pod).to_string(),
        capture,
        why,
    }
}

fn capture(index: &Index, pod: &Pod) -> (CaptureState, String) {
    let Some(enrollment) = index.enrollment(pod) else {
        return (CaptureState::Out, "its namespace does not exist".to_owned());
    };
    let why = enrollment.why();
    match (enrollment.is_enrolled(), index.is_captured(pod)) {
        (true, true) => (CaptureState::Captured, why.to_owned()),
        (true, false) => (
            CaptureState::Pending,
            format!("{why}; {}", waits_for(index, pod)),
        ),
        (false, true) => (CaptureState::Leaving, why.to_owned()),
        (false, false) => (CaptureState::Out, why.to_owned()),
    }
}

/// What has to happen before a pod of the mesh is captured.
fn waits_for(index: &Index, pod: &Pod) -> String {
    let node = &pod.node;
    if node.is_empty() {
        return "it is not on a node yet".to_owned();
    }
    if index.capture == CaptureSource::Annotations {
        return format!("the agent of node {node} has not captured it yet");
    }
    let Some(report) = index.report(node) else {
        return format!("the proxy of node {node} has never reported");
    };
    match report.pods.get(&pod.name) {
        Some(_) => format!("node {node} serves another pod of this name (its uid differs)"),
        None => format!("the proxy of node {node} does not serve it yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{index, served};
    use crate::watch::Event;

    const PODS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: captured, namespace: a}, spec: {nodeName: n1, serviceAccountName: x}}
---
{apiVersion: v1, kind: Pod, metadata: {name: elsewhere, namespace: a}, spec: {nodeName: n2, serviceAccountName: y}}
---
{apiVersion: v1, kind: Pod, metadata: {name: homeless, namespace: a}, spec: {serviceAccountName: z}}
---
{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: a}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: leaving, namespace: a, labels: {istio.io/dataplane-mode: none}}, spec: {nodeName: n1, serviceAccountName: l}}
---
{apiVersion: v1, kind: Pod, metadata: {name: lost, namespace: gone}, spec: {nodeName: n1, serviceAccountName: w}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: a, uid: u-2}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: out, namespace: a, labels: {istio.io/dataplane-mode: none}}, spec: {nodeName: n1, serviceAccountName: o}}
";

    fn roster() -> Roster {
        let mut index = index(PODS);
        index.apply(Event::Served(served(
            "n1",
            &["a/captured", "a/leaving", "a/other"],
        )));
        Roster::of(&index, Vec::new())
    }

    #[test]
    fn every_pod_says_how_far_its_capture_is() {
        let roster = roster();
        let told: Vec<_> = roster
            .pods
            .iter()
            .map(|p| (&*p.name, p.capture, &*p.why))
            .collect();
        let by_ns = "the namespace asks for it";
        let expected = [
            ("captured", CaptureState::Captured, by_ns.to_owned()),
            (
                "elsewhere",
                CaptureState::Pending,
                format!("{by_ns}; the proxy of node n2 has never reported"),
            ),
            (
                "homeless",
                CaptureState::Pending,
                format!("{by_ns}; it is not on a node yet"),
            ),
            (
                "late",
                CaptureState::Pending,
                format!("{by_ns}; the proxy of node n1 does not serve it yet"),
            ),
            (
                "leaving",
                CaptureState::Leaving,
                "the pod says none".to_owned(),
            ),
            (
                "other",
                CaptureState::Pending,
                format!("{by_ns}; node n1 serves another pod of this name (its uid differs)"),
            ),
            ("out", CaptureState::Out, "the pod says none".to_owned()),
            (
                "lost",
                CaptureState::Out,
                "its namespace does not exist".to_owned(),
            ),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(n, c, w)| (*n, *c, w.as_str()))
            .collect();
        assert_eq!(told, expected);
        assert_eq!(roster.reports["n1"], NodeReport { at: 7, pods: 3 });
    }

    #[test]
    fn pods_of_excluded_namespaces_stay_out_and_get_no_certificate() {
        let index = index(
            "
{apiVersion: v1, kind: Namespace, metadata: {name: kept-out, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: kept-out}, spec: {nodeName: n1, serviceAccountName: x}}
",
        );
        let roster = Roster::of(&index, Vec::new());
        assert_eq!(roster.pods[0].capture, CaptureState::Out);
        let identity = SpiffeId::new("cluster.local", "kept-out", "x");
        assert!(!roster.runs("n1", &identity));
    }

    #[test]
    fn with_annotations_a_pod_is_captured_when_our_agent_says_so_and_no_report_counts() {
        use ambit_core::enrollment::{CAPTURED_BY, CAPTURED_BY_AMBIT, REDIRECTION};
        let cases = [
            ("enabled", CAPTURED_BY_AMBIT, CaptureState::Captured),
            ("pending", CAPTURED_BY_AMBIT, CaptureState::Pending),
            ("", CAPTURED_BY_AMBIT, CaptureState::Pending),
        ];
        for (redirection, by, expected) in cases {
            let mut index = Index::new(crate::testing::mesh(), CaptureSource::Annotations);
            let pod = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: a, annotations: {{{REDIRECTION}: '{redirection}', {CAPTURED_BY}: {by}}}}}, spec: {{nodeName: n1}}}}"
            );
            let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}}";
            crate::testing::apply(&mut index, &format!("{namespace}\n---\n{pod}\n"));
            index.apply(Event::Served(served("n1", &["a/p"])));
            let roster = Roster::of(&index, Vec::new());
            assert_eq!(roster.pods[0].capture, expected, "{redirection}");
        }
    }

    #[test]
    fn only_identities_of_enrolled_pods_of_the_node_run_there() {
        let roster = roster();
        let identity =
            |namespace: &str, account: &str| SpiffeId::new("cluster.local", namespace, account);
        let cases = [
            ("n1", identity("a", "x"), true),
            ("n1", identity("a", "default"), true),
            ("n2", identity("a", "y"), true),
            ("n1", identity("a", "y"), false),
            ("n2", identity("a", "x"), false),
            ("n1", identity("a", "o"), false),
            ("n1", identity("a", "l"), false),
            ("n1", identity("gone", "w"), false),
            ("", identity("a", "z"), false),
            ("n1", SpiffeId::new("example.org", "a", "x"), false),
        ];
        for (node, identity, expected) in cases {
            assert_eq!(roster.runs(node, &identity), expected, "{node} {identity}");
        }
    }
}
