//! Whom a token names, and which tokens name nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::testing::{Dir, token, write_token};

const NOW: u64 = 1_800_000_000;

fn tokens(dir: &Dir) -> Tokens {
    Tokens::read(&dir.0).unwrap()
}

#[test]
fn a_good_token_names_its_node() {
    let dir = Dir::new();
    write_token(&dir.0, "n1", &token('a'));
    write_token(&dir.0, "n2.example", &format!("{}\n", token('b')));
    let tokens = tokens(&dir);
    assert_eq!(tokens.problems, []);
    for (digit, node) in [('a', "n1"), ('b', "n2.example")] {
        let known = tokens.authenticate(&token(digit), NOW).unwrap();
        assert_eq!(&*known.node, node);
    }
}

#[test]
fn whatever_is_not_a_good_token_names_nobody() {
    let dir = Dir::new();
    write_token(&dir.0, "n1", &token('a'));
    write_token(
        &dir.0,
        "old",
        &token('e').replace("1999999999", "1700000000"),
    );
    let tokens = tokens(&dir);
    let good = token('a');
    let texts = [
        String::new(),
        " ".to_owned(),
        token('b'),
        format!("{good} "),
        good.trim_end_matches('a').to_owned(),
        format!("{good}a"),
        good.replace("1999999999", "2999999999"),
        good.replace('a', "A"),
        "x".repeat(100_000),
    ];
    for text in texts {
        assert!(tokens.authenticate(&text, NOW).is_err(), "{text}");
    }
    let expired = token('e').replace("1999999999", "1700000000");
    let refused = tokens.authenticate(&expired, NOW);
    assert_eq!(refused.unwrap_err(), "the token has expired");
    let at_its_end = tokens.authenticate(&good, 1_999_999_999);
    assert!(at_its_end.is_err(), "the second of expiry is over");
}

#[test]
fn a_bad_token_file_is_a_problem_of_its_node_only() {
    let dir = Dir::new();
    write_token(&dir.0, "good", &token('a'));
    write_token(&dir.0, "empty", "");
    write_token(&dir.0, "short", "1999999999.abc");
    write_token(
        &dir.0,
        "no-number",
        &token('b').replace("1999999999", "soon"),
    );
    write_token(
        &dir.0,
        "signed",
        &token('b').replace("1999999999", "+1999999999"),
    );
    write_token(
        &dir.0,
        "two-lines",
        &format!("{}\n{}", token('c'), token('d')),
    );
    write_token(&dir.0, "Not_A_Node", &token('e'));
    write_token(&dir.0, "open", &token('f'));
    fs::set_permissions(dir.path("open.token"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(dir.path("note.txt"), "not read").unwrap();
    let tokens = tokens(&dir);
    assert_eq!(tokens.problems.len(), 7, "{:?}", tokens.problems);
    assert_eq!(tokens.tokens.len(), 1);
    let open = tokens
        .problems
        .iter()
        .find(|p| p.place.ends_with("open.token"))
        .unwrap();
    assert!(open.what.contains("chmod 600"), "{open:?}");
    assert!(tokens.authenticate(&token('f'), NOW).is_err());
}

#[test]
fn a_token_of_two_nodes_names_neither() {
    let dir = Dir::new();
    write_token(&dir.0, "n1", &token('a'));
    write_token(&dir.0, "n2", &token('a'));
    write_token(&dir.0, "n3", &token('b'));
    let tokens = tokens(&dir);
    assert!(tokens.authenticate(&token('a'), NOW).is_err());
    assert!(tokens.authenticate(&token('b'), NOW).is_ok());
    assert!(
        tokens.problems[0].what.contains("n1, n2"),
        "{:?}",
        tokens.problems
    );
}

#[tokio::test(start_paused = true)]
async fn a_callers_time_ends_with_its_token() {
    let dir = Dir::new();
    write_token(&dir.0, "n1", &token('a'));
    write_token(&dir.0, "n2", &token('b'));
    let tokens = FileTokens::open(&dir.0).unwrap();
    let caller = tokens.authenticate(&token('a')).unwrap();
    let day = Duration::from_secs(86400);
    fs::remove_file(dir.path("n2.token")).unwrap();
    tokens.take(Tokens::read(&dir.0).unwrap());
    let going_on = tokio::time::timeout(day, caller.ended()).await;
    assert!(going_on.is_err(), "{going_on:?}");
    // Another token for the node is not the one that was shown.
    write_token(&dir.0, "n1", &token('c'));
    tokens.take(Tokens::read(&dir.0).unwrap());
    let ended = tokio::time::timeout(2 * REREAD, caller.ended()).await;
    assert_eq!(ended.unwrap(), "the token is no longer known");
    let expired = ShownToken {
        token: Token {
            expires: 1_700_000_000,
            ..caller.token
        },
        known: caller.known,
    };
    assert_eq!(expired.ended().await, EXPIRED);
}

#[tokio::test(start_paused = true)]
async fn tokens_come_and_go_with_their_files() {
    let dir = Dir::new();
    let file_tokens = FileTokens::open(&dir.0).unwrap();
    let tasks = ambit_net::tasks::Tasks::new("test");
    tasks.spawn(file_tokens.clone().follow());
    let knows = |number: usize| {
        let file_tokens = file_tokens.clone();
        let wait = async move {
            while file_tokens.nodes().len() != number {
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
    };
    write_token(&dir.0, "n1", &token('a'));
    knows(1).await.unwrap();
    fs::remove_file(dir.path("n1.token")).unwrap();
    knows(0).await.unwrap();
}
