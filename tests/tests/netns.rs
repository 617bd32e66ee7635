//! Tests of the whole data path in network namespaces. `cargo test -p tests --test netns [NAME]`.
//!
//! The program runs itself again inside private namespaces before any thread exists, so a crash leaves nothing behind.
#![expect(
    clippy::print_stdout,
    reason = "a measured figure is shown, whatever it is"
)]

#[path = "netns/world.rs"]
mod world;
#[path = "netns/stand_in.rs"]
mod stand_in;
#[path = "netns/talk.rs"]
mod talk;
#[path = "netns/redirect.rs"]
mod redirect;
#[path = "netns/host.rs"]
mod host;
#[path = "netns/finder.rs"]
mod finder;
#[path = "netns/node_agent.rs"]
mod node_agent;
#[path = "netns/stage.rs"]
mod stage;
#[path = "netns/capture.rs"]
mod capture;
#[path = "netns/stream.rs"]
mod stream;
#[path = "netns/tunnel.rs"]
mod tunnel;
#[path = "netns/policy.rs"]
mod policy;
#[path = "netns/control.rs"]
mod control;
#[path = "netns/files.rs"]
mod files;
#[path = "netns/lifecycle.rs"]
mod lifecycle;
#[path = "netns/agent.rs"]
mod agent;
#[path = "netns/handoff.rs"]
mod handoff;
#[path = "netns/startup.rs"]
mod startup;
#[path = "netns/cni.rs"]
mod cni;
#[path = "netns/demo.rs"]
mod demo;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use tests::failure::Outcome;
use tests::sandbox::{self, Place};

/// A test: what it claims, and how to see it.
type Claim = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    match sandbox::enter() {
        Ok(Place::Ended(code)) => code,
        Ok(Place::Inside(args)) => {
            libtest_mimic::run(&Arguments::from_iter(args), trials()).exit_code()
        }
        Err(cause) => {
            eprintln!("the namespace tests cannot run here: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> Vec<Trial> {
    let subjects: &[(&str, &[Claim])] = &[
        ("world", world::CLAIMS),
        ("redirect", redirect::CLAIMS),
        ("host", host::CLAIMS),
        ("finder", finder::CLAIMS),
        ("node_agent", node_agent::CLAIMS),
        ("capture", capture::CLAIMS),
        ("stream", stream::CLAIMS),
        ("tunnel", tunnel::CLAIMS),
        ("policy", policy::CLAIMS),
        ("control", control::CLAIMS),
        ("files", files::CLAIMS),
        ("lifecycle", lifecycle::CLAIMS),
        ("handoff", handoff::CLAIMS),
        ("startup", startup::CLAIMS),
        ("cni", cni::CLAIMS),
        ("demo", demo::CLAIMS),
    ];
    let mut trials = Vec::new();
    for (subject, claims) in subjects {
        for (name, test) in *claims {
            trials.push(Trial::test(format!("{subject}::{name}"), || {
                test().map_err(Into::into)
            }));
        }
    }
    trials
}
