//! The application of tests, measurements and the demonstration: a web server, load servers and load generators.
//!
//! Started in a pod by `ambit-demo` and `benches`. It knows nothing of the mesh. A client prints what it measured as JSON.
#![expect(clippy::print_stdout, reason = "what it measured is its output")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tests::app::{http, load};
use tests::failure::{Context as _, Failure, Outcome};

const USAGE: &str = "usage: ambit-test-app serve web PORT NAME
       ambit-test-app serve bulk|requests PORT
       ambit-test-app load bulk ADDRESS SECONDS
       ambit-test-app load requests|connections ADDRESS SECONDS CONNECTIONS";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match perform(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}

fn perform(words: &[&str]) -> Outcome {
    match words {
        ["serve", "web", port, name] => http::serve(port.parse().context("PORT")?, name),
        ["serve", "bulk", port] => load::serve_bulk(port.parse().context("PORT")?),
        ["serve", "requests", port] => {
            runtime()?.block_on(load::serve_requests(port.parse().context("PORT")?))
        }
        ["load", "bulk", to, seconds] => print(&load::bulk(address(to)?, span(seconds)?)?),
        ["load", "requests", to, seconds, count] => {
            let count = count.parse().context("CONNECTIONS")?;
            print(&runtime()?.block_on(load::requests(address(to)?, span(seconds)?, count))?)
        }
        ["load", "connections", to, seconds, count] => {
            let count = count.parse().context("CONNECTIONS")?;
            print(&runtime()?.block_on(load::connections(address(to)?, span(seconds)?, count))?)
        }
        _ => Err(Failure::new(USAGE)),
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

fn address(text: &str) -> Outcome<SocketAddr> {
    text.parse().context("ADDRESS")
}

fn span(seconds: &str) -> Outcome<Duration> {
    Duration::try_from_secs_f64(seconds.parse().context("SECONDS")?).context("SECONDS")
}

fn print(measured: &load::Measured) -> Outcome {
    println!("{}", serde_json::to_string(measured).context("print")?);
    Ok(())
}
