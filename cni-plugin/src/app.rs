//! The node agent as a program: starts its parts in order, waits for a signal, stops them in reverse.
//!
//! Called by `bin/ambit-cni-agent.rs`. Stopping touches no rules: what is captured stays captured. Undoing everything is a
//! mode of its own ([`release_all`]). Knows the order of things and nothing of how they work.

mod kubernetes;

use std::io;
use std::path::{Path, PathBuf};
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
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::agent::api::ClientError;
use crate::agent::memory::{self, MemoryError, Opened, Record};
use crate::agent::orders;
use crate::agent::pods::files::Files;
use crate::agent::pods::{Source, Wanted};
use crate::agent::release::release;
use crate::agent::{Agent, Means};
use crate::checks::Checks;
use crate::config::{Config, Origin};
use crate::endpoints::{self, EndpointError, Shown};
use crate::handoff::Handoff;
use crate::redirect::{self, RedirectError};
use kubernetes::Ground;

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
    /// The directory of a socket cannot be made.
    #[error("cannot make the directory of the socket {path}")]
    Directory {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The socket for the CNI plugin cannot be used.
    #[error("cannot listen on {path} for the CNI plugin (AMBIT_CNI_SOCKET)")]
    PluginSocket {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// There is no way to the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
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
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    let Opened {
        records,
        memory,
        writer,
    } = memory::open(&config.state_dir)?;
    let listener = bind(&config.handoff_socket)?;
    let (handoff, readiness) = (Handoff::default(), Readiness::new());
    let (source, ground) = origin(&config, (&checks, &readiness)).await?;
    let (orders, ordered) = orders::channel();
    let meters = Meters::new("ambit-cni-agent", 0);
    // The agent announces what it remembers before the first ztunnel is let in.
    let means = Means {
        handoff: handoff.clone(),
        memory,
        settings: config.pods,
        rules_written: meters.counter(&AGENT_RULES_WRITTEN, []),
        readiness: readiness.clone(),
        orders: ordered,
        kubernetes: ground.as_ref().map(Ground::means),
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
    if let Some(ground) = ground {
        ground.start(orders, agent.report(), &pods);
    }
    pods.spawn(agent.run(source, pods.stop_signal()));
    info!(
        version = VERSION,
        node = %config.node,
        pods = %config.origin,
        socket = %config.handoff_socket.display(),
        "the node agent has started"
    );
    signals.wait().await;
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
    if let Origin::Files(manifests) = &config.origin {
        let directory = Directory::new(manifests, Limits::default());
        let said = Files::new(directory, config.node).next().await;
        let enrolled = said.enrolled.into_values().filter_map(Wanted::into_spec);
        let others = said.others.into_values().flatten();
        for spec in enrolled.chain(others) {
            let (uid, leaving) = (spec.pod.uid.clone(), true);
            remembered.entry(uid).or_insert(Record { spec, leaving });
        }
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

/// What tells the agent to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _signal = self.terminate.recv() => {}
            _signal = self.interrupt.recv() => {}
        }
    }
}

/// Where pods come from, and what there is beside on Kubernetes.
async fn origin(
    config: &Config,
    told: (&Checks, &Readiness),
) -> Result<(Source, Option<Ground>), AppError> {
    match &config.origin {
        Origin::Files(manifests) => {
            let directory = Directory::new(manifests, Limits::default());
            let files = Files::new(directory, Arc::clone(&config.node));
            Ok((Source::Files(files), None))
        }
        Origin::Kubernetes(on) => {
            let ground = Ground::prepare(&config.node, on.clone(), told).await?;
            Ok((ground.source(), Some(ground)))
        }
    }
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
    make_parent(socket)?;
    Ok(Listener::bind(socket)?)
}

fn make_parent(socket: &Path) -> Result<(), AppError> {
    let made = socket.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.map_err(|source| {
        let path = socket.to_owned();
        AppError::Directory { path, source }
    })
}
