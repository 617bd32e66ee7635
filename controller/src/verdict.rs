//! Whether an object means what its author wrote, and why not: what its condition says. Pure.
//!
//! Made by the publisher with each translation, told to the API server by [`crate::conditions`]. Policies always have a
//! verdict; a Service has one while something of it is wrong, and as long as a condition of ours still says so.

use std::collections::BTreeMap;

use crate::index::{Index, Source};
use crate::translate::{Acceptance, Translated};

/// What a good policy's condition says.
const GOOD: &str = "it is enforced";
/// Longest message, in bytes; a condition may have 32768.
const MAX_MESSAGE: usize = 4096;

/// The verdicts on all objects that have one.
pub type Verdicts = BTreeMap<Source, Verdict>;

/// One verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The generation that was translated, of objects that count.
    pub generation: Option<i64>,
    /// Whether it means what it says.
    pub acceptance: Acceptance,
    /// The same in words for the object's author.
    pub message: String,
}

impl Verdict {
    /// The verdict on an object that was just translated; none on one that is gone or is told nothing.
    pub fn of(index: &Index, source: &Source, translated: &Translated) -> Option<Self> {
        let generation = match source {
            Source::AuthorizationPolicy(name) => index.authorization(name)?.generation,
            Source::PeerAuthentication(name) => index.authentication(name)?.generation,
            Source::Service(name) => {
                let told = index.service(name)?.has_condition;
                let good = translated.acceptance == Acceptance::Accepted;
                (told || !good).then_some(None)?
            }
            Source::Pod(_) | Source::EndpointSlice(_) | Source::StrictPolicy => return None,
        };
        let mut message = translated.problems.join("; ");
        if message.is_empty() {
            message = GOOD.to_owned();
        }
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Some(Self {
            generation,
            acceptance: translated.acceptance,
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{index, name_of};
    use crate::translate::translate;

    fn verdict(yaml: &str, source: &Source) -> Option<Verdict> {
        let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n";
        let index = index(&format!("{namespace}{yaml}"));
        Verdict::of(&index, source, &translate(&index, source))
    }

    fn authorization(spec: &str) -> Verdict {
        let yaml = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: a, generation: 4}}, spec: {spec}}}"
        );
        verdict(&yaml, &Source::AuthorizationPolicy(name_of("a/p"))).unwrap()
    }

    #[test]
    fn a_policy_is_accepted_with_no_effect_or_not_understood() {
        let cases = [
            ("{}", Acceptance::Accepted, GOOD),
            (
                "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
                Acceptance::Accepted,
                "spec.rules[0]",
            ),
            ("{action: AUDIT}", Acceptance::NoEffect, "AUDIT"),
            ("{action: CUSTOM}", Acceptance::NotUnderstood, "CUSTOM"),
            ("{rulez: []}", Acceptance::NotUnderstood, "rulez"),
        ];
        for (spec, acceptance, words) in cases {
            let verdict = authorization(spec);
            assert_eq!(verdict.acceptance, acceptance, "{spec}: {verdict:?}");
            assert!(verdict.message.contains(words), "{spec}: {verdict:?}");
            assert_eq!(verdict.generation, Some(4));
        }
    }

    #[test]
    fn an_authentication_policy_has_one_too() {
        let of = |spec: &str| {
            let yaml = format!(
                "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: p, namespace: a}}, spec: {spec}}}"
            );
            verdict(&yaml, &Source::PeerAuthentication(name_of("a/p"))).unwrap()
        };
        assert_eq!(
            of("{mtls: {mode: STRICT}}").acceptance,
            Acceptance::Accepted
        );
        assert_eq!(
            of("{mtls: {mode: STRICTER}}").acceptance,
            Acceptance::NotUnderstood
        );
    }

    #[test]
    fn a_service_has_one_while_it_is_wrong_or_its_condition_says_so() {
        let of = |spec: &str, status: &str| {
            let yaml = format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: a}}, spec: {spec}, status: {status}}}"
            );
            verdict(&yaml, &Source::Service(name_of("a/s"))).map(|verdict| verdict.acceptance)
        };
        let told = "{conditions: [{type: ambit.mesh/Accepted, status: 'False', reason: NotUnderstood, message: m, lastTransitionTime: '2026-01-01T00:00:00Z'}]}";
        let (good, bad) = (
            "{clusterIP: 10.0.0.1}",
            "{clusterIP: 10.0.0.1, trafficDistribution: Odd}",
        );
        assert_eq!(of(good, "{}"), None);
        assert_eq!(of(bad, "{}"), Some(Acceptance::NotUnderstood));
        assert_eq!(of(bad, told), Some(Acceptance::NotUnderstood));
        assert_eq!(of(good, told), Some(Acceptance::Accepted));
    }

    #[test]
    fn an_object_that_is_gone_has_none() {
        let gone = Source::AuthorizationPolicy(name_of("a/gone"));
        assert_eq!(verdict("", &gone), None);
    }
}
