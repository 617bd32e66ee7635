//! What a program says when it cannot start or serve: the error names what is missing and how to get it.
//!
//! Where pods are concerned, their traffic is shown to be as safe as before: refused, or not captured at all.

use std::net::SocketAddr;

use tests::app::{Manner, Server, ask, refused};
use tests::failure::{Context as _, Outcome, ensure};
use tests::inside;
use tests::manifests::{PodDocument, documents, namespace};
use tests::netns::{Site, World};
use tests::node::{Mesh, Setup, local};
use tests::poll::{self, SOON};
use tests::process::Process;
use tests::sandbox::scratch;

use crate::Claim;
use crate::stage::{CAST, Stage};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "a_proxy_names_a_port_that_is_taken",
        a_proxy_names_a_port_that_is_taken,
    ),
    (
        "the_controller_names_a_port_that_is_taken",
        the_controller_names_a_port_that_is_taken,
    ),
    (
        "a_pod_whose_capture_port_is_taken_is_named_and_not_captured",
        a_pod_whose_capture_port_is_taken_is_named_and_not_captured,
    ),
    (
        "a_proxy_without_privilege_names_it",
        a_proxy_without_privilege_names_it,
    ),
    (
        "an_agent_without_privilege_names_it",
        an_agent_without_privilege_names_it,
    ),
    (
        "a_program_names_every_setting_that_is_wrong",
        a_program_names_every_setting_that_is_wrong,
    ),
];

/// Waits for the end of a program and sees that it failed and said all of `words`.
fn ends_saying(program: &mut Process, words: &[&str]) -> Outcome {
    let status = program.wait(SOON)?;
    let log = program.log();
    ensure(!status.success(), format_args!("it ended well:\n{log}"))?;
    for word in words {
        ensure(
            log.contains(word),
            format_args!("it does not say {word:?}:\n{log}"),
        )?;
    }
    Ok(())
}

fn a_proxy_names_a_port_that_is_taken() -> Outcome {
    for (port, name) in [(15020, "metrics"), (15021, "readiness"), (15000, "admin")] {
        let world = World::new("takenport", 1)?;
        let address: SocketAddr = if port == 15000 {
            local(port)
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, port).into()
        };
        let _taken = inside::listen(&world.node(0)?.site.netns, address)?;
        let mut mesh = Mesh::launch(&world, Setup::new(scratch().join(format!("taken-{name}"))))?;
        ends_saying(&mut mesh.node(0)?.ztunnel, &[&port.to_string(), "in use"])?;
    }
    Ok(())
}

fn the_controller_names_a_port_that_is_taken() -> Outcome {
    let mut stage = Stage::own("takenctl", |setup| setup)?;
    let server = Server::start(&stage.far, 7801, Manner::Echo)?;
    ask(&stage.client, server.v4(), b"hello")?;
    stage.mesh.controller.stop(SOON)?;
    let taken = inside::listen(
        &stage.world.control().netns,
        (std::net::Ipv6Addr::UNSPECIFIED, 15012).into(),
    )?;
    ensure(stage.mesh.restart_controller().is_err(), "it started")?;
    ends_saying(&mut stage.mesh.controller, &["15012", "in use"])?;
    drop(taken);
    // The pods are served by what their proxies know.
    ask(&stage.client, server.v4(), b"hello")?;
    stage.mesh.restart_controller()
}

fn a_pod_whose_capture_port_is_taken_is_named_and_not_captured() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "squatter")?;
    let squatter = Server::start(&pod, 15008, Manner::Whoami)?;
    let server = Server::start(&pod, 7802, Manner::Whoami)?;
    stage.write("squatter", true, &[(&pod, 1)], "")?;
    let agent = &stage.mesh.nodes.get(1).context("node 2")?.agent;
    poll::until_ok(SOON, || {
        let log = agent.log();
        ensure(
            log.contains("squatter") && log.contains("15008"),
            format_args!("the agent does not name it:\n{log}"),
        )
    })?;
    stage.mesh.wait_status(|status| {
        let state = status
            .pods
            .iter()
            .find(|pod| pod.name == "squatter")
            .map(|pod| pod.capture.to_string());
        ensure(
            state.as_deref() == Some("pending"),
            format_args!("{state:?}"),
        )
    })?;
    // It is not announced as captured: others reach it in clear, as before. Fail closed or open is the same for it: no
    // identity is claimed, and what must have one is refused by STRICT.
    ask(&stage.client, server.v4(), b"")?;
    drop(squatter);
    Ok(())
}

/// The name of a capability as the system spells it.
fn spelled(capability: &str) -> String {
    let first = capability.split(',').next().unwrap_or_default();
    format!("CAP_{}", first.to_uppercase())
}

/// Either of CAP_NET_ADMIN and CAP_NET_RAW lets a proxy mark its sockets, so it loses both.
///
/// A captured pod whose proxy may not enter it, or may not make its sockets, is cut off: nothing passes beside the mesh.
fn a_proxy_without_privilege_names_it() -> Outcome {
    for (capability, name) in [("sys_admin", "nosys"), ("net_admin,-net_raw", "nonet")] {
        let world = World::new(name, 1)?;
        let (client, pod) = (world.add_pod(0, "client")?, world.add_pod(0, "server")?);
        let server = Server::start(&pod, 7803, Manner::Sink)?;
        let setup = Setup::new(scratch().join(name)).without_capability("ztunnel", capability);
        let mut mesh = Mesh::launch(&world, setup)?;
        put_pods(&mesh, &[&client, &pod])?;
        mesh.node(0)?
            .ztunnel
            .wait_for_line(SOON, |line| line.contains(&spelled(capability)))?;
        poll::until_ok(SOON, || {
            let rules = tests::command::run_in(&pod.netns, "nft", ["list", "ruleset"])?;
            ensure(rules.contains("redirect"), "the pod is not captured")
        })?;
        refused(&client, server.v4(), b"secret")?;
        server.untouched_since(0)?;
    }
    Ok(())
}

fn an_agent_without_privilege_names_it() -> Outcome {
    for (capability, name) in [("sys_admin", "agentnosys"), ("net_admin", "agentnonet")] {
        let world = World::new(name, 1)?;
        let pod = world.add_pod(0, "server")?;
        let setup =
            Setup::new(scratch().join(name)).without_capability("ambit-cni-agent", capability);
        let mut mesh = Mesh::launch(&world, setup)?;
        put_pods(&mesh, &[&pod])?;
        ends_saying(&mut mesh.node(0)?.agent, &[&spelled(capability)])?;
        mesh.wait_status(|status| {
            let state = status.pods.first().map(|pod| pod.capture.to_string());
            ensure(
                state.as_deref() == Some("pending"),
                format_args!("{state:?}"),
            )
        })?;
    }
    Ok(())
}

/// Writes the pods of node 1 into the manifests.
fn put_pods(mesh: &Mesh, pods: &[&Site]) -> Outcome {
    let pods = pods.iter().map(|site| {
        PodDocument {
            namespace: CAST,
            account: &site.name,
            node: "node1",
            site,
        }
        .yaml()
    });
    mesh.manifests.put(
        "cast.yaml",
        &documents(std::iter::once(namespace(CAST, true)).chain(pods)),
    )
}

fn a_program_names_every_setting_that_is_wrong() -> Outcome {
    let world = World::new("settings", 1)?;
    let setup = Setup::new(scratch().join("settings"))
        .ztunnel("AMBIT_TERMINATION_DEADLINE", "soon")
        .ztunnel("AMBIT_NO_SUCH_SETTING", "1")
        // What Kubernetes injects for a Service of ours is no mistake.
        .ztunnel("AMBIT_CONTROLLER_SERVICE_HOST", "10.96.0.1")
        .ztunnel("AMBIT_CONTROLLER_PORT_15012_TCP", "tcp://10.96.0.1:15012");
    let mut mesh = Mesh::launch(&world, setup)?;
    let ztunnel = &mut mesh.node(0)?.ztunnel;
    ends_saying(
        ztunnel,
        &["AMBIT_TERMINATION_DEADLINE", "AMBIT_NO_SUCH_SETTING"],
    )?;
    ensure(!ztunnel.log().contains("AMBIT_CONTROLLER_"), ztunnel.log())?;
    Ok(())
}
