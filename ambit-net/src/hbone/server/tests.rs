//! The server's end against clients in memory: good ones, wrong ones, silent ones.

use std::time::Duration;

use h2::client::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::*;

type Client = SendRequest<Bytes>;

/// A tunnel with a plain HTTP/2 client, whose connection runs in the set.
async fn pair(tasks: &mut JoinSet<()>) -> (Tunnel<DuplexStream>, Client) {
    let (near, far) = duplex(64 * 1024);
    let (tunnel, client) = tokio::join!(
        Tunnel::handshake(far, TunnelSettings::SERVER),
        h2::client::handshake(near)
    );
    let (send, connection) = client.unwrap();
    tasks.spawn(async move { drop(connection.await) });
    (tunnel.unwrap(), send)
}

fn connect(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap()
}

/// Sends a request; the server does with it what `act` says; returns the answer.
async fn exchange<R>(
    request: Request<()>,
    act: impl FnOnce(ConnectRequest) -> R,
) -> Response<RecvStream> {
    let mut tasks = JoinSet::new();
    let (mut tunnel, mut client) = pair(&mut tasks).await;
    let (answer, _send) = client.send_request(request, false).unwrap();
    let _kept = act(tunnel.next_connect().await.unwrap().unwrap());
    tokio::select! {
        answer = answer => answer.unwrap(),
        other = tunnel.next_connect() => panic!("no more requests expected, got {other:?}"),
    }
}

#[tokio::test]
async fn reads_target_and_headers_of_a_request() {
    let mut request = connect("10.0.0.1:80");
    let headers = [
        ("baggage", "k8s.namespace.name=shop,service.name=cart"),
        (
            "forwarded",
            "for=\"10.0.0.9:4711\";host=web.shop.svc.cluster.local",
        ),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        ),
    ];
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let answer = exchange(request, |request| {
        assert_eq!(request.target().unwrap().to_string(), "10.0.0.1:80");
        assert_eq!(request.authority(), "10.0.0.1:80");
        assert_eq!(&*request.baggage().unwrap().namespace, "shop");
        let forwarded = request.forwarded().unwrap();
        assert_eq!(forwarded.client.unwrap().to_string(), "10.0.0.9:4711");
        assert!(request.traceparent().is_some());
        let ours = Baggage {
            service_name: "web".into(),
            ..Baggage::default()
        };
        request.accept(Some(&ours)).unwrap()
    })
    .await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["baggage"], "service.name=web");
}

#[tokio::test]
async fn refuses_with_the_status_and_the_word_of_the_reason() {
    let cases = [
        (Reason::BadAuthority, 400),
        (Reason::NotOurTarget, 400),
        (Reason::PolicyDenied, 401),
        (Reason::PolicyUnreadable, 401),
        (Reason::AppUnreachable, 503),
        (Reason::WorkloadUnknown, 503),
    ];
    for (reason, status) in cases {
        let answer = exchange(connect("10.0.0.1:80"), |request| request.refuse(reason)).await;
        assert_eq!(answer.status().as_u16(), status, "{}", reason.code());
        assert_eq!(answer.headers()[REASON_HEADER], reason.code());
        assert!(answer.into_body().is_end_stream());
    }
}

#[tokio::test]
async fn other_methods_are_no_connect_and_cannot_be_accepted() {
    let get = || Request::get("https://10.0.0.1:80/").body(()).unwrap();
    let answer = exchange(get(), |request| {
        assert_eq!(request.target(), Err(Reason::NotConnect));
        assert!(request.accept(None).is_err());
    })
    .await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(answer.headers()[REASON_HEADER], "not_connect");
}

#[tokio::test]
async fn garbage_authorities_name_no_target() {
    for authority in ["web", "web:0", "user@web:80", "10.0.0.1:99999"] {
        let answer = exchange(connect(authority), |request| {
            assert_eq!(request.target(), Err(Reason::BadAuthority), "{authority}");
            request.refuse(Reason::BadAuthority);
        })
        .await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{authority}");
    }
}

/// Frames by hand: what a correct client library would not send.
mod raw {
    use super::*;

    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    pub(super) fn begin() -> Vec<u8> {
        [PREFACE, &frame(4, 0, 0, &[])].concat()
    }

    /// HEADERS with literal fields (RFC 7541 §6.2.2), END_HEADERS set.
    pub(super) fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        frame(1, 4, stream, &block)
    }

    /// Kinds, streams and payloads of the frames that come until the end.
    pub(super) async fn frames(mut io: DuplexStream) -> Vec<(u8, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut head = [0; 9];
        while io.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length as usize];
            io.read_exact(&mut payload).await.unwrap();
            found.push((head[3], stream, payload));
        }
        found
    }

    /// What the server sends to a client that sends these bytes and then ends.
    pub(super) async fn answer(bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
        let (mut near, far) = duplex(1024 * 1024);
        near.write_all(bytes).await.unwrap();
        let serve = async {
            let mut tunnel = Tunnel::handshake(far, TunnelSettings::SERVER)
                .await
                .unwrap();
            let next = timeout(Duration::from_secs(1), tunnel.next_connect()).await;
            assert!(!matches!(next, Ok(Some(Ok(_)))), "{next:?}");
        };
        serve.await;
        frames(near).await
    }
}

#[tokio::test(start_paused = true)]
async fn extended_connect_is_reset() {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", "10.0.0.1:80"),
    ];
    let bytes = [raw::begin(), raw::headers(1, &fields)].concat();
    let resets: Vec<_> = raw::answer(&bytes).await;
    let reset = resets.iter().find(|(kind, ..)| *kind == 3);
    // PROTOCOL_ERROR (RFC 8441 §4: without the setting the field is malformed).
    assert_eq!(reset, Some(&(3, 1, vec![0, 0, 0, 1])), "{resets:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_resets_ends_the_tunnel() {
    let fields = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
    let mut bytes = raw::begin();
    for n in 0..1000 {
        bytes.extend(raw::headers(2 * n + 1, &fields));
        bytes.extend(raw::frame(3, 0, 2 * n + 1, &[0, 0, 0, 8]));
    }
    let (mut near, far) = duplex(1024 * 1024);
    near.write_all(&bytes).await.unwrap();
    let mut tunnel = Tunnel::handshake(far, TunnelSettings::SERVER)
        .await
        .unwrap();
    let error = loop {
        match tunnel.next_connect().await.unwrap() {
            Ok(request) => drop(request),
            Err(error) => break error,
        }
    };
    let HboneError::Broken(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    assert!(tunnel.next_connect().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn streams_over_the_limit_are_refused_to_be_tried_elsewhere() {
    let fields = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
    let mut bytes = raw::begin();
    let settings = TunnelSettings {
        streams: 2,
        ..TunnelSettings::SERVER
    };
    (0..3).for_each(|n| bytes.extend(raw::headers(2 * n + 1, &fields)));
    let (mut near, far) = duplex(1024 * 1024);
    near.write_all(&bytes).await.unwrap();
    let mut tunnel = Tunnel::handshake(far, settings).await.unwrap();
    let _first = tunnel.next_connect().await.unwrap().unwrap();
    let _second = tunnel.next_connect().await.unwrap().unwrap();
    assert!(
        timeout(Duration::from_secs(1), tunnel.next_connect())
            .await
            .is_err()
    );
    drop(tunnel);
    let frames = raw::frames(near).await;
    assert!(frames.contains(&(3, 5, vec![0, 0, 0, 7])), "{frames:?}");
}

#[tokio::test(start_paused = true)]
async fn garbage_instead_of_http2_ends_the_handshake() {
    let (mut near, far) = duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        .await
        .unwrap();
    let error = Tunnel::handshake(far, TunnelSettings::SERVER)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::HbonePeer);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_ends_at_the_deadline() {
    let (_near, far) = duplex(1024);
    let begun = Instant::now();
    let error = Tunnel::handshake(far, TunnelSettings::SERVER)
        .await
        .unwrap_err();
    assert!(matches!(error, HboneError::Preface), "{error}");
    assert_eq!(begun.elapsed(), TunnelSettings::SERVER.handshake_deadline);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_given_up() {
    let (mut near, far) = duplex(1024 * 1024);
    near.write_all(&raw::begin()).await.unwrap();
    let mut tunnel = Tunnel::handshake(far, TunnelSettings::SERVER)
        .await
        .unwrap();
    let begun = Instant::now();
    let error = tunnel.next_connect().await.unwrap().unwrap_err();
    assert!(matches!(error, HboneError::PingDeadline), "{error}");
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed_and_a_used_one_is_not() {
    let mut tasks = JoinSet::new();
    let (mut tunnel, mut client) = pair(&mut tasks).await;
    let (answer, send) = client.send_request(connect("10.0.0.1:80"), false).unwrap();
    let request = tunnel.next_connect().await.unwrap().unwrap();
    let stream = request.accept(None).unwrap();
    let idle = TunnelSettings::SERVER.idle;
    assert!(timeout(3 * idle, tunnel.next_connect()).await.is_err());
    drop((stream, send, answer));
    let begun = Instant::now();
    let next = tunnel.next_connect().await;
    assert!(next.is_none(), "{next:?}");
    assert!(begun.elapsed() >= idle, "{:?}", begun.elapsed());
    assert!(
        begun.elapsed() < idle + Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_open_streams_finish_and_takes_no_more() {
    let mut tasks = JoinSet::new();
    let (mut tunnel, mut client) = pair(&mut tasks).await;
    let (answer, mut send) = client.send_request(connect("10.0.0.1:80"), false).unwrap();
    let request = tunnel.next_connect().await.unwrap().unwrap();
    let mut stream = request.accept(None).unwrap();
    tunnel.shutdown();
    let ending = async {
        assert!(tunnel.next_connect().await.is_none());
    };
    let using = async {
        let mut body = answer.await.unwrap().into_body();
        // The tunnel is going away by now.
        while std::future::poll_fn(|cx| Poll::Ready(client.poll_ready(cx).is_ready())).await {
            if client.send_request(connect("10.0.0.2:80"), false).is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        send.send_data(Bytes::from_static(b"ping"), true).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"ping");
        stream.write_all(b"pong").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), "pong");
        drop((body, stream, send, client));
    };
    tokio::join!(ending, using);
}

#[tokio::test]
async fn dropping_the_tunnel_breaks_its_streams() {
    let mut tasks = JoinSet::new();
    let (mut tunnel, mut client) = pair(&mut tasks).await;
    let (answer, _send) = client.send_request(connect("10.0.0.1:80"), false).unwrap();
    let mut stream = (tunnel.next_connect().await.unwrap().unwrap())
        .accept(None)
        .unwrap();
    drop(tunnel);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    answer.await.unwrap_err();
}

#[tokio::test]
async fn a_client_that_gives_up_is_noticed_before_the_answer() {
    let mut tasks = JoinSet::new();
    let (mut tunnel, mut client) = pair(&mut tasks).await;
    let (answer, send) = client.send_request(connect("10.0.0.1:80"), false).unwrap();
    let mut request = tunnel.next_connect().await.unwrap().unwrap();
    drop((answer, send));
    tokio::select! {
        error = request.gave_up() => assert_eq!(error.reason(), Reason::PeerReset),
        other = tunnel.next_connect() => panic!("{other:?}"),
    }
}
