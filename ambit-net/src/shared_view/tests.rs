//! Claims about sharing a view: order, slices, and what watchers are told.

use std::sync::atomic::AtomicBool;

use ambit_core::names::{ClusterId, NamespacedName, NetworkId, WorkloadUid};
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope};
use ambit_core::workload::Workload;

use super::*;

fn empty() -> SharedView {
    SharedView::new(MeshView::new(NetworkId::default(), ClusterId::new("c")))
}

fn workload(number: u32) -> Update {
    let uid = WorkloadUid::new(format!("c//Pod/ns/w{number}"));
    let mut workload = Workload::named(uid, "ns", &format!("w{number}"));
    let [_, b, c, d] = number.to_be_bytes();
    workload.addresses = vec![[10, b, c, d].into()];
    Update::Workload(Box::new(workload))
}

fn gone(number: u32) -> Update {
    Update::RemoveAddress(format!("c//Pod/ns/w{number}"))
}

fn policy(name: &str) -> Update {
    Update::Policy(Box::new(Authorization {
        name: NamespacedName::new("ns", name),
        scope: PolicyScope::Namespace,
        action: PolicyAction::Deny,
        rules: Vec::new(),
        dry_run: false,
        unreadable: None,
    }))
}

#[test]
fn all_slices_of_a_batch_are_applied_in_order_and_reported() {
    let view = empty();
    let count = u32::try_from(3 * SLICE + 1).unwrap();
    let mut updates: Vec<Update> = (0..count).map(workload).collect();
    updates.push(Update::RemoveAddress("c//Pod/ns/w0".to_owned()));
    let changed = view.apply(updates);
    assert_eq!(changed.workloads.len(), 3 * SLICE + 2);
    assert_eq!(view.read(|view| view.workloads().len()), 3 * SLICE);
}

#[test]
fn watchers_are_told_once_per_batch_and_only_of_changes() {
    let view = empty();
    let changes = view.changes();
    view.apply(vec![workload(1), workload(2)]);
    assert_eq!(
        *changes.borrow(),
        Version {
            view: 1,
            policies: 0
        }
    );
    view.apply(vec![workload(1)]);
    assert_eq!(changes.borrow().view, 1, "an equal resource is no change");
    view.apply(vec![policy("p")]);
    assert_eq!(
        *changes.borrow(),
        Version {
            view: 2,
            policies: 1
        }
    );
}

#[test]
fn readers_get_in_between_the_slices_of_a_large_batch() {
    let view = empty();
    let last = u32::try_from(8 * SLICE).unwrap();
    let half_way = AtomicBool::new(false);
    let has = |view: &MeshView, number: u32| {
        let uid = WorkloadUid::new(format!("c//Pod/ns/w{number}"));
        view.workload(&uid).is_some()
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !half_way.load(Ordering::Acquire) {
                let seen = view.read(|view| has(view, 0) && !has(view, last));
                half_way.fetch_or(seen, Ordering::AcqRel);
            }
        });
        // A batch may pass while the reader's thread does not run, so offer many.
        for _ in 0..100_000 {
            view.apply((0..=last).map(workload).collect());
            if half_way.load(Ordering::Acquire) {
                return;
            }
            view.apply((0..=last).rev().map(gone).collect());
        }
        half_way.store(true, Ordering::Release);
        panic!("no reader saw a batch half applied");
    });
}
