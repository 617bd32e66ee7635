//! Runs a command to its end and returns what it printed; a failure shows command, status and output.
//!
//! Called by the harness for the tools of the system (`ip`, `nsenter`, `curl`). Long-running programs are in `process.rs`.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::failure::{Context as _, Failure, Outcome};

/// Runs `program` and returns its standard output.
///
/// # Errors
/// When it cannot be started or ends with another status than 0.
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Outcome<String> {
    let mut command = Command::new(program);
    command.args(args);
    checked(&mut command)
}

/// Runs `program` in the network namespace at `netns` and returns status and output, whatever they are.
///
/// # Errors
/// When it cannot be started.
pub fn output_in<A: AsRef<OsStr>>(
    netns: &Path,
    program: &str,
    args: impl IntoIterator<Item = A>,
) -> Outcome<Output> {
    let mut command = in_netns(netns, program);
    command.args(args).stdin(Stdio::null());
    command.output().context(format_args!("start {command:?}"))
}

/// Runs `program` in the network namespace at `netns` and returns its standard output.
///
/// # Errors
/// When it cannot be started or ends with another status than 0.
pub fn run_in<A: AsRef<OsStr>>(
    netns: &Path,
    program: &str,
    args: impl IntoIterator<Item = A>,
) -> Outcome<String> {
    let mut command = in_netns(netns, program);
    command.args(args);
    checked(&mut command)
}

/// A command that will run in the network namespace at `netns`; the process keeps its id when the program starts.
pub fn in_netns(netns: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .arg("--")
        .arg(program);
    command
}

/// Feeds `script` to `ip -batch` in the named network namespace: many changes by one process.
///
/// # Errors
/// When one of the lines fails; names it.
pub fn ip_batch(netns: &str, script: &str) -> Outcome {
    let mut child = Command::new("ip")
        .args(["-n", netns, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start `ip` (package iproute2)")?;
    child
        .stdin
        .take()
        .context("no standard input of ip")?
        .write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "ip -n {netns} -batch: {}\n{script}",
        text(&output.stderr)
    )))
}

/// Bytes of a program's output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn checked(command: &mut Command) -> Outcome<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(format_args!("start {command:?}"))?;
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Failure::new(format!(
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )))
}
