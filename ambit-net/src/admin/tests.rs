//! Claims about the endpoints: what they answer, over a real connection, and where they stop waiting.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::meters::Meters;
use crate::tasks::Tasks;
use crate::telemetry::VERSION;

fn get(routes: &Routes, target: &str) -> (StatusCode, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let answer = routes.answer(&Method::GET, path, query);
    (
        answer.status,
        String::from_utf8(answer.body.to_vec()).unwrap(),
    )
}

/// An endpoint at the other end of a pipe.
fn connected(routes: Routes) -> (DuplexStream, Tasks) {
    let (client, server) = duplex(64 * 1024);
    let tasks = Tasks::new("test");
    tasks.spawn(serve_connection(
        server,
        Arc::new(routes),
        tasks.stop_signal(),
    ));
    (client, tasks)
}

async fn ask(request: &str, routes: Routes) -> String {
    let (mut client, _tasks) = connected(routes);
    client.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    response
}

#[test]
fn readiness_names_what_it_waits_for() {
    let state = Readiness::new();
    let routes = readiness(state.clone());
    assert_eq!(
        get(&routes, "/healthz/ready"),
        (StatusCode::OK, "ready\n".to_owned())
    );
    state.block("xds");
    state.block("handoff");
    state.block("xds");
    let (status, text) = get(&routes, "/healthz/ready");
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(text, "not ready, pending: handoff, xds\n");
    state.clear("xds");
    state.clear("handoff");
    state.clear("never there");
    assert_eq!(get(&routes, "/healthz/ready").0, StatusCode::OK);
}

#[test]
fn metrics_are_at_both_paths() {
    let routes = metrics(&Meters::new("test", 1));
    for path in ["/metrics", "/stats/prometheus"] {
        let answer = routes.answer(&Method::GET, path, "");
        assert_eq!(
            answer.content_type,
            "text/plain; version=0.0.4; charset=utf-8"
        );
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(text.contains(&format!(
            "istio_build{{component=\"test\",tag=\"{VERSION}\"}} 1\n"
        )));
    }
}

#[test]
fn quit_wants_a_post() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    let routes = quit(move || {
        seen.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(
        get(&routes, "/quitquitquit").0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    let answer = routes.answer(&Method::POST, "/quitquitquit", "");
    assert_eq!(
        (answer.status, calls.load(Ordering::Relaxed)),
        (StatusCode::OK, 1)
    );
}

#[test]
fn unknown_paths_list_the_known_ones() {
    let routes = Routes::new()
        .get("/config_dump", |_query| Answer::json(&["a"]))
        .and(quit(|| ()));
    let index = "GET /config_dump\nPOST /quitquitquit\n";
    assert_eq!(get(&routes, "/"), (StatusCode::OK, index.to_owned()));
    assert_eq!(
        get(&routes, "/nothing"),
        (StatusCode::NOT_FOUND, index.to_owned())
    );
    assert_eq!(
        get(&routes, "/config_dump"),
        (StatusCode::OK, "[\n  \"a\"\n]".to_owned())
    );
}

#[test]
fn parameters_are_found_and_decoded() {
    let query = Query("level=ambit_net%3a%3Axds%3Ddebug&reset&odd=%zz%4&empty=");
    assert_eq!(
        query.parameter("level").as_deref(),
        Some("ambit_net::xds=debug")
    );
    assert_eq!(query.parameter("reset").as_deref(), Some(""));
    assert_eq!(query.parameter("odd").as_deref(), Some("%zz%4"));
    assert_eq!(query.parameter("empty").as_deref(), Some(""));
    assert_eq!(query.parameter("absent"), None);
    assert_eq!(Query("").parameter("level"), None);
}

#[tokio::test(start_paused = true)]
async fn answers_are_http() {
    let routes = || {
        Routes::new().get("/x", |query| {
            let body = query.parameter("a").unwrap_or_default();
            Answer::text(StatusCode::IM_A_TEAPOT, body)
        })
    };
    let response = ask(
        "GET /x?a=b HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        routes(),
    )
    .await;
    assert!(
        response.starts_with("HTTP/1.1 418 I'm a teapot\r\n"),
        "{response}"
    );
    assert!(
        response.contains("content-type: text/plain; charset=utf-8\r\n"),
        "{response}"
    );
    assert!(response.ends_with("\r\n\r\nb"), "{response}");
    let response = ask(
        "POST /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        routes(),
    )
    .await;
    assert!(response.starts_with("HTTP/1.1 405"), "{response}");
    assert!(response.contains("allow: GET\r\n"), "{response}");
    let response = ask(
        "HEAD /x?a=b HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        routes(),
    )
    .await;
    assert!(
        response.contains("content-length: 1\r\n") && response.ends_with("\r\n\r\n"),
        "{response}"
    );
    let response = ask("not http\r\n\r\n", routes()).await;
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_dropped() {
    for said in ["", "GET /x HTTP/1.1\r\nhost: h"] {
        let began = Instant::now();
        ask(said, Routes::new()).await;
        assert!(
            began.elapsed() <= HEAD + Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_without_end_is_refused() {
    let (mut client, _tasks) = connected(Routes::new());
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let header = format!("x: {}\r\n", "y".repeat(1000));
    let mut sent = 0;
    while client.write_all(header.as_bytes()).await.is_ok() {
        sent += header.len();
        assert!(sent <= HEAD_BYTES + 128 * 1024, "the head is still read");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stop_closes_idle_connections_at_once() {
    let (mut client, tasks) = connected(Routes::new());
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 15];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let began = Instant::now();
    let drained = tasks.drain(Duration::from_secs(30)).await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
    assert!(began.elapsed() <= CLOSING);
}

/// Asks over loopback, from an address of the test's choice, and keeps the connection.
async fn ask_from(client: &str, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{client}:0").parse().unwrap())?;
    let mut stream = socket.connect(server).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        .await?;
    stream.read_exact(&mut [0; 15]).await?;
    Ok(stream)
}

#[tokio::test]
async fn one_client_cannot_keep_the_others_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let tasks = Tasks::new("test");
    let routes = Arc::new(Routes::new());
    tasks.spawn(serve_routes(listener, routes, tasks.spawner()));
    let mut held = Vec::new();
    for _ in 0..OF_ONE_CLIENT {
        held.push(ask_from("127.0.0.1", server).await.unwrap());
    }
    assert!(ask_from("127.0.0.1", server).await.is_err());
    assert!(ask_from("127.0.0.2", server).await.is_ok());
}
