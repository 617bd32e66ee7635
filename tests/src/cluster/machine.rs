//! A node of the cluster as a machine: commands on it, its namespaces, its disk, its power switch.
//!
//! Called by tests through [`Cluster::machine`]. Everything is asked of `tests/cluster/node`.

use std::path::PathBuf;

use serde_json::Value;

use crate::failure::{Context as _, Outcome};
use crate::netns::{Addresses, Site};
use crate::poll;

use super::{Cluster, PATIENCE};

/// One node.
#[derive(Clone, Debug)]
pub struct Machine {
    cluster: &'static Cluster,
    name: String,
}

impl Machine {
    pub(super) fn new(cluster: &'static Cluster, name: &str) -> Self {
        Self {
            cluster,
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command in the node's namespaces, as root of the node.
    ///
    /// # Errors
    /// When it fails; shows what it said.
    pub fn run(&self, command: &[&str]) -> Outcome<String> {
        let args: Vec<&str> = ["enter", &self.name]
            .iter()
            .chain(command)
            .copied()
            .collect();
        self.cluster.script("node", &args)
    }

    /// Files, rules and routes that an installation may have changed, as text.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn state(&self) -> Outcome<String> {
        self.cluster.script("node", &["state", &self.name])
    }

    /// [`Machine::state`] as it was before anything was installed.
    ///
    /// # Errors
    /// When `tests/cluster/up` did not write it.
    pub fn state_before(&self) -> Outcome<String> {
        let file = self.cluster.folder().join(format!("{}.before", self.name));
        std::fs::read_to_string(&file).context(file.display())
    }

    /// Cuts the power: every process, `/run` and the network namespace are gone, the disk stays.
    ///
    /// # Errors
    /// When a process does not go.
    pub fn kill(&self) -> Outcome {
        self.cluster.script("node", &["kill", &self.name]).map(drop)
    }

    /// Boots from the disk and waits until kubelet answers again and names resolve on every node.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn start(&self) -> Outcome {
        self.cluster.script("node", &["start", &self.name])?;
        poll::until_ok(PATIENCE, || {
            self.cluster.kubectl(&[
                "get",
                "--raw",
                &format!("/api/v1/nodes/{}/proxy/healthz", self.name),
            ])
        })
        .context(format_args!("{} does not come back", self.name))?;
        self.cluster.script("names-resolve", &[]).map(drop)
    }

    /// Where a path of the node's own is, seen from this machine. A link on the way (as `/var/run` is) would be followed here.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn path(&self, path: &str) -> Outcome<PathBuf> {
        let first = self.cluster.script("node", &["pid", &self.name])?;
        Ok(PathBuf::from(format!("/proc/{}/root{path}", first.trim())))
    }

    /// Its network namespace and addresses.
    ///
    /// # Errors
    /// When Kubernetes does not know it.
    pub fn site(&self) -> Outcome<Site> {
        let node = self.cluster.read(&["node", &self.name])?;
        let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
        let texts = addresses.into_iter().flatten();
        let of_kind = texts.filter(|address| address.get("type") == Some(&"InternalIP".into()));
        let of_kind = of_kind.filter_map(|address| address.get("address").and_then(Value::as_str));
        Ok(Site {
            name: self.name.clone(),
            netns: PathBuf::from(format!("/run/netns/{}-{}", self.cluster.name, self.name)),
            addresses: both(of_kind).context(format_args!("addresses of {}", self.name))?,
        })
    }
}

/// An address of each family out of a list.
pub(super) fn both<'a>(texts: impl Iterator<Item = &'a str>) -> Outcome<Addresses> {
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        match text.parse().context(text)? {
            std::net::IpAddr::V4(address) => v4 = Some(address),
            std::net::IpAddr::V6(address) => v6 = Some(address),
        }
    }
    Ok(Addresses {
        v4: v4.context("no IPv4 address")?,
        v6: v6.context("no IPv6 address")?,
    })
}
