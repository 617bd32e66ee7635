//! Opens what belongs to a directory of manifests: state, tokens and the root in files, the status on a Unix socket.
//!
//! Called by [`super`]. Knows no cluster.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use ambit_core::names::Text;
use ambit_net::documents::{Directory, Limits};
use futures_util::future::FutureExt as _;
use tokio::sync::{mpsc, watch};

use super::{AppError, Ground, Running, StatusPort, Wires};
use crate::ca::authenticate::Authenticator;
use crate::ca::root::Root;
use crate::config::{Config, Files};
use crate::index::served::CaptureSource;
use crate::overview::StatusSocket;
use crate::private_file;
use crate::reports::NodeReports;
use crate::watch::{Event, ServedPods, files};

/// Reads state and takes the status socket.
pub(super) fn open(
    files: &Files,
    config: &Config,
    wires: Wires,
    running: &Running,
) -> Result<Ground, AppError> {
    for (variable, path) in files.places() {
        std::fs::read_dir(path).map_err(|source| unreadable(variable, path, source))?;
    }
    private_file::make_dir(&files.state)?;
    private_file::check_dir(&files.state)?;
    private_file::check_dir(&files.tokens).map_err(AppError::Tokens)?;
    let now = SystemTime::now();
    let root = Root::load_or_create(&files.root_file(), &config.mesh.trust_domain, now)?;
    private_file::replace_public(&files.root_out, root.pem().as_bytes())?;
    let (_never_changes, root) = watch::channel(Arc::new(root));
    let authenticator = Authenticator::open(&files.tokens, Arc::clone(&running.meters))
        .map_err(|source| unreadable("AMBIT_NODE_TOKENS", &files.tokens, source))?;
    let events = wires.events;
    let meters = Arc::clone(&running.meters);
    let (reports, reported) = NodeReports::open(&files.reports_dir(), events.clone(), meters)?;
    let feed = feed(
        files.clone(),
        Text::clone(&config.mesh.root_namespace),
        reported,
        events,
    );
    Ok(Ground {
        root,
        authenticator,
        capture: CaptureSource::Reports,
        reports,
        status: StatusPort::Socket(StatusSocket::bind(&files.status_socket)?),
        tasks: vec![feed.boxed()],
    })
}

/// Says what nodes reported before the start, then what the manifests say.
async fn feed(
    files: Files,
    root_namespace: Text,
    reported: Vec<ServedPods>,
    events: mpsc::Sender<Event>,
) {
    for report in reported {
        if events.send(Event::Served(report)).await.is_err() {
            return;
        }
    }
    let directory = Directory::new(files.manifests, Limits::default());
    files::run(directory, root_namespace, events).await;
}

fn unreadable(variable: &'static str, path: &Path, source: io::Error) -> AppError {
    AppError::Source {
        variable,
        path: path.to_owned(),
        source,
    }
}
