//! Load for measurements: a bulk stream, small requests over kept connections, a new connection per request.
//!
//! Called by the program `ambit-test-app`, which runs once as server and once as client, each in a pod. Uses one thread a
//! side, so that on a small machine the proxies and not the generators are the limit.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::failure::{Context as _, Outcome, ensure_eq};
use crate::poll::now;

/// Bytes of a request and of its answer.
pub const MESSAGE: usize = 1024;
/// Bytes that the bulk stream writes and reads at a time.
const BULK: usize = 256 * 1024;

/// What a load run measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Payload carried, in bytes.
    pub bytes: u64,
    /// Requests answered.
    pub requests: u64,
    /// Half of the requests took at most this long, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 requests took at most this long, in microseconds.
    pub p99_us: f64,
}

/// Reads streams to their end and answers each with its length; until it is killed.
///
/// # Errors
/// When the port is taken.
pub fn serve_bulk(port: u16) -> Outcome {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .context(format_args!("listen on port {port}"))?;
    println!("listening port={port}");
    loop {
        let (mut stream, _) = listener.accept().context("accept")?;
        let _thread = std::thread::spawn(move || -> std::io::Result<()> {
            let mut chunk = vec![0; BULK];
            let mut total = 0_u64;
            loop {
                match stream.read(&mut chunk)? {
                    0 => return stream.write_all(&total.to_be_bytes()),
                    count => total += count as u64,
                }
            }
        });
    }
}

/// Writes for `span`, then waits until the other side has told that it read everything.
///
/// # Errors
/// When the connection fails or bytes are missing.
pub fn bulk(to: SocketAddr, span: Duration) -> Outcome<Measured> {
    let mut stream = TcpStream::connect(to).context(format_args!("connect to {to}"))?;
    let chunk = vec![0x5a; BULK];
    let started = now();
    let mut sent = 0_u64;
    while started.elapsed() < span {
        stream
            .write_all(&chunk)
            .context(format_args!("after {sent} bytes"))?;
        sent += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut length = [0; 8];
    stream.read_exact(&mut length).context("the answer")?;
    ensure_eq(u64::from_be_bytes(length), sent, "bytes that arrived")?;
    Ok(Measured {
        seconds: started.elapsed().as_secs_f64(),
        bytes: sent,
        ..Measured::default()
    })
}

/// Answers each message of [`MESSAGE`] bytes with one; until it is killed. After a message that begins with `x` it closes.
///
/// # Errors
/// When the port is taken.
pub async fn serve_requests(port: u16) -> Outcome {
    let listener = tokio::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .await
        .context(format_args!("listen on port {port}"))?;
    println!("listening port={port}");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept")?;
                connections.spawn(answer(stream));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn answer(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
        if message.first() == Some(&b'x') {
            return stream.shutdown().await;
        }
    }
}

/// Sends requests for `span` over `connections` kept connections, one at a time on each.
///
/// # Errors
/// When a connection fails.
pub async fn requests(to: SocketAddr, span: Duration, connections: usize) -> Outcome<Measured> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut stream = connect(to).await?;
        exchange(&mut stream, b'k').await?;
        open.push(stream);
    }
    let started = now();
    let mut clients = JoinSet::new();
    for mut stream in open {
        clients.spawn(async move {
            let mut taken = Vec::new();
            while started.elapsed() < span {
                let asked = now();
                exchange(&mut stream, b'k').await?;
                taken.push(asked.elapsed());
            }
            Ok(taken)
        });
    }
    summary(clients, started).await
}

/// Opens a connection per request for `span`, `at_once` of them in parallel. The server closes first.
///
/// # Errors
/// When a connection fails.
pub async fn connections(to: SocketAddr, span: Duration, at_once: usize) -> Outcome<Measured> {
    let started = now();
    let mut clients = JoinSet::new();
    for _ in 0..at_once {
        clients.spawn(async move {
            let mut taken = Vec::new();
            while started.elapsed() < span {
                let asked = now();
                let mut stream = connect(to).await?;
                exchange(&mut stream, b'x').await?;
                ensure_eq(stream.read(&mut [0]).await?, 0, "bytes after the answer")?;
                taken.push(asked.elapsed());
            }
            Ok(taken)
        });
    }
    summary(clients, started).await
}

async fn connect(to: SocketAddr) -> Outcome<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(to)
        .await
        .context(format_args!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut tokio::net::TcpStream, kind: u8) -> Outcome {
    let mut message = [kind; MESSAGE];
    stream.write_all(&message).await.context("send a request")?;
    stream
        .read_exact(&mut message)
        .await
        .context("read an answer")
        .map(|_count| ())
}

async fn summary(
    mut clients: JoinSet<Outcome<Vec<Duration>>>,
    started: Instant,
) -> Outcome<Measured> {
    let mut taken = Vec::new();
    while let Some(client) = clients.join_next().await {
        taken.extend(client.context("a client")??);
    }
    let seconds = started.elapsed().as_secs_f64();
    taken.sort_unstable();
    let part = |of_100: usize| {
        taken
            .get(taken.len() * of_100 / 100)
            .map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    let requests = taken.len() as u64;
    Ok(Measured {
        seconds,
        bytes: requests * 2 * MESSAGE as u64,
        requests,
        p50_us: part(50),
        p99_us: part(99),
    })
}
