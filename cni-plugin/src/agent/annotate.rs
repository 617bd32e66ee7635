//! Says on the pod itself what is true of its capture: the annotations that controllers, other agents and people read.
//!
//! Called by the pod tasks. Patches `pods/status` only, so that the agent needs no right to change what pods run. Knows nothing
//! of rules and of when something is true.

use std::time::Duration;

use ambit_core::enrollment::{CAPTURED_BY, CAPTURED_BY_AMBIT, REDIRECTION, REDIRECTION_ENABLED};
use ambit_net::wire::handoff::HandoffPod;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::timeout;

use super::api::{explain, status_code};

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// What answers say when there is no such pod any more: not found, or another one of the same name.
const GONE: [u16; 3] = [404, 409, 422];

/// Why a pod's annotations could not be changed; it is tried again.
#[derive(Debug, Error)]
pub enum AnnotateError {
    /// The API server refuses or cannot be reached; with the next step.
    #[error("{0}")]
    Api(String),
    /// It has not answered in time.
    #[error("the API server has not taken the pod's annotation within {} s", DEADLINE.as_secs())]
    TimedOut,
    /// The pod has been deleted, or replaced by another one of its name.
    #[error("the API server does not know the pod any more")]
    Gone,
}

/// Writes annotations. Cheap to clone.
#[derive(Clone)]
pub struct Annotator {
    client: Client,
}

impl std::fmt::Debug for Annotator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Annotator").finish_non_exhaustive()
    }
}

impl Annotator {
    /// Writes by this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Announces that the pod is captured by us.
    ///
    /// # Errors
    /// [`AnnotateError`]; then it may or may not be announced.
    ///
    /// # Cancel safety
    /// Cancel safe: the same patch may be sent any number of times.
    pub async fn announce(&self, pod: &HandoffPod) -> Result<(), AnnotateError> {
        self.patch(pod, json!(REDIRECTION_ENABLED), json!(CAPTURED_BY_AMBIT))
            .await
    }

    /// Takes the announcement back; nothing to do for a pod that is gone.
    ///
    /// # Errors
    /// [`AnnotateError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn withdraw(&self, pod: &HandoffPod) -> Result<(), AnnotateError> {
        match self.patch(pod, Value::Null, Value::Null).await {
            Err(AnnotateError::Gone) => Ok(()),
            other => other,
        }
    }

    async fn patch(
        &self,
        pod: &HandoffPod,
        redirection: Value,
        captured_by: Value,
    ) -> Result<(), AnnotateError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.name.namespace);
        // The uid is a condition: a pod of the same name that has come since is not meant.
        let patch = json!({ "metadata": {
            "uid": pod.uid.as_str(),
            "annotations": { REDIRECTION: redirection, CAPTURED_BY: captured_by },
        }});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let patched = api.patch_status(&pod.name.name, &params, &patch);
        match timeout(DEADLINE, patched).await {
            Err(_elapsed) => Err(AnnotateError::TimedOut),
            Ok(Ok(_pod)) => Ok(()),
            Ok(Err(error)) if status_code(&error).is_some_and(|code| GONE.contains(&code)) => {
                Err(AnnotateError::Gone)
            }
            Ok(Err(error)) => Err(AnnotateError::Api(explain("annotate the pod", &error))),
        }
    }
}
