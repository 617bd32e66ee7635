//! TCP sockets as the mesh needs them: listeners, connectors with a foreign source, and where a connection was going.
//!
//! Called by whoever opens pod or node sockets, often inside [`crate::netns::Netns::run_in_place`]. Sets options only;
//! which mark, port or source is right is the caller's knowledge. `man 7 ip`, `man 7 tcp`, `man 7 socket`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`. Convention of istio/ztunnel.
const BACKLOG: i32 = 1024;
/// Idle time before the first keepalive probe, and between probes. Istio's `KEEPALIVE_TIME` and `KEEPALIVE_INTERVAL`.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// Unanswered probes until a connection is dead. Istio's `KEEPALIVE_RETRIES`.
const KEEPALIVE_RETRIES: u32 = 9;

/// What a listener needs beside its address.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerOptions {
    /// `SO_MARK` on the listener; accepted sockets inherit it. Needs `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
    /// `IP_TRANSPARENT`: takes connections to addresses that are not local. Needs `CAP_NET_ADMIN`.
    pub transparent: bool,
    /// `SO_REUSEPORT`: one listener per worker thread on the same port, and one process beside its successor.
    pub reuse_port: bool,
}

/// What an outgoing connection needs beside its destination.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectorOptions {
    /// Address to connect from, any port; it need not be local (`IP_TRANSPARENT`, needs `CAP_NET_ADMIN`).
    pub source: Option<IpAddr>,
    /// `SO_MARK`. Needs `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The process lacks a capability in the user namespace that owns the socket's network namespace.
    #[error(
        "{action} is not permitted: it needs CAP_NET_ADMIN in the user namespace that owns the network namespace; \
         run as root, or add NET_ADMIN to the capabilities of the container"
    )]
    Privilege {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Somebody else has the address and port.
    #[error(
        "{addr} is in use by another process; `ss -ltnp` in the same network namespace names it"
    )]
    InUse {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel is built without something.
    #[error("the kernel cannot do this: {action}; it is built without that feature")]
    Unsupported {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Anything else.
    #[error("{action} failed")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Makes a listener: non-blocking, closed on exec, `TCP_NODELAY` and keepalive inherited by what it accepts.
///
/// `[::]` listens for both families; with IPv6 switched off in the namespace, ask for `0.0.0.0`.
///
/// # Errors
/// [`SocketError::InUse`] when the port is taken, [`SocketError::Privilege`] without `CAP_NET_ADMIN`.
pub fn listener(
    addr: SocketAddr,
    options: &ListenerOptions,
) -> Result<std::net::TcpListener, SocketError> {
    let socket = stream_socket(Domain::for_address(addr))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        tried("clearing IPV6_V6ONLY", socket.set_only_v6(false))?;
    }
    tried("setting SO_REUSEADDR", socket.set_reuse_address(true))?;
    if options.reuse_port {
        tried("setting SO_REUSEPORT", socket.set_reuse_port(true))?;
    }
    if options.transparent {
        set_transparent(&socket, addr)?;
    }
    set_mark(&socket, options.mark)?;
    set_flow_options(&socket)?;
    socket
        .bind(&addr.into())
        .map_err(|source| bind_error(addr, source))?;
    socket
        .listen(BACKLOG)
        .map_err(|source| bind_error(addr, source))?;
    Ok(socket.into())
}

/// Makes a socket that can connect to `to`'s family, with `TCP_NODELAY` and keepalive. The caller connects, with a
/// deadline.
///
/// Everything that depends on the network namespace has happened when it returns, so the connect may be outside of it.
/// The source port is chosen by the connect, so that one source address has a port range for each destination.
///
/// # Errors
/// [`SocketError::Privilege`] without `CAP_NET_ADMIN` when a mark or a source is asked for.
pub fn connector(to: SocketAddr, options: &ConnectorOptions) -> Result<TcpSocket, SocketError> {
    let socket = stream_socket(Domain::for_address(to))?;
    set_mark(&socket, options.mark)?;
    set_flow_options(&socket)?;
    if let Some(source) = options.source {
        let from = SocketAddr::new(source.to_canonical(), 0);
        if from.is_ipv6() != to.is_ipv6() {
            let source = io::ErrorKind::InvalidInput.into();
            return Err(SocketError::Failed {
                action: "connecting from one address family to the other",
                source,
            });
        }
        set_transparent(&socket, from)?;
        let late_port = setsockopt(&socket, IpBindAddressNoPort, &true).map_err(io::Error::from);
        tried("setting IP_BIND_ADDRESS_NO_PORT", late_port)?;
        socket
            .bind(&from.into())
            .map_err(|source| bind_error(from, source))?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Where a redirected connection was going before the redirect. IPv4-mapped addresses become IPv4.
///
/// # Errors
/// `NotFound` (ENOENT) when the connection was not redirected; the mesh refuses it.
pub fn original_dst(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = stream.local_addr()?;
    // A dual-stack listener sees IPv4 clients as mapped addresses, but conntrack knows them as IPv4.
    let wanted = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    let wanted = wanted.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(canonical(wanted))
}

/// The address with IPv4-mapped IPv6 as IPv4, and without the flow label that comparisons would trip over.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn stream_socket(domain: Domain) -> Result<Socket, SocketError> {
    let kind = Type::STREAM.nonblocking().cloexec();
    tried(
        "opening a TCP socket",
        Socket::new(domain, kind, Some(Protocol::TCP)),
    )
}

fn set_flow_options(socket: &Socket) -> Result<(), SocketError> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_RETRIES);
    tried("setting keepalive", socket.set_tcp_keepalive(&keepalive))?;
    tried("setting TCP_NODELAY", socket.set_tcp_nodelay(true))
}

fn set_mark(socket: &Socket, mark: Option<u32>) -> Result<(), SocketError> {
    match mark {
        Some(mark) => tried("setting SO_MARK", socket.set_mark(mark)),
        None => Ok(()),
    }
}

/// Lets the socket have an address that is not local. It does all that `IP_FREEBIND` does, and the kernel keeps one
/// flag for both families of a dual-stack socket (`net/ipv6/ipv6_sockglue.c`, `IPV6_TRANSPARENT`).
fn set_transparent(socket: &Socket, addr: SocketAddr) -> Result<(), SocketError> {
    match addr {
        SocketAddr::V4(_) => tried("setting IP_TRANSPARENT", socket.set_ip_transparent_v4(true)),
        SocketAddr::V6(_) => tried(
            "setting IPV6_TRANSPARENT",
            socket.set_ip_transparent_v6(true),
        ),
    }
}

fn bind_error(addr: SocketAddr, source: io::Error) -> SocketError {
    if source.kind() == io::ErrorKind::AddrInUse {
        return SocketError::InUse { addr, source };
    }
    classify("binding the socket", source)
}

fn tried<T>(action: &'static str, result: io::Result<T>) -> Result<T, SocketError> {
    result.map_err(|source| classify(action, source))
}

fn classify(action: &'static str, source: io::Error) -> SocketError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => SocketError::Privilege { action, source },
        Some(Errno::ENOPROTOOPT | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => {
            SocketError::Unsupported { action, source }
        }
        _ => SocketError::Failed { action, source },
    }
}

#[cfg(test)]
mod tests;
