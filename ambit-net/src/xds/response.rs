//! Reads a response: the changes to the view, and what the session has to know for its answer.
//!
//! Called by `client.rs`, outside the view's lock. Each resource stands for itself: one that is refused does not hold up
//! the others. Nothing is left out: a policy that cannot be understood refuses what it selects, a workload or service of
//! which only the addresses can be read is refused there.

use ambit_core::names::NamespacedName;
use ambit_core::view::update::Update;

use super::Kind;
use super::session::{Outcome, Rejected};
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};
use crate::wire::{self, Address, WireError};

/// What a response means.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Changes to the view, in their order: what is new or different, then what is gone.
    pub updates: Vec<Update>,
    /// What to answer.
    pub outcome: Outcome,
}

/// Reads a response; `root_namespace` is the one whose policies may select the whole mesh.
///
/// A type that is not subscribed to changes nothing.
pub fn read(response: DeltaDiscoveryResponse, root_namespace: &str) -> Reading {
    let kind = Kind::of(&response.type_url);
    let mut reading = Reading {
        updates: Vec::new(),
        outcome: Outcome {
            type_url: response.type_url,
            nonce: response.nonce,
            ..Outcome::default()
        },
    };
    let Some(kind) = kind else {
        return reading;
    };
    for resource in response.resources {
        match kind {
            Kind::Address => reading.address(resource),
            Kind::Policy => reading.policy(resource, root_namespace),
        }
    }
    for name in response.removed_resources {
        reading.removed(kind, name);
    }
    reading
}

impl Reading {
    fn address(&mut self, resource: Resource) {
        let (name, body) = (resource.name.as_str(), body(&resource, Kind::Address));
        let update = match body
            .clone()
            .and_then(|body| wire::unpack_address(name, body))
        {
            Ok(Address::Workload(workload)) => Update::Workload(workload),
            Ok(Address::Service(service)) => Update::Service(service),
            Err(why) => {
                let what = wire::salvage_address(name, body.unwrap_or_default());
                self.updates.push(Update::Unreadable(Box::new(what)));
                return self.half_held(resource.name, &why.brief());
            }
        };
        self.updates.push(update);
        self.outcome.held.push((resource.name, resource.version));
    }

    fn policy(&mut self, resource: Resource, root_namespace: &str) {
        let name = resource.name.as_str();
        let read = match body(&resource, Kind::Policy) {
            Ok(body) => wire::policy::decode(name, body, root_namespace),
            Err(why) => wire::policy::unreadable(name, &why, root_namespace),
        };
        let policy = match read {
            Ok(policy) => policy,
            Err(why) => return self.rejected(resource.name, &why.brief()),
        };
        match &policy.unreadable {
            None => self.outcome.held.push((resource.name, resource.version)),
            Some(why) => self.half_held(resource.name, why),
        }
        self.updates.push(Update::Policy(Box::new(policy)));
    }

    /// It is there, but not as it was sent: a reconnect must bring it again, and its removal must be told.
    fn half_held(&mut self, name: String, why: &str) {
        self.outcome.held.push((name.clone(), String::new()));
        self.rejected(name, why);
    }

    fn rejected(&mut self, name: String, why: &str) {
        let why = why.to_owned();
        self.outcome.rejected.push(Rejected { name, why });
    }

    fn removed(&mut self, kind: Kind, name: String) {
        match kind {
            Kind::Address => self.updates.push(Update::RemoveAddress(name.clone())),
            Kind::Policy => {
                // No policy is held under a name of another form.
                let policy = NamespacedName::parse(&name).map(Update::RemovePolicy);
                self.updates.extend(policy);
            }
        }
        self.outcome.removed.push(name);
    }
}

fn body(resource: &Resource, kind: Kind) -> Result<&[u8], WireError> {
    let any = resource
        .resource
        .as_ref()
        .ok_or(WireError::Missing("resource"))?;
    if any.type_url != kind.type_url() {
        return Err(WireError::Unknown(format!("type {:?}", any.type_url)));
    }
    Ok(&any.value)
}

#[cfg(test)]
mod tests;
