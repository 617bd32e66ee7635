//! The single steps of which a pod's life is made: open its namespace, write its rules, tell ztunnel, count, undo.
//!
//! Called by the pod tasks (`agent/pod.rs`), which know the order. Each step may be repeated; whatever blocks runs on a
//! thread of its own. Knows nothing of wishes and of what comes next.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_net::meters::Counter;
use ambit_net::netns::NetnsError;
use ambit_net::wire::handoff::HandoffPod;
use thiserror::Error;
use tokio::sync::watch;

use super::annotate::{AnnotateError, Annotator};
use super::memory::Memory;
use super::netns::find::{FindError, Finder, Sought};
use super::netns::{Held, Namespaces, OpenError};
use super::pods::{Spec, Wanted};
use super::probed::{Probed, ProbedError};
use super::report::Report;
use crate::handoff::{Announcement, Handoff, Serving};
use crate::redirect::ruleset::{Families, Phase, PodNet, Probes};
use crate::redirect::{self, Applied, Feature, RedirectError};

/// What an operator can choose.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Addresses of probes that are not captured.
    pub probes: Probes,
    /// How long captured connections of a leaving pod may go on.
    pub leave_timeout: Duration,
    /// How often the rules are compared with what they should be.
    pub verify_interval: Duration,
}

/// What every pod task works with. Cheap to clone; all clones work on the same.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) handoff: Handoff,
    pub(super) memory: Memory,
    pub(super) namespaces: Namespaces,
    pub(super) report: Report,
    pub(super) settings: Settings,
    pub(super) rules_written: Counter,
    pub(super) kubernetes: Option<Kubernetes>,
}

/// What there is on Kubernetes only.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// Finds pods.
    pub finder: Finder,
    /// Announces their capture.
    pub annotator: Annotator,
    /// Lets kubelet's probes in.
    pub probed: Probed,
}

/// Why a step failed; it is tried again.
#[derive(Debug, Error)]
pub(super) enum StepError {
    /// The namespace cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Nobody says where it is.
    #[error("nobody says where its network namespace is")]
    Nowhere,
    /// The API server has not taken the announcement.
    #[error(transparent)]
    Annotate(#[from] AnnotateError),
    /// kubelet could not probe the pod.
    #[error(transparent)]
    Probed(#[from] ProbedError),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Enter(#[from] NetnsError),
    /// The rules cannot be read or written.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
}

impl StepError {
    /// True when there is no namespace any more in which the pod could have rules.
    pub(super) fn is_absence(&self) -> bool {
        use OpenError::{Absent, Foreign, Own, Taken};
        matches!(
            self,
            Self::Open(Absent(_) | Foreign(_) | Own(_) | Taken { .. })
                | Self::Find(FindError::Nowhere { .. })
        )
    }
}

impl Tools {
    /// The pod with the path of its namespace. `former` is where it was before.
    pub(super) async fn locate(
        &self,
        wanted: &Wanted,
        former: Option<&PathBuf>,
    ) -> Result<Spec, StepError> {
        let place = &wanted.place;
        let known = place.netns.as_ref().or(former);
        let netns = match &self.kubernetes {
            None => known.ok_or(StepError::Nowhere)?.clone(),
            Some(kubernetes) => {
                let sought = Sought {
                    uid: wanted.pod.uid.clone(),
                    name: wanted.pod.name.clone(),
                    static_uid: place.static_uid.clone(),
                    addresses: place.addresses.clone(),
                    known: known.cloned(),
                };
                kubernetes.finder.find(&sought).await?
            }
        };
        Ok(Spec {
            pod: wanted.pod.clone(),
            netns,
            addresses: place.addresses.clone(),
            options: wanted.options.clone(),
        })
    }

    /// Says on the pod that it is captured, where pods can be told.
    pub(super) async fn proclaim(&self, pod: &HandoffPod) -> Result<(), StepError> {
        match &self.kubernetes {
            Some(kubernetes) => Ok(kubernetes.annotator.announce(pod).await?),
            None => Ok(()),
        }
    }

    /// Takes that back.
    pub(super) async fn revoke(&self, pod: &HandoffPod) -> Result<(), StepError> {
        match &self.kubernetes {
            Some(kubernetes) => Ok(kubernetes.annotator.withdraw(pod).await?),
            None => Ok(()),
        }
    }

    /// Opens the namespace of a pod.
    pub(super) async fn open(&self, spec: &Spec) -> Result<Held, StepError> {
        Ok(self.namespaces.open(spec).await?)
    }

    /// Lets kubelet probe the pod around the mesh, and nobody else.
    pub(super) async fn open_probes(&self, spec: &Spec) -> Result<(), StepError> {
        if let Some(kubernetes) = &self.kubernetes {
            let targets = spec.probe_targets();
            kubernetes.probed.set(&spec.pod.uid, targets).await?;
        }
        Ok(())
    }

    /// Ends that.
    pub(super) async fn close_probes(&self, uid: &PodUid) -> Result<(), StepError> {
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.probed.set(uid, BTreeSet::new()).await?;
        }
        Ok(())
    }

    /// Makes the rules in the namespace those of the pod.
    pub(super) async fn apply(
        &self,
        held: &Held,
        spec: &Spec,
        phase: Phase,
    ) -> Result<Applied, StepError> {
        let (probes, options) = (self.settings.probes, spec.options.clone());
        let applied = held.netns().run_on_thread(move || {
            let pod = PodNet {
                families: Families::of_this_namespace(),
                probes,
                bypass_inbound: options.bypass_inbound,
                virtual_interfaces: options.virtual_interfaces,
            };
            redirect::apply(&pod, phase)
        });
        let applied = applied.await??;
        if applied == Applied::Written {
            self.rules_written.increment();
        }
        Ok(applied)
    }

    /// Takes the rules out of the namespace.
    pub(super) async fn clear(&self, held: &Held) -> Result<(), StepError> {
        Ok(held.netns().run_on_thread(redirect::remove).await??)
    }

    /// True when none of our tables is in the namespace.
    pub(super) async fn is_clear(&self, held: &Held) -> Result<bool, StepError> {
        Ok(held.netns().run_on_thread(redirect::is_absent).await??)
    }

    /// Number of captured connections in the namespace; none where the kernel cannot say, so that only time can.
    pub(super) async fn captured(&self, held: &Held) -> Result<Option<usize>, StepError> {
        let counted = held.netns().run_on_thread(redirect::captured_connections);
        match counted.await? {
            Ok(open) => Ok(Some(open)),
            Err(RedirectError::Feature {
                feature: Feature::ConnectionDump,
                ..
            }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Has ztunnel told of the pod, now and when it connects anew.
    pub(super) fn announce(&self, spec: &Spec, held: &Held) -> watch::Receiver<Serving> {
        self.handoff.announce(Announcement {
            pod: spec.pod.clone(),
            netns: Some(held.netns().clone()),
        })
    }
}
