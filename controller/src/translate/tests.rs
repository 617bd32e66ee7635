//! What is translated after each single change is what would be translated from scratch.

use std::collections::BTreeMap;

use super::*;
use crate::index::Dirty;
use crate::index::served::CaptureSource;
use crate::testing::{applied, apply, index, mesh, objects, served};
use crate::watch::{Event, Object};

/// Objects that all depend on each other, each in two forms.
const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}, annotations: {networking.istio.io/traffic-distribution: PreferClose}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: a}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a, labels: {app: web}}, spec: {nodeName: n1, serviceAccountName: web}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a, labels: {app: db}}, spec: {nodeName: n1, serviceAccountName: web}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: q, namespace: a}, spec: {nodeName: n2}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: 10.9.0.1, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: 10.9.0.1, selector: {app: db}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: 10.9.0.1, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e, namespace: a, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, ports: [{port: 8080}], endpoints: [{addresses: [10.0.0.2], targetRef: {kind: Pod, name: q}}, {addresses: [192.0.2.1, 192.0.2.2], nodeName: n1}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e, namespace: a, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, ports: [{port: 8080}], endpoints: [{addresses: [192.0.2.1], nodeName: n1}]}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: r, namespace: a}, spec: {selector: {matchLabels: {app: web}}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: r, namespace: a}, spec: {selector: {matchLabels: {app: db}}, action: AUDIT}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: r, namespace: mesh}, spec: {selector: {matchLabels: {app: db}}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: m, namespace: mesh}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: m, namespace: mesh}, spec: {mtls: {mode: BROKEN}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: w, namespace: a}, spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: w, namespace: a}, spec: {selector: {matchLabels: {app: db}}, portLevelMtls: {8080: {mode: STRICT}}}}
";

/// Everything that an index gives, by source.
type All = BTreeMap<Source, Translated>;

fn take(all: &mut All, index: &Index, dirty: Dirty) {
    for source in dirty {
        let translated = translate(index, &source);
        if translated == Translated::default() {
            all.remove(&source);
        } else {
            all.insert(source, translated);
        }
    }
}

#[test]
fn one_change_at_a_time_gives_what_all_at_once_gives() {
    let world = objects(WORLD);
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut live = Index::new(mesh(), CaptureSource::Reports);
        let mut all = All::new();
        let mut there: BTreeMap<_, Object> = BTreeMap::new();
        let mut reported: &[&str] = &[];
        for step in 0..60 {
            let (key, object) = random.choice(&world).unwrap();
            let (key, object) = (key.clone(), again(object));
            let event = match random.u8(0..5) {
                0 => {
                    there.remove(&key);
                    Event::Deleted(key)
                }
                1 => {
                    let reports: [&[&str]; 3] = [&[], &["a/p"], &["a/p", "a/q"]];
                    reported = random.choice(reports).unwrap();
                    Event::Served(served("n1", reported))
                }
                _ => {
                    there.insert(key.clone(), again(&object));
                    applied(key, object)
                }
            };
            let said = format!("{event:?}");
            let dirty = live.apply(event);
            take(&mut all, &live, dirty);

            let mut fresh = Index::new(mesh(), CaptureSource::Reports);
            fresh.apply(Event::Served(served("n1", reported)));
            for (key, object) in &there {
                fresh.apply(applied(key.clone(), again(object)));
            }
            let every = there.keys().filter_map(Source::of);
            let mut expected = All::new();
            take(
                &mut expected,
                &fresh,
                every.chain([Source::StrictPolicy]).collect(),
            );
            assert_eq!(all, expected, "seed {seed}, step {step}: {said}");
        }
    }
}

/// The same object once more; Kubernetes' types are read anew, since the index takes them whole.
fn again(object: &Object) -> Object {
    match object {
        Object::Namespace(o) => Object::Namespace(o.clone()),
        Object::Node(o) => Object::Node(o.clone()),
        Object::ServiceAccount(o) => Object::ServiceAccount(o.clone()),
        Object::Service(o) => Object::Service(o.clone()),
        Object::EndpointSlice(o) => Object::EndpointSlice(o.clone()),
        Object::Pod(o) => Object::Pod(o.clone()),
        Object::AuthorizationPolicy(o) => Object::AuthorizationPolicy(o.clone()),
        Object::PeerAuthentication(o) => Object::PeerAuthentication(o.clone()),
    }
}

#[test]
fn what_is_applied_twice_touches_nothing() {
    let mut index = index(WORLD);
    let last = WORLD.rsplit("---").next().unwrap();
    assert_eq!(apply(&mut index, last), Dirty::new());
}
