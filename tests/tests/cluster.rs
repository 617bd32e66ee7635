//! Tests on a real two-node Kubernetes. `tests/cluster/up` once, then `cargo test -p tests --test cluster [NAME]`.
//!
//! `tests/cluster/test` does both and takes the cluster down. Each test has its own namespaces and can run, and fail, alone; the first
//! that needs the mesh installs it. Tests that break what all share wait until they are alone.
#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "measured figures are shown; an object of the API is changed by pod[\"spec\"][..], which only panics on what is none"
)]

#[path = "cluster/adding.rs"]
mod adding;
#[path = "cluster/bed.rs"]
mod bed;
#[path = "cluster/control.rs"]
mod control;
#[path = "cluster/failing.rs"]
mod failing;
#[path = "cluster/installing.rs"]
mod installing;
#[path = "cluster/operating.rs"]
mod operating;
#[path = "cluster/services.rs"]
mod services;
#[path = "cluster/joining.rs"]
mod joining;
#[path = "cluster/policies.rs"]
mod policies;
#[path = "cluster/probing.rs"]
mod probing;
#[path = "cluster/carrying.rs"]
mod carrying;
#[path = "cluster/uninstalling.rs"]
mod uninstalling;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use tests::cluster::journal;
use tests::failure::Outcome;

/// A test: what it claims, and how to see it.
type Claim = (&'static str, fn() -> Outcome);

/// Tests at once: they wait for Kubernetes most of their time.
const AT_ONCE: usize = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(AT_ONCE));
    libtest_mimic::run(&arguments, trials()).exit_code()
}

fn trials() -> Vec<Trial> {
    let subjects: &[(&str, &[Claim])] = &[
        ("adding", adding::CLAIMS),
        ("bed", bed::CLAIMS),
        ("installing", installing::CLAIMS),
        ("joining", joining::CLAIMS),
        ("operating", operating::CLAIMS),
        ("control", control::CLAIMS),
        ("services", services::CLAIMS),
        ("failing", failing::CLAIMS),
        ("policies", policies::CLAIMS),
        ("probing", probing::CLAIMS),
        ("carrying", carrying::CLAIMS),
        ("uninstalling", uninstalling::CLAIMS),
    ];
    let mut trials = Vec::new();
    for (subject, claims) in subjects {
        for (name, test) in *claims {
            trials.push(Trial::test(format!("{subject}::{name}"), || perform(*test)));
        }
    }
    trials
}

/// Runs one test; its failure comes with what it did and was answered.
fn perform(test: fn() -> Outcome) -> Result<(), Failed> {
    journal::begin();
    test().map_err(|cause| format!("{cause}\n\nits steps:\n{}", journal::tell()).into())
}
