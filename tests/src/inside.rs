//! Makes sockets inside a network namespace: they stay there, whoever uses them.
//!
//! Called by `app.rs`, `scrape.rs` and the tests. Knows nothing of pods or of the mesh.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use ambit_net::netns::Netns;

use crate::failure::{Context as _, Outcome};

/// How long a connect, a read or a write of a test may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `make` with the calling thread in the namespace at `netns`.
///
/// # Errors
/// When the namespace cannot be entered, or what `make` returns.
pub fn inside<T>(netns: &Path, make: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let namespace = Netns::open(netns).context(netns.display())?;
    namespace.run_in_place(make).context(netns.display())?
}

/// A listener in the namespace.
///
/// # Errors
/// When the address is taken.
pub fn listen(netns: &Path, address: SocketAddr) -> Outcome<TcpListener> {
    inside(netns, || {
        TcpListener::bind(address).context(format_args!("listen on {address}"))
    })
}

/// A connection from the namespace, on which reads and writes end after [`PATIENCE`].
///
/// # Errors
/// When it is not established in time.
pub fn connect(netns: &Path, to: SocketAddr) -> Outcome<TcpStream> {
    let stream = inside(netns, || {
        TcpStream::connect_timeout(&to, PATIENCE).context(format_args!("connect to {to}"))
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends one datagram from the namespace.
///
/// # Errors
/// When the kernel has no route to it.
pub fn send_datagram(netns: &Path, to: SocketAddr, bytes: &[u8]) -> Outcome {
    inside(netns, || {
        let any: SocketAddr = if to.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        UdpSocket::bind(any)?
            .send_to(bytes, to)
            .context(format_args!("send to {to}"))?;
        Ok(())
    })
}
