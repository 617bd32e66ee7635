//! Waits for a condition with a deadline. The only place of the harness that pauses a thread.
//!
//! Called wherever something happens in another process. Knows nothing of what is waited for.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};

/// How long a healthy machine, busy with other tests, may take for one step of a mesh.
pub const SOON: Duration = Duration::from_secs(10);

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `look` yields a value; returns it.
///
/// # Errors
/// When the deadline passes first; the message names `what`.
pub fn until<T>(
    what: impl Display,
    deadline: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Outcome<T> {
    until_ok(deadline, || look().ok_or("not seen")).map_err(|_seen| {
        Failure::new(format!(
            "waited {} ms in vain: {what}",
            deadline.as_millis()
        ))
    })
}

/// Tries until `attempt` succeeds; returns what it returned.
///
/// # Errors
/// When the deadline passes first; the message is the last error.
pub fn until_ok<T, E: Display>(
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Outcome<T> {
    let started = now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(cause) if started.elapsed() >= deadline => {
                return Err(Failure::new(format!(
                    "for {} ms: {cause}",
                    deadline.as_millis()
                )));
            }
            Err(_not_yet) => pause(),
        }
    }
}

/// Checks over and over that `holds` stays true for the whole `span`; for what must *not* happen.
///
/// # Errors
/// As soon as it does not hold.
pub fn stays<E: Display>(span: Duration, mut holds: impl FnMut() -> Result<(), E>) -> Outcome {
    let started = now();
    while started.elapsed() < span {
        holds().map_err(|cause| Failure::new(cause.to_string()))?;
        pause();
    }
    Ok(())
}

/// The clock of the harness.
pub fn now() -> Instant {
    Instant::now()
}

fn pause() {
    std::thread::sleep(INTERVAL);
}
