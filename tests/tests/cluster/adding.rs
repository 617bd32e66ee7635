//! Pods are added to the mesh by the CNI plugin: what that costs, and what happens while the agent is away.

use std::fs;

use ambit_core::enrollment::REDIRECTION;
use cni_plugin::install::conflist::{chain, without_ours};
use serde_json::{Value, json};

use tests::cluster::{Machine, NODES, PATIENCE, Pod, SYSTEM, Space};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "pods_are_captured_by_the_call_and_its_cost_is_printed",
        captured_by_the_call,
    ),
    (
        "pods_created_while_the_agent_is_exchanged_wait_and_start_captured",
        pods_wait_for_the_agent,
    ),
    (
        "a_node_without_agent_ztunnel_and_dns_starts_them_all",
        nothing_waits_for_itself,
    ),
    (
        "the_plugin_is_put_back_when_another_program_rewrites_the_configuration",
        rewritten_configuration_is_repaired,
    ),
];

/// Pods of each kind that are timed.
const TIMED: usize = 20;
/// What ADD of a pod of the mesh is to take at most more than without the mesh, in milliseconds.
const BAR: f64 = 50.0;
/// Where the plugin's input is on the node meanwhile.
const FOLDER: &str = "/run/ambit-adding";
/// Where agents run is decided.
const AGENT: &str = "daemonset/ambit-cni-agent";

/// Calls the plugin on a node as its runtime does, for pods that wait there for a volume and so have no sandbox. What the call takes
/// is what ADD costs more than without the mesh, where there is no such plugin.
fn captured_by_the_call() -> Outcome {
    let meshed = Space::alone("costs")?;
    let plain = meshed.beside("plain")?;
    meshed.join()?;
    let machine = meshed.cluster.machine(NODES[0]);
    let folder = machine.path(FOLDER)?;
    fs::create_dir_all(&folder).context(folder.display())?;
    let timed = time_both(&machine, &meshed, &plain);
    machine.run(&[
        "sh",
        "-c",
        &format!(
            "cd {FOLDER} && for n in *.json; do ip netns del ${{n%.json}}; done; rm -r {FOLDER}"
        ),
    ])?;
    let (mut inside, mut outside) = timed?;
    let (inside, outside) = (median(&mut inside), median(&mut outside));
    println!(
        "adding a pod, median of {TIMED}: {inside:.1} ms in the mesh (bar {BAR} ms), {outside:.1} ms outside of it"
    );
    Ok(())
}

fn time_both(machine: &Machine, meshed: &Space, plain: &Space) -> Outcome<(Vec<f64>, Vec<f64>)> {
    for (space, at) in [(meshed, 100), (plain, 150)] {
        for number in 0..=TIMED {
            wait_for_ever(space, number)?;
            prepare(machine, space, number, at + number)?;
        }
    }
    let inside = time_each(machine, meshed)?;
    let outside = time_each(machine, plain)?;
    // What was timed is a capture, and none.
    for (space, captured) in [(meshed, true), (plain, false)] {
        let annotation = space.found("pod-1")?.annotation(REDIRECTION)?;
        ensure_eq(annotation.is_some(), captured, "captured")?;
    }
    Ok((inside, outside))
}

/// A pod that kubelet makes no sandbox for.
fn wait_for_ever(space: &Space, number: usize) -> Outcome {
    space.create(&format!("pod-{number}"), NODES[0], |pod| {
        let volumes = json!([{"name": "never", "secret": {"secretName": "never"}}]);
        put(pod, "/spec", "nodeName", json!(NODES[0]));
        put(pod, "/spec", "volumes", volumes);
        let mounts = json!([{"name": "never", "mountPath": "/never"}]);
        put(pod, "/spec/containers/0", "volumeMounts", mounts);
    })
}

/// The network namespace that the plugins before ours would have made, and our plugin's input.
fn prepare(machine: &Machine, space: &Space, number: usize, host: usize) -> Outcome {
    let netns = format!("{}-{number}", space.name);
    let address = format!("10.244.1.{host}");
    let input = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni",
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": format!("/var/run/netns/{netns}")}],
            "ips": [{"address": format!("{address}/32"), "interface": 0}]},
    });
    let file = machine.path(&format!("{FOLDER}/{netns}.json"))?;
    fs::write(&file, input.to_string()).context(file.display())?;
    let script = format!(
        "ip netns add {netns} && ip -n {netns} link set lo up && ip -n {netns} link add eth0 type veth peer name peer && \
         ip -n {netns} link set eth0 up && ip -n {netns} addr add {address}/32 dev eth0"
    );
    machine.run(&["sh", "-c", &script]).map(drop)
}

/// Milliseconds of each call. The first finds caches cold and is not counted.
fn time_each(machine: &Machine, space: &Space) -> Outcome<Vec<f64>> {
    let name = &space.name;
    let script = format!(
        "for n in $(seq 0 {TIMED}); do \
             export CNI_COMMAND=ADD CNI_CONTAINERID={name}-$n CNI_NETNS=/var/run/netns/{name}-$n CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin; \
             export CNI_ARGS=\"K8S_POD_NAMESPACE={name};K8S_POD_NAME=pod-$n\"; \
             began=$EPOCHREALTIME; \
             /opt/cni/bin/ambit-cni <{FOLDER}/{name}-$n.json >{FOLDER}/answer || {{ cat {FOLDER}/answer; exit 1; }}; \
             echo $began $EPOCHREALTIME; \
         done"
    );
    let said = machine.run(&["bash", "-c", &script])?;
    let times = said.lines().skip(1).map(|line| {
        let (began, ended) = line.split_once(' ').context(line)?;
        let (began, ended): (f64, f64) =
            (began.parse().context(line)?, ended.parse().context(line)?);
        Ok((ended - began) * 1e3)
    });
    let times = times.collect::<Outcome<Vec<f64>>>()?;
    ensure_eq(times.len(), TIMED, "calls that were timed")?;
    Ok(times)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Deletes the agent's pod and creates pods at once. Each asks a server that refuses plaintext as the first thing it does: what is
/// answered was captured from its first packet on.
fn pods_wait_for_the_agent() -> Outcome {
    let space = Space::alone("waits")?;
    space.join()?;
    space.apply(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict}, spec: {mtls: {mode: STRICT}}}",
    )?;
    let server = space.pod_like("server", NODES[1], |pod| {
        let serve = json!(["/bin/ambit-test-app", "serve", "web", "8080", "server"]);
        put(pod, "/spec/containers/0", "command", serve);
    })?;
    server.wait_captured(PATIENCE)?;
    let url = format!("http://{}:8080/", server.site()?.addresses.v4);

    let agent = space.cluster.mesh_pod_on("agent", NODES[0])?;
    let goes = ["-n", SYSTEM, "delete", "pod", &agent.name, "--wait=false"];
    space.cluster.kubectl(&goes)?;
    let names: Vec<String> = (0..5).map(|number| format!("client-{number}")).collect();
    for name in &names {
        space.create(name, NODES[0], |pod| asks_at_once(pod, &url))?;
    }
    for name in &names {
        let pod = space.ready(name)?;
        pod.wait_captured(PATIENCE)?;
        ensure_answered(&pod)?;
    }
    let back = space.cluster.mesh_pod_on("agent", NODES[0])?;
    ensure(back.uid != agent.uid, "the agent has not been exchanged")?;
    space.cluster.mesh_ready()
}

/// The pod's first act is a request; it says what came of it and sleeps.
fn asks_at_once(pod: &mut Value, url: &str) {
    let script = format!(
        "if wget -qO- {url}; then echo answered; else echo refused; fi; trap exit TERM; while :; do sleep 3600 & wait; done"
    );
    put(
        pod,
        "/spec/containers/0",
        "command",
        json!(["sh", "-c", script]),
    );
}

fn ensure_answered(pod: &Pod) -> Outcome {
    let said = poll::until_ok(PATIENCE, || {
        let logs = pod.logs()?;
        let done = logs.contains("answered") || logs.contains("refused");
        done.then_some(logs).context("nothing said yet")
    })?;
    ensure(
        said.contains("answered"),
        format_args!("{}'s first request: {said}", pod.name),
    )
}

/// A node boots while no agent may run and no pod of ztunnel or of the names service is left on it. Both must come up without the
/// mesh; a pod of the mesh must not come up outside of it.
fn nothing_waits_for_itself() -> Outcome {
    let space = Space::alone("boots")?;
    space.join()?;
    let cluster = space.cluster;
    let machine = cluster.machine(NODES[1]);
    let nowhere =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"ambit-test/nowhere": "yes"}}}}});
    let anywhere =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"ambit-test/nowhere": null}}}}});
    let patch = |patch: &Value| {
        let patch = patch.to_string();
        cluster.kubectl(&["-n", SYSTEM, "patch", AGENT, "--type=merge", "-p", &patch])
    };
    patch(&nowhere)?;
    // The one pod of the names service comes back on the node that boots.
    cluster.kubectl(&["cordon", NODES[0]])?;
    let outcome = boots_without_agent(&space, &machine);
    let back = cluster
        .kubectl(&["uncordon", NODES[0]])
        .and_then(|_done| patch(&anywhere));
    outcome?;
    back?;
    cluster.mesh_ready()?;
    let late = space.ready("late")?;
    late.wait_captured(PATIENCE)
}

fn boots_without_agent(space: &Space, machine: &Machine) -> Outcome {
    let cluster = space.cluster;
    poll::until("the agents are gone", PATIENCE, || {
        cluster.mesh_pods("agent").is_err().then_some(())
    })?;
    machine.kill()?;
    let on_node = format!("--field-selector=spec.nodeName={}", machine.name());
    let gone = |namespace: &str, label: &str| {
        let now = ["--force", "--grace-period=0"];
        let args = ["-n", namespace, "delete", "pods", "-l", label];
        cluster.kubectl(&[&args[..], &now].concat())
    };
    gone(SYSTEM, "app.kubernetes.io/component=ztunnel")?;
    gone("kube-system", "k8s-app=kube-dns")?;
    machine.start()?;
    let has_network = |namespace: &str, label: &str| {
        let list = cluster.read(&["pods", "-n", namespace, "-l", label, &on_node])?;
        let pods = list
            .get("items")
            .and_then(Value::as_array)
            .context("no list")?;
        let running = pods.iter().any(|pod| {
            let phase = pod.pointer("/status/phase").and_then(Value::as_str);
            phase == Some("Running") && pod.pointer("/status/podIP").is_some()
        });
        ensure(running, format_args!("{namespace} {label}: {list}"))
    };
    poll::until_ok(PATIENCE, || {
        has_network(SYSTEM, "app.kubernetes.io/component=ztunnel")
    })?;
    poll::until_ok(PATIENCE, || has_network("kube-system", "k8s-app=kube-dns"))?;
    space.create("late", machine.name(), |_as_it_is| ())?;
    poll::until_ok(PATIENCE, || {
        let said = space.kubectl(&["describe", "pod/late"])?;
        ensure(
            said.contains("the node agent of Ambit gives no answer"),
            said,
        )
    })?;
    let late = space.found("late")?;
    let started = late.object().pointer("/status/containerStatuses/0/started");
    ensure(
        started != Some(&json!(true)),
        format_args!("it has started outside the mesh: {}", late.object()),
    )
}

fn rewritten_configuration_is_repaired() -> Outcome {
    let space = Space::alone("rewrites")?;
    let machine = space.cluster.machine(NODES[0]);
    let file = machine.path("/etc/cni/net.d/10-net.conflist")?;
    let installed = fs::read_to_string(&file).context("read the configuration")?;
    let last = chain(&installed).context("the configuration")?;
    ensure(last.ends_with_ours(), format_args!("{:?}", last.plugins))?;
    // As its owner would write it: by name, at once, and knowing nothing of us.
    let theirs = without_ours(&installed).context("the configuration")?;
    ensure(!theirs.contains("ambit"), &theirs)?;
    let fresh = file.with_extension("theirs");
    fs::write(&fresh, &theirs)?;
    fs::rename(&fresh, &file)?;
    machine.run(&["rm", "/opt/cni/bin/ambit-cni"])?;
    poll::until_ok(PATIENCE, || {
        let now = fs::read_to_string(&file).context("read the configuration")?;
        ensure_eq(&*now, &*installed, "the configuration")
    })?;
    poll::until_ok(PATIENCE, || {
        machine.run(&["test", "-x", "/opt/cni/bin/ambit-cni"])
    })?;
    space.pod("pod", NODES[0]).map(drop)
}

/// Sets a field of the object at `place`.
fn put(object: &mut Value, place: &str, field: &str, value: Value) {
    if let Some(fields) = object.pointer_mut(place).and_then(Value::as_object_mut) {
        fields.insert(field.to_owned(), value);
    }
}
