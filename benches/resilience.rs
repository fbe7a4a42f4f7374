//! What resilience adds to a call that succeeds: nanoseconds and allocations of each heart, of the whole path, and of the
//! tower layers around them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use ballet_benches::{Bar, Options, Report, Table};
use ballet_core::{Classify, ErrorCode, Policy, Retry};
use ballet_resilience::{
    Admission, Bulkhead, Load, Outcome, Outlier, OutlierPolicy, Rate, RateLimit, RetryBudget, SharedBreaker, SharedRng,
    choose, layer,
};
use serde_json::json;
use tokio::time::Instant;
use tower::{Layer, Service};

/// Calls before the clock runs, and in each of the runs, of which the fastest counts.
const WARM_UP: u64 = 100_000;
const CALLS: u64 = 300_000;
const RUNS: usize = 7;
/// The whole path, as the bars know it.
const WHOLE: &str = "whole path";

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; this one hands everything on")]
// SAFETY: both methods pass their arguments on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A call that may be repeated.
struct Call;

impl layer::Request for Call {
    fn again(&self) -> Option<Self> {
        Some(Self)
    }
}

/// An error that never comes.
#[derive(Debug)]
struct Never;

impl Classify for Never {
    fn code(&self) -> ErrorCode {
        ErrorCode("XX000")
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }
}

/// Results so far: name, nanoseconds, allocations of one call.
struct Results(Vec<(&'static str, f64, f64)>);

impl Results {
    fn run(&mut self, name: &'static str, mut call: impl FnMut()) {
        for _ in 0..WARM_UP {
            call();
        }
        let mut best = f64::MAX;
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..RUNS {
            let begun = Instant::now();
            for _ in 0..CALLS {
                call();
            }
            best = best.min(begun.elapsed().as_nanos() as f64 / CALLS as f64);
        }
        let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / (CALLS * RUNS as u64) as f64;
        self.0.push((name, best, allocations));
    }
}

fn main() {
    let Some(options) = Options::asked(Duration::from_secs(1)) else { return };
    let mut report = Report::begin("resilience", &options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _inside = runtime.enter();
    let mut results = Results(vec![]);
    hearts(&mut results);
    layers(&mut results);

    let mut table = Table::new(&["success path", "ns", "allocations"]);
    for (name, ns, allocations) in &results.0 {
        table.row(vec![(*name).to_owned(), format!("{ns:.1}"), format!("{allocations}")]);
    }
    table.print();
    if let Some((_, ns, allocations)) = results.0.iter().find(|(name, ..)| *name == WHOLE) {
        report.bar(Bar::at_most("resilience stack, success path", *ns, "ns", 300.0, Some(150.0)));
        report.bar(Bar::at_most("its allocations", *allocations, "a call", 0.0, None));
    }
    let rows = results
        .0
        .iter()
        .map(|(name, ns, allocations)| json!({ "what": name, "nanoseconds": ns, "allocationsPerCall": allocations }));
    report.result("successPath", rows.collect::<Vec<_>>());
    report.end();
}

fn hearts(results: &mut Results) {
    let policy = Policy::default();
    let now = Instant::now();
    results.run("reading the clock once", || {
        black_box(Instant::now());
    });
    let breaker = SharedBreaker::new(&policy.breaker);
    results.run("breaker: admit, record", || {
        if let Admission::Call(permit) = breaker.admit(now) {
            breaker.record(permit, Outcome::Success, now);
        }
    });
    let budget = RetryBudget::new(&policy.retry, now);
    results.run("retry budget: note a call", || budget.note_call(now));
    let bulkhead = Bulkhead::new(&policy.bulkhead);
    results.run("bulkhead: enter, leave", || drop(black_box(bulkhead.try_enter())));
    let rate = Rate { count: NonZeroU32::MAX, per: Duration::from_secs(1) };
    let limit = RateLimit::new(rate, 16_384, now);
    let ip = IpAddr::from([10, 1, 2, 3]);
    results.run("rate limit by address", || {
        black_box(limit.check(ip, now, Duration::ZERO));
    });

    let rng = SharedRng::new(7);
    let loads: Vec<_> = (0..4).map(|_| Arc::new(Load::new(now))).collect();
    for load in &loads {
        load.note(Duration::from_millis(3), Outcome::Success, now);
    }
    let outlier = Outlier::new(OutlierPolicy::default(), now);
    let members: Vec<_> = (0..4).map(|_| outlier.join()).collect();
    let endpoints: Vec<_> = loads.iter().cloned().zip(members).collect();
    let later = now + Duration::from_millis(5);
    let pick = |at: Instant| choose(&endpoints, |e| &e.0, |e| !e.1.is_ejected(at), &mut &rng, at);
    results.run("choice among four, load noted", || {
        if let Some(at) = pick(later) {
            endpoints[at].0.begin(later).finish(Outcome::Success, later);
        }
    });
    results.run("outlier: record", || {
        black_box(outlier.record(&endpoints[0].1, Outcome::Success, later));
    });
    // Rate limit, budget, breaker, bulkhead, choice, load, outlier; the clock read once on each way.
    results.run(WHOLE, || {
        let begun = Instant::now();
        black_box(limit.check(ip, begun, Duration::ZERO));
        budget.note_call(begun);
        let Admission::Call(permit) = breaker.admit(begun) else { return };
        let place = bulkhead.try_enter();
        let Some(at) = pick(begun) else { return };
        let track = endpoints[at].0.begin(begun);
        let ended = Instant::now();
        track.finish(Outcome::Success, ended);
        outlier.record(&endpoints[at].1, Outcome::Success, ended);
        breaker.record(permit, Outcome::Success, ended);
        drop(place);
    });
}

fn layers(results: &mut Results) {
    let policy = Policy::default();
    let breaker = Arc::new(SharedBreaker::new(&policy.breaker));
    let inner = tower::service_fn(|_: Call| std::future::ready(Ok::<_, layer::Stopped<Never>>(())));
    let service = layer::timeout::Layer::new(policy.timeout).layer(inner);
    let service = layer::bulkhead::Layer::new(Bulkhead::new(&policy.bulkhead)).layer(service);
    let service = layer::breaker::Layer::new(breaker, layer::ByError).layer(service);
    let mut service = layer::retry::Layer::new(&policy.retry, layer::ByError, 7, Instant::now()).layer(service);
    let mut context = Context::from_waker(Waker::noop());
    results.run("tower layers: retry, breaker, bulkhead, timeout", || {
        let mut answer = pin!(service.call(Call));
        assert!(answer.as_mut().poll(&mut context).is_ready(), "it answers at once");
    });
}
