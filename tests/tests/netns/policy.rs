//! Policy as an operator meets it: what is refused, what is let through, and what a change does to open connections.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use ambit_core::status::{CaptureState, PodStatus};
use tests::app::{Manner, Server, ask, ended, refused};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside;
use tests::poll;

use crate::Claim;
use crate::stage::{Stage, peer_authentication, policy};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "strict_refuses_plaintext_and_serves_the_mesh",
        strict_refuses_plaintext_and_serves_the_mesh,
    ),
    (
        "an_allow_policy_lets_only_those_through_whom_it_names",
        an_allow_policy_lets_only_those_through_whom_it_names,
    ),
    (
        "a_deny_policy_refuses_plaintext_by_address",
        a_deny_policy_refuses_plaintext_by_address,
    ),
    (
        "an_unreadable_policy_refuses_what_it_selects",
        an_unreadable_policy_refuses_what_it_selects,
    ),
    (
        "a_changed_policy_cuts_open_connections",
        a_changed_policy_cuts_open_connections,
    ),
    ("strict_cuts_open_plaintext", strict_cuts_open_plaintext),
];

fn strict_refuses_plaintext_and_serves_the_mesh() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "strict")?;
    let server = Server::start(&pod, 7301, Manner::Sink)?;
    stage.join(
        "strict",
        &[(&pod, 1)],
        &peer_authentication("strict", "STRICT"),
    )?;
    for to in [server.v4(), server.v6()] {
        refused(&stage.outsider, to, b"secret")?;
        stage.mesh.wait_access(
            1,
            &[
                ("direction", "inbound"),
                ("reason", "plaintext_refused"),
                ("dst.addr", &to.to_string()),
            ],
        )?;
    }
    server.untouched_since(0)?;
    ensure(
        ask(&stage.client, server.v4(), b"hello")?.starts_with("5 bytes"),
        "the mesh is not served",
    )
}

fn an_allow_policy_lets_only_those_through_whom_it_names() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "members")?;
    let server = Server::start(&pod, 7302, Manner::Sink)?;
    let rules = "[{ from: [{ source: { principals: ['cluster.local/ns/cast/sa/near'] } }] }]";
    stage.join(
        "members",
        &[(&pod, 1)],
        &policy("members", "only-near", "members", "ALLOW", rules),
    )?;
    refused(&stage.client, server.v4(), b"secret")?;
    refused(&stage.outsider, server.v4(), b"secret")?;
    stage.mesh.wait_access(
        1,
        &[
            ("reason", "policy_not_allowed"),
            ("dst.addr", &server.v4().to_string()),
        ],
    )?;
    server.untouched_since(0)?;
    ensure(
        ask(&stage.near, server.v4(), b"hello")?.starts_with("5 bytes"),
        "near is not served",
    )
}

fn a_deny_policy_refuses_plaintext_by_address() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "walled")?;
    let server = Server::start(&pod, 7303, Manner::Sink)?;
    let rules = format!(
        "[{{ from: [{{ source: {{ ipBlocks: ['{}'] }} }}] }}]",
        stage.outsider.addresses.v4
    );
    stage.join(
        "walled",
        &[(&pod, 1)],
        &policy("walled", "not-from-there", "walled", "DENY", &rules),
    )?;
    refused(&stage.outsider, server.v4(), b"secret")?;
    stage.mesh.wait_access(
        1,
        &[
            ("reason", "policy_denied"),
            ("policy", "walled/not-from-there"),
        ],
    )?;
    server.untouched_since(0)?;
    ensure(
        ask(&stage.outsider, server.v6(), b"hello")?.starts_with("5 bytes"),
        "the other family is not served",
    )
}

/// In a mesh of its own: a proxy that holds an unreadable policy is never quite in step.
fn an_unreadable_policy_refuses_what_it_selects() -> Outcome {
    let stage = Stage::own("unreadable", |setup| setup)?;
    let (selected, other) = (
        stage.world.add_pod(1, "selected")?,
        stage.world.add_pod(1, "unselected")?,
    );
    let (server, free) = (
        Server::start(&selected, 7304, Manner::Sink)?,
        Server::start(&other, 7304, Manner::Sink)?,
    );
    let rules = "[{ from: [{ source: { colour: [green] } }] }]";
    let riddle = policy("unreadable", "riddle", "selected", "ALLOW", rules);
    stage.write("unreadable", true, &[(&selected, 1), (&other, 1)], &riddle)?;
    stage.mesh.wait_status(|status| {
        let captured = |pod: &PodStatus| pod.capture == CaptureState::Captured;
        ensure(
            status.pods.iter().filter(|pod| captured(pod)).count() == 5,
            format_args!("{:?}", status.pods),
        )?;
        let named = status
            .problems
            .iter()
            .any(|problem| problem.what.contains("colour"));
        ensure(
            named,
            format_args!("the field is not named: {:?}", status.problems),
        )?;
        let types = status.proxies.iter().flat_map(|proxy| &proxy.types);
        let told = types.filter(|held| {
            held.rejected
                .iter()
                .any(|rejection| rejection.cause.contains("colour"))
        });
        ensure(
            told.count() == 2,
            format_args!("not every proxy says why: {:?}", status.proxies),
        )
    })?;
    refused(&stage.client, server.v4(), b"secret")?;
    refused(&stage.outsider, server.v4(), b"secret")?;
    stage.mesh.wait_access(
        1,
        &[
            ("reason", "policy_unreadable"),
            ("policy", "unreadable/riddle"),
        ],
    )?;
    server.untouched_since(0)?;
    poll::until_ok(poll::SOON, || ask(&stage.client, free.v4(), b"hello"))?;
    ensure(
        ask(&stage.outsider, free.v4(), b"hello")?.starts_with("5 bytes"),
        "the other pod is not served",
    )
}

fn a_changed_policy_cuts_open_connections() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "changing")?;
    let server = Server::start(&pod, 7305, Manner::Echo)?;
    stage.join("changing", &[(&pod, 1)], "")?;
    let mut forbidden = [
        inside::connect(&stage.client.netns, server.v4())?,
        inside::connect(&stage.outsider.netns, server.v4())?,
    ];
    let mut allowed = inside::connect(&stage.near.netns, server.v4())?;
    for stream in forbidden.iter_mut().chain([&mut allowed]) {
        echo(stream)?;
    }
    let rules = "[{ from: [{ source: { notPrincipals: ['cluster.local/ns/cast/sa/near'] } }] }]";
    stage.write(
        "changing",
        true,
        &[(&pod, 1)],
        &policy("changing", "only-near", "changing", "DENY", rules),
    )?;
    for stream in &mut forbidden {
        ended(stream)?;
    }
    stage.mesh.wait_access(
        1,
        &[
            ("reason", "policy_changed"),
            ("dst.addr", &server.v4().to_string()),
        ],
    )?;
    let before = server.visits().len();
    refused(&stage.client, server.v4(), b"secret")?;
    server.untouched_since(before)?;
    echo(&mut allowed)
}

fn strict_cuts_open_plaintext() -> Outcome {
    let stage = Stage::shared()?;
    let pod = stage.world.add_pod(1, "stricter")?;
    let server = Server::start(&pod, 7306, Manner::Echo)?;
    stage.join("stricter", &[(&pod, 1)], "")?;
    let mut plain = inside::connect(&stage.outsider.netns, server.v6())?;
    let mut tunnelled = inside::connect(&stage.client.netns, server.v6())?;
    echo(&mut plain)?;
    echo(&mut tunnelled)?;
    stage.write(
        "stricter",
        true,
        &[(&pod, 1)],
        &peer_authentication("stricter", "STRICT"),
    )?;
    ended(&mut plain).context("plaintext")?;
    let before = server.visits().len();
    refused(&stage.outsider, server.v6(), b"secret")?;
    server.untouched_since(before)?;
    echo(&mut tunnelled)
}

fn echo(stream: &mut TcpStream) -> Outcome {
    let mut back = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut back)?;
    ensure_eq(&back, b"hello", "the echo")
}
