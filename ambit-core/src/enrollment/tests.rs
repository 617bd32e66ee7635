//! Tables of what pods and namespaces say, and what follows.

use super::*;

type Pairs = &'static [(&'static str, &'static str)];

fn map(pairs: Pairs) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| (String::from(*k), String::from(*v)))
        .collect()
}

/// Name, pod labels, pod annotations, namespace labels, namespace annotations, answer.
type Row = (&'static str, Pairs, Pairs, Pairs, Pairs, Enrollment);

const AMBIT: &str = DATAPLANE_MODE;
const ISTIO: &str = ISTIO_DATAPLANE_MODE;

#[rustfmt::skip] // a row a case
const ROWS: &[Row] = &[
    ("nothing said", &[], &[], &[], &[], Enrollment::NotAsked),
    ("pod label", &[(AMBIT, "ambient")], &[], &[], &[], Enrollment::ByPod),
    ("pod annotation", &[], &[(AMBIT, "ambient")], &[], &[], Enrollment::ByPod),
    ("pod istio label", &[(ISTIO, "ambient")], &[], &[], &[], Enrollment::ByPod),
    ("istio's key is no annotation", &[], &[(ISTIO, "ambient")], &[], &[], Enrollment::NotAsked),
    ("namespace label", &[], &[], &[(AMBIT, "ambient")], &[], Enrollment::ByNamespace),
    ("namespace annotation", &[], &[], &[], &[(AMBIT, "ambient")], Enrollment::ByNamespace),
    ("namespace istio label", &[], &[], &[(ISTIO, "ambient")], &[], Enrollment::ByNamespace),
    ("pod none beats namespace", &[(ISTIO, "none")], &[], &[(ISTIO, "ambient")], &[], Enrollment::PodOptsOut),
    ("pod ambient beats namespace", &[(ISTIO, "ambient")], &[], &[(ISTIO, "none")], &[], Enrollment::ByPod),
    ("namespace none", &[], &[], &[(AMBIT, "none")], &[], Enrollment::NamespaceOptsOut),
    ("none wins on one pod", &[(ISTIO, "none")], &[(AMBIT, "ambient")], &[], &[], Enrollment::PodOptsOut),
    ("none wins on one pod, turned", &[(ISTIO, "ambient")], &[(AMBIT, "none")], &[], &[], Enrollment::PodOptsOut),
    ("none wins on one namespace", &[], &[], &[(ISTIO, "ambient")], &[(AMBIT, "none")], Enrollment::NamespaceOptsOut),
    ("other values say nothing", &[(ISTIO, "Ambient")], &[], &[(ISTIO, "ambient")], &[], Enrollment::ByNamespace),
    ("another agent's pod", &[(AMBIT, "ambient")], &[(REDIRECTION, "enabled")], &[], &[], Enrollment::AnotherMesh),
    ("our own pod", &[(AMBIT, "ambient")], &[(REDIRECTION, "enabled"), (CAPTURED_BY, "ambit")], &[], &[], Enrollment::ByPod),
    ("a sidecar keeps out", &[(AMBIT, "ambient")], &[(SIDECAR_STATUS, "{}")], &[], &[], Enrollment::Sidecar),
];

#[test]
fn settings_are_weighed_pod_first_and_none_first() {
    for (name, labels, annotations, ns_labels, ns_annotations, want) in ROWS {
        let maps = [labels, annotations, ns_labels, ns_annotations].map(|pairs| map(pairs));
        let pod = PodFacts {
            namespace: "shop",
            metadata: Metadata {
                labels: Some(&maps[0]),
                annotations: Some(&maps[1]),
            },
            ..PodFacts::default()
        };
        let namespace = Metadata {
            labels: Some(&maps[2]),
            annotations: Some(&maps[3]),
        };
        assert_eq!(enrollment(&pod, &namespace), *want, "{name}");
    }
}

#[test]
fn some_pods_never_join_whatever_is_said() {
    let labels = map(&[(AMBIT, "ambient")]);
    let metadata = Metadata {
        labels: Some(&labels),
        annotations: None,
    };
    let asking = PodFacts {
        namespace: "shop",
        metadata,
        host_network: false,
        phase: Some("Running"),
    };
    #[rustfmt::skip] // a row a case
    let cases = [
        (asking, Enrollment::ByPod),
        (PodFacts { host_network: true, ..asking }, Enrollment::HostNetwork),
        (PodFacts { namespace: "kube-system", ..asking }, Enrollment::SystemNamespace),
        (PodFacts { namespace: "ambit-system", ..asking }, Enrollment::SystemNamespace),
        (PodFacts { phase: Some("Succeeded"), ..asking }, Enrollment::Ended),
        (PodFacts { phase: Some("Failed"), ..asking }, Enrollment::Ended),
        (PodFacts { phase: Some("Pending"), ..asking }, Enrollment::ByPod),
    ];
    for (pod, want) in cases {
        assert_eq!(enrollment(&pod, &metadata), want, "{pod:?}");
        assert_eq!(want.is_enrolled(), want == Enrollment::ByPod, "{want}");
    }
}

#[test]
fn a_pod_without_uid_is_known_by_its_name() {
    assert_eq!(pod_uid(Some("u-1"), "shop", "web").as_str(), "u-1");
    assert_eq!(pod_uid(None, "shop", "web").as_str(), "shop/web");
    assert_eq!(pod_uid(Some(""), "shop", "web").as_str(), "shop/web");
}

#[test]
fn a_capture_without_our_mark_is_another_agents() {
    let ours = (CAPTURED_BY, CAPTURED_BY_AMBIT);
    #[rustfmt::skip] // a row a case
    let rows: [(&[(&str, &str)], Captor); 8] = [
        (&[], Captor::Nobody),
        (&[(REDIRECTION, "enabled"), ours], Captor::Ambit),
        (&[(REDIRECTION, "enabled")], Captor::Another),
        (&[(REDIRECTION, "pending")], Captor::Another),
        (&[(REDIRECTION, "enabled"), (CAPTURED_BY, "somebody")], Captor::Another),
        (&[(REDIRECTION, "disabled")], Captor::Nobody),
        (&[(REDIRECTION, "pending"), ours], Captor::Nobody),
        (&[ours], Captor::Nobody),
    ];
    for (annotations, want) in rows {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let annotations: BTreeMap<_, _> = annotations.collect();
        assert_eq!(captor(Some(&annotations)), want, "{annotations:?}");
    }
    assert_eq!(captor(None), Captor::Nobody);
}

#[test]
fn istios_label_asks_for_nothing_where_another_agent_is_at_work() {
    #[rustfmt::skip] // a row a case
    let rows: [Row; 7] = [
        ("istio's label", &[], &[], &[(ISTIO, "ambient")], &[], Enrollment::AnotherMesh),
        ("istio's label on the pod", &[(ISTIO, "ambient")], &[], &[], &[], Enrollment::AnotherMesh),
        ("our key", &[], &[], &[(ISTIO, "ambient")], &[(AMBIT, "ambient")], Enrollment::ByNamespace),
        ("our key on the pod", &[(AMBIT, "ambient")], &[], &[(ISTIO, "ambient")], &[], Enrollment::ByPod),
        ("istio's none", &[(ISTIO, "none")], &[], &[(AMBIT, "ambient")], &[], Enrollment::PodOptsOut),
        ("what we have we keep", &[], &[(REDIRECTION, "enabled"), (CAPTURED_BY, "ambit")], &[(ISTIO, "ambient")], &[], Enrollment::ByNamespace),
        ("nobody asks", &[], &[], &[], &[], Enrollment::NotAsked),
    ];
    for (name, labels, annotations, ns_labels, ns_annotations, want) in rows {
        let maps = [labels, annotations, ns_labels, ns_annotations].map(map);
        let pod = PodFacts {
            namespace: "shop",
            metadata: Metadata {
                labels: Some(&maps[0]),
                annotations: Some(&maps[1]),
            },
            ..PodFacts::default()
        };
        let namespace = Metadata {
            labels: Some(&maps[2]),
            annotations: Some(&maps[3]),
        };
        assert_eq!(enrollment_beside_another(&pod, &namespace), want, "{name}");
    }
}
