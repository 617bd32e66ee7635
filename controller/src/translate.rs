//! Kubernetes terms → the mesh's terms: from one source object, the resources that proxies see. Pure.
//!
//! Called by the publisher for what is dirty. What an operator has to know about an object comes back beside its
//! resources, in words. Follows Istio's ambient index (which workloads, services and policies there are).

pub mod endpoints;
pub mod workload;
pub mod service;
pub mod policy;
pub mod authentication;

use ambit_core::policy::Authorization;
use ambit_core::service::Service;
use ambit_core::workload::Workload;

use crate::index::{Index, Source};

/// A resource that proxies see.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types in them")]
pub enum Resource {
    Workload(Box<Workload>),
    Service(Box<Service>),
    Policy(Box<Authorization>),
}

/// Whether an object means what its author wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acceptance {
    /// It does; problems beside it are hints.
    #[default]
    Accepted,
    /// It is good, and nothing here acts on it.
    NoEffect,
    /// Some of it is not understood.
    NotUnderstood,
}

/// What one source object gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translated {
    /// Its resources.
    pub resources: Vec<Resource>,
    /// Whether it means what it says.
    pub acceptance: Acceptance,
    /// What is wrong with it or has no effect, in words for operators.
    pub problems: Vec<String>,
}

/// Translates one source; a source that is gone gives nothing.
pub fn translate(index: &Index, source: &Source) -> Translated {
    match source {
        Source::Pod(name) => workload::pod(index, name),
        Source::EndpointSlice(name) => endpoints::slice(index, name),
        Source::Service(name) => service::service(index, name),
        Source::AuthorizationPolicy(name) => policy::authorization(index, name),
        Source::PeerAuthentication(name) => authentication::port_level(index, name),
        Source::StrictPolicy => authentication::strict(index),
    }
}

impl Translated {
    fn workload(workload: Workload) -> Self {
        Self {
            resources: vec![Resource::Workload(Box::new(workload))],
            ..Self::default()
        }
    }

    fn service(service: Service) -> Self {
        Self {
            resources: vec![Resource::Service(Box::new(service))],
            ..Self::default()
        }
    }

    fn policy(policy: Authorization) -> Self {
        Self {
            resources: vec![Resource::Policy(Box::new(policy))],
            ..Self::default()
        }
    }

    fn problem(text: impl Into<String>) -> Self {
        Self::default().with_problem(text)
    }

    fn with_problem(mut self, text: impl Into<String>) -> Self {
        self.problems.push(text.into());
        self
    }

    fn no_effect(text: impl Into<String>) -> Self {
        Self {
            acceptance: Acceptance::NoEffect,
            ..Self::problem(text)
        }
    }

    fn with_mistake(self, text: impl Into<String>) -> Self {
        Self {
            acceptance: Acceptance::NotUnderstood,
            ..self.with_problem(text)
        }
    }
}

#[cfg(test)]
mod tests;
