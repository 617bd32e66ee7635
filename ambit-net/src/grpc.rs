//! The way to the controller: gRPC over TLS that is verified against a root file, with a token that names the node.
//!
//! Called by the xDS client, the CA client and the node report, which may share one [`Dialer`]. Knows no message. The
//! files are read before each use, so that a renewed token or root counts from the next call on; connections are made
//! when needed and kept alive by HTTP/2 pings (reference: istio/ztunnel, 30 s and 10 s).

pub mod server;
#[cfg(test)]
pub(crate) mod testing;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambit_core::names::ClusterId;
use http::Uri;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::tasks::{Spawner, Tasks};
use crate::tls;

/// Longest wait for name, TCP and TLS together (reference: istio/ztunnel).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the controller is asked for a sign of life (reference: istio/ztunnel).
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Wait for that sign before the connection is given up (reference: istio/ztunnel).
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a stream that the controller may send ahead: a first push fills it, and it is little memory.
const STREAM_WINDOW: u32 = 1 << 20;

/// A connection to the controller, made when first used; cheap to clone.
pub type Link = InterceptedService<Channel, Credentials>;

/// Where a controller is and how it and we prove ourselves.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `https://HOST:PORT`; the port is 15012 by convention.
    pub address: String,
    /// Name that its certificate must have instead of the address's host.
    pub server_name: Option<String>,
    /// PEM file with the certificates that may have signed its certificate.
    pub root_file: PathBuf,
    /// File with the bearer token.
    pub token_file: PathBuf,
    /// Our cluster, told in each call.
    pub cluster: ClusterId,
}

/// Why there is no way to the controller. All are settings to correct.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The address has another form.
    #[error("the controller's address {0:?} is not https://HOST:PORT")]
    Address(String),
    /// The name to verify is not a DNS name or an address.
    #[error("the controller's name {0:?} is not a DNS name or an IP address")]
    ServerName(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; is it mounted, and may this user read it?")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The root file holds no certificate, or one that is not usable as a root.
    #[error("{0} does not hold PEM certificates")]
    Root(PathBuf),
    /// The token file holds no token.
    #[error("{0} does not hold a token")]
    Token(PathBuf),
    /// The cluster's name cannot be sent.
    #[error("the cluster's name {0:?} has characters that gRPC metadata cannot carry")]
    Cluster(ClusterId),
    /// The TLS library refuses its settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
}

/// Gives links to one controller and owns the tasks that drive them; dropping it ends them.
#[derive(Debug)]
pub struct Dialer {
    remote: Remote,
    uri: Uri,
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    cluster: AsciiMetadataValue,
    last: Mutex<Option<(Files, Link)>>,
    drivers: Tasks,
}

impl Dialer {
    /// Checks the address; nothing is read or connected yet.
    ///
    /// # Errors
    /// When address, server name or cluster have a form that cannot work.
    pub fn new(remote: Remote) -> Result<Self, LinkError> {
        let bad_address = || LinkError::Address(remote.address.clone());
        let uri: Uri = remote.address.parse().map_err(|_form| bad_address())?;
        let (Some("https"), Some(host), Some(port)) =
            (uri.scheme_str(), uri.host(), uri.port_u16())
        else {
            return Err(bad_address());
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = remote.server_name.as_deref().unwrap_or(&host).to_owned();
        let server_name = ServerName::try_from(name.clone());
        let cluster = AsciiMetadataValue::try_from(remote.cluster.as_str());
        Ok(Self {
            cluster: cluster.map_err(|_form| LinkError::Cluster(remote.cluster.clone()))?,
            server_name: server_name.map_err(|_form| LinkError::ServerName(name))?,
            host,
            port,
            uri,
            remote,
            last: Mutex::new(None),
            drivers: Tasks::new("controller links"),
        })
    }

    /// A link that uses the root and token that the files hold now; the last one if they have not changed.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it should.
    pub async fn link(&self) -> Result<Link, LinkError> {
        let files = Files::read(&self.remote).await?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((used, link)) = &*last
            && *used == files
        {
            return Ok(link.clone());
        }
        let link = self.new_link(&files)?;
        *last = Some((files, link.clone()));
        Ok(link)
    }

    /// The controller's address, for logs.
    pub fn address(&self) -> &str {
        &self.remote.address
    }

    fn new_link(&self, files: &Files) -> Result<Link, LinkError> {
        let tls = TlsConnector::from(Arc::new(client_config(&self.remote.root_file, files)?));
        let target = Arc::new(Target {
            host: self.host.clone(),
            port: self.port,
            server_name: self.server_name.clone(),
            tls,
        });
        let connector = tower::service_fn(move |_uri: Uri| {
            let target = Arc::clone(&target);
            async move { target.connect().await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from(self.uri.clone())
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(2 * STREAM_WINDOW)
            .executor(Drivers(self.drivers.spawner()));
        let channel = endpoint.connect_with_connector_lazy(connector);
        let credentials = Credentials::new(&self.remote, files, self.cluster.clone())?;
        Ok(InterceptedService::new(channel, credentials))
    }
}

/// What a failed call means, with its causes: gRPC hides why there was no connection.
pub fn explain(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // The message often repeats a cause, and a cause the message.
        if !text.contains(&said) && !said.contains(status.message()) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Puts token and cluster into each call.
#[derive(Clone)]
pub struct Credentials {
    token: AsciiMetadataValue,
    cluster: AsciiMetadataValue,
}

impl Credentials {
    fn new(remote: &Remote, files: &Files, cluster: AsciiMetadataValue) -> Result<Self, LinkError> {
        let bad_token = || LinkError::Token(remote.token_file.clone());
        let text = std::str::from_utf8(&files.token).map_err(|_not_text| bad_token())?;
        let text = text.trim();
        if text.is_empty() {
            return Err(bad_token());
        }
        let value = AsciiMetadataValue::try_from(format!("Bearer {text}"));
        let mut token = value.map_err(|_not_ascii| bad_token())?;
        token.set_sensitive(true);
        Ok(Self { token, cluster })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.token.clone());
        metadata.insert("clusterid", self.cluster.clone());
        Ok(request)
    }
}

/// What the files hold; a link is good as long as this is equal.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    root: Vec<u8>,
    token: Vec<u8>,
}

impl Files {
    async fn read(remote: &Remote) -> Result<Self, LinkError> {
        let (root, token) = (remote.root_file.clone(), remote.token_file.clone());
        let reading = tokio::task::spawn_blocking(move || {
            Ok(Self {
                root: read(&root)?,
                token: read(&token)?,
            })
        });
        // It can only fail to end when the runtime is being shut down.
        reading.await.unwrap_or_else(|stopped| {
            Err(LinkError::Read {
                path: remote.root_file.clone(),
                source: stopped.into(),
            })
        })
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LinkError> {
    std::fs::read(path).map_err(|source| LinkError::Read {
        path: path.to_owned(),
        source,
    })
}

fn client_config(path: &Path, files: &Files) -> Result<ClientConfig, LinkError> {
    let bad_root = || LinkError::Root(path.to_owned());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&files.root) {
        let root = root.map_err(|_form| bad_root())?;
        roots.add(root).map_err(|_unusable| bad_root())?;
    }
    if roots.is_empty() {
        return Err(bad_root());
    }
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(tls::VERSIONS)
        .map_err(LinkError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    Ok(config)
}

/// One controller as the connector needs it.
struct Target {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    tls: TlsConnector,
}

impl Target {
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let late = |_elapsed| {
            let what = format!("no answer from {}:{} in 5 s", self.host, self.port);
            io::Error::new(io::ErrorKind::TimedOut, what)
        };
        timeout(CONNECT_TIMEOUT, self.handshake())
            .await
            .unwrap_or_else(|elapsed| Err(late(elapsed)))
    }

    async fn handshake(&self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect(self.server_name.clone(), tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN_H2) {
            return Err(io::Error::other("the controller does not speak HTTP/2"));
        }
        Ok(stream)
    }
}

/// Makes the dialer the owner of what tonic spawns.
#[derive(Clone)]
struct Drivers(Spawner);

impl Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Drivers {
    fn execute(&self, driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(driver);
    }
}

#[cfg(test)]
mod tests;
