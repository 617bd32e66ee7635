//! Ports of a pod at which the node's kubelet knocks by itself: the only ones that are open to it around the mesh.
//!
//! Called by the Kubernetes source of pods; pure. Probes by command do not use the network; one that names a host goes there
//! and not to the pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The ports of all probes and of the hooks at start and stop that are done by HTTP.
pub fn ports(pod: &PodSpec) -> BTreeSet<u16> {
    let first = pod.init_containers.iter().flatten();
    let containers = first.chain(&pod.containers);
    containers.flat_map(of_container).collect()
}

fn of_container(container: &Container) -> impl Iterator<Item = u16> {
    let probes = [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ];
    let hooks = container.lifecycle.iter();
    let hooks = hooks.flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    let of_probes = probes
        .into_iter()
        .flatten()
        .filter_map(|probe| of_probe(container, probe));
    let of_hooks = hooks.flatten().filter_map(|hook| of_hook(container, hook));
    of_probes.chain(of_hooks)
}

fn of_probe(container: &Container, probe: &Probe) -> Option<u16> {
    if let Some(http) = &probe.http_get {
        return number(container, &http.port).filter(|_| is_pod(http.host.as_deref()));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return number(container, &tcp.port).filter(|_| is_pod(tcp.host.as_deref()));
    }
    u16::try_from(probe.grpc.as_ref()?.port)
        .ok()
        .filter(|port| *port > 0)
}

fn of_hook(container: &Container, hook: &LifecycleHandler) -> Option<u16> {
    let http = hook.http_get.as_ref()?;
    number(container, &http.port).filter(|_| is_pod(http.host.as_deref()))
}

fn is_pod(host: Option<&str>) -> bool {
    host.is_none_or(str::is_empty)
}

/// The port's number; a name is one of the container's own ports.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            // kubelet takes a number in quotes as well.
            named.map_or_else(|| name.parse().ok(), |port| Some(port.container_port))?
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ports_of(container: &Value) -> Vec<u16> {
        let pod = json!({ "containers": [container] });
        let pod: PodSpec = serde_json::from_value(pod).unwrap();
        ports(&pod).into_iter().collect()
    }

    #[test]
    fn every_kind_of_probe_has_its_port() {
        for (probe, port) in [
            (json!({ "httpGet": { "port": 8080 } }), &[8080][..]),
            (
                json!({ "httpGet": { "port": "web", "path": "/ready" } }),
                &[9090],
            ),
            (json!({ "httpGet": { "port": "8081" } }), &[8081]),
            (json!({ "tcpSocket": { "port": 5432 } }), &[5432]),
            (json!({ "grpc": { "port": 50051 } }), &[50051]),
            (json!({ "exec": { "command": ["true"] } }), &[]),
            (
                json!({ "httpGet": { "port": 8080, "host": "10.0.0.1" } }),
                &[],
            ),
            (
                json!({ "tcpSocket": { "port": 80, "host": "example.org" } }),
                &[],
            ),
            (json!({ "httpGet": { "port": "unknown" } }), &[]),
            (json!({ "httpGet": { "port": 0 } }), &[]),
            (json!({ "tcpSocket": { "port": 70000 } }), &[]),
            (json!({ "grpc": { "port": -1 } }), &[]),
        ] {
            for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let container = json!({
                    "name": "app",
                    "ports": [{ "name": "web", "containerPort": 9090 }],
                    kind: probe,
                });
                assert_eq!(ports_of(&container), port, "{kind}: {probe}");
            }
        }
    }

    #[test]
    fn hooks_and_sidecars_count() {
        let hooks = json!({
            "name": "app",
            "lifecycle": {
                "postStart": { "httpGet": { "port": 81 } },
                "preStop": { "httpGet": { "port": 82 } },
            },
        });
        assert_eq!(ports_of(&hooks), [81, 82]);
        let pod = json!({
            "initContainers": [{ "name": "side", "restartPolicy": "Always", "startupProbe": { "tcpSocket": { "port": 7 } } }],
            "containers": [{ "name": "app", "livenessProbe": { "tcpSocket": { "port": 8 } } }],
        });
        let pod: PodSpec = serde_json::from_value(pod).unwrap();
        assert_eq!(ports(&pod), BTreeSet::from([7, 8]));
    }
}
