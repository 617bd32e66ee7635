//! Claims about socket options, on loopback and without privileges.

use std::net::Ipv6Addr;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn listen(addr: &str, options: ListenerOptions) -> (TcpListener, SocketAddr) {
    let made = listener(addr.parse().unwrap(), &options).unwrap();
    let made = TcpListener::from_std(made).unwrap();
    let addr = made.local_addr().unwrap();
    (made, addr)
}

async fn connected(from: ConnectorOptions, to: SocketAddr) -> TcpStream {
    let socket = connector(to, &from).unwrap();
    timeout(SOON, socket.connect(to)).await.unwrap().unwrap()
}

#[tokio::test]
async fn accepted_sockets_inherit_no_delay_and_keepalive() {
    let (listener, addr) = listen("127.0.0.1:0", ListenerOptions::default());
    let client = connected(ConnectorOptions::default(), addr).await;
    let (accepted, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    for (side, stream) in [("accepted", &accepted), ("connected", &client)] {
        let socket = SockRef::from(stream);
        assert!(socket.tcp_nodelay().unwrap(), "{side}");
        assert!(socket.keepalive().unwrap(), "{side}");
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE, "{side}");
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            KEEPALIVE,
            "{side}"
        );
        assert_eq!(
            socket.tcp_keepalive_retries().unwrap(),
            KEEPALIVE_RETRIES,
            "{side}"
        );
    }
}

#[tokio::test]
async fn one_unspecified_ipv6_listener_takes_both_families() {
    let (listener, addr) = listen("[::]:0", ListenerOptions::default());
    for host in ["127.0.0.1", "::1"] {
        let to = SocketAddr::new(host.parse().unwrap(), addr.port());
        let _client = connected(ConnectorOptions::default(), to).await;
        let (_, peer) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        assert_eq!(canonical(peer).ip(), to.ip());
    }
}

#[tokio::test]
async fn reuse_port_lets_each_worker_listen() {
    let options = ListenerOptions {
        reuse_port: true,
        ..Default::default()
    };
    let (_first, addr) = listen("127.0.0.1:0", options);
    listener(addr, &options).unwrap();
    let alone = listener(addr, &ListenerOptions::default()).unwrap_err();
    assert!(matches!(alone, SocketError::InUse { addr: taken, .. } if taken == addr));
    assert!(alone.to_string().contains("in use"), "{alone}");
}

#[tokio::test]
async fn a_connector_binds_to_a_local_source_without_taking_a_port() {
    let (listener, addr) = listen("127.0.0.1:0", ListenerOptions::default());
    let source = IpAddr::from([127, 0, 0, 77]);
    let options = ConnectorOptions {
        source: Some(source),
        mark: None,
    };
    // Loopback is local, yet the option itself needs the privilege; without it the error must say so.
    match connector(addr, &options) {
        Ok(socket) => {
            let before = SockRef::from(&socket).local_addr().unwrap();
            assert_eq!(before.as_socket().unwrap().port(), 0);
            let _client = timeout(SOON, socket.connect(addr)).await.unwrap().unwrap();
            let (_, peer) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
            assert_eq!(peer.ip(), source);
        }
        Err(error) => assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}"),
    }
}

#[test]
fn families_of_source_and_destination_must_agree() {
    let options = ConnectorOptions {
        source: Some(IpAddr::from([127, 0, 0, 1])),
        mark: None,
    };
    let to = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 80);
    let error = connector(to, &options).unwrap_err();
    assert!(matches!(error, SocketError::Failed { .. }), "{error}");
}

#[test]
fn missing_privilege_and_missing_feature_say_what_to_do() {
    let privilege = classify("setting SO_MARK", Errno::EPERM.into());
    let text = privilege.to_string();
    assert!(
        text.contains("SO_MARK") && text.contains("CAP_NET_ADMIN"),
        "{text}"
    );
    let feature = classify("opening a TCP socket", Errno::EAFNOSUPPORT.into());
    assert!(
        matches!(feature, SocketError::Unsupported { .. }),
        "{feature}"
    );
    let other = classify("opening a TCP socket", Errno::EMFILE.into());
    assert!(matches!(other, SocketError::Failed { .. }), "{other}");
}

#[tokio::test]
async fn a_connection_that_was_not_redirected_has_no_original_destination() {
    let (listener, addr) = listen("127.0.0.1:0", ListenerOptions::default());
    let _client = connected(ConnectorOptions::default(), addr).await;
    let (accepted, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    original_dst(&accepted).unwrap_err();
}

#[test]
fn canonical_addresses_are_ipv4_where_they_can_be() {
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
    assert_eq!(canonical(mapped), "10.0.0.1:80".parse().unwrap());
    let six: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
    assert_eq!(canonical(six), six);
}
