//! The agent's memory on a real disk: what is told is there, and what is damaged is not guessed at.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ambit-memory-{name}-{}", std::process::id()));
        let _older = fs::remove_dir_all(&dir);
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn record(name: &str, leaving: bool) -> Record {
    let interfaces = InterfaceName::new("vnet0");
    Record {
        spec: Spec {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            pod: HandoffPod {
                uid: PodUid::new(format!("uid-{name}")),
                name: NamespacedName::new("ns", name),
                service_account: "account".into(),
            },
            netns: "/run/netns/x".into(),
            options: Options {
                bypass_inbound: name == "a",
                virtual_interfaces: interfaces.into_iter().collect(),
                probed: [8080].into(),
            },
        },
        leaving,
    }
}

/// Opens the memory, lets `work` use it, and closes it.
async fn with_memory(dir: &Path, work: impl AsyncFnOnce(Memory)) -> BTreeMap<PodUid, Record> {
    let opened = open(dir).unwrap();
    tokio::join!(opened.writer.run(), work(opened.memory));
    opened.records
}

#[tokio::test]
async fn what_is_remembered_is_there_after_a_restart() {
    let dir = Dir::new("restart");
    let (a, b) = (record("a", false), record("b", true));
    with_memory(&dir.0, async |memory| {
        memory.remember(a.clone()).await.unwrap();
        memory.remember(record("b", false)).await.unwrap();
        memory.remember(b.clone()).await.unwrap();
        memory.remember(record("c", false)).await.unwrap();
        memory.forget(&PodUid::new("uid-c")).await.unwrap();
        memory.forget(&PodUid::new("uid-never")).await.unwrap();
    })
    .await;
    let found = with_memory(&dir.0, async |_memory| ()).await;
    assert_eq!(found.into_values().collect::<Vec<_>>(), [a, b]);
}

#[tokio::test]
async fn an_answer_means_that_it_is_on_disk() {
    let dir = Dir::new("disk");
    with_memory(&dir.0, async |memory| {
        memory.remember(record("a", false)).await.unwrap();
        let file = dir.0.join(FILE);
        assert!(fs::read_to_string(&file).unwrap().contains("uid-a"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&dir.0)), (0o600, 0o700));
    })
    .await;
}

#[tokio::test]
async fn changes_at_one_time_are_all_written() {
    let dir = Dir::new("many");
    with_memory(&dir.0, async |memory| {
        let names: Vec<String> = (0..2 * MOST_CHANGES).map(|n| n.to_string()).collect();
        let tasks = ambit_net::tasks::Tasks::new("many");
        for name in names {
            let memory = memory.clone();
            tasks.spawn(async move {
                memory.remember(record(&name, false)).await.unwrap();
            });
        }
        drop(memory);
        tasks.drain(std::time::Duration::from_secs(60)).await;
        assert_eq!(tasks.panicked(), 0);
    })
    .await;
    let found = with_memory(&dir.0, async |_memory| ()).await;
    assert_eq!(found.len(), 2 * MOST_CHANGES);
}

#[tokio::test]
async fn a_full_disk_is_told_and_tried_again() {
    let dir = Dir::new("full");
    with_memory(&dir.0, async |memory| {
        // A directory in the place of the new file fails every write, also for root.
        let obstacle = dir.0.join("pods.new");
        fs::create_dir(&obstacle).unwrap();
        let error = memory.remember(record("a", false)).await.unwrap_err();
        assert!(error.to_string().contains("AMBIT_STATE_DIR"), "{error}");
        fs::remove_dir(&obstacle).unwrap();
        // Nothing new, but the disk does not have it yet.
        memory.remember(record("a", false)).await.unwrap();
    })
    .await;
    let found = with_memory(&dir.0, async |_memory| ()).await;
    assert_eq!(found.len(), 1);
}

#[test]
fn two_agents_cannot_share_it() {
    let dir = Dir::new("two");
    let first = open(&dir.0).unwrap();
    assert!(matches!(open(&dir.0), Err(MemoryError::InUse { .. })));
    drop(first);
    open(&dir.0).unwrap();
}

#[test]
fn damaged_files_are_refused_by_name() {
    let dir = Dir::new("damaged");
    fs::create_dir_all(&dir.0).unwrap();
    let good = print(&BTreeMap::from([(
        PodUid::new("uid-a"),
        record("a", false),
    )]));
    let mut bad = vec![
        String::new(),
        "{}".to_owned(),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("vnet0", "a/b"),
        good.replace("\"leaving\"", "\"left\""),
    ];
    bad.extend((1..good.trim_end().len()).map(|length| good[..length].to_owned()));
    for text in bad {
        fs::write(dir.0.join(FILE), &text).unwrap();
        let refused = open(&dir.0).unwrap_err();
        assert!(matches!(refused, MemoryError::Damaged { .. }), "{text}");
        assert!(refused.to_string().contains(FILE));
    }
    fs::write(dir.0.join(FILE), good).unwrap();
    assert_eq!(open(&dir.0).unwrap().records.len(), 1);
}
