//! Keeps a stream to the controller and the view up to date with it, for as long as the process runs.
//!
//! Started once by each proxy's app on its control thread. Reads a response, applies it, answers it; when the stream
//! ends it waits and opens the next one from where it was. What is known stays in force meanwhile.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::names::Text;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, info, warn};

use super::response::read;
use super::session::{Outcome, Session};
use super::{Kind, NodeInfo, Synced};
use crate::backoff::Backoff;
use crate::grpc::{Dialer, Link, LinkError, explain};
use crate::meters::{self, CounterOf, Meters};
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::shared_view::SharedView;
use crate::tasks::Stop;

/// First wait before another stream is opened (reference: istio/ztunnel).
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// Longest wait before another stream is opened (reference: istio/ztunnel).
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// A stream that lived as long as the longest wait was a good one: after it the waits begin again.
const GOOD_STREAM: Duration = LONGEST_WAIT;
/// Longest wait until the controller takes a stream, or an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for each first response: it may be a whole mesh, and the link slow. A dead link is found by pings.
const FIRST_PUSH_TIMEOUT: Duration = Duration::from_secs(120);
/// Age at which a stream is exchanged for another, so that a renewed token is shown before the shown one expires.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Largest response, in bytes (reference: istio/ztunnel).
const MAX_RESPONSE: usize = 200 << 20;
/// Requests under way: one answer per response, the next of which is read after the answer is queued.
const REQUESTS: usize = 4;
/// Refused resources that are logged one by one per response.
const LOGGED: usize = 20;

/// What the client needs to know.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// The way to the controller.
    pub dialer: Arc<Dialer>,
    /// Who asks.
    pub node: NodeInfo,
    /// Namespace whose policies may select the whole mesh, `ambit-system` by default.
    pub root_namespace: Text,
    /// Where streams and responses are counted.
    pub meters: Arc<Meters>,
}

/// Why a stream ended.
#[derive(Debug, Error)]
enum StreamEnd {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{}", explain(.0))]
    NotOpened(#[source] Status),
    #[error("{}", explain(.0))]
    Failed(#[source] Status),
    #[error("the controller ended the stream")]
    Closed,
    #[error("the controller owes an answer and is silent")]
    Silent,
    #[error("the stream is exchanged for a new one")]
    Aged,
}

impl StreamEnd {
    /// Istio's word for the metric.
    const fn code(&self) -> &'static str {
        match self {
            Self::Link(_) | Self::NotOpened(_) => "ConnectionError",
            Self::Failed(_) | Self::Silent => "Error",
            Self::Closed => "Complete",
            Self::Aged => "Reconnect",
        }
    }
}

/// Keeps `view` up to date until `stop`; marks each kind in `synced` when it has arrived.
///
/// # Cancel safety
/// Dropping it is the same as `stop`: the view stays as it is.
pub async fn run(config: XdsConfig, view: SharedView, synced: Synced, stop: Stop) {
    let session = Session::new(config.node.message());
    let mut client = Client {
        config,
        view,
        synced,
        session,
    };
    tokio::select! {
        () = client.keep_streaming() => {}
        () = stop.stopped() => {}
    }
}

/// Both directions of an open stream.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>,
}

struct Client {
    config: XdsConfig,
    view: SharedView,
    synced: Synced,
    session: Session,
}

impl Client {
    /// Never ends by itself.
    async fn keep_streaming(&mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, || fastrand::u64(..));
        loop {
            let began = Instant::now();
            let end = self.stream().await;
            let lived = began.elapsed();
            if lived >= GOOD_STREAM {
                backoff.reset();
            }
            let wait = backoff.next_wait();
            self.count(&meters::XDS_TERMINATIONS, end.code(), 1);
            let controller = self.config.dialer.address();
            match &end {
                StreamEnd::Aged => debug!(controller, "xds stream exchanged"),
                _ => warn!(
                    controller,
                    error = %end,
                    duration_ms = lived.as_millis(),
                    wait_ms = wait.as_millis(),
                    "xds stream ended; what is known stays in force"
                ),
            }
            sleep(wait).await;
        }
    }

    /// One stream from its opening to its end.
    async fn stream(&mut self) -> StreamEnd {
        match self.open().await {
            Ok(stream) => self.exchange(stream).await,
            Err(end) => end,
        }
    }

    async fn open(&self) -> Result<Stream, StreamEnd> {
        let link: Link = self.config.dialer.link().await?;
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        for request in self.session.open() {
            requests
                .try_send(request)
                .map_err(|_full| StreamEnd::Closed)?;
        }
        let mut service =
            AggregatedDiscoveryServiceClient::new(link).max_decoding_message_size(MAX_RESPONSE);
        let opening = service.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let response = timeout(ANSWER_TIMEOUT, opening)
            .await
            .map_err(|_late| StreamEnd::Silent)?
            .map_err(StreamEnd::NotOpened)?;
        info!(
            controller = self.config.dialer.address(),
            policies = self.session.count(Kind::Policy),
            addresses = self.session.count(Kind::Address),
            "xds stream opened"
        );
        Ok(Stream {
            requests,
            responses: response.into_inner().boxed(),
        })
    }

    /// Takes responses in turn: each is applied before it is answered and before the next is read.
    async fn exchange(&mut self, mut stream: Stream) -> StreamEnd {
        let jitter = Duration::from_millis(fastrand::u64(0..60_000));
        let end_of_life = Instant::now() + MAX_AGE + jitter;
        let _connected = self.config.meters.gauge(&meters::XDS_CONNECTED, []).hold();
        let mut unanswered = Kind::ALL.to_vec();
        loop {
            let owed = Instant::now() + FIRST_PUSH_TIMEOUT;
            let deadline = if unanswered.is_empty() {
                end_of_life
            } else {
                owed
            };
            let response = match timeout_at(deadline, stream.responses.next()).await {
                Ok(Some(Ok(response))) => response,
                Ok(Some(Err(status))) => return StreamEnd::Failed(status),
                Ok(None) => return StreamEnd::Closed,
                Err(_elapsed) if unanswered.is_empty() => return StreamEnd::Aged,
                Err(_elapsed) => return StreamEnd::Silent,
            };
            unanswered.retain(|kind| kind.type_url() != response.type_url);
            let answer = self.take(response);
            match timeout(ANSWER_TIMEOUT, stream.requests.send(answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return StreamEnd::Closed,
                Err(_elapsed) => return StreamEnd::Silent,
            }
        }
    }

    /// Applies a response and gives the answer to it.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let kind = Kind::of(&response.type_url);
        let bodies = response
            .resources
            .iter()
            .filter_map(|r| r.resource.as_ref());
        let bytes = bodies.map(|body| body.value.len()).sum();
        let reading = read(response, &self.config.root_namespace);
        report(&reading.outcome);
        // What the controller calls a type that we do not know is no word of ours.
        let url = kind.map_or("unknown", Kind::type_url);
        self.count(&meters::XDS_MESSAGES, url, 1);
        self.count(&meters::XDS_MESSAGE_BYTES, url, bytes);
        self.count(&meters::XDS_REJECTED, url, reading.outcome.rejected.len());
        self.view.apply(reading.updates);
        if let Some(kind) = kind {
            self.synced.mark(kind);
        }
        self.session.answered(reading.outcome)
    }

    /// Looked up each time: a response is no hot path.
    fn count(&self, of: &'static CounterOf<1>, label: &str, by: usize) {
        let by = u64::try_from(by).unwrap_or(u64::MAX);
        self.config.meters.counter(of, [label]).add(by);
    }
}

fn report(outcome: &Outcome) {
    let type_url = outcome.type_url.as_str();
    if Kind::of(type_url).is_none() {
        warn!(type_url, "xds response of a type that was not asked for");
    }
    for rejected in outcome.rejected.iter().take(LOGGED) {
        warn!(
            type_url,
            resource = rejected.name,
            why = rejected.why,
            "xds resource refused"
        );
    }
    debug!(
        type_url,
        held = outcome.held.len(),
        removed = outcome.removed.len(),
        rejected = outcome.rejected.len(),
        "xds response applied"
    );
}

#[cfg(test)]
mod tests;
