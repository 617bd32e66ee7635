//! Undoes the capture of a node's pods at once, for an operator who takes the mesh off a node.
//!
//! Called by `app/release.rs` while no agent runs. Waits for nothing: connections through ztunnel are cut.

use std::path::Path;

use ambit_net::netns::{Netns, NetnsError};
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
        let held = match namespaces.open(spec).await {
            Ok(held) => held,
            Err(absent @ (OpenError::Absent(_) | OpenError::Foreign(_))) => {
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

/// Takes our rules out of all network namespaces that have a name in `folder`, whether anybody remembers them or not; returns
/// how many could not be cleaned.
///
/// # Errors
/// When the own network namespace cannot be read: it must not be touched.
pub async fn sweep(folder: &Path) -> Result<usize, NetnsError> {
    let namespaces = Namespaces::new()?;
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(0);
    };
    let mut failed = 0;
    for path in entries.flatten().map(|entry| entry.path()) {
        // What is none is not ours, and what has gone has no rules.
        let Ok(netns) = Netns::open(&path) else {
            continue;
        };
        if namespaces.are_nodes(&netns) {
            continue;
        }
        let cleaned = netns.run_on_thread(|| match redirect::is_absent() {
            Ok(true) => Ok(false),
            _found => redirect::remove().map(|()| true),
        });
        match cleaned.await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => {
                info!(netns = %path.display(), "rules that nobody remembered are removed")
            }
            Ok(Err(error)) => {
                failed += 1;
                error!(netns = %path.display(), error = with_causes(&error), "cannot remove the rules");
            }
            // It went meanwhile.
            Err(_) => {}
        }
    }
    Ok(failed)
}
