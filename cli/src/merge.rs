//! The documents of all replicas of the controller, as one.
//!
//! Called by `status.rs` and the checks. Pure. Every replica watches the same objects; a proxy and an agent speak to one
//! of them, so that each knows some proxies, reports and certificates that the others do not.

use std::collections::BTreeMap;

use ambit_core::status::{
    CaptureState, IdentityStatus, MeshStatus, NodeStatus, PodStatus, Problem, ProxyStatus,
    ReplicaStatus,
};

/// What one replica answered: its pod's name, and the document or why there is none.
pub(crate) type Answer = (String, Result<MeshStatus, String>);

/// Merges the answers. A replica that did not answer is named in `replicas`.
pub(crate) fn merge(answers: Vec<Answer>) -> MeshStatus {
    let mut merged = Merged::default();
    let mut replicas = Vec::new();
    for (name, answer) in answers {
        let (version, unanswered) = match answer {
            Ok(status) => {
                let version = status.controller_version.clone();
                merged.add(&name, status);
                (version, None)
            }
            Err(why) => (String::new(), Some(why)),
        };
        replicas.push(ReplicaStatus {
            name,
            version,
            unanswered,
        });
    }
    replicas.sort_by(|a, b| a.name.cmp(&b.name));
    merged.finish(replicas)
}

#[derive(Default)]
struct Merged {
    trust_domains: Vec<String>,
    root_not_after: Option<u64>,
    nodes: BTreeMap<String, NodeStatus>,
    pods: BTreeMap<(String, String), (String, PodStatus)>,
    identities: BTreeMap<(String, String), IdentityStatus>,
    proxies: BTreeMap<(String, String), ProxyStatus>,
    problems: Vec<Problem>,
}

impl Merged {
    fn add(&mut self, replica: &str, status: MeshStatus) {
        if !self.trust_domains.contains(&status.trust_domain) {
            self.trust_domains.push(status.trust_domain);
        }
        let roots = [self.root_not_after, status.root_not_after];
        self.root_not_after = roots.into_iter().flatten().min();
        status.nodes.into_iter().for_each(|node| self.node(node));
        for pod in status.pods {
            self.pod(replica, pod);
        }
        for identity in status.identities {
            let key = (identity.identity.clone(), identity.node.clone());
            let known = self
                .identities
                .entry(key)
                .or_insert_with(|| identity.clone());
            known.not_after = known.not_after.max(identity.not_after);
        }
        for proxy in status.proxies {
            self.proxy(proxy);
        }
        for problem in status.problems {
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
    }

    /// Connected to one is connected; the last report counts.
    fn node(&mut self, node: NodeStatus) {
        let known = self
            .nodes
            .entry(node.name.clone())
            .or_insert_with(|| node.clone());
        known.connected |= node.connected;
        if node.reported_at > known.reported_at {
            known.reported_at = node.reported_at;
            known.pods_served = node.pods_served;
        }
    }

    /// All see the same pods; where they differ, the one that says less of the pod's safety counts, and it is told.
    fn pod(&mut self, replica: &str, pod: PodStatus) {
        let key = (pod.namespace.clone(), pod.name.clone());
        let Some((first, known)) = self.pods.get_mut(&key) else {
            self.pods.insert(key, (replica.to_owned(), pod));
            return;
        };
        if known.capture == pod.capture {
            return;
        }
        self.problems.push(Problem {
            place: format!("Pod {}/{}", pod.namespace, pod.name),
            what: format!(
                "the replicas differ: {} says {}, {replica} says {}; ask again, and if it stays, read their logs",
                first, known.capture, pod.capture
            ),
        });
        if caution(pod.capture) > caution(known.capture) {
            (*first, *known) = (replica.to_owned(), pod);
        }
    }

    /// A proxy has its stream to one replica at a time; what the others know of it is old.
    fn proxy(&mut self, proxy: ProxyStatus) {
        let key = (proxy.node.clone(), proxy.id.clone());
        match self.proxies.get_mut(&key) {
            Some(known) if known.connected || !proxy.connected => {}
            Some(known) => *known = proxy,
            None => drop(self.proxies.insert(key, proxy)),
        }
    }

    fn finish(mut self, replicas: Vec<ReplicaStatus>) -> MeshStatus {
        let several = |texts: &mut Vec<String>| {
            texts.sort();
            texts.dedup();
            texts.join(", ")
        };
        let mut versions: Vec<_> = replicas
            .iter()
            .filter(|replica| replica.unanswered.is_none())
            .map(|replica| replica.version.clone())
            .collect();
        for (what, differ) in [
            ("trust domains", self.trust_domains.len() > 1),
            (
                "versions",
                versions.iter().any(|v| Some(v) != versions.first()),
            ),
        ] {
            if differ {
                self.problems.push(Problem {
                    place: "the controller's replicas".to_owned(),
                    what: format!(
                        "they have different {what}; wait for the roll-out to end, or end it"
                    ),
                });
            }
        }
        // A stream that has ended on one replica and the next one's of the same node are one proxy's.
        let connected: Vec<_> = self
            .proxies
            .values()
            .filter(|proxy| proxy.connected)
            .map(|proxy| proxy.node.clone())
            .collect();
        self.proxies
            .retain(|_, proxy| proxy.connected || !connected.contains(&proxy.node));
        MeshStatus {
            controller_version: several(&mut versions),
            trust_domain: several(&mut self.trust_domains),
            root_not_after: self.root_not_after,
            replicas,
            nodes: self.nodes.into_values().collect(),
            pods: self.pods.into_values().map(|(_, pod)| pod).collect(),
            identities: self.identities.into_values().collect(),
            proxies: self.proxies.into_values().collect(),
            problems: self.problems,
        }
    }
}

/// How much an operator should care about a state: the higher one wins where replicas differ.
fn caution(capture: CaptureState) -> u8 {
    match capture {
        CaptureState::Captured => 0,
        CaptureState::Out => 1,
        CaptureState::Leaving => 2,
        CaptureState::Pending => 3,
        CaptureState::Unknown => 4,
    }
}

#[cfg(test)]
mod tests;
