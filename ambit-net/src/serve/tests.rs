//! Claims about the accept loop: its tasks, its limit, its end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::tasks::Tasks;

const SOON: Duration = Duration::from_secs(10);

async fn local() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

async fn read_byte(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    let read = timeout(SOON, stream.read(&mut byte))
        .await
        .unwrap()
        .unwrap();
    (read == 1).then_some(byte[0])
}

#[tokio::test]
async fn each_connection_has_a_task_and_no_delay() {
    let (listener, addr) = local().await;
    let tasks = Tasks::new("test");
    tasks.spawn(serve(
        listener,
        8,
        tasks.spawner(),
        |mut stream, peer| async move {
            assert!(peer.ip().is_loopback());
            let nodelay = u8::from(stream.nodelay().unwrap());
            stream.write_all(&[nodelay]).await.unwrap();
        },
    ));
    for _ in 0..3 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        assert_eq!(read_byte(&mut client).await, Some(1));
    }
}

#[tokio::test]
async fn over_the_limit_a_connection_waits_for_a_place() {
    let (listener, addr) = local().await;
    let tasks = Tasks::new("test");
    tasks.spawn(serve(
        listener,
        1,
        tasks.spawner(),
        |mut stream, _| async move {
            stream.write_all(b"x").await.unwrap();
            // Ends when the client closes.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        },
    ));
    let mut first = TcpStream::connect(addr).await.unwrap();
    assert_eq!(read_byte(&mut first).await, Some(b'x'));
    let mut second = TcpStream::connect(addr).await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let nothing = second.try_read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(tasks.live(), 2, "the loop and one handler");
    drop(first);
    assert_eq!(read_byte(&mut second).await, Some(b'x'));
}

#[tokio::test]
async fn stop_closes_the_listener_and_leaves_open_connections() {
    let (listener, addr) = local().await;
    let tasks = Tasks::new("test");
    tasks.spawn(serve(
        listener,
        8,
        tasks.spawner(),
        |mut stream, _| async move {
            let byte = read_byte(&mut stream).await.unwrap();
            stream.write_all(&[byte]).await.unwrap();
        },
    ));
    let mut open = TcpStream::connect(addr).await.unwrap();
    while tasks.live() < 2 {
        tokio::task::yield_now().await;
    }
    tasks.stop();
    while tasks.live() > 1 {
        tokio::task::yield_now().await;
    }
    let refused = TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    open.write_all(b"y").await.unwrap();
    assert_eq!(read_byte(&mut open).await, Some(b'y'));
}

#[tokio::test(start_paused = true)]
async fn shortages_are_waited_out_and_lost_connections_are_not() {
    let (listener, _) = local().await;
    let mut intake = Intake::new(listener, 1);
    for lost in [Errno::ECONNABORTED, Errno::EPROTO, Errno::ENETUNREACH] {
        assert_eq!(intake.wait_after(&lost.into()), Duration::ZERO, "{lost}");
    }
    let (first, longest) = SHORTAGE_WAITS;
    let shortages = [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOBUFS,
        Errno::ENOMEM,
        Errno::EBADF,
    ];
    for (times, shortage) in shortages.into_iter().cycle().take(20).enumerate() {
        let wait = intake.wait_after(&shortage.into());
        assert!(wait >= first / 2 && wait <= longest, "{shortage}: {wait:?}");
        assert!(times < 10 || wait >= longest / 2, "{shortage}: {wait:?}");
    }
}
