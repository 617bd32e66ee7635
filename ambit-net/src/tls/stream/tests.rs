//! The stream between two sides in memory: bytes arrive whole, calls are few, ends are told apart.

use std::time::Duration;

use ambit_core::identity::SpiffeId;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::tls::accept::accept;
use crate::tls::connect::connect;
use crate::tls::testing::TestAuthority;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/both";

/// Counts the calls that would be system calls.
struct Counted {
    io: DuplexStream,
    writes: usize,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes += 1;
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

async fn pair(room: usize) -> (TlsStream<Counted>, TlsStream<DuplexStream>) {
    let credential = TestAuthority::new().credential(ID);
    let (near, far) = duplex(room);
    let near = Counted {
        io: near,
        writes: 0,
    };
    let expect = [SpiffeId::parse(ID).unwrap()];
    let deadline = Duration::from_secs(5);
    let (server, client) = tokio::join!(
        accept(far, &credential, deadline),
        connect(near, &credential, &expect, deadline)
    );
    let mut client = client.unwrap();
    client.io.writes = 0;
    (client, server.unwrap().0)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[tokio::test]
async fn carries_bytes_of_every_size_through_a_narrow_connection() {
    let (mut client, mut server) = pair(1000).await;
    for length in [1, 4095, 4096, 4097, 16_384, 16_385, 300_000, 3_000_000] {
        let sent = pattern(length);
        let mut got = vec![0; length];
        let write = async {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
        };
        let ((), read) = tokio::join!(write, server.read_exact(&mut got));
        read.unwrap();
        assert!(got == sent, "{length} bytes");
    }
}

#[tokio::test]
async fn small_writes_leave_in_one_call_at_the_flush() {
    let (mut client, mut server) = pair(64 * 1024).await;
    for _ in 0..10 {
        client.write_all(&[7; 1000]).await.unwrap();
    }
    assert_eq!(client.io.writes, 0);
    client.flush().await.unwrap();
    assert_eq!(client.io.writes, 1);
    server.read_exact(&mut vec![0; 10_000]).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_writer() {
    let (mut client, _server) = pair(1000).await;
    let mut accepted = 0;
    let data = pattern(64 * 1024);
    let waker = std::task::Waker::noop();
    let mut cx = Context::from_waker(waker);
    while let Poll::Ready(taken) = Pin::new(&mut client).poll_write(&mut cx, &data) {
        accepted += taken.unwrap();
        assert!(accepted <= 2 * WRITE, "never stops");
    }
    assert!(accepted >= WRITE);
}

#[tokio::test]
async fn an_end_with_close_notify_is_an_end() {
    let (mut client, mut server) = pair(64 * 1024).await;
    client.write_all(b"last").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_error_after_the_data() {
    let (mut client, mut server) = pair(64 * 1024).await;
    client.write_all(b"last").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    let mut got = [0; 4];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last");
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn forged_bytes_are_an_error() {
    let (mut client, mut server) = pair(64 * 1024).await;
    client.io.io.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
    client.io.io.write_all(&[0; 20]).await.unwrap();
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn an_idle_stream_holds_no_block() {
    let (mut client, mut server) = pair(64 * 1024).await;
    client.write_all(&pattern(10_000)).await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut vec![0; 10_000]).await.unwrap();
    assert_eq!(server.received.capacity(), 0);
}
