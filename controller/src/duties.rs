//! What only one replica does: publishing the root and writing conditions, while it holds the Lease.
//!
//! Run as one task by the app where Kubernetes is the source.

use std::sync::Arc;

use ambit_core::names::Text;
use ambit_net::tasks::Stop;
use kube::Client;
use tokio::sync::watch;

use crate::ca::root::Root;
use crate::verdict::Verdicts;
use crate::{conditions, configmaps, lease};

/// What the duties need.
#[expect(missing_debug_implementations, reason = "the client has none")]
pub struct Duties {
    /// Speaks to the API server.
    pub client: Client,
    /// The namespace of the Lease.
    pub namespace: Text,
    /// Tells this replica from the others.
    pub identity: Text,
    /// The root to publish.
    pub root: watch::Receiver<Arc<Root>>,
    /// The verdicts to tell.
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
}

impl Duties {
    /// Does them whenever this replica leads, until told to stop; then another one may begin at once.
    pub async fn run(self, stop: Stop) {
        let (leading, leads) = watch::channel(false);
        let names = (Text::clone(&self.namespace), Text::clone(&self.identity));
        let lease = lease::run(self.client.clone(), names, leading, stop);
        tokio::join!(lease, self.while_leading(leads));
    }

    async fn while_leading(&self, mut leads: watch::Receiver<bool>) {
        while leads.wait_for(|leads| *leads).await.is_ok() {
            tokio::select! {
                () = configmaps::run(self.client.clone(), self.root.clone()) => {}
                () = conditions::run(self.client.clone(), self.verdicts.clone()) => {}
                _ends = leads.wait_for(|leads| !*leads) => {}
            }
        }
    }
}
