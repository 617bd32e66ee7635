//! The mesh that most tests share: two nodes, and a standing cast of pods. Made by the first test that needs it.
//!
//! Tests must not disturb it: a test that changes membership or policy brings its own pods in a namespace of its own, and
//! one that stops a program has a world of its own (`Stage::own`).

use std::net::SocketAddr;
use std::sync::OnceLock;

use tests::failure::{Failure, Outcome};
use tests::manifests::{PodDocument, documents, namespace, service_account};
use tests::netns::{Site, World};
use tests::node::{Mesh, Setup};
use tests::sandbox::scratch;

/// A world with a mesh on it.
pub(crate) struct Stage {
    pub(crate) mesh: Mesh,
    /// On node 1, in the mesh.
    pub(crate) client: Site,
    /// On node 1, in the mesh.
    pub(crate) near: Site,
    /// On node 2, in the mesh.
    pub(crate) far: Site,
    /// On node 1, not in the mesh.
    pub(crate) outsider: Site,
    // Last: the programs end before their namespaces go.
    pub(crate) world: World,
}

/// Kubernetes namespace of the cast; each pod's service account has the pod's name.
pub(crate) const CAST: &str = "cast";

impl Stage {
    /// The shared one.
    pub(crate) fn shared() -> Outcome<&'static Self> {
        static STAGE: OnceLock<Outcome<Stage>> = OnceLock::new();
        let stage = STAGE.get_or_init(|| Self::own("shared", |setup| setup));
        stage
            .as_ref()
            .map_err(|cause| Failure::new(format!("the shared mesh: {cause}")))
    }

    /// One that the test may break.
    pub(crate) fn own(name: &str, settings: impl FnOnce(Setup) -> Setup) -> Outcome<Self> {
        let world = World::new(name, 2)?;
        let (client, near) = (world.add_pod(0, "client")?, world.add_pod(0, "near")?);
        let (far, outsider) = (world.add_pod(1, "far")?, world.add_pod(0, "outsider")?);
        let mesh = Mesh::start(&world, settings(Setup::new(scratch().join(name))))?;
        let stage = Self {
            mesh,
            client,
            near,
            far,
            outsider,
            world,
        };
        stage.join(
            CAST,
            &[(&stage.client, 0), (&stage.near, 0), (&stage.far, 1)],
            "",
        )?;
        Ok(stage)
    }

    /// Adds pods of a namespace of Kubernetes, in the mesh, together with `more` documents; waits until all hold.
    pub(crate) fn join(&self, name: &str, pods: &[(&Site, usize)], more: &str) -> Outcome {
        self.write(name, true, pods, more)?;
        let names: Vec<String> = pods
            .iter()
            .map(|(pod, _)| format!("{name}/{}", pod.name))
            .collect();
        self.mesh
            .wait_captured(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Writes the file of a namespace of Kubernetes and its pods, and does not wait.
    pub(crate) fn write(
        &self,
        name: &str,
        joined: bool,
        pods: &[(&Site, usize)],
        more: &str,
    ) -> Outcome {
        let accounts = pods
            .iter()
            .map(|(site, _)| service_account(name, &site.name));
        let pods = pods.iter().map(|(site, node)| {
            let node = format!("node{}", node + 1);
            PodDocument {
                namespace: name,
                account: &site.name,
                node: &node,
                site,
            }
            .yaml()
        });
        let more = (!more.is_empty()).then(|| more.to_owned());
        let all = std::iter::once(namespace(name, joined))
            .chain(accounts)
            .chain(pods)
            .chain(more);
        self.mesh
            .manifests
            .put(&format!("{name}.yaml"), &documents(all))
    }

    /// The two pods of the cast that serve, with the node of each.
    pub(crate) fn servers(&self) -> [(&Site, usize); 2] {
        [(&self.near, 0), (&self.far, 1)]
    }
}

/// The SPIFFE ID of a pod whose service account has its name.
pub(crate) fn identity(namespace: &str, pod: &Site) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{}", pod.name)
}

/// The tunnel port of a pod.
pub(crate) fn tunnel(pod: &Site) -> SocketAddr {
    (pod.addresses.v4, ambit_core::ports::INBOUND_HBONE).into()
}

/// An AuthorizationPolicy for the pod with the label `app: POD`; `rules` is the YAML of `spec.rules`, in flow style.
pub(crate) fn policy(namespace: &str, name: &str, pod: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec:\n  selector: {{ matchLabels: {{ app: {pod} }} }}\n  action: {action}\n  rules: {rules}\n"
    )
}

/// A PeerAuthentication for a whole namespace.
pub(crate) fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: default, namespace: {namespace} }}\n\
         spec: {{ mtls: {{ mode: {mode} }} }}\n"
    )
}
