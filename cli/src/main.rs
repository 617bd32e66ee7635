//! The `ambit` command: what operators ask the mesh.
//!
//! Reads the command line, runs one subcommand, and maps its result to an exit code: 0 answered, 1 not answered, 2 wrong
//! use. It asks the controller and never imports it.

mod endpoint;
mod report;
mod out;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use ambit_core::status::MeshStatus;
use clap::{Parser, Subcommand};

use crate::endpoint::EndpointError;

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
    Status {
        /// The controller's status socket.
        #[arg(
            long,
            env = "AMBIT_STATUS_SOCKET",
            default_value = "/var/run/ambit/status.sock"
        )]
        socket: PathBuf,
        /// Print the document as JSON.
        #[arg(long)]
        json: bool,
    },
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
    let Command::Status { socket, json } = args.command;
    match runtime.block_on(endpoint::fetch(&socket)) {
        Ok(document) => print(&document, json),
        Err(error) => fail(&error),
    }
}

fn print(document: &[u8], json: bool) -> ExitCode {
    let status: MeshStatus = match serde_json::from_slice(document) {
        Ok(status) => status,
        Err(source) => return fail(&EndpointError::Document(source)),
    };
    let text = if json {
        String::from_utf8_lossy(document).into_owned()
    } else {
        report::render(&status, seconds_since_epoch())
    };
    match out::print(&text) {
        Ok(()) => ExitCode::SUCCESS,
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
