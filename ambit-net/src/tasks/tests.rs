//! Claims about stopping, draining, cutting and panicking tasks.

use std::sync::Mutex;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::*;

const LONG: Duration = Duration::from_secs(3600);

/// Runs the other tasks until nothing is left to do at this instant.
async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

/// Says on drop that the future that held it is gone.
struct Gone(Option<oneshot::Sender<()>>);

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell.send(()).unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_what_ends_and_cuts_the_rest() {
    let tasks = Tasks::new("test");
    let stop = tasks.stop_signal();
    tasks.spawn(async move {
        stop.stopped().await;
        sleep(Duration::from_secs(3)).await;
    });
    let (tell, gone) = oneshot::channel();
    let held = Gone(Some(tell));
    tasks.spawn(async move {
        let _held = held;
        sleep(LONG).await;
    });
    settle().await;
    let began = Instant::now();
    let drained = tasks.drain(Duration::from_secs(5)).await;
    assert_eq!(
        drained,
        Drained {
            finished: 1,
            cut: 1
        }
    );
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!(tasks.live(), 0);
    gone.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn drain_ends_as_soon_as_the_last_task_does() {
    let tasks = Tasks::new("test");
    let stop = tasks.stop_signal();
    tasks.spawn(async move { stop.stopped().await });
    let began = Instant::now();
    let drained = tasks.drain(LONG).await;
    assert_eq!(
        drained,
        Drained {
            finished: 1,
            cut: 0
        }
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn tasks_spawned_while_draining_are_waited_for() {
    let tasks = Tasks::new("test");
    let (stop, spawner) = (tasks.stop_signal(), tasks.spawner());
    tasks.spawn(async move {
        stop.stopped().await;
        spawner.spawn(sleep(Duration::from_secs(2)));
    });
    let drained = tasks.drain(LONG).await;
    assert_eq!(
        drained,
        Drained {
            finished: 2,
            cut: 0
        }
    );
}

#[tokio::test]
async fn a_task_spawned_after_the_cut_never_runs() {
    let tasks = Tasks::new("test");
    tasks.drain(Duration::ZERO).await;
    let ran = Arc::new(Mutex::new(false));
    let seen = Arc::clone(&ran);
    tasks.spawn(async move { *seen.lock().unwrap() = true });
    settle().await;
    assert!(!*ran.lock().unwrap());
    assert_eq!(tasks.live(), 0);
}

#[tokio::test]
async fn dropping_the_owner_cuts_its_tasks_even_if_spawners_remain() {
    let tasks = Tasks::new("test");
    let spawner = tasks.spawner();
    let (tell, gone) = oneshot::channel();
    let held = Gone(Some(tell));
    spawner.spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    settle().await;
    drop(tasks);
    gone.await.unwrap();
    assert!(spawner.stop_signal().is_stopped());
}

#[tokio::test]
async fn ended_tasks_leave_nothing_behind() {
    let tasks = Tasks::new("test");
    let payload = Arc::new(());
    for _ in 0..1000 {
        let held = Arc::clone(&payload);
        tasks.spawn(async move { drop(held) });
    }
    while tasks.live() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tasks.live(), 0);
    assert_eq!(Arc::strong_count(&payload), 1);
    // Only the owner refers to the group: no task cell is left that would.
    assert_eq!(Arc::strong_count(&tasks.group), 1);
}

#[tokio::test]
async fn a_panic_is_counted_and_harms_no_other_task() {
    let tasks = Tasks::new("test");
    let (tell, told) = oneshot::channel();
    tasks.spawn(async { panic!("on purpose") });
    tasks.spawn(async move { tell.send(()).unwrap() });
    told.await.unwrap();
    settle().await;
    assert_eq!(tasks.panicked(), 1);
    assert_eq!(tasks.live(), 0);
}

#[tokio::test]
async fn stop_is_seen_by_late_listeners_too() {
    let tasks = Tasks::new("test");
    tasks.stop();
    let stop = tasks.stop_signal();
    assert!(stop.is_stopped());
    stop.stopped().await;
}

/// Runs 100 tasks that wait for the stop, on a runtime of the calling thread's own.
fn hundred_tasks(spawner: &Spawner) {
    let stop = spawner.stop_signal();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        for _ in 0..100 {
            let stop = stop.clone();
            spawner.spawn(async move { stop.stopped().await });
        }
        stop.stopped().await;
        settle().await;
    });
}

#[test]
fn a_group_serves_several_runtimes() {
    let tasks = Tasks::new("test");
    let start = || {
        let spawner = tasks.spawner();
        std::thread::spawn(move || hundred_tasks(&spawner))
    };
    let threads = [start(), start(), start(), start()];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    while tasks.live() < 400 {
        std::thread::yield_now();
    }
    let drained = runtime.block_on(tasks.drain(Duration::from_secs(10)));
    assert_eq!((drained.finished, drained.cut), (400, 0));
    for thread in threads {
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_task_costs_little_more_than_its_future() {
    let tasks = Tasks::new("test");
    let future = async {
        let held = [7_u8; 4096];
        tokio::task::yield_now().await;
        std::hint::black_box(&held);
    };
    let alone = size_of_val(&future);
    let spawned = Owned::new(&tasks.group, future);
    assert!(alone >= 4096);
    assert!(size_of_val(&spawned) <= alone + 256);
}
