//! The node agent as a program: it joins and leaves running pods without cutting anything, also over its own end, and with
//! a ztunnel that is not there, fails, or comes and goes. The ztunnel is a stand-in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cni_plugin::redirect;
use tests::app::{Manner, Server};
use tests::command::run_in;
use tests::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use tests::inside::{self, inside};
use tests::manifests::{Manifests, PodDocument, namespace};
use tests::netns::{Site, World};
use tests::node::program;
use tests::poll::{self, SOON};
use tests::process::{Launch, Process};
use tests::sandbox;

use crate::Claim;
use crate::stand_in::Ztunnel;
use crate::talk::Talk;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "running_pods_join_and_leave_without_a_cut",
        running_pods_join_and_leave_without_a_cut,
    ),
    (
        "no_connection_is_refused_on_the_way",
        no_connection_is_refused_on_the_way,
    ),
    (
        "connections_of_a_leaving_pod_have_their_time",
        connections_of_a_leaving_pod_have_their_time,
    ),
    (
        "a_restarted_agent_takes_up_what_is_captured",
        a_restarted_agent_takes_up_what_is_captured,
    ),
    (
        "a_pod_that_left_meanwhile_is_let_go",
        a_pod_that_left_meanwhile_is_let_go,
    ),
    (
        "a_broken_file_releases_nobody",
        a_broken_file_releases_nobody,
    ),
    (
        "without_ztunnel_a_joined_pod_is_cut_off",
        without_ztunnel_a_joined_pod_is_cut_off,
    ),
    (
        "what_ztunnel_refuses_is_offered_again",
        what_ztunnel_refuses_is_offered_again,
    ),
    ("a_bad_pod_harms_no_other", a_bad_pod_harms_no_other),
    ("a_pod_that_ends_is_withdrawn", a_pod_that_ends_is_withdrawn),
    ("changed_rules_are_put_right", changed_rules_are_put_right),
    (
        "release_all_leaves_nothing_behind",
        release_all_leaves_nothing_behind,
    ),
    (
        "missing_privilege_is_named_at_the_start",
        missing_privilege_is_named_at_the_start,
    ),
];

/// Port of the apps.
const PORT: u16 = 8080;
/// What a running pod may take to be captured, from its namespace joining.
const JOIN_LIMIT: Duration = Duration::from_secs(2);
/// Uid of the pod under test.
const POD: &str = "town/pod";

/// A node with an agent, a pod and a neighbour outside of the mesh, an echo in each.
struct Scene {
    world: World,
    folder: PathBuf,
    manifests: Manifests,
    agent: Process,
    pod: Site,
    neighbour: Site,
    pod_echo: Server,
    neighbour_echo: Server,
}

impl Scene {
    /// The pod is there, its namespace has not joined.
    fn new(name: &str) -> Outcome<Self> {
        let world = World::new(name, 1)?;
        let pod = world.add_pod(0, "pod")?;
        let neighbour = world.add_pod(0, "neighbour")?;
        let folder = sandbox::scratch().join(format!("agent-{name}"));
        let manifests = Manifests::new(folder.join("manifests"))?;
        let scene = Self {
            pod_echo: Server::start(&pod, PORT, Manner::Echo)?,
            neighbour_echo: Server::start(&neighbour, PORT, Manner::Echo)?,
            agent: launch(&world, &folder, &[])?,
            world,
            folder,
            manifests,
            pod,
            neighbour,
        };
        scene.manifests.put("pods.yaml", &document(&scene.pod))?;
        scene.join(false)?;
        Ok(scene)
    }

    /// Puts the pod's namespace into the mesh, or out of it.
    fn join(&self, joined: bool) -> Outcome {
        self.manifests.put("town.yaml", &namespace("town", joined))
    }

    fn ztunnel(&self) -> Outcome<Ztunnel> {
        Ztunnel::start(&self.folder.join("handoff"))
    }

    fn restart(&mut self) -> Outcome {
        self.agent = launch(&self.world, &self.folder, &[])?;
        Ok(())
    }

    /// A connection in each direction, one for each family.
    fn talk(&self) -> Outcome<Vec<Talk>> {
        Ok(vec![
            Talk::start(&self.pod, self.neighbour_echo.v4())?,
            Talk::start(&self.neighbour, self.pod_echo.v6())?,
        ])
    }

    /// Waits for a line of the agent's log about a pod.
    fn logged(&mut self, text: &str, pod: &str) -> Outcome {
        let about = |line: &str| line.contains(text) && line.contains(pod);
        self.agent.wait_for_line(SOON, about).map(|_line| ())
    }

    fn captured(&mut self) -> Outcome {
        self.logged("the pod is captured", POD)
    }

    /// True when no rule of ours is in the pod.
    fn is_free(&self) -> Outcome {
        let rules = run_in(&self.pod.netns, "nft", ["list", "ruleset"])?;
        ensure_eq(rules.as_str(), "", "rules in the pod")?;
        let route = run_in(&self.pod.netns, "ip", ["rule", "show", "priority", "32764"])?;
        ensure_eq(route.as_str(), "", "routing rules in the pod")
    }

    fn shows(&self, cause: Failure) -> Failure {
        Failure::new(format!("{cause}\n--- agent\n{}", self.agent.log()))
    }
}

fn document(pod: &Site) -> String {
    let document = PodDocument {
        namespace: "town",
        account: "default",
        node: "node1",
        site: pod,
    };
    document.yaml()
}

fn launch(world: &World, folder: &std::path::Path, more: &[(&str, &str)]) -> Outcome<Process> {
    let node = world.nodes().first().context("a node")?;
    let path = |name: &str| folder.join(name).display().to_string();
    let mut launch = Launch::new(
        "agent",
        program("ambit-cni-agent")?,
        folder.join("agent.log"),
    )
    .in_netns(&node.site.netns)
    .env("NODE_NAME", &node.site.name)
    .env("AMBIT_MANIFESTS", path("manifests"))
    .env("AMBIT_HANDOFF_SOCKET", path("handoff"))
    .env("AMBIT_STATE_DIR", path("state"))
    .env("AMBIT_VERIFY_INTERVAL", "1s")
    .env("AMBIT_LOG", "debug");
    for (name, value) in more {
        launch = launch.env(*name, *value);
    }
    launch.start()
}

fn say(talks: &mut [Talk], word: &str) -> Outcome {
    talks
        .iter_mut()
        .try_for_each(|talk| talk.say(word).context(word))
}

fn running_pods_join_and_leave_without_a_cut() -> Outcome {
    let mut scene = Scene::new("life")?;
    let ztunnel = scene.ztunnel()?;
    ztunnel
        .wait_for(0, "snapshot")
        .map_err(|cause| scene.shows(cause))?;
    let mut before = scene.talk()?;
    ensure_eq(ztunnel.taken(POD), (0, 0), "taken before")?;

    let joined = poll::now();
    scene.join(true)?;
    scene.captured()?;
    ensure(
        joined.elapsed() < JOIN_LIMIT,
        format_args!("captured after {:?}", joined.elapsed()),
    )?;
    say(&mut before, "joined")?;
    let mut captured = scene.talk()?;
    ensure_eq(ztunnel.taken(POD), (1, 1), "taken")?;

    scene.join(false)?;
    scene.logged("leaves the mesh", POD)?;
    let mut after = scene.talk()?;
    for talks in [&mut before, &mut captured, &mut after] {
        say(talks, "leaving")?;
    }
    ensure_eq(ztunnel.taken(POD), (1, 1), "new connections are not taken")?;
    let removed = "remove town/pod".to_owned();
    ensure(
        !ztunnel.events().contains(&removed),
        "ztunnel was told before the last connection ended",
    )?;
    drop(captured);
    ztunnel
        .wait_for(0, &removed)
        .map_err(|cause| scene.shows(cause))?;
    poll::until_ok(SOON, || scene.is_free())?;
    say(&mut before, "left")?;
    say(&mut after, "left")
}

fn no_connection_is_refused_on_the_way() -> Outcome {
    let mut scene = Scene::new("way")?;
    let ztunnel = scene.ztunnel()?;
    ztunnel.wait_for(0, "snapshot")?;
    let (pod, neighbour) = (scene.pod.clone(), scene.neighbour.clone());
    let (inward, outward) = (scene.pod_echo.v4(), scene.neighbour_echo.v4());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = |from: Site, to: SocketAddr| {
            let over = &over;
            scope.spawn(move || {
                let mut opened = 0_usize;
                while !over.load(Ordering::SeqCst) {
                    Talk::start(&from, to).context(format_args!("connection {opened} to {to}"))?;
                    opened += 1;
                }
                Ok::<_, Failure>(opened)
            })
        };
        let loads = [load(pod, outward), load(neighbour, inward)];
        let lived = join_and_leave_under_load(&mut scene, &ztunnel);
        over.store(true, Ordering::SeqCst);
        for load in loads {
            let opened = load
                .join()
                .unwrap_or_else(|_panic| Err(Failure::new("panicked")))?;
            ensure(
                opened > 20,
                format_args!("only {opened} connections were tried"),
            )?;
        }
        lived.map_err(|cause| scene.shows(cause))
    })
}

fn join_and_leave_under_load(scene: &mut Scene, ztunnel: &Ztunnel) -> Outcome {
    scene.join(true)?;
    scene.captured()?;
    poll::until_ok(SOON, || {
        let (outbound, inbound) = ztunnel.taken(POD);
        ensure(
            outbound > 0 && inbound > 0,
            format_args!("captured: {outbound}, {inbound}"),
        )
    })?;
    scene.join(false)?;
    poll::until_ok(SOON, || scene.is_free())
}

fn connections_of_a_leaving_pod_have_their_time() -> Outcome {
    let mut scene = Scene::new("time")?;
    scene.agent.stop(SOON)?;
    scene.agent = launch(
        &scene.world,
        &scene.folder,
        &[("AMBIT_LEAVE_TIMEOUT", "1s")],
    )?;
    let ztunnel = scene.ztunnel()?;
    scene.join(true)?;
    scene.captured()?;
    let captured = scene.talk()?;
    scene.join(false)?;
    ztunnel.wait_for(0, "remove town/pod")?;
    poll::until_ok(SOON, || scene.is_free()).map_err(|cause| scene.shows(cause))?;
    for mut talk in captured {
        ensure(
            talk.say("more").is_err(),
            "a captured connection outlived its time",
        )?;
    }
    scene.talk().map(drop)
}

fn a_restarted_agent_takes_up_what_is_captured() -> Outcome {
    let mut scene = Scene::new("again")?;
    let ztunnel = scene.ztunnel()?;
    scene.join(true)?;
    scene.captured()?;
    let mut talks = scene.talk()?;
    let handles = |scene: &Scene| run_in(&scene.pod.netns, "nft", ["-a", "list", "ruleset"]);
    let rules = handles(&scene)?;
    for crash in [false, true] {
        let from = ztunnel.events().len();
        if crash {
            scene.agent.crash()?;
        } else {
            scene.agent.stop(SOON)?;
        }
        say(&mut talks, "without an agent")?;
        scene.talk().context("new connections without an agent")?;
        scene.restart()?;
        ztunnel
            .wait_for(from, "snapshot")
            .map_err(|cause| scene.shows(cause))?;
        scene.captured()?;
        say(&mut talks, "with an agent")?;
        let events = ztunnel.events();
        let events = events.iter().skip(from);
        let named = events
            .clone()
            .take_while(|said| *said != "snapshot")
            .any(|said| said.ends_with("town/pod"));
        ensure(
            named,
            format_args!("the snapshot lacks the pod: {events:?}"),
        )?;
        ensure(
            !events.clone().any(|said| said.starts_with("remove")),
            format_args!("{events:?}"),
        )?;
        // A handle is another one when a rule was written anew.
        ensure_eq(
            handles(&scene)?,
            rules.clone(),
            "the rules after the restart",
        )?;
    }
    Ok(())
}

fn a_pod_that_left_meanwhile_is_let_go() -> Outcome {
    let mut scene = Scene::new("meanwhile")?;
    let ztunnel = scene.ztunnel()?;
    scene.join(true)?;
    scene.captured()?;
    let mut talks = scene.talk()?;
    scene.agent.crash()?;
    scene.manifests.remove("pods.yaml")?;
    let from = ztunnel.events().len();
    scene.restart()?;
    ztunnel.wait_for(from, "snapshot")?;
    scene.logged("leaves the mesh", POD)?;
    say(&mut talks, "leaving")?;
    // Also while it leaves, the agent may be restarted.
    scene.agent.crash()?;
    scene.restart()?;
    scene.logged("leaves the mesh", POD)?;
    say(&mut talks, "still leaving")?;
    drop(talks);
    poll::until_ok(SOON, || scene.is_free()).map_err(|cause| scene.shows(cause))?;
    ztunnel.wait_for(from, "remove town/pod")
}

fn a_broken_file_releases_nobody() -> Outcome {
    let mut scene = Scene::new("broken")?;
    let ztunnel = scene.ztunnel()?;
    scene.join(true)?;
    scene.captured()?;
    let pods = scene.manifests.text("pods.yaml")?;
    let from = ztunnel.events().len();
    scene.agent.crash()?;
    scene
        .manifests
        .put("pods.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [")?;
    scene.restart()?;
    scene.captured()?;
    scene.logged("pods.yaml", "")?;
    poll::stays(Duration::from_secs(4), || {
        ensure(
            !ztunnel
                .events()
                .iter()
                .skip(from)
                .any(|said| said.starts_with("remove")),
            "it was released",
        )
    })?;
    scene.talk()?;
    ensure(ztunnel.taken(POD) >= (1, 1), "it is captured")?;
    // And by no broken file later.
    scene.manifests.put("pods.yaml", &pods)?;
    scene.manifests.put("more.yaml", "kind: [")?;
    scene.join(false)?;
    scene.logged("leaves the mesh", POD)
}

fn without_ztunnel_a_joined_pod_is_cut_off() -> Outcome {
    let mut scene = Scene::new("alone")?;
    scene.join(true)?;
    scene.logged("no ztunnel has taken it", POD)?;
    ensure(
        inside::connect(&scene.pod.netns, scene.neighbour_echo.v4()).is_err(),
        "it went around the mesh",
    )?;
    ensure(
        inside::connect(&scene.neighbour.netns, scene.pod_echo.v4()).is_err(),
        "it was reached around the mesh",
    )?;
    let ztunnel = scene.ztunnel()?;
    scene.captured()?;
    scene.talk()?;
    ensure_eq(ztunnel.taken(POD), (1, 1), "taken")
}

fn what_ztunnel_refuses_is_offered_again() -> Outcome {
    let mut scene = Scene::new("refused")?;
    let ztunnel = scene.ztunnel()?;
    ztunnel.refuse(true);
    scene.join(true)?;
    scene.logged("it does not want to serve the pod", POD)?;
    ensure(
        inside::connect(&scene.pod.netns, scene.neighbour_echo.v4()).is_err(),
        "it went around the mesh",
    )?;
    ztunnel.refuse(false);
    scene.captured()?;
    scene.talk().map(drop)
}

fn a_bad_pod_harms_no_other() -> Outcome {
    let mut scene = Scene::new("bad")?;
    let _ztunnel = scene.ztunnel()?;
    let node = scene.world.nodes().first().context("a node")?.site.clone();
    let not_there = Site {
        name: "absent".into(),
        netns: "/run/netns/ambit-nobody".into(),
        ..scene.pod.clone()
    };
    let the_node = Site {
        name: "node-itself".into(),
        netns: node.netns,
        ..scene.pod.clone()
    };
    let twin = Site {
        name: "twin".into(),
        ..scene.pod.clone()
    };
    let lame = scene.world.add_pod(0, "lame")?;
    run_in(&lame.netns, "ip", ["link", "set", "lo", "down"])?;
    let all = [&not_there, &the_node, &lame, &scene.pod, &twin].map(document);
    scene.manifests.put("pods.yaml", &all.join("---\n"))?;
    scene.join(true)?;
    scene.captured()?;
    scene.logged("there is no network namespace at", "town/absent")?;
    scene.logged("the node's own network namespace", "town/node-itself")?;
    scene.logged("ip link set lo up", "town/lame")?;
    scene.logged("has the same uid or network namespace", "town/twin")?;
    // What was wrong can be put right without a restart.
    run_in(&lame.netns, "ip", ["link", "set", "lo", "up"])?;
    scene.logged("the pod is captured", "town/lame")
}

fn a_pod_that_ends_is_withdrawn() -> Outcome {
    let mut scene = Scene::new("ends")?;
    let ztunnel = scene.ztunnel()?;
    let short = scene.world.add_pod(0, "short")?;
    scene.manifests.put("short.yaml", &document(&short))?;
    scene.join(true)?;
    scene.logged("the pod is captured", "town/short")?;
    scene.world.remove_pod(&short)?;
    ztunnel
        .wait_for(0, "remove town/short")
        .map_err(|cause| scene.shows(cause))?;
    // Its successor of the same name and path is another one.
    let from = ztunnel.events().len();
    let _successor = scene.world.add_pod(0, "short")?;
    ztunnel
        .wait_for(from, "add town/short")
        .map_err(|cause| scene.shows(cause))
}

fn changed_rules_are_put_right() -> Outcome {
    let mut scene = Scene::new("right")?;
    let ztunnel = scene.ztunnel()?;
    scene.join(true)?;
    scene.captured()?;
    let mut talks = scene.talk()?;
    run_in(
        &scene.pod.netns,
        "nft",
        ["add", "chain", "inet", "ambit-nat", "foreign"],
    )?;
    run_in(&scene.pod.netns, "ip", ["rule", "del", "priority", "32764"])?;
    poll::until_ok(SOON, || {
        let rules = run_in(&scene.pod.netns, "nft", ["list", "ruleset"])?;
        let route = run_in(
            &scene.pod.netns,
            "ip",
            ["rule", "show", "priority", "32764"],
        )?;
        ensure(
            !rules.contains("foreign") && !route.is_empty(),
            "not put right",
        )
    })?;
    say(&mut talks, "repaired")?;
    ensure(
        !ztunnel
            .events()
            .iter()
            .any(|said| said.starts_with("remove")),
        "it was removed",
    )
}

/// Runs the agent's clean-up; whether it succeeded, and what it said.
fn release_all(scene: &Scene) -> Outcome<(bool, String)> {
    let node = scene.world.nodes().first().context("a node")?;
    let path = |name: &str| scene.folder.join(name).display().to_string();
    let log = scene.folder.join("release.log");
    let mut process = Launch::new("release", program("ambit-cni-agent")?, log)
        .args(["--release-all"])
        .in_netns(&node.site.netns)
        .env("NODE_NAME", &node.site.name)
        .env("AMBIT_MANIFESTS", path("manifests"))
        .env("AMBIT_HANDOFF_SOCKET", path("handoff"))
        .env("AMBIT_STATE_DIR", path("state"))
        .start()?;
    let status = process.wait(SOON)?;
    Ok((status.success(), process.log()))
}

fn release_all_leaves_nothing_behind() -> Outcome {
    let mut scene = Scene::new("release")?;
    let _ztunnel = scene.ztunnel()?;
    let pods = scene.manifests.text("pods.yaml")?;
    for by_memory in [true, false] {
        scene.join(true)?;
        scene.captured()?;
        let (done, said) = release_all(&scene)?;
        let refused = !done && said.contains("stop it first");
        ensure(refused, format_args!("beside a running agent: {said}"))?;
        scene.agent.stop(SOON)?;
        ensure(scene.is_free().is_err(), "SIGTERM has released the pod")?;
        if by_memory {
            scene.manifests.remove("pods.yaml")?;
        } else {
            std::fs::remove_dir_all(scene.folder.join("state"))?;
            scene.join(false)?;
        }
        let (done, said) = release_all(&scene)?;
        ensure(done, said)?;
        scene.is_free()?;
        let free = inside(&scene.pod.netns, || redirect::is_absent().context("absent"))?;
        ensure(free, "something is left")?;
        scene.talk()?;
        scene.manifests.put("pods.yaml", &pods)?;
        scene.restart()?;
    }
    Ok(())
}

fn missing_privilege_is_named_at_the_start() -> Outcome {
    let scene = Scene::new("rights")?;
    for (right, named) in [
        ("net_admin", "CAP_NET_ADMIN"),
        ("sys_admin", "CAP_SYS_ADMIN"),
    ] {
        let without = format!("-{right}");
        let agent = program("ambit-cni-agent")?.display().to_string();
        let folder = scene.folder.join(right);
        let mut process = Launch::new("agent", "setpriv", folder.join("log"))
            .args([
                "--bounding-set",
                &without,
                "--inh-caps",
                &without,
                "--",
                &agent,
            ])
            .env("NODE_NAME", "node1")
            .env(
                "AMBIT_MANIFESTS",
                scene.manifests.folder().display().to_string(),
            )
            .env(
                "AMBIT_HANDOFF_SOCKET",
                folder.join("handoff").display().to_string(),
            )
            .env(
                "AMBIT_STATE_DIR",
                folder.join("state").display().to_string(),
            )
            .start()?;
        let status = process.wait(SOON)?;
        let said = process.log();
        ensure(
            !status.success() && said.contains(named),
            format_args!("without {right}: {status}\n{said}"),
        )?;
    }
    Ok(())
}
