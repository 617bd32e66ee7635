//! Tokens of service accounts, which the API server is asked about: who calls, on Kubernetes.
//!
//! Used by [`super`]. A token has to be bound to a pod of a trusted account; that pod's node is the caller. Answers are
//! kept for a short while, and what is asked at once is bounded, since anybody who reaches the port can make us ask.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambit_core::names::{NamespacedName, Text};
use ambit_core::status::Problem;
use ambit_net::telemetry::with_causes;
use ambit_net::tls::hash::sha256;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tracing::warn;

use super::{EXPIRED, Refusal, seconds_since_epoch};

/// Longest token, in bytes: that of all headers of a call.
const MAX_TOKEN: usize = 16 * 1024;
/// Longest wait for one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a good answer holds. A token that is withdrawn earlier is good for as long.
const HOLDS: Duration = Duration::from_secs(60);
/// How long a refusal holds: a caller that tries again is answered without asking.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Tokens that are asked about at once; a proxy has one.
const AT_ONCE: usize = 16;
/// Answers that are kept: one for each node, and room for what does not belong.
const MAX_KEPT: usize = 16 * 1024;
/// How user names of service accounts begin.
const ACCOUNT: &str = "system:serviceaccount:";
/// Where a token's pod stands in a review.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// Where the uid of a token's pod stands in a review.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

const NO_TOKEN: &str = "the token is none of a service account";
const NOT_TRUSTED: &str =
    "pods of this service account may not call; AMBIT_TRUSTED_ACCOUNTS names those that may";
const NOT_ASKED: &str = "the API server cannot be asked about the token now";
const POD_GONE: &str = "the token's pod is gone";

/// Whose tokens are good.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// What a token has to be made for.
    pub audience: String,
    /// Whose it may be.
    pub accounts: Vec<NamespacedName>,
}

/// Asks about tokens; cheap to clone.
#[derive(Clone)]
pub struct Reviews {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    trusted: Trusted,
    kept: Mutex<BTreeMap<[u8; 32], Kept>>,
    asking: Semaphore,
    /// Why the API server could not be asked last time.
    trouble: Mutex<Option<String>>,
}

/// An answer, and when it is too old.
#[derive(Clone)]
struct Kept {
    answer: Result<ReviewedToken, &'static str>,
    until: Instant,
}

/// A token that the API server knows.
#[derive(Clone)]
pub(super) struct ReviewedToken {
    node: Text,
    pod: BoundPod,
    expires: u64,
    client: Client,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BoundPod {
    name: NamespacedName,
    uid: String,
    account: Text,
}

/// What a token says of itself; believed only to refuse.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

impl Reviews {
    /// Asks through `client` whether tokens are those of `trusted`.
    pub fn new(client: Client, trusted: Trusted) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                trusted,
                kept: Mutex::default(),
                asking: Semaphore::new(AT_ONCE),
                trouble: Mutex::default(),
            }),
        }
    }

    /// What stands in the way of asking.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let trouble = lock(&self.shared.trouble).clone();
        let problem = |what| Problem {
            place: "callers' tokens".to_owned(),
            what,
        };
        trouble.map(problem).into_iter().collect()
    }

    /// Whom a presented token names.
    pub(super) async fn authenticate(&self, presented: &str) -> Result<ReviewedToken, Refusal> {
        let shared = &self.shared;
        let refused = |why| (Code::Unauthenticated, why);
        let expires = shared.trusted.precheck(presented).map_err(refused)?;
        let hash = sha256(&[presented.as_bytes()]);
        if let Some(answer) = shared.kept(&hash) {
            return answer.map_err(refused);
        }
        let not_asked = || (Code::Unavailable, NOT_ASKED);
        let turn = timeout(DEADLINE, shared.asking.acquire()).await;
        let _turn = turn.ok().and_then(Result::ok).ok_or_else(not_asked)?;
        // Another call with the same token may have been answered meanwhile.
        if let Some(answer) = shared.kept(&hash) {
            return answer.map_err(refused);
        }
        match shared.ask(presented, expires).await {
            Ok(answer) => {
                *lock(&shared.trouble) = None;
                shared.keep(hash, &answer);
                answer.map_err(refused)
            }
            Err(error) => {
                shared.note(&error);
                Err(not_asked())
            }
        }
    }
}

impl Trusted {
    /// Refuses what the API server need not be asked about; gives the last second of the rest.
    fn precheck(&self, presented: &str) -> Result<u64, &'static str> {
        let claims = claims(presented).ok_or(NO_TOKEN)?;
        if claims.exp <= seconds_since_epoch() {
            return Err(EXPIRED);
        }
        self.account(&claims.sub)?;
        Ok(claims.exp)
    }

    /// The trusted account that a user name is of.
    fn account(&self, user: &str) -> Result<&NamespacedName, &'static str> {
        let account = user.strip_prefix(ACCOUNT).and_then(|u| u.split_once(':'));
        let (namespace, name) = account.ok_or(NO_TOKEN)?;
        let mut accounts = self.accounts.iter();
        let known = accounts.find(|a| *a.namespace == *namespace && *a.name == *name);
        known.ok_or(NOT_TRUSTED)
    }

    /// The pod that a reviewed token is bound to.
    fn bound_pod(&self, status: &TokenReviewStatus) -> Result<BoundPod, &'static str> {
        if status.authenticated != Some(true) {
            return Err("the API server does not know the token");
        }
        // Without any, the API server has looked at its own audience only.
        let audiences = status.audiences.as_deref().unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err("the token is made for another audience than AMBIT_TOKEN_AUDIENCE");
        }
        let user = status.user.as_ref();
        let account = self.account(user.and_then(|u| u.username.as_deref()).unwrap_or_default())?;
        let extra = user.and_then(|user| user.extra.as_ref());
        let one = |key: &str| match extra?.get(key)?.as_slice() {
            [one] if !one.is_empty() => Some(one.clone()),
            _ => None,
        };
        let (Some(name), Some(uid)) = (one(POD_NAME), one(POD_UID)) else {
            return Err("the token is bound to no pod; a projected service account token is");
        };
        Ok(BoundPod {
            name: NamespacedName::new(Text::clone(&account.namespace), name),
            uid,
            account: Text::clone(&account.name),
        })
    }
}

impl BoundPod {
    /// The node of the pod, if `found` is the one.
    fn node(&self, found: Option<&Pod>) -> Result<Text, &'static str> {
        let found = found.filter(|pod| pod.metadata.uid.as_ref() == Some(&self.uid));
        let spec = found.ok_or(POD_GONE)?.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        if account != Some(&*self.account) {
            return Err("the token's pod runs as another service account");
        }
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let node = node.filter(|node| !node.is_empty());
        node.map(Text::from).ok_or("the token's pod is on no node")
    }
}

impl Shared {
    /// The answer that is kept for a token.
    fn kept(&self, hash: &[u8; 32]) -> Option<Result<ReviewedToken, &'static str>> {
        let kept = lock(&self.kept);
        let kept = kept.get(hash).filter(|kept| Instant::now() < kept.until)?;
        Some(kept.answer.clone())
    }

    fn keep(&self, hash: [u8; 32], answer: &Result<ReviewedToken, &'static str>) {
        let now = Instant::now();
        let holds = match answer {
            Ok(token) => token.left().min(HOLDS),
            Err(_) => REFUSED_FOR,
        };
        let mut kept = lock(&self.kept);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| now < kept.until);
        }
        if kept.len() < MAX_KEPT {
            let (answer, until) = (answer.clone(), now + holds);
            kept.insert(hash, Kept { answer, until });
        }
    }

    /// Asks about a token and for its pod.
    async fn ask(
        &self,
        presented: &str,
        expires: u64,
    ) -> Result<Result<ReviewedToken, &'static str>, String> {
        let status = self.review(presented).await?;
        let pod = match self.trusted.bound_pod(&status) {
            Ok(pod) => pod,
            Err(why) => return Ok(Err(why)),
        };
        let found = find(&self.client, &pod.name).await?;
        Ok(pod.node(found.as_ref()).map(|node| ReviewedToken {
            node,
            pod,
            expires,
            client: self.client.clone(),
        }))
    }

    async fn review(&self, presented: &str) -> Result<TokenReviewStatus, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.trusted.audience.clone()]),
                token: Some(presented.to_owned()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let reviewed = timeout(DEADLINE, api.create(&params, &review)).await;
        let reviewed = answered(reviewed, "create tokenreviews.authentication.k8s.io")?;
        reviewed
            .status
            .ok_or_else(|| "the API server's review of a token has no status".to_owned())
    }

    /// Logs a new cause for not being able to ask.
    fn note(&self, error: &str) {
        let mut trouble = lock(&self.trouble);
        if trouble.as_deref() != Some(error) {
            warn!(cause = error, "callers' tokens cannot be reviewed");
            *trouble = Some(error.to_owned());
        }
    }
}

impl ReviewedToken {
    pub(super) fn node(&self) -> &Text {
        &self.node
    }

    /// Waits until the token has expired or its pod is gone. Says which.
    pub(super) async fn ended(&self) -> &'static str {
        loop {
            let left = self.left();
            if left.is_zero() {
                return EXPIRED;
            }
            sleep(HOLDS.min(left)).await;
            // While the API server is away, what it said last stays.
            if let Ok(found) = find(&self.client, &self.pod.name).await
                && let Err(why) = self.pod.node(found.as_ref())
            {
                return why;
            }
        }
    }

    /// The time until it expires.
    fn left(&self) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(seconds_since_epoch()))
    }
}

async fn find(client: &Client, pod: &NamespacedName) -> Result<Option<Pod>, String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let found = timeout(DEADLINE, api.get_opt(&pod.name)).await;
    answered(found, "get pods")
}

/// What the API server answered; `right` is what RBAC has to allow for it.
fn answered<T>(
    answer: Result<kube::Result<T>, tokio::time::error::Elapsed>,
    right: &str,
) -> Result<T, String> {
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(format!(
            "this ServiceAccount may not {right}; its ClusterRole needs it (deploy/ has it): {}",
            status.message
        )),
        Ok(Err(error)) => Err(format!(
            "the API server does not {right}: {}",
            with_causes(&error)
        )),
        Err(_elapsed) => Err(format!(
            "the API server does not {right} within {} s",
            DEADLINE.as_secs()
        )),
    }
}

/// What a token says of itself (RFC 7519 §3), not yet believed.
fn claims(presented: &str) -> Option<Claims> {
    if presented.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = presented.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    // RFC 7515 §2: base64url without padding.
    let mut text: String = payload.chars().map(standard).collect();
    text.extend(std::iter::repeat_n('=', text.len().wrapping_neg() % 4));
    let ByteString(bytes) = serde_json::from_value(Value::String(text)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// A character of base64url in base64 (RFC 4648 §5).
const fn standard(character: char) -> char {
    match character {
        '-' => '+',
        '_' => '/',
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Reviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trusted = &self.shared.trusted;
        f.debug_tuple("Reviews").field(trusted).finish()
    }
}

impl fmt::Debug for ReviewedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = (&self.node, &self.pod, self.expires);
        f.debug_tuple("ReviewedToken").field(&fields).finish()
    }
}

#[cfg(test)]
mod tests;
