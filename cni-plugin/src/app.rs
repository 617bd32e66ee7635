//! The node agent as a program: starts its parts in order, waits for a signal, stops them in reverse.
//!
//! Called by `bin/ambit-cni-agent.rs`. Stopping touches no rules: what is captured stays captured. Undoing everything is a
//! mode of its own ([`release_all`]). Knows the order of things and nothing of how they work.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::checks::Check;
use ambit_core::names::Text;
use ambit_net::admin::Readiness;
use ambit_net::documents::{Directory, Limits};
use ambit_net::handoff::{HandoffError, Listener};
use ambit_net::meters::{AGENT_RULES_WRITTEN, Meters};
use ambit_net::netns::{Netns, NetnsError};
use ambit_net::tasks::Tasks;
use ambit_net::telemetry::{Log, VERSION};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::agent::memory::{self, MemoryError, Opened, Record};
use crate::agent::pods::Source;
use crate::agent::pods::files::Files;
use crate::agent::release::release;
use crate::agent::{Agent, Means};
use crate::checks::Checks;
use crate::config::Config;
use crate::endpoints::{self, EndpointError, Shown};
use crate::handoff::Handoff;
use crate::redirect::{self, RedirectError};

/// How long tasks may take to end; none of them waits for another program.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Name of the check that says what the kernel can do.
const KERNEL: &str = "kernel";

/// Why the agent does not start, or cannot clean up.
#[derive(Debug, Error)]
pub enum AppError {
    /// The memory cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The socket for ztunnel cannot be used.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// The directory of the socket cannot be made.
    #[error("cannot make the directory of the handoff socket")]
    Directory(#[source] io::Error),
    /// A network namespace cannot be made or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// This kernel cannot redirect, or does not let us.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    /// An endpoint cannot be served.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// The agent runs, so that nothing may be undone behind its back.
    #[error("a node agent is running; stop it first, or it would capture the pods again")]
    Running,
    /// Some pods could not be released.
    #[error("{0} pods could not be released; the log says why")]
    NotReleased(usize),
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: then nothing has been touched.
pub async fn run(config: Config, log: Arc<Log>) -> Result<(), AppError> {
    let checks = Checks::default();
    checks.note(rehearse().await?);
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let Opened {
        records,
        memory,
        writer,
    } = memory::open(&config.state_dir)?;
    let listener = bind(&config.handoff_socket)?;
    let (handoff, readiness) = (Handoff::default(), Readiness::new());
    let meters = Meters::new("ambit-cni-agent", 0);
    // The agent announces what it remembers before the first ztunnel is let in.
    let means = Means {
        handoff: handoff.clone(),
        memory,
        settings: config.pods,
        rules_written: meters.counter(&AGENT_RULES_WRITTEN, []),
        readiness: readiness.clone(),
    };
    let agent = Agent::new(means, records)?;
    let operators = Tasks::new("endpoints");
    let shown = Shown {
        meters,
        readiness,
        log,
        node: Text::clone(&config.node),
        pods: agent.report().watch(),
        checks,
        ztunnels: handoff.connected(),
    };
    endpoints::start(config.endpoints, shown, &operators)?;

    let (disk, links, pods) = (
        Tasks::new("memory"),
        Tasks::new("handoff"),
        Tasks::new("agent"),
    );
    disk.spawn(writer.run());
    links.spawn(handoff.run(listener, links.spawner()));
    let directory = Directory::new(&config.manifests, Limits::default());
    let source = Source::Files(Files::new(directory, Arc::clone(&config.node)));
    pods.spawn(agent.run(source, pods.stop_signal()));
    info!(
        version = VERSION,
        node = %config.node,
        manifests = %config.manifests.display(),
        socket = %config.handoff_socket.display(),
        "the node agent has started"
    );
    tokio::select! {
        _signal = terminate.recv() => {}
        _signal = interrupt.recv() => {}
    }
    info!("the node agent stops; captured pods stay captured");
    // The pods first: what they see of ztunnel while everything stops is no news.
    for tasks in [&pods, &links, &operators, &disk] {
        tasks.drain(STOP_DEADLINE).await;
    }
    Ok(())
}

/// Undoes the redirection of every pod that the agent has captured, and of every pod that the manifests put on this node,
/// in the mesh or not: the memory may have been lost. Connections through ztunnel are cut. Nothing may run beside it.
///
/// # Errors
/// When an agent runs, or a pod could not be released.
pub async fn release_all(config: Config) -> Result<(), AppError> {
    let _only_one = bind(&config.handoff_socket).map_err(|error| match error {
        AppError::Handoff(HandoffError::InUse { .. }) => AppError::Running,
        other => other,
    })?;
    let Opened {
        records: mut remembered,
        writer,
        ..
    } = memory::open(&config.state_dir)?;
    let directory = Directory::new(&config.manifests, Limits::default());
    let said = Files::new(directory, config.node).next().await;
    let others = said.others.into_values().flatten();
    for spec in said.enrolled.into_values().chain(others) {
        let (uid, leaving) = (spec.pod.uid.clone(), true);
        remembered.entry(uid).or_insert(Record { spec, leaving });
    }
    let failed = release(remembered.values()).await?;
    if failed > 0 {
        return Err(AppError::NotReleased(failed));
    }
    writer.erase().await?;
    info!(
        pods = remembered.len(),
        "nothing is captured on this node any more"
    );
    Ok(())
}

/// Does everything once in a namespace made for it, so that a kernel or a container that lacks something is known at the
/// start and not at the first pod.
async fn rehearse() -> Result<Check, AppError> {
    let stage = Netns::fresh()?;
    let seen = stage.run_on_thread(redirect::rehearse).await??;
    Ok(match seen {
        None => Check::good(KERNEL, "it redirects as the mesh needs it"),
        Some(missing) => {
            warn!(%missing, "leaving pods will wait for AMBIT_LEAVE_TIMEOUT instead of their last connection");
            Check::note(
                KERNEL,
                "leaving pods wait for AMBIT_LEAVE_TIMEOUT instead of their last connection",
                format!("the kernel lacks {missing}"),
            )
        }
    })
}

fn bind(socket: &Path) -> Result<Listener, AppError> {
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).map_err(AppError::Directory)?;
    }
    Ok(Listener::bind(socket)?)
}
