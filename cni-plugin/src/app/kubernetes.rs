//! What the agent has beside the rest on Kubernetes: the API server, the socket for the CNI plugin, events.
//!
//! Called by `app.rs`: prepared before anything runs, so that a wrong setting is known at the start. An API server that is away
//! is none: the agent starts without it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::names::{PodUid, Text};
use ambit_net::admin::Readiness;
use ambit_net::tasks::Tasks;
use kube::Client;
use tokio::sync::mpsc;

use super::AppError;
use crate::agent::annotate::Annotator;
use crate::agent::api;
use crate::agent::events::{self, Events, Publisher};
use crate::agent::installation::Installation;
use crate::agent::memory::Record;
use crate::agent::netns::find::Finder;
use crate::agent::orders::Order;
use crate::agent::pods::Source;
use crate::agent::pods::kubernetes::{self, Kubernetes};
use crate::agent::probed::{self, Probed};
use crate::agent::report::Report;
use crate::agent::requests::Requests;
use crate::checks::Checks;
use crate::config::OnKubernetes;
use crate::install::Installer;
use crate::{agent, socket};

/// What is ready to be started.
pub(super) struct Ground {
    client: Client,
    node: Text,
    config: Box<OnKubernetes>,
    plugins: socket::Listener,
    events: (Events, Publisher),
    installer: Installer,
    probed: (Probed, probed::Writer),
}

impl Ground {
    /// Makes the client and the socket; speaks to nobody.
    pub(super) async fn prepare(
        node: &Text,
        config: Box<OnKubernetes>,
        (checks, readiness): (&Checks, &Readiness),
        (pods, remembered): (agent::Settings, &BTreeMap<PodUid, Record>),
    ) -> Result<Self, AppError> {
        let client = api::client().await?;
        let path = &config.plugin.socket;
        super::make_parent(path)?;
        let plugins = socket::Listener::bind(path).map_err(|source| {
            let path = path.clone();
            AppError::PluginSocket { path, source }
        })?;
        let installer = Installer::new(config.plugin.clone(), checks.clone(), readiness.clone());
        Ok(Self {
            client,
            node: Arc::clone(node),
            config,
            plugins,
            events: events::channel(),
            installer,
            probed: Probed::new(
                (pods.probes, pods.verify_interval),
                remembered.values().map(targets).collect(),
                checks.clone(),
            ),
        })
    }

    /// What pod tasks have beside the rest.
    pub(super) fn means(&self) -> agent::Kubernetes {
        let config = &self.config;
        agent::Kubernetes {
            finder: Finder::new(config.proc.clone(), config.cni_cache.clone()),
            annotator: Annotator::new(self.client.clone()),
            probed: self.probed.0.clone(),
        }
    }

    /// The DaemonSet that this agent is part of, if it is part of one, and what says on pods that they are captured.
    pub(super) fn installation(&self) -> Option<(Installation, Annotator)> {
        let namespace = self.config.namespace.clone()?;
        let name = self.config.daemon_set.clone();
        let installation = Installation::new(self.client.clone(), namespace, name);
        Some((installation, Annotator::new(self.client.clone())))
    }

    /// Where pods come from.
    pub(super) fn source(&self) -> Source {
        let excluded = self.config.excluded.iter().map(|name| name.as_str().into());
        let excluded: BTreeSet<Text> = excluded.collect();
        Source::Kubernetes(Box::new(Kubernetes::new(kubernetes::Means {
            client: self.client.clone(),
            node: Arc::clone(&self.node),
            excluded: Arc::new(excluded),
            beside: self.installer.beside_another(),
            events: self.events.0.clone(),
        })))
    }

    /// Begins to answer the CNI plugin, to install it, and to publish events.
    pub(super) fn start(self, orders: mpsc::Sender<Order>, report: Report, tasks: &Tasks) {
        let requests = Requests::new(self.client.clone(), Arc::clone(&self.node), orders, report);
        let answer = move |request| requests.clone().answer(request);
        tasks.spawn(socket::serve(self.plugins, tasks.spawner(), answer));
        // Only now: what it installs asks at once.
        tasks.spawn(self.installer.run(tasks.stop_signal()));
        tasks.spawn(self.probed.1.run());
        let (_teller, publisher) = self.events;
        tasks.spawn(publisher.run(self.client, self.node.to_string()));
    }
}

/// What kubelet may probe of a pod from before a restart.
fn targets(record: &Record) -> (PodUid, BTreeSet<SocketAddr>) {
    (record.spec.pod.uid.clone(), record.spec.probe_targets())
}
