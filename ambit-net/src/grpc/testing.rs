//! A controller for tests: gRPC services over TLS on loopback, with a root file and a token file of its own.
//!
//! Used by the tests of the clients in this crate; each brings the service that it wants to talk to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::{fs, io};

use ambit_core::names::ClusterId;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::Remote;
use crate::tasks::Tasks;
use crate::tls;
use crate::tls::testing::TestAuthority;

/// The token that a test's client shows unless the test writes another.
pub(crate) const TOKEN: &str = "1999999999.secret-of-node-1";

/// A directory that is removed with the value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ambit-net-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

/// A server for as long as the value exists.
pub(crate) struct TestServer {
    pub(crate) files: Scratch,
    pub(crate) address: SocketAddr,
    _tasks: Tasks,
}

impl TestServer {
    /// Serves on a free port of loopback as `localhost`.
    pub(crate) async fn start(routes: Routes) -> Self {
        let authority = TestAuthority::new();
        let files = Scratch::new();
        files.write("root.pem", authority.root());
        files.write("token", &format!("{TOKEN}\n"));
        let tls = acceptor(&authority, &["localhost"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connections) = mpsc::channel(8);
        let tasks = Tasks::new("test server");
        tasks.spawn(async move {
            while let Ok((tcp, _peer)) = listener.accept().await {
                // A client that does not trust us is its own test's matter.
                if let Ok(stream) = tls.accept(tcp).await {
                    let _closed = accepted.send(Ok::<_, io::Error>(Io(stream))).await;
                }
            }
        });
        let serving = Server::builder()
            .add_routes(routes)
            .serve_with_incoming(ReceiverStream::new(connections));
        tasks.spawn(async move {
            let _ended_with_test = serving.await;
        });
        Self {
            files,
            address,
            _tasks: tasks,
        }
    }

    /// How a client reaches it.
    pub(crate) fn remote(&self) -> Remote {
        Remote {
            address: format!("https://{}", self.address),
            server_name: Some("localhost".to_owned()),
            root_file: self.files.path("root.pem"),
            token_file: self.files.path("token"),
            cluster: ClusterId::new("Kubernetes"),
        }
    }
}

fn acceptor(authority: &TestAuthority, names: &[&str]) -> TlsAcceptor {
    let (chain, key) = authority.issue_for_names(names);
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(tls::VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// What tonic serves; its own wrapper comes only with its TLS features, which are off.
struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
