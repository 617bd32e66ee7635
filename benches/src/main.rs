//! `make bench`: the mesh against plain TCP on this machine, in one run, in turns. Prints a table; writes nothing.
//!
//! Everything runs in private namespaces (`tests::sandbox`). Ratios within a run are what counts: machines and minutes
//! differ, so each figure of the mesh is divided by the plain one of the same round.
#![expect(clippy::print_stdout, reason = "the table is its output")]

mod paths;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use tests::failure::{Context as _, Failure, Outcome};
use tests::sandbox::{self, Place};

use crate::paths::{Paths, Round};

const USAGE: &str =
    "usage: benches [--rounds N] [--seconds S]   (3 rounds of 2 seconds a measurement unless said)";

/// How long to measure.
struct Options {
    rounds: usize,
    span: Duration,
}

fn main() -> ExitCode {
    let result = match sandbox::enter() {
        Ok(Place::Ended(code)) => return code,
        Ok(Place::Inside(args)) => {
            let words: Vec<String> = args
                .iter()
                .skip(1)
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect();
            options(&words).and_then(|options| measure(&options))
        }
        Err(cause) => Err(cause),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[String]) -> Outcome<Options> {
    let mut options = Options {
        rounds: 3,
        span: Duration::from_secs(2),
    };
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let value = words.next().context(USAGE)?;
        match word {
            "--rounds" => options.rounds = value.parse().context(USAGE)?,
            "--seconds" => {
                options.span =
                    Duration::try_from_secs_f64(value.parse().context(USAGE)?).context(USAGE)?
            }
            _ => return Err(Failure::new(USAGE)),
        }
    }
    Ok(options)
}

fn measure(options: &Options) -> Outcome {
    println!("setting up two nodes and their pods …");
    let paths = Paths::open()?;
    paths.warm_up()?;
    let mut rounds: Vec<Round> = Vec::new();
    for number in 1..=options.rounds {
        println!(
            "round {number} of {}: {}",
            options.rounds,
            paths.names().join(", ")
        );
        rounds.push(paths.round(options.span)?);
    }
    print!("{}", table::render(&paths, &rounds));
    Ok(())
}
