//! For the tests of this crate: objects from YAML literals, an index that has seen them, and a directory of a test's own.

pub(crate) mod api;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use ambit_core::names::{ClusterId, NamespacedName, NetworkId};
use ambit_net::documents::Document;
use ambit_net::meters::Meters;
use futures_util::FutureExt as _;
use tokio::sync::watch;

use crate::ca::authenticate::{Authenticator, Caller};
use crate::ca::root::Root;
use crate::index::served::CaptureSource;
use crate::index::{Dirty, Index, MeshNames};
use crate::private_file;
use crate::watch::object::identify;
use crate::watch::{Applied, Event, Object, ObjectKey, ServedPod, ServedPods};

/// Names of a mesh for tests; the root namespace is `mesh`.
pub(crate) fn mesh() -> MeshNames {
    MeshNames {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        cluster: ClusterId::new("Kubernetes"),
        network: NetworkId::default(),
        root_namespace: "mesh".into(),
        excluded: ["kept-out".into()].into(),
    }
}

/// Every document of a YAML text, as the directory would give it.
pub(crate) fn documents(yaml: &str) -> Vec<Arc<Document>> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let values: Vec<serde_json::Value> =
        serde_saphyr::from_multiple_with_options(yaml, options).unwrap();
    let file: Arc<Path> = Path::new("test.yaml").into();
    let document = |(index, value)| {
        Arc::new(Document {
            file: Arc::clone(&file),
            line: index + 1,
            value,
        })
    };
    values.into_iter().enumerate().map(document).collect()
}

/// Every object of a YAML text.
pub(crate) fn objects(yaml: &str) -> Vec<(ObjectKey, Object)> {
    let read = |document: Arc<Document>| {
        let key = identify(&document.value).unwrap();
        let object = Object::read(&key, &document.value, None).unwrap();
        (key, object)
    };
    documents(yaml).into_iter().map(read).collect()
}

/// Lets an index see every object of a YAML text.
pub(crate) fn apply(index: &mut Index, yaml: &str) -> Dirty {
    let events = objects(yaml).into_iter();
    let events = events.map(|(key, object)| applied(key, object));
    events.flat_map(|event| index.apply(event)).collect()
}

/// The event that an object is there.
pub(crate) fn applied(key: ObjectKey, object: Object) -> Event {
    Event::Applied(Applied {
        key,
        origin: None,
        object: Box::new(object),
    })
}

/// An index that has seen every object of a YAML text.
pub(crate) fn index(yaml: &str) -> Index {
    let mut index = Index::new(mesh(), CaptureSource::Reports);
    apply(&mut index, yaml);
    index
}

/// A node's report that it serves these pods, given as `namespace/name`, without uids of their own.
pub(crate) fn served(node: &str, pods: &[&str]) -> ServedPods {
    let pod = |name: &&str| ServedPod {
        name: name_of(name),
        uid: (*name).into(),
    };
    ServedPods {
        node: node.into(),
        at: 7,
        pods: pods.iter().map(pod).collect(),
    }
}

/// Reads `namespace/name`.
pub(crate) fn name_of(text: &str) -> NamespacedName {
    NamespacedName::parse(text).unwrap()
}

/// A new root, made at this time, that stays in force.
pub(crate) fn root(now: SystemTime) -> watch::Receiver<Arc<Root>> {
    let root = Root::load_or_create(&Dir::new().path("root"), "cluster.local", now);
    watch::channel(Arc::new(root.unwrap())).1
}

/// A directory of a test's own, removed at the end.
#[derive(Debug)]
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    /// A new, empty one.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ambit-controller-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A token that is good until 2033, made of one hexadecimal digit.
pub(crate) fn token(digit: char) -> String {
    format!("1999999999.{}", digit.to_string().repeat(64))
}

/// Writes the token of a node.
pub(crate) fn write_token(dir: &Path, node: &str, token: &str) {
    private_file::replace(&dir.join(format!("{node}.token")), token.as_bytes()).unwrap();
}

/// A node that has proved itself, in the only way there is.
pub(crate) fn caller(node: &str) -> Caller {
    let dir = Dir::new();
    write_token(&dir.0, node, &token('a'));
    let authenticator = Authenticator::open(&dir.0, Meters::new("test", 1)).unwrap();
    let header = format!("Bearer {}", token('a'));
    // Tokens in files are looked up without waiting.
    let caller = authenticator.authenticate(Some(&header)).now_or_never();
    caller.unwrap().unwrap()
}
