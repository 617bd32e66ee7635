//! Who calls: the node that a bearer token names.
//!
//! Every gRPC call passes a [`Guard`] before its message is read. What comes out is a [`Caller`]; nothing else can make
//! one, and whatever signs or serves asks for one. Without Kubernetes a token is a file that both sides have; with it, it
//! is the token of a pod's service account, which the API server is asked about.

mod files;
mod guard;
pub mod review;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::names::Text;
use ambit_core::status::Problem;
use ambit_net::meters::{CALLS_REFUSED, Meters};
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tracing::warn;

use self::files::{FileTokens, ShownToken};
pub use self::guard::Guard;
use self::review::{ReviewedToken, Reviews};

const EXPIRED: &str = "the token has expired";
/// Refused calls are logged at most this often: anybody who reaches the port can make them. All are counted.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// A node that has proved itself.
#[derive(Clone, Debug)]
pub struct Caller {
    proof: Proof,
}

/// What a node has shown.
#[derive(Clone, Debug)]
enum Proof {
    File(ShownToken),
    Review(ReviewedToken),
}

impl Caller {
    /// The caller of a request.
    ///
    /// # Errors
    /// `Unauthenticated` when the request did not pass the [`Guard`].
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::unauthenticated("a token is needed"))
    }

    /// The node.
    pub fn node(&self) -> &str {
        self.node_name()
    }

    /// The node, to be kept.
    pub fn node_name(&self) -> &Text {
        match &self.proof {
            Proof::File(token) => token.node(),
            Proof::Review(token) => token.node(),
        }
    }

    /// Waits until the token is no longer good: it has expired or was withdrawn. Says which.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) -> &'static str {
        match &self.proof {
            Proof::File(token) => token.ended().await,
            Proof::Review(token) => token.ended().await,
        }
    }
}

/// Knows whom tokens name; cheap to clone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    tokens: Tokens,
    refused: Arc<Mutex<Refused>>,
    meters: Arc<Meters>,
}

#[derive(Clone, Debug)]
enum Tokens {
    Files(FileTokens),
    Reviews(Reviews),
}

/// Why a call is refused: the code, and words for the caller.
type Refusal = (Code, &'static str);

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
        let tokens = FileTokens::open(dir)?;
        Ok(Self::new(Tokens::Files(tokens), meters))
    }

    /// Asks a cluster's API server about tokens.
    pub fn reviewing(reviews: Reviews, meters: Arc<Meters>) -> Self {
        Self::new(Tokens::Reviews(reviews), meters)
    }

    fn new(tokens: Tokens, meters: Arc<Meters>) -> Self {
        let refused = Arc::default();
        Self {
            tokens,
            refused,
            meters,
        }
    }

    /// Keeps what is known of tokens current, for as long as it is polled.
    pub async fn follow(self) {
        match self.tokens {
            Tokens::Files(tokens) => tokens.follow().await,
            // Every answer is asked for again when it is old.
            Tokens::Reviews(_) => {}
        }
    }

    /// Nodes that have a token, where that is known in advance.
    pub fn nodes(&self) -> BTreeSet<Text> {
        match &self.tokens {
            Tokens::Files(tokens) => tokens.nodes(),
            Tokens::Reviews(_) => BTreeSet::new(),
        }
    }

    /// What is wrong with tokens.
    pub fn problems(&self) -> Vec<Problem> {
        match &self.tokens {
            Tokens::Files(tokens) => tokens.problems(),
            Tokens::Reviews(reviews) => reviews.problems(),
        }
    }

    /// Whom the value of an `authorization` header names.
    ///
    /// # Errors
    /// `Unauthenticated` when nobody, `Unavailable` when that cannot be told now.
    pub async fn authenticate(&self, header: Option<&str>) -> Result<Caller, Status> {
        let proof = match bearer(header) {
            Ok(presented) => self.prove(presented).await,
            Err(why) => Err((Code::Unauthenticated, why)),
        };
        let proof = proof.map_err(|refusal| self.refuse(refusal))?;
        Ok(Caller { proof })
    }

    async fn prove(&self, presented: &str) -> Result<Proof, Refusal> {
        match &self.tokens {
            Tokens::Files(tokens) => {
                let shown = tokens.authenticate(presented);
                let shown = shown.map_err(|why| (Code::Unauthenticated, why))?;
                Ok(Proof::File(shown))
            }
            Tokens::Reviews(reviews) => reviews.authenticate(presented).await.map(Proof::Review),
        }
    }

    fn refuse(&self, (code, why): Refusal) -> Status {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = refused.due(Instant::now()) {
            warn!(calls, reason = why, "calls are refused");
        }
        drop(refused);
        let labels = ["any", &format!("{code:?}")];
        self.meters.counter(&CALLS_REFUSED, labels).increment();
        Status::new(code, why)
    }
}

fn bearer(header: Option<&str>) -> Result<&str, &'static str> {
    let header = header.ok_or("a token is needed: authorization: Bearer TOKEN")?;
    header
        .strip_prefix("Bearer ")
        .ok_or("authorization has to be `Bearer TOKEN`")
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

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
