//! What the mesh does when its parts fail: ztunnel goes and comes back, a node loses power. Nothing ever passes in clear.

use std::net::SocketAddr;

use serde_json::json;

use tests::app::{Manner, Server, ask, refused};
use tests::capture::{Capture, Recording};
use tests::cluster::{IMAGE, NODES, PATIENCE, Pod, Space};
use tests::failure::{Failure, Outcome, ensure};
use tests::poll::{self, SOON};

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "a_deleted_ztunnel_comes_back_and_serves_the_same_pods",
        ztunnel_deleted,
    ),
    (
        "a_killed_node_comes_back_without_a_word_in_clear",
        node_killed,
    ),
];

/// Ports of TCP between pods in this test that are not clear text of an app: tunnels, the controller (TLS), and cluster DNS.
const EXPECTED: [u16; 3] = [HBONE, 15012, 53];
/// Port of tunnels.
const HBONE: u16 = 15008;

fn ztunnel_deleted() -> Outcome {
    let space = Space::alone("ztunnel-deleted")?;
    space.join()?;
    let (client, server) = (
        space.pod("client", NODES[0])?,
        space.pod("server", NODES[1])?,
    );
    client.wait_captured(SOON)?;
    server.wait_captured(SOON)?;
    let (client, server) = (client.site()?, server.site()?);
    let app = Server::start(&server, 8080, Manner::Whoami)?;
    for to in [app.v4(), app.v6()] {
        poll::until_ok(SOON, || ask(&client, to, b"before"))?;
    }
    let old = space.cluster.mesh_pod_on("ztunnel", NODES[1])?;
    let visits = app.visits().len();
    let hold = json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": NODES[0]}}}}});
    let patch = |patch: &str| {
        let args = [
            "-n",
            &old.namespace,
            "patch",
            "daemonset/ztunnel",
            "--type=merge",
            "-p",
            patch,
        ];
        space.cluster.kubectl(&args).map(drop)
    };
    patch(&hold.to_string())?;
    let gone = [
        "-n",
        &old.namespace,
        "wait",
        "--for=delete",
        &format!("pod/{}", old.name),
        "--timeout=60s",
    ];
    let away = space.cluster.kubectl(&gone).and_then(|_gone| {
        for to in [app.v4(), app.v6()] {
            refused(&client, to, b"while it is away")?;
        }
        app.untouched_since(visits)
    });
    patch(r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":null}}}}}"#)?;
    away?;
    space.cluster.mesh_ready()?;
    let new = poll::until_ok(PATIENCE, || space.cluster.mesh_pod_on("ztunnel", NODES[1]))?;
    ensure(new.uid != old.uid, "it is the same ztunnel")?;
    for to in [app.v4(), app.v6()] {
        poll::until_ok(PATIENCE, || ask(&client, to, b"after"))?;
    }
    Ok(())
}

/// Pods on both nodes ask each other all the time, each with a random word in its request, before, while and after node2 is dead.
fn node_killed() -> Outcome {
    let space = Space::alone("node-killed")?;
    space.join()?;
    space.service("server-node1", "server-node1", &[("http", 80, json!(8080))])?;
    space.service("server-node2", "server-node2", &[("http", 80, json!(8080))])?;
    let word = format!("word{:032x}", fastrand::u128(..));
    for (node, other) in [(NODES[0], NODES[1]), (NODES[1], NODES[0])] {
        running(
            &space,
            &format!("server-{node}"),
            node,
            "exec ambit-test-app serve web 8080 server",
        )?;
        let asks = format!(
            "while :; do timeout 3 wget -qO- http://server-{other}/{word}; sleep 0.2; done"
        );
        running(&space, &format!("client-{node}"), node, &asks)?;
    }
    let (stays, dies) = (
        space.cluster.machine(NODES[0]),
        space.cluster.machine(NODES[1]),
    );
    let file = space.cluster.folder().join("node-killed.pcap");
    let capture = Capture::start(&stays.site()?, file)?;
    let talk = |since: [usize; 2]| {
        poll::until_ok(PATIENCE, || {
            for (node, since) in NODES.iter().zip(since) {
                let heard = heard(&space.found(&format!("server-{node}"))?, &word)?;
                ensure(
                    heard > since,
                    format_args!("server-{node} hears nothing new: {heard} requests"),
                )?;
            }
            Ok::<_, Failure>(())
        })
    };
    talk([0, 0])?;
    dies.kill()?;
    dies.start()?;
    // What the servers heard so far: that of node2 has started anew and counts from nothing.
    let before = heard(&space.found("server-node1")?, &word)?;
    talk([before, 0])?;
    let over = SocketAddr::from((dies.site()?.addresses.v4, 9));
    nothing_in_clear(&capture.finish(over)?, &word)
}

/// A pod that runs a shell command, starts again with its node, and is captured.
fn running(space: &Space, name: &str, node: &str, command: &str) -> Outcome {
    let pod = space.pod_like(name, node, |pod| {
        pod["spec"]["containers"] =
            json!([{"name": "app", "image": IMAGE, "command": ["sh", "-c", command]}]);
    })?;
    pod.wait_captured(SOON)
}

/// How many requests with the word a server has answered since it started.
fn heard(server: &Pod, word: &str) -> Outcome<usize> {
    let log = server.logs()?;
    Ok(log.lines().filter(|line| line.contains(word)).count())
}

/// Between pods TCP carries tunnels only, and no byte of the word passed.
fn nothing_in_clear(recording: &Recording, word: &str) -> Outcome {
    ensure(
        !recording.shows(word.as_bytes()),
        "the word passed in clear",
    )?;
    let pods = |address: SocketAddr| match address {
        SocketAddr::V4(address) => address.ip().octets().starts_with(&[10, 244]),
        SocketAddr::V6(address) => address.ip().segments().starts_with(&[0xfd00, 0x10, 0x244]),
    };
    let streams = recording.streams();
    let between_pods = streams
        .iter()
        .filter(|s| pods(s.from) && pods(s.to) && !s.bytes.is_empty());
    let mut tunnels = 0;
    for stream in between_pods {
        let is = |port: &u16| [stream.from.port(), stream.to.port()].contains(port);
        ensure(
            EXPECTED.iter().any(is),
            format_args!(
                "{} bytes in clear from {} to {}",
                stream.bytes.len(),
                stream.from,
                stream.to
            ),
        )?;
        tunnels += usize::from(is(&HBONE));
    }
    ensure(tunnels > 0, "no tunnel was seen")
}
