//! Installing: everything is there and ready, names resolve inside every image, and what the programs keep in memory.

use serde_json::{Value, json};

use tests::app::{Manner, Server, ask};
use tests::cluster::{Cluster, IMAGE, NODES, PATIENCE, Space};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::poll::{self, SOON};

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "every_program_is_ready_on_every_node",
        every_program_is_ready,
    ),
    (
        "names_resolve_inside_every_image",
        names_resolve_inside_images,
    ),
    ("images_have_no_shell", no_shell),
    (
        "memory_stays_under_its_bars_with_ten_pods",
        memory_with_ten_pods,
    ),
];

/// Programs of the mesh as the manifests call them, with their process and the bar of its resident memory in MiB.
const PROGRAMS: [(&str, &str, f64); 3] = [
    ("ztunnel", "ztunnel", 15.0),
    ("controller", "controller", 64.0),
    ("agent", "ambit-cni-agent", 32.0),
];

fn every_program_is_ready() -> Outcome {
    let cluster = Cluster::find()?;
    let _turn = cluster.share();
    cluster.with_mesh()?;
    for (program, ..) in PROGRAMS {
        // A test before this one may have restarted a node or a program.
        poll::until_ok(PATIENCE, || one_ready_pod_on_each_node(cluster, program))?;
    }
    Ok(())
}

fn one_ready_pod_on_each_node(cluster: &'static Cluster, program: &str) -> Outcome {
    let pods = cluster.mesh_pods(program)?;
    ensure_eq(pods.len(), NODES.len(), format_args!("pods of {program}"))?;
    for node in NODES {
        let pod = cluster.mesh_pod_on(program, node)?;
        let ready = pod.object().pointer("/status/containerStatuses/0/ready");
        ensure_eq(
            ready,
            Some(&json!(true)),
            format_args!("{program} on {node} ready"),
        )?;
    }
    Ok(())
}

/// Runs `getent`, which the image does not have, with the image's own loader, libraries and files.
fn names_resolve_inside_images() -> Outcome {
    let space = Space::new("names-inside")?;
    for (program, process, _) in PROGRAMS {
        let running = space.cluster.mesh_pod_on(program, NODES[0])?;
        let container = running
            .object()
            .pointer("/spec/containers/0")
            .context("no container")?;
        let image = container.get("image").context("no image")?.clone();
        let user = container
            .pointer("/securityContext/runAsUser")
            .cloned()
            .unwrap_or(json!(0));
        space.create(process, NODES[0], |pod| {
            pod["spec"]["restartPolicy"] = json!("Never");
            pod["spec"]["volumes"] = json!([{"name": "tools", "emptyDir": {}}]);
            let mount = json!([{"name": "tools", "mountPath": "/tools"}]);
            pod["spec"]["initContainers"] = json!([{"name": "tools", "image": IMAGE, "volumeMounts": mount,
                "command": ["cp", "/bin/getent", "/tools/getent"]}]);
            pod["spec"]["containers"] = json!([{"name": "app", "image": image, "volumeMounts": mount,
                "securityContext": {"readOnlyRootFilesystem": true, "runAsUser": user},
                "command": ["/tools/getent", "ahosts", "kubernetes.default.svc.cluster.local"]}]);
        })?;
        let ended = |pod: &Value| {
            let phase = pod.pointer("/status/phase")?.as_str()?.to_owned();
            ["Succeeded", "Failed"]
                .contains(&phase.as_str())
                .then_some(phase)
        };
        let place = ["-n", &space.name, "pod", process];
        let phase = space.cluster.until("its end", &place, PATIENCE, ended)?;
        let said = space.found(process)?.logs()?;
        ensure(
            phase == "Succeeded" && said.contains("10.96.0.1"),
            format_args!("getent in the image of {program}: {phase}: {said}"),
        )?;
    }
    Ok(())
}

fn no_shell() -> Outcome {
    let cluster = Cluster::find()?;
    let _turn = cluster.share();
    cluster.with_mesh()?;
    for (program, ..) in PROGRAMS {
        let pod = cluster.mesh_pod_on(program, NODES[0])?;
        for shell in ["sh", "/bin/sh", "bash", "/bin/busybox"] {
            let Err(said) = pod.exec(&[shell, "-c", "true"]) else {
                return ensure(false, format_args!("{program} has {shell}"));
            };
            ensure(
                said.to_string().contains("no such file") || said.to_string().contains("not found"),
                format_args!("{shell} in {program}: {said}"),
            )?;
        }
    }
    Ok(())
}

fn memory_with_ten_pods() -> Outcome {
    let space = Space::alone("memory")?;
    space.join()?;
    let node = NODES[0];
    let names: Vec<String> = (0..10).map(|number| format!("pod{number}")).collect();
    for name in &names {
        space.create(name, node, |_as_it_is| ())?;
    }
    let sites = names
        .iter()
        .map(|name| {
            let pod = space.ready(name)?;
            pod.wait_captured(SOON)?;
            pod.site()
        })
        .collect::<Outcome<Vec<_>>>()?;
    let apps = sites
        .iter()
        .map(|site| Server::start(site, 8080, Manner::Whoami))
        .collect::<Outcome<Vec<_>>>()?;
    for (client, app) in sites.iter().zip(apps.iter().skip(1)) {
        for to in [app.v4(), app.v6()] {
            poll::until_ok(SOON, || ask(client, to, b"hello"))?;
        }
    }
    for (program, process, bar) in PROGRAMS {
        for node in NODES {
            let seen = resident_mib(space.cluster, node, process)?;
            println!("memory of {program} on {node}: {seen:.1} MiB (bar {bar} MiB)");
            ensure(
                seen <= bar,
                format_args!("{program} on {node} keeps {seen:.1} MiB, more than {bar}"),
            )?;
        }
    }
    Ok(())
}

/// Resident memory (`VmRSS`, `man 5 proc`) of the one process on a node that runs this program.
fn resident_mib(cluster: &'static Cluster, node: &str, process: &str) -> Outcome<f64> {
    let script = format!(
        "for p in /proc/[0-9]*; do [ \"$(readlink $p/exe)\" = /usr/bin/{process} ] && grep VmRSS $p/status; done; true"
    );
    let said = cluster.machine(node).run(&["sh", "-c", &script])?;
    let kib = said
        .split_whitespace()
        .nth(1)
        .context(format_args!("no {process} on {node}"))?;
    let kib: f64 = kib.parse().context(&said)?;
    Ok(kib / 1024.0)
}
