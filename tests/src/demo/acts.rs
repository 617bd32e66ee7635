//! The acts: what is shown, in order, each with the check that makes it true.
//!
//! Called by the worker of `life.rs`. A figure that is not in the recording, log or metric it is said to come from ends
//! the demonstration with an error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::Options;
use super::life::let_signals_through;
use super::link::{HBONE, Request, only_tls, recorded, tunnels};
use super::meter::{Rise, rises};
use super::scene::{NAMESPACE, POD_PORT, SERVICE_PORT, Scene};
use crate::capture::tls::{TLS13, X25519MLKEM768, records};
use crate::command::{run, run_in};
use crate::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use crate::manifests::namespace;
use crate::netns::Site;
use crate::node::{access, program};
use crate::poll;

/// Sets the scene and shows every act.
pub(super) fn play(folder: &Path, options: Options) -> Outcome {
    let_signals_through()?;
    let started = poll::now();
    say(
        "Setting up: a controller on a directory of YAML, two nodes, three pods, all in network namespaces …",
    );
    let scene = Scene::set(folder, options.keep)?;
    println!(
        "  node1: pods web {} and guest {}",
        scene.web.addresses.v4, scene.guest.addresses.v4
    );
    println!(
        "  node2: pod orders {}, behind Service orders {}",
        scene.orders.addresses.v4,
        scene.service().v4
    );
    println!("  manifests: {}", scene.mesh.manifests.folder().display());
    in_clear(&scene)?;
    join(&scene, options)?;
    encrypted(&scene)?;
    let carried = through_the_service(&scene)?;
    identities(&scene, &carried)?;
    metrics(&carried)?;
    refused(&scene)?;
    status(&scene)?;
    println!(
        "\nEverything above was read from recordings, logs and metrics. It took {:.1} s.",
        started.elapsed().as_secs_f64()
    );
    if options.keep {
        how_to_go_on(&scene);
    }
    Ok(())
}

/// The pair before its namespace joins.
fn in_clear(scene: &Scene) -> Outcome {
    say(
        "1. Before the namespace joins the mesh, what pods say to each other passes the link in clear.",
    );
    let request = Request::new(&scene.web, scene.orders.addresses.v4.into(), POD_PORT);
    let seen = recorded(scene, &request)?;
    ensure(
        seen.shows(request.marker.as_bytes()),
        "the marker is not in the recording of the link",
    )?;
    ensure(
        tunnels(&seen).is_empty(),
        "something went to port 15008 already",
    )?;
    println!("  the link shows the marker, readable by anybody, and nothing to port {HBONE}");
    Ok(())
}

/// The namespace joins while its pods run.
fn join(scene: &Scene, options: Options) -> Outcome {
    say(
        "2. The namespace joins: one annotation, and the kernel redirects its running pods to the node's ztunnel.",
    );
    let begun = poll::now();
    scene
        .mesh
        .manifests
        .put("namespace.yaml", &namespace(NAMESPACE, true))?;
    let pods =
        [&scene.web, &scene.guest, &scene.orders].map(|pod| format!("{NAMESPACE}/{}", pod.name));
    scene
        .mesh
        .wait_captured(&pods.each_ref().map(String::as_str))?;
    println!(
        "  ambit.mesh/dataplane-mode: ambient → {} pods captured after {:.2} s",
        pods.len(),
        begun.elapsed().as_secs_f64()
    );
    if options.break_encryption {
        run_in(&scene.web.netns, "nft", ["flush", "ruleset"])?;
        println!("  (as asked by --break encryption, the capture in pod web is removed again)");
    }
    Ok(())
}

/// The same request as in the clear.
fn encrypted(scene: &Scene) -> Outcome {
    say(
        "3. The same request again: the link carries TLS to port 15008 and not one byte of what was sent.",
    );
    let request = Request::new(&scene.web, scene.orders.addresses.v4.into(), POD_PORT);
    let seen = recorded(scene, &request)?;
    only_tls(scene, &seen, &request)?;
    let there = tunnels(&seen)
        .into_iter()
        .find(|stream| stream.to.port() == HBONE)
        .context("no tunnel in the recording")?;
    let back = seen
        .streams()
        .into_iter()
        .find(|s| s.from == there.to && s.to == there.from)
        .context("no answer in the recording")?;
    let hello = records(&back.bytes)?;
    ensure_eq(
        &hello.versions,
        &vec![TLS13],
        "TLS version that the server chose",
    )?;
    let exchange = match hello.groups.as_slice() {
        [X25519MLKEM768] => "X25519MLKEM768, safe against quantum computers",
        other => {
            return Err(Failure::new(format!(
                "key exchange that the server chose: {other:x?}"
            )));
        }
    };
    println!(
        "  {} → {}: TLS 1.3, key exchange {exchange}",
        there.from, there.to
    );
    Ok(())
}

/// One connection that was carried, as the receiving node saw it.
struct Carried {
    source_identity: String,
    destination_identity: String,
    /// What the receiving app says it got and gave, from its own log.
    request_bytes: f64,
    lines: [BTreeMap<String, String>; 2],
    rises: Vec<Rise>,
}

/// A request to the Service's address, which only the mesh can reach.
fn through_the_service(scene: &Scene) -> Outcome<Carried> {
    say(
        "4. A Service: its address leads nowhere without the mesh; ztunnel picks an endpoint on the other node.",
    );
    let before = rises(scene)?;
    let known = |index: usize, direction| access_lines(scene, index, direction).len();
    let lines = [known(0, "outbound"), known(1, "inbound")];
    let request = Request::new(&scene.web, scene.service().v4.into(), SERVICE_PORT);
    let seen = recorded(scene, &request)?;
    only_tls(scene, &seen, &request)?;
    let app = scene.orders_app.log();
    let line = app.lines().last().context("the app's log is empty")?;
    let fields = crate::scrape::log_fields(line);
    let from: SocketAddr = fields.get("from").context(line)?.parse().context(line)?;
    ensure_eq(
        from.ip(),
        scene.web.addresses.v4,
        "the address that the app sees",
    )?;
    println!(
        "  the app on node2 saw the client's own address {}",
        from.ip()
    );
    let line_after = |index: usize, direction, known: usize| {
        poll::until("the access log line", poll::SOON, || {
            access_lines(scene, index, direction).into_iter().nth(known)
        })
    };
    let [outbound, inbound] = [
        line_after(0, "outbound", lines[0])?,
        line_after(1, "inbound", lines[1])?,
    ];
    let identity = |key: &str| {
        inbound
            .get(key)
            .cloned()
            .context(format_args!("no {key} in {inbound:?}"))
    };
    let rises = rises(scene)?
        .into_iter()
        .zip(before)
        .map(|(after, before)| after.since(&before))
        .collect();
    Ok(Carried {
        source_identity: identity("src.identity")?,
        destination_identity: identity("dst.identity")?,
        request_bytes: fields.get("bytes").context(line)?.parse().context(line)?,
        lines: [outbound, inbound],
        rises,
    })
}

/// Who the two sides proved to be.
fn identities(scene: &Scene, carried: &Carried) -> Outcome {
    say(
        "5. Both sides proved who they are by certificates of the mesh (from the access log of node2).",
    );
    let wanted = |pod: &Site| format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{}", pod.name);
    ensure_eq(
        &carried.source_identity,
        &wanted(&scene.web),
        "the client's identity",
    )?;
    ensure_eq(
        &carried.destination_identity,
        &wanted(&scene.orders),
        "the server's identity",
    )?;
    println!(
        "  client {}\n  server {}",
        carried.source_identity, carried.destination_identity
    );
    Ok(())
}

/// The metrics of that one connection.
fn metrics(carried: &Carried) -> Outcome {
    say("6. The nodes' metrics rose by exactly that connection.");
    for (rise, line) in carried.rises.iter().zip(&carried.lines) {
        ensure_eq(
            rise.opened,
            1.0,
            format_args!("connections opened, {}", rise.node),
        )?;
        ensure_eq(
            rise.received,
            carried.request_bytes,
            format_args!("bytes received, {}", rise.node),
        )?;
        let logged: Vec<f64> = ["bytes_sent", "bytes_recv"]
            .iter()
            .map(|key| line.get(*key).context(*key)?.parse().context(*key))
            .collect::<Outcome<_>>()?;
        for value in [rise.received, rise.sent] {
            ensure(
                logged.contains(&value),
                format_args!(
                    "{value} is not in the access log of {}: {line:?}",
                    rise.node
                ),
            )?;
        }
        println!(
            "  {} istio_tcp_{{connections_opened,received_bytes,sent_bytes}}_total{{reporter=\"{}\"}} +{} +{} +{}",
            rise.node, rise.reporter, rise.opened, rise.received, rise.sent
        );
    }
    println!("  the app says it received {} bytes", carried.request_bytes);
    Ok(())
}

/// A request that a policy refuses.
fn refused(scene: &Scene) -> Outcome {
    say(
        "7. A policy: guests may not talk to orders. The refusal has a name; the app gets no byte.",
    );
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-guests\n  namespace: {NAMESPACE}\n\
         spec:\n  selector:\n    matchLabels: {{ app: orders }}\n  action: DENY\n  rules:\n  - from:\n    - source:\n        \
         principals: [cluster.local/ns/{NAMESPACE}/sa/guest]\n"
    );
    scene.mesh.manifests.put("policy.yaml", &policy)?;
    let app_before = scene.orders_app.log();
    let request = Request::new(&scene.guest, scene.service().v4.into(), SERVICE_PORT);
    let name = format!("{NAMESPACE}/no-guests");
    // The policy takes a moment to reach node2: ask until it refuses, at most as long as anything may take.
    poll::until_ok(poll::SOON, || match request.send() {
        Ok(_answer) => Err(Failure::new("guest is still answered")),
        Err(_refused) => Ok(()),
    })?;
    let app_after_first_refusal = scene.orders_app.log();
    ensure(
        request.send().is_err(),
        "guest was answered after it had been refused",
    )?;
    let line = scene.mesh.wait_access(
        1,
        &[
            ("direction", "inbound"),
            ("reason", "policy_denied"),
            ("policy", &name),
        ],
    )?;
    let from = line.get("src.identity").context("no src.identity")?;
    ensure(from.ends_with("/sa/guest"), format_args!("refused: {from}"))?;
    let served = Request::new(&scene.web, scene.service().v4.into(), SERVICE_PORT);
    let answer = served.send()?;
    let app_after = scene.orders_app.log();
    let added = app_after
        .strip_prefix(&app_after_first_refusal)
        .unwrap_or(&app_after);
    ensure_eq(
        added.lines().count(),
        1,
        "requests that the app got after the first refusal (only web's)",
    )?;
    ensure(
        app_after.len() > app_before.len(),
        "the app's log does not grow",
    )?;
    println!(
        "  guest: no answer. node2's access log: src.identity={from} reason=policy_denied policy={name}"
    );
    println!("  web:   {}", answer.trim());
    Ok(())
}

/// What an operator asks.
fn status(scene: &Scene) -> Outcome {
    say("8. `ambit status` shows it all.");
    let socket = scene.mesh.status_socket();
    let ambit = program("ambit")?;
    let said = run(
        &ambit.display().to_string(),
        ["status", "--socket", &socket.display().to_string()],
    )?;
    for part in ["web", "guest", "orders", "captured", "/sa/orders"] {
        ensure(
            said.contains(part),
            format_args!("{part} is not in it:\n{said}"),
        )?;
    }
    for line in said.lines() {
        println!("  {line}");
    }
    Ok(())
}

fn how_to_go_on(scene: &Scene) {
    let node = &scene
        .mesh
        .nodes
        .first()
        .map(|node| node.site.netns.display().to_string())
        .unwrap_or_default();
    let folder = scene.mesh.folder().display();
    let manifests = scene.mesh.manifests.folder().display();
    println!("\nIt is left running. You can");
    println!(
        "  enter a pod        nsenter --net={} bash    then: curl http://{}/",
        scene.web.netns.display(),
        scene.service().v4
    );
    println!(
        "  edit a policy      $EDITOR {manifests}/policy.yaml    (any file there: changes apply live)"
    );
    println!("  scrape metrics     nsenter --net={node} curl -s http://127.0.0.1:15020/metrics");
    println!("  read a log         tail -f {folder}/logs/node2-ztunnel.log");
    println!("  take it down       make demo-down");
}

fn access_lines(scene: &Scene, index: usize, direction: &str) -> Vec<BTreeMap<String, String>> {
    let log = scene
        .mesh
        .nodes
        .get(index)
        .map(|node| node.ztunnel.log())
        .unwrap_or_default();
    access(&log, &[("direction", direction), ("reason", "*")])
}

fn say(line: &str) {
    println!("\n{line}");
}
