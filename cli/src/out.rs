//! The only file of this command that writes to standard output and standard error.

use std::error::Error;
use std::io::{self, IsTerminal, Write};

/// Writes a text and a final newline to standard output. A reader that has gone away is no error.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// True where colours help: a terminal whose user has not refused them (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !refused
}

/// Writes an error and its causes to standard error.
pub(crate) fn complain(error: &dyn Error) {
    // Nobody is left to tell when standard error is closed.
    let _unwritten = writeln!(io::stderr(), "ambit: {}", with_causes(error)).is_err();
}

/// An error and its causes in one line; a cause that the error has already told is not told again.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !line.contains(&said) {
            line.push_str(&format!(": {said}"));
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read: {0}")]
        struct Told(#[source] io::Error);
        let told = Told(io::Error::other("no disk"));
        assert_eq!(with_causes(&told), "cannot read: no disk");
        let kept = io::Error::other(Told(io::Error::other("no disk")));
        assert_eq!(with_causes(&kept), "cannot read: no disk");
    }
}
