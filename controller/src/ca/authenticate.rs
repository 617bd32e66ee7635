//! Who calls: the node that a bearer token names. Without Kubernetes a token is a file `NODE.token` that both sides have.
//!
//! Every gRPC call passes [`Authenticator::call`] before its message is read. What comes out is a [`Caller`]; nothing else
//! can make one, and whatever signs or serves asks for one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::names::Text;
use ambit_core::status::Problem;
use ambit_net::meters::{CALLS_REFUSED, Meters};
use ambit_net::tls::hash::sha256;
use tokio::time::{Instant, sleep};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::private_file;
use crate::watch::object::is_subdomain;

const EXPIRED: &str = "the token has expired";
/// Time between two looks at the token files, so that a new node can join and a removed token ends.
const REREAD: Duration = Duration::from_secs(2);
/// Refused calls are logged at most this often: anybody who reaches the port can make them. All are counted.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Tokens that are read; one for each node.
const MAX_TOKENS: usize = 10_000;
/// Longest token, in bytes: 20 digits, a dot, 64 hexadecimal digits.
const MAX_TOKEN: usize = 85;

/// A node that has proved itself.
#[derive(Clone, Debug)]
pub struct Caller {
    token: Token,
    known: Arc<RwLock<Arc<Tokens>>>,
}

impl Caller {
    /// The caller of a request.
    ///
    /// # Errors
    /// `Unauthenticated` when the request did not pass the [`Authenticator`].
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::unauthenticated("a token is needed"))
    }

    /// The node.
    pub fn node(&self) -> &str {
        &self.token.node
    }

    /// The node, to be kept.
    pub fn node_name(&self) -> &Text {
        &self.token.node
    }

    /// Waits until the token is no longer good: it has expired, or its file was changed or removed. Says which.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) -> &'static str {
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

/// Knows the tokens; cheap to clone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    dir: Arc<Path>,
    tokens: Arc<RwLock<Arc<Tokens>>>,
    refused: Arc<Mutex<Refused>>,
    meters: Arc<Meters>,
}

/// Calls that were refused and not yet logged.
#[derive(Debug, Default)]
struct Refused {
    told: Option<Instant>,
    untold: u64,
}

impl Authenticator {
    /// Reads the tokens in a directory. Blocks on files.
    ///
    /// # Errors
    /// When the directory cannot be read. A bad file is only a problem of its node.
    pub fn open(dir: &Path, meters: Arc<Meters>) -> std::io::Result<Self> {
        let tokens = Tokens::read(dir)?;
        info!(tokens = tokens.tokens.len(), "node tokens are read");
        tokens.problems.iter().for_each(warn_of);
        Ok(Self {
            dir: dir.into(),
            tokens: Arc::new(RwLock::new(Arc::new(tokens))),
            refused: Arc::default(),
            meters,
        })
    }

    /// Keeps the tokens as the files are, for as long as it is polled.
    pub async fn follow(self) {
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
    pub fn nodes(&self) -> BTreeSet<Text> {
        let tokens = self.current();
        tokens
            .tokens
            .iter()
            .map(|token| Text::clone(&token.node))
            .collect()
    }

    /// What is wrong with token files, expired ones included.
    pub fn problems(&self) -> Vec<Problem> {
        let (tokens, now) = (self.current(), seconds_since_epoch());
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
        let before = self.current();
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

    fn current(&self) -> Arc<Tokens> {
        current(&self.tokens)
    }

    fn refuse(&self, why: &'static str) -> Status {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = refused.due(Instant::now()) {
            warn!(calls, reason = why, "calls are refused");
        }
        drop(refused);
        self.meters
            .counter(&CALLS_REFUSED, ["any", "Unauthenticated"])
            .increment();
        Status::unauthenticated(why)
    }
}

impl Refused {
    /// Takes one more; how many there are to be told of, when it is time.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        let waits = self
            .told
            .is_some_and(|told| now.saturating_duration_since(told) < TELL_AGAIN);
        if waits {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Interceptor for Authenticator {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization");
        let header = header.and_then(|value| value.to_str().ok());
        let token = self.current().authenticate(header, seconds_since_epoch());
        let token = token.map_err(|why| self.refuse(why))?;
        // What a client sends cannot be in the extensions; they are made in this process.
        request.extensions_mut().insert(Caller {
            token,
            known: Arc::clone(&self.tokens),
        });
        Ok(request)
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

    fn authenticate(&self, header: Option<&str>, now: u64) -> Result<Token, &'static str> {
        let header = header.ok_or("a token is needed: authorization: Bearer TOKEN")?;
        let presented = header
            .strip_prefix("Bearer ")
            .ok_or("authorization has to be `Bearer TOKEN`")?;
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

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
