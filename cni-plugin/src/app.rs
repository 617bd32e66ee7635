//! The node agent as a program: starts its parts in order, waits for a signal, stops them in reverse.
//!
//! Called by `bin/ambit-cni-agent.rs`. Stopping touches no rules: what is captured stays captured. Undoing everything is a
//! mode of its own ([`release_all`]). Knows the order of things and nothing of how they work.

mod kubernetes;
mod release;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::checks::Check;
use ambit_core::names::{PodUid, Text};
use ambit_net::admin::Readiness;
use ambit_net::documents::{Directory, Limits};
use ambit_net::handoff::{HandoffError, Listener};
use ambit_net::meters::{AGENT_RULES_WRITTEN, Meters};
use ambit_net::netns::{Netns, NetnsError};
use ambit_net::tasks::Tasks;
use ambit_net::telemetry::{Log, VERSION};
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::agent::annotate::Annotator;
use crate::agent::api::ClientError;
use crate::agent::installation::Installation;
use crate::agent::memory::{self, MemoryError, Opened, Record};
use crate::agent::orders;
use crate::agent::pods::Source;
use crate::agent::pods::files::Files;
use crate::agent::report::Report;
use crate::agent::{Agent, Means};
use crate::checks::Checks;
use crate::config::{Config, Origin};
use crate::endpoints::{self, EndpointError, Shown};
use crate::handoff::Handoff;
use crate::host;
use crate::install::InstallError;
use crate::redirect::{self, RedirectError};
use kubernetes::Ground;
pub use release::release_all;

/// How long tasks may take to end; none of them waits for another program.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Name of the check that says what the kernel can do.
const KERNEL: &str = "kernel";

/// How long news may be on its way.
const NEWS_DEADLINE: Duration = Duration::from_secs(3);

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
    /// The CNI plugin could not be removed.
    #[error(transparent)]
    Uninstall(#[from] InstallError),
    /// A file of the agent cannot be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A helper thread ended without a result.
    #[error("a thread of the agent panicked")]
    Panicked,
}

/// Runs the agent until SIGTERM or SIGINT. When the mesh is taken off the cluster meanwhile, everything is undone.
///
/// # Errors
/// When it cannot start: then nothing has been touched.
pub async fn run(config: Config, log: Arc<Log>) -> Result<(), AppError> {
    // First of all: a container's first process does not even notice a signal that it is not ready for.
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    let checks = Checks::default();
    checks.note(rehearse(&config.origin).await?);
    let Opened {
        records,
        memory,
        writer,
    } = memory::open(&config.state_dir)?;
    let listener = bind(&config.handoff_socket)?;
    let (handoff, readiness) = (Handoff::default(), Readiness::new());
    let (source, ground) = origin(&config, (&checks, &readiness), &records).await?;
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
    let report = agent.report();
    let installation = ground.as_ref().and_then(Ground::installation);
    let operators = Tasks::new("endpoints");
    let shown = Shown {
        meters,
        readiness,
        log,
        node: Text::clone(&config.node),
        pods: report.watch(),
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
        ground.start(orders, report.clone(), &pods);
    }
    pods.spawn(agent.run(source, pods.stop_signal()));
    info!(
        version = VERSION,
        node = %config.node,
        pods = %config.origin,
        socket = %config.handoff_socket.display(),
        "the node agent has started"
    );
    let end = signals.end(installation).await;
    let running = [&pods, &links, &operators, &disk];
    finish(end, (&config, &mut signals), &report, running).await
}

/// Ends all tasks, and undoes everything if the mesh is taken off.
async fn finish(
    end: End,
    (config, signals): (&Config, &mut Signals),
    report: &Report,
    running: [&Tasks; 4],
) -> Result<(), AppError> {
    let drained = async {
        // The pods first: what they see of ztunnel while everything stops is no news.
        for tasks in running {
            tasks.drain(STOP_DEADLINE).await;
        }
    };
    match &end {
        End::Stops => {
            info!(
                "the node agent stops; captured pods stay captured (docs/uninstall.md if the mesh is uninstalled)"
            );
            drained.await;
        }
        // At once: the right to say so may go any moment.
        End::Removed(annotator) | End::RemovedAndStops(annotator) => {
            tokio::join!(release::revoke(annotator, report.watch()), drained);
        }
    }
    match end {
        End::Stops => Ok(()),
        End::RemovedAndStops(_) => release::uninstall(config).await,
        End::Removed(_) => {
            let undone = release::uninstall(config).await;
            // Ending now would have the agent started again.
            signals.wait().await;
            undone
        }
    }
}

/// How the agent ends.
enum End {
    /// It is told to stop and will be back.
    Stops,
    /// The mesh is taken off the cluster; the pods are to be told.
    Removed(Annotator),
    /// Both.
    RemovedAndStops(Annotator),
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

    /// Waits until the agent is to end in some way.
    async fn end(&mut self, installation: Option<(Installation, Annotator)>) -> End {
        let Some((installation, annotator)) = installation else {
            self.wait().await;
            return End::Stops;
        };
        let mut removed = pin!(installation.removed());
        tokio::select! {
            biased;
            () = &mut removed => return End::Removed(annotator),
            () = self.wait() => {}
        }
        let said = match installation.is_removed().await {
            Some(said) => said,
            // The news may be on its way: what ends the agent's rights comes with what ends the agent.
            None => timeout(NEWS_DEADLINE, removed).await.is_ok(),
        };
        match said {
            true => End::RemovedAndStops(annotator),
            false => End::Stops,
        }
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
    remembered: &BTreeMap<PodUid, Record>,
) -> Result<(Source, Option<Ground>), AppError> {
    match &config.origin {
        Origin::Files(manifests) => {
            let directory = Directory::new(manifests, Limits::default());
            let files = Files::new(directory, Arc::clone(&config.node));
            Ok((Source::Files(files), None))
        }
        Origin::Kubernetes(on) => {
            let ground =
                Ground::prepare(&config.node, on.clone(), told, (config.pods, remembered)).await?;
            Ok((ground.source(), Some(ground)))
        }
    }
}

/// Does everything once in a namespace made for it, so that a kernel or a container that lacks something is known at the
/// start and not at the first pod.
async fn rehearse(origin: &Origin) -> Result<Check, AppError> {
    let stage = Netns::fresh()?;
    let seen = stage.run_on_thread(redirect::rehearse).await??;
    if let Origin::Kubernetes(_) = origin {
        stage.run_on_thread(host::rehearse).await??;
    }
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
