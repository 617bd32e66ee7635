//! Network namespaces: own one by a descriptor, make a socket in it, or run a thread inside. The only place with
//! setns(2).
//!
//! Called by ztunnel's pod sockets (in place: one socket, no await), and by the node agent and tests (on a thread:
//! files below /proc, netlink, whole runtimes). Knows nothing of pods. `man 7 network_namespaces`, `man 2 setns`.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::fs::{File, read_link};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use tokio::sync::oneshot;

use crate::telemetry;

/// The namespace of the calling thread, whichever thread that is.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that stays alive as long as this value does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<OwnedFd>,
    id: NetnsId,
}

/// Tells namespaces apart while at least one descriptor of each is open: the kernel reuses numbers after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// Why a namespace could not be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path or descriptor cannot be opened or read.
    #[error("cannot open the network namespace {path}")]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The descriptor is not one of a network namespace.
    #[error("{what} is not a network namespace")]
    NotANetns {
        /// What it is, as the kernel names it.
        what: PathBuf,
    },
    /// The kernel does not let us in.
    #[error(
        "entering {id} is not permitted: it needs CAP_SYS_ADMIN, here and in the user namespace that owns the \
         network namespace; run as root, or add SYS_ADMIN to the capabilities of the container"
    )]
    Privilege {
        /// The namespace.
        id: NetnsId,
        /// The system's error.
        source: io::Error,
    },
    /// Entering failed for another reason.
    #[error("cannot enter {id}")]
    Enter {
        /// The namespace.
        id: NetnsId,
        /// The system's error.
        source: io::Error,
    },
    /// A new namespace cannot be made.
    #[error(
        "cannot make a network namespace; it needs CAP_SYS_ADMIN: run as root, or add SYS_ADMIN to the container"
    )]
    Make(#[source] io::Error),
    /// [`Netns::run_in_place`] inside of another one.
    #[error("already inside another network namespace")]
    Nested,
    /// The system gives no thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// What ran on the thread panicked; the panic itself is in the log.
    #[error("the work inside the network namespace panicked")]
    Panicked,
}

impl Netns {
    /// Opens a namespace by its file: `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`NetnsError::Open`] when there is no such file, [`NetnsError::NotANetns`] when it is something else.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| NetnsError::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::from_fd(file.into())
    }

    /// Takes a descriptor, for example one that another process sent.
    ///
    /// # Errors
    /// [`NetnsError::NotANetns`] when it is the descriptor of anything else.
    pub fn from_fd(file: OwnedFd) -> Result<Self, NetnsError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let open_error = |source: io::Error| NetnsError::Open {
            path: path.clone(),
            source,
        };
        let what = read_link(&path).map_err(open_error)?;
        if !is_netns(&file, &what).map_err(open_error)? {
            return Err(NetnsError::NotANetns { what });
        }
        let stat = fstat(&file).map_err(|errno| open_error(errno.into()))?;
        let id = NetnsId {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        Ok(Self {
            file: Arc::new(file),
            id,
        })
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`NetnsError::Open`] when /proc is not mounted or no descriptor is free.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new(OWN))
    }

    /// Makes a new namespace, empty and with loopback down; it goes with its last user.
    ///
    /// # Errors
    /// [`NetnsError::Make`] without `CAP_SYS_ADMIN` or above the limit of namespaces.
    pub fn fresh() -> Result<Self, NetnsError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Make(errno.into()))?;
            Self::current()
        };
        thread::scope(|scope| {
            let maker = thread::Builder::new().name("netns-maker".to_owned());
            let made = maker
                .spawn_scoped(scope, make)
                .map_err(NetnsError::Thread)?;
            made.join().unwrap_or(Err(NetnsError::Panicked))
        })
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `make` with the calling thread inside the namespace, and comes back. For making one socket, nothing longer.
    ///
    /// A socket stays in the namespace in which it was made, so its use does not need this. `make` is not async, so
    /// nothing else can run on the thread meanwhile. If coming back fails, the process aborts: whatever the thread did
    /// next would be done in a pod's network.
    ///
    /// # Errors
    /// [`NetnsError::Privilege`] without `CAP_SYS_ADMIN`; `make` has not run then.
    pub fn run_in_place<R>(&self, make: impl FnOnce() -> R) -> Result<R, NetnsError> {
        HOME.with(|home| {
            if home.away.get() {
                return Err(NetnsError::Nested);
            }
            if home.netns()?.id == self.id {
                return Ok(make());
            }
            self.enter()?;
            home.away.set(true);
            let _back = ComeBack(home);
            Ok(make())
        })
    }

    /// Runs `work` on a thread of its own inside the namespace: for netlink, files below /proc, and whatever blocks.
    ///
    /// # Errors
    /// [`NetnsError::Privilege`] without `CAP_SYS_ADMIN`, [`NetnsError::Panicked`] when `work` did.
    ///
    /// # Cancel safety
    /// Dropping the future does not end `work`; its result is dropped. Bound what it waits for.
    pub async fn run_on_thread<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, NetnsError> {
        let (tell, told) = oneshot::channel();
        let inside = self.clone();
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let result = inside.enter().map(|()| work());
                // Nobody listens any more when the caller was cancelled.
                drop(tell.send(result));
            })
            .map_err(NetnsError::Thread)?;
        match told.await {
            Ok(result) => result,
            Err(_dropped) => Err(NetnsError::Panicked),
        }
    }

    /// Moves the calling thread into the namespace for good.
    fn enter(&self) -> Result<(), NetnsError> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let (id, source) = (self.id, errno.into());
            match errno {
                Errno::EPERM => NetnsError::Privilege { id, source },
                _ => NetnsError::Enter { id, source },
            }
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Tells network namespaces from everything else. `what` is the name of the open file.
///
/// Opened below /proc, the kernel names it by its kind (names of files begin with a slash). Opened by a file on which
/// it is mounted, as `ip netns` does, it bears that file's name; then only setns(2) knows, which refuses the wrong
/// kind before it asks for privilege, and which must not move this thread.
fn is_netns(file: &OwnedFd, what: &Path) -> io::Result<bool> {
    if what.as_os_str().as_encoded_bytes().starts_with(b"net:[") {
        return Ok(true);
    }
    if fstatfs(file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(false);
    }
    thread::scope(|scope| {
        let probe = thread::Builder::new()
            .name("netns-probe".to_owned())
            .spawn_scoped(scope, || setns(file, CloneFlags::CLONE_NEWNET))?;
        Ok(!matches!(probe.join(), Ok(Err(Errno::EINVAL)) | Err(_)))
    })
}

thread_local! {
    static HOME: Home = const { Home { netns: OnceCell::new(), away: Cell::new(false) } };
}

/// Where a thread belongs. It is remembered at first use, when the thread is at home: only this file moves threads.
struct Home {
    netns: OnceCell<Netns>,
    away: Cell<bool>,
}

impl Home {
    fn netns(&self) -> Result<&Netns, NetnsError> {
        if let Some(known) = self.netns.get() {
            return Ok(known);
        }
        let here = Netns::current()?;
        Ok(self.netns.get_or_init(|| here))
    }
}

/// Brings the thread home on drop, also when `make` panics.
struct ComeBack<'a>(&'a Home);

impl Drop for ComeBack<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.0.netns().and_then(Netns::enter) {
            telemetry::die(&format!(
                "cannot return from a pod's network namespace: {failure}"
            ));
        }
        self.0.away.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_namespaces_are_taken() {
        let file = File::open("/proc/self/ns/uts").unwrap();
        let error = Netns::from_fd(file.into()).unwrap_err();
        assert!(matches!(error, NetnsError::NotANetns { .. }), "{error}");
        let error = Netns::open(Path::new("/proc/self/status")).unwrap_err();
        assert!(
            error.to_string().contains("is not a network namespace"),
            "{error}"
        );
        let error = Netns::open(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }

    #[test]
    fn the_same_namespace_has_the_same_id_by_every_path() {
        let here = Netns::current().unwrap();
        let by_process = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(here.id(), by_process.id());
        assert!(here.id().to_string().starts_with("net:["));
    }

    #[test]
    fn in_the_own_namespace_work_needs_no_privilege() {
        let here = Netns::current().unwrap();
        assert_eq!(here.run_in_place(|| 7).unwrap(), 7);
    }

    #[test]
    fn a_namespace_inside_another_is_refused() {
        let here = Netns::current().unwrap();
        HOME.with(|home| home.away.set(true));
        let nested = here.run_in_place(|| ());
        HOME.with(|home| home.away.set(false));
        assert!(matches!(nested, Err(NetnsError::Nested)));
    }

    #[test]
    fn missing_privilege_names_the_capability() {
        let id = NetnsId {
            device: 4,
            inode: 4_026_531_840,
        };
        let source = Errno::EPERM.into();
        let text = NetnsError::Privilege { id, source }.to_string();
        assert!(
            text.contains("CAP_SYS_ADMIN") && text.contains("net:[4026531840]"),
            "{text}"
        );
    }
}
