//! What the redirection does in a real kernel: its rules are the golden ones, it captures both directions and both
//! families, joining and leaving cut nothing, and removing leaves nothing.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cni_plugin::redirect::ruleset::{Families, InterfaceName, Phase, PodNet, Probes, for_pod};
use cni_plugin::redirect::{self, Applied, RedirectError};
use tests::app::{Manner, Server};
use tests::command::{in_netns, run_in};
use tests::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use tests::inside::{self, inside};
use tests::netns::{Site, World};
use tests::poll;

use crate::Claim;
use crate::stand_in::StandIn;
use crate::talk::Talk;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "kernel_holds_exactly_the_printed_rules",
        kernel_holds_exactly_the_printed_rules,
    ),
    (
        "both_directions_and_families_are_captured",
        both_directions_and_families_are_captured,
    ),
    (
        "what_stays_in_the_pod_is_not_captured",
        what_stays_in_the_pod_is_not_captured,
    ),
    ("probes_are_not_captured", probes_are_not_captured),
    (
        "joining_and_leaving_cut_nothing",
        joining_and_leaving_cut_nothing,
    ),
    (
        "new_connections_wait_while_a_pod_joins",
        new_connections_wait_while_a_pod_joins,
    ),
    (
        "joining_spares_connections_whose_peer_speaks_first",
        joining_spares_connections_whose_peer_speaks_first,
    ),
    (
        "a_pod_without_ipv6_is_captured",
        a_pod_without_ipv6_is_captured,
    ),
    ("repairing_cuts_nothing", repairing_cuts_nothing),
    ("every_tampering_is_seen", every_tampering_is_seen),
    (
        "removing_leaves_nothing_behind",
        removing_leaves_nothing_behind,
    ),
    (
        "a_failed_start_leaves_nothing_behind",
        a_failed_start_leaves_nothing_behind,
    ),
];

/// Port of the app in a pod.
const PORT: u16 = 8080;

fn pod_net() -> PodNet {
    PodNet {
        families: Families::DUAL,
        probes: Probes::ISTIO,
        bypass_inbound: false,
        virtual_interfaces: Vec::new(),
    }
}

fn apply(netns: &Path, pod: &PodNet, phase: Phase) -> Outcome<Applied> {
    inside(netns, || redirect::apply(pod, phase).context("apply"))
}

fn verify(netns: &Path, pod: &PodNet, phase: Phase) -> Outcome<bool> {
    inside(netns, || redirect::verify(pod, phase).context("verify"))
}

fn captured_connections(netns: &Path) -> Outcome<usize> {
    inside(netns, || redirect::captured_connections().context("count"))
}

fn rules(netns: &Path) -> Outcome<String> {
    run_in(netns, "nft", ["list", "ruleset"])
}

/// Everything that redirection may touch in a namespace, as text.
fn state(netns: &Path) -> Outcome<String> {
    let mut all = rules(netns)?;
    for args in [
        &["rule", "show"][..],
        &["-6", "rule", "show"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["netns", "identify"],
    ] {
        all.push_str(&run_in(netns, "ip", args)?);
    }
    Ok(all)
}

/// Pods of every kind that rules differ for.
fn kinds_of_pods() -> Vec<PodNet> {
    let only = |v4, v6| PodNet {
        families: Families { v4, v6 },
        ..pod_net()
    };
    let mut kinds = vec![pod_net(), only(true, false), only(false, true)];
    kinds.push(PodNet {
        probes: Probes::default(),
        ..pod_net()
    });
    kinds.push(PodNet {
        bypass_inbound: true,
        ..pod_net()
    });
    let interfaces = ["vnet0", "br-vm"].into_iter();
    kinds.push(PodNet {
        virtual_interfaces: interfaces.filter_map(InterfaceName::new).collect(),
        ..pod_net()
    });
    kinds
}

fn kernel_holds_exactly_the_printed_rules() -> Outcome {
    let world = World::new("golden", 1)?;
    let ours = world.add_pod(0, "ours")?.netns;
    let theirs = world.add_pod(0, "theirs")?.netns;
    for pod in kinds_of_pods() {
        for phase in [Phase::Joining, Phase::Captured, Phase::Leaving] {
            let what = format!("{pod:?} {phase:?}");
            apply(&ours, &pod, phase)?;
            run_in(&theirs, "nft", ["flush", "ruleset"])?;
            load(&theirs, &for_pod(&pod, phase).to_string())?;
            ensure_eq(rules(&ours)?, rules(&theirs)?, &what)?;
            ensure(verify(&ours, &pod, phase)?, &what)?;
            ensure_eq(apply(&ours, &pod, phase)?, Applied::Unchanged, &what)?;
        }
    }
    let wanted_rule = "32764:\tfrom all fwmark 0x111/0xfff lookup 100";
    for family in ["-4", "-6"] {
        let rule = run_in(&ours, "ip", [family, "rule", "show", "priority", "32764"])?;
        ensure_eq(rule.trim(), wanted_rule, "the routing rule")?;
        let route = run_in(&ours, "ip", [family, "route", "show", "table", "100"])?;
        ensure(route.starts_with("local default dev lo"), &route)?;
        ensure_eq(route.lines().count(), 1, "routes in our table")?;
    }
    Ok(())
}

/// Feeds rules to nft.
fn load(netns: &Path, text: &str) -> Outcome {
    let mut nft = in_netns(netns, "nft");
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin
        .take()
        .context("nft's input")?
        .write_all(text.as_bytes())?;
    ensure(nft.wait()?.success(), format_args!("nft refuses\n{text}"))
}

/// A pod under test and a neighbour outside of the mesh, an echo in each.
struct Scene {
    _world: World,
    pod: Site,
    neighbour: Site,
    pod_echo: Server,
    neighbour_echo: Server,
    stand_in: StandIn,
}

impl Scene {
    fn new(name: &str) -> Outcome<Self> {
        let world = World::new(name, 1)?;
        let pod = world.add_pod(0, "pod")?;
        let neighbour = world.add_pod(0, "neighbour")?;
        Ok(Self {
            pod_echo: Server::start(&pod, PORT, Manner::Echo)?,
            neighbour_echo: Server::start(&neighbour, PORT, Manner::Echo)?,
            stand_in: StandIn::start(&pod.netns)?,
            _world: world,
            pod,
            neighbour,
        })
    }

    /// A connection in each direction and family: out over IPv4, out over IPv6, in over IPv4, in over IPv6.
    fn talk(&self) -> Outcome<Vec<Talk>> {
        Ok(vec![
            Talk::start(&self.pod, self.neighbour_echo.v4())?,
            Talk::start(&self.pod, self.neighbour_echo.v6())?,
            Talk::start(&self.neighbour, self.pod_echo.v4())?,
            Talk::start(&self.neighbour, self.pod_echo.v6())?,
        ])
    }

    /// Connections that stay in the pod.
    fn talk_within(&self) -> Outcome<Vec<Talk>> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let targets = [self.pod_echo.v4(), self.pod_echo.v6(), local];
        targets
            .map(|to| Talk::start(&self.pod, to))
            .into_iter()
            .collect()
    }

    /// What the stand-in has taken: outbound, inbound.
    fn taken(&self) -> (usize, usize) {
        self.stand_in.taken()
    }
}

/// What the connections of [`Scene::talk`] and [`Scene::talk_within`] are, for messages.
const WAYS: [&str; 7] = [
    "out over IPv4",
    "out over IPv6",
    "in over IPv4",
    "in over IPv6",
    "to itself over IPv4",
    "to itself over IPv6",
    "over loopback",
];

fn say(talks: &mut [Talk], word: &str) -> Outcome {
    for (index, talk) in talks.iter_mut().enumerate() {
        let way = WAYS.get(index).copied().unwrap_or_default();
        talk.say(word).context(format_args!("{way}, {word}"))?;
    }
    Ok(())
}

fn both_directions_and_families_are_captured() -> Outcome {
    let scene = Scene::new("both")?;
    apply(&scene.pod.netns, &pod_net(), Phase::Captured)?;
    let mut talks = scene.talk()?;
    ensure_eq(scene.taken(), (2, 2), "captured connections, out and in")?;
    say(&mut talks, "more")?;
    // The app sees the client's own address although ztunnel opened the connection.
    let peers: Vec<IpAddr> = scene
        .pod_echo
        .visits()
        .iter()
        .map(|visit| visit.peer.ip().to_canonical())
        .collect();
    ensure_eq(
        peers,
        Vec::from(scene.neighbour.addresses.both()),
        "whom the app sees",
    )?;
    // A redirected connection has one entry, and one that ztunnel opened to the app another one.
    ensure_eq(
        captured_connections(&scene.pod.netns)?,
        6,
        "tracked captured connections",
    )?;
    drop(talks);
    poll::until_ok(poll::SOON, || {
        captured_connections(&scene.pod.netns).and_then(|n| ensure_eq(n, 0, "after the end"))
    })
}

fn what_stays_in_the_pod_is_not_captured() -> Outcome {
    let scene = Scene::new("self")?;
    apply(&scene.pod.netns, &pod_net(), Phase::Captured)?;
    let local = ["127.0.0.1", "127.9.9.9", "::1"].map(|addr| addr.parse::<IpAddr>());
    let own = scene.pod.addresses.both().map(Ok);
    for addr in own.into_iter().chain(local) {
        let addr = addr.context("an address")?;
        Talk::start(&scene.pod, (addr, PORT).into()).context(addr)?;
    }
    ensure_eq(scene.taken(), (0, 0), "captured within the pod")
}

fn probes_are_not_captured() -> Outcome {
    let scene = Scene::new("probe")?;
    apply(&scene.pod.netns, &pod_net(), Phase::Captured)?;
    // The neighbour plays the node: it has the addresses of probes, and the pod has a way back to them.
    let probes = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];
    let targets = scene.pod.addresses.both();
    let ways_back = scene.neighbour.addresses.both();
    for ((probe, target), way_back) in probes.iter().zip(targets).zip(ways_back) {
        let script = format!("ip addr add {probe} dev lo");
        run_in(&scene.neighbour.netns, "sh", ["-c", &script])?;
        let script = format!("ip route add {probe} via {way_back}");
        run_in(&scene.pod.netns, "sh", ["-c", &script])?;
        let script = format!("echo probe | nc -N -w5 -s {probe} {target} {PORT}");
        let answer = run_in(&scene.neighbour.netns, "sh", ["-c", &script])?;
        ensure_eq(answer.trim(), "probe", format_args!("answer to {probe}"))?;
    }
    ensure_eq(scene.taken(), (0, 0), "captured probes")?;
    scene.talk()?;
    ensure_eq(scene.taken(), (2, 2), "others are captured")
}

fn joining_and_leaving_cut_nothing() -> Outcome {
    let scene = Scene::new("join")?;
    let netns = &scene.pod.netns;
    let mut before = scene.talk()?;
    before.extend(scene.talk_within()?);
    apply(netns, &pod_net(), Phase::Captured)?;
    say(&mut before, "joined")?;
    ensure_eq(scene.taken(), (0, 0), "open connections are not captured")?;
    let mut captured = scene.talk()?;
    ensure_eq(scene.taken(), (2, 2), "new connections are captured")?;

    apply(netns, &pod_net(), Phase::Leaving)?;
    say(&mut before, "leaving")?;
    say(&mut captured, "leaving")?;
    let mut after = scene.talk()?;
    ensure_eq(
        scene.taken(),
        (2, 2),
        "new connections of a leaving pod are not captured",
    )?;
    ensure_eq(captured_connections(netns)?, 6, "still captured")?;
    drop(captured);
    poll::until_ok(poll::SOON, || {
        captured_connections(netns).and_then(|n| ensure_eq(n, 0, "after the end"))
    })?;
    inside(netns, || redirect::remove().context("remove"))?;
    say(&mut before, "left")?;
    say(&mut after, "left")?;

    apply(netns, &pod_net(), Phase::Captured)?;
    say(&mut before, "joined again")?;
    say(&mut after, "joined again")?;
    scene.talk()?;
    ensure_eq(scene.taken(), (4, 4), "captured again")
}

fn new_connections_wait_while_a_pod_joins() -> Outcome {
    let scene = Scene::new("wait")?;
    let netns = &scene.pod.netns;
    let mut before = scene.talk()?;
    apply(netns, &pod_net(), Phase::Joining)?;
    let begun = poll::now();
    let (opened, talked) = std::thread::scope(|scope| {
        let opened = scope.spawn(|| scene.talk());
        // Neither refused nor let through, for a while that is long for a handshake on one machine.
        let talked = poll::stays(Duration::from_millis(300), || {
            say(&mut before, "joining")?;
            ensure(!opened.is_finished(), "a new connection did not wait")
        });
        apply(netns, &pod_net(), Phase::Captured)?;
        let opened = opened
            .join()
            .unwrap_or_else(|_panic| Err(Failure::new("panicked")));
        Ok::<_, Failure>((opened, talked))
    })?;
    talked?;
    say(
        &mut opened.context("opened while the pod joined")?,
        "joined",
    )?;
    ensure_eq(scene.taken(), (2, 2), "all of them were captured")?;
    ensure(
        begun.elapsed() < Duration::from_secs(10),
        "they waited too long",
    )
}

fn joining_spares_connections_whose_peer_speaks_first() -> Outcome {
    let scene = Scene::new("first")?;
    // Connections that the pod opened and accepted by hand, so that either side can speak first after the join.
    let mut ends = Vec::new();
    for (from, to) in [
        (&scene.pod, &scene.neighbour),
        (&scene.neighbour, &scene.pod),
    ] {
        for addr in to.addresses.both() {
            let listener = inside::listen(&to.netns, (addr, 0).into())?;
            let opened = inside::connect(&from.netns, listener.local_addr()?)?;
            let (accepted, _) = listener.accept()?;
            ends.push((opened, accepted));
        }
    }
    apply(&scene.pod.netns, &pod_net(), Phase::Captured)?;
    for (index, (opened, accepted)) in ends.iter().enumerate() {
        // The first packet that connection tracking ever sees of it is data from the side that accepted.
        for (mut from, mut to) in [(accepted, opened), (opened, accepted)] {
            from.write_all(b"x")?;
            to.set_read_timeout(Some(inside::PATIENCE))?;
            to.read_exact(&mut [0])
                .context(format_args!("connection {index}"))?;
        }
    }
    ensure_eq(scene.taken(), (0, 0), "nothing was captured")
}

fn a_pod_without_ipv6_is_captured() -> Outcome {
    let scene = Scene::new("only4")?;
    let netns = &scene.pod.netns;
    run_in(
        netns,
        "sh",
        ["-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"],
    )?;
    let before = state(netns)?;
    let families = inside(netns, || Ok(Families::of_this_namespace()))?;
    ensure_eq(
        families,
        Families {
            v4: true,
            v6: false,
        },
        "its families",
    )?;
    let pod = PodNet {
        families,
        ..pod_net()
    };
    apply(netns, &pod, Phase::Captured)?;
    ensure(verify(netns, &pod, Phase::Captured)?, "verified")?;
    Talk::start(&scene.pod, scene.neighbour_echo.v4())?;
    Talk::start(&scene.neighbour, scene.pod_echo.v4())?;
    ensure_eq(scene.taken(), (1, 1), "captured")?;
    inside(netns, || redirect::remove().context("remove"))?;
    ensure_eq(state(netns)?, before, "after removing")
}

fn repairing_cuts_nothing() -> Outcome {
    let scene = Scene::new("repair")?;
    let netns = &scene.pod.netns;
    apply(netns, &pod_net(), Phase::Captured)?;
    let mut talks = scene.talk()?;
    run_in(
        netns,
        "nft",
        ["add", "chain", "inet", "ambit-nat", "foreign"],
    )?;
    ensure_eq(
        apply(netns, &pod_net(), Phase::Captured)?,
        Applied::Written,
        "repair",
    )?;
    say(&mut talks, "repaired")?;
    ensure(
        verify(netns, &pod_net(), Phase::Captured)?,
        "verified after the repair",
    )?;
    // Another set of options is another set of rules; what is open goes on.
    let other = PodNet {
        bypass_inbound: true,
        ..pod_net()
    };
    apply(netns, &other, Phase::Captured)?;
    say(&mut talks, "changed")
}

fn every_tampering_is_seen() -> Outcome {
    let scene = Scene::new("tamper")?;
    let netns = &scene.pod.netns;
    let tamper = [
        "nft flush chain inet ambit-nat output",
        "nft delete table inet ambit-mangle",
        "nft delete table inet ambit-nat",
        "nft add rule inet ambit-nat output accept",
        "nft insert rule inet ambit-nat prerouting tcp dport 22 accept",
        "nft add chain inet ambit-nat x",
        "nft 'add chain inet ambit-nat output { policy drop; }'",
        "nft 'add table inet ambit-nat { flags dormant; }'",
        "ip rule del priority 32764",
        "ip rule del priority 32764; ip rule add not fwmark 0x111/0xfff lookup 100 priority 32764",
        "ip rule del priority 32764; ip rule add from 10.0.0.0/8 fwmark 0x111/0xfff lookup 100 priority 32764",
        "ip -6 rule del priority 32764",
        "ip route flush table 100",
        "ip -6 route flush table 100",
    ];
    // A rule that differs from ours in a way that the kernel does not see when it looks for copies stays in the way.
    let clean = "while ip rule del priority 32764; do :; done 2>/dev/null; true";
    for command in tamper {
        run_in(netns, "sh", ["-c", clean])?;
        apply(netns, &pod_net(), Phase::Captured)?;
        ensure(
            verify(netns, &pod_net(), Phase::Captured)?,
            "verified before",
        )?;
        run_in(netns, "sh", ["-c", command])?;
        ensure(
            !verify(netns, &pod_net(), Phase::Captured)?,
            format_args!("not seen: {command}"),
        )?;
    }
    // Rules of others are none of our business.
    apply(netns, &pod_net(), Phase::Captured)?;
    run_in(
        netns,
        "sh",
        [
            "-c",
            "nft add table inet other; nft add table ip ambit-nat; ip rule add to 192.0.2.1 lookup 7",
        ],
    )?;
    ensure(
        verify(netns, &pod_net(), Phase::Captured)?,
        "verified beside others",
    )
}

fn removing_leaves_nothing_behind() -> Outcome {
    let scene = Scene::new("remove")?;
    let netns = &scene.pod.netns;
    run_in(
        netns,
        "sh",
        [
            "-c",
            "nft add table inet other; ip rule add fwmark 5 lookup 7",
        ],
    )?;
    let before = state(netns)?;
    inside(netns, || {
        redirect::remove().context("remove what is not there")
    })?;
    ensure_eq(state(netns)?, before.clone(), "after removing nothing")?;
    for phase in [Phase::Joining, Phase::Captured, Phase::Leaving] {
        apply(netns, &pod_net(), phase)?;
        ensure(state(netns)? != before, "nothing was made")?;
        inside(netns, || redirect::remove().context("remove"))?;
        ensure_eq(
            state(netns)?,
            before.clone(),
            format_args!("after removing {phase:?}"),
        )?;
    }
    Ok(())
}

fn a_failed_start_leaves_nothing_behind() -> Outcome {
    let scene = Scene::new("fail")?;
    let netns = &scene.pod.netns;
    let before = state(netns)?;
    // The last step fails: nobody but its owner may replace such a table.
    let nft = in_netns(netns, "nft")
        .args(["-i"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let mut nft = nft.context("nft -i")?;
    let mut typed = nft.stdin.take().context("nft's input")?;
    typed.write_all(b"add table inet ambit-nat { flags owner; }\n")?;
    poll::until("the foreign table", poll::SOON, || {
        rules(netns)
            .is_ok_and(|all| all.contains("ambit-nat"))
            .then_some(())
    })?;
    let failed = inside(netns, || Ok(redirect::apply(&pod_net(), Phase::Captured)))?;
    ensure(failed.is_err(), "the table of another owner was replaced")?;
    drop(typed);
    nft.wait()?;
    ensure_eq(state(netns)?, before.clone(), "after the failure")?;

    // A step in between fails: our routing table is somebody else's.
    run_in(
        netns,
        "ip",
        ["-6", "route", "add", "blackhole", "default", "table", "100"],
    )?;
    let before = state(netns)?;
    let failed = inside(netns, || Ok(redirect::apply(&pod_net(), Phase::Captured)))?;
    ensure(
        matches!(failed, Err(RedirectError::Disputed)),
        format_args!("the routing table is taken, but {failed:?}"),
    )?;
    ensure_eq(state(netns)?, before, "after the second failure")?;
    run_in(netns, "ip", ["-6", "route", "flush", "table", "100"])?;

    // The first step fails, and says what to do.
    run_in(netns, "ip", ["link", "set", "lo", "down"])?;
    let before = state(netns)?;
    let failed = inside(netns, || Ok(redirect::apply(&pod_net(), Phase::Captured)))?;
    match failed {
        Err(error @ RedirectError::LoopbackDown { .. }) => {
            ensure(error.to_string().contains("ip link set lo up"), &error)?
        }
        other => return Err(Failure::new(format!("lo is down, but {other:?}"))),
    }
    ensure_eq(state(netns)?, before, "after the third failure")
}
