//! Which pods are captured: only those may be announced as such.
//!
//! With Kubernetes a pod's own annotation says so, which every replica sees and no restart forgets. Without it, the nodes'
//! proxies say which pods they serve.

use std::collections::BTreeMap;

use ambit_core::enrollment::{CAPTURED_BY, CAPTURED_BY_AMBIT, REDIRECTION, REDIRECTION_ENABLED};
use ambit_core::names::{NamespacedName, Text};

use super::pods::Pod;
use super::{Dirty, Index, Source};
use crate::watch::ServedPods;

/// Who is believed about a pod's capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureSource {
    /// The proxy of the pod's node, in its reports.
    Reports,
    /// The pod's annotations, which our node agent writes.
    Annotations,
}

/// What one node's proxy said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// The pods that it serves, with their uids.
    pub pods: BTreeMap<NamespacedName, Text>,
}

impl Index {
    /// The reports, by node.
    pub fn reports(&self) -> impl Iterator<Item = (&Text, &Report)> {
        self.served.iter()
    }

    /// What a node's proxy said last.
    pub fn report(&self, node: &str) -> Option<&Report> {
        self.served.get(node)
    }

    /// True when the pod is captured, as far as those say whom we believe.
    pub fn is_captured(&self, pod: &Pod) -> bool {
        match self.capture {
            CaptureSource::Reports => self.is_served(pod),
            CaptureSource::Annotations => {
                says(pod, REDIRECTION, REDIRECTION_ENABLED)
                    && says(pod, CAPTURED_BY, CAPTURED_BY_AMBIT)
            }
        }
    }

    /// True when the proxy of the pod's own node serves exactly this pod.
    fn is_served(&self, pod: &Pod) -> bool {
        let report = self.report(&pod.node).filter(|_| !pod.node.is_empty());
        let uid = report.and_then(|report| report.pods.get(&pod.name));
        uid.is_some_and(|uid| **uid == *pod.uid.as_str())
    }

    pub(super) fn set_served(&mut self, served: ServedPods) -> Dirty {
        let pods: BTreeMap<_, _> = served
            .pods
            .into_iter()
            .map(|pod| (pod.name, pod.uid))
            .collect();
        let now = Report {
            at: served.at,
            pods,
        };
        let before = self.served.insert(served.node, now.clone());
        let before = before.map(|report| report.pods).unwrap_or_default();
        let differs = |name: &&NamespacedName| before.get(*name) != now.pods.get(*name);
        let names = before.keys().chain(now.pods.keys()).filter(differs);
        names.map(|name| Source::Pod(name.clone())).collect()
    }
}

fn says(pod: &Pod, annotation: &str, value: &str) -> bool {
    let said = pod.annotations.get(annotation);
    said.is_some_and(|said| said == value)
}
