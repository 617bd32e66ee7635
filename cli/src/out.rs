//! The only file of this command that writes to standard output and standard error.

use std::error::Error;
use std::io::{self, Write};

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

/// Writes an error and its causes to standard error.
pub(crate) fn complain(error: &dyn Error) {
    let mut line = format!("ambit: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // Nobody is left to tell when standard error is closed.
    let _unwritten = writeln!(io::stderr(), "{line}").is_err();
}
