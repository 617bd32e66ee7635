//! What a mistake in the manifests does: the rest keeps working, and the error names file and line.

use tests::app::{Manner, Server, ask, refused};
use tests::failure::{Failure, Outcome, ensure};
use tests::manifests::{PodDocument, documents, namespace};

use crate::Claim;
use crate::stage::{CAST, Stage, policy};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "a_broken_file_keeps_what_it_said_and_names_its_line",
        a_broken_file_keeps_what_it_said_and_names_its_line,
    ),
    (
        "a_half_written_file_is_no_harm",
        a_half_written_file_is_no_harm,
    ),
    (
        "a_namespace_that_does_not_exist_is_named",
        a_namespace_that_does_not_exist_is_named,
    ),
];

const NOT_CLIENT: &str =
    "[{ from: [{ source: { principals: ['cluster.local/ns/cast/sa/client'] } }] }]";

/// Waits until the controller's status names a problem at `place` (a part of it), and returns its words.
fn problem(stage: &Stage, place: &str) -> Outcome<String> {
    tests::poll::until_ok(tests::poll::SOON, || {
        let status = stage.mesh.status()?;
        let found = status
            .problems
            .iter()
            .find(|problem| problem.place.contains(place));
        found
            .map(|problem| problem.what.clone())
            .ok_or_else(|| Failure::new(format!("no problem at {place}: {:?}", status.problems)))
    })
}

fn a_broken_file_keeps_what_it_said_and_names_its_line() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "kept")?;
    let server = Server::start(&pod, 7601, Manner::Sink)?;
    stage.join(
        "kept",
        &[(&pod, 1)],
        &policy("kept", "not-client", "kept", "DENY", NOT_CLIENT),
    )?;
    refused(&stage.client, server.v4(), b"secret")?;
    let good = stage.mesh.manifests.text("kept.yaml")?;
    let broken = good.replace("  action: DENY\n", "  action: [DENY\n");
    let line = broken
        .lines()
        .position(|line| line.contains("[DENY"))
        .map_or(0, |at| at + 1);
    stage.mesh.manifests.put("kept.yaml", &broken)?;
    // YAML notices at the broken line or where the next one does not fit.
    let said = problem(stage, "kept.yaml:")?;
    let place = stage
        .mesh
        .status()?
        .problems
        .iter()
        .find(|p| p.place.contains("kept.yaml:"))
        .map(|p| p.place.clone());
    let named: usize = place
        .as_deref()
        .and_then(|p| p.rsplit(':').next()?.parse().ok())
        .unwrap_or_default();
    ensure(
        (line..=line + 2).contains(&named),
        format_args!("line {line} is broken; named: {place:?} {said}"),
    )?;

    refused(&stage.client, server.v4(), b"secret")?;
    server.untouched_since(0)?;
    ensure(
        ask(&stage.near, server.v4(), b"hello")?.starts_with("5 bytes"),
        "the pod is not served any more",
    )?;
    // Other files are read meanwhile.
    let other = stage.world.add_pod(0, "meanwhile")?;
    stage.join("meanwhile", &[(&other, 0)], "")?;
    stage.mesh.manifests.put("kept.yaml", &good)?;
    stage.mesh.wait_status(|status| {
        ensure(
            !status
                .problems
                .iter()
                .any(|p| p.place.contains("kept.yaml")),
            format_args!("{:?}", status.problems),
        )
    })
}

fn a_half_written_file_is_no_harm() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "halved")?;
    let server = Server::start(&pod, 7602, Manner::Sink)?;
    stage.join(
        "halved",
        &[(&pod, 1)],
        &policy("halved", "not-client", "halved", "DENY", NOT_CLIENT),
    )?;
    let whole = stage.mesh.manifests.text("halved.yaml")?;
    // Every length at which an editor could be interrupted, quicker than anybody looks; then one that stays.
    for cut in (0..whole.len()).step_by(7) {
        stage
            .mesh
            .manifests
            .put_in_place("halved.yaml", whole.get(..cut).unwrap_or_default())?;
    }
    let middle = whole.find("  action:").unwrap_or_default();
    stage
        .mesh
        .manifests
        .put_in_place("halved.yaml", whole.get(..middle + 5).unwrap_or_default())?;
    problem(stage, "halved.yaml:")?;
    refused(&stage.client, server.v4(), b"secret")?;
    server.untouched_since(0)?;
    stage.mesh.manifests.put_in_place("halved.yaml", &whole)?;
    stage.mesh.wait_status(|status| {
        ensure(
            !status
                .problems
                .iter()
                .any(|p| p.place.contains("halved.yaml")),
            format_args!("{:?}", status.problems),
        )
    })?;
    refused(&stage.client, server.v4(), b"secret")?;
    ensure(
        ask(&stage.near, server.v4(), b"hello")?.starts_with("5 bytes"),
        "the pod is not served",
    )?;
    ensure(
        server
            .visits()
            .iter()
            .all(|visit| visit.first() != b"secret"),
        "the app got the secret",
    )
}

fn a_namespace_that_does_not_exist_is_named() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "homeless")?;
    let document = PodDocument {
        namespace: "nowhere",
        account: "homeless",
        node: "node2",
        site: &pod,
    };
    // The file also holds a good document: it is taken.
    let good = namespace("beside-nowhere", true);
    stage
        .mesh
        .manifests
        .put("homeless.yaml", &documents([good, document.yaml()]))?;
    let said = problem(stage, "homeless.yaml:")?;
    ensure(said.contains("nowhere"), said)?;
    let status = stage.mesh.status()?;
    let captured = status
        .pods
        .iter()
        .find(|pod| pod.name == "homeless")
        .map(|pod| pod.capture.to_string());
    ensure(captured.as_deref() != Some("captured"), "it is captured")?;
    let server = Server::start(&stage.near, 7603, Manner::Sink)?;
    ensure(
        ask(&stage.client, server.v4(), b"hello")?.starts_with("5 bytes"),
        format_args!("{CAST} is not served any more"),
    )
}
