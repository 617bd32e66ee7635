//! What a cluster must have before Ambit can be installed, and afterwards too.
//!
//! Pure: facts go in, checks come out. The numbers are those of docs/requirements.md.

use ambit_core::checks::Check;
use ambit_core::enrollment::{DATAPLANE_MODE, ISTIO_DATAPLANE_MODE, SYSTEM_NAMESPACES};

use super::facts::{Facts, Namespace, Read, Right};
use super::nodes;

/// Oldest Kubernetes: 1.30 has `appArmorProfile`, which the manifests use.
const OLDEST_MINOR: u32 = 30;
/// The CRDs of the policies that Ambit reads.
const POLICY_KINDS: [&str; 2] = [
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
];
/// DaemonSets by which other meshes are known: the end of `namespace/name`, whose it is, and what that means.
const OTHERS: [(&str, &str, &str); 6] = [
    ("/istio-cni-node", "Istio's CNI agent", ISTIO),
    ("/kmesh", "Kmesh", OTHER),
    ("/linkerd-cni", "Linkerd's CNI plugin", OTHER),
    ("/kuma-cni-node", "Kuma's CNI plugin", OTHER),
    ("/consul-connect-injector-cni", "Consul's CNI plugin", OTHER),
    ("/osm-cni", "Open Service Mesh", OTHER),
];
const ISTIO: &str = "where it runs, pods with Istio's label stay Istio's; join others by ambit.mesh/dataplane-mode, \
                     and never one namespace to both";
const OTHER: &str = "a pod belongs to one mesh: join no namespace that is in the other one";

/// All of them. Where the mesh is installed already, the rights to install it are no matter.
pub(super) fn all(facts: &Facts, installed: bool) -> Vec<Check> {
    let api = api_server(&facts.url, &facts.version);
    if facts.version.is_err() {
        return vec![api];
    }
    let mut checks = vec![
        api,
        permissions(&facts.rights, installed),
        nodes::machines(&facts.nodes),
        nodes::runtimes(&facts.nodes),
    ];
    checks.extend(facts.cilium.as_ref().map(nodes::cilium));
    checks.push(other_meshes(&facts.daemonsets));
    checks.push(policy_kinds(&facts.kinds));
    checks.push(settings(&facts.namespaces));
    checks
}

/// Says that the mesh is not there.
pub(super) fn not_installed(facts: &Facts, must: bool) -> Check {
    let found = format!("not installed in namespace {}", facts.namespace);
    let next = "kubectl apply -k deploy/ (docs/install.md); --namespace names another place";
    if must {
        Check::bad("installation", found, next)
    } else {
        Check::note("installation", found, next)
    }
}

fn api_server(url: &str, version: &Read<String>) -> Check {
    const NAME: &str = "api-server";
    let version = match version {
        Ok(version) => version,
        Err(why) => return Check::bad(NAME, why, "nothing else can be checked before it answers"),
    };
    let found = format!("Kubernetes {version} at {url}");
    match minor(version) {
        Some((1, minor)) if minor < OLDEST_MINOR => Check::bad(
            NAME,
            found,
            format!("Ambit needs Kubernetes 1.{OLDEST_MINOR} or later: upgrade the cluster"),
        ),
        Some(_) => Check::good(NAME, found),
        None => Check::note(
            NAME,
            found,
            "this version cannot be read; Ambit is tested with 1.34",
        ),
    }
}

/// Major and minor of `v1.34.4` and of `v1.30.2-gke.1`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.trim_end_matches('+').parse().ok()?;
    Some((major, minor))
}

fn permissions(rights: &[Right], installed: bool) -> Check {
    const NAME: &str = "permissions";
    let matters = |right: &&Right| !(installed && right.to_install);
    let rights: Vec<_> = rights.iter().filter(matters).collect();
    if let Some(why) = rights.iter().find_map(|r| r.allowed.as_ref().err()) {
        let next = "what you may not do shows when it fails";
        return Check::note(NAME, format!("cannot be asked: {why}"), next);
    }
    let missing: Vec<_> = rights.iter().filter(|r| r.allowed == Ok(false)).collect();
    let details = missing.iter().map(|r| format!("you may not {}", r.what));
    let details: Vec<_> = details.collect();
    let purpose = if installed {
        "ask the mesh"
    } else {
        "install Ambit and ask it"
    };
    if missing.is_empty() {
        return Check::good(NAME, format!("you may {purpose}"));
    }
    let found = format!("{} of {} rights are missing", missing.len(), rights.len());
    if missing.iter().any(|right| right.to_install) {
        let next = "install as a cluster administrator, or let one do it";
        Check::bad(NAME, found, next).with(details)
    } else {
        let next =
            "the Role and the ClusterRole ambit-operator grant them (docs/install.md, Rights)";
        Check::bad(NAME, found, next).with(details)
    }
}

fn other_meshes(daemonsets: &Read<Vec<String>>) -> Check {
    const NAME: &str = "other-meshes";
    let daemonsets = match daemonsets {
        Ok(daemonsets) => daemonsets,
        Err(why) => return unread(NAME, why),
    };
    let found: Vec<_> = OTHERS
        .iter()
        .filter_map(|(ending, whose, meaning)| {
            let place = daemonsets.iter().find(|name| name.ends_with(ending))?;
            Some((format!("{whose} ({place}): {meaning}"), *whose))
        })
        .collect();
    if found.is_empty() {
        return Check::good(NAME, "none is known to be here");
    }
    let (details, whose): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let next = "nothing, if you know; docs/join.md says who serves which pod";
    Check::note(NAME, format!("{} is here", whose.join(" and ")), next).with(details)
}

fn policy_kinds(kinds: &Read<Vec<String>>) -> Check {
    const NAME: &str = "policy-kinds";
    let kinds = match kinds {
        Ok(kinds) => kinds,
        Err(why) => return unread(NAME, why),
    };
    let missing: Vec<_> = POLICY_KINDS
        .iter()
        .filter(|kind| !kinds.iter().any(|known| known == *kind))
        .map(|kind| format!("no CustomResourceDefinition {kind}"))
        .collect();
    if missing.is_empty() {
        return Check::good(
            NAME,
            "AuthorizationPolicy and PeerAuthentication can be written",
        );
    }
    let next = "only if you want policies: kubectl create -k deploy/crds-istio; the controller notices them by itself";
    Check::note(NAME, "policies cannot be written yet", next).with(missing)
}

/// Settings of namespaces that do not do what was meant.
fn settings(namespaces: &Read<Vec<Namespace>>) -> Check {
    const NAME: &str = "namespaces";
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return unread(NAME, why),
    };
    let details: Vec<_> = namespaces.iter().flat_map(misread).collect();
    let joined: Vec<_> = namespaces.iter().filter(|n| asks(n)).collect();
    if !details.is_empty() {
        let next = "the values are `ambient` and `none`; docs/join.md";
        let found = "a setting does not do what it seems to";
        return Check::note(NAME, found, next).with(details);
    }
    let names: Vec<_> = joined.iter().map(|n| n.name.as_str()).collect();
    let found = match names.as_slice() {
        [] => "none has joined yet".to_owned(),
        [one] => format!("{one} has joined"),
        several => format!("{} have joined: {}", several.len(), several.join(", ")),
    };
    Check::good(NAME, found)
}

fn misread(namespace: &Namespace) -> Vec<String> {
    let name = &namespace.name;
    let said = [
        (
            "annotation",
            namespace.annotations.get(DATAPLANE_MODE),
            DATAPLANE_MODE,
        ),
        (
            "label",
            namespace.labels.get(DATAPLANE_MODE),
            DATAPLANE_MODE,
        ),
        (
            "label",
            namespace.labels.get(ISTIO_DATAPLANE_MODE),
            ISTIO_DATAPLANE_MODE,
        ),
    ];
    let odd = said.iter().filter_map(|(kind, value, key)| {
        let value = value.filter(|value| !matches!(value.as_str(), "ambient" | "none"))?;
        Some(format!(
            "{name}: its {kind} {key}={value} is no setting and counts as none at all"
        ))
    });
    let mut odd: Vec<_> = odd.collect();
    if namespace.annotations.contains_key(ISTIO_DATAPLANE_MODE) {
        odd.push(format!(
            "{name}: {ISTIO_DATAPLANE_MODE} counts as a label only; as an annotation use {DATAPLANE_MODE}"
        ));
    }
    if asks(namespace) && SYSTEM_NAMESPACES.contains(&name.as_str()) {
        odd.push(format!(
            "{name}: it asks to join, and pods of this namespace never do"
        ));
    }
    if asks(namespace)
        && namespace
            .labels
            .get("istio-injection")
            .is_some_and(|v| v == "enabled")
    {
        odd.push(format!("{name}: pods that Istio gives a sidecar (istio-injection=enabled) stay out of this mesh"));
    }
    odd
}

/// Whether a namespace asks for its pods to join.
pub(super) fn asks(namespace: &Namespace) -> bool {
    let said = [
        namespace.annotations.get(DATAPLANE_MODE),
        namespace.labels.get(DATAPLANE_MODE),
        namespace.labels.get(ISTIO_DATAPLANE_MODE),
    ];
    let says = |word: &str| said.iter().flatten().any(|value| value.as_str() == word);
    says("ambient") && !says("none")
}

fn unread(name: &str, why: &str) -> Check {
    Check::note(name, format!("cannot be looked at: {why}"), "")
}

#[cfg(test)]
mod tests;
