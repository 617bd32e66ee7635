//! Life and end of the demonstration: one at a time, and nothing left behind however it ends.
//!
//! The program runs itself again as a worker that shows the acts; the first process waits for it and for signals, and
//! takes everything down. Leftovers of one that was killed are removed by the next.

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};

use super::{Options, acts};
use crate::failure::{Context as _, Failure, Outcome, ensure};
use crate::netns;

/// Name of the world: its namespaces are called `ambit-demo-…`.
pub(super) const WORLD: &str = "demo";

const USAGE: &str = "usage: ambit-demo [--keep] [--break encryption]
       ambit-demo --down        take down what --keep left running";

/// Marks the process that shows the acts.
const WORKER: &str = "--worker";

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// What the command line asks for.
enum Task {
    Show(Options),
    Down,
    Work(Options),
}

/// Runs the program with the arguments after its name.
pub fn main(words: &[String]) -> ExitCode {
    let result = task(words).and_then(|task| match task {
        Task::Work(options) => acts::play(&folder(), options).map(|()| ExitCode::SUCCESS),
        Task::Down => down().map(|()| ExitCode::SUCCESS),
        Task::Show(options) => show(options, words),
    });
    result.unwrap_or_else(|cause| {
        eprintln!("\nThe demonstration failed: {cause}");
        ExitCode::FAILURE
    })
}

/// Where manifests, logs and recordings are; on a file system that only root may enter here.
fn folder() -> PathBuf {
    Path::new("/run/ambit-demo").to_path_buf()
}

fn task(words: &[String]) -> Outcome<Task> {
    let mut options = Options::default();
    let mut worker = false;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--down" => return Ok(Task::Down),
            "--keep" => options.keep = true,
            "--break" => {
                ensure(words.next() == Some("encryption"), USAGE)?;
                options.break_encryption = true;
            }
            WORKER => worker = true,
            _ => return Err(Failure::new(USAGE)),
        }
    }
    Ok(if worker {
        Task::Work(options)
    } else {
        Task::Show(options)
    })
}

fn show(options: Options, words: &[String]) -> Outcome<ExitCode> {
    ensure(
        nix::unistd::geteuid().is_root(),
        "it makes network namespaces and rules in them: run it as root (`sudo make demo`)",
    )?;
    let _only_one = lock()?;
    take_down()?;
    let signals = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGCHLD,
    ]);
    signals.thread_block().context("block signals")?;
    let result = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(std::env::current_exe().context("find the own program")?)
        .arg(WORKER)
        .args(words)
        .spawn()
        .context("start the worker")
        .and_then(|worker| watch(worker, &signals));
    let kept = options.keep && matches!(result, Ok(Some(_)));
    if !kept {
        take_down()?;
    }
    Ok(match result? {
        Some(code) => ExitCode::from(code),
        None => ExitCode::from(INTERRUPTED),
    })
}

/// Waits for the worker's end or for a signal that ends it; returns its exit code, none when a signal came.
fn watch(mut worker: Child, signals: &SigSet) -> Outcome<Option<u8>> {
    loop {
        let signal = signals.wait().context("wait for signals")?;
        if signal != Signal::SIGCHLD {
            worker.kill()?;
            worker.wait()?;
            eprintln!("\n{signal}: taking everything down");
            return Ok(None);
        }
        if let Some(status) = worker.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(Some(code.unwrap_or(1)));
        }
    }
}

/// The worker lets signals through that its parent blocks: Ctrl-C ends it, and what it runs.
pub(super) fn let_signals_through() -> Outcome {
    SigSet::all().thread_unblock().context("unblock signals")
}

fn down() -> Outcome {
    let _only_one = lock()?;
    take_down()?;
    println!("nothing of the demonstration is left");
    Ok(())
}

/// Ends the processes, removes the namespaces and the folder. Does nothing when there is nothing.
fn take_down() -> Outcome {
    netns::remove(WORLD)?;
    match fs::remove_dir_all(folder()) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(cause.into()),
        _ => Ok(()),
    }
}

/// Holds a name of the kernel that goes with the process: a file would be left behind.
fn lock() -> Outcome<UnixListener> {
    let name = SocketAddr::from_abstract_name("ambit-demo").context("the lock's name")?;
    UnixListener::bind_addr(&name)
        .map_err(|_taken| Failure::new("another demonstration is running on this machine"))
}
