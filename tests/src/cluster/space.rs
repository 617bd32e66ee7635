//! What one test owns in the cluster: a namespace that goes with it, and pods in it.
//!
//! Called by tests. A pod can be used from outside (`kubectl exec`, `logs`) and, as a [`Site`], from inside its network namespace with
//! the sockets of `app.rs`, which is where an app of the pod would stand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use ambit_core::enrollment::{REDIRECTION, REDIRECTION_ENABLED};

use crate::failure::{Context as _, Failure, Outcome, ensure};
use crate::netns::Site;
use crate::poll;

use super::machine::both;
use super::{Cluster, IMAGE, PATIENCE, Turn};

/// Annotation (and label) by which a namespace or pod joins, with its value.
pub const JOINS: &str = "ambit.mesh/dataplane-mode=ambient";

/// A namespace of a test. It is deleted when the test ends, however it ends.
#[derive(Debug)]
pub struct Space {
    /// The cluster it is in.
    pub cluster: &'static Cluster,
    /// Its name in Kubernetes.
    pub name: String,
    turn: Option<Turn>,
}

/// A pod that runs, or ran.
#[derive(Clone, Debug)]
pub struct Pod {
    cluster: &'static Cluster,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its unique id.
    pub uid: String,
    /// The node it is on.
    pub node: String,
    object: Value,
}

impl Space {
    /// A namespace outside the mesh, in a cluster with the mesh, used beside other tests.
    ///
    /// # Errors
    /// When the cluster or the mesh is not there.
    pub fn new(claim: &str) -> Outcome<Self> {
        let cluster = Cluster::find()?;
        Self::on(cluster, claim, cluster.share())
    }

    /// A namespace that has joined the mesh.
    ///
    /// # Errors
    /// When the cluster or the mesh is not there.
    pub fn joined(claim: &str) -> Outcome<Self> {
        let space = Self::new(claim)?;
        space.join()?;
        Ok(space)
    }

    /// A namespace outside the mesh, in a cluster that no other test uses meanwhile.
    ///
    /// # Errors
    /// When the cluster or the mesh is not there.
    pub fn alone(claim: &str) -> Outcome<Self> {
        let cluster = Cluster::find()?;
        Self::on(cluster, claim, cluster.alone())
    }

    /// A namespace in the cluster as it is, with or without a mesh, used beside other tests.
    ///
    /// # Errors
    /// When the cluster is not there.
    pub fn without_mesh(claim: &str) -> Outcome<Self> {
        let cluster = Cluster::find()?;
        let turn = cluster.share();
        Self::make(cluster, &named(claim), Some(turn))
    }

    /// As [`Space::without_mesh`], while no other test uses the cluster.
    ///
    /// # Errors
    /// When the cluster is not there.
    pub fn without_mesh_alone(claim: &str) -> Outcome<Self> {
        let cluster = Cluster::find()?;
        let turn = cluster.alone();
        Self::make(cluster, &named(claim), Some(turn))
    }

    /// One more namespace of the same test.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn beside(&self, suffix: &str) -> Outcome<Self> {
        Self::make(self.cluster, &format!("{}-{suffix}", self.name), None)
    }

    fn on(cluster: &'static Cluster, claim: &str, turn: Turn) -> Outcome<Self> {
        cluster.with_mesh()?;
        Self::make(cluster, &named(claim), Some(turn))
    }

    fn make(cluster: &'static Cluster, name: &str, turn: Option<Turn>) -> Outcome<Self> {
        cluster.kubectl(&["create", "namespace", name])?;
        let space = Self {
            cluster,
            name: name.to_owned(),
            turn,
        };
        poll::until_ok(PATIENCE, || {
            space.kubectl(&["get", "serviceaccount", "default"])
        })?;
        Ok(space)
    }

    /// Annotates the namespace, as the documentation says.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn join(&self) -> Outcome {
        let args = ["annotate", "--overwrite", "namespace", &self.name, JOINS];
        self.cluster.kubectl(&args).map(drop)
    }

    /// Takes the annotation away.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn leave(&self) -> Outcome {
        let args = [
            "annotate",
            "namespace",
            &self.name,
            "ambit.mesh/dataplane-mode-",
        ];
        self.cluster.kubectl(&args).map(drop)
    }

    /// `kubectl` in this namespace.
    ///
    /// # Errors
    /// When it fails; shows what it said.
    pub fn kubectl(&self, args: &[&str]) -> Outcome<String> {
        let args: Vec<&str> = ["-n", &self.name].iter().chain(args).copied().collect();
        self.cluster.kubectl(&args)
    }

    /// Applies YAML or JSON in this namespace.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn apply(&self, objects: &str) -> Outcome {
        let args = ["-n", &self.name, "apply", "-f", "-"];
        self.cluster.kubectl_fed(&args, objects).map(drop)
    }

    /// One object of this namespace, as JSON.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn read(&self, args: &[&str]) -> Outcome<Value> {
        let args: Vec<&str> = ["-n", &self.name].iter().chain(args).copied().collect();
        self.cluster.read(&args)
    }

    /// A pod called `name` on a node that does nothing; label `app` and ServiceAccount have its name. Waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn pod(&self, name: &str, node: &str) -> Outcome<Pod> {
        self.pod_like(name, node, |_as_it_is| ())
    }

    /// As [`Space::pod`], with changes to the object before it is created.
    ///
    /// # Errors
    /// When it is refused or does not become ready.
    pub fn pod_like(
        &self,
        name: &str,
        node: &str,
        change: impl FnOnce(&mut Value),
    ) -> Outcome<Pod> {
        self.create(name, node, change)?;
        self.ready(name)
    }

    /// Creates the pod and does not wait for it.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create(&self, name: &str, node: &str, change: impl FnOnce(&mut Value)) -> Outcome {
        let mut pod = pod_object(name, node);
        change(&mut pod);
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.apply(
            &json!({"apiVersion": "v1", "kind": "List", "items": [account, pod]}).to_string(),
        )
    }

    /// Waits until a pod is ready and returns it.
    ///
    /// # Errors
    /// When it does not become ready; shows its events.
    pub fn ready(&self, name: &str) -> Outcome<Pod> {
        let pod = format!("pod/{name}");
        self.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"])
            .or_else(|cause| {
                let events = self.kubectl(&["describe", &pod])?;
                Err(Failure::new(format!("{cause}\n{events}")))
            })?;
        self.found(name)
    }

    /// A pod as it is now.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn found(&self, name: &str) -> Outcome<Pod> {
        Pod::from_object(self.cluster, &self.read(&["pod", name])?)
    }

    /// A Service of both families for the pods with label `app`: (name, port, target port).
    ///
    /// # Errors
    /// When it is refused.
    pub fn service(&self, name: &str, app: &str, ports: &[(&str, u16, Value)]) -> Outcome<Site> {
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
            .collect();
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
            "selector": {"app": app}, "ipFamilyPolicy": "RequireDualStack", "ports": ports}});
        self.apply(&service.to_string())?;
        let seen = self.read(&["service", name])?;
        let addresses = seen.pointer("/spec/clusterIPs").and_then(Value::as_array);
        let addresses = addresses.into_iter().flatten().filter_map(Value::as_str);
        Ok(Site {
            name: name.to_owned(),
            netns: PathBuf::new(),
            addresses: both(addresses).context("the Service's addresses")?,
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        if let Err(cause) = self.cluster.kubectl(&delete) {
            eprintln!("namespace {} stays: {cause}", self.name);
        }
        drop(self.turn.take());
    }
}

impl Pod {
    /// The pod that an object of the API describes.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_object(cluster: &'static Cluster, object: &Value) -> Outcome<Self> {
        let word = |pointer: &str| {
            let found = object.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let name = word("/metadata/name");
        ensure(!name.is_empty(), format_args!("no pod: {object}"))?;
        Ok(Self {
            cluster,
            namespace: word("/metadata/namespace"),
            name,
            uid: word("/metadata/uid"),
            node: word("/spec/nodeName"),
            object: object.clone(),
        })
    }

    /// The object as it was when this value was made.
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// Runs a command in its first container.
    ///
    /// # Errors
    /// When it fails; shows what it said.
    pub fn exec(&self, command: &[&str]) -> Outcome<String> {
        let fixed = ["-n", &self.namespace, "exec", &self.name, "--"];
        let args: Vec<&str> = fixed.iter().chain(command).copied().collect();
        self.cluster.kubectl(&args)
    }

    /// What its first container printed.
    ///
    /// # Errors
    /// When it has not started.
    pub fn logs(&self) -> Outcome<String> {
        self.cluster
            .kubectl(&["-n", &self.namespace, "logs", &self.name])
    }

    /// An annotation of the pod as it is now.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn annotation(&self, key: &str) -> Outcome<Option<String>> {
        let pod = self
            .cluster
            .read(&["-n", &self.namespace, "pod", &self.name])?;
        let annotations = pod.pointer("/metadata/annotations");
        Ok(annotations.and_then(|all| Some(all.get(key)?.as_str()?.to_owned())))
    }

    /// Waits until the agent says that the pod is captured.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_captured(&self, deadline: Duration) -> Outcome {
        self.wait_redirection(deadline, Some(REDIRECTION_ENABLED))
    }

    /// Waits until the agent no longer says that the pod is captured.
    ///
    /// # Errors
    /// When it still does at the deadline.
    pub fn wait_released(&self, deadline: Duration) -> Outcome {
        self.wait_redirection(deadline, None)
    }

    fn wait_redirection(&self, deadline: Duration, wanted: Option<&str>) -> Outcome {
        poll::until_ok(deadline, || {
            let seen = self.annotation(REDIRECTION)?;
            ensure(
                seen.as_deref() == wanted,
                format_args!(
                    "{} has {REDIRECTION}={seen:?}, wanted {wanted:?}",
                    self.name
                ),
            )
        })
    }

    /// Its network namespace and addresses.
    ///
    /// # Errors
    /// When it has no addresses, or its node's runtime does not know it.
    pub fn site(&self) -> Outcome<Site> {
        let addresses = self
            .object
            .pointer("/status/podIPs")
            .and_then(Value::as_array);
        let addresses = addresses.into_iter().flatten();
        let addresses = addresses.filter_map(|address| address.get("ip").and_then(Value::as_str));
        let machine = self.cluster.machine(&self.node);
        let inside = sandbox(
            &machine.path("/var/lib/cni/results")?,
            &self.namespace,
            &self.name,
        )?;
        Ok(Site {
            name: self.name.clone(),
            netns: machine.path(inside.trim_start_matches("/var"))?,
            addresses: both(addresses).context(format_args!("addresses of {}", self.name))?,
        })
    }
}

fn named(claim: &str) -> String {
    format!("{claim}-{:04x}", fastrand::u16(..))
}

/// The network namespace of a pod's newest sandbox, from the results that the container runtime keeps (libcni).
fn sandbox(results: &Path, namespace: &str, name: &str) -> Outcome<String> {
    let mut newest = None;
    for entry in std::fs::read_dir(results).context(results.display())? {
        let path = entry?.path();
        let Ok(bytes) = std::fs::read(&path) else {
            continue; // removed meanwhile
        };
        let result: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let is = |key: &str, value: &str| {
            let pairs = result.get("cniArgs").and_then(Value::as_array);
            let mut pairs = pairs.into_iter().flatten();
            pairs.any(|pair| *pair == json!([key, value]))
        };
        let at = std::fs::metadata(&path)
            .and_then(|metadata| metadata.modified())
            .ok();
        let interfaces = result
            .pointer("/result/interfaces")
            .and_then(Value::as_array);
        let mut interfaces = interfaces.into_iter().flatten();
        let netns = interfaces.find_map(|interface| interface.get("sandbox")?.as_str());
        let ours = is("K8S_POD_NAMESPACE", namespace) && is("K8S_POD_NAME", name);
        if let (true, Some(netns), true) =
            (ours, netns, at > newest.as_ref().and_then(|(at, _)| *at))
        {
            newest = Some((at, netns.to_owned()));
        }
    }
    let found = newest.map(|(_, netns)| netns);
    found.context(format_args!(
        "no sandbox of {namespace}/{name} in {}",
        results.display()
    ))
}

fn pod_object(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "serviceAccountName": name,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": IMAGE,
                "command": ["sh", "-c", "trap exit TERM; while :; do sleep 3600 & wait; done"],
            }],
        },
    })
}
