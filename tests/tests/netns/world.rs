//! The harness itself: what a test may rely on without any mesh.

use std::net::SocketAddr;
use std::path::Path;

use tests::app::load::Measured;
use tests::app::{Manner, Server, ask};
use tests::capture::Capture;
use tests::command::{output_in, run, run_in};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::netns::{Addresses, World};
use tests::node::program;
use tests::poll::SOON;
use tests::process::Launch;
use tests::sandbox::scratch;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "pods_reach_each_other_on_both_families",
        pods_reach_each_other_on_both_families,
    ),
    (
        "service_addresses_lead_nowhere",
        service_addresses_lead_nowhere,
    ),
    (
        "a_new_world_replaces_leftovers_of_the_same_name",
        a_new_world_replaces_leftovers_of_the_same_name,
    ),
    (
        "a_capture_shows_what_passes_between_nodes",
        a_capture_shows_what_passes_between_nodes,
    ),
    (
        "a_visit_is_remembered_and_absence_is_proved",
        a_visit_is_remembered_and_absence_is_proved,
    ),
    (
        "load_is_generated_and_measured",
        load_is_generated_and_measured,
    ),
];

fn pods_reach_each_other_on_both_families() -> Outcome {
    let world = World::new("reach", 2)?;
    let client = world.add_pod(0, "client")?;
    let neighbour = world.add_pod(0, "neighbour")?;
    let remote = world.add_pod(1, "remote")?;
    for target in [&neighbour, &remote, world.control()] {
        for address in target.addresses.both() {
            // No one listens: the answer must be a refusal from the target, not silence and not "unreachable".
            let answer = output_in(&client.netns, "nc", ["-vzw3", &address.to_string(), "9"])?;
            let said = tests::command::text(&answer.stderr);
            ensure(
                said.contains("Connection refused"),
                format_args!("{address} of {}: {said}", target.name),
            )?;
        }
    }
    Ok(())
}

fn service_addresses_lead_nowhere() -> Outcome {
    let world = World::new("vip", 1)?;
    let client = world.add_pod(0, "client")?;
    for address in Addresses::of_service(1).both() {
        let answer = output_in(&client.netns, "nc", ["-vzw3", &address.to_string(), "80"])?;
        let said = tests::command::text(&answer.stderr);
        ensure(
            said.contains("unreachable") || said.contains("No route"),
            format_args!("{address}: {said}"),
        )?;
    }
    Ok(())
}

fn a_new_world_replaces_leftovers_of_the_same_name() -> Outcome {
    let mut crashed = World::new("left", 1)?;
    let old = crashed.add_pod(0, "old")?;
    crashed.keep();
    drop(crashed);
    ensure(
        old.netns.exists(),
        "the crashed world must have left something",
    )?;
    let fresh = World::new("left", 1)?;
    ensure(!old.netns.exists(), "the old pod is still there")?;
    ensure(fresh.control().netns.exists(), "the new world is not there")?;
    drop(fresh);
    let names = run("ip", ["netns", "list"])?;
    ensure(!names.contains("ambit-left-"), names)?;
    ensure(
        Path::new("/run/netns").exists(),
        "the sandbox has its own names",
    )
}

fn a_capture_shows_what_passes_between_nodes() -> Outcome {
    let world = World::new("capture", 2)?;
    let client = world.add_pod(0, "client")?;
    let near = Server::start(&world.add_pod(0, "near")?, 80, Manner::Echo)?;
    let far = Server::start(&world.add_pod(1, "far")?, 80, Manner::Echo)?;
    let node = &world.nodes().first().context("a node")?.site;
    let capture = Capture::start(node, scratch().join("world-capture.pcap"))?;
    for (to, marker) in [
        (near.v4(), "marker-near"),
        (far.v4(), "marker-four"),
        (far.v6(), "marker-six"),
    ] {
        ensure_eq(ask(&client, to, marker.as_bytes())?.as_str(), marker, to)?;
    }
    let seen = capture.finish((world.control().addresses.v4, 9).into())?;
    for (marker, passes) in [
        ("marker-near", false),
        ("marker-four", true),
        ("marker-six", true),
    ] {
        ensure_eq(
            seen.shows(marker.as_bytes()),
            passes,
            format_args!("{marker} on the link"),
        )?;
    }
    let stream = seen
        .streams()
        .into_iter()
        .find(|stream| stream.to == far.v6())
        .context("the stream to the far pod")?;
    ensure_eq(stream.bytes, b"marker-six".to_vec(), "the stream")?;
    Ok(())
}

fn a_visit_is_remembered_and_absence_is_proved() -> Outcome {
    let world = World::new("visit", 1)?;
    let client = world.add_pod(0, "client")?;
    let server = Server::start(&world.add_pod(0, "server")?, 80, Manner::Whoami)?;
    server.untouched_since(0)?;
    let said = ask(&client, server.v6(), b"three")?;
    ensure(
        said.starts_with(&format!("you are [{}]", client.addresses.v6)),
        said,
    )?;
    let visit = server.wait_for_visit(|visit| visit.bytes() == 5)?;
    ensure_eq(visit.peer.ip(), client.addresses.v6, "the peer")?;
    ensure(
        server.untouched_since(1).is_err(),
        "a visit after the first must count",
    )
}

fn load_is_generated_and_measured() -> Outcome {
    let world = World::new("load", 2)?;
    let (client, server) = (world.add_pod(0, "client")?, world.add_pod(1, "server")?);
    let app = program("ambit-test-app")?;
    let mut servers = Vec::new();
    for (kind, port) in [("bulk", "9001"), ("requests", "9002")] {
        let log = scratch().join("logs").join(format!("load-{kind}.log"));
        let launch = Launch::new(kind, &app, log).in_netns(&server.netns);
        let mut process = launch.args(["serve", kind, port]).start()?;
        process.wait_for_line(SOON, |line| line.starts_with("listening"))?;
        servers.push(process);
    }
    let span = "0.05";
    for (kind, port, count) in [
        ("bulk", 9001, None),
        ("requests", 9002, Some("4")),
        ("connections", 9002, Some("2")),
    ] {
        let to = SocketAddr::from((server.addresses.v6, port)).to_string();
        let words = ["load", kind, &to, span].into_iter().chain(count);
        let said = run_in(&client.netns, &app.display().to_string(), words)?;
        let measured: Measured = serde_json::from_str(&said).context(said)?;
        ensure(
            measured.bytes > 0 && measured.seconds >= 0.05,
            format_args!("{kind}: {measured:?}"),
        )?;
        ensure(
            (measured.requests > 0) == count.is_some(),
            format_args!("{kind}: {measured:?}"),
        )?;
    }
    Ok(())
}
