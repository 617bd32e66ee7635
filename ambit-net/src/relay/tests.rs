//! Relays between real sockets, plain and through tunnels: bytes, ends, resets, bounds.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::hbone::ConnectTarget;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::hbone::pool::{Pool, PoolSettings, TunnelKey};
use crate::hbone::server::Tunnel;
use crate::hbone::{ConnectHead, TunnelSettings};
use crate::meters::Gauge;
use crate::tasks::Tasks;

/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, (far, _)) = (near.unwrap(), far.unwrap());
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

type Relayed = JoinHandle<Result<(), RelayError>>;

fn start(tcp: TcpStream, peer: Peer, counts: &Arc<ByteCounts>) -> Relayed {
    let counts = Arc::clone(counts);
    #[expect(clippy::disallowed_methods, reason = "the test joins it")]
    tokio::spawn(async move { relay(tcp, peer, &counts).await })
}

/// A client and a server, each an app with a connection, with everything between them.
struct Path {
    client: TcpStream,
    server: TcpStream,
    /// The relay on the client's side, and with a tunnel the one on the server's.
    relays: Vec<Relayed>,
    counts: Arc<ByteCounts>,
    _tunnel: Option<(Pool, Tasks)>,
}

async fn plain() -> Path {
    let (client, near) = tcp_pair().await;
    let (far, server) = tcp_pair().await;
    let counts = Arc::default();
    Path {
        client,
        server,
        relays: vec![start(near, Peer::Tcp(far), &counts)],
        counts,
        _tunnel: None,
    }
}

/// Two streams of one tunnel, joined: what one node gets from its pool, and the other from its server.
async fn tunnelled_streams(
    tasks: &Tasks,
    pool: &Pool,
    settings: TunnelSettings,
) -> (HboneStream, HboneStream) {
    let (give, taken) = tokio::sync::oneshot::channel();
    let give = std::sync::Mutex::new(Some(give));
    let dial = || {
        let (near, far) = duplex(256 * 1024);
        let give = give.lock().unwrap().take();
        tasks.spawn(async move {
            let mut tunnel = Tunnel::handshake(far, settings).await.unwrap();
            let request = tunnel.next_connect().await.unwrap().unwrap();
            drop(give.unwrap().send(request.accept(None).unwrap()));
            while let Some(Ok(_)) = tunnel.next_connect().await {}
        });
        async move { Ok(near) }
    };
    let id = || ambit_core::identity::SpiffeId::new("cluster.local", "shop", "web");
    let ip = [127, 0, 0, 1];
    let key = TunnelKey::new(id(), ip.into(), (ip, 15008).into(), vec![id()]);
    let head = ConnectHead {
        target: ConnectTarget::Address((ip, 80).into()),
        baggage: None,
        forwarded: None,
        traceparent: None,
    };
    let opened = pool.open(&key, &head, dial).await.unwrap();
    (opened.stream, taken.await.unwrap())
}

async fn tunnelled() -> Path {
    let (tasks, pool) = (
        Tasks::new("test"),
        Pool::new("test", PoolSettings::default(), Gauge::default()),
    );
    let (near_stream, far_stream) = tunnelled_streams(&tasks, &pool, TunnelSettings::SERVER).await;
    let (client, near) = tcp_pair().await;
    let (far, server) = tcp_pair().await;
    let counts = Arc::default();
    let far_counts = Arc::default();
    let relays = vec![
        start(near, Peer::Tunnel(near_stream), &counts),
        start(far, Peer::Tunnel(far_stream), &far_counts),
    ];
    Path {
        client,
        server,
        relays,
        counts,
        _tunnel: Some((pool, tasks)),
    }
}

impl Path {
    /// Takes a side out, so that the test can close it.
    async fn take_client(&mut self) -> TcpStream {
        std::mem::replace(&mut self.client, tcp_pair().await.0)
    }

    async fn take_server(&mut self) -> TcpStream {
        std::mem::replace(&mut self.server, tcp_pair().await.0)
    }

    async fn outcomes(&mut self) -> Vec<Result<(), RelayError>> {
        let mut outcomes = Vec::new();
        for relay in self.relays.drain(..) {
            outcomes.push(within(relay).await.unwrap());
        }
        outcomes
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

async fn send(mut to: impl AsyncWrite + Unpin, bytes: &[u8]) {
    to.write_all(bytes).await.unwrap();
    to.shutdown().await.unwrap();
}

async fn receive(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut got = Vec::new();
    from.read_to_end(&mut got).await.unwrap();
    got
}

/// Runs a claim on a plain path and on a tunnelled one.
macro_rules! on_both_paths {
    ($($name:ident($path:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn claim(mut $path: Path) $body

            #[tokio::test]
            async fn plain() {
                claim(super::plain().await).await;
            }

            #[tokio::test]
            async fn tunnelled() {
                claim(super::tunnelled().await).await;
            }
        }
    )*};
}

on_both_paths! {
    carries_every_size_both_ways_and_counts(path) {
        let (up, down) = (pattern(3_000_000), pattern(2_000_001));
        let (from_client, to_client) = path.client.split();
        let (from_server, to_server) = path.server.split();
        let ((), (), got_up, got_down) = within(async { tokio::join!(
            send(to_client, &up),
            send(to_server, &down),
            receive(from_server),
            receive(from_client),
        )}).await;
        assert!(got_up == up && got_down == down);
        let outcomes = path.relays.drain(..);
        for outcome in outcomes {
            within(outcome).await.unwrap().unwrap();
        }
        assert_eq!(path.counts.from_app(), 3_000_000);
        assert_eq!(path.counts.to_app(), 2_000_001);
    }

    small_messages_go_back_and_forth(path) {
        for length in [1, 100, 1000, 5000] {
            let sent = pattern(length);
            let mut got = vec![0; length];
            path.client.write_all(&sent).await.unwrap();
            within(path.server.read_exact(&mut got)).await.unwrap();
            assert_eq!(got, sent);
            path.server.write_all(&got).await.unwrap();
            within(path.client.read_exact(&mut got)).await.unwrap();
            assert_eq!(got, sent);
        }
    }

    the_client_ends_first_and_still_receives(path) {
        path.client.write_all(b"question").await.unwrap();
        path.client.shutdown().await.unwrap();
        assert_eq!(within(receive(&mut path.server)).await, b"question");
        path.server.write_all(b"answer").await.unwrap();
        path.server.shutdown().await.unwrap();
        assert_eq!(within(receive(&mut path.client)).await, b"answer");
        assert!(path.outcomes().await.iter().all(Result::is_ok));
    }

    the_server_ends_first_and_still_receives(path) {
        path.server.shutdown().await.unwrap();
        assert_eq!(within(receive(&mut path.client)).await, b"");
        path.client.write_all(b"late").await.unwrap();
        path.client.shutdown().await.unwrap();
        assert_eq!(within(receive(&mut path.server)).await, b"late");
        assert!(path.outcomes().await.iter().all(Result::is_ok));
    }

    a_reset_by_the_client_is_a_reset_for_the_server(path) {
        path.client.write_all(b"begin").await.unwrap();
        within(path.server.read_exact(&mut [0; 5])).await.unwrap();
        path.client.set_zero_linger().unwrap();
        drop(path.take_client().await);
        let error = within(path.server.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        for outcome in path.outcomes().await {
            assert_eq!(outcome.unwrap_err().reason(), Reason::PeerReset);
        }
    }

    a_reset_by_the_server_is_a_reset_for_the_client(path) {
        path.client.write_all(b"begin").await.unwrap();
        within(path.server.read_exact(&mut [0; 5])).await.unwrap();
        path.server.set_zero_linger().unwrap();
        drop(path.take_server().await);
        let error = within(path.client.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        for outcome in path.outcomes().await {
            assert_eq!(outcome.unwrap_err().reason(), Reason::PeerReset);
        }
    }

    a_client_that_resets_after_its_end_is_noticed(path) {
        path.client.shutdown().await.unwrap();
        assert_eq!(within(receive(&mut path.server)).await, b"");
        path.client.set_zero_linger().unwrap();
        drop(path.take_client().await);
        // Nothing is sent and nothing is read: only the reset can end the relays.
        for outcome in path.outcomes().await {
            assert_eq!(outcome.unwrap_err().reason(), Reason::PeerReset);
        }
        let error = within(path.server.write_all(&pattern(10_000_000))).await.unwrap_err();
        assert!(matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{error}");
    }

    an_early_answer_arrives_though_the_rest_of_the_question_is_not_read(path) {
        let question = pattern(200_000);
        path.client.write_all(&question).await.unwrap();
        within(path.server.read_exact(&mut [0; 10])).await.unwrap();
        path.server.write_all(b"413 too large").await.unwrap();
        // Closes with the rest unread, which makes the kernel send a reset after the end.
        drop(path.take_server().await);
        let mut got = [0; 13];
        within(path.client.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"413 too large");
    }

    a_relay_that_is_cut_resets_both_apps(path) {
        path.client.write_all(b"begin").await.unwrap();
        within(path.server.read_exact(&mut [0; 5])).await.unwrap();
        path.relays[0].abort();
        for app in [&mut path.client, &mut path.server] {
            let error = within(app.read_u8()).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }

    a_reader_that_does_not_read_stops_its_writer(path) {
        // Loopback's own buffers, the stream's window and send buffer, and slack.
        const BOUND: usize = 40 * 1024 * 1024;
        let data = pattern(64 * 1024);
        let mut written = 0;
        while let Ok(result) = timeout(Duration::from_secs(1), path.client.write(&data)).await {
            written += result.unwrap();
            assert!(written < BOUND, "never stops");
        }
        path.client.shutdown().await.unwrap();
        let got = within(receive(&mut path.server)).await;
        assert_eq!(got.len(), written);
    }
}

#[tokio::test]
async fn many_small_chunks_for_an_app_that_does_not_read_do_not_end_the_tunnel() {
    // Half of the connection's window is what h2 lets small frames cost, 256 bytes each: 2048 frames.
    const CHUNKS: usize = 10_000;
    const SOCKET: usize = 16 * 1024;
    let settings = TunnelSettings {
        stream_window: 512 * 1024,
        connection_window: 1024 * 1024,
        ..TunnelSettings::SERVER
    };
    let (tasks, pool) = (
        Tasks::new("test"),
        Pool::new("test", PoolSettings::default(), Gauge::default()),
    );
    let (mut near, far) = tunnelled_streams(&tasks, &pool, settings).await;
    let (relayed, mut app) = tcp_pair().await;
    socket2::SockRef::from(&relayed)
        .set_send_buffer_size(SOCKET)
        .unwrap();
    socket2::SockRef::from(&app)
        .set_recv_buffer_size(SOCKET)
        .unwrap();
    let counts = Arc::default();
    let relay = start(relayed, Peer::Tunnel(far), &counts);
    // Fills the app's socket, so that everything after it waits.
    let full = pattern(256 * 1024);
    within(near.write_all(&full)).await.unwrap();
    for _ in 0..CHUNKS {
        within(near.write_all(&[7; 3])).await.unwrap();
        // Each chunk becomes a frame of its own.
        tokio::task::yield_now().await;
    }
    near.shutdown().await.unwrap();
    assert!(
        counts.to_app() < full.len() as u64,
        "the app's socket has taken all"
    );
    let got = within(receive(&mut app)).await;
    assert_eq!(got.len(), full.len() + 3 * CHUNKS);
    app.shutdown().await.unwrap();
    assert_eq!(within(receive(&mut near)).await, b"");
    within(relay).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_relay_can_move_between_threads_and_is_small() {
    fn size<F: Future + Send>(_: &F) -> usize {
        size_of::<F>()
    }
    let (app, peer) = tcp_pair().await;
    let counts = ByteCounts::default();
    let relay = relay(app, Peer::Tcp(peer), &counts);
    assert!(size(&relay) <= 1280, "{} bytes", size(&relay));
}
