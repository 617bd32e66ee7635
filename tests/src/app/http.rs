//! A web server of a few lines for the demonstration: greets and says which address it sees.
//!
//! Called by the program `ambit-test-app`. Prints one line per request: who came, how many bytes, the first line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::failure::{Context as _, Outcome};

/// Serves until it is killed.
///
/// # Errors
/// When the port is taken.
pub fn serve(port: u16, name: &str) -> Outcome {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .context(format_args!("listen on port {port}"))?;
    println!("listening port={port} name={name}");
    loop {
        let (stream, peer) = listener.accept().context("accept")?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let name = name.to_owned();
        let _thread = std::thread::spawn(move || match answer(&stream, peer, &name) {
            Ok((request, bytes)) => println!("request from={peer} bytes={bytes} line={request:?}"),
            Err(cause) => println!("connection from={peer} without a request: {cause}"),
        });
    }
}

/// Reads one request head (and a body of the length it states) and answers; returns its first line and its length.
fn answer(stream: &TcpStream, peer: SocketAddr, name: &str) -> Outcome<(String, usize)> {
    const LONGEST: usize = 1 << 20;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.take(LONGEST as u64));
    let (mut head, mut body_length) = (String::new(), 0_usize);
    loop {
        let begin = head.len();
        let count = reader.read_line(&mut head)?;
        let line = head.get(begin..).unwrap_or_default().trim_end();
        if count == 0 || line.is_empty() {
            break;
        }
        if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(": ") {
            body_length = value.parse().unwrap_or_default();
        }
    }
    let first = head.lines().next().context("the client closed")?.to_owned();
    let mut body = vec![0; body_length.min(LONGEST)];
    reader.read_exact(&mut body)?;
    let text = format!("hello from {name}: I see you as {}\n", peer.ip());
    let mut to = stream;
    write!(
        to,
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )?;
    Ok((first, head.len() + body.len()))
}
