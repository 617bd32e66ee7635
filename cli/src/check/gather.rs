//! Reads the facts that the checks are judged from. Reads only, each read with a deadline, all at once where they do not
//! need each other.
//!
//! The only file of the checks that knows Kubernetes.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures_util::future::join_all;
use futures_util::join;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as KubeNamespace, Node as KubeNode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{ListParams, ObjectList, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::Value;

use super::facts::{AgentAnswer, AgentSays, Facts, HandledPod, Mesh, Namespace, Node, Read, Right};
use crate::cluster::{Cluster, ClusterError};
use crate::mesh::{self, MeshPod, Program};
use crate::{out, status};

/// Where each agent answers, on its node's localhost only.
const AGENT_PORT: u16 = 15022;
/// Objects in one answer of the API server.
const PAGE: u32 = 500;
/// More pages than a cluster has; ends a list that goes in circles.
const PAGES: usize = 1000;
/// Where Cilium keeps its settings.
const CILIUM: (&str, &str) = ("kube-system", "cilium-config");

/// What an installation needs (true) or these checks and `ambit status` (false): verb, group, resource, and whether it is
/// asked for in the mesh's namespace only.
const RIGHTS: [(bool, &str, &str, &str, bool); 11] = [
    (true, "create", "", "namespaces", false),
    (
        true,
        "create",
        "rbac.authorization.k8s.io",
        "clusterroles",
        false,
    ),
    (
        true,
        "create",
        "rbac.authorization.k8s.io",
        "clusterrolebindings",
        false,
    ),
    (true, "create", "apps", "deployments", true),
    (true, "create", "apps", "daemonsets", true),
    (true, "create", "", "serviceaccounts", true),
    (false, "list", "", "nodes", false),
    (false, "list", "", "namespaces", false),
    (false, "list", "", "pods", true),
    (false, "get", "", "pods/portforward", true),
    (false, "create", "", "pods/portforward", true),
];

/// Reads everything. What cannot be read is a fact too.
pub(super) async fn facts(cluster: &Cluster) -> Facts {
    let client = cluster.client();
    let version = said(cluster.call(client.apiserver_version()).await);
    let mut facts = Facts {
        url: cluster.url().to_owned(),
        namespace: cluster.namespace().to_owned(),
        version: version.map(|version| version.git_version),
        rights: Vec::new(),
        nodes: Ok(Vec::new()),
        namespaces: Ok(Vec::new()),
        kinds: Ok(Vec::new()),
        daemonsets: Ok(Vec::new()),
        cilium: None,
        mesh: None,
    };
    // Nothing else would answer either, each after its deadline.
    if facts.version.is_err() {
        return facts;
    }
    let (rights, nodes, namespaces, kinds, daemonsets, cilium, mesh) = join!(
        rights(cluster),
        objects::<KubeNode, _>(cluster, node),
        metadata::<KubeNamespace, _>(cluster, namespace),
        metadata::<CustomResourceDefinition, _>(cluster, |meta| meta.name.unwrap_or_default()),
        metadata::<DaemonSet, _>(cluster, place),
        cilium(cluster),
        mesh(cluster),
    );
    facts.rights = rights;
    facts.nodes = nodes;
    facts.namespaces = namespaces;
    facts.kinds = kinds;
    facts.daemonsets = daemonsets;
    facts.cilium = cilium;
    facts.mesh = mesh;
    facts
}

async fn rights(cluster: &Cluster) -> Vec<Right> {
    join_all(RIGHTS.iter().map(|right| may(cluster, *right))).await
}

async fn may(
    cluster: &Cluster,
    (to_install, verb, group, resource, inside): (bool, &str, &str, &str, bool),
) -> Right {
    let (kind, subresource) = match resource.split_once('/') {
        Some((kind, part)) => (kind, Some(part.to_owned())),
        None => (resource, None),
    };
    let namespace = inside.then(|| cluster.namespace().to_owned());
    let dotted = if group.is_empty() { "" } else { "." };
    let place = namespace.as_ref().map(|name| format!(" in {name}"));
    let what = format!(
        "{verb} {resource}{dotted}{group}{}",
        place.unwrap_or_default()
    );
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(kind.to_owned()),
                subresource,
                namespace,
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client());
    let parameters = PostParams::default();
    let answer = said(cluster.call(reviews.create(&parameters, &review)).await);
    Right {
        what,
        to_install,
        allowed: answer.map(|review| review.status.is_some_and(|status| status.allowed)),
    }
}

/// All objects of a kind that the whole cluster has.
async fn objects<K, T>(cluster: &Cluster, read: fn(K) -> T) -> Read<Vec<T>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(cluster.client());
    let api = &api;
    let list = |page: ListParams| async move { api.list(&page).await };
    let all = pages(cluster, list).await?;
    Ok(all.into_iter().map(read).collect())
}

/// The same without what stands below `metadata`.
async fn metadata<K, T>(cluster: &Cluster, read: fn(ObjectMeta) -> T) -> Read<Vec<T>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(cluster.client());
    let api = &api;
    let list = |page: ListParams| async move { api.list_metadata(&page).await };
    let all = pages(cluster, list).await?;
    Ok(all.into_iter().map(|one| read(one.metadata)).collect())
}

async fn pages<T, F>(cluster: &Cluster, list: impl Fn(ListParams) -> F) -> Read<Vec<T>>
where
    T: Clone,
    F: Future<Output = Result<ObjectList<T>, kube::Error>>,
{
    let mut all = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    for _page in 0..PAGES {
        let list = said(cluster.call(list(page.clone())).await)?;
        all.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    Ok(all)
}

fn node(node: KubeNode) -> Node {
    let name = node.name_any();
    let status = node.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let says = status.node_info.unwrap_or_default();
    Node {
        name,
        os: says.operating_system,
        architecture: says.architecture,
        kernel: says.kernel_version,
        runtime: says.container_runtime_version,
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
    }
}

fn namespace(meta: ObjectMeta) -> Namespace {
    Namespace {
        name: meta.name.unwrap_or_default(),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
    }
}

fn place(meta: ObjectMeta) -> String {
    let namespace = meta.namespace.unwrap_or_default();
    format!("{namespace}/{}", meta.name.unwrap_or_default())
}

async fn cilium(cluster: &Cluster) -> Option<BTreeMap<String, String>> {
    let (namespace, name) = CILIUM;
    let api: Api<ConfigMap> = Api::namespaced(cluster.client(), namespace);
    // Who may not read it learns of Cilium from the agents' checks of the chain.
    let map = cluster.call(api.get_opt(name)).await.ok().flatten()?;
    map.data
}

/// The installed mesh; none where nothing of it is there.
async fn mesh(cluster: &Cluster) -> Option<Mesh> {
    let (pods, desired) = join!(cluster.mesh_pods(), desired(cluster));
    let pods = match said(pods) {
        Ok(pods) => pods,
        Err(why) => {
            return Some(Mesh {
                desired,
                pods: Err(why),
                status: None,
                agents: Vec::new(),
            });
        }
    };
    if pods.is_empty() && desired.is_empty() {
        return None;
    }
    let agents = pods
        .iter()
        .filter(|pod| pod.program == Program::Agent && !pod.deleting && pod.ready);
    let (status, agents) = join!(
        status::of_cluster(cluster, &pods),
        join_all(agents.map(|pod| agent(cluster, pod)))
    );
    Some(Mesh {
        desired,
        pods: Ok(pods),
        status,
        agents,
    })
}

/// How many pods of each program there should be, as far as that may be read.
async fn desired(cluster: &Cluster) -> Vec<(Program, usize)> {
    let ours = ListParams::default().labels(mesh::SELECTOR);
    let deployments: Api<Deployment> = Api::namespaced(cluster.client(), cluster.namespace());
    let daemonsets: Api<DaemonSet> = Api::namespaced(cluster.client(), cluster.namespace());
    let (deployments, daemonsets) = join!(
        cluster.call(deployments.list(&ours)),
        cluster.call(daemonsets.list(&ours))
    );
    let mut desired = Vec::new();
    for one in deployments.map(|list| list.items).unwrap_or_default() {
        let spec = one.spec.unwrap_or_default();
        let labels = spec.template.metadata.and_then(|meta| meta.labels);
        desired.extend(number(labels, spec.replicas.unwrap_or(1)));
    }
    for one in daemonsets.map(|list| list.items).unwrap_or_default() {
        let wanted = one
            .status
            .map_or(0, |status| status.desired_number_scheduled);
        let spec = one.spec.unwrap_or_default();
        let labels = spec.template.metadata.and_then(|meta| meta.labels);
        desired.extend(number(labels, wanted));
    }
    desired
}

fn number(labels: Option<BTreeMap<String, String>>, number: i32) -> Option<(Program, usize)> {
    let program = Program::of(&labels?)?;
    Some((program, usize::try_from(number).unwrap_or(0)))
}

async fn agent(cluster: &Cluster, pod: &MeshPod) -> AgentAnswer {
    let says = async {
        let checks = said(cluster.ask(&pod.name, AGENT_PORT, "/checks").await)?;
        let checks = serde_json::from_slice(&checks).map_err(|error| error.to_string())?;
        let pods = said(cluster.ask(&pod.name, AGENT_PORT, "/pods").await)?;
        let pods: Value = serde_json::from_slice(&pods).map_err(|error| error.to_string())?;
        let pods = pods
            .as_array()
            .map(|pods| pods.iter().map(handled).collect());
        Ok(AgentSays {
            checks,
            pods: pods.unwrap_or_default(),
        })
    };
    AgentAnswer {
        pod: pod.name.clone(),
        node: pod.node.clone(),
        says: says.await,
    }
}

fn handled(pod: &Value) -> HandledPod {
    let text = |key: &str| pod.get(key).and_then(Value::as_str).unwrap_or_default();
    HandledPod {
        namespace: text("namespace").to_owned(),
        name: text("name").to_owned(),
        state: text("state").to_owned(),
        why: text("why").to_owned(),
    }
}

/// An answer, or in one line why there is none.
fn said<T>(answer: Result<T, ClusterError>) -> Read<T> {
    answer.map_err(|error| out::with_causes(&error))
}
