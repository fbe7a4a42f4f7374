use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use ballet_core::{BreakerPolicy, BulkheadPolicy, RetryPolicy};
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

use super::*;
use crate::{Bulkhead, SharedBreaker};

#[derive(Clone, Debug, Default)]
struct Ask {
    idempotent: bool,
    until: Option<Until>,
}

impl Request for Ask {
    fn again(&self) -> Option<Self> {
        Some(self.clone())
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn until(&self) -> Option<Until> {
        self.until
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("it broke")]
struct Broke(Retry);

impl Classify for Broke {
    fn code(&self) -> ErrorCode {
        ErrorCode("XX001")
    }

    fn retry(&self) -> Retry {
        self.0
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn budget(share: f64, floor: f64) -> RetryPolicy {
    RetryPolicy { budget: share, budget_floor_per_second: floor, ..RetryPolicy::default() }
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_timeout_or_at_the_nearer_deadline() {
    let slow = service_fn(|_: Ask| async {
        sleep(ms(1000)).await;
        Ok::<_, Stopped<Broke>>(())
    });
    for (limit, until, ends) in [(300, None, 300), (300, Some(200), 200), (2000, None, 1000)] {
        let began = Instant::now();
        let until = until.map(|left| Until::new(ms(left), None, began));
        let result = timeout::Layer::new(ms(limit)).layer(slow).oneshot(Ask { until, ..Ask::default() }).await;
        assert_eq!(began.elapsed(), ms(ends));
        assert_eq!(result, if ends < 1000 { Err(Stopped::TimedOut) } else { Ok(()) });
    }
}

/// Calls a service that fails `failures` times through the retry layer; says how often it was called and for how long.
async fn retried(policy: &RetryPolicy, failures: u32, class: Retry, ask: Ask) -> (u32, Duration, bool) {
    let (calls, began) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let count = calls.clone();
    let flaky = service_fn(move |_: Ask| {
        let failed = count.fetch_add(1, Ordering::Relaxed) < failures;
        async move { if failed { Err(Stopped::Inner(Broke(class))) } else { Ok(()) } }
    });
    let layer = retry::Layer::new(policy, ByError, 7, began);
    let result = layer.layer(flaky).oneshot(ask).await;
    assert_eq!(layer.retries() + 1, u64::from(calls.load(Ordering::Relaxed)));
    (calls.load(Ordering::Relaxed), began.elapsed(), result.is_ok())
}

#[tokio::test(start_paused = true)]
async fn retries_keep_to_class_count_budget_and_deadline() {
    let twice = Ask { idempotent: true, until: None };
    let near = Ask { until: Some(Until::new(ms(1), None, Instant::now())), ..twice.clone() };
    let table = [
        ("succeeds at last", budget(0.0, 10.0), 2, Retry::Safe(None), Ask::default(), 3, true),
        ("gives up after three", budget(0.0, 10.0), 9, Retry::Safe(None), Ask::default(), 4, false),
        ("never means never", budget(0.0, 10.0), 1, Retry::Never, twice.clone(), 1, false),
        ("not idempotent", budget(0.0, 10.0), 1, Retry::IfIdempotent, Ask::default(), 1, false),
        ("idempotent", budget(0.0, 10.0), 1, Retry::IfIdempotent, twice, 2, true),
        ("the budget is spent", budget(0.0, 0.2), 9, Retry::Safe(None), Ask::default(), 3, false),
        ("the deadline is near", budget(0.0, 10.0), 9, Retry::Safe(Some(ms(5))), near, 1, false),
        ("switched off", RetryPolicy { max: 0, ..budget(1.0, 10.0) }, 1, Retry::Safe(None), Ask::default(), 1, false),
    ];
    for (name, policy, failures, class, ask, calls, ok) in table {
        let (called, took, succeeded) = retried(&policy, failures, class, ask).await;
        assert_eq!((called, succeeded), (calls, ok), "{name}");
        assert!(took <= ms(710), "{name}: caps are 100, 200, 400 ms, it took {took:?}");
    }
    let asked = retried(&budget(0.0, 10.0), 1, Retry::Safe(Some(ms(900))), Ask::default()).await;
    assert!(asked.1 >= ms(900), "a rest that was asked for is kept: {:?}", asked.1);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_refuses_and_heals_and_hears_of_timeouts() {
    let policy = BreakerPolicy { failures: NonZeroU32::new(2).unwrap(), open_for: ms(5000) };
    let breaker = Arc::new(SharedBreaker::new(&policy));
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let dead_at_first = service_fn(move |_: Ask| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        async move {
            if n < 2 {
                sleep(ms(10_000)).await;
            }
            Ok::<_, Stopped<Broke>>(())
        }
    });
    let inner = timeout::Layer::new(ms(100)).layer(dead_at_first);
    let mut service = breaker::Layer::new(breaker, ByError).layer(inner);
    for _ in 0..2 {
        assert_eq!(service.ready().await.unwrap().call(Ask::default()).await, Err(Stopped::TimedOut));
    }
    let refused = service.ready().await.unwrap().call(Ask::default()).await;
    assert_eq!(refused, Err(Stopped::BreakerOpen { retry_after: ms(5000) }));
    assert_eq!(calls.load(Ordering::Relaxed), 2, "nothing was sent");
    advance(ms(5000)).await;
    assert_eq!(service.ready().await.unwrap().call(Ask::default()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_bulkhead_admits_some_queues_some_and_refuses_the_rest() {
    let bulkhead = Bulkhead::new(&BulkheadPolicy { max: 1, queue: 1, wait: ms(500) });
    let slow = service_fn(|_: Ask| async {
        sleep(ms(300)).await;
        Ok::<_, Stopped<Broke>>(())
    });
    let service = bulkhead::Layer::new(bulkhead.clone()).layer(slow);
    let began = Instant::now();
    let mut calls = [(); 3].map(|()| Box::pin(service.clone().oneshot(Ask::default())));
    for call in &mut calls {
        let _ = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
    }
    assert_eq!((bulkhead.busy(), bulkhead.waiting(), bulkhead.refused()), (1, 1, 1));
    let [first, second, _third] = calls;
    assert_eq!((first.await, second.await), (Ok(()), Ok(())));
    assert_eq!(began.elapsed(), ms(600), "the second waited for the first");

    let (_busy, began) = (bulkhead.try_enter().unwrap(), Instant::now());
    assert_eq!(service.clone().oneshot(Ask::default()).await, Err(Stopped::Full(BulkheadFull)));
    assert_eq!(began.elapsed(), ms(500), "it waits no longer than the policy says");
    let until = Some(Until::new(ms(50), None, Instant::now()));
    let began = Instant::now();
    assert_eq!(service.clone().oneshot(Ask { until, ..Ask::default() }).await, Err(Stopped::Full(BulkheadFull)));
    assert_eq!(began.elapsed(), ms(50), "nor than the deadline allows");
    assert!(timeout(ms(10), service.oneshot(Ask::default())).await.is_err());
    assert_eq!(bulkhead.waiting(), 0, "who stops waiting leaves the queue");
}
