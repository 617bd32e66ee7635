//! kubelet's probes of captured pods: they reach the app where nothing but the mesh may, they decide as ever, and nobody else
//! comes in by their way.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use cni_plugin::redirect::ruleset::Probes;
use tests::app::{Manner, Server, refused};
use tests::cluster::{NODES, PATIENCE, Pod, Space};
use tests::command::{in_netns, text};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::netns::Site;
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "http_probes_decide_where_only_the_mesh_may_connect",
        http_probes_decide,
    ),
    (
        "tcp_probes_come_from_the_probe_address",
        tcp_probes_come_from_the_probe_address,
    ),
    ("exec_probes_decide_in_a_captured_pod", exec_probes_decide),
    (
        "other_processes_of_the_node_do_not_come_in_with_the_probes",
        others_do_not_come_in,
    ),
];

/// A port with a probe on it, and one without.
const PROBED: u16 = 8080;
const OTHER: u16 = 8081;
/// How long kubelet may take to notice: three failures, a second apart.
const NOTICED: Duration = Duration::from_secs(30);

/// A namespace that has joined and lets in nothing but the mesh.
fn strict(claim: &str) -> Outcome<Space> {
    let space = Space::joined(claim)?;
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default"}, "spec": {"mtls": {"mode": "STRICT"}}});
    space.apply(&policy.to_string())?;
    Ok(space)
}

/// Waits until the policy is in force: a node's own process is refused.
fn in_force(space: &Space, pod: &Site, node: &str) -> Outcome {
    let node = space.cluster.machine(node).site()?;
    poll::until_ok(PATIENCE, || {
        refused(&node, (pod.addresses.v4, OTHER).into(), b"")
    })
}

fn web_server(pod: &mut Value) -> Outcome {
    let container = pod
        .pointer_mut("/spec/containers/0")
        .context("no container")?;
    let script = format!(
        "mkdir /tmp/www; echo ok | tee /tmp/www/ready >/tmp/www/alive; httpd -p {OTHER} -h /tmp/www; exec httpd -f -p {PROBED} -h /tmp/www"
    );
    let named = json!([{"name": "web", "containerPort": PROBED}]);
    let fields = [("command", json!(["sh", "-c", script])), ("ports", named)];
    for (name, value) in fields {
        container
            .as_object_mut()
            .context("no object")?
            .insert(name.to_owned(), value);
    }
    Ok(())
}

fn set_probe(pod: &mut Value, name: &str, probe: &Value) -> Outcome {
    let container = pod
        .pointer_mut("/spec/containers/0")
        .context("no container")?;
    let mut probe = probe.clone();
    for (field, value) in [("periodSeconds", 1), ("failureThreshold", 3)] {
        probe
            .as_object_mut()
            .context("no probe")?
            .insert(field.to_owned(), json!(value));
    }
    container
        .as_object_mut()
        .context("no object")?
        .insert(name.to_owned(), probe);
    Ok(())
}

fn until_ready_is(space: &Space, name: &str, wanted: &str) -> Outcome {
    space.cluster.until(
        &format!("Ready={wanted}"),
        &["-n", &space.name, "pod", name],
        NOTICED,
        |pod| {
            let conditions = pod.pointer("/status/conditions")?.as_array()?;
            let mut ready = conditions
                .iter()
                .filter(|c| c.get("type") == Some(&"Ready".into()));
            (ready.next()?.get("status")? == wanted).then_some(())
        },
    )
}

/// The container has never been started again.
fn never_restarted(space: &Space, name: &str) -> Outcome {
    let pod = space.read(&["pod", name])?;
    let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
    ensure_eq(restarts, Some(&json!(0)), "restarts")
}

/// A pod with this as probe of readiness, and of life where that is another one; captured, and the policy in force.
fn probed_pod(space: &Space, name: &str, readiness: &Value, liveness: &Value) -> Outcome<Pod> {
    let mut changed = Ok(());
    let pod = space.pod_like(name, NODES[0], |pod| {
        changed = web_server(pod)
            .and_then(|()| set_probe(pod, "readinessProbe", readiness))
            .and_then(|()| set_probe(pod, "livenessProbe", liveness));
    });
    changed?;
    let pod = pod?;
    pod.wait_captured(PATIENCE)?;
    in_force(space, &pod.site()?, NODES[0])?;
    Ok(pod)
}

fn http_probes_decide() -> Outcome {
    let space = strict("http-probes")?;
    let by_name = json!({"httpGet": {"path": "/ready", "port": "web"}});
    let alive = json!({"httpGet": {"path": "/alive", "port": PROBED}});
    let pod = probed_pod(&space, "web", &by_name, &alive)?;
    pod.exec(&["rm", "/tmp/www/ready"])?;
    until_ready_is(&space, "web", "False")?;
    pod.exec(&["sh", "-c", "echo ok >/tmp/www/ready"])?;
    until_ready_is(&space, "web", "True")?;
    never_restarted(&space, "web")
}

fn exec_probes_decide() -> Outcome {
    let space = strict("exec-probes")?;
    let readiness = json!({"exec": {"command": ["cat", "/tmp/www/ready"]}});
    let liveness = json!({"exec": {"command": ["true"]}});
    let pod = probed_pod(&space, "web", &readiness, &liveness)?;
    pod.exec(&["rm", "/tmp/www/ready"])?;
    until_ready_is(&space, "web", "False")?;
    pod.exec(&["sh", "-c", "echo ok >/tmp/www/ready"])?;
    until_ready_is(&space, "web", "True")?;
    never_restarted(&space, "web")
}

/// A pod with a TCP probe, in whose namespace the test listens on the probed port and on another one.
fn listening(space: &Space) -> Outcome<(Pod, Server, Server)> {
    let mut changed = Ok(());
    space.create("app", NODES[0], |pod| {
        changed = set_probe(
            pod,
            "readinessProbe",
            &json!({"tcpSocket": {"port": PROBED}}),
        );
    })?;
    changed?;
    let site = poll::until_ok(PATIENCE, || space.found("app")?.site())?;
    let probed = Server::start(&site, PROBED, Manner::Whoami)?;
    let other = Server::start(&site, OTHER, Manner::Whoami)?;
    let pod = space.ready("app")?;
    pod.wait_captured(PATIENCE)?;
    in_force(space, &pod.site()?, NODES[0])?;
    Ok((pod, probed, other))
}

fn peers(server: &Server) -> Vec<IpAddr> {
    let visits = server.visits();
    visits
        .iter()
        .map(|visit| visit.peer.ip().to_canonical())
        .collect()
}

fn tcp_probes_come_from_the_probe_address() -> Outcome {
    let space = strict("tcp-probes")?;
    let (_pod, probed, _other) = listening(&space)?;
    let before = probed.visits().len();
    poll::until("kubelet probes on", NOTICED, || {
        (probed.visits().len() >= before + 3).then_some(())
    })?;
    until_ready_is(&space, "app", "True")?;
    let expected: IpAddr = Probes::ISTIO.v4.context("an address")?.into();
    let others: Vec<IpAddr> = peers(&probed)
        .into_iter()
        .filter(|peer| *peer != expected)
        .collect();
    ensure_eq(
        others,
        Vec::<IpAddr>::new(),
        "peers that are not the probe address",
    )
}

fn others_do_not_come_in() -> Outcome {
    let space = strict("bypass")?;
    let (pod, probed, other) = listening(&space)?;
    let (site, node) = (pod.site()?, space.cluster.machine(NODES[0]).site()?);
    let seen_before = other.visits().len();
    // Root at a port without a probe.
    for to in [other.v4(), other.v6()] {
        refused(&node, to, b"")?;
    }
    ensure_eq(
        other.visits().len(),
        seen_before,
        "connections to the other port",
    )?;
    // Another user at the probed one: its address would be the node's.
    for to in [probed.v4(), probed.v6()] {
        let said = as_somebody(&node, to)?;
        ensure(
            said.is_empty(),
            format_args!("another user got {said:?} from {to}"),
        )?;
    }
    let expected: Vec<IpAddr> = [
        Probes::ISTIO.v4.context("an address")?.into(),
        Probes::ISTIO.v6.context("an address")?.into(),
    ]
    .into();
    let strangers: Vec<IpAddr> = peers(&probed)
        .into_iter()
        .filter(|peer| !expected.contains(peer))
        .collect();
    ensure_eq(
        strangers,
        Vec::<IpAddr>::new(),
        format_args!("peers of the probed port of {}", site.name),
    )
}

/// What a process of another user than root hears from the app.
fn as_somebody(from: &Site, to: SocketAddr) -> Outcome<String> {
    let mut command = in_netns(&from.netns, "setpriv");
    command
        .args(["--reuid", "1000", "--clear-groups", "nc", "-N", "-w3"])
        .args([to.ip().to_string(), to.port().to_string()])
        .stdin(Stdio::null());
    let output = command
        .output()
        .context(format_args!("start {command:?}"))?;
    Ok(text(&output.stdout))
}
