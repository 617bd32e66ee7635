//! The demonstration is a test too: it must fail when what it shows is not true, and leave nothing behind.
//!
//! It runs in the sandbox of this test program, where /run and the names of namespaces are private.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::command::{run, text};
use tests::failure::{Outcome, ensure, ensure_eq};
use tests::node::program;
use tests::poll;
use tests::process::Launch;
use tests::sandbox::scratch;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[(
    "fails_when_encryption_is_broken_and_leaves_nothing",
    fails_when_encryption_is_broken_and_leaves_nothing,
)];

/// One test and not three: there can be only one demonstration at a time.
fn fails_when_encryption_is_broken_and_leaves_nothing() -> Outcome {
    let demo = program("ambit-demo")?.display().to_string();
    let output = std::process::Command::new(&demo)
        .args(["--break", "encryption"])
        .output()?;
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    ensure(!output.status.success(), format_args!("it passed:\n{said}"))?;
    ensure(
        complained.contains("the marker was seen on the link"),
        format_args!("{said}\n{complained}"),
    )?;
    nothing_left()?;
    interrupted(&demo)?;
    nothing_left()
}

fn interrupted(demo: &str) -> Outcome {
    let mut running =
        Launch::new("demonstration", demo, scratch().join("logs/demo.log")).start()?;
    // In the middle: namespaces and programs are there.
    running.wait_for_line(Duration::from_secs(20), |line| line.starts_with("2."))?;
    ensure(
        run("ip", ["netns", "list"])?.contains("ambit-demo-"),
        "nothing is there to be left behind",
    )?;
    running.signal(Signal::SIGINT)?;
    let status = running.wait(poll::SOON)?;
    ensure_eq(status.code(), Some(130), running.log())
}

fn nothing_left() -> Outcome {
    let names = run("ip", ["netns", "list"])?;
    ensure(!names.contains("ambit-demo-"), names)?;
    ensure(
        !std::path::Path::new("/run/ambit-demo").exists(),
        "the folder is left",
    )?;
    let processes = run("ps", ["-eo", "args"])?;
    ensure(!processes.contains("ambit-demo"), processes)
}
