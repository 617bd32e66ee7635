//! Claims about packets, descriptors and the listening socket of the handoff.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

async fn received(connection: &Connection) -> Result<Option<Packet>, HandoffError> {
    timeout(SOON, connection.recv()).await.unwrap()
}

/// A path of its own below the system's directory for temporary files; removed on drop.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ambit-handoff-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("s")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[tokio::test]
async fn a_packet_brings_its_descriptor_closed_on_exec() {
    let (agent, ztunnel) = Connection::pair().unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    agent.send(b"add", Some(writer.as_fd())).await.unwrap();
    drop(writer);
    let packet = received(&ztunnel).await.unwrap().unwrap();
    assert_eq!(packet.bytes, b"add");
    assert_eq!(packet.descriptors.len(), 1);
    for descriptor in packet.descriptors {
        let flags = nix::fcntl::fcntl(&descriptor, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC);
        File::from(descriptor).write_all(b"through").unwrap();
    }
    // The end is only seen when no copy of the writing side is left open.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[tokio::test]
async fn packets_keep_their_bounds_and_report_how_many_descriptors_came() {
    let (agent, ztunnel) = Connection::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    let raw = file.as_raw_fd();
    for count in [0, 2, 3, MAX_DESCRIPTORS] {
        send_packet(&agent.socket, b"one", &vec![raw; count]).unwrap();
        send_packet(&agent.socket, b"two", &[]).unwrap();
        let one = received(&ztunnel).await.unwrap().unwrap();
        assert_eq!(
            (one.bytes.as_slice(), one.descriptors.len()),
            (&b"one"[..], count)
        );
        let two = received(&ztunnel).await.unwrap().unwrap();
        assert_eq!(
            (two.bytes.as_slice(), two.descriptors.len()),
            (&b"two"[..], 0)
        );
    }
}

#[tokio::test]
async fn longest_packet_passes_and_longer_ones_are_errors_on_both_sides() {
    let (agent, ztunnel) = Connection::pair().unwrap();
    let longest = [7; MAX_PACKET];
    agent.send(&longest, None).await.unwrap();
    assert_eq!(received(&ztunnel).await.unwrap().unwrap().bytes, longest);
    let too_long = [7; MAX_PACKET + 1];
    let error = agent.send(&too_long, None).await.unwrap_err();
    assert!(matches!(error, HandoffError::TooLong));
    let (mut reader, writer) = io::pipe().unwrap();
    send_packet(&agent.socket, &too_long, &[writer.as_raw_fd()]).unwrap();
    drop(writer);
    let error = received(&ztunnel).await.unwrap_err();
    assert!(matches!(error, HandoffError::TooLong));
    let end = reader.read(&mut [0]).unwrap();
    assert_eq!(end, 0, "the descriptor of the refused packet is closed");
}

#[tokio::test]
async fn the_other_side_closing_is_the_end() {
    let (agent, ztunnel) = Connection::pair().unwrap();
    agent.send(b"last", None).await.unwrap();
    drop(agent);
    assert_eq!(received(&ztunnel).await.unwrap().unwrap().bytes, b"last");
    assert!(received(&ztunnel).await.unwrap().is_none());
    let error = ztunnel.send(b"reply", None).await.unwrap_err();
    assert!(matches!(error, HandoffError::Io(_)), "{error}");
}

#[tokio::test]
async fn listener_is_private_refuses_a_second_one_and_leaves_no_file() {
    let place = Place::new("private");
    let listener = Listener::bind(&place.socket()).unwrap();
    let mode = fs::metadata(place.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Listener::bind(&place.socket()).unwrap_err();
    assert!(matches!(second, HandoffError::InUse { .. }), "{second}");
    drop(listener);
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn listener_replaces_the_socket_of_a_dead_process() {
    let place = Place::new("stale");
    let dead = seqpacket().unwrap();
    dead.bind(&SockAddr::unix(place.socket()).unwrap()).unwrap();
    drop(dead);
    assert!(place.socket().exists());
    let listener = Listener::bind(&place.socket()).unwrap();
    let ztunnel = Connection::connect(&place.socket()).unwrap();
    let accepted = timeout(SOON, async {
        // The probe of a second agent may come first.
        listener.accept().await.unwrap()
    });
    let agent = accepted.await.unwrap();
    ztunnel.send(b"hello", None).await.unwrap();
    assert_eq!(received(&agent).await.unwrap().unwrap().bytes, b"hello");
}

#[tokio::test]
async fn listener_does_not_remove_what_is_not_a_socket() {
    let place = Place::new("file");
    fs::write(place.socket(), "precious").unwrap();
    let error = Listener::bind(&place.socket()).unwrap_err();
    assert!(
        error.to_string().contains("cannot use the handoff socket"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "precious");
}

#[test]
fn nobody_listening_is_an_error_that_names_the_path() {
    let place = Place::new("absent");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let error = Connection::connect(&place.socket()).unwrap_err();
    assert!(
        error.to_string().contains(place.socket().to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn control_messages_of_other_kinds_and_broken_ones_hold_no_descriptors() {
    let message = |length: usize, level: i32, kind: i32, words: &[i32]| {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.resize(bytes.len().next_multiple_of(mem::size_of::<usize>()), 0);
        bytes
    };
    let (level, rights) = (nix::libc::SOL_SOCKET, nix::libc::SCM_RIGHTS);
    let two = message(CONTROL_HEAD + 8, level, rights, &[5, 6]);
    assert_eq!(descriptors_in(&two), [5, 6]);
    let other = message(CONTROL_HEAD + 4, level, nix::libc::SCM_CREDENTIALS, &[9]);
    assert_eq!(
        descriptors_in(&[other.clone(), two.clone()].concat()),
        [5, 6]
    );
    assert_eq!(descriptors_in(&[two, other].concat()), [5, 6]);
    let three = message(CONTROL_HEAD + 12, level, rights, &[1, 2, 3]);
    assert_eq!(descriptors_in(&three), [1, 2, 3]);
    for length in [0, 1, CONTROL_HEAD - 1, CONTROL_HEAD + 400, usize::MAX] {
        let broken = message(length, level, rights, &[5, 6]);
        assert_eq!(descriptors_in(&broken), Vec::<RawFd>::new(), "{length}");
    }
    assert_eq!(descriptors_in(&[0; 64]), Vec::<RawFd>::new());
    assert_eq!(descriptors_in(&[]), Vec::<RawFd>::new());
}
