//! Policies as an author meets them: what is refused, what is let through, what its condition says, and what the link shows.

use std::net::SocketAddr;

use serde_json::{Value, json};

use tests::app::{Manner, Server, ask, refused};
use tests::capture::tls::{TLS13, records};
use tests::capture::{Capture, Recording, Stream};
use tests::cluster::{NODES, PATIENCE, Space};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::netns::Site;
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "strict_refuses_plaintext_and_serves_the_mesh",
        strict_refuses_plaintext,
    ),
    ("allow_and_deny_by_principal", by_principal),
    ("allow_and_deny_by_namespace", by_namespace),
    ("allow_and_deny_by_address", by_address),
    ("allow_and_deny_by_port", by_port),
    (
        "a_policy_that_cannot_be_translated_says_why_and_refuses_what_it_selects",
        untranslatable,
    ),
    (
        "a_service_that_cannot_be_translated_says_why_until_it_can",
        odd_service,
    ),
    (
        "between_nodes_tls_on_15008_and_no_byte_of_the_request",
        the_link_shows_tls_alone,
    ),
];

/// Port of the app that policies speak of, and one that they do not.
const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
/// The condition of this project.
const ACCEPTED: &str = "ambit.mesh/Accepted";

/// A captured server on the first node, a captured client on each node.
struct Stage {
    space: Space,
    server: Server,
    /// On the other node than the server.
    friend: Site,
    /// On the server's node.
    stranger: Site,
}

impl Stage {
    fn new(claim: &str) -> Outcome<Self> {
        let space = Space::joined(claim)?;
        space.create("server", NODES[0], |_as_it_is| ())?;
        space.create("stranger", NODES[0], |_as_it_is| ())?;
        space.create("friend", NODES[1], |_as_it_is| ())?;
        let captured = |name: &str| -> Outcome<Site> {
            let pod = space.ready(name)?;
            pod.wait_captured(PATIENCE)?;
            pod.site()
        };
        let server = Server::start(&captured("server")?, PORT, Manner::Sink)?;
        let stage = Self {
            server,
            friend: captured("friend")?,
            stranger: captured("stranger")?,
            space,
        };
        for client in [&stage.friend, &stage.stranger] {
            stage.both(client, serves)?;
        }
        Ok(stage)
    }

    /// Sees something of both addresses of the server.
    fn both(&self, client: &Site, see: impl Fn(&Site, SocketAddr) -> Outcome) -> Outcome {
        let mut addresses = [self.server.v4(), self.server.v6()].into_iter();
        addresses.try_for_each(|to| see(client, to))
    }

    /// Makes the one policy on the server this one.
    fn policy(&self, action: &str, rule: &Value) -> Outcome {
        self.object(
            "AuthorizationPolicy",
            &json!({
                "selector": { "matchLabels": { "app": "server" } }, "action": action, "rules": [rule],
            }),
        )
    }

    fn object(&self, kind: &str, spec: &Value) -> Outcome {
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": kind,
            "metadata": { "name": "under-test" }, "spec": spec,
        });
        self.space.apply(&object.to_string())
    }

    /// Waits until the client is refused at `to` for this reason, then sees that the app gets no byte of it.
    fn refuses(&self, client: &Site, (to, reason): (SocketAddr, &str)) -> Outcome {
        let from = format!("src.addr={}", address(client, to));
        let from = from.strip_suffix('0').unwrap_or_default();
        let said = || -> Outcome<bool> {
            let ztunnel = self.space.cluster.mesh_pod_on("ztunnel", NODES[0])?;
            let told = [
                from,
                &format!("addr={to} "),
                "direction=\"inbound\"",
                &format!("reason=\"{reason}\""),
            ];
            let log = ztunnel.logs()?;
            Ok(log
                .lines()
                .any(|line| told.iter().all(|word| line.contains(word))))
        };
        poll::until_ok(PATIENCE, || {
            refused(client, to, b"secret")?;
            ensure(
                said()?,
                format_args!("no log line says that {to} refused for {reason}"),
            )
        })?;
        let before = self.server.visits().len();
        refused(client, to, b"secret")?;
        self.server.untouched_since(before)
    }
}

/// The condition that this project wrote on an object, once it says `status`.
fn condition(space: &Space, object: &[&str], status: &str) -> Outcome<Value> {
    let args: Vec<&str> = ["-n", &space.name].iter().chain(object).copied().collect();
    let wanted = format!("{ACCEPTED}={status}");
    space.cluster.until(&wanted, &args, PATIENCE, |seen| {
        let ours = ours(seen)?;
        (ours.get("status")? == status).then(|| ours.clone())
    })
}

fn ours(object: &Value) -> Option<&Value> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let mut conditions = conditions.iter();
    conditions.find(|condition| condition.get("type").is_some_and(|name| name == ACCEPTED))
}

/// The client's own address of the family of `to`.
fn address(client: &Site, to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (client.addresses.v4, 0).into(),
        SocketAddr::V6(_) => (client.addresses.v6, 0).into(),
    }
}

fn serves(client: &Site, to: SocketAddr) -> Outcome {
    let answer = ask(client, to, b"hello")?;
    ensure(
        answer.starts_with("5 bytes"),
        format_args!("{to} answered {answer}"),
    )
}

fn strict_refuses_plaintext() -> Outcome {
    let stage = Stage::new("strict")?;
    let outside = stage.space.beside("outside")?;
    let outsider = outside.pod("outsider", NODES[1])?.site()?;
    stage.both(&outsider, serves)?;
    stage.object(
        "PeerAuthentication",
        &json!({ "mtls": { "mode": "STRICT" } }),
    )?;
    for to in [stage.server.v4(), stage.server.v6()] {
        stage.refuses(&outsider, (to, "plaintext_refused"))?;
    }
    for client in [&stage.friend, &stage.stranger] {
        stage.both(client, serves)?;
    }
    let told = condition(&stage.space, &["peerauthentication", "under-test"], "True")?;
    ensure_eq(
        told.get("observedGeneration"),
        Some(&json!(1)),
        "its generation",
    )
}

fn by_principal() -> Outcome {
    let stage = Stage::new("principal")?;
    let principal = |name: &str| format!("cluster.local/ns/{}/sa/{name}", stage.space.name);
    let from = |name: &str| json!({ "from": [{ "source": { "principals": [principal(name)] } }] });
    lets_the_friend_alone_through(&stage, &stage.stranger, (from("friend"), from("stranger")))
}

fn by_namespace() -> Outcome {
    let stage = Stage::new("namespace")?;
    let other = stage.space.beside("other")?;
    other.join()?;
    let pod = other.pod("stranger", NODES[1])?;
    pod.wait_captured(PATIENCE)?;
    let from = |name: &str| json!({ "from": [{ "source": { "namespaces": [name] } }] });
    let rules = (from(&stage.space.name), from(&other.name));
    lets_the_friend_alone_through(&stage, &pod.site()?, rules)
}

fn by_address() -> Outcome {
    let stage = Stage::new("address")?;
    let from = |site: &Site| {
        let blocks = [
            site.addresses.v4.to_string(),
            format!("{}/128", site.addresses.v6),
        ];
        json!({ "from": [{ "source": { "ipBlocks": blocks } }] })
    };
    let rules = (from(&stage.friend), from(&stage.stranger));
    lets_the_friend_alone_through(&stage, &stage.stranger, rules)
}

/// Under ALLOW of the friend, and then under DENY of the stranger.
fn lets_the_friend_alone_through(
    stage: &Stage,
    stranger: &Site,
    (friends, strangers): (Value, Value),
) -> Outcome {
    let cases = [
        ("ALLOW", friends, "policy_not_allowed"),
        ("DENY", strangers, "policy_denied"),
    ];
    for (action, rule, reason) in cases {
        stage.policy(action, &rule)?;
        for to in [stage.server.v4(), stage.server.v6()] {
            stage.refuses(stranger, (to, reason))?;
        }
        stage.both(&stage.friend, serves)?;
    }
    Ok(())
}

fn by_port() -> Outcome {
    let mut stage = Stage::new("port")?;
    let open = stage.server.clone();
    let site = stage.space.found("server")?.site()?;
    stage.server = Server::start(&site, OTHER_PORT, Manner::Sink)?;
    stage.both(&stage.friend, serves)?;
    let to = |port: u16| json!({ "to": [{ "operation": { "ports": [port.to_string()] } }] });
    let cases = [
        ("ALLOW", to(PORT), "policy_not_allowed"),
        ("DENY", to(OTHER_PORT), "policy_denied"),
    ];
    for (action, rule, reason) in cases {
        stage.policy(action, &rule)?;
        for to in [stage.server.v4(), stage.server.v6()] {
            stage.refuses(&stage.friend, (to, reason))?;
        }
        serves(&stage.friend, open.v4())?;
        serves(&stage.friend, open.v6())?;
    }
    Ok(())
}

fn untranslatable() -> Outcome {
    let stage = Stage::new("untranslatable")?;
    stage.policy(
        "ALLOW",
        &json!({ "from": [{ "source": { "moonPhases": ["full"] } }] }),
    )?;
    let object = ["authorizationpolicy", "under-test"];
    let told = condition(&stage.space, &object, "False")?;
    let word = |key: &str| told.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure_eq(word("reason"), "NotUnderstood", "why")?;
    ensure(
        word("message").contains("moonPhases") && word("message").contains("refuses"),
        format_args!("the condition names neither field nor effect: {told}"),
    )?;
    for client in [&stage.friend, &stage.stranger] {
        for to in [stage.server.v4(), stage.server.v6()] {
            stage.refuses(client, (to, "policy_unreadable"))?;
        }
    }
    stage.policy("ALLOW", &json!({}))?;
    let told = condition(&stage.space, &object, "True")?;
    ensure_eq(
        told.get("observedGeneration"),
        Some(&json!(2)),
        "its generation",
    )?;
    poll::until_ok(PATIENCE, || stage.both(&stage.friend, serves))
}

fn odd_service() -> Outcome {
    let space = Space::new("odd-service")?;
    space.service("web", "server", &[("app", 80, json!(PORT))])?;
    let distribution = "networking.istio.io/traffic-distribution";
    let annotate = |value: &str| {
        let annotation = format!("{distribution}{value}");
        space.kubectl(&["annotate", "--overwrite", "service", "web", &annotation])
    };
    let object = ["-n", &space.name, "service", "web"];
    annotate("=PreferTheMoon")?;
    let told = condition(&space, &["service", "web"], "False")?;
    ensure(
        told.to_string().contains("PreferTheMoon"),
        format_args!("the condition does not say why: {told}"),
    )?;
    annotate("-")?;
    let cluster = space.cluster;
    cluster.until("no condition of ours", &object, PATIENCE, |seen| {
        ours(seen).is_none().then_some(())
    })
}

fn the_link_shows_tls_alone() -> Outcome {
    let stage = Stage::new("wire")?;
    let cluster = stage.space.cluster;
    let (near, far) = (
        cluster.machine(NODES[1]).site()?,
        cluster.machine(NODES[0]).site()?,
    );
    let file = cluster.folder().join(format!("{}.pcap", stage.space.name));
    let capture = Capture::start(&near, file.clone())?;
    let marker = format!("{:032x}", fastrand::u128(..));
    let mut outcome = stage.both(&stage.friend, |client, to| {
        let answer = ask(client, to, marker.as_bytes())?;
        ensure(
            answer.starts_with("32 bytes"),
            format_args!("{to}: {answer}"),
        )
    });
    let seen = capture.finish((far.addresses.v4, 9).into())?;
    outcome = outcome.and_then(|()| shows_tls_alone(&seen, &stage, &marker));
    std::fs::remove_file(file)?;
    outcome
}

/// The word is nowhere, and what went between the two pods is TLS on port 15008 from its first byte to its last.
fn shows_tls_alone(seen: &Recording, stage: &Stage, word: &str) -> Outcome {
    ensure(!seen.shows(word.as_bytes()), "the marker passed the link")?;
    let server = stage.space.found("server")?.site()?;
    let pods = [stage.friend.addresses.both(), server.addresses.both()].concat();
    let between =
        |stream: &&Stream| pods.contains(&stream.from.ip()) && pods.contains(&stream.to.ip());
    let (mut v4, mut v6) = (0, 0);
    for stream in seen.streams().iter().filter(between) {
        let way = format!("{} → {}", stream.from, stream.to);
        ensure(
            [stream.from.port(), stream.to.port()].contains(&15008),
            &way,
        )?;
        let tls = records(&stream.bytes).context(&way)?;
        let is_new = tls.versions.iter().all(|version| *version == TLS13);
        ensure(is_new, format_args!("{way}: {tls:?}"))?;
        *if stream.from.is_ipv6() {
            &mut v6
        } else {
            &mut v4
        } += tls.encrypted_bytes;
    }
    ensure(
        v4.min(v6) > 2 * word.len(),
        format_args!("{v4} bytes of TLS over IPv4 between the pods, {v6} over IPv6"),
    )
}
