//! A controller for tests: gRPC services over TLS on loopback, with a root file and a token file of its own.
//!
//! Used by the tests of the clients in this crate; each brings the service that it wants to talk to.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use ambit_core::names::ClusterId;
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::Remote;
use super::server::{self, ServerTls};
use crate::tasks::Tasks;
use crate::tls::testing::TestAuthority;

/// Connections at a time; a test's client makes one after the other.
const CONNECTIONS: usize = 64;

/// The token that a test's client shows unless the test writes another.
pub(crate) const TOKEN: &str = "1999999999.secret-of-node-1";

/// A directory that is removed with the value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ambit-net-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

/// A server for as long as the value exists.
pub(crate) struct TestServer {
    pub(crate) files: Scratch,
    pub(crate) address: SocketAddr,
    _tasks: Tasks,
}

impl TestServer {
    /// Serves on a free port of loopback as `localhost`.
    pub(crate) async fn start(routes: Routes) -> Self {
        let authority = TestAuthority::new();
        let files = Scratch::new();
        files.write("root.pem", authority.root());
        files.write("token", &format!("{TOKEN}\n"));
        let (chain, key) = authority.issue_for_names(&["localhost"]);
        let tls = ServerTls::new(&chain, &key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new("test server");
        server::start(listener, tls, routes, CONNECTIONS, &tasks);
        Self {
            files,
            address,
            _tasks: tasks,
        }
    }

    /// How a client reaches it.
    pub(crate) fn remote(&self) -> Remote {
        Remote {
            address: format!("https://{}", self.address),
            server_name: Some("localhost".to_owned()),
            root_file: self.files.path("root.pem"),
            token_file: self.files.path("token"),
            cluster: ClusterId::new("Kubernetes"),
        }
    }
}
