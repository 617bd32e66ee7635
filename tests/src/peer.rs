//! A peer that a test controls: speaks HBONE to a pod's port 15008 with the certificate and the request that it chooses.
//!
//! Called by tests of what the mesh refuses. Certificates can be signed by the mesh's own root, so that one thing alone is
//! wrong with them; no product code decides what is sent.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::identity::SpiffeId;
use ambit_net::tls::{Credential, connect};
use bytes::Bytes;
use h2::client;
use http::Request;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::failure::{Context as _, Outcome};
use crate::inside::{self, PATIENCE};
use crate::netns::Site;

/// Somebody who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Since a minute, for an hour.
    Now,
    /// It ended an hour ago.
    Over,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The tunnel stands and the request was answered with this status.
    Status(u16),
    /// There is no tunnel: TLS or HTTP/2 ended with this error.
    NoTunnel(String),
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A root that nobody trusts.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn foreign() -> Outcome<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self {
            issuer: Issuer::new(params, KeyPair::generate().context("a key")?),
        })
    }

    /// The root of a mesh, from the controller's own file: certificate and key.
    ///
    /// # Errors
    /// When it is not there or not readable.
    pub fn of_mesh(state: &Path) -> Outcome<Self> {
        let file = fs::read_to_string(state.join("ca-root.pem")).context("the root's file")?;
        let key = file
            .find("-----BEGIN PRIVATE KEY")
            .and_then(|at| file.get(at..))
            .context("no key in it")?;
        let key = KeyPair::from_pem(key).context("the root's key")?;
        let issuer =
            Issuer::from_ca_cert_pem(&roots(state)?, key).context("the root certificate")?;
        Ok(Self { issuer })
    }

    /// A credential for `identity` whose holder trusts the roots in `trusted` (PEM).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn credential(
        &self,
        identity: &str,
        validity: Validity,
        trusted: &str,
    ) -> Outcome<Credential> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("clock")?
            .as_secs();
        let (from, until) = match validity {
            Validity::Now => (now - 60, now + 3600),
            Validity::Over => (now - 7200, now - 3600),
        };
        let key = KeyPair::generate().context("a key")?;
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(from);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(until);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = vec![SanType::URI(identity.try_into().context(identity)?)];
        let leaf = params
            .signed_by(&key, &self.issuer)
            .context("sign a leaf")?
            .pem();
        let identity = SpiffeId::parse(identity).context(identity)?;
        Credential::from_pem(&identity, &[leaf, trusted.to_owned()], &key.serialize_pem())
            .context("a credential")
    }
}

/// The root certificates of a mesh as PEM.
///
/// # Errors
/// When the controller has not written them.
pub fn roots(state: &Path) -> Outcome<String> {
    fs::read_to_string(state.join("root-cert.pem")).context("the root certificate")
}

/// Sends `request` and then `payload` through a tunnel of its own, from a pod or a node to a pod's port 15008.
///
/// # Errors
/// When not even TCP is connected, or nothing is answered in time. A refusal is an [`Answer`].
pub fn send(
    from: &Site,
    tunnel: (SocketAddr, &str),
    who: &Credential,
    request: Request<()>,
    payload: &[u8],
) -> Outcome<Answer> {
    let (to, expected) = tunnel;
    let expected = SpiffeId::parse(expected).context(expected)?;
    let tcp = inside::connect(&from.netns, to)?;
    tcp.set_nonblocking(true)?;
    let exchange = async {
        let tcp = tokio::net::TcpStream::from_std(tcp)?;
        let tls = match connect::connect(tcp, who, &[expected], PATIENCE).await {
            Ok(tls) => tls,
            Err(refused) => return Ok(Answer::NoTunnel(chain(&refused))),
        };
        Ok(
            match exchange(tls, request, Bytes::copy_from_slice(payload)).await {
                Ok(status) => Answer::Status(status),
                Err(refused) => Answer::NoTunnel(chain(&refused)),
            },
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await });
    answer.context(format_args!("the answer of {to}"))?
}

async fn exchange<T>(tls: T, request: Request<()>, payload: Bytes) -> Result<u16, h2::Error>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut sender, connection) = client::handshake(tls).await?;
    let mut connection = std::pin::pin!(connection);
    let ask = async {
        let (answer, mut body) = sender.send_request(request, payload.is_empty())?;
        if !payload.is_empty() {
            body.send_data(payload, true)?;
        }
        answer.await
    };
    tokio::select! {
        biased; // the answer first: the connection ends with it when the other side says goodbye
        answer = ask => answer.map(|answer| answer.status().as_u16()),
        ended = &mut connection => Err(ended.err().unwrap_or_else(|| h2::Reason::NO_ERROR.into())),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
