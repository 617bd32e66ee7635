//! What a test did so far, command by command with the answers, for the reader of its failure.
//!
//! Written by `cluster.rs`; each test runs on one thread, so each thread has its journal. Knows nothing of Kubernetes.

use std::cell::RefCell;
use std::collections::VecDeque;

/// Steps that are kept: a poll repeats itself.
const STEPS: usize = 40;
/// Bytes of one input or answer that are shown.
const LONGEST: usize = 1500;

thread_local! {
    static STEPS_TAKEN: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// Forgets what an earlier test on this thread did.
pub fn begin() {
    STEPS_TAKEN.with_borrow_mut(VecDeque::clear);
}

/// Keeps one step.
pub fn note(command: &str, input: &str, answer: &str) {
    let fed = match input {
        "" => String::new(),
        input => format!("\n  < {}", shown(input)),
    };
    let step = format!("$ {command}{fed}\n  > {}", shown(answer));
    STEPS_TAKEN.with_borrow_mut(|steps| {
        if steps.back() == Some(&step) {
            return;
        }
        steps.push_back(step);
        if steps.len() > STEPS {
            let _oldest = steps.pop_front();
        }
    });
}

/// The steps, oldest first.
pub fn tell() -> String {
    STEPS_TAKEN.with_borrow(|steps| steps.iter().cloned().collect::<Vec<_>>().join("\n"))
}

fn shown(text: &str) -> String {
    let text = text.trim();
    let end = (0..=LONGEST.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    let shown = text.get(..end.unwrap_or_default()).unwrap_or_default();
    let rest = text.len() - shown.len();
    let shown = shown.replace('\n', "\n    ");
    match rest {
        0 => shown,
        rest => format!("{shown} … and {rest} bytes"),
    }
}
