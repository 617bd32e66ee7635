//! Tasks: every task has an owner, who can stop it, wait for it, and cut it when the wait is over.
//!
//! Called by whoever starts concurrent work (app, pod proxies, tunnels); nothing else in the workspace may spawn. A
//! task that ends frees its memory at once; one that panics is counted and logged. Knows nothing of what the tasks do.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::timeout;
use tracing::{error, warn};

/// How long [`Tasks::drain`] waits for cut tasks to be dropped; longer only if a task blocks its thread.
const CUT_GRACE: Duration = Duration::from_secs(1);

const RUNNING: u8 = 0;
const STOPPING: u8 = 1;
const CUT: u8 = 2;

/// Owner of a group of tasks; dropping it cuts them.
#[derive(Debug)]
pub struct Tasks {
    group: Arc<Group>,
}

/// May add tasks to a group without owning it.
#[derive(Clone, Debug)]
pub struct Spawner {
    group: Arc<Group>,
}

/// Tells a task that its owner wants it to end.
#[derive(Clone, Debug)]
pub struct Stop {
    group: Arc<Group>,
}

/// What became of the tasks while a drain lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Ended by themselves before the deadline.
    pub finished: usize,
    /// Still ran at the deadline and were cut.
    pub cut: usize,
}

impl Tasks {
    /// An empty group; `name` says in logs whose tasks these are.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            group: Arc::new(Group {
                name: name.into(),
                phase: AtomicU8::new(RUNNING),
                live: AtomicUsize::new(0),
                ended: AtomicUsize::new(0),
                panicked: AtomicUsize::new(0),
                stopping: Notify::new(),
                cut: Arc::new(Notify::new()),
                idle: Notify::new(),
            }),
        }
    }

    /// Starts a task on the current thread's runtime; panics outside of one. After a cut it is dropped unstarted.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.group.spawn(task);
    }

    /// Lets another part add tasks to this group.
    pub fn spawner(&self) -> Spawner {
        Spawner {
            group: Arc::clone(&self.group),
        }
    }

    /// What the tasks listen to in order to end on [`stop`](Self::stop) or [`drain`](Self::drain).
    pub fn stop_signal(&self) -> Stop {
        Stop {
            group: Arc::clone(&self.group),
        }
    }

    /// Asks all tasks to end, without waiting.
    pub fn stop(&self) {
        self.group.advance(STOPPING);
    }

    /// Asks all tasks to end, waits up to `deadline`, then cuts those that still run and waits for their drop.
    ///
    /// # Cancel safety
    /// If dropped while it waits, the stop stands and nothing has been cut.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        let group = &self.group;
        let ended_before = group.ended.load(Ordering::Acquire);
        self.stop();
        let finished_in_time = timeout(deadline, group.idle()).await.is_ok();
        let ended = group.ended.load(Ordering::Acquire);
        let cut = if finished_in_time { 0 } else { self.live() };
        group.advance(CUT);
        if timeout(CUT_GRACE, group.idle()).await.is_err() {
            warn!(tasks = %group.name, left = self.live(), "cut tasks block their thread");
        }
        Drained {
            finished: ended.wrapping_sub(ended_before),
            cut,
        }
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> usize {
        self.group.live.load(Ordering::Acquire)
    }

    /// Tasks that have ended by a panic so far.
    pub fn panicked(&self) -> usize {
        self.group.panicked.load(Ordering::Acquire)
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.group.advance(CUT);
    }
}

impl Spawner {
    /// Starts a task as [`Tasks::spawn`] does.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.group.spawn(task);
    }

    /// The stop signal of the group.
    pub fn stop_signal(&self) -> Stop {
        Stop {
            group: Arc::clone(&self.group),
        }
    }
}

impl Stop {
    /// Waits until the owner wants the task to end; at once if that was before.
    pub async fn stopped(&self) {
        // The waiter is made before the look, so that a stop between the two is not missed.
        let stopped = self.group.stopping.notified();
        if !self.is_stopped() {
            stopped.await;
        }
    }

    /// True once the owner wants the task to end.
    pub fn is_stopped(&self) -> bool {
        self.group.phase() >= STOPPING
    }
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    phase: AtomicU8,
    live: AtomicUsize,
    ended: AtomicUsize,
    panicked: AtomicUsize,
    stopping: Notify,
    cut: Arc<Notify>,
    idle: Notify,
}

impl Group {
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that spawns: `Owned` makes the group the task's owner"
        )]
        drop(tokio::spawn(Owned::new(self, task)));
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    fn advance(&self, phase: u8) {
        self.phase.fetch_max(phase, Ordering::AcqRel);
        self.stopping.notify_waiters();
        if phase == CUT {
            self.cut.notify_waiters();
        }
    }

    async fn idle(&self) {
        loop {
            let ended = self.idle.notified();
            if self.live.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }
}

pin_project! {
    /// A task as it is spawned: ends with its future or at the group's cut.
    ///
    /// A type of its own and not an async block, which would hold the task's future two or three times over.
    struct Owned<F> {
        #[pin]
        cut: OwnedNotified,
        listens: bool,
        #[pin]
        task: F,
        // Dropped after the task, so that an idle group has no future left.
        entry: Entry,
    }
}

impl<F> Owned<F> {
    fn new(group: &Arc<Group>, task: F) -> Self {
        Self {
            cut: Arc::clone(&group.cut).notified_owned(),
            listens: false,
            task,
            entry: Entry::new(group),
        }
    }
}

impl<F: Future<Output = ()>> Future for Owned<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let owned = self.project();
        // Listening once is enough, and spares each poll a lock: a spawned task is always polled with the same waker.
        if !*owned.listens {
            *owned.listens = true;
            // The phase says the same, and also what was before.
            let _listening = owned.cut.poll(cx);
        }
        if owned.entry.group.phase() == CUT {
            return Poll::Ready(());
        }
        owned.task.poll(cx)
    }
}

/// A place in the group; held as long as the task's future exists, dropped after it.
#[derive(Debug)]
struct Entry {
    group: Arc<Group>,
}

impl Entry {
    fn new(group: &Arc<Group>) -> Self {
        group.live.fetch_add(1, Ordering::AcqRel);
        Self {
            group: Arc::clone(group),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.group.panicked.fetch_add(1, Ordering::AcqRel);
            error!(tasks = %self.group.name, "a task panicked");
        }
        self.group.ended.fetch_add(1, Ordering::AcqRel);
        if self.group.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.group.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
