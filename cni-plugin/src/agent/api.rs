//! The way to the Kubernetes API server: the client, its deadlines, and what its refusals mean for an operator.
//!
//! Used by all of the agent that speaks to the API server. Knows no pods.

use std::time::Duration;

use kube::{Client, Config};
use thiserror::Error;

use crate::with_causes;

/// How long the API server may be silent on an open watch before the connection counts as dead: it says where it stands
/// about once a minute (`bookmarks` of the watch protocol).
const SILENCE: Duration = Duration::from_secs(120);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing says where the API server is.
    #[error(
        "there is no way to the Kubernetes API server; run in a pod with a service account, or set KUBECONFIG, or set \
         AMBIT_MANIFESTS to read pods from files"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// What it says cannot be used.
    #[error("the credentials for the Kubernetes API server cannot be used")]
    Client(#[source] Box<kube::Error>),
}

/// A client by `KUBECONFIG`, or by the pod's service account. Connects when it is first used.
///
/// # Errors
/// [`ClientError`].
pub async fn client() -> Result<Client, ClientError> {
    let config = Config::infer().await;
    let mut config = config.map_err(|error| ClientError::Config(Box::new(error)))?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // Every caller has a deadline and tries again itself.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}

/// What a failure means and what is to be done, in one line. `what` is what was tried, such as "list pods".
pub fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => refusal(what, status.code, &status.message),
        other => format!(
            "cannot {what}: the API server cannot be reached ({}); it is tried again",
            with_causes(other)
        ),
    }
}

/// What an answer with this status code means.
pub fn refusal(what: &str, code: u16, message: &str) -> String {
    match code {
        401 => format!(
            "may not {what}: the API server does not accept the agent's service-account token ({message}); it is tried again"
        ),
        403 => format!(
            "may not {what}: {message}; apply the manifests of this version again (ClusterRole ambit-cni-agent)"
        ),
        _ => format!("cannot {what}: the API server answers {code}: {message}"),
    }
}

/// The status code of an answer that is a refusal.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
