//! Prints the mesh's status for a person: who answered and what is wrong first, then nodes, pods, identities and proxies.
//!
//! Pure: the document and the time go in, text comes out.

use ambit_core::status::{MeshStatus, ProxyStatus, TypeStatus};
use comfy_table::{Table, presets};

/// Renders the whole report; `now` is in seconds since the epoch.
pub(crate) fn render(status: &MeshStatus, now: u64) -> String {
    let mut sections = vec![headline(status, now)];
    if !status.replicas.is_empty() {
        sections.push(replicas(status));
    }
    if !status.problems.is_empty() {
        let rows = status
            .problems
            .iter()
            .map(|p| [p.place.clone(), p.what.clone()]);
        sections.push(section("PROBLEMS", ["where", "what"], rows));
    }
    sections.push(nodes(status, now));
    sections.push(pods(status));
    sections.push(identities(status, now));
    sections.push(proxies(status));
    sections.join("\n\n")
}

fn headline(status: &MeshStatus, now: u64) -> String {
    let root = status
        .root_not_after
        .map(|at| format!(", the root {}", ending(at, now)));
    format!(
        "controller {}, trust domain {}{}",
        status.controller_version,
        status.trust_domain,
        root.unwrap_or_default()
    )
}

fn replicas(status: &MeshStatus) -> String {
    let rows = status.replicas.iter().map(|replica| {
        let state = match &replica.unanswered {
            None => "answered".to_owned(),
            Some(why) => format!("no answer: {why}"),
        };
        let version = match &*replica.version {
            "" => "–".to_owned(),
            version => version.to_owned(),
        };
        [replica.name.clone(), version, state]
    });
    section("CONTROLLERS", ["replica", "version", "state"], rows)
}

fn nodes(status: &MeshStatus, now: u64) -> String {
    let rows = status.nodes.iter().map(|node| {
        [
            node.name.clone(),
            if node.connected {
                "connected"
            } else {
                "not connected"
            }
            .to_owned(),
            node.pods_served.to_string(),
            node.reported_at.map_or_else(
                || "never".to_owned(),
                |at| format!("{} ago", span(now.saturating_sub(at))),
            ),
        ]
    });
    section(
        "NODES",
        ["node", "proxy", "pods served", "last report"],
        rows,
    )
}

fn pods(status: &MeshStatus) -> String {
    let rows = status.pods.iter().map(|pod| {
        [
            format!("{}/{}", pod.namespace, pod.name),
            pod.node.clone(),
            pod.addresses.join(" "),
            pod.capture.to_string(),
            pod.why.clone(),
        ]
    });
    section("PODS", ["pod", "node", "addresses", "capture", "why"], rows)
}

fn identities(status: &MeshStatus, now: u64) -> String {
    let rows = status.identities.iter().map(|identity| {
        let certificate = ending(identity.not_after, now);
        [
            identity.identity.clone(),
            identity.node.clone(),
            certificate,
        ]
    });
    section("IDENTITIES", ["identity", "node", "certificate"], rows)
}

fn proxies(status: &MeshStatus) -> String {
    let rows = status
        .proxies
        .iter()
        .flat_map(|proxy| proxy.types.iter().map(move |held| proxy_row(proxy, held)));
    section(
        "PROXIES",
        ["node", "type", "acknowledged", "current", "state"],
        rows,
    )
}

fn proxy_row(proxy: &ProxyStatus, held: &TypeStatus) -> [String; 5] {
    let state = if !held.rejected.is_empty() {
        let named: Vec<_> = held
            .rejected
            .iter()
            .map(|r| format!("{}: {}", r.name, r.cause))
            .collect();
        format!("rejected {}", named.join("; "))
    } else if !proxy.connected {
        "not connected".to_owned()
    } else if held.is_in_sync() {
        "in sync".to_owned()
    } else {
        "behind".to_owned()
    };
    let kind = held.type_url.rsplit('.').next().unwrap_or(&held.type_url);
    [
        proxy.node.clone(),
        kind.to_owned(),
        held.acknowledged.clone().unwrap_or_else(|| "–".to_owned()),
        held.current.clone(),
        state,
    ]
}

fn section<const N: usize>(
    title: &str,
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    if table.row_iter().next().is_none() {
        return format!("{title}\n none");
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    format!("{title}\n{}", lines.join("\n"))
}

/// When a certificate ends.
pub(crate) fn ending(not_after: u64, now: u64) -> String {
    match not_after.checked_sub(now) {
        Some(left) if left > 0 => format!("ends in {}", span(left)),
        _ => "has expired".to_owned(),
    }
}

/// A span of seconds in its two largest units.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use ambit_core::status::{
        CaptureState, IdentityStatus, NodeStatus, PodStatus, Problem, Rejection, ReplicaStatus,
    };

    use super::*;

    fn sample() -> MeshStatus {
        let replica = |name: &str, version: &str, why: Option<&str>| ReplicaStatus {
            name: name.into(),
            version: version.into(),
            unanswered: why.map(str::to_owned),
        };
        MeshStatus {
            controller_version: "0.1.0".into(),
            trust_domain: "cluster.local".into(),
            root_not_after: Some(1000 + 86_400 * 3650),
            replicas: vec![
                replica("c-1", "0.1.0", None),
                replica("c-2", "", Some("it waits")),
            ],
            nodes: vec![NodeStatus {
                name: "n1".into(),
                connected: true,
                reported_at: Some(940),
                pods_served: 2,
            }],
            pods: vec![PodStatus {
                namespace: "a".into(),
                name: "p".into(),
                node: "n1".into(),
                addresses: vec!["192.0.2.1".into(), "2001:db8::1".into()],
                capture: CaptureState::Captured,
                ..PodStatus::default()
            }],
            identities: vec![
                IdentityStatus {
                    identity: "spiffe://x".into(),
                    node: "n1".into(),
                    not_after: 1000 + 3600 * 23 + 60,
                },
                IdentityStatus {
                    identity: "spiffe://y".into(),
                    node: "n1".into(),
                    not_after: 999,
                },
            ],
            proxies: sample_proxies(),
            problems: vec![Problem {
                place: "x.yaml:3".into(),
                what: "broken".into(),
            }],
        }
    }

    fn sample_proxies() -> Vec<ProxyStatus> {
        let held = |acknowledged: Option<&str>, rejected| TypeStatus {
            type_url: "type.googleapis.com/istio.workload.Address".into(),
            current: "v2".into(),
            acknowledged: acknowledged.map(str::to_owned),
            rejected,
        };
        let proxy = |node: &str, connected, held| ProxyStatus {
            id: String::new(),
            node: node.into(),
            connected,
            types: vec![held],
        };
        let refused = vec![Rejection {
            name: "a/b".into(),
            cause: "no".into(),
        }];
        vec![
            proxy("n1", true, held(Some("v2"), vec![])),
            proxy("n2", true, held(Some("v1"), vec![])),
            proxy("n3", true, held(None, refused)),
            proxy("n4", false, held(Some("v2"), vec![])),
        ]
    }

    fn line_with<'a>(report: &'a str, word: &str) -> &'a str {
        report
            .lines()
            .find(|l| l.contains(word))
            .unwrap_or_else(|| panic!("no line with {word} in\n{report}"))
    }

    #[test]
    fn every_fact_is_in_the_report() {
        let report = render(&sample(), 1000);
        assert!(report.starts_with(
            "controller 0.1.0, trust domain cluster.local, the root ends in 3650 d 0 h\n"
        ));
        assert!(line_with(&report, "c-1").contains("0.1.0    answered"));
        assert!(line_with(&report, "c-2").contains("no answer: it waits"));
        assert!(
            line_with(&report, "n1    connected").contains("1 min 0 s ago"),
            "{report}"
        );
        assert!(
            line_with(&report, "a/p").contains("192.0.2.1 2001:db8::1"),
            "{report}"
        );
        assert!(line_with(&report, "a/p").contains("captured"), "{report}");
        assert!(
            line_with(&report, "spiffe://x").contains("ends in 23 h 1 min"),
            "{report}"
        );
        assert!(
            line_with(&report, "spiffe://y").contains("expired"),
            "{report}"
        );
        assert!(
            line_with(&report, "x.yaml:3").contains("broken"),
            "{report}"
        );
        for (node, state) in [
            ("n1", "in sync"),
            ("n2", "behind"),
            ("n3", "rejected a/b: no"),
            ("n4", "not connected"),
        ] {
            let line = report
                .lines()
                .find(|l| l.contains(node) && l.contains("Address"))
                .unwrap();
            assert!(line.contains(state), "{line}");
        }
    }

    #[test]
    fn an_empty_mesh_says_none() {
        let report = render(&MeshStatus::default(), 0);
        assert_eq!(report.matches(" none").count(), 4, "{report}");
        assert!(!report.contains("PROBLEMS"));
    }

    #[test]
    fn spans_show_two_units() {
        for (seconds, text) in [
            (5, "5 s"),
            (65, "1 min 5 s"),
            (3_660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
