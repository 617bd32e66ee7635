//! The node agent's program: arguments, settings, log, exit code. Everything else is in `cni_plugin::app`.

use std::process::ExitCode;
use std::sync::Arc;

use ambit_net::env::EnvReader;
use ambit_net::telemetry::{Log, VERSION};
use cni_plugin::config::Config;
use cni_plugin::{app, with_causes};
use tracing::{error, warn};

const USAGE: &str = "usage: ambit-cni-agent                capture the pods of this node until stopped
       ambit-cni-agent --release-all  undo the capture of all pods of this node; the agent must not run
       ambit-cni-agent --version
Settings are environment variables: docs/config.md";

/// Exit code for wrong arguments or settings, as shells use it.
const MISUSE: u8 = 2;

/// What the program is asked to do.
#[derive(Clone, Copy)]
enum Task {
    Run,
    ReleaseAll,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => start(Task::Run),
        ["--release-all"] => start(Task::ReleaseAll),
        ["--version"] => {
            eprintln!("ambit-cni-agent {VERSION}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(MISUSE)
        }
    }
}

fn start(task: Task) -> ExitCode {
    let mut env = EnvReader::of_process();
    let config = Config::read(&mut env);
    if let Err(mistakes) = env.finish() {
        eprintln!("{mistakes}");
        return ExitCode::from(MISUSE);
    }
    let log = match Log::start(&config.log) {
        Ok(log) => Arc::new(log),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(MISUSE);
        }
    };
    for notice in env.notices() {
        warn!("{notice}");
    }
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| {
            runtime
                .block_on(async {
                    match task {
                        Task::Run => app::run(config, Arc::clone(&log)).await,
                        Task::ReleaseAll => app::release_all(config).await,
                    }
                })
                .map_err(|error| with_causes(&error))
        });
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    };
    drop(log);
    code
}
