//! Workers: the threads of the data path, each with a single-threaded runtime of its own.
//!
//! Started by `app`; pod proxies put their listeners on every one of them, so that all of a connection lives on one
//! thread. A worker runs until it is told to end, which is after its pods have been drained. Knows nothing of pods.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use ambit_net::meters::Meters;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tracing::error;

use crate::flows::Flows;
use crate::handshakes::Handshakes;

/// The threads of the data path.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// One thread, as those see it who put work on it.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    /// What is spawned or registered inside `runtime.enter()` belongs to the worker.
    pub(crate) runtime: Handle,
    /// Handshakes with clients that may be under way.
    pub(crate) handshakes: Arc<Handshakes>,
    /// The connections that are being carried.
    pub(crate) flows: Arc<Flows>,
}

impl Workers {
    /// Starts `count` threads, each with room for so many handshakes; counts their connections in `meters`.
    ///
    /// # Errors
    /// When the system refuses a thread or a runtime's descriptors; what was started ends again.
    pub(crate) fn start(count: usize, handshakes: usize, meters: &Meters) -> io::Result<Self> {
        let mut started = Self {
            workers: Vec::new(),
            threads: Vec::new(),
        };
        for index in 0..count {
            started.add(index, handshakes, Flows::new(meters))?;
        }
        Ok(started)
    }

    /// All workers.
    pub(crate) fn all(&self) -> Vec<Worker> {
        self.workers.clone()
    }

    /// Ends the threads and waits for them; tasks that still run are dropped.
    pub(crate) fn end(self) {
        for (end, thread) in self.threads {
            // Nobody listens when the thread is gone already, which the join reports.
            end.send(()).ok();
            if thread.join().is_err() {
                error!("a worker thread panicked");
            }
        }
    }

    fn add(&mut self, index: usize, handshakes: usize, flows: Flows) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let flows = Arc::new(flows);
        let reporting = Arc::clone(&flows).keep_reporting();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || runtime.block_on(until(ended, reporting)))?;
        self.workers.push(Worker {
            runtime: handle,
            handshakes: Arc::new(Handshakes::new(handshakes)),
            flows,
        });
        self.threads.push((end, thread));
        Ok(())
    }
}

/// Does `work`, which has no end, until it is told to end or nobody is left to tell.
async fn until(end: oneshot::Receiver<()>, work: impl Future<Output = ()>) {
    tokio::select! {
        _told = end => {}
        () = work => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use ambit_net::tasks::Tasks;

    use super::*;

    #[test]
    fn tasks_run_on_the_worker_that_was_entered() {
        let workers = Workers::start(2, 1, &Meters::new("test", 1)).unwrap();
        let tasks = Tasks::new("test");
        let (tx, rx) = mpsc::channel();
        for worker in workers.all() {
            let tx = tx.clone();
            let _inside = worker.runtime.enter();
            tasks.spawn(async move {
                tx.send(std::thread::current().name().map(str::to_owned))
                    .unwrap();
            });
        }
        let mut names: Vec<_> = (0..2)
            .map(|_| rx.recv_timeout(Duration::from_secs(5)).unwrap().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["worker-0", "worker-1"]);
        workers.end();
    }
}
