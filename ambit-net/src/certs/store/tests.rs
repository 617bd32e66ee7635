//! What the store promises, under a paused clock and with an authority of the test's own.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::advance;

use super::*;
use crate::certs::SignError;
use crate::tls::testing::{Leaf, TestAuthority};

const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// The wall clock's time at the beginning of each test.
const BEGIN: u64 = 1_800_000_000;
const LIFETIME: u64 = 24 * 3600;

/// Signs for a day, after `delay`, unless it is told to refuse.
struct Signer {
    ca: TestAuthority,
    clock: Clock,
    delay: Duration,
    asked: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    refuses: Mutex<bool>,
}

impl Sign for Signer {
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        request: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, SignError>> + Send + 'a>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let now_under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way
                .fetch_max(now_under_way, Ordering::SeqCst);
            sleep(self.delay).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            if *locked(&self.refuses) {
                return Err(SignError::Refused("not on this node".to_owned()));
            }
            let now = (self.clock)();
            let mut leaf = Leaf::new([identity.to_string().as_str()]);
            (leaf.not_before, leaf.not_after) = (now, now + LIFETIME);
            Ok(self.ca.sign(request, &leaf))
        })
    }
}

struct Bench {
    meters: Arc<Meters>,
    signer: Arc<Signer>,
    store: CertStore,
    tasks: Tasks,
}

impl Bench {
    fn new(delay: Duration) -> Self {
        let begin = Instant::now();
        let clock: Clock = Arc::new(move || BEGIN + begin.elapsed().as_secs());
        let signer = Arc::new(Signer {
            ca: TestAuthority::new(),
            clock: Arc::clone(&clock),
            delay,
            asked: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            refuses: Mutex::new(false),
        });
        let settings = CertStoreSettings::default();
        let dyn_signer: Arc<dyn Sign> = Arc::<Signer>::clone(&signer);
        let meters = Meters::new("test", 10);
        let store = CertStore::new(dyn_signer, settings, clock, &meters);
        let tasks = Tasks::new("test");
        tasks.spawn(store.clone().run(tasks.stop_signal()));
        Self {
            meters,
            signer,
            store,
            tasks,
        }
    }

    fn asked(&self) -> usize {
        self.signer.asked.load(Ordering::SeqCst)
    }

    fn metric(&self, line: &str) -> bool {
        self.meters.render().lines().any(|found| found == line)
    }

    fn refuse(&self, refuses: bool) {
        *locked(&self.signer.refuses) = refuses;
    }
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn many_callers_share_one_signing() {
    let bench = Bench::new(Duration::from_secs(1));
    let web = id(ID);
    let (a, b, c) = tokio::join!(
        bench.store.get(&web),
        bench.store.get(&web),
        bench.store.get(&web)
    );
    let serial = a.unwrap().serial().to_owned();
    assert_eq!(b.unwrap().serial(), serial);
    assert_eq!(c.unwrap().serial(), serial);
    assert_eq!(bench.store.get(&web).await.unwrap().serial(), serial);
    assert_eq!(bench.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn renews_between_40_and_50_percent_of_the_lifetime() {
    let bench = Bench::new(Duration::ZERO);
    let web = id(ID);
    bench.store.want(&web).unwrap();
    let first = bench.store.get(&web).await.unwrap();
    sleep(Duration::from_secs(LIFETIME * 39 / 100)).await;
    assert_eq!(bench.asked(), 1);
    sleep(Duration::from_secs(LIFETIME * 12 / 100)).await;
    assert_eq!(bench.asked(), 2);
    let second = bench.store.get(&web).await.unwrap();
    assert_ne!(second.serial(), first.serial());
    assert_eq!(bench.store.snapshot()[0].received, 2);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_not_renewed() {
    let bench = Bench::new(Duration::ZERO);
    bench.store.get(&id(ID)).await.unwrap();
    sleep(Duration::from_secs(LIFETIME)).await;
    assert_eq!(bench.asked(), 1);
    assert!(bench.store.snapshot().is_empty());
}

#[tokio::test(start_paused = true)]
async fn serves_the_old_certificate_to_its_end_and_then_refuses() {
    let bench = Bench::new(Duration::ZERO);
    let web = id(ID);
    bench.store.want(&web).unwrap();
    let first = bench.store.get(&web).await.unwrap();
    bench.refuse(true);
    sleep(Duration::from_secs(LIFETIME - 1)).await;
    assert!(bench.asked() > 10, "{} tries", bench.asked());
    let still = bench.store.get(&web).await.unwrap();
    assert_eq!(still.serial(), first.serial());
    assert!(bench.store.snapshot()[0].error.is_some());
    assert!(bench.metric("ambit_certificates{state=\"valid\"} 1"));

    sleep(Duration::from_secs(2)).await;
    let error = bench.store.get(&web).await.unwrap_err();
    assert!(matches!(error, CertError::Sign(_)), "{error}");
    assert_eq!(error.reason().code(), "no_certificate");

    sleep(Duration::from_secs(150)).await;
    assert!(bench.metric("ambit_certificates{state=\"missing\"} 1"));
    assert!(bench.metric("ambit_certificates{state=\"valid\"} 0"));
    let refused = format!("{{outcome=\"refused\"}} {}", bench.asked() - 1);
    assert!(bench.metric(&format!("ambit_certificate_requests_total{refused}")));

    bench.refuse(false);
    sleep(Duration::from_secs(160)).await;
    bench.store.get(&web).await.unwrap();
    assert!(bench.metric("ambit_certificates{state=\"valid\"} 1"));
    assert!(bench.metric("ambit_certificate_requests_total{outcome=\"signed\"} 2"));
}

#[tokio::test(start_paused = true)]
async fn tries_again_at_growing_intervals() {
    let bench = Bench::new(Duration::ZERO);
    bench.refuse(true);
    bench.store.want(&id(ID)).unwrap();
    sleep(Duration::from_secs(30)).await;
    // 0.5, 1, 2, 4, 8 and 16 s, each shortened by up to half.
    assert!((5..=8).contains(&bench.asked()), "{} tries", bench.asked());
    let before = bench.asked();
    sleep(Duration::from_secs(1500)).await;
    let later = bench.asked() - before;
    assert!((10..=24).contains(&later), "{later} tries");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_the_answer_of_a_later_try() {
    let bench = Bench::new(Duration::ZERO);
    bench.refuse(true);
    let web = id(ID);
    bench.store.want(&web).unwrap();
    let repair = async {
        sleep(Duration::from_millis(300)).await;
        bench.refuse(false);
    };
    let (got, ()) = tokio::join!(bench.store.get(&web), repair);
    got.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_and_names_the_cause() {
    let bench = Bench::new(Duration::from_secs(3600));
    let begin = Instant::now();
    let error = bench.store.get(&id(ID)).await.unwrap_err();
    assert!(matches!(error, CertError::Deadline), "{error}");
    assert_eq!(begin.elapsed(), CertStoreSettings::default().wait);
    advance(Duration::from_secs(6)).await;
    let error = bench.store.get(&id(ID)).await.unwrap_err();
    assert!(matches!(error, CertError::SignDeadline(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn signs_for_at_most_eight_at_once() {
    let bench = Bench::new(Duration::from_secs(1));
    let ids: Vec<_> = (0..30)
        .map(|n| id(&format!("spiffe://cluster.local/ns/shop/sa/web-{n}")))
        .collect();
    ids.iter().for_each(|id| bench.store.want(id).unwrap());
    for id in &ids {
        bench.store.get(id).await.unwrap();
    }
    assert_eq!(bench.signer.most_under_way.load(Ordering::SeqCst), 8);
    assert_eq!(bench.asked(), 30);
}

#[tokio::test(start_paused = true)]
async fn forgets_with_the_last_want_and_cancels_what_is_under_way() {
    let bench = Bench::new(Duration::from_secs(1));
    let web = id(ID);
    bench.store.want(&web).unwrap();
    bench.store.want(&web).unwrap();
    bench.store.forget(&web);
    assert_eq!(bench.store.snapshot().len(), 1);
    sleep(Duration::from_millis(500)).await;
    bench.store.forget(&web);
    assert!(bench.store.snapshot().is_empty());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        bench.signer.under_way.load(Ordering::SeqCst),
        1,
        "it was dropped while it slept"
    );
    assert!(bench.store.snapshot().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_store_refuses_further_identities() {
    let bench = Bench::new(Duration::ZERO);
    let limit = CertStoreSettings::default().identities;
    for n in 0..limit {
        let web = id(&format!("spiffe://cluster.local/ns/shop/sa/web-{n}"));
        bench.store.shared.entry(&web, 1).unwrap();
    }
    let error = bench.store.want(&id(ID)).unwrap_err();
    assert_eq!(error.reason().code(), "limit_reached");
}

#[tokio::test(start_paused = true)]
async fn keepers_end_with_the_store() {
    let bench = Bench::new(Duration::ZERO);
    bench.store.want(&id(ID)).unwrap();
    bench.store.get(&id(ID)).await.unwrap();
    let drained = bench.tasks.drain(Duration::from_secs(1)).await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
    sleep(Duration::from_secs(LIFETIME)).await;
    assert_eq!(bench.asked(), 1);
}
