//! What a watched directory promises: nothing half-read, nothing lost, every fault named once.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::*;

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("ambit-documents-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn scanner(&self) -> Scanner {
        Scanner::new(self.0.as_path().into(), Limits::default())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// File name, line and content of what is in force.
fn in_force(scanner: &Scanner) -> Vec<(String, usize, Value)> {
    let name = |document: &Document| {
        document
            .file
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    let documents = scanner.snapshot().documents;
    documents
        .iter()
        .map(|d| (name(d), d.line, d.value.clone()))
        .collect()
}

fn values(scanner: &Scanner) -> Vec<Value> {
    in_force(scanner)
        .into_iter()
        .map(|(_, _, value)| value)
        .collect()
}

/// Two looks: what was written before has settled.
fn settle(scanner: &mut Scanner) {
    scanner.look();
    scanner.look();
}

#[test]
fn documents_name_their_file_and_line() {
    let dir = Dir::new();
    dir.write(
        "b.yml",
        "# why\n\na: 1\n---\n# second\nb: 2\n...\n---\n---\nc: |\n  ---\n  text\n",
    );
    dir.write("a.json", "{\"j\": true}");
    let mut scanner = dir.scanner();
    scanner.look();
    let expected = [
        ("a.json".to_owned(), 1, json!({"j": true})),
        ("b.yml".to_owned(), 3, json!({"a": 1})),
        ("b.yml".to_owned(), 6, json!({"b": 2})),
        ("b.yml".to_owned(), 10, json!({"c": "---\ntext\n"})),
    ];
    assert_eq!(in_force(&scanner), expected);
    assert_eq!(scanner.snapshot().problems, []);
}

#[test]
fn a_broken_file_keeps_its_documents_and_reports_once() {
    let dir = Dir::new();
    dir.write("a.yaml", "a: 1\n");
    dir.write("b.yaml", "b: 1\n");
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    dir.write("a.yaml", "x: 1\n---\na: [1\nb: }\n");
    settle(&mut scanner);
    assert_eq!(values(&scanner), [json!({"a": 1}), json!({"b": 1})]);
    let [problem] = &scanner.snapshot().problems[..] else {
        panic!("{:?}", scanner.snapshot().problems)
    };
    assert!(problem.file.ends_with("a.yaml"));
    assert_eq!(problem.line, Some(4), "{problem:?}");
    assert!(problem.previous_in_force);
    let reported = scanner.generation();
    settle(&mut scanner);
    assert_eq!(scanner.generation(), reported);
    dir.write("a.yaml", "a: 2\n");
    settle(&mut scanner);
    assert_eq!(values(&scanner), [json!({"a": 2}), json!({"b": 1})]);
    assert_eq!(scanner.snapshot().problems, []);
}

#[test]
fn a_file_that_never_was_whole_gives_its_readable_documents() {
    let dir = Dir::new();
    dir.write(
        "a.yaml",
        "a: 1\n---\nkind: K\nmetadata:\n  name: n\nspec: {\n---\nc: 1\n",
    );
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    assert_eq!(values(&scanner), [json!({"a": 1}), json!({"c": 1})]);
    let problems = scanner.snapshot().problems;
    let head = problems[0].head.as_ref().unwrap();
    assert_eq!((problems.len(), head.line), (1, 3));
    assert_eq!(head.value, json!({"kind": "K", "metadata": {"name": "n"}}));
    assert!(!problems[0].previous_in_force);
}

#[test]
fn a_file_being_written_is_left_alone_until_it_settles() {
    let dir = Dir::new();
    dir.write("a.yaml", "a: 1\n---\nb: 1\n");
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    let before = values(&scanner);
    for half in ["", "a: 2\n", "a: 2\n---\nb"] {
        dir.write("a.yaml", half);
        scanner.look();
        assert_eq!(values(&scanner), before, "{half:?}");
        assert_eq!(scanner.snapshot().problems, []);
    }
    dir.write("a.yaml", "a: 2\n---\nb: 2\n");
    settle(&mut scanner);
    assert_eq!(values(&scanner), [json!({"a": 2}), json!({"b": 2})]);
}

#[test]
fn an_emptied_file_keeps_its_documents() {
    let dir = Dir::new();
    dir.write("a.yaml", "a: 1\n");
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    dir.write("a.yaml", " \n");
    settle(&mut scanner);
    assert_eq!(values(&scanner), [json!({"a": 1})]);
    assert_eq!(scanner.snapshot().problems.len(), 1);
}

#[test]
fn files_that_vanish_take_their_documents_along() {
    let dir = Dir::new();
    dir.write("a.yaml", "a: 1\n");
    dir.write("b.yaml", "b: [\n");
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    fs::remove_file(dir.0.join("a.yaml")).unwrap();
    fs::remove_file(dir.0.join("b.yaml")).unwrap();
    scanner.look();
    assert_eq!(
        values(&scanner),
        [json!({"a": 1})],
        "an editor may be replacing it"
    );
    scanner.look();
    let empty = Snapshot {
        complete: true,
        ..Snapshot::default()
    };
    assert_eq!(scanner.snapshot(), empty);
}

#[test]
fn only_plain_manifests_count() {
    let dir = Dir::new();
    for name in [
        ".a.yaml",
        ".a.yaml.swp",
        "a.yaml~",
        "#a.yaml",
        "a.yaml.bak",
        "README.md",
        "a.txt",
    ] {
        dir.write(name, "a: 1\n");
    }
    fs::create_dir(dir.0.join("d.yaml")).unwrap();
    symlink("nowhere", dir.0.join("dangling.yaml")).unwrap();
    symlink("a.txt", dir.0.join("link.yaml")).unwrap();
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    let names: Vec<_> = in_force(&scanner)
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    assert_eq!(names, ["link.yaml"]);
    assert_eq!(scanner.snapshot().problems, []);
}

#[test]
fn bounds_leave_what_was_read_before() {
    let dir = Dir::new();
    dir.write("a.yaml", "a: 1\n");
    let limits = Limits {
        files: 2,
        file_bytes: 20,
        total_bytes: 40,
    };
    let mut scanner = Scanner::new(dir.0.as_path().into(), limits);
    settle(&mut scanner);
    let long = format!("a: {}\n", "x".repeat(18));
    for (name, text, word) in [
        ("a.yaml", &*long, "more than 20"),
        ("b.yaml", &"#".repeat(60), "more than 40"),
        ("c.yaml", "c: 1\n", "more than 2 files"),
    ] {
        dir.write(name, text);
        settle(&mut scanner);
        let causes: Vec<_> = scanner
            .snapshot()
            .problems
            .into_iter()
            .map(|p| p.cause)
            .collect();
        assert!(
            causes.iter().any(|cause| cause.contains(word)),
            "{name}: {causes:?}"
        );
        assert_eq!(values(&scanner), [json!({"a": 1})], "{name}");
    }
}

#[test]
fn a_directory_that_goes_away_takes_nothing_along() {
    let dir = Dir::new();
    dir.write("a.yaml", "a: 1\n");
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    let aside = dir.0.with_extension("aside");
    fs::rename(&dir.0, &aside).unwrap();
    settle(&mut scanner);
    assert_eq!(values(&scanner), [json!({"a": 1})]);
    assert_eq!(scanner.snapshot().problems.len(), 1);
    fs::rename(&aside, &dir.0).unwrap();
    settle(&mut scanner);
    assert_eq!(scanner.snapshot().problems, []);
}

#[test]
fn text_that_is_no_yaml_is_a_problem_and_no_crash() {
    let dir = Dir::new();
    for (number, bytes) in [
        &b"\xff\xfe\x00"[..],
        b"a: *nowhere",
        b"a: 1\na: 2",
        b"\0",
        b"%YAML 1.2",
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(dir.0.join(format!("{number}.yaml")), bytes).unwrap();
    }
    dir.write(
        "bomb.yaml",
        &format!("a: &a [{0}]\nb: &b [{0}]\n", "[".repeat(5000)),
    );
    let mut scanner = dir.scanner();
    settle(&mut scanner);
    let snapshot = scanner.snapshot();
    assert_eq!(snapshot.documents, []);
    assert_eq!(snapshot.problems.len(), 6, "{:?}", snapshot.problems);
}

#[tokio::test(start_paused = true)]
async fn next_answers_at_once_and_then_on_changes() {
    let dir = Dir::new();
    let mut directory = Directory::new(&dir.0, Limits::default());
    assert!(directory.next().await.complete);
    dir.write("a.yaml", "a: 1\n");
    let changed = tokio::time::timeout(Duration::from_secs(2), directory.next()).await;
    assert_eq!(changed.unwrap().documents.len(), 1);
}
