//! The only file that speaks to Kubernetes for `ambit status`: the cluster that kubectl would ask, and ports of pods.
//!
//! Called by `status.rs` and `check/gather.rs`. Reads only; every call has a deadline and every failure says what to do.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use thiserror::Error;
use tokio::time::timeout;

use crate::http::{self, HttpError};
use crate::mesh::{self, MeshPod};

/// For each call; an API server that needs longer for these does not work.
const DEADLINE: Duration = Duration::from_secs(10);
/// What the kubelet says about a port comes right after the stream has ended.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Which cluster, and where in it.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// File that says how to reach the cluster; without it $KUBECONFIG or ~/.kube/config, or the pod's own account.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of that file to use; without it the current one.
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// Namespace that the mesh is installed in.
    #[arg(long, short, default_value = "ambit-system")]
    pub(crate) namespace: String,
}

/// Why the cluster could not be asked.
#[derive(Debug, Error)]
pub(crate) enum ClusterError {
    /// Nobody says where the cluster is.
    #[error(
        "no cluster is configured: set KUBECONFIG or --kubeconfig to a file that kubectl works with"
    )]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API server cannot be reached.
    #[error("cannot reach the API server at {url}; does `kubectl version` reach it?")]
    Unreachable {
        url: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// The credentials are not accepted.
    #[error(
        "the API server at {url} does not know you: {message}; renew the credentials in your kubeconfig"
    )]
    Unauthorized { url: String, message: String },
    /// The user may not do this.
    #[error("{message}; ask whoever administers the cluster for this right")]
    Forbidden { message: String },
    /// The API server says no for another reason.
    #[error("the API server answered: {message}")]
    Refused { message: String },
    /// It does not answer in time.
    #[error("the API server at {url} did not answer within {} s", DEADLINE.as_secs())]
    Timeout { url: String },
    /// The pod does not answer on this port.
    #[error("port {port} of pod {pod}: {}", said.as_deref().unwrap_or("no answer came through the API server"))]
    Port {
        pod: String,
        port: u16,
        /// The kubelet's words.
        said: Option<String>,
        #[source]
        source: HttpError,
    },
}

/// A cluster, as its user sees it.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    url: String,
    namespace: String,
}

impl Cluster {
    /// Reads the configuration; nothing is asked yet.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub(crate) async fn configured(args: &ClusterArgs) -> Result<Self, ClusterError> {
        let config = config(args).await?;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| ClusterError::Config(Box::new(e)))?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
            namespace: args.namespace.clone(),
        })
    }

    /// For what only the checks ask.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where the API server is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The mesh's own namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Awaits one call with the deadline, and says in a user's words why it failed.
    ///
    /// # Errors
    /// Those of the call, and when it takes too long.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match timeout(DEADLINE, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.explained(error)),
            Err(_elapsed) => Err(ClusterError::Timeout {
                url: self.url.clone(),
            }),
        }
    }

    /// The mesh's own pods, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(crate) async fn mesh_pods(&self) -> Result<Vec<MeshPod>, ClusterError> {
        let pods: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
        let ours = ListParams::default().labels(mesh::SELECTOR);
        let listed = self.call(pods.list(&ours)).await?;
        Ok(listed.items.iter().filter_map(MeshPod::of).collect())
    }

    /// Asks a pod of the mesh at a port that it opens on its own localhost only: kubectl's port-forward, without a local port.
    ///
    /// # Errors
    /// When the user may not forward ports, or the pod does not answer.
    pub(crate) async fn ask(
        &self,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Result<Bytes, ClusterError> {
        let pods: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
        let mut forwarder = self.call(pods.portforward(pod, &[port])).await?;
        let (stream, error) = (forwarder.take_stream(port), forwarder.take_error(port));
        let answer = match stream {
            Some(stream) => http::get(stream, path).await,
            None => Err(HttpError::Timeout),
        };
        let result = match answer {
            Ok(body) => Ok(body),
            Err(source) => {
                let said = match error {
                    Some(error) => timeout(LAST_WORD, error).await.ok().flatten(),
                    None => None,
                };
                Err(ClusterError::Port {
                    pod: pod.to_owned(),
                    port,
                    said: said.map(|said| said.trim().to_owned()),
                    source,
                })
            }
        };
        forwarder.abort();
        result
    }

    fn explained(&self, error: kube::Error) -> ClusterError {
        let url = self.url.clone();
        match error {
            kube::Error::Api(status) => of_status(url, status.code, &status.message),
            kube::Error::UpgradeConnection(error) => ClusterError::Refused {
                message: format!(
                    "{error}; the right to create and get pods/portforward in {} is needed",
                    self.namespace
                ),
            },
            error => ClusterError::Unreachable {
                url,
                source: Box::new(error),
            },
        }
    }
}

/// What a refusal of the API server means.
fn of_status(url: String, code: u16, message: &str) -> ClusterError {
    let message = message.to_owned();
    match code {
        401 => ClusterError::Unauthorized { url, message },
        403 => ClusterError::Forbidden { message },
        _ => ClusterError::Refused { message },
    }
}

async fn config(args: &ClusterArgs) -> Result<Config, ClusterError> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let read = match &args.kubeconfig {
        Some(path) => match Kubeconfig::read_from(path) {
            Ok(file) => Config::from_custom_kubeconfig(file, &options).await,
            Err(error) => Err(error),
        },
        None if args.context.is_some() => Config::from_kubeconfig(&options).await,
        None => {
            let inferred = Config::infer().await;
            return inferred.map_err(|error| ClusterError::Config(Box::new(error)));
        }
    };
    read.map_err(|error| ClusterError::Config(Box::new(error)))
}
