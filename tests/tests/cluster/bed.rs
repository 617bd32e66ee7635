//! The test bed itself, without a mesh: what a later failure must not be blamed on.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use tests::app::{Manner, Server, ask};
use tests::cluster::{Cluster, NODES, PATIENCE, Space};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "names_resolve_over_both_families_on_both_nodes",
        names_resolve,
    ),
    (
        "pods_reach_each_other_and_services_on_both_nodes",
        pods_reach_each_other,
    ),
    (
        "a_second_cluster_of_the_same_name_is_refused",
        same_name_is_refused,
    ),
    (
        "what_a_crash_left_is_found_and_removed",
        crash_leaves_nothing,
    ),
    (
        "a_killed_node_starts_its_pods_again_from_its_disk",
        killed_node_comes_back,
    ),
];

fn names_resolve() -> Outcome {
    let space = Space::without_mesh("names")?;
    for node in NODES {
        let pod = space.pod(&format!("on-{node}"), node)?;
        for server in ["10.96.0.10", "fd00:10:96::a"] {
            let answer = pod.exec(&["nslookup", "kubernetes.default.svc.cluster.local", server])?;
            ensure(
                answer.contains("10.96.0.1"),
                format_args!("{server} on {node}: {answer}"),
            )?;
        }
    }
    Ok(())
}

fn pods_reach_each_other() -> Outcome {
    let space = Space::without_mesh("reach")?;
    let service = space.service("server", "server", &[("app", 80, json!(8080))])?;
    let server = space.pod("server", NODES[0])?.site()?;
    let app = Server::start(&server, 8080, Manner::Whoami)?;
    for node in NODES {
        let client = space.pod(&format!("client-{node}"), node)?.site()?;
        for (own, pod, service) in [
            (
                client.addresses.v4.into(),
                app.v4(),
                SocketAddr::from((service.addresses.v4, 80)),
            ),
            (
                client.addresses.v6.into(),
                app.v6(),
                SocketAddr::from((service.addresses.v6, 80)),
            ),
        ] {
            let own: std::net::IpAddr = own;
            for to in [pod, service] {
                // kube-proxy learns of a Service a moment after the API server does.
                let answer = poll::until_ok(PATIENCE, || ask(&client, to, b""))?;
                let seen = answer
                    .trim()
                    .strip_prefix("you are ")
                    .context("no greeting")?;
                let seen: SocketAddr = seen.parse().context(seen)?;
                ensure_eq(seen.ip(), own, format_args!("whom {to} sees from {node}"))?;
            }
        }
    }
    Ok(())
}

fn same_name_is_refused() -> Outcome {
    let cluster = Cluster::find()?;
    let _turn = cluster.share();
    let Err(said) = cluster.script("up", &[]) else {
        return ensure(false, "a second `up` ended well");
    };
    ensure(
        said.to_string().contains("it is up already"),
        format_args!("the error does not say why: {said}"),
    )
}

fn crash_leaves_nothing() -> Outcome {
    let cluster = Cluster::find()?;
    // A second cluster takes what others may be measuring with.
    let _turn = cluster.alone();
    let name = format!("crash{:04x}", fastrand::u16(..));
    let place = |suffix: &str| format!("/run/netns/{name}-{suffix}");
    let mut up = cluster
        .script_command("up", &[])
        .env("AMBIT_CLUSTER", &name)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let begun = poll::until("the other cluster's API server runs", PATIENCE, || {
        let pids = tests::command::run("ip", ["netns", "pids", &format!("{name}-control")]).ok()?;
        (Path::new(&place("node2")).exists() && pids.lines().count() > 1).then_some(())
    });
    up.kill()?;
    let _killed = up.wait()?;
    let mut down = cluster.script_command("down", &[]);
    let said = down.env("AMBIT_CLUSTER", &name).output()?;
    begun?;
    let logs = cluster.folder().with_file_name(&name);
    std::fs::remove_dir_all(&logs).context(logs.display())?;
    ensure(said.status.success(), format_args!("down failed: {said:?}"))?;
    for suffix in ["control", "node1", "node2"] {
        ensure(
            !Path::new(&place(suffix)).exists(),
            format_args!("{} is still there", place(suffix)),
        )?;
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").context("cgroups")? {
        let group = hierarchy?.path().join(format!("{name}-node1"));
        ensure(
            !group.exists(),
            format_args!("{} is still there", group.display()),
        )?;
    }
    Ok(())
}

fn killed_node_comes_back() -> Outcome {
    let space = Space::without_mesh_alone("killed")?;
    let machine = space.cluster.machine(NODES[1]);
    let pod = space.pod("survivor", machine.name())?;
    pod.exec(&["sh", "-c", "echo one > /tmp/mark"])?;
    machine.run(&["touch", "/run/gone"])?;
    let before = machine.path("/")?;
    machine.kill()?;
    ensure(!before.exists(), "its first process still runs")?;
    machine.start()?;
    let again = poll::until_ok(PATIENCE, || {
        let pod = space.found("survivor")?;
        pod.exec(&["true"])?;
        Ok::<_, tests::failure::Failure>(pod)
    })?;
    ensure_eq(&again.uid, &pod.uid, "the pod's uid")?;
    ensure(
        machine.run(&["ls", "/run/gone"]).is_err(),
        "/run outlived the power cut",
    )
}
