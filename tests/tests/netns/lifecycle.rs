//! What happens to connections when a program of the mesh ends, is killed, or comes back.
//!
//! Each test has a mesh of its own, because it breaks it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::app::{End, Manner, Server, ask, ended, refused};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside;
use tests::node::local;
use tests::poll::{self, SOON};
use tests::scrape;

use crate::Claim;
use crate::stage::{CAST, Stage, policy};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "a_stopping_proxy_lets_open_connections_end",
        a_stopping_proxy_lets_open_connections_end,
    ),
    (
        "a_stopping_proxy_cuts_what_does_not_end_in_time",
        a_stopping_proxy_cuts_what_does_not_end_in_time,
    ),
    (
        "a_killed_proxy_lets_nothing_through_and_its_successor_serves",
        a_killed_proxy_lets_nothing_through_and_its_successor_serves,
    ),
    (
        "a_restarted_agent_cuts_nothing",
        a_restarted_agent_cuts_nothing,
    ),
    (
        "without_a_controller_the_mesh_goes_on_and_resumes",
        without_a_controller_the_mesh_goes_on_and_resumes,
    ),
    (
        "every_program_stops_when_asked",
        every_program_stops_when_asked,
    ),
    (
        "an_idle_proxy_of_ten_pods_is_small",
        an_idle_proxy_of_ten_pods_is_small,
    ),
];

fn echo(stream: &mut TcpStream) -> Outcome {
    let mut back = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut back)?;
    ensure_eq(&back, b"hello", "the echo")
}

fn a_stopping_proxy_lets_open_connections_end() -> Outcome {
    let mut stage = Stage::own("drain", |setup| {
        setup.ztunnel("AMBIT_TERMINATION_DEADLINE", "10s")
    })?;
    let server = Server::start(&stage.far, 7501, Manner::Echo)?;
    let mut open = inside::connect(&stage.client.netns, server.v4())?;
    let mut plain = inside::connect(&stage.outsider.netns, server.v6())?;
    echo(&mut open)?;
    echo(&mut plain)?;
    let node = stage.mesh.node(1)?;
    node.ztunnel.signal(Signal::SIGTERM)?;
    poll::until_ok(SOON, || {
        // Not ready any more, or not even answering that.
        let answer = scrape::get(&node.site.netns, local(15021), "/healthz/ready");
        ensure(!matches!(answer, Ok((200, _))), "it is still ready")
    })?;
    let before = server.visits().len();
    refused(&stage.client, server.v4(), b"secret")?;
    echo(&mut open)?;
    echo(&mut plain)?;
    server.untouched_since(before)?;
    drop((open, plain));
    let status = stage.mesh.node(1)?.ztunnel.wait(Duration::from_secs(5))?;
    ensure(status.success(), format_args!("{status}"))
}

fn a_stopping_proxy_cuts_what_does_not_end_in_time() -> Outcome {
    let mut stage = Stage::own("cut", |setup| {
        setup.ztunnel("AMBIT_TERMINATION_DEADLINE", "300ms")
    })?;
    let server = Server::start(&stage.far, 7502, Manner::Echo)?;
    let mut open = inside::connect(&stage.client.netns, server.v4())?;
    echo(&mut open)?;
    let node = stage.mesh.node(1)?;
    let status = node.ztunnel.stop(Duration::from_secs(5))?;
    ensure(status.success(), format_args!("{status}"))?;
    ended(&mut open)?;
    server.wait_for_visit(|visit| visit.bytes() == 5 && visit.end().is_some())?;
    stage
        .mesh
        .wait_access(1, &[("direction", "inbound"), ("reason", "drained")])?;
    Ok(())
}

fn a_killed_proxy_lets_nothing_through_and_its_successor_serves() -> Outcome {
    let mut stage = Stage::own("crash", |setup| setup)?;
    let server = Server::start(&stage.far, 7503, Manner::Echo)?;
    ensure_eq(
        ask(&stage.client, server.v4(), b"one")?.as_str(),
        "one",
        "before",
    )?;
    stage.mesh.node(1)?.ztunnel.crash()?;
    let before = server.visits().len();
    refused(&stage.client, server.v4(), b"secret")?;
    refused(&stage.outsider, server.v6(), b"secret")?;
    let outward = Server::start(&stage.client, 7503, Manner::Sink)?;
    refused(&stage.far, outward.v4(), b"secret")?;
    refused(&stage.far, outward.v6(), b"secret")?;
    outward.untouched_since(0)?;
    server.untouched_since(before)?;
    stage.mesh.restart_ztunnel(1)?;
    // The client's proxy may find its old tunnel dead first; that is the one attempt it may cost.
    poll::until_ok(SOON, || ask(&stage.client, server.v4(), b"two"))?;
    ensure_eq(
        ask(&stage.outsider, server.v6(), b"three")?.as_str(),
        "three",
        "after",
    )
}

fn a_restarted_agent_cuts_nothing() -> Outcome {
    let mut stage = Stage::own("agent", |setup| setup)?;
    let server = Server::start(&stage.far, 7504, Manner::Echo)?;
    let mut open = inside::connect(&stage.client.netns, server.v4())?;
    echo(&mut open)?;
    for index in 0..2 {
        stage.mesh.node(index)?.agent.crash()?;
    }
    echo(&mut open)?;
    ensure_eq(
        ask(&stage.client, server.v6(), b"new")?.as_str(),
        "new",
        "without an agent",
    )?;
    for index in 0..2 {
        stage.mesh.restart_agent(index)?;
        stage.mesh.wait_ready(index)?;
    }
    echo(&mut open)?;
    let late = stage.world.add_pod(1, "late")?;
    let server = Server::start(&late, 7504, Manner::Whoami)?;
    stage.join("late", &[(&late, 1)], "")?;
    ask(&stage.client, server.v4(), b"")?;
    echo(&mut open)?;
    drop(open);
    stage.mesh.wait_access(
        1,
        &[
            ("direction", "inbound"),
            ("dst.identity", "spiffe://cluster.local/ns/late/sa/late"),
        ],
    )?;
    Ok(())
}

fn without_a_controller_the_mesh_goes_on_and_resumes() -> Outcome {
    let mut stage = Stage::own("resume", |setup| setup)?;
    let pod = stage.world.add_pod(1, "guarded")?;
    let server = Server::start(&pod, 7505, Manner::Echo)?;
    let rules = "[{ from: [{ source: { principals: ['cluster.local/ns/cast/sa/client'] } }] }]";
    stage.join(
        "guarded",
        &[(&pod, 1)],
        &policy("guarded", "not-client", "guarded", "DENY", rules),
    )?;
    refused(&stage.client, server.v4(), b"secret")?;
    let mut open = inside::connect(&stage.near.netns, server.v4())?;
    echo(&mut open)?;

    stage.mesh.controller.crash()?;
    // The policy goes while nobody watches; it stays in force until the controller says so.
    stage.write("guarded", true, &[(&pod, 1)], "")?;
    refused(&stage.client, server.v4(), b"secret")?;
    ensure_eq(
        ask(&stage.near, server.v6(), b"new")?.as_str(),
        "new",
        "a new connection without a controller",
    )?;
    echo(&mut open)?;

    stage.mesh.restart_controller()?;
    stage
        .mesh
        .wait_captured(&["cast/client", "cast/near", "cast/far", "guarded/guarded"])?;
    poll::until_ok(SOON, || ask(&stage.client, server.v4(), b"now"))?;
    echo(&mut open)?;
    // Nothing was carried in clear meanwhile: the app's clients were all announced as captured, always.
    let log = stage.mesh.nodes.first().context("node 1")?.ztunnel.log();
    let plain = tests::node::access(
        &log,
        &[
            ("direction", "outbound"),
            ("dst.addr", &server.v4().to_string()),
            ("dst.hbone_addr", ""),
        ],
    );
    ensure(plain.is_empty(), format_args!("{plain:?}"))
}

fn every_program_stops_when_asked() -> Outcome {
    let mut stage = Stage::own("stop", |setup| setup)?;
    let server = Server::start(&stage.far, 7506, Manner::Sink)?;
    ask(&stage.client, server.v4(), b"hello")?;
    server.wait_for_visit(|visit| visit.end() == Some(End::Closed))?;
    for index in 0..2 {
        let node = stage.mesh.node(index)?;
        for program in [&mut node.ztunnel, &mut node.agent] {
            let status = program.stop(Duration::from_secs(5))?;
            ensure(
                status.success(),
                format_args!("{}: {status}\n{}", program.name(), program.log()),
            )?;
        }
    }
    let status = stage.mesh.controller.stop(Duration::from_secs(5))?;
    ensure(
        status.success(),
        format_args!("controller: {status}\n{}", stage.mesh.controller.log()),
    )?;
    let leftover = format!("{CAST}: {:?}", stage.mesh.status_socket());
    ensure(
        !stage.mesh.status_socket().exists(),
        format_args!("the socket is left behind {leftover}"),
    )
}

/// What the issue asks for, and the bound that a test on a busy machine asserts.
const IDLE_MIB: u64 = 30;

fn an_idle_proxy_of_ten_pods_is_small() -> Outcome {
    let stage = Stage::own("idle", |setup| setup)?;
    let mut pods = Vec::new();
    for number in 3..=10 {
        pods.push(stage.world.add_pod(0, &format!("idle-{number}"))?);
    }
    let with_node: Vec<_> = pods.iter().map(|pod| (pod, 0)).collect();
    stage.join("idle", &with_node, "")?;
    for pod in &pods {
        // Each pod has been used, so that certificates and tunnels are counted too.
        let server = Server::start(pod, 7507, Manner::Echo)?;
        ensure_eq(
            ask(&stage.client, server.v4(), b"hello")?.as_str(),
            "hello",
            &pod.name,
        )?;
    }
    let bytes = stage
        .mesh
        .nodes
        .first()
        .context("node 1")?
        .ztunnel
        .resident_bytes()?;
    let mib = bytes as f64 / 1024.0 / 1024.0;
    println!("ztunnel, idle with 10 pods: {mib:.1} MiB resident");
    ensure(
        bytes <= IDLE_MIB << 20,
        format_args!("{mib:.1} MiB resident, more than {IDLE_MIB}"),
    )
}
