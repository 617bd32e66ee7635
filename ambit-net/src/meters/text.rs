//! Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).
//!
//! Called by the registry at each scrape. Knows no metric.

use std::fmt::{Display, Write};

use super::table::About;

/// Writes what is said once of a metric.
pub(super) fn head(out: &mut String, about: &About) {
    let (name, kind, help) = (about.name, about.kind.word(), about.help);
    append(
        out,
        format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
    );
}

/// Writes one series; `labels` as [`labels`] prints them.
pub(super) fn line(out: &mut String, name: &str, labels: &str, value: impl Display) {
    match labels {
        "" => append(out, format_args!("{name} {value}\n")),
        labels => append(out, format_args!("{name}{{{labels}}} {value}\n")),
    }
}

/// Prints labels as they stand between the braces.
pub(super) fn labels<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape(&mut out, value);
        out.push('"');
    }
    out
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _written = out.write_fmt(text).is_ok();
}
