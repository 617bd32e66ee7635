//! The labels of Istio's TCP metrics: who talks to whom, under which service, how secured.
//!
//! Filled by the proxies from what they know of both workloads, printed by `traffic`. No addresses and no names of
//! single pods, so that the number of sets is bounded by the number of workloads.

use std::sync::Arc;

use ambit_core::identity::SpiffeId;
use ambit_core::names::Text;
use ambit_core::service::Service;
use ambit_core::workload::Workload;

use super::table::{LABELS, UNKNOWN};
use super::text;

/// Value of `response_flags` of all others.
pub(super) const NO_FLAGS: &str = "-";

/// Which side of a connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The proxy of the client.
    Source,
    /// The proxy of the server.
    Destination,
}

impl Reporter {
    /// The value of the label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// One end of a connection in labels. What is empty is printed `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Party {
    /// Name of the workload's owner.
    pub workload: Text,
    /// Its namespace.
    pub namespace: Text,
    /// The identity that it proved by mutual TLS.
    pub principal: Text,
    /// Canonical name; also `app`.
    pub service: Text,
    /// Canonical revision; also `version`.
    pub revision: Text,
    /// Its cluster.
    pub cluster: Text,
    /// Its region.
    pub region: Text,
    /// Its zone.
    pub zone: Text,
}

impl Party {
    /// The labels of a workload; `proved` is its identity when the connection has mutual TLS.
    pub fn of(workload: &Workload, proved: Option<&SpiffeId>) -> Self {
        Self {
            workload: Text::clone(&workload.workload_name),
            namespace: Text::clone(&workload.namespace),
            principal: proved.map(ToString::to_string).unwrap_or_default().into(),
            service: Text::clone(&workload.canonical_name),
            revision: Text::clone(&workload.canonical_revision),
            cluster: workload.cluster.as_str().into(),
            region: Text::clone(&workload.locality.region),
            zone: Text::clone(&workload.locality.zone),
        }
    }
}

/// The service that a client addressed, in labels. What is empty is printed `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceParty {
    /// Host name.
    pub host: Text,
    /// Namespace.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

impl ServiceParty {
    /// The labels of a service.
    pub fn of(service: &Service) -> Self {
        Self {
            host: service.key.hostname.as_str().into(),
            namespace: Text::clone(&service.key.namespace),
            name: Text::clone(&service.name),
        }
    }
}

/// What tells one series of traffic from another. The parties are shared, so that a pod keeps its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Who reports.
    pub reporter: Reporter,
    /// The client.
    pub source: Arc<Party>,
    /// The server.
    pub destination: Arc<Party>,
    /// What the client addressed.
    pub service: Arc<ServiceParty>,
    /// True when the connection has mutual TLS.
    pub mutual_tls: bool,
}

impl TrafficLabels {
    /// What a connection is counted under when too many series exist.
    pub(super) fn collapsed(&self) -> Self {
        Self {
            source: Arc::default(),
            destination: Arc::default(),
            service: Arc::default(),
            ..*self
        }
    }

    /// The sets that [`collapsed`](Self::collapsed) can give; they do not count against the limit.
    pub(super) fn all_collapsed() -> impl Iterator<Item = Self> {
        let reporters = [Reporter::Source, Reporter::Destination];
        let all = reporters
            .into_iter()
            .flat_map(|reporter| [(reporter, false), (reporter, true)]);
        all.map(|(reporter, mutual_tls)| Self {
            reporter,
            mutual_tls,
            source: Arc::default(),
            destination: Arc::default(),
            service: Arc::default(),
        })
    }

    pub(super) fn print(&self, flags: &str) -> String {
        let (source, destination) = (&self.source, &self.destination);
        let security = if self.mutual_tls {
            "mutual_tls"
        } else {
            UNKNOWN
        };
        let values: [&str; LABELS.len()] = [
            self.reporter.word(),
            &source.workload,
            &source.service,
            &source.revision,
            &source.namespace,
            &source.principal,
            &source.service,
            &source.revision,
            &source.cluster,
            &self.service.host,
            &self.service.namespace,
            &self.service.name,
            &destination.workload,
            &destination.service,
            &destination.revision,
            &destination.namespace,
            &destination.principal,
            &destination.service,
            &destination.revision,
            &destination.cluster,
            "tcp",
            flags,
            security,
            &source.region,
            &source.zone,
            &destination.region,
            &destination.zone,
        ];
        let known = values.map(|value| if value.is_empty() { UNKNOWN } else { value });
        text::labels(LABELS.into_iter().zip(known))
    }
}
