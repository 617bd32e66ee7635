//! Documents that are printed from the code are equal to what the code prints; walkthroughs name what exists.
//!
//! `make docs` writes them anew.

use std::fmt::Write as _;
use std::fs;

use ambit_core::reason::Reason;

use crate::architecture::RULES;
use crate::source::{root, text};

/// Begin and end of the part of a page that is printed from the code.
const BEGIN: &str = "<!-- printed from the code; `make docs` writes it anew -->";
const END: &str = "<!-- end of the printed part -->";

#[test]
fn documents_are_fresh() {
    let pages = [
        ("docs/architecture.md", crate_table()),
        ("docs/reasons.md", reason_table()),
        ("docs/metrics.md", ambit_net::meters::table()),
        ("docs/config.md", settings()),
    ];
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    for (page, printed) in pages {
        let old = text(page);
        let new = replace_printed(page, &old, &printed);
        if update {
            fs::write(root().join(page), &new).expect("docs/ is writable");
        } else {
            assert!(
                old == new,
                "{page} differs from the code; `make docs` writes it anew"
            );
        }
    }
}

#[test]
fn troubleshooting_knows_every_reason() {
    let page = text("docs/troubleshoot.md");
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::Ok) {
        let row = page
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&format!("`{}`", reason.code())));
        assert!(
            row.is_some(),
            "docs/troubleshoot.md has no row for `{}`",
            reason.code()
        );
    }
}

#[test]
fn walkthroughs_name_files_and_functions_that_exist() {
    let page = text("docs/walkthroughs.md");
    let mut checked = 0;
    for stop in page.split('`').skip(1).step_by(2) {
        let Some((file, function)) = stop.split_once(": ") else {
            continue;
        };
        if !file.ends_with(".rs") {
            continue;
        }
        let code = text(file);
        let found = ["fn ", "struct ", "enum "]
            .iter()
            .any(|kind| code.contains(&format!("{kind}{function}")));
        assert!(
            found,
            "docs/walkthroughs.md names `{stop}`, but {file} has no {function}"
        );
        checked += 1;
    }
    assert!(
        checked >= 25,
        "only {checked} stops were found in docs/walkthroughs.md"
    );
}

fn replace_printed(page: &str, old: &str, printed: &str) -> String {
    let (head, rest) = old
        .split_once(BEGIN)
        .unwrap_or_else(|| panic!("{page} has no line `{BEGIN}`"));
    let (_, tail) = rest
        .split_once(END)
        .unwrap_or_else(|| panic!("{page} has no line `{END}`"));
    format!("{head}{BEGIN}\n\n{}\n\n{END}{tail}", printed.trim())
}

/// The settings of each program, under its name.
fn settings() -> String {
    let programs = [
        ("controller", controller::config::table()),
        ("ambit-cni-agent", cni_plugin::config::table()),
        ("ztunnel", ztunnel::config::table()),
    ];
    let section = |(program, table): &(&str, String)| format!("## {program}\n\n{}", table.trim());
    programs
        .iter()
        .map(section)
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn crate_table() -> String {
    let mut table = String::from(
        "| crate | may import of ours | may name of others | must not know |\n|---|---|---|---|\n",
    );
    for rule in RULES {
        let list = |names: &[&str]| {
            if names.is_empty() {
                "–".to_owned()
            } else {
                names.join(", ")
            }
        };
        let (ours, others) = (list(rule.ours), list(rule.others));
        writeln!(
            table,
            "| {} | {ours} | {others} | {} |",
            rule.name, rule.must_not_know
        )
        .expect("a String takes it");
    }
    table
}

fn reason_table() -> String {
    let mut table = String::from(
        "| word | what happened | what to do | who has to act | can a retry help | response flags | CONNECT status |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let retry = if reason.retry_can_help() { "yes" } else { "no" };
        let blame = format!("{:?}", reason.blame()).to_lowercase();
        writeln!(
            table,
            "| `{}` | {} | {} | {blame} | {retry} | `{}` | {} |",
            reason.code(),
            reason.meaning(),
            reason.next_step(),
            reason.response_flags(),
            reason.connect_status(),
        )
        .expect("a String takes it");
    }
    table
}
