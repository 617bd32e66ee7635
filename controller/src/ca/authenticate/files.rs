//! Node tokens in files `NODE.token`, which both sides have: who calls, without Kubernetes.
//!
//! Used by [`super`]. The texts themselves are not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ambit_core::names::Text;
use ambit_core::status::Problem;
use ambit_net::tls::hash::sha256;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{EXPIRED, seconds_since_epoch};
use crate::private_file;
use crate::watch::object::is_subdomain;

/// Time between two looks at the token files, so that a new node can join and a removed token ends.
const REREAD: Duration = Duration::from_secs(2);
/// Tokens that are read; one for each node.
const MAX_TOKENS: usize = 10_000;
/// Longest token, in bytes: 20 digits, a dot, 64 hexadecimal digits.
const MAX_TOKEN: usize = 85;

/// The tokens of a directory; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct FileTokens {
    dir: Arc<Path>,
    tokens: Arc<RwLock<Arc<Tokens>>>,
}

/// A token that was shown, and whether it still stands.
#[derive(Clone, Debug)]
pub(super) struct ShownToken {
    token: Token,
    known: Arc<RwLock<Arc<Tokens>>>,
}

impl ShownToken {
    pub(super) fn node(&self) -> &Text {
        &self.token.node
    }

    /// Waits until the token has expired, or its file was changed or removed. Says which.
    pub(super) async fn ended(&self) -> &'static str {
        loop {
            let left = self.token.expires.saturating_sub(seconds_since_epoch());
            if left == 0 {
                return EXPIRED;
            }
            if !current(&self.known).tokens.contains(&self.token) {
                return "the token is no longer known";
            }
            sleep(REREAD.min(Duration::from_secs(left))).await;
        }
    }
}

/// One token. The text itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    node: Text,
    hash: [u8; 32],
    expires: u64,
}

/// All tokens, and what is wrong with their files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tokens {
    tokens: Vec<Token>,
    problems: Vec<Problem>,
}

impl FileTokens {
    /// Reads the tokens in a directory. Blocks on files.
    pub(super) fn open(dir: &Path) -> std::io::Result<Self> {
        let tokens = Tokens::read(dir)?;
        info!(tokens = tokens.tokens.len(), "node tokens are read");
        tokens.problems.iter().for_each(warn_of);
        Ok(Self {
            dir: dir.into(),
            tokens: Arc::new(RwLock::new(Arc::new(tokens))),
        })
    }

    /// Whom a presented token names.
    pub(super) fn authenticate(&self, presented: &str) -> Result<ShownToken, &'static str> {
        let token = current(&self.tokens).authenticate(presented, seconds_since_epoch())?;
        Ok(ShownToken {
            token,
            known: Arc::clone(&self.tokens),
        })
    }

    /// Keeps the tokens as the files are, for as long as it is polled.
    pub(super) async fn follow(self) {
        loop {
            sleep(REREAD).await;
            let dir = Arc::clone(&self.dir);
            match tokio::task::spawn_blocking(move || Tokens::read(&dir)).await {
                Ok(Ok(tokens)) => self.take(tokens),
                // What is known stays: a directory that is away for a moment withdraws nothing.
                Ok(Err(error)) => {
                    warn!(dir = %self.dir.display(), %error, "node tokens cannot be read")
                }
                Err(error) => warn!(%error, "reading the node tokens failed"),
            }
        }
    }

    /// Nodes that have a token.
    pub(super) fn nodes(&self) -> BTreeSet<Text> {
        let tokens = current(&self.tokens);
        tokens
            .tokens
            .iter()
            .map(|token| Text::clone(&token.node))
            .collect()
    }

    /// What is wrong with token files, expired ones included.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let (tokens, now) = (current(&self.tokens), seconds_since_epoch());
        let expired = tokens.tokens.iter().filter(|token| token.expires <= now);
        let expired = expired.map(|token| Problem {
            place: self
                .dir
                .join(format!("{}.token", token.node))
                .display()
                .to_string(),
            what: "the token has expired; write a new one".to_owned(),
        });
        tokens.problems.iter().cloned().chain(expired).collect()
    }

    fn take(&self, tokens: Tokens) {
        let before = current(&self.tokens);
        if *before == tokens {
            return;
        }
        let new = tokens
            .problems
            .iter()
            .filter(|problem| !before.problems.contains(problem));
        new.for_each(warn_of);
        info!(tokens = tokens.tokens.len(), "node tokens have changed");
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
    }
}

impl Tokens {
    fn read(dir: &Path) -> std::io::Result<Self> {
        let mut found = Self::default();
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "token")
            {
                paths.push(path);
            }
        }
        paths.sort();
        if paths.len() > MAX_TOKENS {
            found.problem(dir, format!("only the first {MAX_TOKENS} tokens are read"));
        }
        for path in paths.iter().take(MAX_TOKENS) {
            match read_token(path) {
                Ok(token) => found.tokens.push(token),
                Err(cause) => found.problem(path, format!("the token is not read: {cause}")),
            }
        }
        found.drop_shared(dir);
        Ok(found)
    }

    /// A token that two nodes have names neither.
    fn drop_shared(&mut self, dir: &Path) {
        let mut nodes: BTreeMap<[u8; 32], Vec<Text>> = BTreeMap::new();
        for token in &self.tokens {
            nodes
                .entry(token.hash)
                .or_default()
                .push(Text::clone(&token.node));
        }
        for shared in nodes.values().filter(|nodes| nodes.len() > 1) {
            let what = format!(
                "nodes {} have the same token, so it is refused",
                shared.join(", ")
            );
            self.problem(dir, what);
        }
        self.tokens
            .retain(|token| nodes.get(&token.hash).is_none_or(|nodes| nodes.len() == 1));
    }

    fn problem(&mut self, path: &Path, what: String) {
        self.problems.push(Problem {
            place: path.display().to_string(),
            what,
        });
    }

    fn authenticate(&self, presented: &str, now: u64) -> Result<Token, &'static str> {
        if presented.len() > MAX_TOKEN {
            return Err("the token is not known");
        }
        let hash = sha256(&[presented.as_bytes()]);
        // All are compared, each whole: the time taken says nothing about any of them.
        let mut known = None;
        for token in &self.tokens {
            if is_equal(&token.hash, &hash) {
                known = Some(token);
            }
        }
        let token = known.ok_or("the token is not known")?;
        if token.expires <= now {
            return Err(EXPIRED);
        }
        Ok(token.clone())
    }
}

fn read_token(path: &Path) -> Result<Token, String> {
    let node = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if !is_subdomain(node) {
        return Err("its file is not named after a node (RFC 1123 name)".to_owned());
    }
    let bytes = private_file::read(path).map_err(|error| error.to_string())?;
    let form =
        "it has to be one line EXPIRES.SECRET: seconds since the epoch, and 64 hexadecimal digits";
    let text = std::str::from_utf8(&bytes)
        .map_err(|_binary| form)?
        .trim_end();
    let (expires, secret) = text.split_once('.').ok_or(form)?;
    let digits = !expires.is_empty() && expires.bytes().all(|b| b.is_ascii_digit());
    let hex = secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit());
    let expires = expires.parse().ok().filter(|_| digits && hex).ok_or(form)?;
    Ok(Token {
        node: node.into(),
        hash: sha256(&[text.as_bytes()]),
        expires,
    })
}

fn current(tokens: &RwLock<Arc<Tokens>>) -> Arc<Tokens> {
    Arc::clone(&tokens.read().unwrap_or_else(PoisonError::into_inner))
}

/// Compares without ending early.
fn is_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn warn_of(problem: &Problem) {
    warn!(
        place = problem.place,
        cause = problem.what,
        "a node token is refused"
    );
}

#[cfg(test)]
mod tests;
