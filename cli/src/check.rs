//! `ambit check`: gathers facts of a cluster, judges them, prints what was found and what to do.
//!
//! A conductor: `gather.rs` asks, `prerequisites.rs` and `installed.rs` judge without asking anybody, `print.rs` prints.

mod facts;
mod nodes;
mod prerequisites;
mod captured;
mod installed;
mod print;
mod gather;

use ambit_core::checks::{Check, Grade};
use clap::Args;
use thiserror::Error;

use crate::check::facts::Facts;
use crate::cluster::{Cluster, ClusterArgs, ClusterError};
use crate::out;

/// Where to look, and how to print.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Fail when Ambit is not installed, instead of checking only whether it can be.
    #[arg(long)]
    installed: bool,
    /// Print the checks as a JSON list.
    #[arg(long)]
    json: bool,
}

/// Why nothing could be checked.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    /// The cluster cannot be asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The checks cannot be written as JSON.
    #[error("cannot write the checks as JSON")]
    Json(#[source] serde_json::Error),
    /// Standard output cannot be written.
    #[error("cannot write the checks")]
    Print(#[source] std::io::Error),
}

/// Checks of one subject.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) checks: Vec<Check>,
}

/// Prints all checks; true when none failed. `now` is in seconds since the epoch.
///
/// # Errors
/// When the cluster is not configured, or nothing can be printed.
pub(crate) async fn run(args: &CheckArgs, now: u64) -> Result<bool, CheckError> {
    let cluster = Cluster::configured(&args.cluster).await?;
    let facts = Box::pin(gather::facts(&cluster)).await;
    let sections = judge(&facts, args.installed, now);
    let all = || sections.iter().flat_map(|section| &section.checks);
    let text = if args.json {
        let checks: Vec<_> = all().collect();
        serde_json::to_string_pretty(&checks).map_err(CheckError::Json)?
    } else {
        print::render(&sections, out::colours())
    };
    out::print(&text).map_err(CheckError::Print)?;
    Ok(all().all(|check| check.grade != Grade::Bad))
}

/// All checks that the facts allow; `must` asks for an installed mesh.
fn judge(facts: &Facts, must: bool, now: u64) -> Vec<Section> {
    let installed = facts.mesh.as_ref();
    let cluster = prerequisites::all(facts, installed.is_some());
    let mut sections = vec![Section {
        title: "CLUSTER",
        checks: cluster,
    }];
    match installed {
        Some(mesh) => sections.extend(installed::all(facts, mesh, now)),
        None if facts.version.is_ok() => sections.push(Section {
            title: "MESH",
            checks: vec![prerequisites::not_installed(facts, must)],
        }),
        None => {}
    }
    sections
}
