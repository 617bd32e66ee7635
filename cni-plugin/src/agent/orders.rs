//! What CNI requests want of the agent's one loop, and what comes back: values only.
//!
//! Sent by `requests.rs`, carried out by `agent.rs` and the pod tasks. Knows no sockets and no API server.

use std::net::IpAddr;
use std::path::PathBuf;

use ambit_core::enrollment::Enrollment;
use ambit_core::names::PodUid;
use tokio::sync::{mpsc, oneshot, watch};

use super::pods::kubernetes::Read;

/// Requests that may wait for the loop, which never waits long: more than the socket lets in at a time.
const MOST_ORDERS: usize = 512;

/// An order for the agent's loop.
#[derive(Debug)]
pub enum Order {
    /// A sandbox has a network: its pod is to be captured now, if it belongs to the mesh.
    Admit(Box<Admission>, oneshot::Sender<Admitted>),
    /// The request has failed: what was begun for it is to be undone.
    Undo(PodUid, u64),
}

/// A pod whose sandbox has just got its network.
#[derive(Debug)]
pub struct Admission {
    /// The pod and its namespace, read since the request came.
    pub read: Read,
    /// Path of the sandbox's network namespace.
    pub netns: PathBuf,
    /// The sandbox's addresses.
    pub addresses: Vec<IpAddr>,
}

/// What becomes of an admission.
#[derive(Debug)]
pub enum Admitted {
    /// The pod does not belong to the mesh.
    Outside(Enrollment),
    /// The pod belongs to the mesh and cannot be captured as it is described.
    Unclear(String),
    /// The pod has been deleted meanwhile.
    Deleted,
    /// The pod's task does it, under this number; what it has to say comes here.
    Underway(u64, watch::Receiver<Settled>),
}

/// How far a pod's task is with the newest CNI request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The request's number.
    pub attempt: u64,
    /// How far.
    pub outcome: Outcome,
}

/// What has become of a CNI request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    #[default]
    Underway,
    /// The pod is captured, served and announced.
    Captured,
    /// Something is in the way.
    Failed(String),
    /// Nothing of it is left.
    Undone,
}

/// The way to the loop, and its end there.
pub fn channel() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(MOST_ORDERS)
}
