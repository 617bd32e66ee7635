//! Small applications for tests: servers inside a pod that remember every visit, and the clients' side of a transfer.
//!
//! Called by the namespace tests. They are ordinary blocking sockets: an app knows nothing of the mesh. What runs as a
//! program of its own (`ambit-test-app`) is in `app/http.rs` and `app/load.rs`.

pub mod http;
pub mod load;
pub mod pattern;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::failure::{Context as _, Failure, Outcome, ensure};
use crate::inside::{self, PATIENCE};
use crate::netns::Site;
use crate::poll;

use pattern::Pattern;

/// What a server does with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Says `you are ADDRESS` at once, then reads until the client ends.
    Whoami,
    /// Sends back what it gets, until the client ends; then ends too.
    Echo,
    /// Reads until the client ends, then answers with the number of bytes and their checksum.
    Sink,
    /// Sends this many bytes of a pattern, then ends; reads nothing.
    Source(u64),
    /// Ends its sending side at once and goes on reading until the client ends, as [`Manner::Sink`] does.
    EndsFirst,
    /// Reads one byte, then aborts the connection with a reset.
    Resets,
}

/// A listening app in a pod. It ends with the test program.
#[derive(Clone, Debug)]
pub struct Server {
    site: Site,
    port: u16,
    visits: Arc<Mutex<Vec<Arc<Visit>>>>,
}

/// One connection that an app accepted.
#[derive(Debug)]
pub struct Visit {
    /// Who the app saw.
    pub peer: SocketAddr,
    seen: Mutex<Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    first: Vec<u8>,
    bytes: u64,
    end: Option<End>,
}

/// How a connection ended for the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed its side.
    Closed,
    /// The connection was reset.
    Reset,
}

impl Server {
    /// Listens on `port` of every address of the pod, both families.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(site: &Site, port: u16, manner: Manner) -> Outcome<Self> {
        Self::start_on(site, (Ipv6Addr::UNSPECIFIED, port).into(), manner)
    }

    /// Listens on one address of the pod.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start_on(site: &Site, address: SocketAddr, manner: Manner) -> Outcome<Self> {
        let listener = inside::listen(&site.netns, address)?;
        let port = listener.local_addr()?.port();
        let visits = Arc::new(Mutex::new(Vec::new()));
        let server = Self {
            site: site.clone(),
            port,
            visits: Arc::clone(&visits),
        };
        std::thread::Builder::new()
            .name(format!("app-{port}"))
            .spawn(move || accept_all(&listener, manner, &visits))?;
        Ok(server)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> SocketAddr {
        (self.site.addresses.v4, self.port).into()
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> SocketAddr {
        (self.site.addresses.v6, self.port).into()
    }

    /// Every connection that it accepted so far.
    pub fn visits(&self) -> Vec<Arc<Visit>> {
        self.visits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for a visit that `wanted` accepts.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn wait_for_visit(&self, wanted: impl Fn(&Visit) -> bool) -> Outcome<Arc<Visit>> {
        poll::until(
            format_args!("a visit of port {}; seen: {:?}", self.port, self.visits()),
            poll::SOON,
            || self.visits().into_iter().find(|visit| wanted(visit)),
        )
    }

    /// Proves that nobody has reached the app since it had `before` visits.
    ///
    /// The pod visits itself: the kernel hands connections over in order, so all that came earlier is in the list by then.
    ///
    /// # Errors
    /// When another connection was accepted; shows who came and what it sent.
    pub fn untouched_since(&self, before: usize) -> Outcome {
        let local: SocketAddr = (std::net::Ipv4Addr::LOCALHOST, self.port).into();
        let own = inside::connect(&self.site.netns, local)?;
        let own_address = own.local_addr()?;
        self.wait_for_visit(|visit| visit.peer == own_address)?;
        let foreign: Vec<_> = self
            .visits()
            .into_iter()
            .skip(before)
            .filter(|visit| visit.peer != own_address)
            .collect();
        ensure(
            foreign.is_empty(),
            format_args!("the app was reached: {foreign:?}"),
        )
    }
}

impl Visit {
    /// Bytes that the app received.
    pub fn bytes(&self) -> u64 {
        self.seen().bytes
    }

    /// The first bytes that the app received, at most 1 KiB.
    pub fn first(&self) -> Vec<u8> {
        self.seen().first
    }

    /// How the connection ended, when it has.
    pub fn end(&self) -> Option<End> {
        self.seen().end
    }

    fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn accept_all(listener: &TcpListener, manner: Manner, visits: &Mutex<Vec<Arc<Visit>>>) {
    while let Ok((stream, peer)) = listener.accept() {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let visit = Arc::new(Visit {
            peer,
            seen: Mutex::default(),
        });
        visits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&visit));
        let _thread = std::thread::spawn(move || {
            let end = match serve(stream, manner, &visit) {
                Ok(()) => End::Closed,
                Err(_reset) => End::Reset,
            };
            visit.note(|seen| seen.end = Some(end));
        });
    }
}

fn serve(mut stream: TcpStream, manner: Manner, visit: &Visit) -> std::io::Result<()> {
    const CHUNK: usize = 128 * 1024;
    stream.set_nodelay(true)?;
    match manner {
        Manner::Whoami => stream.write_all(format!("you are {}\n", visit.peer).as_bytes())?,
        Manner::Source(count) => return Pattern::default().send(&mut stream, count),
        Manner::EndsFirst => stream.shutdown(Shutdown::Write)?,
        Manner::Echo | Manner::Sink | Manner::Resets => {}
    }
    let mut pattern = Pattern::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut chunk)?;
        let fresh = chunk.get(..count).unwrap_or_default();
        if count == 0 {
            break;
        }
        pattern.check(fresh);
        visit.note(|seen| {
            seen.bytes += count as u64;
            let room = 1024_usize.saturating_sub(seen.first.len());
            seen.first.extend(fresh.iter().take(room));
        });
        match manner {
            Manner::Echo => stream.write_all(fresh)?,
            Manner::Resets => return abort(&stream),
            _ => {}
        }
    }
    if manner == Manner::Sink {
        stream.write_all(pattern.verdict().as_bytes())?;
    }
    Ok(())
}

/// Makes the next close a reset (`SO_LINGER` of 0, `man 7 socket`).
///
/// # Errors
/// When the kernel refuses the option.
pub fn abort(stream: &TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt::Linger};
    let now = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, Linger, &now).map_err(Into::into)
}

/// Connects from a pod, sends `request`, ends the sending side and returns all that comes back.
///
/// # Errors
/// When the connection fails or is reset.
pub fn ask(site: &Site, to: SocketAddr, request: &[u8]) -> Outcome<String> {
    let mut stream = inside::connect(&site.netns, to)?;
    stream.write_all(request).context("send the request")?;
    stream
        .shutdown(Shutdown::Write)
        .context("end the request")?;
    read_to_end(&mut stream)
}

/// Reads until the other side ends.
///
/// # Errors
/// When it is reset, or says nothing for [`PATIENCE`].
pub fn read_to_end(stream: &mut TcpStream) -> Outcome<String> {
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context(format_args!("after {} bytes of the answer", answer.len()))?;
    Ok(crate::command::text(&answer))
}

/// Sees that an open connection is ended or reset by the other side, though nothing is sent on it.
///
/// # Errors
/// When something arrives, or the connection stays open and silent.
pub fn ended(stream: &mut TcpStream) -> Outcome {
    match stream.read(&mut [0; 16]) {
        Ok(0) => Ok(()),
        Err(cut) if cut.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(Failure::new(format!("the connection goes on: {other:?}"))),
    }
}

/// Sees that a connection from a pod yields no byte: refused, reset or ended.
///
/// # Errors
/// When something answers, or the connection stays open and silent.
pub fn refused(site: &Site, to: SocketAddr, request: &[u8]) -> Outcome {
    let mut stream = match inside::connect(&site.netns, to) {
        Ok(stream) => stream,
        Err(_refused_at_once) => return Ok(()),
    };
    let _may_be_cut = stream.write_all(request);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) if answer.is_empty() => Ok(()),
        Err(cut) if answer.is_empty() && cut.kind() != ErrorKind::WouldBlock => Ok(()),
        Err(cut) if answer.is_empty() => Err(Failure::new(format!(
            "{to} neither answered nor refused within {} s: {cut}",
            PATIENCE.as_secs()
        ))),
        _ => Err(Failure::new(format!(
            "{to} answered: {}",
            crate::command::text(&answer)
        ))),
    }
}
