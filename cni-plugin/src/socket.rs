//! What the CNI plugin and the node agent say to each other: one request, one answer, over a Unix socket of mode 0600.
//!
//! Each side writes one JSON document and then closes its direction. The plugin calls [`ask`], the agent [`serve`]; what a
//! request means is decided by the agent (`agent.rs`). Knows nothing of pods.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::Failure;

#[cfg(feature = "agent")]
mod server;

#[cfg(feature = "agent")]
pub use server::{Listener, serve};

/// Where the agent listens unless it is told otherwise.
pub const DEFAULT_PATH: &str = "/var/run/ambit/cni.sock";
/// Longest request or answer in bytes. A request is below 2 KiB; the rest is room for addresses.
const MAX_MESSAGE: u64 = 64 * 1024;
/// Time between two attempts to reach an agent that does not listen.
const RETRY: Duration = Duration::from_millis(50);

/// What the plugin wants of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The pod has a network now: capture it before its first container starts, or answer that it is not in the mesh.
    Add,
    /// Is the pod captured as it should be?
    Check,
    /// The sandbox ends; what is held of it may be let go.
    Del,
}

/// One request. All of it is what the container runtime said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What is wanted.
    pub command: Command,
    /// `CNI_CONTAINERID`: the sandbox. A pod whose sandbox is made anew has the same name and uid and another of these.
    pub container_id: String,
    /// `CNI_NETNS`: path of the network namespace, as the node sees it. Always there but for [`Command::Del`].
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's uid, from runtimes that give it.
    pub pod_uid: Option<String>,
    /// The addresses that the plugins before us gave to the sandbox.
    pub addresses: Vec<IpAddr>,
}

/// What the agent answers: done, or why not.
pub type Answer = Result<(), Failure>;

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens there.
    Connect(io::Error),
    /// The connection failed half-way: the agent ended.
    Broken(io::Error),
    /// The answer is none.
    Garbled(serde_json::Error),
    /// The agent has not answered in time.
    TimedOut(Duration),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "it cannot be reached: {error}"),
            Self::Broken(error) => write!(f, "it ended while it was asked: {error}"),
            Self::Garbled(error) => write!(f, "its answer cannot be read: {error}"),
            Self::TimedOut(after) => write!(f, "it has not answered within {} s", after.as_secs()),
        }
    }
}

impl std::error::Error for AskError {}

/// How long to wait for the agent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one that does not listen: it may be about to start.
    pub absent: Duration,
    /// In all, whatever it does.
    pub whole: Duration,
}

/// Asks the agent that listens at `path`.
///
/// # Errors
/// [`AskError`]: then nothing is known of what the agent did.
pub fn ask(path: &Path, request: &Request, patience: Patience) -> Result<Answer, AskError> {
    // Strings, numbers and lists always print.
    let words = serde_json::to_vec(request).map_err(AskError::Garbled)?;
    let path = path.to_owned();
    let (sender, answer) = mpsc::sync_channel(1);
    // Connecting waits too, without a limit, when more wait to be accepted than the kernel queues. So all of it is done
    // by a thread, which ends with the process.
    let absent = patience.absent;
    thread::spawn(move || drop(sender.send(exchange(&path, &words, absent))));
    match answer.recv_timeout(patience.whole) {
        Ok(answer) => answer,
        Err(_) => Err(AskError::TimedOut(patience.whole)),
    }
}

fn exchange(path: &Path, words: &[u8], absent: Duration) -> Result<Answer, AskError> {
    let mut agent = connect(path, absent).map_err(AskError::Connect)?;
    let mut answer = Vec::new();
    agent
        .write_all(words)
        .and_then(|()| agent.shutdown(Shutdown::Write))
        .and_then(|()| agent.take(MAX_MESSAGE).read_to_end(&mut answer))
        .map_err(AskError::Broken)?;
    if answer.is_empty() {
        return Err(AskError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&answer).map_err(AskError::Garbled)
}

/// Connects as soon as somebody listens.
fn connect(path: &Path, mut absent: Duration) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Err(error) if absent.is_zero() => return Err(error),
            Err(_absent) => {
                // Nobody wakes this thread: it is a pause.
                thread::park_timeout(RETRY);
                absent = absent.saturating_sub(RETRY);
            }
            connected => return connected,
        }
    }
}
