//! Notations of settings: lengths of time, yes and no, and how far a misspelt name is from a known one.
//!
//! Called by `env` only. Knows no setting.

use std::time::Duration;

/// Units of time, the longest first, in nanoseconds; the notation is Go's, which Istio's settings use.
const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads whole numbers with units, one after the other: `1h30m`, `250ms`. A zero needs no unit.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0_u64;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at_checked(span(rest, |c| c.is_ascii_digit()))?;
        let (unit, after) = after.split_at_checked(span(after, |c| c.is_ascii_alphabetic()))?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let number: u64 = digits.parse().ok()?;
        nanos = nanos.checked_add(number.checked_mul(*factor)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos))
}

/// Prints a length of time so that [`parse_duration`] reads it; more than 500 years are cut to that.
pub(super) fn print_duration(time: Duration) -> String {
    let mut left = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in UNITS {
        if left >= factor {
            text.push_str(&format!("{}{unit}", left / factor));
            left %= factor;
        }
    }
    text
}

/// Reads yes or no as Istio's and Kubernetes' settings spell it.
pub(super) fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// How many letters have to be inserted, dropped or replaced to make one name of the other (Levenshtein).
pub(super) fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, a) in (1..).zip(one.bytes()) {
        let mut diagonal = above - 1;
        let mut left = above;
        for (cell, b) in row.iter_mut().skip(1).zip(other.bytes()) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            *cell = replaced.min(*cell + 1).min(left + 1);
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = above;
        }
    }
    row.last().copied().unwrap_or(0)
}

fn span(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("5s", 5000),
            ("1h30m", 5_400_000),
            ("1m1s1ms", 61_001),
            ("24h", 86_400_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "5 s",
            "1.5s",
            "5x",
            "99999999999999999999s",
            "9999999999h",
            "5s3",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn flags_are_words_or_digits() {
        for yes in ["true", "TRUE", "1"] {
            assert_eq!(parse_flag(yes), Some(true));
        }
        for no in ["false", "False", "0"] {
            assert_eq!(parse_flag(no), Some(false));
        }
        assert_eq!(parse_flag("yes"), None);
    }

    #[test]
    fn distance_counts_letters() {
        for (one, other, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("AMBIT_NODE", "AMBIT_NODE_NAME", 5),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }

    proptest! {
        #[test]
        fn printed_durations_read_back(nanos in any::<u64>()) {
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&print_duration(time)), Some(time));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            parse_duration(&text);
            parse_flag(&text);
        }
    }
}
