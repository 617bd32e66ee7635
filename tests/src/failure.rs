//! What the harness reports when something is not as claimed: one message, with the context that callers add on the way up.
//!
//! Called by every module here, by the tests, the demonstration and the benchmarks. Knows nothing of the mesh.

use std::fmt::{self, Display};

/// Why a step of a test failed: the innermost cause last.
#[derive(Debug)]
pub struct Failure(String);

/// What every fallible step of the harness returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(cause: std::io::Error) -> Self {
        Self(cause.to_string())
    }
}

/// Adds what was being done to an error or to an absent value.
pub trait Context<T> {
    /// Puts `doing` before the cause.
    ///
    /// # Errors
    /// The same failure, longer.
    fn context(self, doing: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl Display) -> Outcome<T> {
        self.map_err(|cause| Failure(format!("{doing}: {cause}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Outcome<T> {
        self.ok_or_else(|| Failure(doing.to_string()))
    }
}

/// Fails with `message` unless `holds`.
///
/// # Errors
/// When it does not hold.
pub fn ensure(holds: bool, message: impl Display) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Failure(message.to_string()))
    }
}

/// Fails with both values when they differ.
///
/// # Errors
/// When they differ.
pub fn ensure_eq<A, B>(seen: A, wanted: B, what: impl Display) -> Outcome
where
    A: PartialEq<B> + fmt::Debug,
    B: fmt::Debug,
{
    if seen == wanted {
        return Ok(());
    }
    Err(Failure(format!("{what}: wanted {wanted:?}, saw {seen:?}")))
}
