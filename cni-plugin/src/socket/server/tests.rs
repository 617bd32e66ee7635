//! The agent's side against plugins right and wrong.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_net::tasks::Tasks;

use super::*;
use crate::socket::{AskError, Command, Patience, ask};

const PATIENCE: Patience = Patience {
    absent: Duration::ZERO,
    whole: Duration::from_secs(5),
};

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ambit-socket-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("cni.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn request(pod: &str) -> Request {
    Request {
        command: Command::Add,
        container_id: "0a1b".into(),
        netns: Some("/n".into()),
        ifname: "eth0".into(),
        pod_namespace: "web".into(),
        pod_name: pod.into(),
        pod_uid: None,
        addresses: vec!["fd00::5".parse().unwrap()],
    }
}

async fn asked(path: PathBuf, pod: &'static str) -> Result<Answer, AskError> {
    let ask = move || ask(&path, &request(pod), PATIENCE);
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test]
async fn a_question_gets_its_answer_and_the_next_one_too() {
    let place = Place::new("talk");
    let tasks = Tasks::new("test");
    let listener = Listener::bind(&place.socket()).unwrap();
    let refusal = Failure::new(Code::NotCaptured, "no", "because");
    let refused = refusal.clone();
    tasks.spawn(serve(listener, tasks.spawner(), move |asked| {
        let refused = refused.clone();
        async move {
            assert_eq!(asked.netns.as_deref(), Some(Path::new("/n")));
            match &*asked.pod_name {
                "good" => Ok(()),
                _ => Err(refused),
            }
        }
    }));
    assert_eq!(asked(place.socket(), "good").await.unwrap(), Ok(()));
    assert_eq!(asked(place.socket(), "bad").await.unwrap(), Err(refusal));
    tasks.drain(Duration::from_secs(1)).await;
    assert!(!place.socket().exists(), "the socket goes with the agent");
}

#[tokio::test]
async fn a_plugin_that_talks_nonsense_is_told_and_hinders_nobody() {
    let place = Place::new("nonsense");
    let tasks = Tasks::new("test");
    let listener = Listener::bind(&place.socket()).unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    tasks.spawn(serve(listener, tasks.spawner(), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    }));
    let silent = StdStream::connect(place.socket()).unwrap();
    let path = place.socket();
    let told = tokio::task::spawn_blocking(move || {
        let mut plugin = StdStream::connect(path).unwrap();
        plugin.write_all(b"{\"command\":\"Dance\"}").unwrap();
        plugin.shutdown(Shutdown::Write).unwrap();
        let mut told = String::new();
        plugin.read_to_string(&mut told).unwrap();
        told
    });
    let told: Answer = serde_json::from_str(&told.await.unwrap()).unwrap();
    assert!(told.unwrap_err().details.contains("same version"));
    assert_eq!(
        handled.load(Ordering::Relaxed),
        0,
        "nonsense is not handled"
    );
    assert_eq!(asked(place.socket(), "a").await.unwrap(), Ok(()));
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn a_handler_without_end_is_answered_for() {
    let (plugin, ours) = UnixStream::pair().unwrap();
    let words = serde_json::to_vec(&request("a")).unwrap();
    let served = async {
        let never = |_| std::future::pending();
        answer(ours, &never).await.unwrap();
    };
    let talked = async {
        let mut plugin = plugin;
        plugin.write_all(&words).await.unwrap();
        plugin.shutdown().await.unwrap();
        let mut told = Vec::new();
        plugin.read_to_end(&mut told).await.unwrap();
        serde_json::from_slice::<Answer>(&told).unwrap()
    };
    let ((), told) = tokio::join!(served, talked);
    assert_eq!(told.unwrap_err().code, Code::TryAgainLater.number());
}

#[tokio::test]
async fn only_its_owner_may_ask_and_only_one_agent_may_listen() {
    let place = Place::new("bind");
    let _first = Listener::bind(&place.socket()).unwrap();
    let mode = fs::metadata(place.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Listener::bind(&place.socket()).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    assert!(
        second.to_string().contains("only one node agent"),
        "{second}"
    );
    // What a killed agent leaves: a socket at which nobody listens.
    let left = place.0.join("left");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    assert!(left.exists());
    Listener::bind(&left).expect("a dead socket is replaced");
    fs::write(place.0.join("file"), "somebody's").unwrap();
    let in_the_way = Listener::bind(&place.0.join("file")).unwrap_err();
    assert_eq!(in_the_way.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(place.0.join("file")).unwrap(), b"somebody's");
}
