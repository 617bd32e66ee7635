//! Taking the mesh off: nodes are as they were before, pods go on, and it can come back. A mere restart undoes nothing.

use std::time::Duration;

use serde_json::json;

use ambit_core::enrollment::{CAPTURED_BY, REDIRECTION};
use cni_plugin::host::HOST_TABLE;
use tests::app::{Manner, Server, ask};
use tests::cluster::{NODES, PATIENCE, Pod, SYSTEM, Space};
use tests::failure::{Outcome, ensure, ensure_eq};
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "uninstalling_leaves_the_nodes_as_they_were",
        uninstalling_leaves_nothing,
    ),
    (
        "restarting_the_agents_undoes_nothing",
        restarting_undoes_nothing,
    ),
];

const PORT: u16 = 8080;
/// How long the agents may take to clean up after everything is deleted.
const CLEANED: Duration = Duration::from_secs(60);

/// A captured pod on each node; the first has a probe.
fn pods(space: &Space) -> Outcome<[Pod; 2]> {
    let probe = json!({"tcpSocket": {"port": PORT}, "periodSeconds": 1});
    space.create("server", NODES[0], |pod| {
        if let Some(container) = pod.pointer_mut("/spec/containers/0") {
            container["readinessProbe"] = probe;
            let command = format!("exec httpd -f -p {PORT}");
            container["command"] = json!(["sh", "-c", command]);
        }
    })?;
    let pods = [space.ready("server")?, space.pod("client", NODES[1])?];
    for pod in &pods {
        pod.wait_captured(PATIENCE)?;
    }
    Ok(pods)
}

/// The folder of the sockets stays, empty: kubelet made it, and a pod cannot remove what is mounted into it.
fn without_folder(state: &str) -> String {
    let lines = state
        .lines()
        .filter(|line| !line.starts_with("/run/ambit "));
    lines.collect::<Vec<_>>().join("\n")
}

fn uninstalling_leaves_nothing() -> Outcome {
    let space = Space::alone("uninstalling")?;
    space.join()?;
    let [server, client] = pods(&space)?;
    let greeter = Server::start(&server.site()?, PORT + 1, Manner::Whoami)?;
    let from = client.site()?;
    poll::until_ok(PATIENCE, || ask(&from, greeter.v4(), b""))?;
    space.cluster.uninstall()?;
    for node in NODES {
        let machine = space.cluster.machine(node);
        let before = without_folder(&machine.state_before()?);
        poll::until_ok(CLEANED, || {
            ensure_eq(without_folder(&machine.state()?), before.clone(), node)
        })?;
    }
    for pod in [&server, &client] {
        for key in [REDIRECTION, CAPTURED_BY] {
            ensure_eq(
                pod.annotation(key)?,
                None,
                format_args!("{key} of {}", pod.name),
            )?;
        }
        ensure_eq(&space.found(&pod.name)?.uid, &pod.uid, "the pod")?;
    }
    // Plain text, and pods that start without asking anybody.
    for to in [greeter.v4(), greeter.v6()] {
        ask(&from, to, b"")?;
    }
    space.pod("later", NODES[0])?;
    space.cluster.with_mesh()?;
    for name in ["server", "client", "later"] {
        space.found(name)?.wait_captured(PATIENCE)?;
    }
    poll::until_ok(PATIENCE, || ask(&from, greeter.v4(), b"")).map(drop)
}

fn restarting_undoes_nothing() -> Outcome {
    let space = Space::alone("restarting")?;
    space.join()?;
    let [server, client] = pods(&space)?;
    let machine = space.cluster.machine(NODES[0]);
    let captured = |when: &str| {
        let rules = machine.run(&["nft", "list", "table", "inet", HOST_TABLE])?;
        let probed = format!("{} . {PORT}", server.site()?.addresses.v4);
        ensure(
            rules.contains(&probed),
            format_args!("{when}, the probe is not let in: {rules}"),
        )?;
        for pod in [&server, &client] {
            let said = pod.annotation(REDIRECTION)?;
            ensure_eq(
                said.as_deref(),
                Some("enabled"),
                format_args!("{when}, {}", pod.name),
            )?;
        }
        let files = machine.run(&["sh", "-c", "cat /etc/cni/net.d/*"])?;
        ensure(
            files.contains("ambit-cni"),
            format_args!("{when}, the plugin is not in {files}"),
        )
    };
    captured("before")?;
    let agent = "daemonset/ambit-cni-agent";
    for (when, arguments) in [
        (
            "after a rollout",
            &["-n", SYSTEM, "rollout", "restart", agent][..],
        ),
        (
            "after its pods were deleted",
            &[
                "-n",
                SYSTEM,
                "delete",
                "pods",
                "-l",
                "app.kubernetes.io/component=agent",
            ],
        ),
    ] {
        space.cluster.kubectl(arguments)?;
        captured(when)?;
        space.cluster.mesh_ready()?;
        captured(when)?;
    }
    Ok(())
}
