//! A directory of plain Kubernetes YAML as an operator would keep it, and the documents that tests put into it.
//!
//! Called by `node.rs`, tests, benchmarks and the demonstration. Text only: what the documents mean is the mesh's affair.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::failure::{Context as _, Outcome};
use crate::netns::{Addresses, Site};

/// The directory that controller and node agents watch.
#[derive(Clone, Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: PathBuf) -> Outcome<Self> {
        fs::create_dir_all(&folder).context(folder.display())?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file in one step, as careful tools do: into a hidden file that then takes the name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, file: &str, documents: &str) -> Outcome {
        let hidden = self.folder.join(format!(".{file}.new"));
        fs::write(&hidden, documents).context(hidden.display())?;
        fs::rename(&hidden, self.folder.join(file)).context(file)
    }

    /// Writes a file in place, as an editor may: readers can meet any part of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_in_place(&self, file: &str, documents: &str) -> Outcome {
        fs::write(self.folder.join(file), documents).context(file)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn text(&self, file: &str) -> Outcome<String> {
        fs::read_to_string(self.folder.join(file)).context(file)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, file: &str) -> Outcome {
        fs::remove_file(self.folder.join(file)).context(file)
    }
}

/// A Namespace; `joined` puts it into the mesh.
pub fn namespace(name: &str, joined: bool) -> String {
    let annotation = if joined {
        "  annotations:\n    ambit.mesh/dataplane-mode: ambient\n"
    } else {
        ""
    };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{annotation}")
}

/// A pod of the world as the mesh should know it.
#[derive(Clone, Debug)]
pub struct PodDocument<'a> {
    /// Its namespace of Kubernetes.
    pub namespace: &'a str,
    /// Its service account.
    pub account: &'a str,
    /// The node's name.
    pub node: &'a str,
    /// Its name, addresses and network namespace.
    pub site: &'a Site,
}

impl PodDocument<'_> {
    /// The document; the label `app` is the pod's name.
    pub fn yaml(&self) -> String {
        let Self {
            namespace,
            account,
            node,
            site,
        } = self;
        let (name, Addresses { v4, v6 }) = (&site.name, site.addresses);
        format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata:\n\
             \x20 name: {name}\n\
             \x20 namespace: {namespace}\n\
             \x20 labels: {{ app: {name} }}\n\
             \x20 annotations:\n\
             \x20   ambit.mesh/netns: {netns}\n\
             spec:\n\
             \x20 nodeName: {node}\n\
             \x20 serviceAccountName: {account}\n\
             \x20 containers: [{{ name: app, image: none }}]\n\
             status:\n\
             \x20 phase: Running\n\
             \x20 podIP: {v4}\n\
             \x20 podIPs: [{{ ip: {v4} }}, {{ ip: '{v6}' }}]\n\
             \x20 conditions: [{{ type: Ready, status: 'True' }}]\n",
            netns = site.netns.display()
        )
    }
}

/// A Service of both families that selects the pods with the label `app: NAME`.
pub fn service(namespace: &str, name: &str, addresses: Addresses, ports: &[(u16, u16)]) -> String {
    let [v4, v6] = addresses.both().map(|ip: IpAddr| ip.to_string());
    let ports: String = ports
        .iter()
        .map(|(port, target)| {
            format!("  - {{ name: p{port}, port: {port}, targetPort: {target}, protocol: TCP }}\n")
        })
        .collect();
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata:\n\
         \x20 name: {name}\n\
         \x20 namespace: {namespace}\n\
         spec:\n\
         \x20 clusterIP: {v4}\n\
         \x20 clusterIPs: ['{v4}', '{v6}']\n\
         \x20 ipFamilies: [IPv4, IPv6]\n\
         \x20 ipFamilyPolicy: RequireDualStack\n\
         \x20 selector: {{ app: {name} }}\n\
         \x20 ports:\n{ports}"
    )
}

/// A ServiceAccount.
pub fn service_account(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

/// Joins documents into one file.
pub fn documents<T: AsRef<str>>(parts: impl IntoIterator<Item = T>) -> String {
    let parts: Vec<String> = parts
        .into_iter()
        .map(|part| part.as_ref().to_owned())
        .collect();
    parts.join("---\n")
}
