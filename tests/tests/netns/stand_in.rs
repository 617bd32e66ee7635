//! A stand-in for ztunnel: takes what the rules redirect and carries it on in plain TCP, with ztunnel's marks and the
//! client's address. It shows what rules and agent do without any of the mesh.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_core::ports;
use ambit_net::handoff::Connection;
use ambit_net::netns::Netns;
use ambit_net::sockopt::{self, ConnectorOptions, ListenerOptions};
use ambit_net::tasks::Tasks;
use ambit_net::wire::handoff::{Request, ack, hello};
use tests::failure::{Context as _, Outcome, ensure};
use tests::inside::inside;
use tests::poll;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A thread with a runtime of its own that ends with this value.
struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(
        name: String,
        work: impl AsyncFnOnce() -> Outcome<()> + Send + 'static,
    ) -> Outcome<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime: Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        ended = work() => eprintln!("{name} has ended: {ended:?}"),
                        _stopped = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Serves one pod; counts what it took. Dropping it cuts what it carries.
pub(crate) struct StandIn {
    taken: Arc<[AtomicUsize; 2]>,
    _workers: [Worker; 2],
}

impl StandIn {
    /// Listens in the pod at `netns`.
    pub(crate) fn start(netns: &Path) -> Outcome<Self> {
        let taken: Arc<[AtomicUsize; 2]> = Arc::default();
        let workers = [
            serve(netns, ports::OUTBOUND, Arc::clone(&taken))?,
            serve(netns, ports::INBOUND_PLAINTEXT, Arc::clone(&taken))?,
        ];
        Ok(Self {
            taken,
            _workers: workers,
        })
    }

    /// Connections taken so far: outbound on 15001, inbound on 15006.
    pub(crate) fn taken(&self) -> (usize, usize) {
        let [outbound, inbound] = &*self.taken;
        (
            outbound.load(Ordering::SeqCst),
            inbound.load(Ordering::SeqCst),
        )
    }
}

fn serve(netns: &Path, port: u16, taken: Arc<[AtomicUsize; 2]>) -> Outcome<Worker> {
    let pod = Netns::open(netns).context("open the pod")?;
    let options = ListenerOptions {
        mark: Some(ports::PROXY_MARK),
        transparent: true,
        reuse_port: false,
    };
    let listener = inside(netns, || {
        sockopt::listener((Ipv6Addr::UNSPECIFIED, port).into(), &options).context("listen")
    })?;
    Worker::start(format!("stand-in-{port}"), async move || {
        accept_all(&pod, port, listener, &taken).await
    })
}

async fn accept_all(
    pod: &Netns,
    port: u16,
    listener: TcpListener,
    taken: &[AtomicUsize; 2],
) -> Outcome {
    let tasks = Tasks::new("stand-in");
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (app, peer) = listener.accept().await?;
        let [outbound, inbound] = taken;
        let count = if port == ports::OUTBOUND {
            outbound
        } else {
            inbound
        };
        count.fetch_add(1, Ordering::SeqCst);
        let pod = pod.clone();
        tasks.spawn(async move {
            if let Err(cause) = carry(&pod, port, app, peer).await {
                eprintln!("stand-in {port}: {cause}");
            }
        });
    }
}

async fn carry(pod: &Netns, port: u16, mut app: TcpStream, peer: SocketAddr) -> Outcome {
    let wanted = sockopt::original_dst(&app)?;
    let source = (port == ports::INBOUND_PLAINTEXT).then(|| peer.ip().to_canonical());
    let options = ConnectorOptions {
        mark: Some(ports::PROXY_MARK),
        source,
    };
    let socket = pod
        .run_in_place(|| sockopt::connector(wanted, &options))
        .context("enter")?
        .context("connector")?;
    let mut peer = socket.connect(wanted).await?;
    // A reset of either side is how some tests end.
    let _carried = copy_bidirectional(&mut app, &mut peer).await;
    Ok(())
}

/// A ztunnel that speaks to a node agent, with a stand-in in each pod that it is given.
pub(crate) struct Ztunnel {
    seen: Arc<Seen>,
    _worker: Worker,
}

#[derive(Default)]
struct Seen {
    events: Mutex<Vec<String>>,
    pods: Mutex<BTreeMap<PodUid, StandIn>>,
    refuses: AtomicBool,
}

impl Ztunnel {
    /// Connects to the agent's socket, again and again.
    pub(crate) fn start(socket: &Path) -> Outcome<Self> {
        let seen = Arc::new(Seen::default());
        let socket: PathBuf = socket.to_path_buf();
        let worker = Worker::start("ztunnel".to_owned(), {
            let seen = Arc::clone(&seen);
            async move || {
                loop {
                    let ended = follow(&socket, &seen).await;
                    seen.note(format!("end {}", ended.is_ok()));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })?;
        Ok(Self {
            seen,
            _worker: worker,
        })
    }

    /// From now on it cannot serve pods that are added, or can again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.seen.refuses.store(refuses, Ordering::SeqCst);
    }

    /// What the agent has said so far: `add NAME`, `keep UID`, `remove UID`, `snapshot`; and `end` of a connection.
    pub(crate) fn events(&self) -> Vec<String> {
        lock(&self.seen.events).clone()
    }

    /// Waits until the agent has said `event`, counted from the event with this number.
    pub(crate) fn wait_for(&self, from: usize, event: &str) -> Outcome {
        poll::until_ok(poll::SOON, || {
            let events = self.events();
            let said = events.iter().skip(from).any(|said| said == event);
            ensure(said, format_args!("no `{event}` in {events:?} from {from}"))
        })
    }

    /// Connections that it took in a pod that it serves.
    pub(crate) fn taken(&self, uid: &str) -> (usize, usize) {
        let pods = lock(&self.seen.pods);
        let pod = pods.get(&PodUid::new(uid));
        pod.map(StandIn::taken).unwrap_or_default()
    }
}

impl Seen {
    fn note(&self, event: String) {
        let mut events = lock(&self.events);
        // A listener that is not there yet fails every attempt.
        if event != "end false" || events.last() != Some(&event) {
            events.push(event);
        }
    }

    fn add(&self, uid: &PodUid, netns: Option<OwnedFd>) -> Outcome {
        ensure(
            !self.refuses.load(Ordering::SeqCst),
            "it does not want to serve the pod",
        )?;
        let netns = Netns::from_fd(netns.context("no namespace")?).context("namespace")?;
        let mut pods = lock(&self.pods);
        if !pods.contains_key(uid) {
            use std::os::fd::{AsFd as _, AsRawFd as _};
            let path = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
            pods.insert(uid.clone(), StandIn::start(Path::new(&path))?);
        }
        Ok(())
    }
}

async fn follow(socket: &Path, seen: &Seen) -> Outcome {
    let agent = Connection::connect(socket).context("connect")?;
    agent.send(&hello(), None).await.context("greet")?;
    while let Some(packet) = agent.recv().await.context("receive")? {
        let (request, netns) = Request::decode(packet).context("request")?;
        let outcome = match &request {
            Request::Add(pod) => {
                seen.note(format!("add {}", pod.name));
                seen.add(&pod.uid, netns)
            }
            Request::Keep(uid) => {
                seen.note(format!("keep {uid}"));
                Ok(())
            }
            Request::Remove(uid) => {
                seen.note(format!("remove {uid}"));
                let _cut = lock(&seen.pods).remove(uid);
                Ok(())
            }
            Request::SnapshotSent => {
                seen.note("snapshot".to_owned());
                Ok(())
            }
        };
        let answer = match outcome {
            Ok(()) => ack(Ok(())),
            Err(cause) => ack(Err(&cause.to_string())),
        };
        agent.send(&answer, None).await.context("answer")?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
