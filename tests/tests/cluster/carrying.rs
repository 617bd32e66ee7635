//! Pods of the mesh among each other, where nothing but the mesh may connect: on one node and between nodes, with the client's
//! own address, and pods that only run for a while.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use tests::app::{Manner, Server, ask, refused};
use tests::cluster::{IMAGE, NODES, PATIENCE, Space};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::netns::Site;
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "pods_of_one_node_and_of_two_reach_each_other",
        pods_reach_each_other,
    ),
    ("an_app_sees_its_clients_own_address", the_clients_address),
    (
        "a_job_and_its_init_container_speak_through_the_mesh",
        a_job_speaks,
    ),
    (
        "a_pod_that_ends_is_let_go_and_its_successor_captured",
        a_successor_is_captured,
    ),
];

const PORT: u16 = 8080;

/// A namespace that has joined and lets in nothing but the mesh.
fn strict(claim: &str) -> Outcome<Space> {
    let space = Space::joined(claim)?;
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default"}, "spec": {"mtls": {"mode": "STRICT"}}});
    space.apply(&policy.to_string())?;
    Ok(space)
}

/// A captured pod on a node in which the test listens; the policy is in force there.
fn server(space: &Space, node: &str) -> Outcome<Server> {
    let pod = space.pod("server", node)?;
    pod.wait_captured(PATIENCE)?;
    let server = Server::start(&pod.site()?, PORT, Manner::Whoami)?;
    let outside = space.cluster.machine(node).site()?;
    poll::until_ok(PATIENCE, || refused(&outside, server.v4(), b""))?;
    Ok(server)
}

/// A captured pod on a node.
fn client(space: &Space, node: &str) -> Outcome<Site> {
    let pod = space.pod(&format!("client-{node}"), node)?;
    pod.wait_captured(PATIENCE)?;
    pod.site()
}

/// Whom the server sees.
fn seen(client: &Site, to: SocketAddr) -> Outcome<IpAddr> {
    // The other node learns of a new pod a moment after its own does.
    let answer = poll::until_ok(PATIENCE, || ask(client, to, b""))?;
    let peer = answer
        .trim()
        .strip_prefix("you are ")
        .context("no greeting")?;
    let peer: SocketAddr = peer.parse().context(peer)?;
    Ok(peer.ip().to_canonical())
}

fn pods_reach_each_other() -> Outcome {
    let space = strict("reaching")?;
    let server = server(&space, NODES[0])?;
    let visits = server.visits().len();
    for node in NODES {
        let client = client(&space, node)?;
        for to in [server.v4(), server.v6()] {
            seen(&client, to).context(format_args!("from {node} to {to}"))?;
        }
    }
    ensure(
        server.visits().len() >= visits + 4,
        "the app was not asked four times",
    )
}

fn the_clients_address() -> Outcome {
    let space = strict("addresses")?;
    let server = server(&space, NODES[0])?;
    for node in NODES {
        let client = client(&space, node)?;
        let [v4, v6] = client.addresses.both();
        ensure_eq(
            seen(&client, server.v4())?,
            v4,
            format_args!("IPv4 from {node}"),
        )?;
        ensure_eq(
            seen(&client, server.v6())?,
            v6,
            format_args!("IPv6 from {node}"),
        )?;
    }
    Ok(())
}

fn a_job_speaks() -> Outcome {
    let space = strict("jobs")?;
    let server = server(&space, NODES[0])?;
    let clients_before = server.visits().len();
    // The first thing that each container does is to ask, and it has one try.
    let asks = format!("nc {} {PORT} </dev/null | grep 'you are'", server.v4().ip());
    let container =
        |name: &str| json!({"name": name, "image": IMAGE, "command": ["sh", "-c", asks]});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": {
        "backoffLimit": 0,
        "template": {"metadata": {"labels": {"app": "once"}}, "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"kubernetes.io/hostname": NODES[1]},
            "initContainers": [container("first")],
            "containers": [container("then")],
        }},
    }});
    space.apply(&job.to_string())?;
    let done = [
        "wait",
        "--for=condition=Complete",
        "job/once",
        "--timeout=60s",
    ];
    space.kubectl(&done).or_else(|cause| {
        let pods = space.kubectl(&["describe", "pods", "-l", "app=once"])?;
        Err(tests::failure::Failure::new(format!("{cause}\n{pods}")))
    })?;
    for part in ["first", "then"] {
        let said = space.kubectl(&["logs", "job/once", "-c", part])?;
        ensure(
            said.contains("you are"),
            format_args!("{part} heard {said:?}"),
        )?;
    }
    ensure_eq(
        server.visits().len(),
        clients_before + 2,
        "connections from the job",
    )?;
    // Its network has gone with its containers.
    let list = space.read(&["pods", "-l", "app=once"])?;
    let name = list
        .pointer("/items/0/metadata/name")
        .and_then(|name| name.as_str());
    space
        .found(name.context("no pod of the job")?)?
        .wait_released(PATIENCE)
}

fn a_successor_is_captured() -> Outcome {
    let space = strict("successors")?;
    let first = server(&space, NODES[0])?;
    let client = client(&space, NODES[1])?;
    seen(&client, first.v4())?;
    space.kubectl(&["delete", "pod", "server", "--timeout=60s"])?;
    let second = server(&space, NODES[0])?;
    let own = IpAddr::from(client.addresses.v4);
    ensure_eq(seen(&client, second.v4())?, own, "the client's address")?;
    ensure(!second.visits().is_empty(), "the successor was not asked")
}
