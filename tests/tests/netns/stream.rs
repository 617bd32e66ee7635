//! What an app's connection keeps on its way through two proxies: its ends, its resets, and every byte.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};

use tests::app::pattern::Pattern;
use tests::app::{End, Manner, Server, abort, ask, read_to_end};
use tests::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use tests::inside;

use crate::Claim;
use crate::stage::Stage;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "the_client_ends_first_and_is_still_answered",
        the_client_ends_first_and_is_still_answered,
    ),
    (
        "the_server_ends_first_and_still_receives",
        the_server_ends_first_and_still_receives,
    ),
    (
        "a_reset_by_the_server_reaches_the_client",
        a_reset_by_the_server_reaches_the_client,
    ),
    (
        "a_reset_by_the_client_reaches_the_server",
        a_reset_by_the_client_reaches_the_server,
    ),
    ("a_large_upload_arrives_whole", a_large_upload_arrives_whole),
    (
        "a_large_download_arrives_whole",
        a_large_download_arrives_whole,
    ),
    (
        "many_connections_share_a_tunnel",
        many_connections_share_a_tunnel,
    ),
];

/// More than all windows and buffers on the way together.
const LARGE: u64 = 40 << 20;

/// The server on the client's node by IPv4 and the one on the other node by IPv6.
fn paths(port: u16, manner: Manner) -> Outcome<[(Server, SocketAddr); 2]> {
    let stage = Stage::shared()?;
    let (near, far) = (
        Server::start(&stage.near, port, manner)?,
        Server::start(&stage.far, port, manner)?,
    );
    let addresses = [near.v4(), far.v6()];
    Ok([(near, addresses[0]), (far, addresses[1])])
}

fn the_client_ends_first_and_is_still_answered() -> Outcome {
    for (_server, to) in paths(7101, Manner::Sink)? {
        let said = ask(&Stage::shared()?.client, to, b"1234567")?;
        ensure(said.starts_with("7 bytes"), format_args!("{to}: {said}"))?;
    }
    Ok(())
}

fn the_server_ends_first_and_still_receives() -> Outcome {
    for (server, to) in paths(7102, Manner::EndsFirst)? {
        let mut stream = inside::connect(&Stage::shared()?.client.netns, to)?;
        ensure_eq(
            read_to_end(&mut stream)?.as_str(),
            "",
            "what the server sent before it ended",
        )?;
        for _ in 0..10 {
            stream
                .write_all(b"0123456789")
                .context("send after the server's end")?;
        }
        stream.shutdown(Shutdown::Write)?;
        server.wait_for_visit(|visit| visit.bytes() == 100 && visit.end() == Some(End::Closed))?;
    }
    Ok(())
}

fn a_reset_by_the_server_reaches_the_client() -> Outcome {
    for (_server, to) in paths(7103, Manner::Resets)? {
        let mut stream = inside::connect(&Stage::shared()?.client.netns, to)?;
        stream.write_all(b"x")?;
        match stream.read(&mut [0; 16]) {
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => {}
            other => {
                return Err(Failure::new(format!(
                    "{to}: wanted a reset, read {other:?}"
                )));
            }
        }
    }
    Ok(())
}

fn a_reset_by_the_client_reaches_the_server() -> Outcome {
    for (server, to) in paths(7104, Manner::Whoami)? {
        let mut stream = inside::connect(&Stage::shared()?.client.netns, to)?;
        stream.write_all(b"hello")?;
        server.wait_for_visit(|visit| visit.bytes() == 5)?;
        abort(&stream)?;
        drop(stream);
        server.wait_for_visit(|visit| visit.bytes() == 5 && visit.end() == Some(End::Reset))?;
    }
    Ok(())
}

fn a_large_upload_arrives_whole() -> Outcome {
    for (_server, to) in paths(7105, Manner::Sink)? {
        let mut stream = inside::connect(&Stage::shared()?.client.netns, to)?;
        Pattern::default().send(&mut stream, LARGE).context(to)?;
        stream.shutdown(Shutdown::Write)?;
        ensure_eq(read_to_end(&mut stream)?, Pattern::expected(LARGE), to)?;
    }
    Ok(())
}

fn a_large_download_arrives_whole() -> Outcome {
    for (_server, to) in paths(7106, Manner::Source(LARGE))? {
        let mut stream = inside::connect(&Stage::shared()?.client.netns, to)?;
        ensure_eq(Pattern::default().receive(&mut stream)?, LARGE, to)?;
    }
    Ok(())
}

fn many_connections_share_a_tunnel() -> Outcome {
    let stage = Stage::shared()?;
    let server = Server::start(&stage.far, 7107, Manner::Echo)?;
    let mut open = Vec::new();
    for number in 0..100_u32 {
        let mut stream = inside::connect(&stage.client.netns, server.v4())?;
        stream.write_all(&number.to_be_bytes())?;
        open.push((number, stream));
    }
    for (number, stream) in &mut open {
        let mut back = [0; 4];
        stream
            .read_exact(&mut back)
            .context(format_args!("connection {number}"))?;
        ensure_eq(u32::from_be_bytes(back), *number, "what came back")?;
    }
    ensure_eq(
        server.visits().len(),
        100,
        "connections that the app accepted",
    )?;
    let sockets = tests::command::run_in(
        &stage.far.netns,
        "ss",
        ["-Htn", "state", "established", "sport", "=", ":15008"],
    )?;
    let from_client = sockets
        .lines()
        .filter(|line| line.contains(&stage.client.addresses.v4.to_string()))
        .count();
    // One per worker thread of the client's node and destination, at 100 streams each.
    ensure(
        (1..=8).contains(&from_client),
        format_args!("tunnels: {sockets}"),
    )
}
