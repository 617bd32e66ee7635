//! What the file source refuses, names and keeps.

use std::path::Path;

use ambit_core::names::NamespacedName;

use super::*;
use crate::testing::documents;

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: a}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.1}]}
";

fn source() -> Source {
    Source::new("mesh".into())
}

fn snapshot(yaml: &str) -> Snapshot {
    Snapshot {
        complete: true,
        documents: documents(yaml),
        problems: Vec::new(),
    }
}

fn text(parts: &[&str]) -> String {
    parts.join("\n---\n")
}

/// What happened, one word per event.
fn words(events: &[Event]) -> Vec<String> {
    let word = |event: &Event| match event {
        Event::Applied(applied) => format!("+{}", applied.key.kind.as_str()),
        Event::Deleted(key) => format!("-{} {}", key.kind.as_str(), key.name),
        Event::Problems(problems) => format!("{} problems", problems.len()),
        other => format!("{other:?}"),
    };
    events.iter().map(word).collect()
}

fn problems(events: &[Event]) -> Vec<Problem> {
    let found = events.iter().find_map(|event| match event {
        Event::Problems(problems) => Some(problems.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

#[test]
fn changes_become_events_and_sameness_none() {
    let mut source = source();
    let both = snapshot(&text(&[NAMESPACES, POD]));
    assert_eq!(words(&source.take(&both)), ["+Namespace", "+Pod"]);
    assert_eq!(words(&source.take(&both)), Vec::<String>::new());
    let moved = snapshot(&text(&[NAMESPACES, &POD.replace("10.0.0.1", "10.0.0.2")]));
    assert_eq!(words(&source.take(&moved)), ["+Pod"]);
    assert_eq!(words(&source.take(&snapshot(NAMESPACES))), ["-Pod a/web"]);
}

#[test]
fn an_object_in_a_missing_namespace_is_refused_by_file_and_line() {
    let mut source = source();
    let lost = POD.replace("namespace: a", "namespace: lost");
    let events = source.take(&snapshot(&text(&[NAMESPACES, &lost, POD])));
    assert_eq!(words(&events), ["+Namespace", "+Pod", "1 problems"]);
    let expected = Problem {
        place: "test.yaml:2".into(),
        what: "Pod lost/web is refused: there is no Namespace lost".into(),
    };
    assert_eq!(problems(&events), [expected]);
}

#[test]
fn what_loses_its_namespace_is_withdrawn() {
    let mut source = source();
    source.take(&snapshot(&text(&[NAMESPACES, POD])));
    let events = source.take(&snapshot(POD));
    assert_eq!(
        words(&events),
        ["-Namespace /a", "-Pod a/web", "1 problems"]
    );
}

#[test]
fn the_root_namespace_needs_no_document() {
    let policy = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: mesh}}";
    let events = source().take(&snapshot(policy));
    assert_eq!(words(&events), ["+AuthorizationPolicy"]);
}

#[test]
fn the_second_object_of_a_name_is_refused() {
    let other = POD.replace("10.0.0.1", "10.0.0.2");
    let events = source().take(&snapshot(&text(&[NAMESPACES, POD, &other])));
    assert_eq!(words(&events), ["+Namespace", "+Pod", "1 problems"]);
    let what = "Pod a/web is refused: it is already in test.yaml:2";
    assert_eq!(problems(&events)[0].what, what);
}

#[test]
fn an_object_with_a_wrong_field_stays_as_it_was() {
    let mut source = source();
    source.take(&snapshot(&text(&[NAMESPACES, POD])));
    let wrong = snapshot(&text(&[NAMESPACES, &POD.replace("{nodeName: n1}", "[]")]));
    let events = source.take(&wrong);
    assert_eq!(words(&events), ["1 problems"]);
    assert_eq!(words(&source.take(&wrong)), Vec::<String>::new());
}

#[test]
fn what_names_no_object_is_reported_and_not_fatal() {
    let cases = [
        ("a: 1", "needs apiVersion and kind"),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}",
            "v1 ConfigMap has no effect",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {namespace: a}}",
            "metadata.name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a_b, namespace: a}}",
            "metadata.name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: ../x}}",
            "metadata.namespace",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a.b, namespace: a}}",
            "metadata.name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {containers: [], serviceAccountName: a/b}}",
            "serviceAccountName",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {containers: [], nodeName: ../n}}",
            "nodeName",
        ),
    ];
    for (yaml, cause) in cases {
        let events = source().take(&snapshot(&text(&[yaml, NAMESPACES])));
        assert_eq!(words(&events), ["+Namespace", "1 problems"], "{yaml}");
        let problem = &problems(&events)[0];
        assert!(problem.what.contains(cause), "{yaml}: {problem:?}");
        assert_eq!(problem.place, "test.yaml:1", "{yaml}");
    }
}

#[test]
fn a_list_is_its_items() {
    let list = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: b}}]}";
    assert_eq!(words(&source().take(&snapshot(list))), ["+Namespace"]);
}

fn broken(head: &str, previous_in_force: bool) -> documents::Problem {
    let head = documents(head).remove(0);
    documents::Problem {
        file: Path::new("broken.yaml").into(),
        line: Some(9),
        cause: "unclosed bracket".into(),
        previous_in_force,
        head: Some(Document::clone(&head)),
    }
}

#[test]
fn a_broken_policy_is_there_and_not_understood() {
    let head = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: a}}";
    let mut state = snapshot(NAMESPACES);
    state.problems.push(broken(head, false));
    let events = source().take(&state);
    assert_eq!(
        words(&events),
        ["+Namespace", "+AuthorizationPolicy", "1 problems"]
    );
    let Some(Event::Applied(applied)) = events.get(1) else {
        panic!("{events:?}");
    };
    let Object::AuthorizationPolicy(policy) = &*applied.object else {
        panic!("{applied:?}");
    };
    assert_eq!(policy.name, NamespacedName::new("a", "p"));
    assert_eq!(
        policy.spec.as_ref().unwrap_err().as_ref(),
        "unclosed bracket"
    );
    assert_eq!(problems(&events)[0].place, "broken.yaml:9");
}

#[test]
fn a_broken_document_of_another_kind_or_with_a_past_is_only_reported() {
    let policy = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: a}}";
    for problem in [broken(POD, false), broken(policy, true)] {
        let mut state = snapshot(NAMESPACES);
        state.problems.push(problem);
        assert_eq!(words(&source().take(&state)), ["+Namespace", "1 problems"]);
    }
}
