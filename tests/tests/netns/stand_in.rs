//! A stand-in for ztunnel in one pod: takes what the rules redirect and carries it on in plain TCP, as ztunnel does with
//! its marks and the client's address. It shows what the rules do without any of the mesh.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::ports;
use ambit_net::netns::Netns;
use ambit_net::sockopt::{self, ConnectorOptions, ListenerOptions};
use ambit_net::tasks::Tasks;
use tests::failure::{Context as _, Outcome};
use tests::inside::inside;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

/// Counts what it took; ends with the test program.
pub(crate) struct StandIn {
    outbound: Arc<AtomicUsize>,
    inbound: Arc<AtomicUsize>,
}

impl StandIn {
    /// Listens in the pod at `netns`.
    pub(crate) fn start(netns: &Path) -> Outcome<Self> {
        Ok(Self {
            outbound: serve(netns, ports::OUTBOUND)?,
            inbound: serve(netns, ports::INBOUND_PLAINTEXT)?,
        })
    }

    /// Connections taken on 15001 so far.
    pub(crate) fn outbound(&self) -> usize {
        self.outbound.load(Ordering::SeqCst)
    }

    /// Connections taken on 15006 so far.
    pub(crate) fn inbound(&self) -> usize {
        self.inbound.load(Ordering::SeqCst)
    }
}

fn serve(netns: &Path, port: u16) -> Outcome<Arc<AtomicUsize>> {
    let pod = Netns::open(netns).context("open the pod")?;
    let options = ListenerOptions {
        mark: Some(ports::PROXY_MARK),
        transparent: true,
        reuse_port: false,
    };
    let listener = inside(netns, || {
        sockopt::listener((Ipv6Addr::UNSPECIFIED, port).into(), &options).context("listen")
    })?;
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    std::thread::Builder::new()
        .name(format!("stand-in-{port}"))
        .spawn(move || {
            let ended = accept_all(&pod, port, listener, &count);
            eprintln!("stand-in {port} has ended: {ended:?}");
        })?;
    Ok(taken)
}

fn accept_all(pod: &Netns, port: u16, listener: TcpListener, count: &AtomicUsize) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = Tasks::new("stand-in");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (app, peer) = listener.accept().await?;
            count.fetch_add(1, Ordering::SeqCst);
            let pod = pod.clone();
            tasks.spawn(async move {
                if let Err(cause) = carry(&pod, port, app, peer).await {
                    eprintln!("stand-in {port}: {cause}");
                }
            });
        }
    })
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
