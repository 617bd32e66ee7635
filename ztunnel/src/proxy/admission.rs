//! Admission: lets an inbound connection in by policy, and cuts it again once policy no longer permits it.
//!
//! Called by the inbound conductors; one per pod and worker, so its lock is never contended. The decision is
//! `ambit_core::view::MeshView::authorize`; here is only the book of open connections and the re-check. Knows no sockets.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ambit_core::identity::SpiffeId;
use ambit_core::names::NamespacedName;
use ambit_core::policy::{self, Connection, Verdict};
use ambit_core::reason::Reason;
use ambit_core::view::MeshView;
use ambit_core::workload::Workload;
use ambit_net::shared_view::SharedView;
use ambit_net::tasks::Stop;
use serde::Serialize;
use tokio::sync::oneshot;
use tracing::debug;

/// The facts of an inbound connection that policy looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Claim {
    /// Identity that the client proved; none in plain text.
    pub(crate) peer: Option<SpiffeId>,
    /// The client's address.
    pub(crate) source: IpAddr,
    /// The app's address and port.
    pub(crate) destination: SocketAddr,
}

/// A refusal by policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    /// Why.
    pub(crate) reason: Reason,
    /// The policies that refuse, or that would have had to allow.
    pub(crate) policies: Vec<NamespacedName>,
}

/// The open inbound connections of one pod on one worker.
#[derive(Debug)]
pub(crate) struct Admission {
    pod: NamespacedName,
    view: SharedView,
    book: Mutex<Book>,
}

/// The right to carry one connection; given back on drop.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    id: u64,
    revoked: oneshot::Receiver<Denied>,
    allowed_by: Option<NamespacedName>,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    open: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    claim: Claim,
    revoke: oneshot::Sender<Denied>,
}

impl Admission {
    /// An empty book for a pod.
    pub(crate) fn new(pod: NamespacedName, view: SharedView) -> Self {
        Self {
            pod,
            view,
            book: Mutex::default(),
        }
    }

    /// Lets a connection in, or says why not.
    ///
    /// # Errors
    /// The refusal of the policies in force; also while they, or the pod, are not known.
    pub(crate) fn admit(self: &Arc<Self>, claim: Claim) -> Result<Admitted, Denied> {
        // Entered first and judged then: a policy that changes in between is seen by the judgement or by the re-check.
        let mut admitted = self.enter(claim.clone());
        match self.judge(&claim) {
            Verdict::Allow(by) => {
                admitted.allowed_by = by;
                Ok(admitted)
            }
            Verdict::Deny(reason, policies) => Err(Denied { reason, policies }),
        }
    }

    /// Re-checks all open connections whenever policy, or what the pod's workload says of it, changes; until it is stopped.
    pub(crate) async fn keep_watch(self: Arc<Self>, stop: Stop) {
        let mut changes = self.view.changes();
        let mut judged_by = None;
        loop {
            let policies = changes.borrow_and_update().policies;
            let basis = (policies, self.workload());
            // A workload that was gone for a moment may be back with other policies, so it counts as well.
            if judged_by.as_ref() != Some(&basis) {
                self.recheck();
                judged_by = Some(basis);
            }
            tokio::select! {
                () = stop.stopped() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Cuts every open connection that policy no longer permits.
    pub(crate) fn recheck(&self) {
        let mut book = self.book();
        let judged = book
            .open
            .iter()
            .map(|(id, entry)| (*id, self.judge(&entry.claim)));
        let fallen: Vec<_> = judged
            .filter_map(|(id, verdict)| Some((id, fall(verdict)?)))
            .collect();
        for (id, denied) in fallen {
            if let Some(entry) = book.open.remove(&id) {
                // Nobody listens when the connection is ending by itself at this moment.
                drop(entry.revoke.send(denied));
            }
        }
    }

    /// The open connections, for the dump.
    pub(crate) fn open(&self) -> Vec<Claim> {
        self.book()
            .open
            .values()
            .map(|entry| entry.claim.clone())
            .collect()
    }

    fn enter(self: &Arc<Self>, claim: Claim) -> Admitted {
        let (revoke, revoked) = oneshot::channel();
        let mut book = self.book();
        let id = book.next;
        book.next += 1;
        book.open.insert(id, Entry { claim, revoke });
        Admitted {
            admission: Arc::clone(self),
            id,
            revoked,
            allowed_by: None,
        }
    }

    fn judge(&self, claim: &Claim) -> Verdict {
        self.view.read(|view| {
            let (namespace, name) = (&self.pod.namespace, &self.pod.name);
            let Some(pod) = view.pod(namespace, name) else {
                return Verdict::Deny(view.why_no_pod(namespace, name), Vec::new());
            };
            let connection = Connection {
                peer: claim.peer.as_ref(),
                source_ip: claim.source,
                destination: claim.destination,
            };
            self.report_dry_run(view, pod, &connection);
            view.authorize(pod, &connection)
        })
    }

    fn report_dry_run(&self, view: &MeshView, pod: &Workload, connection: &Connection<'_>) {
        let policies = view.policies_for(pod).unwrap_or_default();
        if let Some(Verdict::Deny(reason, policies)) = policy::preview(&policies, connection) {
            debug!(pod = %self.pod, reason = reason.code(), ?policies, "would be refused but for the dry run");
        }
    }

    fn workload(&self) -> Option<Arc<Workload>> {
        self.view
            .read(|view| view.pod(&self.pod.namespace, &self.pod.name).cloned())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic elsewhere leaves the map whole: entries are added and removed in one step each.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// The policy that allowed the connection, if one had to.
    pub(crate) fn allowed_by(&self) -> Option<&NamespacedName> {
        self.allowed_by.as_ref()
    }

    /// Ends when policy no longer permits the connection.
    ///
    /// # Cancel safety
    /// Cancel safe until it has ended.
    pub(crate) async fn revoked(&mut self) -> Denied {
        match (&mut self.revoked).await {
            Ok(denied) => denied,
            // The sender is dropped with this value only, which is being waited on.
            Err(_gone) => std::future::pending().await,
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.book().open.remove(&self.id);
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Texts of istio/ztunnel, which dashboards and tests look for.
        match self.reason {
            Reason::PolicyChanged => f.write_str("connection closed due to policy change"),
            Reason::PolicyDenied => {
                f.write_str("connection closed due to policy rejection: explicitly denied by: ")?;
                f.write_str(&names(&self.policies))
            }
            Reason::PolicyNotAllowed => f.write_str(
                "connection closed due to policy rejection: allow policies exist, but none allowed",
            ),
            other => write!(
                f,
                "connection closed due to policy rejection: {}",
                other.meaning()
            ),
        }
    }
}

impl Error for Denied {}

/// What a verdict over an open connection makes of it. Policies that are on their way, or a pod that the controller has
/// taken from view or describes in a way that cannot be read, are no cause to cut: what was permitted stays so until policy says otherwise.
fn fall(verdict: Verdict) -> Option<Denied> {
    match verdict {
        Verdict::Allow(_)
        | Verdict::Deny(
            Reason::PolicyNotSynced | Reason::WorkloadUnknown | Reason::ResourceUnreadable,
            _,
        ) => None,
        Verdict::Deny(_, policies) => {
            let reason = Reason::PolicyChanged;
            Some(Denied { reason, policies })
        }
    }
}

/// Names of policies as one text, for people.
pub(crate) fn names(policies: &[NamespacedName]) -> String {
    let texts: Vec<String> = policies.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

#[cfg(test)]
mod tests;
