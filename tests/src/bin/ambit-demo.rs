//! `make demo`: the mesh at work on this machine. The demonstration itself is `tests::demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    tests::demo::main(&words)
}
