//! What a pod's port 15008 refuses: wrong certificates and wrong requests, sent by a peer that the test controls.
//!
//! Everything else about each peer is right, and in each case the app is shown to have received nothing.

use std::io::{Read as _, Write as _};

use http::{Method, Request};
use tests::app::{Manner, Server, ask, refused};
use tests::command::run_in;
use tests::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use tests::inside;
use tests::peer::{self, Answer, Authority, Validity};
use tests::poll;

use crate::Claim;
use crate::stage::{CAST, Stage, identity, policy, tunnel};

pub(crate) const CLAIMS: &[Claim] = &[
    ("a_good_peer_is_served", a_good_peer_is_served),
    (
        "refuses_a_certificate_of_another_trust_domain",
        refuses_a_certificate_of_another_trust_domain,
    ),
    (
        "refuses_an_expired_certificate",
        refuses_an_expired_certificate,
    ),
    (
        "refuses_a_certificate_of_another_root",
        refuses_a_certificate_of_another_root,
    ),
    ("refuses_a_client_without_tls", refuses_a_client_without_tls),
    (
        "refuses_a_server_that_is_not_the_expected_workload",
        refuses_a_server_that_is_not_the_expected_workload,
    ),
    (
        "answers_400_to_a_garbage_authority",
        answers_400_to_a_garbage_authority,
    ),
    (
        "answers_400_to_a_target_outside_the_pod",
        answers_400_to_a_target_outside_the_pod,
    ),
    (
        "answers_400_to_what_is_not_connect",
        answers_400_to_what_is_not_connect,
    ),
    (
        "answers_401_when_policy_refuses",
        answers_401_when_policy_refuses,
    ),
    (
        "answers_503_when_the_app_is_unreachable",
        answers_503_when_the_app_is_unreachable,
    ),
    (
        "answers_503_to_a_capture_port",
        answers_503_to_a_capture_port,
    ),
];

/// A CONNECT request for `authority`.
fn connect(authority: &str) -> Outcome<Request<()>> {
    request(Method::CONNECT, authority)
}

fn request(method: Method, uri: &str) -> Outcome<Request<()>> {
    Request::builder()
        .method(method)
        .uri(uri)
        .body(())
        .map_err(|cause| Failure::new(cause.to_string()))
}

/// Sends `request` from the pod outside the mesh to the pod `far`, with a certificate of the mesh's own root.
fn ask_far(asked: Request<()>, who: &str, validity: Validity) -> Outcome<Answer> {
    let stage = Stage::shared()?;
    let state = stage.mesh.folder().join("state");
    let credential =
        Authority::of_mesh(&state)?.credential(who, validity, &peer::roots(&state)?)?;
    peer::send(
        &stage.outsider,
        (tunnel(&stage.far), &identity(CAST, &stage.far)),
        &credential,
        asked,
        b"secret",
    )
}

/// An identity of the mesh that the peer plays.
const PLAYED: &str = "spiffe://cluster.local/ns/cast/sa/client";

fn a_good_peer_is_served() -> Outcome {
    let server = Server::start(&Stage::shared()?.far, 7201, Manner::Sink)?;
    let answer = ask_far(connect(&server.v4().to_string())?, PLAYED, Validity::Now)?;
    ensure_eq(answer, Answer::Status(200), "the answer")?;
    server
        .wait_for_visit(|visit| visit.first() == b"secret")
        .map(|_visit| ())
}

/// Sees that there is no tunnel for such a certificate, and that the app is untouched.
fn no_tunnel(port: u16, who: &str, validity: Validity) -> Outcome {
    let server = Server::start(&Stage::shared()?.far, port, Manner::Sink)?;
    let answer = ask_far(connect(&server.v4().to_string())?, who, validity)?;
    ensure(
        matches!(answer, Answer::NoTunnel(_)),
        format_args!("{answer:?}"),
    )?;
    server.untouched_since(0)
}

fn refuses_a_certificate_of_another_trust_domain() -> Outcome {
    no_tunnel(
        7202,
        "spiffe://elsewhere.local/ns/cast/sa/client",
        Validity::Now,
    )
}

fn refuses_an_expired_certificate() -> Outcome {
    no_tunnel(7203, PLAYED, Validity::Over)
}

fn refuses_a_certificate_of_another_root() -> Outcome {
    let stage = Stage::shared()?;
    let server = Server::start(&stage.far, 7204, Manner::Sink)?;
    let trusted = peer::roots(&stage.mesh.folder().join("state"))?;
    let credential = Authority::foreign()?.credential(PLAYED, Validity::Now, &trusted)?;
    let to = (tunnel(&stage.far), identity(CAST, &stage.far));
    let answer = peer::send(
        &stage.outsider,
        (to.0, &to.1),
        &credential,
        connect(&server.v4().to_string())?,
        b"secret",
    )?;
    ensure(
        matches!(answer, Answer::NoTunnel(_)),
        format_args!("{answer:?}"),
    )?;
    server.untouched_since(0)
}

fn refuses_a_client_without_tls() -> Outcome {
    const ALERT: u8 = 21;
    let stage = Stage::shared()?;
    let server = Server::start(&stage.far, 7205, Manner::Sink)?;
    let mut stream = inside::connect(&stage.outsider.netns, tunnel(&stage.far))?;
    let request = format!("CONNECT {} HTTP/1.1\r\nhost: x\r\n\r\nsecret", server.v4());
    let _may_be_cut = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _closed_or_reset = stream.read_to_end(&mut answer);
    ensure(
        answer.first().is_none_or(|kind| *kind == ALERT),
        format_args!("{answer:?}"),
    )?;
    server.untouched_since(0)
}

/// The address of a pod is taken over by another pod of the mesh: its certificate is good, and not the expected one.
fn refuses_a_server_that_is_not_the_expected_workload() -> Outcome {
    let stage = Stage::shared()?;
    let (victim, thief) = (
        stage.world.add_pod(1, "victim")?,
        stage.world.add_pod(1, "thief")?,
    );
    let stolen = Server::start(&thief, 7206, Manner::Sink)?;
    stage.join("theft", &[(&victim, 1), (&thief, 1)], "")?;
    let address = victim.addresses.v4;
    run_in(
        &victim.netns,
        "ip",
        ["addr", "del", &format!("{address}/24"), "dev", "eth0"],
    )?;
    run_in(
        &thief.netns,
        "ip",
        ["addr", "add", &format!("{address}/24"), "dev", "eth0"],
    )?;
    let node = &stage.world.node(1)?.site;
    run_in(&node.netns, "ip", ["neigh", "flush", "dev", "pods"])?;
    // The thief's proxy really answers there before the client asks.
    poll::until_ok(poll::SOON, || {
        inside::connect(&stage.outsider.netns, (address, 15008).into())
    })?;
    refused(&stage.client, (address, 7206).into(), b"secret")?;
    stage.mesh.wait_access(
        0,
        &[("direction", "outbound"), ("reason", "peer_unexpected")],
    )?;
    stolen.untouched_since(0)
}

/// Sees that a request is answered with `status`, and that the app is untouched.
fn status(port: u16, wanted: u16, asked: impl FnOnce(&Server) -> Outcome<Request<()>>) -> Outcome {
    let server = Server::start(&Stage::shared()?.far, port, Manner::Sink)?;
    let answer = ask_far(asked(&server)?, PLAYED, Validity::Now)?;
    ensure_eq(answer, Answer::Status(wanted), "the answer")?;
    server.untouched_since(0)
}

fn answers_400_to_a_garbage_authority() -> Outcome {
    for garbage in [
        "no-port",
        "10.244.2.10:0",
        "10.244.2.10:99999",
        "10.244.2.10:http",
    ] {
        status(0, 400, |_server| connect(garbage)).context(garbage)?;
    }
    Ok(())
}

fn answers_400_to_a_target_outside_the_pod() -> Outcome {
    let stage = Stage::shared()?;
    let other = Server::start(&stage.near, 7208, Manner::Sink)?;
    status(7208, 400, |_server| connect(&other.v4().to_string()))?;
    other.untouched_since(0)?;
    status(7209, 400, |server| {
        connect(&format!("127.0.0.1:{}", server.port()))
    })
}

fn answers_400_to_what_is_not_connect() -> Outcome {
    status(7210, 400, |server| {
        request(Method::POST, &format!("https://{}/", server.v4()))
    })
}

fn answers_401_when_policy_refuses() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "closed")?;
    let server = Server::start(&pod, 7211, Manner::Sink)?;
    let rules = "[{ from: [{ source: { principals: ['cluster.local/ns/cast/sa/client'] } }] }]";
    stage.join(
        "closed",
        &[(&pod, 1)],
        &policy("closed", "not-you", "closed", "DENY", rules),
    )?;
    let state = stage.mesh.folder().join("state");
    let credential =
        Authority::of_mesh(&state)?.credential(PLAYED, Validity::Now, &peer::roots(&state)?)?;
    let to = (tunnel(&pod), identity("closed", &pod));
    let answer = peer::send(
        &stage.outsider,
        (to.0, &to.1),
        &credential,
        connect(&server.v4().to_string())?,
        b"secret",
    )?;
    ensure_eq(answer, Answer::Status(401), "the answer")?;
    server.untouched_since(0)?;
    // And for an app of the mesh: no byte, and the words in the log.
    refused(&stage.client, server.v4(), b"secret")?;
    stage.mesh.wait_access(
        1,
        &[
            ("reason", "policy_denied"),
            ("policy", "closed/not-you"),
            ("src.identity", PLAYED),
        ],
    )?;
    server.untouched_since(1)
}

fn answers_503_when_the_app_is_unreachable() -> Outcome {
    let stage = Stage::shared()?;
    let other = Server::start(&stage.far, 7212, Manner::Sink)?;
    let closed = format!("{}:7213", stage.far.addresses.v4);
    ensure_eq(
        ask_far(connect(&closed)?, PLAYED, Validity::Now)?,
        Answer::Status(503),
        "the answer",
    )?;
    refused(
        &stage.client,
        closed.parse().map_err(|_bad| Failure::new("address"))?,
        b"secret",
    )?;
    stage.mesh.wait_access(
        1,
        &[
            ("direction", "inbound"),
            ("reason", "app_unreachable"),
            ("dst.hbone_addr", &closed),
        ],
    )?;
    other.untouched_since(0)
}

fn answers_503_to_a_capture_port() -> Outcome {
    status(7214, 503, |_server| {
        connect(&format!("{}:15006", Stage::shared()?.far.addresses.v4))
    })?;
    ensure_eq(
        ask(
            &Stage::shared()?.client,
            Server::start(&Stage::shared()?.far, 7215, Manner::Echo)?.v4(),
            b"alive",
        )?
        .as_str(),
        "alive",
        "the proxy lives",
    )
}
