//! The agent's side of the socket: accepts, reads one request, has it handled, writes the answer.
//!
//! Called by `app.rs` with the handler of `agent.rs`. A plugin that says nothing, or too much, takes a place for a while and
//! stops nobody.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambit_net::tasks::{Spawner, Stop};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{Answer, MAX_MESSAGE, Request};
use crate::spec::{Code, Failure};

/// Plugins that are served at a time. A node starts far fewer pods at once; the others wait in the kernel's queue.
const MOST_AT_ONCE: usize = 256;
/// How long a plugin may take to say what it wants, and to take the answer: it is on the same node.
const TALK: Duration = Duration::from_secs(2);
/// How long handling may take: a little less than the plugin waits, so that it hears why.
const HANDLING: Duration = Duration::from_secs(14);
/// Pause after the kernel could not accept, which is when no more files may be opened.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the agent waits for plugins; removes its file on drop.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path` with mode 0600. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// When another process answers there (`AddrInUse`), something else is in the way, or the directory is missing or
    /// closed to us.
    pub fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let fresh = path.with_extension("new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The mode is set before the name is there by which anybody could connect.
        let socket = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Whoever finds the file later replaces it, so a failure harms nobody.
        drop(fs::remove_file(&self.path));
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let told = format!("{} is there and is no socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, told));
    }
    if StdStream::connect(path).is_ok() {
        let told = format!(
            "another process listens on {}; only one node agent may run",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::AddrInUse, told));
    }
    fs::remove_file(path)
}

/// Serves plugins until `stop`: each request is handled by a task of `tasks` that runs `handle`.
///
/// A handler that takes longer than the plugin waits is dropped, and the plugin is told to try again: undoing what was begun
/// is for whoever the handler asked.
pub async fn serve<H, F>(listener: Listener, tasks: Spawner, handle: H)
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (stop, handle) = (tasks.stop_signal(), Arc::new(handle));
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    while let Some((plugin, place)) = next(&listener, &places, &stop).await {
        let handle = Arc::clone(&handle);
        tasks.spawn(async move {
            if let Err(error) = answer(plugin, &*handle).await {
                debug!(%error, "a CNI plugin has left without its answer");
            }
            drop(place);
        });
    }
}

/// The next plugin and its place; nothing once the owner stops.
async fn next(
    listener: &Listener,
    places: &Arc<Semaphore>,
    stop: &Stop,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = tokio::select! {
        () = stop.stopped() => return None,
        // Never closed.
        place = Arc::clone(places).acquire_owned() => place.ok()?,
    };
    loop {
        let accepted = tokio::select! {
            () = stop.stopped() => return None,
            accepted = listener.socket.accept() => accepted,
        };
        match accepted {
            Ok((plugin, _)) => return Some((plugin, place)),
            Err(error) => {
                warn!(%error, "a CNI plugin could not be accepted; look at the limit of open files");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer<H, F>(mut plugin: UnixStream, handle: &H) -> io::Result<()>
where
    H: Fn(Request) -> F,
    F: Future<Output = Answer>,
{
    let answer = match read(&mut plugin).await? {
        Ok(request) => match timeout(HANDLING, handle(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::new(
                Code::TryAgainLater,
                "the node agent has not finished in time",
                "ztunnel or the API server may be slow or away; the agent's log says what it waited for",
            )),
        },
        Err(failure) => Err(failure),
    };
    // Strings and numbers always print.
    let words = serde_json::to_vec(&answer).unwrap_or_default();
    timeout(TALK, async {
        plugin.write_all(&words).await?;
        plugin.shutdown().await
    })
    .await?
}

/// One request, or what is wrong with it.
async fn read(plugin: &mut UnixStream) -> io::Result<Result<Request, Failure>> {
    let mut words = Vec::new();
    timeout(TALK, plugin.take(MAX_MESSAGE).read_to_end(&mut words)).await??;
    Ok(serde_json::from_slice(&words).map_err(|error| {
        Failure::new(
            Code::Decoding,
            "the node agent does not understand the plugin",
            format!("{error}; are ambit-cni and ambit-cni-agent of the same version?"),
        )
    }))
}

#[cfg(test)]
mod tests;
