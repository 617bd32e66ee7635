//! The program: reads its settings, starts its log, and runs until it is told to stop.

use std::process::ExitCode;

use ambit_net::telemetry::Log;
use controller::app;
use controller::config::Config;
use tracing::error;

/// Exit code for settings that have to be corrected, so that a supervisor can tell them from failures.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let config = match Config::of_process() {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let log = match Log::start(&config.log) {
        Ok(log) => log,
        Err(error) => return refuse(&error),
    };
    let outcome = app::run(&config);
    if let Err(error) = &outcome {
        error!(%error, "cannot run");
    }
    // Writes what is left.
    drop(log);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_logged) => ExitCode::FAILURE,
    }
}

/// Says on standard error what is wrong before there is a log.
fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("controller: {error}");
    ExitCode::from(BAD_SETTINGS)
}
