//! What ztunnel does with a handoff that is not right: it serves nothing by it, says why, and goes on with what was right.
//!
//! The pods are captured by the real rules, and the test plays the node agent.

use std::fs::File;
use std::path::PathBuf;

use ambit_net::wire::handoff::Request;
use cni_plugin::redirect;
use cni_plugin::redirect::ruleset::{Families, Phase, PodNet, Probes};
use tests::app::{Manner, Server, refused};
use tests::command::run_in;
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside::inside;
use tests::netns::{Site, World};
use tests::node::{Mesh, Setup};
use tests::poll::SOON;
use tests::process::Process;
use tests::sandbox::scratch;

use crate::Claim;
use crate::agent::{PlayedAgent, Session, add};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "refuses_a_pod_without_a_descriptor",
        refuses_a_pod_without_a_descriptor,
    ),
    (
        "refuses_a_pod_with_two_descriptors",
        refuses_a_pod_with_two_descriptors,
    ),
    (
        "refuses_a_descriptor_that_is_no_network_namespace",
        refuses_a_descriptor_that_is_no_network_namespace,
    ),
    (
        "refuses_a_removal_with_a_descriptor",
        refuses_a_removal_with_a_descriptor,
    ),
    ("refuses_what_is_no_message", refuses_what_is_no_message),
];

/// A node whose agent the test plays; two captured pods, of which one has an app.
struct Played {
    agent: PlayedAgent,
    ztunnel: Process,
    client: Site,
    pod: Site,
    server: Server,
    _world: World,
}

impl Played {
    fn start(name: &str) -> Outcome<Self> {
        let world = World::new(name, 1)?;
        let (client, pod) = (world.add_pod(0, "client")?, world.add_pod(0, "server")?);
        let server = Server::start(&pod, 7701, Manner::Sink)?;
        let folder = scratch().join(name);
        std::fs::create_dir_all(&folder)?;
        let socket: PathBuf = folder.join("played.sock");
        let agent = PlayedAgent::listen(&socket)?;
        let setup = Setup::new(folder).ztunnel("INPOD_UDS", &socket.display().to_string());
        let ztunnel = Mesh::proxy_alone(&world, &setup, 0)?;
        for pod in [&client, &pod] {
            let net = PodNet {
                families: Families::DUAL,
                probes: Probes::ISTIO,
                bypass_inbound: false,
                virtual_interfaces: Vec::new(),
            };
            inside(&pod.netns, || {
                redirect::apply(&net, Phase::Captured).context("capture")
            })?;
        }
        Ok(Self {
            agent,
            ztunnel,
            client,
            pod,
            server,
            _world: world,
        })
    }

    /// After a wrong packet: nothing listens in the pod, no byte reaches its app, and a right conversation works.
    fn check(
        mut self,
        session: &Session,
        answer: Option<Result<(), String>>,
        says: &str,
    ) -> Outcome {
        if let Some(answer) = answer {
            let said = answer.err().context("it was acknowledged")?;
            ensure(
                said.contains(says),
                format_args!("the answer does not say {says:?}: {said}"),
            )?;
            session.wait_for_end()?;
        }
        self.ztunnel
            .wait_for_line(SOON, |line| line.contains(says))?;
        let listening = run_in(&self.pod.netns, "ss", ["-Htln", "sport", "=", ":15008"])?;
        ensure_eq(listening.as_str(), "", "listeners in the pod")?;
        for to in [self.server.v4(), self.server.v6()] {
            refused(&self.client, to, b"secret")?;
        }
        self.server.untouched_since(0)?;
        let next = self.agent.accept()?;
        let netns = File::open(&self.pod.netns)?;
        ensure_eq(
            next.ask(&add(&self.pod), &[&netns])?,
            Some(Ok(())),
            "a right packet afterwards",
        )?;
        ensure_eq(
            next.ask(&Request::SnapshotSent, &[])?,
            Some(Ok(())),
            "the end of the snapshot",
        )
    }
}

fn refuses_a_pod_without_a_descriptor() -> Outcome {
    let played = Played::start("nofd")?;
    let session = played.agent.accept()?;
    let answer = session.ask(&add(&played.pod), &[])?;
    played.check(&session, answer, "0 descriptors")
}

fn refuses_a_pod_with_two_descriptors() -> Outcome {
    let played = Played::start("twofd")?;
    let session = played.agent.accept()?;
    let (right, other) = (
        File::open(&played.pod.netns)?,
        File::open(&played.client.netns)?,
    );
    let answer = session.ask(&add(&played.pod), &[&right, &other])?;
    played.check(&session, answer, "2 descriptors")
}

fn refuses_a_descriptor_that_is_no_network_namespace() -> Outcome {
    let played = Played::start("wrongfd")?;
    let session = played.agent.accept()?;
    let wrong = File::open("/proc/self/ns/mnt")?;
    let answer = session.ask(&add(&played.pod), &[&wrong])?;
    played.check(&session, answer, "not a network namespace")
}

fn refuses_a_removal_with_a_descriptor() -> Outcome {
    let played = Played::start("delfd")?;
    let session = played.agent.accept()?;
    let netns = File::open(&played.pod.netns)?;
    let answer = session.ask(
        &Request::Remove(ambit_core::names::PodUid::new("cast/server")),
        &[&netns],
    )?;
    played.check(&session, answer, "1 descriptors")
}

fn refuses_what_is_no_message() -> Outcome {
    let played = Played::start("garbage")?;
    let session = played.agent.accept()?;
    let answer = session.ask_bytes(&[0xff; 40], &[])?;
    played.check(&session, answer, "not a WorkloadRequest")
}
