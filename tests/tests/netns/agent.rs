//! A node agent that a test plays: it hands a real ztunnel what the test chooses, right or wrong.
//!
//! Called by `handoff.rs`. Blocking sockets of its own, so that a packet may carry any number of descriptors
//! (`man 7 unix`); ambit-net's would not send them.

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;

use ambit_core::names::{NamespacedName, PodUid};
use ambit_net::handoff::Packet;
use ambit_net::wire::handoff::{HandoffPod, Request, check_hello, decode_ack};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tests::failure::{Context as _, Failure, Outcome};
use tests::inside::PATIENCE;
use tests::netns::Site;

/// Kubernetes namespace of the pods that are handed over.
const CAST: &str = "cast";

/// The played agent's listening socket.
pub(crate) struct PlayedAgent(Socket);

/// A ztunnel that has connected and said hello.
pub(crate) struct Session(Socket);

impl PlayedAgent {
    pub(crate) fn listen(path: &Path) -> Outcome<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(4)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Waits for ztunnel.
    pub(crate) fn accept(&self) -> Outcome<Session> {
        let (socket, _) = self.0.accept().context("ztunnel does not come")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let session = Session(socket);
        let hello = session
            .receive()?
            .context("ztunnel closed without a hello")?;
        check_hello(&hello).context("hello")?;
        Ok(session)
    }
}

impl Session {
    /// Sends a request with these files as descriptors; returns ztunnel's answer, none when it hangs up instead.
    pub(crate) fn ask(
        &self,
        request: &Request,
        files: &[&File],
    ) -> Outcome<Option<Result<(), String>>> {
        self.ask_bytes(&request.encode(), files)
    }

    /// Sends any bytes.
    pub(crate) fn ask_bytes(
        &self,
        bytes: &[u8],
        files: &[&File],
    ) -> Outcome<Option<Result<(), String>>> {
        let descriptors: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .context("send")?;
        let answer = self.receive()?;
        answer
            .map(|packet| decode_ack(&packet).context("the answer"))
            .transpose()
    }

    /// Waits until ztunnel hangs up.
    pub(crate) fn wait_for_end(&self) -> Outcome {
        match self.receive()? {
            None => Ok(()),
            Some(packet) => Err(Failure::new(format!("it goes on: {:?}", packet.bytes))),
        }
    }

    fn receive(&self) -> Outcome<Option<Packet>> {
        let mut bytes = vec![0; 2048];
        let count = match (&self.0).read(&mut bytes) {
            Err(cause) if cause.kind() == std::io::ErrorKind::ConnectionReset => 0,
            other => other.context("read from ztunnel")?,
        };
        bytes.truncate(count);
        Ok((count > 0).then_some(Packet {
            bytes,
            descriptors: Vec::new(),
        }))
    }
}

/// The request to serve a pod of the cast.
pub(crate) fn add(pod: &Site) -> Request {
    Request::Add(HandoffPod {
        uid: PodUid::new(format!("{CAST}/{}", pod.name)),
        name: NamespacedName::new(CAST, pod.name.as_str()),
        service_account: pod.name.as_str().into(),
    })
}
