//! The CNI plugin: each command asks the node agent, or passes what the mesh needs through without asking.
//!
//! Called by `bin/ambit-cni.rs`. Chained after the plugins that make the network; what they answered is repeated byte for
//! byte. A pod of which nobody can say whether it is in the mesh waits: it is never started outside by mistake.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ambit_core::enrollment::SYSTEM_NAMESPACES;
use serde::Serialize;

use crate::socket::{self, AskError, Command, Patience, Request};
use crate::spec::{Attachment, Code, Failure, Invocation, NetConf, Pod, VERSIONS};

/// ADD waits for the agent, which itself waits for the API server and for ztunnel. An agent that is being exchanged is back
/// within seconds; kubelet would try again only after ten.
const ADD: Patience = Patience {
    absent: Duration::from_secs(3),
    whole: Duration::from_secs(15),
};
/// For CHECK the agent only looks.
const CHECK: Patience = Patience {
    absent: Duration::ZERO,
    whole: Duration::from_secs(5),
};
/// DEL goes on without the agent.
const DEL: Patience = Patience {
    absent: Duration::ZERO,
    whole: Duration::from_secs(2),
};
/// Most that is read from standard input. A configuration has a few KiB; GC lists a hundred bytes for each sandbox.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

/// What the program prints, and whether the command has succeeded.
#[derive(Debug)]
pub struct Output {
    /// For standard output: a result, an error, or nothing.
    pub text: String,
    /// Exit code 0.
    pub success: bool,
}

/// Carries out the command that the environment names, with the configuration that `stdin` holds.
pub fn run(env: &BTreeMap<String, String>, stdin: impl Read) -> Output {
    let mut input = Vec::new();
    let done = match stdin.take(MAX_INPUT).read_to_end(&mut input) {
        Ok(_) => Invocation::read(env, &input).and_then(carry_out),
        Err(error) => Err(Failure::new(
            Code::Io,
            "the network configuration cannot be read from standard input",
            error.to_string(),
        )),
    };
    match done {
        Ok(text) => Output {
            text,
            success: true,
        },
        Err(failure) => Output {
            text: print(&Error {
                cni_version: spoken(&input),
                failure: &failure,
            }),
            success: false,
        },
    }
}

fn carry_out(invocation: Invocation) -> Result<String, Failure> {
    match invocation {
        Invocation::Version(asked) => Ok(print(&Versions {
            cni_version: &asked,
            supported_versions: &VERSIONS,
        })),
        Invocation::Add(conf, attachment) => add(&conf, &attachment),
        Invocation::Check(conf, attachment) => check(&conf, &attachment).map(|()| String::new()),
        Invocation::Del(conf, attachment) => {
            del(&conf, &attachment);
            Ok(String::new())
        }
        // Nothing of a sandbox is kept outside of it but what the agent remembers, and that follows the API server.
        Invocation::Gc(_) => Ok(String::new()),
        // Without the agent pods of the mesh cannot be added, but those that the mesh itself needs can. To a runtime that is
        // not ready kubelet gives no pods at all: ztunnel would wait for itself.
        Invocation::Status(_) => Ok(String::new()),
    }
}

fn add(conf: &NetConf, attachment: &Attachment) -> Result<String, Failure> {
    let Some(result) = &conf.prev_result else {
        return Err(Failure::new(
            Code::InvalidConfig,
            "ambit-cni has no network to work on: there is no prevResult",
            "it must stand in a conflist, after the plugin that makes the network",
        ));
    };
    let pod = pod(attachment)?;
    if !passes(conf, pod) {
        ask(conf, Command::Add, attachment, pod, ADD)?;
    }
    Ok(result.get().to_owned())
}

fn check(conf: &NetConf, attachment: &Attachment) -> Result<(), Failure> {
    let pod = pod(attachment)?;
    if passes(conf, pod) {
        return Ok(());
    }
    ask(conf, Command::Check, attachment, pod, CHECK)
}

/// Never fails: what the agent does not hear now, the API server tells it later (CNI 1.1 §DEL, best effort).
fn del(conf: &NetConf, attachment: &Attachment) {
    let pod = attachment.pod.as_ref().filter(|pod| !passes(conf, pod));
    if let Some(pod) = pod {
        drop(ask(conf, Command::Del, attachment, pod, DEL));
    }
}

/// A container of which nobody says which pod it belongs to may belong to one of the mesh.
fn pod(attachment: &Attachment) -> Result<&Pod, Failure> {
    attachment.pod.as_ref().ok_or_else(|| {
        Failure::new(
            Code::Environment,
            "missing or invalid: CNI_ARGS",
            "K8S_POD_NAMESPACE and K8S_POD_NAME are not in it, so nobody can say whether this pod is in the mesh; \
             containers outside of Kubernetes need a network of their own",
        )
    })
}

/// Is this a pod that never joins, so that nobody needs to be asked?
fn passes(conf: &NetConf, pod: &Pod) -> bool {
    let excluded = &conf.exclude_namespaces;
    SYSTEM_NAMESPACES.contains(&pod.namespace.as_str()) || excluded.contains(&pod.namespace)
}

fn ask(
    conf: &NetConf,
    command: Command,
    attachment: &Attachment,
    pod: &Pod,
    patience: Patience,
) -> Result<(), Failure> {
    let request = Request {
        command,
        container_id: attachment.container_id.clone(),
        netns: attachment.netns.clone(),
        ifname: attachment.ifname.clone(),
        pod_namespace: pod.namespace.clone(),
        pod_name: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        addresses: conf.addresses()?,
    };
    let path = conf.socket.as_deref();
    let path = path.unwrap_or(Path::new(socket::DEFAULT_PATH));
    let answer = socket::ask(path, &request, patience);
    answer.map_err(|error| no_answer(path, pod, &error))?
}

fn no_answer(path: &Path, pod: &Pod, error: &AskError) -> Failure {
    Failure::new(
        Code::TryAgainLater,
        format!(
            "the node agent of Ambit gives no answer for pod {}/{}",
            pod.namespace, pod.name
        ),
        format!(
            "{}: {error}. A pod starts only once the agent has said whether it is in the mesh: see that the agent's pod in \
             ambit-system runs on this node",
            path.display()
        ),
    )
}

/// §VERSION Success.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    cni_version: &'a str,
    supported_versions: &'a [&'a str],
}

/// §Error.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Error<'a> {
    cni_version: String,
    #[serde(flatten)]
    failure: &'a Failure,
}

/// The version in which an error is told: the runtime's, or our newest where it cannot be read.
fn spoken(input: &[u8]) -> String {
    let said: Option<serde_json::Value> = serde_json::from_slice(input).ok();
    let said = said.as_ref().and_then(|conf| conf.get("cniVersion"));
    let said = said.and_then(serde_json::Value::as_str);
    let known = said.filter(|version| VERSIONS.contains(version));
    known
        .or(VERSIONS.last().copied())
        .unwrap_or_default()
        .to_owned()
}

/// Strings, numbers and lists always print.
fn print(document: &impl Serialize) -> String {
    serde_json::to_string(document).unwrap_or_default()
}

#[cfg(test)]
mod tests;
