//! What the kernel says is read without trust, and its refusals are understood.

use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use proptest::prelude::*;

use super::*;
use crate::redirect::{RedirectError, Step};

/// A batch: begin, a table, a chain, and a rule with an expression called `absent`.
#[rustfmt::skip]
const REQUEST: [u8; 172] = [
    20, 0, 0, 0, 16, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10,
    28, 0, 0, 0, 0, 10, 5, 4, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, 116, 0, 0, 0,
    36, 0, 0, 0, 3, 10, 5, 4, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, 116, 0, 0, 0, 6, 0, 3, 0, 99, 0, 0, 0,
    60, 0, 0, 0, 6, 10, 5, 12, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 1, 0, 116, 0, 0, 0, 6, 0, 2, 0, 99, 0, 0, 0,
        24, 0, 4, 128, 20, 0, 1, 128, 11, 0, 1, 0, 97, 98, 115, 101, 110, 116, 0, 0, 4, 0, 2, 128,
    20, 0, 0, 0, 17, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// Where the rule begins in it.
const RULE: usize = 84;
/// What Linux 6.18 answered to the rule: `ENOENT`, and a pointer at the name of the expression.
#[rustfmt::skip]
const ANSWER: [u8; 44] = [
    44, 0, 0, 0, 2, 0, 0, 3, 4, 0, 0, 0, 173, 96, 0, 0, 254, 255, 255, 255,
    60, 0, 0, 0, 6, 10, 5, 12, 4, 0, 0, 0, 0, 0, 0, 0, 8, 0, 2, 0, 40, 0, 0, 0,
];

/// The error in an answer to the rule of [`REQUEST`].
fn read(answer: &[u8]) -> Option<Refusal> {
    let messages = split::<NetfilterMessage>(answer).ok()?;
    match messages.into_iter().next()?.ok()?.payload {
        NetlinkPayload::Error(error) => Some(refusal(3, &error, REQUEST.get(RULE..))),
        _ => None,
    }
}

#[test]
fn a_refusal_names_what_the_kernel_points_at() {
    let refusal = read(&ANSWER).expect("a refusal");
    assert_eq!(refusal.source.raw_os_error(), Some(2));
    assert_eq!(refusal.text, None);
    let pointed = refusal.attribute.clone().expect("a pointer");
    assert!(
        pointed.windows(7).any(|part| part == b"absent\0"),
        "{pointed:?}"
    );
    let error = NetlinkError::Refused(refusal);
    let told = RedirectError::explain(Step::Rule, error).to_string();
    assert!(
        told.contains("the kernel lacks the nftables expression \"absent\""),
        "{told}"
    );
}

#[test]
fn a_refusal_repeats_the_words_of_the_kernel() {
    let words = b"not today\0";
    let mut answer = ANSWER[..36].to_vec();
    answer.extend([14, 0, 1, 0]);
    answer.extend(words);
    answer.extend([0, 0]);
    answer[0] = u8::try_from(answer.len()).unwrap();
    let refusal = read(&answer).expect("a refusal");
    assert_eq!(refusal.text.as_deref(), Some("not today"));
    assert!(refusal.to_string().ends_with("(not today)"), "{refusal}");
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    for length in [0, 45, u8::MAX] {
        let mut answer = ANSWER;
        answer[0] = length;
        assert!(split::<NetfilterMessage>(&answer).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn no_answer_panics(answer in proptest::collection::vec(any::<u8>(), 0..128)) {
        drop(split::<NetfilterMessage>(&answer));
        drop(split::<RouteNetlinkMessage>(&answer));
        drop(read(&answer));
    }

    #[test]
    fn no_damaged_answer_panics(at in 0..ANSWER.len(), byte: u8, length in 16..=ANSWER.len()) {
        let mut answer = ANSWER;
        answer[at] = byte;
        drop(read(&answer));
        answer[0] = u8::try_from(length).unwrap();
        drop(read(&answer[..length]));
    }
}
