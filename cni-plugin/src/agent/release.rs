//! Undoes the capture of a node's pods at once, for an operator who takes the mesh off a node.
//!
//! Called by `app.rs` while no agent runs. Waits for nothing: connections through ztunnel are cut.

use ambit_net::netns::NetnsError;
use tracing::{error, info};

use super::memory::Record;
use super::netns::{Namespaces, OpenError};
use crate::redirect;
use crate::with_causes;

/// Takes the rules out of the namespaces of these pods; returns how many could not be released.
///
/// # Errors
/// When the own network namespace cannot be read: it must not be touched.
pub async fn release(records: impl IntoIterator<Item = &Record>) -> Result<usize, NetnsError> {
    let namespaces = Namespaces::new()?;
    let mut failed = 0;
    for Record { spec, .. } in records {
        let pod = &spec.pod.name;
        let held = match namespaces.open(&spec.pod.uid, &spec.netns) {
            Ok(held) => held,
            Err(absent @ OpenError::Absent(_)) => {
                info!(%pod, why = %absent, "nothing to release");
                continue;
            }
            Err(error) => {
                failed += 1;
                error!(%pod, error = with_causes(&error), "cannot release the pod");
                continue;
            }
        };
        let error = match held.netns().run_on_thread(redirect::remove).await {
            Ok(Ok(())) => {
                info!(%pod, "released");
                continue;
            }
            Ok(Err(error)) => with_causes(&error),
            Err(error) => with_causes(&error),
        };
        failed += 1;
        error!(%pod, error, "cannot release the pod");
    }
    Ok(failed)
}
