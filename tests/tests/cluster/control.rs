//! The control plane in trouble: no controller, no API server, no right to read. Traffic goes on, nothing fails open, and what
//! is wrong is said.

use serde_json::{Value, json};

use tests::app::{Manner, Server, ask, refused};
use tests::cluster::{Cluster, Machine, NODES, PATIENCE, Pod, SYSTEM, Space};
use tests::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use tests::netns::Site;
use tests::poll;

use crate::Claim;
use crate::services::strict;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "traffic_and_policies_go_on_while_there_is_no_controller",
        no_controller,
    ),
    (
        "an_api_server_that_goes_away_stops_neither_traffic_nor_controllers",
        api_server_goes_away,
    ),
    (
        "controllers_that_start_without_an_api_server_wait_for_it",
        api_server_away_at_the_start,
    ),
    (
        "a_controller_that_may_not_read_pods_says_so_and_serves_nothing",
        may_not_read_pods,
    ),
];

/// A client and a server in the mesh on two nodes, and a stranger outside who is refused.
struct Mesh {
    space: Space,
    _outside: Space,
    client: Site,
    stranger: Site,
    app: Server,
}

impl Mesh {
    /// Alone in the cluster; the server answers those of the mesh only.
    fn new(claim: &str) -> Outcome<Self> {
        let space = Space::alone(claim)?;
        space.join()?;
        let outside = space.beside("outside")?;
        strict(&space)?;
        let server = space.pod("server", NODES[0])?.site()?;
        let client = space.pod("client", NODES[1])?.site()?;
        let stranger = outside.pod("stranger", NODES[1])?.site()?;
        let app = Server::start(&server, 8080, Manner::Whoami)?;
        poll::until_ok(PATIENCE, || refused(&stranger, app.v4(), b""))?;
        let mesh = Self {
            space,
            _outside: outside,
            client,
            stranger,
            app,
        };
        poll::until_ok(PATIENCE, || mesh.holds())?;
        Ok(mesh)
    }

    /// The client is answered over both families, and the stranger is not.
    fn holds(&self) -> Outcome {
        for to in [self.app.v4(), self.app.v6()] {
            let answer = ask(&self.client, to, b"")?;
            ensure(answer.contains("you are"), format_args!("{to}: `{answer}`"))?;
            let before = self.app.visits().len();
            refused(&self.stranger, to, b"")?;
            self.app.untouched_since(before)?;
        }
        Ok(())
    }

    /// A change arrives: a Service made now leads to the server.
    fn takes_changes(&self, name: &str) -> Outcome {
        let service = self
            .space
            .service(name, "server", &[("app", 80, json!(8080))])?;
        let to = (service.addresses.v4, 80).into();
        poll::until_ok(PATIENCE, || {
            let answer = ask(&self.client, to, b"")?;
            ensure(answer.contains("you are"), answer)
        })
    }
}

/// Puts right what a test takes away, however the test ends.
struct Undo<F: FnMut() -> Outcome>(F);

impl<F: FnMut() -> Outcome> Drop for Undo<F> {
    fn drop(&mut self) {
        if let Err(cause) = (self.0)() {
            eprintln!("not put right: {cause}");
        }
    }
}

fn no_controller() -> Outcome {
    let mesh = Mesh::new("uncontrolled")?;
    let cluster = mesh.space.cluster;
    let scale = |replicas: u8| {
        let replicas = format!("--replicas={replicas}");
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "scale",
            "deployment/ambit-controller",
            &replicas,
        ])
    };
    {
        let _back = Undo(|| {
            scale(2)?;
            cluster.mesh_ready()
        });
        scale(0)?;
        let gone = [
            "-n",
            SYSTEM,
            "wait",
            "--for=delete",
            "pod",
            "-l",
            "app.kubernetes.io/component=controller",
            "--timeout=60s",
        ];
        cluster.kubectl(&gone)?;
        for _again in 0..5 {
            mesh.holds()?;
        }
    }
    mesh.takes_changes("after")
}

fn api_server_goes_away() -> Outcome {
    let mesh = Mesh::new("apiless")?;
    let cluster = mesh.space.cluster;
    let before = restarts(cluster)?;
    {
        let _back = Undo(|| api_server(cluster, "start"));
        api_server(cluster, "stop")?;
        for _again in 0..5 {
            mesh.holds()?;
        }
    }
    mesh.takes_changes("after")?;
    ensure_eq(restarts(cluster)?, before, "restarts of the controllers")?;
    cluster.mesh_ready()
}

fn api_server_away_at_the_start() -> Outcome {
    let mesh = Mesh::new("late")?;
    let cluster = mesh.space.cluster;
    let controller = cluster
        .mesh_pod_on("controller", NODES[0])
        .or_else(|_| cluster.mesh_pod_on("controller", NODES[1]))?;
    let machine = cluster.machine(&controller.node);
    {
        let _back = Undo(|| api_server(cluster, "start"));
        api_server(cluster, "stop")?;
        end(&machine, "controller")?;
        let waits = || {
            machine.run(&[
                "sh",
                "-c",
                &format!(
                    "tail -n 50 /var/log/pods/{SYSTEM}_{}_*/controller/*.log",
                    controller.name
                ),
            ])
        };
        poll::until_ok(PATIENCE, || {
            let said = waits()?;
            ensure(said.contains("cannot be read yet"), said)
        })?;
        for _again in 0..3 {
            mesh.holds()?;
        }
    }
    cluster.mesh_ready()?;
    mesh.takes_changes("after")
}

/// Ends the processes of a program of the mesh on a node; kubelet starts it again by itself.
fn end(machine: &Machine, program: &str) -> Outcome {
    for process in processes(machine, program)?.split_whitespace() {
        machine.run(&["kill", process])?;
    }
    Ok(())
}

/// The processes of a program of the mesh on a node, as numbers of the node.
fn processes(machine: &Machine, program: &str) -> Outcome<String> {
    let find = format!(
        r#"for exe in /proc/[0-9]*/exe; do case $(readlink "$exe") in */usr/bin/{program}) exe=${{exe#/proc/}}; echo "${{exe%/exe}}";; esac; done"#
    );
    machine.run(&["sh", "-c", &find])
}

/// Stops or starts the API server; a started one answers before this returns.
fn api_server(cluster: &Cluster, verb: &str) -> Outcome {
    cluster.script("component", &[verb, "apiserver"])?;
    if verb == "start" {
        poll::until_ok(PATIENCE, || cluster.kubectl(&["get", "--raw", "/readyz"]))?;
    }
    Ok(())
}

/// How often each controller's container was started again.
fn restarts(cluster: &'static Cluster) -> Outcome<Vec<(String, u64)>> {
    let pods = cluster.mesh_pods("controller")?;
    let count = |pod: &Pod| {
        let count = pod
            .object()
            .pointer("/status/containerStatuses/0/restartCount");
        Some((pod.name.clone(), count.and_then(Value::as_u64)?))
    };
    let counts: Option<Vec<_>> = pods.iter().map(count).collect();
    counts.context("no restart counts")
}

fn may_not_read_pods() -> Outcome {
    let space = Space::new("forbidden")?;
    let name = format!("controller-{}", space.name);
    let role = |resources: &[&str]| roles(&space, &name, resources);
    let all_but_pods = ["namespaces", "nodes", "serviceaccounts", "services"];
    space.cluster.apply(&role(&all_but_pods)?)?;
    // The mesh has told its root to this namespace too; without the Secret the controller would rightly not start.
    let root = space.cluster.read(&["-n", SYSTEM, "secret", "ambit-ca"])?;
    let root = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ambit-ca"}, "data": root.get("data")});
    space.apply(&root.to_string())?;
    let image = image_of_controller(space.cluster)?;
    let limited = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "limited"}, "spec": {
    "containers": [{
        "name": "controller", "image": image, "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "AMBIT_NAMESPACE", "value": space.name}],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15014}, "periodSeconds": 1},
    }]}});
    space.apply(&limited.to_string())?;
    let logs = || space.kubectl(&["logs", "limited"]);
    let said = poll::until_ok(PATIENCE, || {
        let said = logs()?;
        ensure(said.contains("may not list pods"), said.as_str())?;
        Ok::<_, Failure>(said)
    })?;
    ensure(
        said.contains("ClusterRole"),
        format_args!("it does not say what is missing: {said}"),
    )?;
    ensure(!said.contains("the sources have been read"), said)?;
    let ready = |pod: &Pod| {
        let conditions = pod
            .object()
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|c| {
            c.get("type") == Some(&"Ready".into()) && c.get("status") == Some(&"True".into())
        })
    };
    ensure(
        !ready(&space.found("limited")?),
        "it is ready without having read the pods",
    )?;
    space.cluster.apply(&role(&[
        "namespaces",
        "nodes",
        "serviceaccounts",
        "services",
        "pods",
    ])?)?;
    space.ready("limited").map(drop)
}

/// What a controller of its own may do: everything in its namespace, and reading these in the cluster. Goes with the namespace.
fn roles(space: &Space, name: &str, resources: &[&str]) -> Outcome<String> {
    let namespace = space.cluster.read(&["namespace", &space.name])?;
    let uid = namespace.pointer("/metadata/uid").context("no uid")?;
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": space.name, "uid": uid}]);
    let subjects = json!([{"kind": "ServiceAccount", "name": "default", "namespace": space.name}]);
    let read = |group: &str, resources: Value| json!({"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]});
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    let bind = |kind: &str| json!({"apiGroup": group, "kind": kind, "name": name});
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name, "ownerReferences": owner}, "rules": [
            read("", json!(resources)),
            read("discovery.k8s.io", json!(["endpointslices"])),
            read("security.istio.io", json!(["authorizationpolicies", "peerauthentications"])),
        ]},
        {"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name, "ownerReferences": owner},
            "roleRef": bind("ClusterRole"), "subjects": subjects},
        {"apiVersion": version, "kind": "Role", "metadata": {"name": name, "namespace": space.name}, "rules": [
            {"apiGroups": ["", "coordination.k8s.io"], "resources": ["secrets", "configmaps", "leases"], "verbs": ["*"]}]},
        {"apiVersion": version, "kind": "RoleBinding", "metadata": {"name": name, "namespace": space.name},
            "roleRef": bind("Role"), "subjects": subjects},
    ]}).to_string())
}

fn image_of_controller(cluster: &Cluster) -> Outcome<String> {
    let deployment = cluster.read(&["-n", SYSTEM, "deployment", "ambit-controller"])?;
    let image = deployment
        .pointer("/spec/template/spec/containers/0/image")
        .and_then(Value::as_str);
    image.map(str::to_owned).context("no image")
}
