//! What is found good, worth knowing and bad in nodes.

use super::*;

fn node(change: impl FnOnce(&mut Node)) -> Node {
    let mut node = Node {
        name: "n1".into(),
        os: "linux".into(),
        architecture: "amd64".into(),
        kernel: "6.1.0-18-amd64".into(),
        runtime: "containerd://1.7.2".into(),
        ready: true,
    };
    change(&mut node);
    node
}

#[test]
fn nodes_are_judged_by_kernel_architecture_system_and_readiness() {
    use Grade::{Bad, Good, Note};
    let cases: [(Node, Grade, &str); 9] = [
        (node(|_| {}), Good, ""),
        (node(|n| n.kernel = "5.10.0".into()), Good, ""),
        (node(|n| n.kernel = "10.2".into()), Good, ""),
        (
            node(|n| n.kernel = "5.4.0-1103-aws".into()),
            Bad,
            "n1: Linux 5.4.0-1103-aws is older than 5.10",
        ),
        (node(|n| n.architecture = "arm64".into()), Good, ""),
        (
            node(|n| n.architecture = "riscv64".into()),
            Bad,
            "n1: no image is made for riscv64",
        ),
        (
            node(|n| n.os = "windows".into()),
            Note,
            "n1: runs windows, its pods cannot join",
        ),
        (
            node(|n| n.ready = false),
            Note,
            "n1: Kubernetes says that it is not ready",
        ),
        (
            node(|n| n.kernel = "new".into()),
            Note,
            "n1: its kernel's version \"new\" cannot be read",
        ),
    ];
    for (one, grade, detail) in cases {
        let check = machines(&Ok(vec![one.clone()]));
        assert_eq!(check.grade, grade, "{one:?}");
        let told = check.details.first().map_or("", |first| first);
        assert_eq!(told, detail);
        assert_eq!(check.next_step.is_empty(), grade == Good, "{check:?}");
    }
    assert_eq!(machines(&Ok(vec![])).grade, Bad, "no node at all");
    assert_eq!(machines(&Err("refused".into())).grade, Bad);
}

#[test]
fn one_bad_node_is_named_among_good_ones() {
    let old = node(|n| {
        n.name = "old".into();
        n.kernel = "4.19.0".into();
    });
    let check = machines(&Ok(vec![node(|_| {}), old]));
    assert_eq!(check.found, "1 of 2 nodes cannot carry the mesh");
    assert_eq!(check.details, ["old: Linux 4.19.0 is older than 5.10"]);
    assert!(check.next_step.contains("Linux 5.10 or later"));
}

#[test]
fn what_differs_between_nodes_is_counted() {
    let nodes = vec![
        node(|_| {}),
        node(|_| {}),
        node(|n| n.runtime = "cri-o://1.30.1".into()),
    ];
    let check = runtimes(&Ok(nodes));
    assert_eq!(check.grade, Grade::Good);
    assert_eq!(check.found, "containerd 1.7.2 (2), cri-o 1.30.1 (1)");
}

#[test]
fn a_runtime_that_is_not_known_is_told() {
    let check = runtimes(&Ok(vec![node(|n| n.runtime = "docker://24.0".into())]));
    assert_eq!(check.grade, Grade::Note);
    assert_eq!(check.details, ["n1: docker://24.0"]);
    let windows = node(|n| {
        n.os = "windows".into();
        n.runtime = "docker://24.0".into();
    });
    assert_eq!(runtimes(&Ok(vec![windows])).grade, Grade::Good);
}

#[test]
fn cilium_must_leave_the_chain_and_the_services_to_others() {
    let with = |settings: &[(&str, &str)]| {
        let settings = settings.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        cilium(&settings.collect())
    };
    let cases: [(&[(&str, &str)], usize); 5] = [
        (&[], 1),
        (&[("cni-exclusive", "false")], 0),
        (
            &[
                ("cni-exclusive", "false"),
                ("kube-proxy-replacement", "true"),
            ],
            1,
        ),
        (
            &[
                ("cni-exclusive", "false"),
                ("kube-proxy-replacement", "true"),
                ("bpf-lb-sock-hostns-only", "true"),
            ],
            0,
        ),
        (
            &[("cni-exclusive", "true"), ("enable-bpf-masquerade", "true")],
            2,
        ),
    ];
    for (settings, wrong) in cases {
        let check = with(settings);
        assert_eq!(check.details.len(), wrong, "{settings:?}: {check:?}");
        assert_eq!(check.grade == Grade::Bad, wrong > 0);
    }
}
