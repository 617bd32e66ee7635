//! Prints checks for a person: one line for each, what to do under those that are not good, and a closing line.
//!
//! Pure: checks go in, text comes out.

use ambit_core::checks::{Check, Grade};

use super::Section;
use super::nodes::count;

/// `colours` marks grades as terminals show them.
pub(super) fn render(sections: &[Section], colours: bool) -> String {
    let all = || sections.iter().flat_map(|section| &section.checks);
    let width = all().map(|check| check.name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for section in sections {
        lines.push(section.title.to_owned());
        for check in &section.checks {
            lines.extend(of_one(check, width, colours));
        }
        lines.push(String::new());
    }
    let of = |grade| all().filter(|check| check.grade == grade).count();
    lines.push(format!(
        "{}: {} good, {} to know, {} failed",
        count(all().count(), "check"),
        of(Grade::Good),
        of(Grade::Note),
        of(Grade::Bad)
    ));
    lines.join("\n")
}

fn of_one(check: &Check, width: usize, colours: bool) -> Vec<String> {
    let (word, colour) = match check.grade {
        Grade::Good => ("ok  ", "32"),
        Grade::Note => ("note", "33"),
        Grade::Bad => ("FAIL", "31"),
    };
    let word = match colours {
        true => format!("\u{1b}[{colour}m{word}\u{1b}[0m"),
        false => word.to_owned(),
    };
    let mut lines = vec![format!("  {word}  {:width$}  {}", check.name, check.found)];
    let details = check
        .details
        .iter()
        .map(|detail| format!("          {detail}"));
    lines.extend(details);
    if !check.next_step.is_empty() {
        lines.push(format!("        → {}", check.next_step));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_grade_is_seen_and_counted() {
        let sections = [
            Section {
                title: "CLUSTER",
                checks: vec![Check::good("api-server", "v1.34.4")],
            },
            Section {
                title: "MESH",
                checks: vec![
                    Check::note("kinds", "none", ""),
                    Check::bad("agents", "1 of 2", "look").with(vec!["n2: away".into()]),
                ],
            },
        ];
        let expected = "\
CLUSTER
  ok    api-server  v1.34.4

MESH
  note  kinds       none
  FAIL  agents      1 of 2
          n2: away
        → look

3 checks: 1 good, 1 to know, 1 failed";
        assert_eq!(render(&sections, false), expected);
        let coloured = render(&sections, true);
        assert!(coloured.contains("\u{1b}[31mFAIL\u{1b}[0m"), "{coloured}");
    }
}
