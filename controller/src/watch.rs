//! What the sources tell the index: one event per change of one object, from whatever source.
//!
//! Sent by [`files`] or, with Kubernetes, by one watch per kind ([`kubernetes`]) into one bounded channel that the publisher empties.
//! Knows what kinds there are and how a document becomes an object; not what the objects mean.

pub mod object;
pub mod files;
pub mod kubernetes;

use ambit_core::names::{NamespacedName, Text};
use ambit_core::status::Problem;

pub use self::object::{Kind, Object};

/// Key of an object: its kind and name. The namespace of cluster-wide kinds is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The name.
    pub name: NamespacedName,
}

/// A pod that a node's proxy serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServedPod {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Tells a pod from its successor of the same name.
    pub uid: Text,
}

/// All pods that one node's proxy serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedPods {
    /// The node.
    pub node: Text,
    /// When it said so, in seconds since the epoch.
    pub at: u64,
    /// The pods.
    pub pods: Vec<ServedPod>,
}

/// An object as a source has it now.
#[derive(Debug)]
pub struct Applied {
    /// Its key.
    pub key: ObjectKey,
    /// Where it is written, `file:line`, in sources that know.
    pub origin: Option<Text>,
    /// The object.
    pub object: Box<Object>,
}

/// One change.
#[derive(Debug)]
pub enum Event {
    /// An object is there, or is another one than before.
    Applied(Applied),
    /// An object is gone.
    Deleted(ObjectKey),
    /// A node's proxy said which pods it serves.
    Served(ServedPods),
    /// What is wrong in the source now; replaces what was said before.
    Problems(Vec<Problem>),
    /// Everything that the source held at the start has been said.
    Synced,
}

/// How many events may wait for the publisher. A source that is faster waits; nothing is lost.
pub const QUEUE: usize = 1024;
