//! The controller's end of [`super`]: gRPC services over TLS 1.3 that proves the server only; callers bring a token.
//!
//! Called by the controller's app. Bounds what anybody who reaches the port can hold: connections, handshakes, streams
//! and headers. Knows no service and no token.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::debug;

use crate::serve::serve;
use crate::shares::Shares;
use crate::tasks::Tasks;
use crate::tls;

/// Longest TLS handshake: the same as a client's whole connection attempt.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a proxy is asked for a sign of life, and the wait for it (the same as the client's).
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Calls at once on one connection; a proxy has one stream, a few certificates and a report.
const MAX_STREAMS: u32 = 64;
/// Bytes of headers of one call; a token and a few names.
const MAX_HEADERS: u32 = 16 * 1024;
/// Part of the connections that one client address may have: nobody can keep all nodes out. Many nodes may share an
/// address behind a load balancer, so it is no small one.
const SHARE: usize = 16;
/// Connections that every client address may have: one, its successor while a proxy is replaced, and some to spare.
const LEAST_SHARE: usize = 4;
/// Bytes that a caller may send ahead on one stream: a resuming proxy names all that it holds.
const STREAM_WINDOW: u32 = 1 << 20;

/// Why a certificate cannot serve.
#[derive(Debug, Error)]
pub enum ServerTlsError {
    /// The texts are not a PEM chain and its key.
    #[error("the server's certificate or key is no PEM: {0}")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// They do not belong together, or are of a kind that is not served.
    #[error("the server's certificate and key cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
}

/// The server's certificate; it can be replaced while the server runs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl ServerTls {
    /// Takes a chain (leaf first) and the leaf's key, both PEM.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn new(chain: &str, key: &str) -> Result<Self, ServerTlsError> {
        let config = Arc::new(server_config(chain, key)?);
        Ok(Self {
            current: Arc::new(RwLock::new(config)),
        })
    }

    /// Proves another certificate from the next connection on.
    ///
    /// # Errors
    /// When it cannot be used; the old one stays.
    pub fn replace(&self, chain: &str, key: &str) -> Result<(), ServerTlsError> {
        let config = Arc::new(server_config(chain, key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current))
    }
}

fn server_config(chain: &str, key: &str) -> Result<ServerConfig, ServerTlsError> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
    let chain = chain
        .collect::<Result<_, _>>()
        .map_err(ServerTlsError::Pem)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(ServerTlsError::Pem)?;
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(tls::VERSIONS)
        .map_err(ServerTlsError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(ServerTlsError::Unusable)?;
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    Ok(config)
}

/// Serves `routes` with at most `limit` connections, in `tasks`, until their owner stops them.
///
/// After the stop, connections get a GOAWAY and end with their last call; draining `tasks` waits for that.
pub fn start(
    listener: TcpListener,
    server_tls: ServerTls,
    routes: Routes,
    limit: usize,
    tasks: &Tasks,
) {
    // Its bound is only the wait between handshake and first frame; connections themselves are bounded by `limit`.
    let (ready, connections) = mpsc::channel(16);
    let shares = Shares::new((limit / SHARE).max(LEAST_SHARE));
    let accept = serve(listener, limit, tasks.spawner(), move |tcp, peer| {
        let share = shares.try_take(peer.ip());
        let (acceptor, ready) = (server_tls.acceptor(), ready.clone());
        async move {
            match share {
                Some(_held) => accept(tcp, acceptor, ready).await,
                None => debug!(client = %peer.ip(), "a client has as many connections as one may"),
            }
        }
    });
    tasks.spawn(accept);
    let (ping_interval, ping_timeout) = PING;
    let server = Server::builder()
        .http2_keepalive_interval(Some(ping_interval))
        .http2_keepalive_timeout(Some(ping_timeout))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(2 * STREAM_WINDOW)
        .add_routes(routes);
    let stop = tasks.stop_signal();
    tasks.spawn(async move {
        let connections = ReceiverStream::new(connections);
        let served = server
            .serve_with_incoming_shutdown(connections, stop.stopped())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "gRPC is no longer served");
        }
    });
}

/// Shakes hands and gives the connection to the server; lasts as long as the connection, so that it counts.
async fn accept(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "a caller's TLS handshake failed"),
        Err(_elapsed) => return debug!("a caller's TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN_H2) {
        return debug!("a caller does not speak HTTP/2");
    }
    let (open, closed) = oneshot::channel();
    let connection = Connection {
        stream,
        _open: open,
    };
    if ready.send(Ok(connection)).await.is_ok() {
        // Nothing is ever sent: this ends when the connection is dropped.
        drop(closed.await);
    }
}

/// What tonic serves; its own wrapper comes only with its TLS features, which are off.
struct Connection {
    stream: TlsStream<TcpStream>,
    _open: oneshot::Sender<()>,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpSocket;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::tls::testing::TestAuthority;

    /// Connects from a loopback address and tells whether the handshake succeeds.
    async fn connect(
        from: &str,
        to: std::net::SocketAddr,
        root: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(tls::VERSIONS)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{from}:0").parse().unwrap())?;
        let tcp = socket.connect(to).await?;
        let name = "localhost".try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        // The first bytes of HTTP/2 come only once a place was given.
        stream.read_u8().await?;
        Ok(stream)
    }

    #[tokio::test]
    async fn one_client_cannot_take_all_connections() {
        let authority = TestAuthority::new();
        let (chain, key) = authority.issue_for_names(&["localhost"]);
        let server_tls = ServerTls::new(&chain, &key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new("test");
        start(listener, server_tls, Routes::default(), 64, &tasks);
        let from = |client: &'static str| {
            timeout(
                HANDSHAKE_TIMEOUT,
                connect(client, address, authority.root()),
            )
        };

        let mut held = Vec::new();
        for _ in 0..LEAST_SHARE {
            held.push(from("127.0.0.1").await.unwrap().unwrap());
        }
        assert!(from("127.0.0.1").await.unwrap().is_err());
        assert!(from("127.0.0.2").await.unwrap().is_ok());
        held.clear();
        let again = timeout(HANDSHAKE_TIMEOUT, async {
            while !matches!(from("127.0.0.1").await, Ok(Ok(_))) {}
        });
        assert!(again.await.is_ok(), "a place is not given back");
    }
}
