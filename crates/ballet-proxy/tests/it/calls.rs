//! Calls over real sockets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballet_core::{BulkheadPolicy, Policy, RetryPolicy};
use ballet_proxy::{BreakerState, CallError, CallMode, CallRequest, PolicyTable, Upstreams, direct};
use tokio::net::TcpListener;
use tokio::time::advance;

use crate::rig::{Changing, Do, Origin, name, nobody, ok, orders, status};

fn get() -> CallRequest {
    CallRequest::new("GET", "/orders/7")
}

fn policy(timeout: u64) -> Policy {
    Policy { timeout: Duration::from_millis(timeout), ..Policy::default() }
}

#[tokio::test]
async fn a_call_says_who_calls_and_how_long_it_may_take() {
    let origin = Origin::start(|_| Do::Send(ok("hi"))).await;
    let upstream = orders(&[origin.address], policy(1500)).upstream(&name("orders"), None);
    let request = CallRequest::new("POST", "/orders?x=1")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("ballet-caller", "somebody-else")
        .header("connection", "close")
        .body("abc");
    let response = upstream.call(request).await.unwrap();
    assert_eq!((response.status, &response.body[..]), (200, &b"hi"[..]));
    let seen = origin.seen().remove(0);
    let left =
        seen.head.split("ballet-timeout-ms: ").nth(1).unwrap().split("\r\n").next().unwrap().parse::<u64>().unwrap();
    assert!((1..=1500).contains(&left));
    let expected = format!(
        "POST /orders?x=1 HTTP/1.1\r\nhost: {}\r\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
         ballet-caller: tests\r\nballet-timeout-ms: {left}\r\ncontent-length: 3\r\n\r\n",
        origin.address
    );
    assert_eq!((seen.head, &seen.body[..]), (expected, &b"abc"[..]));
}

#[tokio::test]
async fn connections_are_used_again_until_the_service_closes_them() {
    let origin =
        Origin::start(|seen| if seen.nth == 1 { Do::SendAndClose(ok("last")) } else { Do::Send(ok("")) }).await;
    let upstream = orders(&[origin.address], policy(2000)).upstream(&name("orders"), None);
    for _ in 0..20 {
        upstream.call(get()).await.unwrap();
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 10);
    assert_eq!(origin.count(), 20, "no attempt met a closed connection");
}

#[tokio::test]
async fn every_framing_of_an_answer_is_understood() {
    let long = "x".repeat(100_000);
    for (answer, body) in [
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n"
                .to_owned(),
            "abcde",
        ),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx".to_owned(), "x"),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), ""),
        (format!("HTTP/1.0 200 OK\r\n\r\n{long}"), &*long),
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{long}"), &*long),
    ] {
        let origin = Origin::start(move |_| Do::SendAndClose(answer.clone().into_bytes())).await;
        let response = direct(origin.address, get()).await.unwrap();
        assert!(response.body == body.as_bytes(), "{} bytes of {}", response.body.len(), body.len());
    }
}

#[tokio::test]
async fn a_failed_call_knows_whether_it_was_sent() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    let big = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", (8 << 20) + 1);
    for (what, reaction, sent) in [
        ("reset", Do::Reset, true),
        ("hang", Do::Hang, true),
        ("cut", Do::SendAndClose(cut.into()), true),
        ("noise", Do::SendAndClose("SSH-2.0-x\r\n\r\n".into()), true),
        ("big", Do::Send(big.into_bytes()), true),
    ] {
        let origin = Origin::start(move |_| reaction.clone()).await;
        let upstream = orders(&[origin.address], policy(300)).upstream(&name("orders"), None);
        let error = upstream.call(get()).await.unwrap_err();
        let as_expected = match what {
            "hang" => matches!(error, CallError::TimedOut { sent: true }),
            "noise" => matches!(error, CallError::Malformed(_)),
            "big" => matches!(error, CallError::TooLarge),
            _ => matches!(error, CallError::Lost(_)),
        };
        assert!(as_expected, "{what}: {error:?}");
        assert_eq!(error.sent(), sent, "{what}");
        assert_eq!(origin.count(), 1, "{what}: one exchange and no more");
    }
    let upstream = orders(&[nobody().await], policy(300)).upstream(&name("orders"), None);
    let error = upstream.call(get()).await.unwrap_err();
    assert!(matches!(error, CallError::Connect(ref e) if e.kind() == io::ErrorKind::ConnectionRefused), "{error:?}");
    assert!(!error.sent());
    let error = upstream.call(CallRequest::new("GET", "/a b")).await.unwrap_err();
    assert!(matches!(error, CallError::Invalid(_)), "{error:?}");
    let upstream = orders(&[], policy(300)).upstream(&name("orders"), None);
    assert!(matches!(upstream.call(get()).await, Err(CallError::NoInstance)));
}

#[tokio::test]
async fn retries_go_to_another_instance_and_only_where_it_is_safe() {
    for (method, key, mode, answered) in [
        ("GET", false, CallMode::Retry, true),
        ("POST", true, CallMode::Retry, true),
        ("POST", false, CallMode::Retry, false),
        ("GET", false, CallMode::Once, false),
    ] {
        let bad = Origin::start(|_| Do::Reset).await;
        let good = Origin::start(|_| Do::Send(ok("good"))).await;
        let upstream = orders(&[bad.address, good.address], policy(2000)).upstream(&name("orders"), None);
        let mut failed = 0;
        for _ in 0..4 {
            let mut request = CallRequest::new(method, "/").mode(mode);
            if key {
                request = request.header("Idempotency-Key", "k");
            }
            failed += usize::from(upstream.call(request).await.is_err());
        }
        assert_eq!(failed == 0, answered, "{method} {key} {mode:?}");
        assert_eq!(failed, if answered { 0 } else { bad.count() });
    }
}

#[tokio::test]
async fn a_refused_connection_is_retried_for_any_method() {
    let good = Origin::start(|_| Do::Send(ok("good"))).await;
    let upstream = orders(&[nobody().await, good.address], policy(2000)).upstream(&name("orders"), None);
    for _ in 0..10 {
        upstream.call(CallRequest::new("POST", "/").mode(CallMode::Retry)).await.unwrap();
    }
}

#[tokio::test]
async fn a_503_is_given_when_all_retries_say_so() {
    let origin = Origin::start(|_| Do::Send(status(503))).await;
    let retry = RetryPolicy { backoff_first: Duration::from_millis(1), ..RetryPolicy::default() };
    let upstream = orders(&[origin.address], Policy { retry, ..policy(2000) }).upstream(&name("orders"), None);
    assert_eq!(upstream.call(get().mode(CallMode::Retry)).await.unwrap().status, 503);
    assert_eq!(origin.count(), 4);
}

#[tokio::test]
async fn the_breaker_opens_rests_and_heals() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let upstreams = orders(&[address], policy(2000));
    let upstream = upstreams.upstream(&name("orders"), None);
    for _ in 0..5 {
        assert!(matches!(upstream.call(get()).await, Err(CallError::Connect(_))));
    }
    let Err(CallError::BreakerOpen { retry_after }) = upstream.call(get()).await else { panic!("it should be open") };
    assert!(retry_after > Duration::from_secs(4));
    assert_eq!(upstreams.breakers(), [(name("orders"), BreakerState::Open)]);
    assert_eq!(
        upstreams.upstream(&name("orders"), Some("other")).view().breaker,
        BreakerState::Closed,
        "its own breaker"
    );
    let _origin = Origin::on(TcpListener::bind(address).await.unwrap(), |_| Do::Send(ok("")));
    tokio::time::pause();
    advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    upstream.call(get()).await.unwrap();
    assert_eq!(upstreams.breakers()[0].1, BreakerState::Closed);
}

#[tokio::test]
async fn a_service_without_instances_counts_as_open_until_one_comes() {
    let discovery = Arc::new(Changing::new());
    let upstreams = Upstreams::new("tests", discovery.clone(), PolicyTable::default(), 7);
    let upstream = upstreams.upstream(&name("orders"), None);
    discovery.set(&[]);
    for _ in 0..5 {
        assert!(matches!(upstream.call(get()).await, Err(CallError::NoInstance)));
    }
    assert_eq!(upstreams.breakers()[0].1, BreakerState::Open);
    assert!(matches!(upstream.call(get()).await, Err(CallError::BreakerOpen { .. })), "and answers so");
    let origin = Origin::start(|_| Do::Send(ok(""))).await;
    discovery.set(&[origin.address]);
    while upstream.view().instances.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(upstreams.breakers()[0].1, BreakerState::Closed, "without waiting for a probe");
    upstream.call(get()).await.unwrap();
}

#[tokio::test]
async fn a_full_bulkhead_refuses_before_anything_is_sent() {
    let origin = Origin::start(|_| Do::Hang).await;
    let bulkhead = BulkheadPolicy { max: 1, queue: 0, wait: Duration::from_millis(1) };
    let upstream = orders(&[origin.address], Policy { bulkhead, ..policy(5000) }).upstream(&name("orders"), None);
    let first = tokio::spawn({
        let upstream = upstream.clone();
        async move { upstream.call(get()).await }
    });
    while origin.count() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(upstream.call(get()).await, Err(CallError::BulkheadFull)));
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(upstream.view().busy, 0);
}

#[tokio::test]
async fn instances_come_and_go() {
    let (one, two) = (Origin::start(|_| Do::Send(ok("1"))).await, Origin::start(|_| Do::Send(ok("2"))).await);
    let discovery = Arc::new(Changing::new());
    let upstreams = Upstreams::new("tests", discovery.clone(), PolicyTable::new(policy(2000)), 7);
    let upstream = upstreams.upstream(&name("orders"), None);
    assert!(matches!(upstream.call(get()).await, Err(CallError::NoInstance)));
    for (now, body) in [(&one, "1"), (&two, "2")] {
        discovery.set(&[now.address]);
        while upstream.view().instances.first().map(|i| i.address) != Some(now.address) {
            tokio::task::yield_now().await;
        }
        assert_eq!(upstream.call(get()).await.unwrap().body, body);
    }
    let longer = Policy { name: "longer".into(), ..policy(3000) };
    upstreams.set_policies(PolicyTable::new(longer));
    assert_eq!(upstream.policy().name, "longer");
}

#[tokio::test]
async fn a_refusal_before_the_end_of_a_long_body_is_understood() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1000]).await;
        stream.write_all(&status(413)).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = vec![0; 1 << 16];
        while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    });
    let response = direct(address, CallRequest::new("POST", "/").body(vec![0; 1 << 20])).await.unwrap();
    assert_eq!(response.status, 413);
}
