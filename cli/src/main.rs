//! The `ambit` command: what operators ask the mesh.
//!
//! Reads the command line, runs one subcommand, and maps its result to an exit code: 0 answered and good, 1 not answered
//! or a check failed, 2 wrong use. It asks the controllers and agents and never imports them.

mod out;
mod http;
mod socket;
mod mesh;
mod cluster;
mod merge;
mod report;
mod status;
mod check;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};

use crate::check::CheckArgs;
use crate::status::StatusArgs;

/// Ask the mesh what it is doing.
#[derive(Debug, Parser)]
#[command(name = "ambit", version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print nodes, pods with their capture state, identities with certificate expiry, and what each proxy has acknowledged.
    ///
    /// Asks every replica of the controller through the API server, as kubectl port-forward does, and merges the answers;
    /// it needs the right to list pods and to get and create pods/portforward in the mesh's namespace.
    /// Exits with 0 when all have answered, 1 when one has not, 2 on wrong use.
    Status(StatusArgs),
    /// Check whether Ambit can be installed in a cluster, and whether it works where it is.
    ///
    /// Changes nothing. Each check that fails says what to do. Exits with 0 when none failed, 1 when one did, 2 on wrong use.
    Check(CheckArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let now = seconds_since_epoch();
    let result = match args.command {
        Command::Status(args) => match runtime.block_on(status::run(&args, now)) {
            Ok(()) => Ok(true),
            Err(error) => return fail(&error),
        },
        Command::Check(args) => runtime.block_on(check::run(&args, now)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    out::complain(error);
    ExitCode::FAILURE
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
