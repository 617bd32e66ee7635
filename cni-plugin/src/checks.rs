//! What the agent found on its node: the kernel, the CNI chain, ztunnel. A board that the parts write on.
//!
//! Shown by `endpoints.rs` at `/checks`, where `ambit check` reads it. Knows nothing of what is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_core::checks::{Check, Grade, NodeChecks};
use tokio::sync::watch;
use tracing::{info, warn};

/// What was said last under each name. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    said: Arc<watch::Sender<BTreeMap<String, Check>>>,
}

impl Checks {
    /// Notes a finding in place of what was said under its name; logs it when it has become bad, or good again.
    pub fn note(&self, check: Check) {
        let mut before = None;
        let news = self.said.send_if_modified(|said| {
            let old = said.insert(check.name.clone(), check.clone());
            let news = old.as_ref() != Some(&check);
            before = old.map(|old| old.grade);
            news
        });
        if !news || before == Some(check.grade) {
            return;
        }
        let Check {
            name,
            found,
            next_step,
            grade,
            ..
        } = check;
        match grade {
            Grade::Bad => warn!(check = name, found, next_step, "a check of this node fails"),
            Grade::Good if before.is_some() => info!(check = name, found, "a check passes again"),
            Grade::Good | Grade::Note => {}
        }
    }

    /// Forgets what was said under a name: it is no matter any more.
    pub fn strike(&self, name: &str) {
        self.said
            .send_if_modified(|said| said.remove(name).is_some());
    }

    /// The document that `ambit check` reads.
    pub fn document(&self, node: &str, version: &str) -> NodeChecks {
        NodeChecks {
            version: version.to_owned(),
            node: node.to_owned(),
            checks: self.said.borrow().values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_under_a_name_counts() {
        let board = Checks::default();
        board.note(Check::bad("kernel", "no nat", "modprobe"));
        board.note(Check::good("cni", "there"));
        board.clone().note(Check::good("kernel", "all there"));
        let said = board.document("n1", "0.1.0");
        assert_eq!(
            said.checks,
            [
                Check::good("cni", "there"),
                Check::good("kernel", "all there")
            ]
        );
        board.strike("cni");
        board.strike("never said");
        assert_eq!(board.document("n1", "0.1.0").checks.len(), 1);
    }
}
