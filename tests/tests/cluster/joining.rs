//! Joining and leaving the mesh on Kubernetes: by whom, when, and what goes on meanwhile.

use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;

use ambit_core::enrollment::{CAPTURED_BY, DATAPLANE_MODE, ISTIO_DATAPLANE_MODE, REDIRECTION};
use serde_json::{Value, json};

use tests::app::pattern::Pattern;
use tests::app::{Manner, Server, ask, read_to_end, refused};
use tests::cluster::{IMAGE, NODES, PATIENCE, Pod, Space};
use tests::command;
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside;
use tests::netns::Site;
use tests::poll::{self, SOON};

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "the_first_packet_of_a_pod_created_right_after_the_annotation_is_captured",
        first_packet_is_captured,
    ),
    (
        "a_running_pod_joins_and_its_open_transfer_goes_on",
        running_pod_joins,
    ),
    (
        "a_namespace_joins_by_annotation_by_label_and_by_istios_label",
        namespaces_join,
    ),
    ("a_pod_joins_and_stays_out_by_its_own_word", pods_decide),
    ("a_running_pod_opts_out_and_in_again", running_pod_opts_out),
    (
        "a_namespace_leaves_and_its_open_connection_goes_on",
        namespace_leaves,
    ),
    (
        "a_host_network_pod_is_left_alone_and_its_owner_is_told",
        host_network_is_left_alone,
    ),
    (
        "a_pod_of_another_ambient_mesh_is_left_alone_and_its_owner_is_told",
        another_meshs_pod_is_left_alone,
    ),
    (
        "beside_another_ambient_plugin_istios_label_is_not_ours",
        beside_another_plugin,
    ),
    (
        "while_the_agent_may_not_read_no_pod_starts_unmeshed_and_none_is_lost",
        rbac_refused,
    ),
    (
        "without_an_api_server_an_agent_starts_and_keeps_what_is_captured",
        api_server_away,
    ),
];

/// How long a running pod is to take at most to join.
const BAR: Duration = Duration::from_secs(2);
/// How long a pod may take to leave: three seconds of farewell, and what a busy machine adds.
const LEAVE: Duration = Duration::from_secs(20);
/// Bytes of each half of a transfer.
const HALF: u64 = 4 << 20;

fn first_packet_is_captured() -> Outcome {
    let space = Space::joined("first")?;
    let (server, _outsider) = strict_server(&space)?;
    for (round, node) in NODES.iter().enumerate() {
        let fresh = space.beside(&format!("new{round}"))?;
        let say = format!(
            "echo hello | timeout 30 nc {} {}; sleep 3600",
            server.v4().ip(),
            server.port()
        );
        // One command writes them one after the other: some milliseconds lie between.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "client", "namespace": fresh.name}});
        let joined = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": fresh.name, "annotations": {DATAPLANE_MODE: "ambient"}}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": fresh.name}, "spec": {
            "serviceAccountName": "client", "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": IMAGE, "command": ["sh", "-c", say]}]}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [account, joined, pod]});
        space.cluster.apply(&list.to_string())?;
        let pod = fresh.ready("client")?;
        let own = pod.site()?.addresses.v4;
        let said = poll::until_ok(PATIENCE, || {
            let said = pod.logs()?;
            ensure(!said.is_empty(), "the pod has said nothing yet").map(|()| said)
        })?;
        ensure(
            said.contains(&format!("you are {own}")),
            format_args!("the only connection of a pod on {node} was not captured: {said}"),
        )?;
    }
    Ok(())
}

fn running_pod_joins() -> Outcome {
    let space = Space::alone("running")?;
    let (client, server) = (
        space.pod("client", NODES[0])?,
        space.pod("server", NODES[1])?,
    );
    let sink = Server::start(&server.site()?, 9090, Manner::Sink)?;
    let mut stream = inside::connect(&client.site()?.netns, sink.v4())?;
    let mut pattern = Pattern::default();
    pattern.send(&mut stream, HALF)?;
    let begun = poll::now();
    space.join()?;
    for pod in [&client, &server] {
        pod.wait_captured(PATIENCE)?;
    }
    let took = begun.elapsed();
    println!(
        "two running pods have joined after {} ms (bar {BAR:?})",
        took.as_millis()
    );
    pattern.send(&mut stream, HALF)?;
    stream.shutdown(Shutdown::Write)?;
    ensure_eq(
        read_to_end(&mut stream)?,
        Pattern::expected(2 * HALF),
        "what arrived of a transfer during which both sides joined",
    )?;
    let (server, _outsider) = strict_server(&space)?;
    let own = client.site()?;
    let answer = poll::until_ok(SOON, || ask(&own, server.v4(), b"hello"))?;
    ensure(answer.contains("you are"), answer)
}

fn namespaces_join() -> Outcome {
    let space = Space::new("ways")?;
    let ways = [
        ("annotate", DATAPLANE_MODE),
        ("label", DATAPLANE_MODE),
        ("label", ISTIO_DATAPLANE_MODE),
    ];
    for (index, (verb, key)) in ways.into_iter().enumerate() {
        let space = space.beside(&format!("w{index}"))?;
        let before = space.pod("before", NODES[0])?;
        ensure_eq(
            before.annotation(REDIRECTION)?,
            None,
            "before anybody asked",
        )?;
        let ask = format!("{key}=ambient");
        space
            .cluster
            .kubectl(&[verb, "namespace", &space.name, &ask])?;
        let after = space.pod("after", NODES[1])?;
        // A pod that starts in a joined namespace is announced before it is ready.
        ensure_eq(
            after.annotation(REDIRECTION)?.as_deref(),
            Some("enabled"),
            format_args!("a new pod after `kubectl {verb} {ask}`"),
        )?;
        before
            .wait_captured(PATIENCE)
            .context(format_args!("`kubectl {verb} {ask}`"))?;
        let mark = before.annotation(CAPTURED_BY)?;
        ensure_eq(mark.as_deref(), Some("ambit"), "whose capture it is")?;
    }
    Ok(())
}

fn pods_decide() -> Outcome {
    let out = Space::new("word")?;
    let alone = out.pod_like("alone", NODES[0], |pod| asks(pod, "annotations", "ambient"))?;
    let by_label = out.pod_like("label", NODES[1], |pod| asks(pod, "labels", "ambient"))?;
    let silent = out.pod("silent", NODES[0])?;
    for pod in [&alone, &by_label] {
        ensure_eq(
            pod.annotation(REDIRECTION)?.as_deref(),
            Some("enabled"),
            &pod.name,
        )?;
    }
    ensure_eq(
        silent.annotation(REDIRECTION)?,
        None,
        "a pod that asks for nothing",
    )?;
    let joined = out.beside("in")?;
    joined.join()?;
    let refuses = joined.pod_like("refuses", NODES[0], |pod| asks(pod, "labels", "none"))?;
    let neighbour = joined.pod("neighbour", NODES[0])?;
    neighbour.wait_captured(PATIENCE)?;
    ensure_eq(
        refuses.annotation(REDIRECTION)?,
        None,
        "a pod that opts out",
    )?;
    ensure_eq(
        tables(&refuses.site()?)?,
        Vec::<String>::new(),
        "rules in a pod that opts out",
    )?;
    ensure(
        !tables(&neighbour.site()?)?.is_empty(),
        "no rules in a captured pod",
    )
}

fn running_pod_opts_out() -> Outcome {
    let space = Space::joined("opt")?;
    let pod = space.pod("pod", NODES[0])?;
    pod.wait_captured(PATIENCE)?;
    let site = pod.site()?;
    for (word, captured) in [("none", false), ("ambient", true), ("none", false)] {
        let say = format!("{DATAPLANE_MODE}={word}");
        space.kubectl(&["annotate", "--overwrite", "pod", "pod", &say])?;
        if captured {
            pod.wait_captured(PATIENCE)?;
        } else {
            pod.wait_released(LEAVE)?;
            poll::until_ok(LEAVE, || {
                ensure_eq(
                    tables(&site)?,
                    Vec::<String>::new(),
                    "rules in a pod that has left",
                )
            })?;
        }
    }
    Ok(())
}

fn namespace_leaves() -> Outcome {
    let space = Space::joined("leave")?;
    let (client, server) = (
        space.pod("client", NODES[0])?,
        space.pod("server", NODES[1])?,
    );
    let (here, there) = (client.site()?, server.site()?);
    let sink = Server::start(&there, 9090, Manner::Sink)?;
    let mut stream = poll::until_ok(SOON, || inside::connect(&here.netns, sink.v4()))?;
    let mut pattern = Pattern::default();
    pattern.send(&mut stream, HALF)?;
    space.leave()?;
    for pod in [&client, &server] {
        pod.wait_released(LEAVE)?;
    }
    pattern.send(&mut stream, HALF)?;
    stream.shutdown(Shutdown::Write)?;
    ensure_eq(
        read_to_end(&mut stream)?,
        Pattern::expected(2 * HALF),
        "what arrived of a transfer during which both sides left",
    )?;
    drop(stream);
    for site in [&here, &there] {
        poll::until_ok(LEAVE, || {
            ensure_eq(
                tables(site)?,
                Vec::<String>::new(),
                format_args!("rules in {}", site.name),
            )
        })?;
    }
    let plain = Server::start(&there, 8080, Manner::Whoami)?;
    let answer = ask(&here, plain.v4(), b"hello")?;
    ensure(answer.contains("you are"), answer)
}

fn host_network_is_left_alone() -> Outcome {
    let space = Space::joined("hostnet")?;
    let pod = space.pod_like("host", NODES[1], |pod| {
        if let Some(spec) = pod.pointer_mut("/spec").and_then(Value::as_object_mut) {
            spec.insert("hostNetwork".to_owned(), true.into());
        }
    })?;
    let told = told(&space, &pod)?;
    ensure(told.contains("hostNetwork"), told)?;
    ensure_eq(pod.annotation(REDIRECTION)?, None, "a pod with hostNetwork")
}

fn another_meshs_pod_is_left_alone() -> Outcome {
    let space = Space::joined("theirs")?;
    let pod = space.pod_like("pod", NODES[0], |pod| {
        if let Some(metadata) = pod.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.insert("annotations".to_owned(), json!({REDIRECTION: "enabled"}));
        }
    })?;
    let told = told(&space, &pod)?;
    ensure(told.contains("another ambient mesh"), told)?;
    ensure_eq(
        pod.annotation(CAPTURED_BY)?,
        None,
        "our mark on another mesh's pod",
    )?;
    ensure_eq(
        tables(&pod.site()?)?,
        Vec::<String>::new(),
        "our rules in another mesh's pod",
    )
}

/// `tuning` of the reference plugins stands for the other mesh's: without settings it passes on what it gets.
fn beside_another_plugin() -> Outcome {
    let space = Space::alone("beside")?;
    let machine = space.cluster.machine(NODES[0]);
    let list = "/etc/cni/net.d/10-net.conflist";
    let before = machine.run(&["cat", list])?;
    let mut changed: Value = serde_json::from_str(&before).context("the conflist")?;
    let plugins = changed.get_mut("plugins").and_then(Value::as_array_mut);
    let plugins = plugins.context("no plugins")?;
    plugins.insert(
        plugins.len().saturating_sub(1),
        json!({"type": "istio-cni"}),
    );
    machine.run(&["cp", "/opt/cni/bin/tuning", "/opt/cni/bin/istio-cni"])?;
    put(&space, list, &changed.to_string())?;
    let seen = observe_beside(&space);
    put(&space, list, &before)?;
    machine.run(&["rm", "/opt/cni/bin/istio-cni"])?;
    seen
}

fn observe_beside(space: &Space) -> Outcome {
    let agent = space.cluster.mesh_pod_on("agent", NODES[0])?;
    poll::until_ok(SOON, || {
        let log = agent.logs()?;
        ensure(
            log.contains("another ambient"),
            "the agent has not seen the other plugin",
        )
    })?;
    let label = format!("{ISTIO_DATAPLANE_MODE}=ambient");
    space
        .cluster
        .kubectl(&["label", "namespace", &space.name, &label])?;
    let theirs = space.pod("theirs", NODES[0])?;
    let told = told(space, &theirs)?;
    ensure(told.contains("another ambient mesh"), told)?;
    ensure_eq(
        theirs.annotation(REDIRECTION)?,
        None,
        "a pod that asks by Istio's label",
    )?;
    let ours = space.pod_like("ours", NODES[0], |pod| asks(pod, "annotations", "ambient"))?;
    ensure_eq(
        ours.annotation(CAPTURED_BY)?.as_deref(),
        Some("ambit"),
        "a pod that asks by our key",
    )?;
    // The other node's chain has no other plugin.
    let there = space.pod("there", NODES[1])?;
    ensure_eq(
        there.annotation(CAPTURED_BY)?.as_deref(),
        Some("ambit"),
        "on the other node",
    )
}

fn rbac_refused() -> Outcome {
    let space = Space::alone("rbac")?;
    space.join()?;
    let kept = space.pod("kept", NODES[0])?;
    kept.wait_captured(PATIENCE)?;
    let role = ["clusterrole", "ambit-cni-agent"];
    let before = space.cluster.read(&role)?;
    let mut without = before.clone();
    let rules = without.get_mut("rules").context("no rules")?;
    *rules = json!([]);
    replace(&space, &without)?;
    let seen = observe_refusal(&space);
    replace(&space, &before)?;
    seen?;
    let late = space.ready("late")?;
    ensure_eq(
        late.annotation(REDIRECTION)?.as_deref(),
        Some("enabled"),
        "the pod that waited",
    )?;
    ensure_eq(
        kept.annotation(REDIRECTION)?.as_deref(),
        Some("enabled"),
        "the pod from before",
    )?;
    ensure(
        !tables(&kept.site()?)?.is_empty(),
        "the rules of the pod from before are gone",
    )
}

fn observe_refusal(space: &Space) -> Outcome {
    space.create("late", NODES[0], |_as_it_is| ())?;
    let why = poll::until_ok(PATIENCE, || {
        let events = space.kubectl(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=late",
        ])?;
        ensure(events.contains("FailedCreatePodSandBox"), &events).map(|()| events)
    })?;
    ensure(
        why.contains("may not read the pod") && why.contains("ClusterRole ambit-cni-agent"),
        format_args!("the event does not name cause and remedy: {why}"),
    )?;
    let late = space.read(&["pod", "late"])?;
    let phase = late.pointer("/status/phase").and_then(Value::as_str);
    ensure_eq(
        phase,
        Some("Pending"),
        "a pod of which nobody knows whether it is in the mesh",
    )
}

fn api_server_away() -> Outcome {
    let space = Space::alone("noapi")?;
    space.join()?;
    let (server, _outsider) = strict_server(&space)?;
    let client = space.pod("client", NODES[0])?;
    let site = client.site()?;
    poll::until_ok(SOON, || ask(&site, server.v4(), b"hello"))?;
    let machine = space.cluster.machine(NODES[0]);
    space.cluster.script("component", &["stop", "apiserver"])?;
    let seen = restart_agent(&machine).and_then(|()| {
        poll::stays(Duration::from_secs(5), || {
            ask(&site, server.v4(), b"hello").map(drop)
        })
    });
    space.cluster.script("component", &["start", "apiserver"])?;
    seen?;
    poll::until_ok(PATIENCE, || space.kubectl(&["get", "pods"]))?;
    space.cluster.mesh_ready()?;
    space.create("late", NODES[0], |_pod| ())?;
    // Scheduler and kubelet have backed off as well, up to a minute.
    let late = poll::until_ok(3 * PATIENCE, || space.ready("late"))?;
    ensure_eq(
        late.annotation(REDIRECTION)?.as_deref(),
        Some("enabled"),
        "a pod after the outage",
    )?;
    let answer = ask(&late.site()?, server.v4(), b"hello")?;
    ensure(answer.contains("you are"), answer)
}

/// Kills the agent's process on a node and waits until kubelet has started another.
fn restart_agent(machine: &tests::cluster::Machine) -> Outcome {
    let pid = || machine.run(&["pidof", "ambit-cni-agent"]);
    let before = pid()?;
    machine.run(&["kill", "-KILL", before.trim()])?;
    poll::until_ok(PATIENCE, || {
        let now = pid()?;
        ensure(now != before, "the agent has not been started again")
    })
}

/// A server that takes only what comes through the mesh, and a pod outside that it refuses: who is answered is captured.
fn strict_server(space: &Space) -> Outcome<(Server, Pod)> {
    let outside = space.beside("outside")?;
    let outsider = outside.pod("outsider", NODES[0])?;
    let pod = space.pod("strict", NODES[1])?;
    pod.wait_captured(PATIENCE)?;
    let server = Server::start(&pod.site()?, 8080, Manner::Whoami)?;
    let strict = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}}});
    space.apply(&strict.to_string())?;
    let site = outsider.site()?;
    poll::until_ok(PATIENCE, || refused(&site, server.v4(), b"hello"))?;
    Ok((server, outsider))
}

/// Has a pod ask for the mesh, or refuse it, by an annotation or a label.
fn asks(pod: &mut Value, place: &str, word: &str) {
    if let Some(metadata) = pod.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        let map = metadata.entry(place).or_insert_with(|| json!({}));
        if let Some(map) = map.as_object_mut() {
            map.insert(DATAPLANE_MODE.to_owned(), word.into());
        }
    }
}

/// What the agent has told the owner of a pod that it leaves alone.
fn told(space: &Space, pod: &Pod) -> Outcome<String> {
    let of_pod = format!("involvedObject.name={},reason=NotCaptured", pod.name);
    poll::until_ok(PATIENCE, || {
        let events = space.kubectl(&[
            "get",
            "events",
            "--field-selector",
            &of_pod,
            "-o",
            "jsonpath={.items[*].message}",
        ])?;
        ensure(!events.is_empty(), "no event yet").map(|()| events)
    })
}

/// Our tables of rules in a pod's network namespace.
fn tables(site: &Site) -> Outcome<Vec<String>> {
    let listed = command::in_netns(&site.netns, "nft")
        .args(["list", "tables"])
        .output()?;
    ensure(listed.status.success(), command::text(&listed.stderr))?;
    let lines = command::text(&listed.stdout);
    let ours = lines.lines().filter(|line| line.contains("ambit"));
    Ok(ours.map(str::to_owned).collect())
}

/// Puts a file on the first node in one step, as other plugins do.
fn put(space: &Space, file: &str, content: &str) -> Outcome {
    let machine = space.cluster.machine(NODES[0]);
    let mut fresh = std::fs::File::create(machine.path("/etc/cni/net.d/.fresh")?)?;
    fresh.write_all(content.as_bytes())?;
    machine
        .run(&["mv", "/etc/cni/net.d/.fresh", file])
        .map(drop)
}

/// Puts an object of the API in the place of what is there.
fn replace(space: &Space, object: &Value) -> Outcome {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    let args = ["replace", "-f", "-"];
    space
        .cluster
        .kubectl_fed(&args, &object.to_string())
        .map(drop)
}
