//! The program: reads its settings, starts its log, and runs until it is told to stop.

use std::process::ExitCode;

use ambit_net::memory;
use ambit_net::telemetry::{self, Log, with_causes};
use mimalloc::MiMalloc;
use tracing::error;
use ztunnel::Config;

/// Gives each worker a heap of its own and memory back after bursts.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Exit code for settings that have to be corrected, so that a supervisor can tell them from failures.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    // A kernel without the switch costs memory and nothing else.
    memory::without_huge_pages().ok();
    let started = Config::of_process().map_err(|error| with_causes(&error));
    let started = started.and_then(|config| match Log::start(&config.log) {
        Ok(log) => Ok((config, log)),
        Err(error) => Err(with_causes(&error)),
    });
    match started {
        Ok((config, log)) => run(config, log),
        Err(error) => {
            // There is no log yet.
            eprintln!("ztunnel: {error}");
            ExitCode::from(BAD_SETTINGS)
        }
    }
}

fn run(config: Config, log: Log) -> ExitCode {
    match ztunnel::run(config, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = with_causes(&error), "cannot run");
            telemetry::flush();
            ExitCode::FAILURE
        }
    }
}
