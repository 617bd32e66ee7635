//! The socket of the node handoff: Unix `SOCK_SEQPACKET`, one message a packet, namespaces as descriptors beside it.
//!
//! Called by the node agent, which listens, and by ztunnel, which connects. Carries bytes and descriptors and reports
//! exactly what came; what they mean is in [`crate::wire`]. ZDS of istio/ztunnel; `man 7 unix`, SCM_RIGHTS.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, mem};

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Longest packet in bytes, a limit of the protocol: longer ones are not sent and not taken.
pub const MAX_PACKET: usize = 1024;
/// Most descriptors that the kernel lets one packet carry (`SCM_MAX_FD`); room for them, so that none can get lost.
const MAX_DESCRIPTORS: usize = 253;
/// Connections that may wait to be accepted: one ztunnel, and its successor during an upgrade, with room to spare.
const BACKLOG: i32 = 8;

/// Length, level and type of a control message as the kernel lays them out (`man 3 cmsg`).
const CONTROL_HEAD: usize = mem::size_of::<usize>() + 2 * mem::size_of::<i32>();

/// Where the node agent waits for ztunnel; removes its file on drop.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

/// One side of a handoff.
///
/// tokio has no type for `SOCK_SEQPACKET`. Its stream type serves as the registration with the reactor; it is never
/// read or written as a stream.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
}

/// One received packet.
#[derive(Debug)]
pub struct Packet {
    /// The message, 1..=[`MAX_PACKET`] bytes.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, in order; closed on exec. How many are right is for the message to say.
    pub descriptors: Vec<OwnedFd>,
}

/// What went wrong between the two.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// Another process listens there.
    #[error("another process already listens on {path}; only one node agent may run")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The socket's file cannot be made or reached.
    #[error("cannot use the handoff socket {path}")]
    Path {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A message longer than [`MAX_PACKET`].
    #[error("handoff packet exceeds {MAX_PACKET} bytes")]
    TooLong,
    /// The kernel could not deliver all descriptors, most likely because no more files may be opened.
    #[error("descriptors of a handoff packet were lost; look at the limit of open files")]
    DescriptorsLost,
    /// The connection failed.
    #[error("the handoff connection failed")]
    Io(#[from] io::Error),
}

impl Listener {
    /// Listens at `path` with mode 0600. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// [`HandoffError::InUse`] when somebody answers there, [`HandoffError::Path`] when the directory is missing or
    /// closed to us.
    pub fn bind(path: &Path) -> Result<Self, HandoffError> {
        remove_stale(path)?;
        let made = || {
            let socket = seqpacket()?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Nobody can connect before listen(2), so the mode is right from the first connection on.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            socket.listen(BACKLOG)?;
            UnixListener::from_std(OwnedFd::from(socket).into())
        };
        Ok(Self {
            socket: made().map_err(|source| path_error(path, source))?,
            path: path.to_owned(),
        })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The system's error; the listener stays usable, but wait before asking again.
    pub async fn accept(&self) -> io::Result<Connection> {
        let (socket, _) = self.socket.accept().await?;
        Ok(Connection { socket })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Whoever finds the file later replaces it, so a failure harms nobody.
        drop(fs::remove_file(&self.path));
    }
}

impl Connection {
    /// Connects to a listener; needs no wait, because a Unix socket connects or fails at once.
    ///
    /// # Errors
    /// [`HandoffError::Path`] when nobody listens there yet, or the queue of the listener is full.
    pub fn connect(path: &Path) -> Result<Self, HandoffError> {
        let made = || {
            let socket = seqpacket()?;
            socket.connect(&SockAddr::unix(path)?)?;
            Self::over(socket)
        };
        made().map_err(|source| path_error(path, source))
    }

    /// Two connected sides, for tests.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = Socket::pair(Domain::UNIX, kind(), None)?;
        Ok((Self::over(left)?, Self::over(right)?))
    }

    /// Sends one message, and a descriptor with it where there is one.
    ///
    /// # Errors
    /// [`HandoffError::TooLong`] over [`MAX_PACKET`] bytes; [`HandoffError::Io`] when the other side is gone.
    ///
    /// # Cancel safety
    /// A packet is sent as a whole or not at all.
    pub async fn send(
        &self,
        bytes: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), HandoffError> {
        if bytes.len() > MAX_PACKET {
            return Err(HandoffError::TooLong);
        }
        let descriptors: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let sending = || send_packet(&self.socket, bytes, &descriptors);
        self.socket.async_io(Interest::WRITABLE, sending).await?;
        Ok(())
    }

    /// Waits for the next message; none when the other side has closed.
    ///
    /// # Errors
    /// [`HandoffError::TooLong`] or [`HandoffError::DescriptorsLost`] for a packet that did not arrive as it was sent;
    /// the descriptors that did arrive are closed. [`HandoffError::Io`] when the connection was reset.
    ///
    /// # Cancel safety
    /// A packet is taken and returned at once; dropping the future loses none.
    pub async fn recv(&self) -> Result<Option<Packet>, HandoffError> {
        let receiving = || receive_packet(&self.socket);
        let received = self.socket.async_io(Interest::READABLE, receiving).await?;
        if received.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(HandoffError::DescriptorsLost);
        }
        if received.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(HandoffError::TooLong);
        }
        // A packet without bytes looks like the end; no message of the protocol is empty.
        Ok((!received.packet.bytes.is_empty()).then_some(received.packet))
    }

    fn over(socket: Socket) -> io::Result<Self> {
        let socket = UnixStream::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { socket })
    }
}

fn kind() -> Type {
    Type::SEQPACKET.nonblocking().cloexec()
}

fn seqpacket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, kind(), None)
}

/// Removes the file of a socket that nobody listens on; leaves anything that is not a socket for bind(2) to complain
/// about.
fn remove_stale(path: &Path) -> Result<(), HandoffError> {
    let probe = || seqpacket()?.connect(&SockAddr::unix(path)?);
    match probe() {
        Ok(()) => Err(HandoffError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(HandoffError::InUse {
            path: path.to_owned(),
        }),
        // Files of other kinds refuse connections too.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
            fs::remove_file(path).map_err(|source| path_error(path, source))
        }
        Err(_absent) => Ok(()),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn path_error(path: &Path, source: io::Error) -> HandoffError {
    HandoffError::Path {
        path: path.to_owned(),
        source,
    }
}

fn send_packet(socket: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &[]
    } else {
        &rights[..]
    };
    let content = [IoSlice::new(bytes)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &content,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

struct Received {
    packet: Packet,
    flags: MsgFlags,
}

fn receive_packet(socket: &UnixStream) -> io::Result<Received> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, flags) = {
        let mut content = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut content,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        (received.bytes, received.flags)
    };
    // First of all own what came, so that every way out of here closes it.
    let descriptors = adopt(&control);
    bytes.truncate(length);
    Ok(Received {
        packet: Packet { bytes, descriptors },
        flags,
    })
}

/// Owns the descriptors that recvmsg(2) put into `control`, which was zero before.
///
/// nix would read them as well, but gives none of them when the packet was truncated, and those that came would never
/// be closed.
fn adopt(control: &[u8]) -> Vec<OwnedFd> {
    let mut owned = Vec::new();
    for number in descriptors_in(control) {
        #[expect(
            unsafe_code,
            reason = "adopting a received descriptor; the one unsafe block, listed in docs/security.md"
        )]
        // SAFETY: the number stands in a SCM_RIGHTS message that the kernel has just written for this process, so it
        // is an open descriptor that nobody else knows of. No safe call exists: it exists as a number only. It is
        // adopted once: the buffer is read once and dropped.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        owned.push(descriptor);
    }
    owned
}

/// Numbers of the descriptors in a buffer of control messages (`man 3 cmsg`).
fn descriptors_in(control: &[u8]) -> Vec<RawFd> {
    let mut numbers = Vec::new();
    let mut rest = control;
    while let Some((length, level, kind)) = control_head(rest) {
        let Some(content) = rest.get(CONTROL_HEAD..length) else {
            break;
        };
        if (level, kind) == (nix::libc::SOL_SOCKET, nix::libc::SCM_RIGHTS) {
            let (words, _) = content.as_chunks::<{ mem::size_of::<RawFd>() }>();
            numbers.extend(words.iter().map(|word| RawFd::from_ne_bytes(*word)));
        }
        let Some(next) = rest.get(length.next_multiple_of(mem::size_of::<usize>())..) else {
            break;
        };
        rest = next;
    }
    numbers
}

/// Length (with this head), level and type of the first control message; none at the end, which is zeros.
fn control_head(control: &[u8]) -> Option<(usize, i32, i32)> {
    let (length, rest) = control.split_first_chunk::<{ mem::size_of::<usize>() }>()?;
    let (level, rest) = rest.split_first_chunk::<4>()?;
    let (kind, _) = rest.split_first_chunk::<4>()?;
    let length = usize::from_ne_bytes(*length);
    let head = (
        length,
        i32::from_ne_bytes(*level),
        i32::from_ne_bytes(*kind),
    );
    (length >= CONTROL_HEAD).then_some(head)
}

#[cfg(test)]
mod tests;
