//! The waypoint, Ambit's optional layer-7 proxy: to come. This program only says so.
//!
//! Its place in the house is kept so that nothing else grows into it.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let said = writeln!(
        std::io::stderr(),
        "waypoint: layer 7 is not there yet; this version of Ambit serves layer 4 (ztunnel) only"
    );
    if said.is_err() {
        return ExitCode::from(2);
    }
    ExitCode::FAILURE
}
