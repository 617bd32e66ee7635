//! What capture does for an app: it keeps its client's address, reaches Services, and nothing passes the link in clear.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::app::pattern::Pattern;
use tests::app::{Manner, Server, ask};
use tests::capture::Capture;
use tests::capture::tls::{TLS13, records};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside;
use tests::manifests::service;
use tests::netns::Addresses;
use tests::poll;
use tests::sandbox::scratch;

use crate::Claim;
use crate::stage::{CAST, Stage, identity};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "app_sees_the_clients_own_address",
        app_sees_the_clients_own_address,
    ),
    (
        "a_service_leads_to_its_endpoint_on_both_families",
        a_service_leads_to_its_endpoint_on_both_families,
    ),
    (
        "the_link_carries_tls_and_no_marker",
        the_link_carries_tls_and_no_marker,
    ),
    (
        "pods_outside_the_mesh_talk_with_pods_inside",
        pods_outside_the_mesh_talk_with_pods_inside,
    ),
    (
        "a_running_pod_joins_within_two_seconds_and_its_transfer_goes_on",
        joins_without_a_cut,
    ),
    (
        "a_pod_leaves_and_talks_in_clear_again",
        a_pod_leaves_and_talks_in_clear_again,
    ),
];

fn app_sees_the_clients_own_address() -> Outcome {
    let stage = Stage::shared()?;
    for (pod, node) in stage.servers() {
        let server = Server::start(pod, 7001, Manner::Whoami)?;
        for (to, own) in [
            (server.v4(), IpAddr::from(stage.client.addresses.v4)),
            (server.v6(), stage.client.addresses.v6.into()),
        ] {
            let said = ask(&stage.client, to, b"")?;
            let seen: SocketAddr = said
                .trim()
                .trim_start_matches("you are ")
                .parse()
                .context(&said)?;
            ensure_eq(seen.ip(), own, format_args!("the client that {to} saw"))?;
            // It came through the mesh and not beside it.
            let (client, server) = (identity(CAST, &stage.client), identity(CAST, pod));
            let fields = [
                ("direction", "inbound"),
                ("dst.hbone_addr", &to.to_string()),
                ("src.identity", &client),
                ("dst.identity", &server),
                ("reason", "ok"),
            ];
            stage.mesh.wait_access(node, &fields)?;
        }
    }
    Ok(())
}

fn a_service_leads_to_its_endpoint_on_both_families() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "behind-service")?;
    let server = Server::start(&pod, 7001, Manner::Echo)?;
    let addresses = Addresses::of_service(11);
    stage.join(
        "service",
        &[(&pod, 1)],
        &service("service", "behind-service", addresses, &[(80, 7001)]),
    )?;
    for address in addresses.both() {
        ensure_eq(
            ask(&stage.client, (address, 80).into(), b"hello")?.as_str(),
            "hello",
            address,
        )?;
    }
    for visit in server.visits() {
        ensure(
            stage.client.addresses.both().contains(&visit.peer.ip()),
            format_args!("{visit:?}"),
        )?;
    }
    Ok(())
}

fn the_link_carries_tls_and_no_marker() -> Outcome {
    let stage = Stage::shared()?;
    let server = Server::start(&stage.far, 7002, Manner::Echo)?;
    let node = &stage.world.node(0)?.site;
    for to in [server.v4(), server.v6()] {
        let capture = Capture::start(node, scratch().join(format!("link-{}.pcap", to.is_ipv4())))?;
        let marker = format!("{:032x}", fastrand::u128(..));
        ensure_eq(
            ask(&stage.client, to, marker.as_bytes())?,
            marker.clone(),
            "the answer",
        )?;
        let seen = capture.finish((stage.world.control().addresses.v4, 9).into())?;
        ensure(!seen.shows(marker.as_bytes()), "the marker passed the link")?;
        let mut encrypted = 0;
        let pods = [stage.client.addresses.both(), stage.far.addresses.both()].concat();
        for stream in seen
            .streams()
            .iter()
            .filter(|s| pods.contains(&s.from.ip()) && pods.contains(&s.to.ip()))
        {
            ensure(
                [stream.from.port(), stream.to.port()].contains(&15008),
                format_args!("{} → {}", stream.from, stream.to),
            )?;
            let tls =
                records(&stream.bytes).context(format_args!("{} → {}", stream.from, stream.to))?;
            ensure(
                tls.versions.iter().all(|version| *version == TLS13),
                format_args!("{tls:?}"),
            )?;
            encrypted += tls.encrypted_bytes;
        }
        ensure(
            encrypted > 2 * marker.len(),
            format_args!("{encrypted} bytes of TLS between the pods"),
        )?;
    }
    Ok(())
}

fn pods_outside_the_mesh_talk_with_pods_inside() -> Outcome {
    let stage = Stage::shared()?;
    let inside = Server::start(&stage.far, 7003, Manner::Whoami)?;
    let outside = Server::start(&stage.outsider, 7003, Manner::Whoami)?;
    for (from, to) in [
        (&stage.outsider, inside.v4()),
        (&stage.outsider, inside.v6()),
        (&stage.client, outside.v4()),
        (&stage.client, outside.v6()),
    ] {
        let said = ask(from, to, b"")?;
        let seen: SocketAddr = said
            .trim()
            .trim_start_matches("you are ")
            .parse()
            .context(&said)?;
        ensure(
            from.addresses.both().contains(&seen.ip()),
            format_args!("{to} saw {seen}"),
        )?;
    }
    Ok(())
}

fn joins_without_a_cut() -> Outcome {
    let stage = Stage::shared()?;
    let (talker, listener) = (
        stage.world.add_pod(0, "joins-talker")?,
        stage.world.add_pod(1, "joins-listener")?,
    );
    let server = Server::start(&listener, 7001, Manner::Echo)?;
    let pods = [(&talker, 0), (&listener, 1)];
    stage.write("joins", false, &pods, "")?;
    stage.mesh.wait_status(|status| {
        ensure(
            status.pods.iter().any(|pod| pod.name == "joins-talker"),
            "the pod is not known",
        )
    })?;
    let mut open = inside::connect(&talker.netns, server.v4())?;
    let mut pattern = Pattern::default();
    exchange(&mut open, &mut pattern)?;

    let begun = poll::now();
    stage.join("joins", &pods, "")?;
    let captured = begun.elapsed();
    ensure(
        captured < Duration::from_secs(2),
        format_args!("captured after {captured:?}"),
    )?;

    for _ in 0..50 {
        exchange(&mut open, &mut pattern)?;
    }
    ensure_eq(
        ask(&talker, server.v4(), b"new")?.as_str(),
        "new",
        "a new connection",
    )?;
    let (client, own) = (identity("joins", &talker), identity("joins", &listener));
    stage.mesh.wait_access(
        1,
        &[
            ("direction", "inbound"),
            ("src.identity", &client),
            ("dst.identity", &own),
        ],
    )?;
    exchange(&mut open, &mut pattern)
}

/// Sends the next bytes of the pattern to an echo server and compares what comes back.
fn exchange(stream: &mut std::net::TcpStream, pattern: &mut Pattern) -> Outcome {
    let (mut sent, mut back) = ([0; 4096], [0; 4096]);
    pattern.fill(&mut sent);
    stream.write_all(&sent).context("the open transfer")?;
    stream.read_exact(&mut back).context("the open transfer")?;
    ensure(sent == back, "the open transfer carries other bytes")
}

fn a_pod_leaves_and_talks_in_clear_again() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(0, "leaves")?;
    let server = Server::start(&stage.far, 7004, Manner::Whoami)?;
    stage.join("leaves", &[(&pod, 0)], "")?;
    ask(&pod, server.v4(), b"")?;
    let client = identity("leaves", &pod);
    stage
        .mesh
        .wait_access(1, &[("direction", "inbound"), ("src.identity", &client)])?;

    stage.write("leaves", false, &[(&pod, 0)], "")?;
    stage.mesh.wait_status(|status| {
        let state = status
            .pods
            .iter()
            .find(|pod| pod.name == "leaves")
            .map(|pod| pod.capture.to_string());
        ensure_eq(state.as_deref(), Some("out"), "capture of the pod")
    })?;
    poll::until_ok(poll::SOON, || {
        let rules = tests::command::run_in(&pod.netns, "nft", ["list", "ruleset"])?;
        ensure(rules.trim().is_empty(), rules)
    })?;
    ask(&pod, server.v4(), b"")?;
    let in_clear = [
        ("direction", "inbound"),
        ("src.workload", "leaves"),
        ("src.identity", ""),
    ];
    stage.mesh.wait_access(1, &in_clear)?;
    let fields = [("direction", "inbound"), ("src.identity", client.as_str())];
    let lines = tests::node::access(
        &stage.mesh.nodes.get(1).context("node 2")?.ztunnel.log(),
        &fields,
    );
    ensure_eq(lines.len(), 1, "connections with the pod's identity")
}
