//! The pool against servers in memory: who dials, who shares, what is tried again, when tunnels end.

use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::hbone::ConnectTarget;
use ambit_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::*;
use crate::hbone::server::{ConnectRequest, Tunnel};
use crate::tls::testing::TestAuthority;
use crate::tls::{TlsError, accept::accept, connect::connect};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn key() -> TunnelKey {
    let ip = [10, 0, 0, 1].into();
    TunnelKey::new(
        id(CLIENT),
        ip,
        "10.0.0.2:15008".parse().unwrap(),
        vec![id(SERVER)],
    )
}

fn head() -> ConnectHead {
    ConnectHead {
        target: ConnectTarget::parse("10.0.0.2:80").unwrap(),
        baggage: None,
        forwarded: None,
        traceparent: None,
    }
}

/// What a peer does with a request.
type Act = fn(ConnectRequest, &Tasks);

/// Accepts, and sends back what comes.
fn echo(request: ConnectRequest, tasks: &Tasks) {
    let stream = request.accept(None).unwrap();
    tasks.spawn(async move {
        let (mut read, mut write) = tokio::io::split(stream);
        drop(tokio::io::copy(&mut read, &mut write).await);
        drop(write.shutdown().await);
    });
}

/// A network on which every dial reaches a server of its own.
struct Net {
    pool: Pool,
    dials: AtomicUsize,
    delay: Duration,
    act: Act,
    server: TunnelSettings,
    tasks: Arc<Tasks>,
    /// Told when the servers that stand shall send GOAWAY.
    leave: Arc<Notify>,
}

impl Net {
    fn new(settings: PoolSettings, act: Act) -> Self {
        Self {
            pool: Pool::new("test", settings, Gauge::default()),
            dials: AtomicUsize::new(0),
            delay: Duration::from_millis(5),
            act,
            server: TunnelSettings::SERVER,
            tasks: Arc::new(Tasks::new("servers")),
            leave: Arc::default(),
        }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    fn dial(&self) -> impl Future<Output = Result<DuplexStream, HboneError>> + use<> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let (near, far) = duplex(64 * 1024);
        let (act, settings, delay) = (self.act, self.server, self.delay);
        let (tasks, leave) = (Arc::clone(&self.tasks), Arc::clone(&self.leave));
        async move {
            sleep(delay).await;
            let streams = Arc::clone(&tasks);
            tasks.spawn(async move {
                let mut tunnel = Tunnel::handshake(far, settings).await.unwrap();
                loop {
                    tokio::select! {
                        () = leave.notified() => tunnel.shutdown(),
                        next = tunnel.next_connect() => match next {
                            Some(Ok(request)) => act(request, &streams),
                            _ => return,
                        },
                    }
                }
            });
            Ok(near)
        }
    }

    async fn open(&self) -> Result<Opened, HboneError> {
        self.pool.open(&key(), &head(), || self.dial()).await
    }
}

async fn says_pong(mut opened: Opened) {
    opened.stream.write_all(b"pong").await.unwrap();
    opened.stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    opened.stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"pong");
}

fn streams(streams: u32) -> PoolSettings {
    let mut settings = PoolSettings::default();
    settings.tunnel.streams = streams;
    settings
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_dial() {
    let net = Net::new(PoolSettings::default(), echo);
    let opens = futures_util::future::join_all((0..50).map(|_| net.open())).await;
    assert_eq!(net.dials(), 1);
    futures_util::future::join_all(opens.into_iter().map(|o| says_pong(o.unwrap()))).await;
    says_pong(net.open().await.unwrap()).await;
    assert_eq!(net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_ends_have_other_tunnels() {
    let net = Net::new(PoolSettings::default(), echo);
    let source = [10, 0, 0, 1].into();
    let via = "10.0.0.2:15008".parse().unwrap();
    let keys = [
        key(),
        TunnelKey::new(id(SERVER), source, via, vec![id(SERVER)]),
        TunnelKey::new(id(CLIENT), [10, 0, 0, 9].into(), via, vec![id(SERVER)]),
        TunnelKey::new(
            id(CLIENT),
            source,
            "10.0.0.3:15008".parse().unwrap(),
            vec![id(SERVER)],
        ),
        TunnelKey::new(id(CLIENT), source, via, vec![id(SERVER), id(CLIENT)]),
    ];
    for key in &keys {
        net.pool.open(key, &head(), || net.dial()).await.unwrap();
    }
    assert_eq!(net.dials(), keys.len());
    let same = TunnelKey::new(
        id(CLIENT),
        source,
        via,
        vec![id(CLIENT), id(SERVER), id(CLIENT)],
    );
    net.pool.open(&same, &head(), || net.dial()).await.unwrap();
    assert_eq!(
        net.dials(),
        keys.len(),
        "the order of the expected identities does not matter"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dial_goes_on_when_its_first_caller_gives_up() {
    let net = Net::new(PoolSettings::default(), echo);
    let first = timeout(Duration::from_millis(1), net.open()).await;
    assert!(first.is_err());
    says_pong(net.open().await.unwrap()).await;
    assert_eq!(net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_tunnel_gets_a_second_one_beside_it() {
    let net = Net::new(streams(2), echo);
    let first = (net.open().await.unwrap(), net.open().await.unwrap());
    assert_eq!(net.dials(), 1);
    let third = net.open().await.unwrap();
    assert_eq!(net.dials(), 2);
    drop(first);
    let more = (net.open().await.unwrap(), net.open().await.unwrap());
    assert_eq!(net.dials(), 2);
    drop((third, more));
}

#[tokio::test(start_paused = true)]
async fn a_dial_is_promised_to_as_many_as_a_tunnel_has_places() {
    let net = Net::new(streams(2), echo);
    let opens = futures_util::future::join_all((0..6).map(|_| net.open())).await;
    assert!(opens.iter().all(Result::is_ok));
    assert_eq!(net.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn dials_under_way_are_bounded() {
    let net = Net::new(streams(1), echo);
    let opens = futures_util::future::join_all((0..MAX_DIALS + 2).map(|_| net.open())).await;
    let refused: Vec<_> = opens
        .iter()
        .filter_map(|open| open.as_ref().err())
        .collect();
    assert_eq!(net.dials(), MAX_DIALS);
    assert_eq!(refused.len(), 2);
    assert!(
        refused
            .iter()
            .all(|error| error.reason() == Reason::LimitReached)
    );
}

#[tokio::test(start_paused = true)]
async fn the_peers_own_limit_is_kept() {
    let mut net = Net::new(streams(100), echo);
    net.server.streams = 3;
    let first = net.open().await.unwrap();
    let rest = futures_util::future::join_all((0..5).map(|_| net.open())).await;
    assert!(rest.iter().all(Result::is_ok), "{rest:?}");
    assert_eq!(net.dials(), 2);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn tunnels_of_a_peer_that_takes_no_streams_do_not_pile_up() {
    let mut net = Net::new(streams(100), echo);
    net.server.streams = 0;
    for _ in 0..8 {
        assert!(net.open().await.is_err());
    }
    assert!(net.pool.tunnels() <= 2, "{}", net.pool.tunnels());
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_everybodys_answer_and_the_next_one_tries_again() {
    let pool = Pool::new("test", PoolSettings::default(), Gauge::default());
    let dials = AtomicUsize::new(0);
    let open = async || {
        let dial = || async {
            sleep(Duration::from_millis(5)).await;
            Err::<DuplexStream, _>(HboneError::ConnectDeadline)
        };
        let counted = || {
            dials.fetch_add(1, Ordering::SeqCst);
            dial()
        };
        pool.open(&key(), &head(), counted).await.unwrap_err()
    };
    let (a, b) = tokio::join!(open(), open());
    assert_eq!(a.reason(), Reason::TunnelTimeout);
    assert_eq!(b.reason(), Reason::TunnelTimeout);
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    open().await;
    assert_eq!(dials.load(Ordering::SeqCst), 2);
    assert!(pool.shared.locked().slots.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dial_has_a_deadline() {
    let mut net = Net::new(PoolSettings::default(), echo);
    net.delay = Duration::from_secs(3600);
    let begun = Instant::now();
    let error = net.open().await.unwrap_err();
    assert_eq!(error.reason(), Reason::TunnelTimeout);
    assert_eq!(begun.elapsed(), PoolSettings::default().dial_deadline);
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_a_deadline() {
    let net = Net::new(PoolSettings::default(), |request, tasks| {
        tasks.spawn(async move {
            sleep(Duration::from_secs(3600)).await;
            drop(request);
        });
    });
    let begun = Instant::now();
    let error = net.open().await.unwrap_err();
    assert!(matches!(error, HboneError::AnswerDeadline), "{error}");
    let waited = begun.elapsed() - net.delay;
    assert_eq!(waited, PoolSettings::default().answer_deadline);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_with_its_reason_and_is_not_tried_again() {
    let net = Net::new(PoolSettings::default(), |request, _| {
        request.refuse(Reason::PolicyDenied);
    });
    let error = net.open().await.unwrap_err();
    assert_eq!(error.reason(), Reason::TunnelRefused);
    let HboneError::Answered { status, reason } = error else {
        panic!("{error}")
    };
    assert_eq!((status.as_u16(), reason), (401, Some(Reason::PolicyDenied)));
    assert_eq!(net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_acted_on_is_not_tried_again() {
    let net = Net::new(PoolSettings::default(), |request, _| drop(request));
    let error = net.open().await.unwrap_err();
    assert_eq!(error.reason(), Reason::HbonePeer);
    assert_eq!(net.dials(), 1);
}

/// Reads up to the first HEADERS frame (kind 1): the preface, SETTINGS and WINDOW_UPDATE come before it.
async fn request_comes(io: &mut DuplexStream) {
    io.read_exact(&mut [0; 24]).await.unwrap();
    let mut head = [0; 9];
    while head[3] != 1 {
        io.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        io.read_exact(&mut vec![0; length]).await.unwrap();
    }
}

/// Serves the first dial by hand: answers the request's HEADERS with these bytes. Further dials reach an echo.
async fn first_tunnel_answers(frame: &'static [u8]) -> (Net, Result<Opened, HboneError>) {
    let net = Net::new(PoolSettings::default(), echo);
    let count = AtomicUsize::new(0);
    let dial = || {
        let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let other = net.dial();
        let tasks = Arc::clone(&net.tasks);
        async move {
            if !is_first {
                return other.await;
            }
            let (near, mut far) = duplex(64 * 1024);
            tasks.spawn(async move {
                far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                request_comes(&mut far).await;
                far.write_all(frame).await.unwrap();
                sleep(Duration::from_secs(60)).await;
            });
            Ok(near)
        }
    };
    let opened = net.pool.open(&key(), &head(), dial).await;
    net.dials
        .store(count.load(Ordering::SeqCst), Ordering::SeqCst);
    (net, opened)
}

#[tokio::test(start_paused = true)]
async fn a_request_above_goaways_last_stream_is_sent_again_over_a_fresh_tunnel() {
    // GOAWAY, last stream 0, NO_ERROR.
    let goaway = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (net, opened) = first_tunnel_answers(goaway).await;
    says_pong(opened.unwrap()).await;
    assert_eq!(net.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_sent_again_over_a_fresh_tunnel() {
    // RST_STREAM of stream 1, REFUSED_STREAM.
    let refused = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    let (net, opened) = first_tunnel_answers(refused).await;
    says_pong(opened.unwrap()).await;
    assert_eq!(net.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_goaway_lets_finish_is_not_sent_again() {
    // GOAWAY, last stream 1, NO_ERROR: the request may be acted on, and then no answer comes.
    let goaway = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    let (net, opened) = first_tunnel_answers(goaway).await;
    let error = opened.unwrap_err();
    assert_eq!(error.reason(), Reason::HbonePeer);
    assert_eq!(net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_going_away_is_left_to_its_streams() {
    let net = Net::new(PoolSettings::default(), echo);
    let open = net.open().await.unwrap();
    net.leave.notify_waiters();
    sleep(Duration::from_millis(1)).await;
    says_pong(net.open().await.unwrap()).await;
    assert_eq!(net.dials(), 2);
    says_pong(open).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(net.pool.tunnels(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_lost_is_not_used() {
    let net = Net::new(PoolSettings::default(), echo);
    let open = net.open().await.unwrap();
    net.tasks.drain(Duration::ZERO).await;
    sleep(Duration::from_millis(1)).await;
    drop(open);
    let net = Net {
        tasks: Arc::new(Tasks::new("servers")),
        ..net
    };
    says_pong(net.open().await.unwrap()).await;
    assert_eq!(net.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed_and_a_used_one_is_not() {
    let net = Net::new(PoolSettings::default(), echo);
    let idle = PoolSettings::default().tunnel.idle;
    let open = net.open().await.unwrap();
    sleep(3 * idle).await;
    assert_eq!(net.pool.tunnels(), 1);
    says_pong(open).await;
    sleep(idle - Duration::from_secs(1)).await;
    assert_eq!(net.pool.tunnels(), 1);
    sleep(Duration::from_secs(12)).await;
    assert_eq!(net.pool.tunnels(), 0);
    assert!(net.pool.shared.locked().slots.is_empty());
    says_pong(net.open().await.unwrap()).await;
    assert_eq!(net.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_given_up() {
    let pool = Pool::new("test", PoolSettings::default(), Gauge::default());
    let (near, mut far) = duplex(64 * 1024);
    let near = Mutex::new(Some(near));
    let dial = || {
        let near = near.lock().unwrap().take().unwrap();
        async { Ok(near) }
    };
    let (key, head) = (key(), head());
    let opening = pool.open(&key, &head, dial);
    let answering = async {
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        request_comes(&mut far).await;
        // HEADERS of stream 1 with `:status: 200` (index 8 of RFC 7541's table).
        far.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88])
            .await
            .unwrap();
    };
    let (opened, ()) = tokio::join!(opening, answering);
    let mut stream = opened.unwrap().stream;
    let begun = Instant::now();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn closing_lets_streams_finish_and_opens_no_more() {
    let net = Net::new(PoolSettings::default(), echo);
    let open = net.open().await.unwrap();
    net.pool.close();
    let error = net.open().await.unwrap_err();
    assert_eq!(error.reason(), Reason::Drained);
    sleep(Duration::from_secs(60)).await;
    says_pong(open).await;
    let drained = net.pool.drain(Duration::from_secs(5)).await;
    assert_eq!(drained.cut, 0);
}

#[tokio::test(start_paused = true)]
async fn closing_under_a_dial_answers_those_who_wait() {
    let net = Net::new(PoolSettings::default(), echo);
    let closing = async {
        sleep(Duration::from_millis(1)).await;
        net.pool.close();
    };
    let (opened, ()) = tokio::join!(net.open(), closing);
    assert_eq!(opened.unwrap_err().reason(), Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn draining_cuts_what_does_not_end() {
    let net = Net::new(PoolSettings::default(), echo);
    let mut open = net.open().await.unwrap();
    let drained = net.pool.drain(Duration::from_secs(5)).await;
    assert_eq!(drained.cut, 1);
    assert!(open.stream.read_u8().await.is_err());
}

#[tokio::test]
async fn a_server_that_refuses_our_certificate_is_named_as_the_cause() {
    let ca = TestAuthority::new();
    let expired = crate::tls::testing::Leaf::new([CLIENT]).expired();
    let (client, server) = (ca.credential_with(CLIENT, &expired), ca.credential(SERVER));
    let (client, server) = (Arc::new(client), Arc::new(server));
    let tasks = Arc::new(Tasks::new("server"));
    let dial = || {
        let (near, far) = duplex(64 * 1024);
        let (client, server) = (Arc::clone(&client), Arc::clone(&server));
        tasks.spawn(async move {
            let refused = accept(far, &server, Duration::from_secs(5)).await;
            assert!(refused.is_err());
        });
        async move {
            let deadline = Duration::from_secs(5);
            let connected = connect(near, &client, &[id(SERVER)], deadline).await;
            connected.map_err(HboneError::Tls)
        }
    };
    let pool = Pool::new("test", PoolSettings::default(), Gauge::default());
    let error = pool.open(&key(), &head(), dial).await.unwrap_err();
    let HboneError::Tls(TlsError::RefusedByPeer(alert)) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*alert, rustls::AlertDescription::CertificateExpired);
    assert_eq!(error.reason(), Reason::TlsFailed);
}

#[test]
fn opening_can_move_between_threads_and_is_small() {
    fn check<F: Future + Send>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }
    let pool = Pool::new("test", PoolSettings::default(), Gauge::default());
    let (key, head) = (key(), head());
    let dial = || async { Err::<DuplexStream, _>(HboneError::ConnectDeadline) };
    let size = check(|| pool.open(&key, &head, dial));
    assert!(size <= 1536, "{size} bytes");
}
