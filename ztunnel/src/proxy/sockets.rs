//! PodSockets: every socket that this proxy opens inside a pod's network namespace.
//!
//! Used by `pods` for the three listeners and by the conductors for connections, with the mark that the redirect rules
//! let pass. What is needed to make a socket is `ambit_net::{netns, sockopt}`; here is which sockets a pod has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use ambit_core::ports;
use ambit_net::netns::{Netns, NetnsError, NetnsId};
use ambit_net::sockopt::{self, ConnectorOptions, ListenerOptions, SocketError};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the other side may take to answer (istio/ztunnel).
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The sockets of one pod.
#[derive(Clone, Debug)]
pub(crate) struct PodSockets {
    netns: Netns,
    ipv6: bool,
}

/// One worker's listeners in a pod; each port may have as many as there are workers (`SO_REUSEPORT`).
#[derive(Debug)]
pub(crate) struct Listeners {
    /// Port 15001: what the pod's apps send out.
    pub(crate) outbound: TcpListener,
    /// Port 15006: what reaches the pod outside of a tunnel.
    pub(crate) plaintext: TcpListener,
    /// Port 15008: tunnels.
    pub(crate) hbone: TcpListener,
}

/// Why the listeners of a pod could not be opened.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused a listener.
    #[error("cannot listen on port {port} in {netns}: {source}")]
    Port {
        /// One of the capture ports.
        port: u16,
        /// The pod's namespace.
        netns: NetnsId,
        /// The cause, with the next step.
        source: SocketError,
    },
}

/// Why a connection from inside a pod's namespace was not made.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused the socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The other side did not take the connection.
    #[error("cannot connect to {to}: {source}")]
    Refused {
        /// The other side.
        to: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The other side did not answer in time.
    #[error("no answer from {to} in time")]
    Timeout {
        /// The other side.
        to: SocketAddr,
    },
}

impl PodSockets {
    /// Sockets in `netns`; without `ipv6` only IPv4 is captured.
    pub(crate) fn new(netns: Netns, ipv6: bool) -> Self {
        Self { netns, ipv6 }
    }

    /// Opens one set of listeners.
    ///
    /// # Errors
    /// A port that is taken (by something else than another worker or another ztunnel), a missing capability.
    pub(crate) fn listen(&self) -> Result<Listeners, ListenError> {
        Ok(Listeners {
            outbound: self.listener(ports::OUTBOUND)?,
            plaintext: self.listener(ports::INBOUND_PLAINTEXT)?,
            hbone: self.listener(ports::INBOUND_HBONE)?,
        })
    }

    /// Connects from the pod's own address.
    ///
    /// # Errors
    /// When the other side refuses or does not answer in time, or the socket cannot be made.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub(crate) async fn connect(&self, to: SocketAddr) -> Result<TcpStream, ConnectError> {
        self.open(to, None).await
    }

    /// Connects from `source`, an address that is not the pod's: the app sees the client itself.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub(crate) async fn connect_as(
        &self,
        source: IpAddr,
        to: SocketAddr,
    ) -> Result<TcpStream, ConnectError> {
        self.open(to, Some(source)).await
    }

    async fn open(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
    ) -> Result<TcpStream, ConnectError> {
        let mark = Some(ports::PROXY_MARK);
        let options = ConnectorOptions { source, mark };
        let socket = self
            .netns
            .run_in_place(|| sockopt::connector(to, &options))??;
        match timeout(CONNECT_DEADLINE, socket.connect(to)).await {
            Ok(connected) => connected.map_err(|source| ConnectError::Refused { to, source }),
            Err(_elapsed) => Err(ConnectError::Timeout { to }),
        }
    }

    fn listener(&self, port: u16) -> Result<TcpListener, ListenError> {
        let opened = match self.listener_on(port, self.ipv6)? {
            // A kernel without IPv6 has no IPv6 to capture.
            Err(SocketError::Unsupported { .. }) if self.ipv6 => self.listener_on(port, false)?,
            other => other,
        };
        opened.map_err(|source| ListenError::Port {
            port,
            netns: self.netns.id(),
            source,
        })
    }

    fn listener_on(
        &self,
        port: u16,
        ipv6: bool,
    ) -> Result<Result<TcpListener, SocketError>, NetnsError> {
        let ip = match ipv6 {
            true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let options = ListenerOptions {
            mark: Some(ports::PROXY_MARK),
            transparent: true,
            reuse_port: true,
        };
        self.netns
            .run_in_place(|| sockopt::listener(SocketAddr::new(ip, port), &options))
    }
}
