//! What was looked at, how it was found and what to do: one line of `ambit check`, and what a node agent tells of its node.
//!
//! Made by the node agent (`/checks`) and by the cli, printed by the cli. Fields that a reader does not know or does not
//! find are no error: both may be one version apart.

use serde::{Deserialize, Serialize};

/// One thing that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Check {
    /// Short stable name, such as `kernel` or `cni-configuration`.
    pub name: String,
    /// How it is.
    pub grade: Grade,
    /// What was found, in one line.
    pub found: String,
    /// Single findings, one line each, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_step: String,
}

/// How something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// As it should be.
    Good,
    /// Something does not work.
    Bad,
    /// The mesh works, and somebody should know this. Also a grade of a newer program.
    #[default]
    #[serde(other)]
    Note,
}

/// What one node agent found on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeChecks {
    /// Version of the agent.
    pub version: String,
    /// The node.
    pub node: String,
    /// By name.
    pub checks: Vec<Check>,
}

impl Check {
    /// All is well; `found` says what was seen.
    pub fn good(name: &str, found: impl Into<String>) -> Self {
        Self::of(name, Grade::Good, found, "")
    }

    /// It works and should be known; `next_step` may be empty.
    pub fn note(name: &str, found: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::of(name, Grade::Note, found, next_step)
    }

    /// It does not work.
    pub fn bad(name: &str, found: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::of(name, Grade::Bad, found, next_step)
    }

    /// The same with single findings.
    #[must_use]
    pub fn with(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    fn of(name: &str, grade: Grade, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            grade,
            found: found.into(),
            details: Vec::new(),
            next_step: next.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_another_version_is_still_read() {
        let newer = r#"{ "version": "0.2.0", "moon": "full",
            "checks": [{ "name": "kernel", "grade": "splendid", "found": "Linux 9" }] }"#;
        let read: NodeChecks = serde_json::from_str(newer).unwrap();
        assert_eq!(read.version, "0.2.0");
        assert_eq!(read.checks, [Check::note("kernel", "Linux 9", "")]);
    }

    #[test]
    fn what_is_written_is_read() {
        let written = NodeChecks {
            version: "0.1.0".into(),
            node: "n1".into(),
            checks: vec![
                Check::good("a", "x"),
                Check::bad("b", "y", "do z").with(vec!["1".into()]),
            ],
        };
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<NodeChecks>(&json).unwrap(), written);
    }
}
