//! An issuer's keys: fetched in the background, kept while they cannot be fetched, fetched again when a token names a
//! key that nobody knows.
//!
//! A task per issuer owns the fetching; requests read the current set without a lock. Until the first set is there
//! every check ends in [`Checked::NoKeys`]: closed, never open. A token with an unknown key may wake the task early, at
//! most once in [`MISS_COOLDOWN`], and waits for what it brings.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::net::lookup_host;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use ballet_core::{Chain, Clock};
use ballet_manifest::{HttpUrl, Jwt, Keys};
use ballet_proxy::{CallError, CallMode, CallRequest, CallResponse, Upstream, Upstreams, direct};

use crate::jwt::{Claims, JwksError, KeySet, TokenCache, TokenError, verify};

/// Keys are fetched again this long after they were fetched.
pub(crate) const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// Shortest time between two fetches that unknown keys asked for.
pub(crate) const MISS_COOLDOWN: Duration = Duration::from_secs(10);
/// The same while no keys are known at all: a request that comes just after the issuer need not be refused.
const NO_KEYS_COOLDOWN: Duration = Duration::from_millis(50);
/// Longest a request waits for keys that it asked for.
pub(crate) const MISS_WAIT: Duration = Duration::from_secs(2);
/// Longest fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest JWKS document, in bytes.
const MAX_DOCUMENT: usize = 256 << 10;
/// Rest after a fetch that failed while no keys are known; doubles to [`MAX_REST`].
const FIRST_REST: Duration = Duration::from_millis(100);
const MAX_REST: Duration = Duration::from_secs(1);
/// Rest after a fetch that failed while old keys serve on.
const STALE_REST: Duration = Duration::from_secs(5);
/// A failure is told when it lasts: the tenth time, then each sixtieth.
const TOLD: (u32, u32) = (10, 60);

/// One issuer: whose tokens, for whom, and the keys. Lives as long as some plan asks for it, over reloads too.
pub(crate) struct Issuer {
    pub(crate) jwt: Arc<Jwt>,
    source: Source,
    clock: Arc<dyn Clock>,
    keys: ArcSwapOption<KeySet>,
    cache: TokenCache,
    wake: Arc<Notify>,
    fetching: Mutex<Fetching>,
    /// Fetches that ended.
    ended: watch::Sender<u64>,
    task: Mutex<Option<AbortHandle>>,
}

enum Source {
    Service { upstream: Arc<Upstream>, path: String },
    Url(HttpUrl),
}

#[derive(Default)]
struct Fetching {
    under_way: bool,
    last_miss: Option<Instant>,
}

/// What is known of a token.
#[derive(Debug, Clone)]
pub(crate) enum Checked {
    /// It is good.
    Good(Arc<Claims>),
    /// It is not.
    Bad(TokenError),
    /// Its key is not known; [`Issuer::ask`] may help.
    UnknownKey,
    /// No keys are known yet.
    NoKeys,
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the service gives no answer")]
    Call(#[source] CallError),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the document is longer than {MAX_DOCUMENT} bytes")]
    TooLarge,
    #[error("the document is no JWKS")]
    Document(#[source] JwksError),
    #[error("cannot resolve the host")]
    Resolve(#[source] std::io::Error),
    #[error("the host has no address")]
    NoAddress,
}

impl Issuer {
    /// Begins to fetch the keys. Needs a tokio runtime.
    pub(crate) fn start(jwt: Arc<Jwt>, upstreams: &Upstreams, clock: Arc<dyn Clock>) -> Arc<Self> {
        let source = match &jwt.keys {
            Keys::Service { service, path } => {
                Source::Service { upstream: upstreams.upstream(service, None), path: path.clone() }
            }
            Keys::Url(url) => Source::Url(url.clone()),
        };
        let issuer = Arc::new(Self {
            jwt,
            source,
            clock,
            keys: ArcSwapOption::empty(),
            cache: TokenCache::new(),
            wake: Arc::default(),
            fetching: Mutex::default(),
            ended: watch::Sender::new(0),
            task: Mutex::default(),
        });
        let (weak, wake) = (Arc::downgrade(&issuer), issuer.wake.clone());
        let task = tokio::spawn(async move {
            let mut failures = 0u32;
            while let Some(issuer) = weak.upgrade() {
                failures = if issuer.refresh(failures).await { 0 } else { failures.saturating_add(1) };
                let pause = match (failures, issuer.ready()) {
                    (0, _) => REFRESH_EVERY,
                    (_, true) => STALE_REST,
                    (n, false) => (FIRST_REST * 2u32.pow(n.min(8) - 1)).min(MAX_REST),
                };
                // Who sleeps does not hold the issuer: dropping it ends the task at once.
                drop(issuer);
                let _ = timeout(pause, wake.notified()).await;
            }
        });
        *issuer.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        issuer
    }

    /// Checks a token with what is known now.
    pub(crate) fn check(&self, token: &[u8]) -> Checked {
        let Some(keys) = self.keys.load_full() else { return Checked::NoKeys };
        let now = self.clock.now();
        if let Some(claims) = self.cache.get(token, &keys, now) {
            return Checked::Good(claims);
        }
        match verify(token, &keys, &self.jwt.issuer, &self.jwt.audience, now) {
            Ok(claims) => {
                let claims = Arc::new(claims);
                self.cache.put(token, claims.clone(), &keys);
                Checked::Good(claims)
            }
            Err(TokenError::UnknownKey) => Checked::UnknownKey,
            Err(error) => Checked::Bad(error),
        }
    }

    /// Whether a fetch is under way or may begin now for a token whose key is unknown, or that comes before any key.
    pub(crate) fn may_ask(&self) -> bool {
        let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.under_way || fetching.last_miss.is_none_or(|last| last.elapsed() >= self.cooldown())
    }

    /// Has the keys fetched once more, unless that happened lately. Waits up to [`MISS_WAIT`].
    pub(crate) async fn ask(&self) {
        let mut ended = self.ended.subscribe();
        let seen = *ended.borrow_and_update();
        {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if !fetching.under_way {
                if fetching.last_miss.is_some_and(|last| now - last < self.cooldown()) {
                    return;
                }
                fetching.last_miss = Some(now);
                fetching.under_way = true;
                self.wake.notify_one();
            }
        }
        let _ = timeout(MISS_WAIT, ended.wait_for(|count| *count > seen)).await;
    }

    fn cooldown(&self) -> Duration {
        if self.ready() { MISS_COOLDOWN } else { NO_KEYS_COOLDOWN }
    }

    /// Whether keys are known.
    pub(crate) fn ready(&self) -> bool {
        self.keys.load().is_some()
    }

    /// Hits and misses of the verification cache.
    pub(crate) fn cache_counts(&self) -> (u64, u64) {
        self.cache.counts()
    }

    /// Fetches once, after so many failures. `true` if keys came.
    async fn refresh(&self, failures: u32) -> bool {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner).under_way = true;
        let fetched = self.fetch().await;
        let good = fetched.is_ok();
        match fetched {
            Ok(keys) => self.take_over(keys),
            Err(error) if failures == TOLD.0 || failures % TOLD.1 == TOLD.1 - 1 => {
                warn!(issuer = self.jwt.issuer, known = self.ready(), error = %Chain(&error), "keys cannot be fetched");
            }
            // While the system starts, the first tries fail; that is no news.
            Err(error) => debug!(issuer = self.jwt.issuer, error = %Chain(&error), "keys cannot be fetched yet"),
        }
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner).under_way = false;
        self.ended.send_modify(|count| *count += 1);
        good
    }

    fn take_over(&self, mut keys: KeySet) {
        let old = self.keys.load_full();
        if old.as_ref().is_some_and(|old| old.same_as(&keys)) {
            return;
        }
        if old.is_none() {
            // What was asked for while there were no keys at all says nothing of a key that is missing from now on.
            self.fetching.lock().unwrap_or_else(PoisonError::into_inner).last_miss = None;
        }
        keys.version = old.as_ref().map_or(1, |old| old.version + 1);
        info!(issuer = self.jwt.issuer, version = keys.version, "keys changed");
        self.keys.store(Some(Arc::new(keys)));
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let answer = match &self.source {
            Source::Service { upstream, path } => upstream.call(request(path)).await.map_err(FetchError::Call)?,
            Source::Url(url) => fetch_url(url).await?,
        };
        if answer.status != 200 {
            return Err(FetchError::Status(answer.status));
        }
        if answer.body.len() > MAX_DOCUMENT {
            return Err(FetchError::TooLarge);
        }
        KeySet::parse(&answer.body).map_err(FetchError::Document)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

fn request(path: &str) -> CallRequest {
    CallRequest::new("GET", path).header("accept", "application/json").timeout(FETCH_TIMEOUT).mode(CallMode::Retry)
}

async fn fetch_url(url: &HttpUrl) -> Result<CallResponse, FetchError> {
    let mut addresses = lookup_host((url.host.as_str(), url.port)).await.map_err(FetchError::Resolve)?;
    let address = addresses.next().ok_or(FetchError::NoAddress)?;
    let path = if url.path.is_empty() { "/" } else { &url.path };
    direct(address, request(path).header("host", url.host.as_str())).await.map_err(FetchError::Call)
}
