//! What a proxy is sent, message by message.

use std::sync::Arc;

use ambit_core::names::{ServiceKey, WorkloadUid};
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope};
use ambit_core::service::Service;
use ambit_core::workload::Workload;
use ambit_net::proto::rpc;

use super::*;
use crate::index::Source;
use crate::testing::name_of;
use crate::translate::Resource;
use crate::xds::store::Store;

const ADDRESS: &str = Kind::Address.type_url();
const POLICY: &str = Kind::Policy.type_url();

/// A store and one stream to it.
struct Stream {
    store: Store,
    snapshot: Arc<Snapshot>,
    session: Session,
}

impl Stream {
    fn new() -> Self {
        Self {
            store: Store::default(),
            snapshot: Arc::default(),
            session: Session::new("n1"),
        }
    }

    /// Puts a workload of namespace `a`; the size makes its content.
    fn put(&mut self, name: &str, size: usize) {
        let uid = WorkloadUid::new(uid(name));
        let workload = Workload {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            canonical_name: "x".repeat(size).into(),
            services: [(ServiceKey::new("a", "s"), Vec::new())].into(),
            ..Workload::named(uid, "a", name)
        };
        self.give(name, vec![Resource::Workload(Box::new(workload))]);
    }

    fn put_service(&mut self) {
        let service = Service::named(ServiceKey::new("a", "s"), "s");
        self.give("service", vec![Resource::Service(Box::new(service))]);
    }

    fn put_policy(&mut self, name: &str) {
        let policy = Authorization {
            name: name_of(&format!("a/{name}")),
            scope: PolicyScope::Namespace,
            action: PolicyAction::Allow,
            rules: Vec::new(),
            dry_run: false,
            unreadable: None,
        };
        self.give(name, vec![Resource::Policy(Box::new(policy))]);
    }

    fn remove(&mut self, name: &str) {
        self.give(name, Vec::new());
    }

    fn give(&mut self, name: &str, resources: Vec<Resource>) {
        self.store
            .replace(Source::Pod(name_of(&format!("a/{name}"))), resources);
        if let Some(snapshot) = self.store.commit() {
            self.snapshot = snapshot;
        }
    }

    fn ask(&mut self, request: DeltaDiscoveryRequest) -> Heard {
        self.session.request(request, &self.snapshot).unwrap()
    }

    fn subscribe(&mut self, type_url: &str) {
        self.ask(request(type_url));
    }

    /// The next response, without an answer to it.
    fn push(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.session.advance(&self.snapshot).unwrap();
        self.session.next_push(&self.snapshot)
    }

    /// The next response, acknowledged.
    fn take(&mut self) -> DeltaDiscoveryResponse {
        let response = self.push().expect("a response is owed");
        assert_eq!(self.ask(ack(&response)), Heard::Acknowledged);
        response
    }

    fn quiet(&mut self) {
        assert_eq!(self.push(), None);
    }

    fn status(&self) -> TypeStatus {
        self.session.status().remove(0)
    }

    fn version(&self, kind: Kind) -> Option<String> {
        Some(self.snapshot.shelf(kind).version().to_string())
    }
}

fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/a/{name}")
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        ..request(&response.type_url)
    }
}

fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        error_detail: Some(rpc::Status {
            code: 3,
            message: message.to_owned(),
            details: Vec::new(),
        }),
        ..ack(response)
    }
}

fn on_demand(keys: &[&str]) -> DeltaDiscoveryRequest {
    let mut subscribe = vec!["*".to_owned()];
    subscribe.extend(keys.iter().map(|key| (*key).to_owned()));
    DeltaDiscoveryRequest {
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..request(ADDRESS)
    }
}

/// Last parts of the names in a response: `+` sent, `-` gone.
fn content(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let last = |name: &str| name.rsplit('/').next().unwrap().to_owned();
    let sent = response
        .resources
        .iter()
        .map(|r| format!("+{}", last(&r.name)));
    let gone = response
        .removed_resources
        .iter()
        .map(|name| format!("-{}", last(name)));
    sent.chain(gone).collect()
}

const NONE: [&str; 0] = [];

#[test]
fn a_wildcard_gets_everything_and_then_changes() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.put("q", 1);
    stream.subscribe(ADDRESS);
    assert_eq!(content(&stream.take()), ["+p", "+q"]);
    stream.quiet();
    stream.put("q", 2);
    stream.put("r", 1);
    assert_eq!(content(&stream.take()), ["+q", "+r"]);
    stream.remove("p");
    assert_eq!(content(&stream.take()), ["-p"]);
    stream.quiet();
}

#[test]
fn a_subscription_is_answered_even_when_there_is_nothing() {
    let mut stream = Stream::new();
    stream.subscribe(POLICY);
    stream.subscribe(ADDRESS);
    let first = stream.take();
    assert_eq!(
        (content(&first), &*first.type_url),
        (vec![], POLICY),
        "policies come first"
    );
    assert_eq!(stream.take().type_url, ADDRESS);
    stream.quiet();
}

#[test]
fn one_type_never_gets_the_other_ones_resources() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.put_policy("x");
    stream.subscribe(POLICY);
    assert_eq!(content(&stream.take()), ["+x"]);
    stream.put("q", 1);
    stream.quiet();
}

#[test]
fn one_response_of_a_type_is_under_way_and_the_next_has_the_newest() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.subscribe(ADDRESS);
    let first = stream.push().unwrap();
    stream.put("p", 2);
    stream.put("p", 3);
    stream.quiet();
    assert!(stream.session.awaits_answer());
    stream.ask(ack(&first));
    let second = stream.take();
    let newest = stream
        .snapshot
        .shelf(Kind::Address)
        .entry(&uid("p"))
        .unwrap()
        .version
        .to_string();
    assert_eq!(second.resources[0].version, newest);
    stream.quiet();
}

#[test]
fn a_stale_or_made_up_nonce_acknowledges_nothing() {
    let mut stream = Stream::new();
    stream.subscribe(ADDRESS);
    let first = stream.push().unwrap();
    for nonce in ["", "0", "999"] {
        let mut other = ack(&first);
        other.response_nonce = nonce.to_owned();
        assert_eq!(stream.ask(other), Heard::Asked, "{nonce}");
    }
    assert_eq!(stream.status().acknowledged, None);
    stream.ask(ack(&first));
    assert_eq!(stream.status().acknowledged, stream.version(Kind::Address));
    stream.ask(ack(&first));
    stream.quiet();
}

#[test]
fn a_resuming_proxy_gets_what_changed_and_hears_what_is_gone() {
    let mut stream = Stream::new();
    for name in ["same", "changed", "new"] {
        stream.put(name, 1);
    }
    let same = stream
        .snapshot
        .shelf(Kind::Address)
        .entry(&uid("same"))
        .unwrap()
        .version
        .to_string();
    let held = [
        (uid("same"), same),
        (uid("changed"), "old".to_owned()),
        (uid("gone"), "old".to_owned()),
    ];
    stream.ask(DeltaDiscoveryRequest {
        initial_resource_versions: held.into(),
        ..request(ADDRESS)
    });
    assert_eq!(content(&stream.take()), ["+changed", "+new", "-gone"]);
    stream.quiet();
}

#[test]
fn a_resuming_proxy_that_has_everything_gets_an_empty_answer() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    let version = stream
        .snapshot
        .shelf(Kind::Address)
        .entry(&uid("p"))
        .unwrap()
        .version
        .to_string();
    stream.ask(DeltaDiscoveryRequest {
        initial_resource_versions: [(uid("p"), version)].into(),
        ..request(ADDRESS)
    });
    assert_eq!(content(&stream.take()), NONE);
    assert_eq!(stream.status().acknowledged, stream.version(Kind::Address));
}

#[test]
fn the_first_response_is_whole_and_later_ones_are_split() {
    let mut stream = Stream::new();
    for name in ["a", "b", "c"] {
        stream.put(name, 3 << 20);
    }
    stream.subscribe(ADDRESS);
    assert_eq!(content(&stream.take()), ["+a", "+b", "+c"]);
    for name in ["a", "b", "c"] {
        stream.put(name, (3 << 20) + 1);
    }
    assert_eq!(content(&stream.take()), ["+a", "+b"]);
    assert_ne!(
        stream.status().acknowledged,
        stream.version(Kind::Address),
        "a part follows"
    );
    assert_eq!(content(&stream.take()), ["+c"]);
    assert_eq!(stream.status().acknowledged, stream.version(Kind::Address));
}

#[test]
fn refused_resources_are_known_by_name_until_they_are_taken_or_gone() {
    let mut stream = Stream::new();
    for name in ["p", "q", "r"] {
        stream.put(name, 1);
    }
    stream.subscribe(ADDRESS);
    let first = stream.push().unwrap();
    let message = format!("{}: bad; worse: much; {}: no", uid("p"), uid("q"));
    assert_eq!(stream.ask(nack(&first, &message)), Heard::Rejected(message));
    let rejected = |stream: &Stream| {
        let rejected = stream.status().rejected.into_iter();
        rejected.map(|r| (r.name, r.cause)).collect::<Vec<_>>()
    };
    let (p, q) = (
        (uid("p"), "bad; worse: much".to_owned()),
        (uid("q"), "no".to_owned()),
    );
    assert_eq!(rejected(&stream), [p.clone(), q]);
    assert_eq!(stream.status().acknowledged, None);
    stream.quiet();
    stream.put("q", 2);
    stream.take();
    assert_eq!(rejected(&stream), [p]);
    stream.remove("p");
    stream.take();
    assert_eq!(rejected(&stream), []);
    assert_eq!(stream.status().acknowledged, stream.version(Kind::Address));
}

#[test]
fn a_refusal_that_names_nothing_is_kept_as_a_whole() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.subscribe(ADDRESS);
    let first = stream.push().unwrap();
    stream.ask(nack(&first, "no memory; none at all"));
    let rejected = stream.status().rejected;
    assert_eq!(
        (&*rejected[0].name, &*rejected[0].cause),
        ("", "no memory; none at all")
    );
}

#[test]
fn an_endless_refusal_is_cut() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.subscribe(ADDRESS);
    let first = stream.push().unwrap();
    stream.ask(nack(&first, &"ä".repeat(1 << 20)));
    assert!(stream.status().rejected[0].cause.len() <= 64 * 1024);
}

#[test]
fn a_type_that_does_not_exist_is_answered_empty() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    assert_eq!(
        stream.ask(request("type.googleapis.com/none")),
        Heard::Unknown
    );
    let answer = stream.take();
    assert_eq!(
        (content(&answer), &*answer.type_url),
        (vec![], "type.googleapis.com/none")
    );
    stream.put("p", 2);
    stream.quiet();
    stream.subscribe(ADDRESS);
    assert_eq!(content(&stream.take()), ["+p"], "the stream goes on");
}

#[test]
fn a_stream_without_types_or_with_too_many_ends() {
    let mut stream = Stream::new();
    let empty = stream.session.request(request(""), &stream.snapshot);
    assert_eq!(empty, Err(SessionError::Type));
    let long = stream
        .session
        .request(request(&"x".repeat(257)), &stream.snapshot);
    assert_eq!(long, Err(SessionError::Type));
    for number in 0..MAX_TYPES {
        stream.subscribe(&format!("t{number}"));
    }
    let surplus = stream
        .session
        .request(request("one-more"), &stream.snapshot);
    assert_eq!(surplus, Err(SessionError::Type));
}

#[test]
fn names_without_end_end_the_stream() {
    let many = |name: &str, count| vec![name.to_owned(); count];
    let subscribed = |names: Vec<String>| {
        let mut stream = Stream::new();
        stream.put("p", 1);
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: names,
            ..request(ADDRESS)
        };
        stream.session.request(request, &stream.snapshot)
    };
    assert_eq!(subscribed(many("*", 1000)), Ok(Heard::Asked));
    assert_eq!(subscribed(many("*", 100_001)), Err(SessionError::Names));
    let long = many(&"x".repeat(2000), 1);
    assert_eq!(subscribed(long.clone()), Err(SessionError::Names));
    let mut stream = Stream::new();
    let unsubscribing = DeltaDiscoveryRequest {
        resource_names_unsubscribe: long,
        ..request(ADDRESS)
    };
    let refused = stream.session.request(unsubscribing, &stream.snapshot);
    assert_eq!(refused, Err(SessionError::Names));
}

#[test]
fn keys_that_come_and_go_without_an_answer_leave_nothing() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.ask(on_demand(&["a/none"]));
    stream.push().unwrap();
    for number in 0..10 {
        let key = vec![format!("a/none-{number}")];
        stream.ask(DeltaDiscoveryRequest {
            resource_names_subscribe: key.clone(),
            resource_names_unsubscribe: key,
            ..request(ADDRESS)
        });
    }
    let unanswered = format!("{:?}", stream.session);
    assert!(!unanswered.contains("none-"), "{unanswered}");
}

#[test]
fn a_stream_that_fell_too_far_behind_ends() {
    let mut stream = Stream::new();
    stream.subscribe(ADDRESS);
    stream.take();
    for size in 0..2000 {
        stream.put("p", size);
    }
    assert_eq!(
        stream.session.advance(&stream.snapshot),
        Err(SessionError::Behind)
    );
}

#[test]
fn on_demand_gets_what_it_asks_for_and_hears_what_is_not_there() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.put("q", 1);
    stream.ask(on_demand(&[]));
    assert_eq!(content(&stream.take()), NONE, "nothing is asked for yet");
    stream.ask(DeltaDiscoveryRequest {
        resource_names_subscribe: vec![uid("p"), "/10.7.7.7".to_owned()],
        ..request(ADDRESS)
    });
    assert_eq!(content(&stream.take()), ["+p", "-10.7.7.7"]);
    stream.put("q", 2);
    stream.quiet();
    stream.put("p", 2);
    assert_eq!(content(&stream.take()), ["+p"]);
    stream.remove("p");
    assert_eq!(content(&stream.take()), ["-p"]);
    stream.put("p", 3);
    assert_eq!(content(&stream.take()), ["+p"], "it is still asked for");
}

#[test]
fn on_demand_by_address_names_the_alias() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.ask(on_demand(&["/10.0.0.1"]));
    let answer = stream.take();
    assert_eq!(content(&answer), ["+p"]);
    assert_eq!(answer.resources[0].aliases, ["/10.0.0.1"]);
}

#[test]
fn a_service_on_demand_brings_its_endpoints_along_also_later() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.put_service();
    stream.ask(on_demand(&["a/s"]));
    assert_eq!(content(&stream.take()), ["+p", "+s"]);
    stream.put("q", 1);
    assert_eq!(content(&stream.take()), ["+q"]);
}

#[test]
fn a_key_on_demand_is_answered_when_it_comes_to_be() {
    let mut stream = Stream::new();
    stream.ask(on_demand(&["a/s"]));
    assert_eq!(content(&stream.take()), ["-s"]);
    stream.put_service();
    assert_eq!(content(&stream.take()), ["+s"]);
    stream.put("p", 1);
    assert_eq!(content(&stream.take()), ["+p"]);
}

#[test]
fn what_is_no_longer_asked_for_is_no_longer_sent() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.ask(on_demand(&[&uid("p")]));
    stream.take();
    stream.ask(DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec![uid("p")],
        ..request(ADDRESS)
    });
    stream.put("p", 2);
    stream.quiet();
}

#[test]
fn a_proxy_that_needs_nothing_of_a_change_is_current() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.ask(on_demand(&[&uid("p")]));
    stream.take();
    stream.put("q", 1);
    stream.quiet();
    assert_eq!(stream.status().acknowledged, stream.version(Kind::Address));
}

#[test]
fn on_demand_resumes_with_what_it_holds() {
    let mut stream = Stream::new();
    stream.put("p", 1);
    stream.put("q", 1);
    stream.ask(DeltaDiscoveryRequest {
        initial_resource_versions: [
            (uid("q"), "old".to_owned()),
            (uid("gone"), "old".to_owned()),
        ]
        .into(),
        ..on_demand(&[])
    });
    assert_eq!(content(&stream.take()), ["+q", "-gone"]);
    stream.put("q", 2);
    assert_eq!(content(&stream.take()), ["+q"], "what it holds it follows");
}
