//! Sets the demonstration up: two nodes, three pods, a web server, the manifests, and the mesh.
//!
//! Called by `acts.rs`. Knows what there is, not what is shown.

use std::path::Path;

use crate::failure::Outcome;
use crate::manifests::{Manifests, PodDocument, documents, namespace, service, service_account};
use crate::netns::{Addresses, Site, World};
use crate::node::{Mesh, Setup, program};
use crate::poll::SOON;
use crate::process::{Launch, Life, Process};

use super::life::WORLD;

/// Kubernetes namespace of the pods.
pub(super) const NAMESPACE: &str = "shop";
/// The Service's port.
pub(super) const SERVICE_PORT: u16 = 80;
/// The web server's own port.
pub(super) const POD_PORT: u16 = 8080;

/// Everything that is there before the first act.
pub(super) struct Scene {
    pub(super) mesh: Mesh,
    pub(super) web: Site,
    pub(super) guest: Site,
    pub(super) orders: Site,
    pub(super) orders_app: Process,
    pub(super) world: World,
}

impl Scene {
    /// Sets up; the namespace has not joined the mesh yet.
    pub(super) fn set(folder: &Path, keep: bool) -> Outcome<Self> {
        let life = if keep { Life::Outlives } else { Life::Tied };
        let mut world = World::new(WORLD, 2)?;
        if keep {
            world.keep();
        }
        let (web, guest, orders) = (
            world.add_pod(0, "web")?,
            world.add_pod(0, "guest")?,
            world.add_pod(1, "orders")?,
        );
        let mut orders_app = Launch::new(
            "orders",
            program("ambit-test-app")?,
            folder.join("logs/orders-app.log"),
        )
        .in_netns(&orders.netns)
        .for_life(life)
        .args(["serve", "web", &POD_PORT.to_string(), "orders"])
        .start()?;
        orders_app.wait_for_line(SOON, |line| line.starts_with("listening"))?;
        write_manifests(
            &Manifests::new(folder.join("manifests"))?,
            [(&web, "node1"), (&guest, "node1"), (&orders, "node2")],
        )?;
        let mesh = Mesh::start(
            &world,
            Setup {
                life,
                ..Setup::new(folder.to_path_buf())
            },
        )?;
        mesh.wait_in_sync()?;
        Ok(Self {
            mesh,
            web,
            guest,
            orders,
            orders_app,
            world,
        })
    }

    /// Addresses of the Service `orders`.
    pub(super) fn service(&self) -> Addresses {
        Addresses::of_service(1)
    }
}

fn write_manifests(manifests: &Manifests, pods: [(&Site, &str); 3]) -> Outcome {
    manifests.put("namespace.yaml", &namespace(NAMESPACE, false))?;
    let accounts = pods
        .iter()
        .map(|(site, _)| service_account(NAMESPACE, &site.name));
    manifests.put("accounts.yaml", &documents(accounts))?;
    let pods = pods.iter().map(|(site, node)| {
        PodDocument {
            namespace: NAMESPACE,
            account: &site.name,
            node,
            site,
        }
        .yaml()
    });
    manifests.put("pods.yaml", &documents(pods))?;
    manifests.put(
        "services.yaml",
        &service(
            NAMESPACE,
            "orders",
            Addresses::of_service(1),
            &[(SERVICE_PORT, POD_PORT)],
        ),
    )
}
