//! The instances of one service as one caller knows them: kept up to date, each with its load, its ejection and its idle
//! connections.
//!
//! A task per service follows discovery and swaps the list; whoever calls reads it without a lock.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use ballet_core::{Chain, Discovery, InstanceId, ServiceName};
use ballet_resilience::{Load, Member, Outlier, OutlierPolicy, SharedRng, choose};

/// Idle connections kept for one instance; more are closed.
const MAX_IDLE: usize = 64;
/// An idle connection is closed after this time. Node.js closes after five seconds: being first avoids the race between
/// its closing and our next request.
const IDLE_FOR: Duration = Duration::from_secs(4);
/// Longest wait for a connection; then another instance may be tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Rest after discovery gave no answer.
const DISCOVERY_REST: Duration = Duration::from_millis(500);

pub(crate) struct Fleet {
    service: ServiceName,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    outlier: Outlier,
    rng: SharedRng,
    /// Whether discovery has spoken at all.
    known: watch::Sender<bool>,
    follower: Mutex<Option<AbortHandle>>,
}

/// One instance.
pub(crate) struct Endpoint {
    pub(crate) id: InstanceId,
    pub(crate) address: SocketAddr,
    pub(crate) load: Arc<Load>,
    pub(crate) member: Arc<Member>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Fleet {
    /// Begins to follow a service. Needs a tokio runtime.
    pub(crate) fn follow(service: ServiceName, discovery: Arc<dyn Discovery>, seed: u64) -> Arc<Self> {
        let fleet = Arc::new(Self {
            outlier: Outlier::new(OutlierPolicy::default(), Instant::now()),
            service,
            endpoints: ArcSwap::default(),
            rng: SharedRng::new(seed),
            known: watch::Sender::new(false),
            follower: Mutex::default(),
        });
        let task = tokio::spawn(follow(Arc::downgrade(&fleet), fleet.service.clone(), discovery));
        *fleet.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        fleet
    }

    pub(crate) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    pub(crate) fn outlier(&self) -> &Outlier {
        &self.outlier
    }

    pub(crate) fn rng(&self) -> &SharedRng {
        &self.rng
    }

    pub(crate) fn is_known(&self) -> bool {
        *self.known.borrow()
    }

    /// Waits until discovery has spoken.
    pub(crate) async fn known(&self) {
        // The sender lives in `self`.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Chooses an instance: not ejected and not yet tried if there is one, else not ejected, else any.
    pub(crate) fn choose(&self, tried: &[SocketAddr], now: Instant) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let mut rng = &self.rng;
        let well = |e: &Arc<Endpoint>| !e.member.is_ejected(now);
        let mut pick = |usable: &dyn Fn(&Arc<Endpoint>) -> bool| {
            choose(&endpoints, |e| &*e.load, usable, &mut rng, now).map(|i| endpoints[i].clone())
        };
        pick(&|e| well(e) && !tried.contains(&e.address))
            .or_else(|| if tried.is_empty() { None } else { pick(&|e| !tried.contains(&e.address)) })
            .or_else(|| pick(&well))
            .or_else(|| pick(&|_| true))
    }

    /// Whether there is an instance worth trying at once after these.
    pub(crate) fn has_another(&self, tried: &[SocketAddr], now: Instant) -> bool {
        self.endpoints.load().iter().any(|e| !e.member.is_ejected(now) && !tried.contains(&e.address))
    }

    fn update(&self, instances: &ballet_core::Instances) {
        let old: BTreeMap<_, _> =
            self.endpoints.load().iter().map(|e| ((e.id.clone(), e.address), e.clone())).collect();
        let endpoints: Vec<_> = instances
            .up()
            .map(|instance| {
                let key = (instance.id.clone(), instance.address);
                old.get(&key).cloned().unwrap_or_else(|| {
                    Arc::new(Endpoint {
                        id: instance.id.clone(),
                        address: instance.address,
                        load: Arc::new(Load::new(Instant::now())),
                        member: self.outlier.join(),
                        idle: Mutex::default(),
                    })
                })
            })
            .collect();
        if endpoints.len() != old.len() {
            info!(service = %self.service, instances = endpoints.len(), "instances changed");
        }
        self.endpoints.store(Arc::new(endpoints));
        self.known.send_replace(true);
    }

    fn close_idle(&self, now: Instant) {
        for endpoint in self.endpoints.load().iter() {
            endpoint.close_idle(now);
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(task) = self.follower.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

async fn follow(fleet: Weak<Fleet>, service: ServiceName, discovery: Arc<dyn Discovery>) {
    let (mut seen, mut silent) = (0, false);
    // What discovery says first is news even if its version is 0.
    let mut watched = discovery.resolve(&service);
    loop {
        let answer = tokio::select! {
            answer = &mut watched => answer,
            () = sleep(IDLE_FOR) => {
                let Some(fleet) = fleet.upgrade() else { return };
                fleet.close_idle(Instant::now());
                continue;
            }
        };
        match answer {
            Ok(instances) => {
                let Some(fleet) = fleet.upgrade() else { return };
                fleet.update(&instances);
                (seen, silent) = (instances.version, false);
            }
            Err(error) => {
                if !silent {
                    warn!(%service, error = %Chain(&error), "going on with the last known instances");
                }
                silent = true;
                let Some(fleet) = fleet.upgrade() else { return };
                fleet.known.send_replace(true);
                drop(fleet);
                sleep(DISCOVERY_REST).await;
            }
        }
        watched = discovery.watch(&service, seen);
    }
}

impl Endpoint {
    /// Takes an idle connection that the instance has not closed. With `ask` the kernel is asked, else only what tokio
    /// has heard so far counts, which costs no system call.
    pub(crate) fn take(&self, ask: bool, now: Instant) -> Option<TcpStream> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            // The last one in is the youngest: if it is too old, all are.
            if now.saturating_duration_since(idle.since) > IDLE_FOR {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                return None;
            }
            if is_quiet(&idle.stream, ask) {
                return Some(idle.stream);
            }
        }
    }

    /// Keeps a connection for the next call.
    pub(crate) fn keep(&self, stream: TcpStream, now: Instant) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(Idle { stream, since: now });
        }
    }

    /// Makes a connection.
    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        connect(self.address).await
    }

    pub(crate) fn idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn close_idle(&self, now: Instant) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|i| now.saturating_duration_since(i.since) <= IDLE_FOR && is_quiet(&i.stream, false));
    }
}

pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether an idle connection is still open and nothing was said on it unasked.
fn is_quiet(stream: &TcpStream, ask: bool) -> bool {
    let heard =
        if ask { SockRef::from(stream).peek(&mut [MaybeUninit::uninit(); 1]) } else { stream.try_read(&mut [0; 1]) };
    matches!(heard, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
