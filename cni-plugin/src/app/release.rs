//! Leaves the node as it was before the mesh came: pods, CNI configuration, the node's own rules, and the agent's files.
//!
//! Called by `app.rs` when the mesh is taken off the cluster, and by an operator (`--release-all`). Knows the order of things:
//! what lets new pods start comes first, the memory of what is left to do goes last.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ambit_core::names::{PodUid, Text};
use ambit_net::documents::{Directory, Limits};
use ambit_net::handoff::HandoffError;
use ambit_net::wire::handoff::HandoffPod;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{AppError, bind};
use crate::agent::annotate::Annotator;
use crate::agent::api;
use crate::agent::memory::{self, Opened, Record};
use crate::agent::pods::Wanted;
use crate::agent::pods::files::Files;
use crate::agent::release::{release, sweep};
use crate::agent::report::Pods;
use crate::config::{Config, Origin};
use crate::{host, install, with_causes};

/// Where runtimes keep the network namespaces of sandboxes.
const NETNS: &str = "/var/run/netns";
/// How often and how long what could not be undone is tried again: a pod has 60 s after SIGTERM by our manifests.
const ATTEMPTS: usize = 15;
const PAUSE: Duration = Duration::from_secs(2);
/// Pods that are told at a time.
const AT_ONCE: usize = 16;

/// Undoes the redirection of every pod that the agent has captured, and of every pod that the manifests put on this node,
/// in the mesh or not: the memory may have been lost. Connections through ztunnel are cut. Nothing may run beside it. On
/// Kubernetes the CNI plugin and the node's own rules go as well.
///
/// # Errors
/// When an agent runs, or something could not be undone.
pub async fn release_all(config: Config) -> Result<(), AppError> {
    if let Origin::Kubernetes(_) = &config.origin {
        let told = memory::open(&config.state_dir)?.records;
        let told = told.into_values().map(|record| record.spec.pod);
        match api::client().await {
            Ok(client) => withdraw(&Annotator::new(client), told).await,
            Err(error) => {
                let error = with_causes(&error);
                warn!(
                    error,
                    "the pods cannot be told that they are captured no more"
                );
            }
        }
    }
    undo(&config).await
}

/// Undoes everything on a node that the mesh leaves; what fails is tried again for half a minute.
///
/// # Errors
/// When something could not be undone all the same.
pub(super) async fn uninstall(config: &Config) -> Result<(), AppError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match undo(config).await {
            Err(error) if left > 0 => {
                warn!(
                    error = with_causes(&error),
                    "the node is not as it was yet; it is tried again"
                );
                sleep(PAUSE).await;
            }
            Err(error) => {
                error!("the node is not as it was; clean it by docs/uninstall.md");
                return Err(error);
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// Says on the pods that they are captured no more.
pub(super) async fn revoke(annotator: &Annotator, pods: watch::Receiver<Pods>) {
    let pods = pods.borrow().clone();
    let pods = pods.into_iter().map(|(uid, pod): (PodUid, _)| HandoffPod {
        uid,
        name: pod.name,
        service_account: "".into(),
    });
    withdraw(annotator, pods).await;
}

async fn withdraw(annotator: &Annotator, pods: impl Iterator<Item = HandoffPod>) {
    let each = async |pod: HandoffPod| {
        if let Err(error) = annotator.withdraw(&pod).await {
            let error = with_causes(&error);
            warn!(pod = %pod.name, error, "the pod still says that it is captured");
        }
    };
    futures_util::stream::iter(pods)
        .for_each_concurrent(AT_ONCE, each)
        .await;
}

async fn undo(config: &Config) -> Result<(), AppError> {
    let only_one = bind(&config.handoff_socket).map_err(|error| match error {
        AppError::Handoff(HandoffError::InUse { .. }) => AppError::Running,
        other => other,
    })?;
    let Opened {
        records: mut remembered,
        writer,
        ..
    } = memory::open(&config.state_dir)?;
    match &config.origin {
        Origin::Files(manifests) => {
            let directory = Directory::new(manifests, Limits::default());
            let said = Files::new(directory, Text::clone(&config.node))
                .next()
                .await;
            let enrolled = said.enrolled.into_values().filter_map(Wanted::into_spec);
            let others = said.others.into_values().flatten();
            for spec in enrolled.chain(others) {
                let (uid, leaving) = (spec.pod.uid.clone(), true);
                remembered.entry(uid).or_insert(Record { spec, leaving });
            }
        }
        // Pods that start from now on are not to ask an agent that is gone.
        Origin::Kubernetes(on) => {
            blocking({
                let settings = on.plugin.clone();
                move || Ok(install::uninstall(&settings)?)
            })
            .await?
        }
    }
    let mut failed = release(remembered.values()).await?;
    if let Origin::Kubernetes(on) = &config.origin {
        failed += sweep(Path::new(NETNS)).await?;
        blocking(|| Ok(host::remove()?)).await?;
        remove(&on.plugin.socket)?;
    }
    if failed > 0 {
        return Err(AppError::NotReleased(failed));
    }
    writer.erase()?;
    drop(only_one);
    remove(&config.handoff_socket)?;
    info!(
        pods = remembered.len(),
        "nothing is captured on this node any more"
    );
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AppError> + Send + 'static,
) -> Result<T, AppError> {
    spawn_blocking(work)
        .await
        .map_err(|_panic| AppError::Panicked)?
}

fn remove(path: &Path) -> Result<(), AppError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AppError::Remove {
            path: path.to_owned(),
            source,
        }),
        _gone => Ok(()),
    }
}
