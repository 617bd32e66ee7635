//! The discovery service: one owned task per subscriber, which always sends the newest.
//!
//! Every stream belongs to a caller that was authenticated before its first message is read. It ends when the caller's
//! credential does, when an answer is overdue, or on stop; the proxy then resumes with what it holds.

use std::sync::Arc;
use std::time::Duration;

use ambit_net::meters::{CALLS_REFUSED, Meters, XDS_NACKS, XDS_PUSHES, XDS_STREAMS};
use ambit_net::proto::core::Node;
use ambit_net::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use ambit_net::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ambit_net::tasks::{Spawner, Stop};
use ambit_net::xds::Kind;
use prost_types::value::Kind as ValueKind;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::places::{Place, Places};
use super::proxies::{OpenStream, Proxies};
use super::session::{Heard, Session, cut};
use super::store::Snapshot;
use crate::ca::authenticate::Caller;

/// Wait for the first message of a stream; a proxy sends it with the call.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait for the answer to a response. A proxy answers once it has applied what it got; the first may be a whole mesh, and
/// the link slow, for which the proxy itself waits two minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);
/// Longest node id that is kept, in bytes; ztunnel's is four names.
const MAX_ID: usize = 1024;
/// Bytes of a refusal that are logged; the status has more.
const LOGGED: usize = 2048;

/// What subscribers read; none until the sources have been read.
pub type Published = watch::Receiver<Option<Arc<Snapshot>>>;

/// The service.
#[derive(Debug)]
pub struct Discovery {
    published: Published,
    proxies: Proxies,
    tasks: Spawner,
    places: Places,
    meters: Arc<Meters>,
}

impl Discovery {
    /// Serves `published` to at most `limit` streams, whose tasks belong to the owner of `tasks`.
    pub fn new(
        published: Published,
        proxies: Proxies,
        (tasks, limit): (Spawner, usize),
        meters: Arc<Meters>,
    ) -> Self {
        Self {
            published,
            proxies,
            tasks,
            places: Places::new(limit),
            meters,
        }
    }

    fn subscribe(
        &self,
        caller: Caller,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Result<ReceiverStream<Result<DeltaDiscoveryResponse, Status>>, Status> {
        let busy = || Status::resource_exhausted("the controller has no place for another stream");
        let place = self.places.take(caller.node_name()).ok_or_else(busy)?;
        // One response may wait for the connection; the next is made when it has left.
        let (responses, stream) = mpsc::channel(1);
        let subscriber = Subscriber {
            caller,
            requests,
            responses,
            published: self.published.clone(),
            meters: Arc::clone(&self.meters),
            _place: place,
        };
        let (stop, proxies) = (self.tasks.stop_signal(), self.proxies.clone());
        self.tasks.spawn(run_subscriber(subscriber, proxies, stop));
        Ok(ReceiverStream::new(stream))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = Caller::of(&request)?;
        if self.published.borrow().is_none() {
            return Err(Status::unavailable(
                "the controller has not read its sources yet",
            ));
        }
        self.subscribe(caller, request.into_inner())
            .map(Response::new)
    }
}

/// One stream.
struct Subscriber {
    caller: Caller,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    published: Published,
    meters: Arc<Meters>,
    _place: Place,
}

/// Serves one stream until it ends, and tells the proxy why.
async fn run_subscriber(mut subscriber: Subscriber, proxies: Proxies, stop: Stop) {
    let caller = subscriber.caller.clone();
    let outcome = tokio::select! {
        outcome = subscriber.talk(&proxies) => outcome,
        () = stop.stopped() => Err(Status::unavailable("the controller stops")),
        why = caller.ended() => Err(Status::unauthenticated(why)),
    };
    match outcome {
        Ok(()) => info!(node = caller.node(), "a proxy has left"),
        Err(status) => {
            info!(
                node = caller.node(),
                reason = status.message(),
                "a proxy's stream ends"
            );
            let labels = ["xds", &format!("{:?}", status.code())];
            subscriber
                .meters
                .counter(&CALLS_REFUSED, labels)
                .increment();
            // A full channel means that the proxy does not read; it will see the stream's end.
            drop(subscriber.responses.try_send(Err(status)));
        }
    }
}

impl Subscriber {
    async fn talk(&mut self, proxies: &Proxies) -> Result<(), Status> {
        let Some(first) = self.first_request().await? else {
            return Ok(());
        };
        let id = node_id(&self.caller, first.node.as_ref())?;
        info!(node = self.caller.node(), id, "a proxy subscribes");
        let _counted = self.meters.gauge(&XDS_STREAMS, []).hold();
        let open = proxies.opened(self.caller.node_name(), id);
        let mut session = Session::new(self.caller.node());
        self.heard(&mut session, first)?;
        self.converse(session, open).await
    }

    async fn first_request(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        let late = |_elapsed| Status::deadline_exceeded("no request on the stream");
        timeout(REQUEST_TIMEOUT, self.requests.message())
            .await
            .map_err(late)?
    }

    /// Moves messages until the proxy ends the stream.
    async fn converse(&mut self, mut session: Session, open: OpenStream) -> Result<(), Status> {
        let responses = self.responses.clone();
        let mut outgoing: Option<DeltaDiscoveryResponse> = None;
        let mut overdue = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if outgoing.is_none() {
                let snapshot = self.newest()?;
                session
                    .advance(&snapshot)
                    .map_err(|e| Status::aborted(e.to_string()))?;
                outgoing = session.next_push(&snapshot);
                if outgoing.is_some() {
                    // The time since the last one, which was answered, is not the proxy's.
                    overdue = Instant::now() + ANSWER_TIMEOUT;
                }
            }
            open.holds(session.status());
            let waits = session.awaits_answer();
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => {
                        if self.heard(&mut session, request)? {
                            overdue = Instant::now() + ANSWER_TIMEOUT;
                        }
                    }
                    None => return Ok(()),
                },
                place = responses.reserve(), if outgoing.is_some() => {
                    let (Ok(place), Some(response)) = (place, outgoing.take()) else {
                        return Ok(());
                    };
                    overdue = Instant::now() + ANSWER_TIMEOUT;
                    self.meters.counter(&XDS_PUSHES, [label(&response.type_url)]).increment();
                    place.send(Ok(response));
                }
                changed = self.published.changed(), if outgoing.is_none() => {
                    changed.map_err(|_gone| Status::unavailable("the controller stops"))?;
                }
                () = sleep_until(overdue), if waits => {
                    return Err(Status::deadline_exceeded("a response was not answered"));
                }
            }
        }
    }

    fn newest(&mut self) -> Result<Arc<Snapshot>, Status> {
        let newest = self.published.borrow_and_update().clone();
        newest.ok_or_else(|| Status::unavailable("the controller has not read its sources yet"))
    }

    /// Takes a request; true when it answers a response.
    fn heard(
        &mut self,
        session: &mut Session,
        request: DeltaDiscoveryRequest,
    ) -> Result<bool, Status> {
        let type_url = request.type_url.clone();
        let snapshot = self.newest()?;
        let heard = session.request(request, &snapshot);
        let node = self.caller.node();
        let heard = heard.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let is_answer = matches!(heard, Heard::Rejected(_) | Heard::Acknowledged);
        match heard {
            Heard::Rejected(detail) => {
                self.meters
                    .counter(&XDS_NACKS, [label(&type_url)])
                    .increment();
                let detail = cut(&detail, LOGGED);
                warn!(node, type_url, detail, "a proxy refuses resources");
            }
            Heard::Unknown => warn!(
                node,
                type_url, "a proxy asks for a type that does not exist"
            ),
            heard => debug!(node, type_url, ?heard, "a proxy's request"),
        }
        Ok(is_answer)
    }
}

/// A type as a label: what a proxy makes up must not make series.
fn label(type_url: &str) -> &'static str {
    Kind::of(type_url).map_or("unknown", Kind::type_url)
}

/// The proxy's id, once its node is the one that the credential names.
fn node_id<'a>(caller: &Caller, node: Option<&'a Node>) -> Result<&'a str, Status> {
    let missing =
        || Status::permission_denied("the first request has to say NODE_NAME in its node");
    let node = node.ok_or_else(missing)?;
    let metadata = node
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get("NODE_NAME"));
    let Some(ValueKind::StringValue(name)) = metadata.and_then(|value| value.kind.as_ref()) else {
        return Err(missing());
    };
    if *name != *caller.node() {
        return Err(Status::permission_denied(
            "NODE_NAME is not the node that the token names",
        ));
    }
    if node.id.len() > MAX_ID {
        return Err(Status::invalid_argument("the node's id is too long"));
    }
    Ok(&node.id)
}
