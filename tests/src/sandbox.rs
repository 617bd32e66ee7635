//! Runs the whole test program in private namespaces (network, mount, pid), so that nothing it makes outlives it.
//!
//! Called first thing by `main` of the namespace tests and of the benchmarks, before any thread exists. The outer process
//! waits; when it dies, however it dies, the kernel ends everything inside. Without root a user namespace gives the
//! rights inside; only tcpdump refuses to run there, since it wants to change its user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::command::run;
use crate::failure::{Context as _, Outcome};

/// First argument of the copy that runs inside.
const INSIDE: &str = "--in-sandbox";

/// Where the program stands.
#[derive(Debug)]
pub enum Place {
    /// Inside; here are the program's own arguments, the name of the program first.
    Inside(Vec<OsString>),
    /// Outside, and the copy inside has ended with this code.
    Ended(ExitCode),
}

/// Puts the program into a sandbox, or notes that it is in one.
///
/// # Errors
/// When the namespaces cannot be made; says what is missing.
pub fn enter() -> Outcome<Place> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|arg| arg == INSIDE) {
        args.remove(1);
        prepare()?;
        return Ok(Place::Inside(args));
    }
    let program = std::env::current_exe().context("find the own program")?;
    let status = Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--net",
            "--mount",
            "--pid",
        ])
        .args(["--fork", "--kill-child=KILL", "--mount-proc"])
        .args(if nix::unistd::geteuid().is_root() {
            &[][..]
        } else {
            &["--map-root-user"][..]
        })
        .arg("--")
        .arg(program)
        .arg(INSIDE)
        .args(args.get(1..).unwrap_or_default())
        .status()
        .context("start `setpriv` and `unshare` (package util-linux)")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Place::Ended(ExitCode::from(code.unwrap_or(1))))
}

/// Directory of everything that a run inside writes; on a private tmpfs, gone with the sandbox.
pub fn scratch() -> PathBuf {
    Path::new("/run/ambit-test").to_path_buf()
}

/// Gives the sandbox its own empty `/run`: named network namespaces and sockets live there.
fn prepare() -> Outcome {
    run("mount", ["-t", "tmpfs", "tmpfs", "/run"])?;
    run("ip", ["link", "set", "lo", "up"])?;
    std::fs::create_dir_all(scratch()).context("make the scratch directory")
}
