//! What the node's own namespace does in a real kernel: probes of root come from the probe address and are not captured,
//! nothing else is exempt, and removing leaves nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use cni_plugin::host;
use cni_plugin::redirect::ruleset::{Families, Phase, PodNet, Probes};
use cni_plugin::redirect::{self, Applied};
use tests::app::{Manner, Server};
use tests::command::{in_netns, run_in, text};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside::inside;
use tests::netns::{Site, World};

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "probes_of_root_come_from_the_probe_address",
        probes_of_root_come_from_the_probe_address,
    ),
    (
        "other_users_ports_and_pods_are_not_exempt",
        other_users_ports_and_pods_are_not_exempt,
    ),
    (
        "a_captured_pod_answers_probes_and_nobody_else",
        a_captured_pod_answers_probes_and_nobody_else,
    ),
    (
        "the_kernel_holds_exactly_the_targets",
        the_kernel_holds_exactly_the_targets,
    ),
    ("a_thousand_targets_are_held", a_thousand_targets_are_held),
    (
        "removing_leaves_the_node_as_it_was",
        removing_leaves_the_node_as_it_was,
    ),
];

/// A port with a probe on it, and one without.
const PROBED: u16 = 8080;
const OTHER: u16 = 8081;
/// A user that is not root.
const SOMEBODY: &str = "1000";

/// A node with a pod that tells everybody who he is, and a neighbour.
struct Scene {
    world: World,
    pod: Site,
    neighbour: Site,
}

impl Scene {
    fn new(name: &str) -> Outcome<Self> {
        let world = World::new(name, 1)?;
        let (pod, neighbour) = (world.add_pod(0, "pod")?, world.add_pod(0, "neighbour")?);
        for port in [PROBED, OTHER] {
            Server::start(&pod, port, Manner::Whoami)?;
        }
        Ok(Self {
            world,
            pod,
            neighbour,
        })
    }

    fn node(&self) -> Outcome<&Path> {
        Ok(&self.world.node(0)?.site.netns)
    }

    fn targets(&self) -> BTreeSet<SocketAddr> {
        let addresses = self.pod.addresses.both().into_iter();
        addresses.map(|addr| (addr, PROBED).into()).collect()
    }

    fn apply(&self, targets: &BTreeSet<SocketAddr>) -> Outcome<Applied> {
        inside(self.node()?, || {
            host::apply(&Probes::ISTIO, targets).context("apply")
        })
    }

    fn verify(&self, targets: &BTreeSet<SocketAddr>) -> Outcome<bool> {
        inside(self.node()?, || {
            host::verify(&Probes::ISTIO, targets).context("verify")
        })
    }
}

/// Whom the app at `to` sees when this user connects from the namespace; none when nobody answers.
fn seen(from: &Path, user: &str, to: SocketAddr) -> Outcome<Option<IpAddr>> {
    let mut command = in_netns(from, "setpriv");
    command
        .args(["--reuid", user, "--clear-groups", "nc", "-N", "-w2"])
        .args([to.ip().to_string(), to.port().to_string()])
        .stdin(Stdio::null());
    let output = command
        .output()
        .context(format_args!("start {command:?}"))?;
    let said = text(&output.stdout);
    let Some(address) = said.trim().strip_prefix("you are ") else {
        return Ok(None);
    };
    let address: SocketAddr = address.parse().context(format_args!("read {said:?}"))?;
    Ok(Some(address.ip().to_canonical()))
}

fn probe_addresses() -> Outcome<[IpAddr; 2]> {
    let Probes { v4, v6 } = Probes::ISTIO;
    Ok([v4.context("IPv4")?.into(), v6.context("IPv6")?.into()])
}

fn probes_of_root_come_from_the_probe_address() -> Outcome {
    let scene = Scene::new("probing")?;
    ensure_eq(scene.apply(&scene.targets())?, Applied::Written, "applied")?;
    for (target, probe) in scene.targets().into_iter().zip(probe_addresses()?) {
        ensure_eq(seen(scene.node()?, "0", target)?, Some(probe), target)?;
    }
    Ok(())
}

fn other_users_ports_and_pods_are_not_exempt() -> Outcome {
    let scene = Scene::new("bypass")?;
    scene.apply(&scene.targets())?;
    let probes = probe_addresses()?;
    let differs = |who: &str, seen: Option<IpAddr>| {
        let seen = seen.context(format_args!("{who} is not answered"))?;
        ensure(
            !probes.contains(&seen),
            format_args!("{who} is seen as {seen}"),
        )
    };
    for target in scene.targets() {
        differs("another user", seen(scene.node()?, SOMEBODY, target)?)?;
        let unprobed = (target.ip(), OTHER).into();
        differs("root at another port", seen(scene.node()?, "0", unprobed)?)?;
        differs("root of a pod", seen(&scene.neighbour.netns, "0", target)?)?;
        let control = &scene.world.control().netns;
        run_in(control, "sh", ["-c", &route_to_pods(&scene)?])?;
        differs("root of another machine", seen(control, "0", target)?)?;
    }
    Ok(())
}

/// Leads another machine to the node's pods.
fn route_to_pods(scene: &Scene) -> Outcome<String> {
    let node = scene.world.node(0)?.site.addresses;
    let pod = scene.pod.addresses;
    Ok(format!(
        "ip route replace {} via {}; ip route replace {} via {}",
        pod.v4, node.v4, pod.v6, node.v6
    ))
}

fn a_captured_pod_answers_probes_and_nobody_else() -> Outcome {
    let scene = Scene::new("probed")?;
    scene.apply(&scene.targets())?;
    let pod = PodNet {
        families: Families::DUAL,
        probes: Probes::ISTIO,
        bypass_inbound: false,
        virtual_interfaces: Vec::new(),
    };
    // No ztunnel listens: whatever is captured is refused.
    inside(&scene.pod.netns, || {
        redirect::apply(&pod, Phase::Captured).context("capture")
    })?;
    for (target, probe) in scene.targets().into_iter().zip(probe_addresses()?) {
        ensure_eq(seen(scene.node()?, "0", target)?, Some(probe), target)?;
        ensure_eq(seen(scene.node()?, SOMEBODY, target)?, None, "another user")?;
        let unprobed = (target.ip(), OTHER).into();
        ensure_eq(seen(scene.node()?, "0", unprobed)?, None, "another port")?;
        ensure_eq(seen(&scene.neighbour.netns, "0", target)?, None, "a pod")?;
    }
    Ok(())
}

fn the_kernel_holds_exactly_the_targets() -> Outcome {
    let scene = Scene::new("targets")?;
    let targets = scene.targets();
    ensure_eq(scene.apply(&targets)?, Applied::Written, "first")?;
    ensure_eq(scene.apply(&targets)?, Applied::Unchanged, "again")?;
    let node = scene.node()?;
    let table = run_in(node, "nft", ["list", "table", "inet", host::HOST_TABLE])?;
    ensure(
        table.contains("meta skuid 0 ip daddr . tcp dport @probed4 snat ip to 169.254.7.127"),
        format_args!("nft shows {table}"),
    )?;
    for tampering in [
        "add element inet ambit-host probed4 { 10.9.9.9 . 80 }",
        "flush set inet ambit-host probed6",
        "add set inet ambit-host more { type ipv4_addr; }",
        "flush chain inet ambit-host postrouting",
        "add rule inet ambit-host postrouting accept",
        "delete table inet ambit-host",
    ] {
        run_in(node, "nft", [tampering])?;
        ensure(
            !scene.verify(&targets)?,
            format_args!("not seen: {tampering}"),
        )?;
        ensure_eq(scene.apply(&targets)?, Applied::Written, tampering)?;
        ensure(
            scene.verify(&targets)?,
            format_args!("not put right: {tampering}"),
        )?;
    }
    let fewer = targets.iter().copied().take(1).collect();
    ensure_eq(scene.apply(&fewer)?, Applied::Written, "fewer")?;
    let [_, probe] = probe_addresses()?;
    for target in targets.difference(&fewer) {
        let seen = seen(node, "0", *target)?;
        ensure(
            seen.is_some_and(|ip| ip != probe),
            format_args!("{target}: {seen:?}"),
        )?;
    }
    Ok(())
}

fn a_thousand_targets_are_held() -> Outcome {
    let scene = Scene::new("thousand")?;
    let mut targets = scene.targets();
    for n in 0..2500_u16 {
        let [high, low] = n.to_be_bytes();
        targets.insert(([10, 244, high, low], 9000).into());
    }
    ensure_eq(scene.apply(&targets)?, Applied::Written, "applied")?;
    ensure(scene.verify(&targets)?, "the kernel holds others")?;
    for (target, probe) in scene.targets().into_iter().zip(probe_addresses()?) {
        ensure_eq(seen(scene.node()?, "0", target)?, Some(probe), target)?;
    }
    Ok(())
}

fn removing_leaves_the_node_as_it_was() -> Outcome {
    let scene = Scene::new("hostgone")?;
    let node = scene.node()?;
    run_in(
        node,
        "nft",
        ["add table inet others; add chain inet others c"],
    )?;
    let before = run_in(node, "nft", ["list", "ruleset"])?;
    inside(node, || host::remove().context("remove nothing"))?;
    for how in ["removed", "no targets any more"] {
        scene.apply(&scene.targets())?;
        ensure(
            run_in(node, "nft", ["list", "ruleset"])? != before,
            "nothing was written",
        )?;
        if how == "removed" {
            inside(node, || host::remove().context("remove"))?;
        } else {
            scene.apply(&BTreeSet::new())?;
        }
        ensure_eq(
            run_in(node, "nft", ["list", "ruleset"])?,
            before.clone(),
            how,
        )?;
    }
    Ok(())
}
