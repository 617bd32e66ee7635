//! Whether the installed mesh works: its programs, what they say of each other, certificates, and what the agents found.
//!
//! Pure: facts go in, checks come out. Pods of the mesh's users are in `captured.rs`.

use std::collections::BTreeSet;

use ambit_core::checks::{Check, Grade};
use ambit_core::status::{MeshStatus, ProxyStatus, TypeStatus};

use super::facts::{AgentAnswer, Facts, Mesh};
use super::nodes::count;
use super::{Section, captured};
use crate::mesh::{MeshPod, Program};
use crate::report::{ending, span};

/// This command's version, which is that of the programs released with it.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Time to plan a new root.
const ROOT_ENDS_SOON: u64 = 30 * 86_400;
/// Certificates are renewed at half of their lifetime; one that is so near its end was not.
const CERTIFICATE_ENDS_SOON: u64 = 60;

/// All checks of the mesh; `now` is in seconds since the epoch.
pub(super) fn all(facts: &Facts, mesh: &Mesh, now: u64) -> Vec<Section> {
    let pods = match &mesh.pods {
        Ok(pods) => pods.as_slice(),
        Err(why) => {
            let found = format!("cannot be looked at: {why}");
            let next = "the Role ambit-operator grants it (docs/install.md, Rights)";
            let check = Check::bad("programs", found, next);
            return vec![section("MESH", vec![check])];
        }
    };
    let namespace = &facts.namespace;
    let mut programs = vec![controllers(mesh, pods, namespace)];
    for program in [Program::Agent, Program::Ztunnel] {
        programs.push(on_each_node(facts, pods, program));
    }
    programs.push(versions(pods));
    if let Some(status) = &mesh.status {
        let certificates = certificates(status, now);
        programs.extend([answers(status), proxies(facts, status), certificates]);
    }
    let mut sections = vec![
        section("MESH", programs),
        section("NODES, AS THEIR AGENTS SEE THEM", agents(&mesh.agents)),
    ];
    if let Some(status) = &mesh.status {
        sections.push(section("PODS", captured::all(facts, status, &mesh.agents)));
    }
    sections
}

fn section(title: &'static str, checks: Vec<Check>) -> Section {
    Section { title, checks }
}

fn controllers(mesh: &Mesh, pods: &[MeshPod], namespace: &str) -> Check {
    const NAME: &str = "controllers";
    let ours: Vec<_> = of(pods, Program::Controller).collect();
    let ready = ours.iter().filter(|pod| pod.ready).count();
    let desired = mesh.desired.iter().find(|(p, _)| *p == Program::Controller);
    let desired = desired.map_or(ours.len(), |(_, number)| *number);
    let found = format!("{ready} of {desired} are ready");
    let unready = ours.iter().filter(|pod| !pod.ready);
    let details: Vec<_> = unready.map(|p| format!("{}: {}", p.name, p.why)).collect();
    if ready == 0 || ready < desired {
        let next = match details.is_empty() {
            true => format!("kubectl -n {namespace} describe replicasets says why there is no pod"),
            false => next_for(&ours, namespace, "controller"),
        };
        Check::bad(NAME, found, next).with(details)
    } else if ready == 1 {
        let next = "while it is replaced no certificate is renewed and no change arrives; two replicas avoid that";
        Check::note(NAME, found, next)
    } else {
        Check::good(NAME, found)
    }
}

/// The command that says more about the first pod that is not ready.
fn next_for(pods: &[&MeshPod], namespace: &str, container: &str) -> String {
    let unready = pods.iter().find(|pod| !pod.ready);
    let name = unready.map_or("POD", |pod| pod.name.as_str());
    format!(
        "kubectl -n {namespace} describe pod {name}, and kubectl -n {namespace} logs {name} -c {container}"
    )
}

/// An agent, or a ztunnel, on every Linux node.
fn on_each_node(facts: &Facts, pods: &[MeshPod], program: Program) -> Check {
    let name = match program {
        Program::Controller => "controllers",
        Program::Agent => "agents",
        Program::Ztunnel => "ztunnels",
    };
    let ours: Vec<_> = of(pods, program).collect();
    let nodes = facts.linux_nodes();
    let mut details = Vec::new();
    let mut ready = 0;
    for node in &nodes {
        let here: Vec<_> = ours.iter().filter(|pod| pod.node == node.name).collect();
        match here.iter().find(|pod| !pod.ready) {
            _ if here.iter().any(|pod| pod.ready) => ready += 1,
            Some(pod) => details.push(format!("{}: {}: {}", node.name, pod.name, pod.why)),
            None => details.push(format!("{}: there is none", node.name)),
        }
    }
    let found = format!("ready on {ready} of {}", count(nodes.len(), "node"));
    if details.is_empty() {
        return Check::good(name, found);
    }
    let namespace = &facts.namespace;
    let unready = ours.iter().any(|pod| !pod.ready);
    let next = match unready {
        true => next_for(&ours, namespace, program.component()),
        false => format!("kubectl -n {namespace} describe daemonsets says why there is no pod"),
    };
    Check::bad(name, found, next).with(details)
}

/// One version everywhere, also here.
fn versions(pods: &[MeshPod]) -> Check {
    const NAME: &str = "versions";
    let known = |pod: &&MeshPod| !pod.deleting && !pod.version.is_empty();
    let versions: BTreeSet<_> = pods.iter().filter(known).map(|p| &*p.version).collect();
    match versions.into_iter().collect::<Vec<_>>().as_slice() {
        [] => Check::note(
            NAME,
            "no pod says its version",
            "label them app.kubernetes.io/version",
        ),
        [one] if *one == VERSION => Check::good(NAME, format!("{one} everywhere")),
        [one] => Check::note(
            NAME,
            format!("the mesh has {one}, this command {VERSION}"),
            "use the ambit command of the mesh's version, or upgrade the mesh (docs/install.md, Upgrade)",
        ),
        several => {
            let each = several.iter().map(|version| {
                let with = pods.iter().filter(|pod| pod.version == *version);
                let names: Vec<_> = with.map(|pod| &*pod.name).collect();
                format!("{version}: {}", names.join(", "))
            });
            let next = "wait for the roll-out to end; where it does not, look at the pods above that are not ready";
            Check::bad(NAME, "the mesh has several", next).with(each.collect())
        }
    }
}

/// Every replica answers.
fn answers(status: &MeshStatus) -> Check {
    const NAME: &str = "status";
    let silent = status.replicas.iter().filter_map(|replica| {
        let why = replica.unanswered.as_ref()?;
        Some(format!("{}: {why}", replica.name))
    });
    let details: Vec<_> = silent.collect();
    if details.is_empty() {
        let replicas = count(status.replicas.len(), "controller");
        return Check::good(
            NAME,
            format!("{replicas} answered, trust domain {}", status.trust_domain),
        );
    }
    let next = "what follows may lack what these know; their logs, and your right to get and create pods/portforward";
    Check::bad(NAME, "not every controller answered", next).with(details)
}

/// Every proxy is connected and has taken what it was sent.
fn proxies(facts: &Facts, status: &MeshStatus) -> Check {
    const NAME: &str = "proxies";
    let other = |name: &str| {
        let nodes = facts.nodes.as_deref().unwrap_or_default();
        nodes
            .iter()
            .any(|node| node.name == name && node.os != "linux")
    };
    let nodes = status.nodes.iter().filter(|node| !other(&node.name));
    let away = nodes.clone().filter(|node| !node.connected);
    let away = away.map(|node| {
        format!(
            "{}: its ztunnel is not connected to a controller",
            node.name
        )
    });
    let connected = status.proxies.iter().filter(|proxy| proxy.connected);
    let behind = connected.clone().filter(|proxy| is_behind(proxy));
    let behind = behind.map(|proxy| {
        format!(
            "{}: has not acknowledged the latest configuration yet",
            proxy.node
        )
    });
    let (away, behind): (Vec<_>, Vec<_>) = (away.collect(), behind.collect());
    let refused: Vec<_> = connected.clone().flat_map(refusals).collect();
    let number = connected.count();
    if !away.is_empty() {
        let found = format!("{number} of {} are connected", nodes.count());
        let next = "the log of that ztunnel says what it waits for; it asks ambit-controller.ambit-system.svc:15012";
        Check::bad(NAME, found, next).with([away, refused, behind].concat())
    } else if !refused.is_empty() {
        let next = "the programs' versions differ, or an object holds what a proxy cannot read: its log names it";
        Check::bad(NAME, "a proxy refuses a part of its configuration", next)
            .with([refused, behind].concat())
    } else if !behind.is_empty() {
        let next = "ask again; a proxy that stays behind is stuck: its log says why";
        Check::note(
            NAME,
            format!("{number} connected, not all up to date"),
            next,
        )
        .with(behind)
    } else {
        Check::good(NAME, format!("{number} connected and up to date"))
    }
}

/// True when something has been sent that the proxy has neither taken nor refused.
fn is_behind(proxy: &ProxyStatus) -> bool {
    let waits = |held: &TypeStatus| !held.is_in_sync() && held.rejected.is_empty();
    proxy.types.iter().any(waits)
}

fn refusals(proxy: &ProxyStatus) -> Vec<String> {
    let rejected = proxy.types.iter().flat_map(|held| &held.rejected);
    rejected
        .map(|one| format!("{}: refuses {}: {}", proxy.node, one.name, one.cause))
        .collect()
}

fn certificates(status: &MeshStatus, now: u64) -> Check {
    const NAME: &str = "certificates";
    let left = status.root_not_after.map(|at| at.saturating_sub(now));
    let root = match status.root_not_after {
        Some(at) => format!("the root {}", ending(at, now)),
        None => "the root's end is not known".to_owned(),
    };
    let next_end = status.identities.iter().map(|i| i.not_after).min();
    let issued = count(status.identities.len(), "certificate");
    let found = match next_end {
        Some(at) => format!(
            "{root}; {issued} of workloads, the first ends in {}",
            span(at.saturating_sub(now))
        ),
        None => format!("{root}; none has been asked for yet"),
    };
    let soon = |at: u64| at.saturating_sub(now) < CERTIFICATE_ENDS_SOON;
    let late = status.identities.iter().filter(|one| soon(one.not_after));
    let late: Vec<_> = late
        .map(|one| {
            format!(
                "{} on {} {}",
                one.identity,
                one.node,
                ending(one.not_after, now)
            )
        })
        .collect();
    match left {
        Some(left) if left < ROOT_ENDS_SOON => {
            let next = "put the next root beside it in the Secret ambit-ca (docs/security.md) before it ends: then nothing is trusted";
            Check::bad(NAME, found, next)
        }
        _ if !late.is_empty() => {
            let next = "their ztunnels do not renew them, unless the pods have gone: read the logs of these nodes' ztunnels";
            Check::note(NAME, found, next).with(late)
        }
        Some(_) => Check::good(NAME, found),
        None => Check::note(NAME, found, "the controllers are older than this command"),
    }
}

/// What all agents say, one check for each name.
fn agents(agents: &[AgentAnswer]) -> Vec<Check> {
    let silent = agents.iter().filter_map(|agent| {
        let why = agent.says.as_ref().err()?;
        Some(format!("{}: {}: {why}", agent.node, agent.pod))
    });
    let silent: Vec<_> = silent.collect();
    let mut checks = Vec::new();
    if !silent.is_empty() || agents.is_empty() {
        let found = "not every agent answered";
        let next = "their logs, and your right to get and create pods/portforward";
        checks.push(Check::bad("agent-answers", found, next).with(silent));
    }
    let said = || {
        agents.iter().flat_map(|agent| {
            let says = agent.says.as_ref().ok();
            says.into_iter()
                .flat_map(|says| &says.checks.checks)
                .map(|check| (&*agent.node, check))
        })
    };
    let names: BTreeSet<_> = said().map(|(_, check)| &*check.name).collect();
    for name in names {
        let same: Vec<_> = said().filter(|(_, check)| check.name == name).collect();
        checks.push(together(name, &same));
    }
    checks
}

/// What several nodes say under one name.
fn together(name: &str, said: &[(&str, &Check)]) -> Check {
    let has = |grade| said.iter().any(|(_, check)| check.grade == grade);
    let grade = match (has(Grade::Bad), has(Grade::Note)) {
        (true, _) => Grade::Bad,
        (false, true) => Grade::Note,
        (false, false) => Grade::Good,
    };
    let worst = said.iter().filter(|(_, check)| check.grade == grade);
    let founds: BTreeSet<_> = worst.clone().map(|(_, check)| &*check.found).collect();
    let steps: BTreeSet<_> = worst.clone().map(|(_, check)| &*check.next_step).collect();
    let same_everywhere = founds.len() == 1 && worst.clone().count() == said.len();
    let found = match founds.first() {
        Some(one) if same_everywhere => format!("on {}: {one}", count(said.len(), "node")),
        _ => format!("{} of {}", worst.clone().count(), count(said.len(), "node")),
    };
    let mut details = Vec::new();
    for (node, check) in worst {
        if !same_everywhere {
            details.push(format!("{node}: {}", check.found));
        }
        details.extend(
            check
                .details
                .iter()
                .map(|detail| format!("{node}: {detail}")),
        );
    }
    let next = steps.into_iter().filter(|step| !step.is_empty());
    Check {
        name: name.to_owned(),
        grade,
        found,
        details,
        next_step: next.collect::<Vec<_>>().join("; "),
    }
}

fn of(pods: &[MeshPod], program: Program) -> impl Iterator<Item = &MeshPod> {
    pods.iter()
        .filter(move |pod| pod.program == program && !pod.deleting)
}

#[cfg(test)]
mod tests;
