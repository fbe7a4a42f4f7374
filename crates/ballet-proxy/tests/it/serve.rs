//! The server over real sockets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ballet_core::{Fallback, Policy};
use ballet_proxy::{Answer, BreakerState, Collect, Edits, End, Paths, ServeConfig, Verdict};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::rig::{Do, Gate, Line, Origin, echo, nobody, ok, status};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn fixed(bytes: &'static str) -> impl Fn(&crate::rig::Seen) -> Do + Send + Sync {
    move |_| Do::Send(bytes.into())
}

#[tokio::test]
async fn a_request_goes_upstream_as_it_came_but_for_what_is_ours() {
    let origin = Origin::start(fixed(
        "HTTP/1.1 201 Made\r\nX-A: 1\r\nServer: s\r\nKeep-Alive: 5\r\nContent-Length: 2\r\n\r\nhi",
    ))
    .await;
    let edits = Edits::default().remove("cookie").set("X-Route", "orders").unwrap();
    let answer_edits = Arc::new(Edits::default().remove("server").set("x-gate", "1").unwrap());
    let edits = Arc::new(edits);
    let gate = Gate::with(&[origin.address], Policy::default(), ServeConfig::default(), move |head, _, mut forward| {
        assert_eq!(
            (head.method(), head.path(), head.query(), head.host()),
            ("POST", "/a/c", Some("q=%2F"), "a.test:80")
        );
        assert_eq!(head.header("x-b"), Some("2"));
        forward.request = Some(edits.clone());
        forward.response = Some(answer_edits.clone());
        forward.set.push(("x-user".into(), "7".into()));
        forward.set_response.push(("x-limit".into(), "9".into()));
        forward.into()
    });
    let mut client = gate.client().await;
    client
        .send(
            b"POST /a/./%63?q=%2F HTTP/1.1\r\nHost: a.test:80\r\nX-B: 2\r\nCookie: c\r\nX-User: evil\r\nX-Forwarded-For: 6.6.6.6\r\n\
              X-Forwarded-Proto: https\r\nForwarded: for=x\r\nballet-caller: evil\r\nballet-timeout-ms: 500\r\n\
              traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nContent-Length: 3\r\n\r\nabc",
        )
        .await;
    let (head, body) = client.answer().await.unwrap();
    assert_eq!(head, "HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: 2\r\nx-gate: 1\r\nx-limit: 9\r\n\r\n");
    assert_eq!(body, b"hi");
    let seen = origin.seen().remove(0);
    let span = seen.head.split("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-").nth(1).expect("the same trace");
    let span = &span[..16];
    assert_ne!(span, "00f067aa0ba902b7", "a span of its own");
    let left = seen.head.split("ballet-timeout-ms:").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
    assert!((1..=500).contains(&left.trim().parse::<u64>().unwrap()), "{left}");
    assert_eq!(
        seen.head,
        format!(
            "POST /a/c?q=%2F HTTP/1.1\r\nHost: a.test:80\r\nX-B: 2\r\nContent-Length: 3\r\nX-Route: orders\r\nx-user: 7\r\n\
             x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: a.test:80\r\n\
             traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01\r\nballet-caller: tests\r\nballet-timeout-ms:{left}\r\n\r\n"
        )
    );
    assert_eq!(seen.body, b"abc");
    let line = Line { path: "/a/c".into(), status: 201, received: 3, sent: 2, attempts: 1, end: End::Whole };
    assert_eq!(gate.lines(1).await, [line]);
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let origin = Origin::start(fixed("HTTP/1.1 204 No Content\r\n\r\n")).await;
    let config = ServeConfig {
        trusted: vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        ..ServeConfig::default()
    };
    let gate = Gate::with(&[origin.address], Policy::default(), config, |_, context, forward| {
        assert_eq!((context.client, context.secure), ("6.6.6.6".parse().unwrap(), true));
        forward.into()
    });
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 6.6.6.6, 10.0.0.9\r\nX-Forwarded-Proto: https\r\n\r\n";
    assert_eq!(gate.client().await.ask(request).await.0, 204);
    let head = origin.seen().remove(0).head;
    assert!(head.contains("x-forwarded-for: 1.1.1.1, 6.6.6.6, 10.0.0.9, 127.0.0.1\r\n"), "{head}");
    assert!(head.contains("X-Forwarded-Proto: https\r\n") && !head.contains("x-forwarded-proto: http\r\n"), "{head}");
}

#[tokio::test]
async fn connections_on_both_sides_are_used_again() {
    let origin = Origin::start(|_| Do::Send(ok("x"))).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    for _ in 0..50 {
        assert_eq!(client.ask(GET).await, (200, b"x".to_vec()));
    }
    assert_eq!((origin.connections.load(Ordering::SeqCst), origin.count(), gate.server.connections()), (1, 50, 1));
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_no_request() {
    let origin = Origin::start(|_| Do::SendAndClose(ok(""))).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    for _ in 0..10 {
        assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await.0, 200);
        assert_eq!(client.ask(GET).await.0, 200);
    }
    assert_eq!((origin.count(), gate.upstreams.views()[0].failures), (20, 0));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let origin = Origin::start(|seen| Do::Send(ok(seen.head.split(' ').nth(1).unwrap()))).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    let requests: String =
        (0..20).map(|n| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /")).collect();
    client.send(requests.as_bytes()).await;
    for n in 0..20 {
        assert_eq!(client.answer().await.unwrap().1, format!("/{n}").into_bytes());
    }
    assert!(origin.seen().iter().all(|seen| seen.body == b"GET /"));
}

#[tokio::test]
async fn large_bodies_stream_both_ways_at_once() {
    const SIZE: usize = 5 << 20;
    let gate = Gate::to(&[echo().await]).await;
    let data: Vec<u8> = (0..SIZE).map(|n| (n * 31 % 251) as u8).collect();
    for chunked in [false, true] {
        let client = gate.client().await;
        let (mut read, mut write) = client.stream.into_split();
        let body = data.clone();
        let writer = tokio::spawn(async move {
            let framing = if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {SIZE}") };
            write.write_all(format!("PUT /big HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").as_bytes()).await.unwrap();
            for part in body.chunks(70_001) {
                if chunked {
                    write.write_all(format!("{:x};ext=1\r\n", part.len()).as_bytes()).await.unwrap();
                }
                write.write_all(part).await.unwrap();
                if chunked {
                    write.write_all(b"\r\n").await.unwrap();
                }
            }
            if chunked {
                write.write_all(b"0\r\n\r\n").await.unwrap();
            }
            write
        });
        // A client that reads slowly: what it does not take must wait, not pile up or get lost.
        let mut answer = vec![];
        let mut taken = 0;
        loop {
            let n = read.read_buf(&mut answer).await.unwrap();
            assert!(n > 0, "the answer broke off");
            taken += n;
            if taken % 7 == 0 {
                tokio::task::yield_now().await;
            }
            let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0);
            if !chunked && answer.len() >= at + 4 + SIZE || chunked && answer.ends_with(b"\r\n0\r\n\r\n") {
                break;
            }
        }
        let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let body = if chunked { dechunk(&answer[at..]) } else { answer[at..].to_vec() };
        assert!(body == data, "chunked: {chunked}, {} bytes", body.len());
        drop(writer.await.unwrap());
    }
    let lines = gate.lines(2).await;
    assert!(
        lines.iter().all(|line| line.received == SIZE as u64 && line.sent == SIZE as u64 && line.end == End::Whole),
        "{lines:?}"
    );
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = vec![];
    loop {
        let at = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        data.extend_from_slice(&bytes[at + 2..at + 2 + size]);
        assert_eq!(&bytes[at + 2 + size..][..2], b"\r\n");
        bytes = &bytes[at + 4 + size..];
        if size == 0 {
            return data;
        }
    }
}

#[tokio::test]
async fn answers_without_length_end_where_they_should() {
    let long = "y".repeat(50_000);
    let text = format!("HTTP/1.0 200 OK\r\n\r\n{long}");
    let origin = Origin::start(move |_| Do::SendAndClose(text.clone().into_bytes())).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    for _ in 0..2 {
        let (head, body) = {
            client.send(GET.as_bytes()).await;
            client.answer().await.unwrap()
        };
        assert!(head.contains("transfer-encoding: chunked") && body == long.as_bytes(), "{head}");
    }
    let old = gate.say(b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.contains("connection: close\r\n\r\ny") && old.ends_with("yyy") && !old.contains("chunked"));
}

#[tokio::test]
async fn http_1_0_clients_are_served() {
    let origin =
        Origin::start(fixed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")).await;
    let gate = Gate::to(&[origin.address]).await;
    assert_eq!(gate.say(b"GET / HTTP/1.0\r\n\r\n").await, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
    assert!(origin.seen()[0].head.contains("HTTP/1.1\r\nhost: orders\r\n"), "a host is given");
    let origin = Origin::start(|_| Do::Send(ok("abc"))).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    for _ in 0..2 {
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert!(client.answer().await.unwrap().0.contains("connection: keep-alive"));
    }
}

#[tokio::test]
async fn answers_without_body_have_none() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    ] {
        let origin = Origin::start(fixed(answer)).await;
        let gate = Gate::to(&[origin.address]).await;
        let said = gate.say(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").repeat(2).as_bytes()).await;
        assert_eq!(said.matches("HTTP/1.1 ").count(), 2, "{said}");
        assert!(!said.contains("HTTP/1.1 10"), "{said}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    for (answer, old) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", true),
    ] {
        let origin = Origin::start(move |_| Do::SendAndClose(answer.into())).await;
        let gate = Gate::to(&[origin.address]).await;
        let mut client = gate.client().await;
        client.send(if old { b"GET / HTTP/1.0\r\n\r\n" } else { GET.as_bytes() }).await;
        let mut got = vec![];
        let ended = client.stream.read_to_end(&mut got).await;
        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(!got.ends_with("\r\n0\r\n\r\n"), "{got}");
        assert_eq!(ended.is_err(), old, "only a reset can tell an old client: {got}");
        assert_eq!(gate.lines(1).await[0].end, End::Cut);
        assert_eq!(gate.upstreams.views()[0].failures, 1);
    }
}

#[tokio::test]
async fn replayable_requests_go_to_another_instance() {
    for (request, bad, answered) in [
        (GET, Do::Reset, true),
        (GET, Do::SendAndClose("HTTP/1.1 20".into()), true),
        (GET, Do::Send(status(503)), true),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", Do::Reset, true),
        ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Do::Reset, true),
        ("POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 3\r\n\r\nabc", Do::Reset, true),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", Do::Reset, false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", Do::Send(status(503)), false),
    ] {
        let bad = Origin::start(move |_| bad.clone()).await;
        let good = Origin::start(|_| Do::Send(ok("good"))).await;
        let addresses = [bad.address, good.address];
        let gate = Gate::with(&addresses, Policy::default(), ServeConfig::default(), |head, _, mut forward| {
            forward.replay = head.header("idempotency-key").is_some();
            forward.into()
        });
        let mut failed = 0;
        for _ in 0..6 {
            failed += usize::from(gate.client().await.ask(request).await.0 != 200);
        }
        let expected = if answered { 0 } else { bad.count() };
        assert_eq!(failed, expected, "{request}");
        assert!(good.seen().iter().all(|seen| seen.body.is_empty() || seen.body == b"abc"));
    }
}

#[tokio::test]
async fn a_stopped_service_gets_the_fallback_and_heals() {
    let address = nobody().await;
    let fallback = Fallback { status: 503, title: "Payment service is unavailable.".into() };
    let policy = Policy { fallback: Some(fallback), ..Policy::default() };
    let gate = Gate::with(&[address], policy, ServeConfig::default(), |_, _, forward| forward.into());
    let mut client = gate.client().await;
    for n in 0..8 {
        let (status, body) = client.ask("POST / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let body = String::from_utf8(body).unwrap();
        let code = if n == 0 { "PX002" } else { "PX00" };
        assert!(status == 503 && body.contains("Payment service is unavailable.") && body.contains(code), "{body}");
    }
    assert_eq!(gate.upstreams.breakers()[0].1, BreakerState::Open);
    let _origin = Origin::on(TcpListener::bind(address).await.unwrap(), |_| Do::Send(ok("")));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    assert_eq!(gate.client().await.ask(GET).await.0, 200);
    assert_eq!(gate.upstreams.breakers()[0].1, BreakerState::Closed);
}

#[tokio::test]
async fn a_slow_service_gets_504_and_no_retry() {
    let origin = Origin::start(|_| Do::Hang).await;
    let policy = Policy { timeout: millis(80), ..Policy::default() };
    let gate = Gate::with(&[origin.address], policy, ServeConfig::default(), |_, _, forward| forward.into());
    let mut client = gate.client().await;
    assert_eq!(client.ask(GET).await.0, 504);
    assert_eq!(origin.count(), 1);
    // An idempotent request whose body still comes in is not given up before it is whole.
    let gate = Gate::with(
        &[echo().await],
        Policy { timeout: millis(80), ..Policy::default() },
        ServeConfig::default(),
        |_, _, f| f.into(),
    );
    let mut client = gate.client().await;
    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc").await;
    assert!(client.answer_head().await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(millis(160)).await;
    client.send(b"def").await;
    assert_eq!(client.rest(6).await, b"abcdef");
}

#[tokio::test]
async fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let gate = Gate::to(&[echo().await]).await;
    let mut client = gate.client().await;
    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    assert_eq!(client.answer_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send(b"abc").await;
    assert_eq!(client.answer().await.unwrap().1, b"abc");
    let gate = Gate::with(&[], Policy::default(), ServeConfig::default(), |_, _, _| Answer::new(401).into());
    let mut client = gate.client().await;
    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    let (head, _) = client.answer().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 401") && head.contains("connection: close"), "{head}");
}

#[tokio::test]
async fn an_early_answer_ends_an_upload() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1000]).await;
        stream.write_all(&status(413)).await.unwrap();
        std::future::pending::<()>().await;
    });
    let gate = Gate::to(&[address]).await;
    let mut client = gate.client().await;
    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await;
    client.send(&vec![b'x'; 100_000]).await;
    assert!(client.answer().await.unwrap().0.starts_with("HTTP/1.1 413"));
    assert!(client.is_closed().await, "the next request could not be found");
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let origin = Origin::start(|_| Do::Send(ok(""))).await;
    let gate = Gate::with(&[origin.address], Policy::default(), ServeConfig::default(), |_, _, mut forward| {
        forward.max_body = 10;
        forward.into()
    });
    for request in [
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n",
    ] {
        let said = gate.say(request.as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 413") && said.contains("connection: close"), "{said}");
    }
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let config = ServeConfig { idle: millis(60), head: millis(60), body: millis(60), ..ServeConfig::default() };
    let gate = Gate::with(&[echo().await], Policy::default(), config, |_, _, forward| forward.into());
    assert_eq!(gate.client().await.all().await, "", "an idle connection is closed without a word");
    assert!(gate.client().await.is_closed().await);
    for drip in ["GET / HT", "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na"] {
        let mut client = gate.client().await;
        client.send(drip.as_bytes()).await;
        let said = client.all().await;
        // What the service has answered already cannot be taken back; then the connection breaks off.
        assert!(said.starts_with("HTTP/1.1 408") || !said.ends_with("0\r\n\r\n"), "{said}");
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn handlers_may_answer_wait_and_read_bodies() {
    let waits = Arc::new(AtomicUsize::new(0));
    let counter = waits.clone();
    let origin = Origin::start(|seen| Do::Send(ok(&String::from_utf8_lossy(&seen.body)))).await;
    let gate = Gate::with(&[origin.address], Policy::default(), ServeConfig::default(), move |head, _, forward| {
        match head.path() {
            "/answer" => Answer::new(200).json(&serde_json::json!({"a": 1})).into(),
            "/later" => Verdict::Later(Box::pin(async { Answer::new(202).into() })),
            "/wait" if counter.fetch_add(1, Ordering::SeqCst) < 2 => Verdict::Wait(Box::pin(tokio::task::yield_now())),
            "/wait" => Answer::new(204).into(),
            "/for-ever" => Verdict::Wait(Box::pin(async {})),
            "/buffer" => Verdict::Buffer(Collect {
                max: 100_000,
                then: Box::new(|body| Box::pin(async move { Answer::new(200).body(body).into() })),
            }),
            "/turn" => Verdict::Buffer(Collect {
                max: 100_000,
                then: Box::new(|_| Box::pin(async move { Verdict::Forward(forward) })),
            }),
            "/stream" | "/broken" => {
                let broken = head.path() == "/broken";
                let (pieces, rest) = mpsc::channel(1);
                tokio::spawn(async move {
                    for piece in ["data: 1\n\n", "", "data: 2\n\n"] {
                        pieces.send(Ok(Bytes::from_static(piece.as_bytes()))).await.unwrap();
                    }
                    if broken {
                        pieces.send(Err(io::Error::other("gone"))).await.unwrap();
                    }
                });
                Answer::new(200).header("content-type", "text/event-stream").stream(rest).into()
            }
            _ => Answer::new(404).into(),
        }
    });
    let mut client = gate.client().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.ask(&get("/answer")).await, (200, b"{\"a\":1}".to_vec()));
    assert_eq!(client.ask(&get("/later")).await.0, 202);
    assert_eq!(client.ask(&get("/wait")).await.0, 204);
    assert_eq!(waits.load(Ordering::SeqCst), 3);
    assert_eq!(client.ask(&get("/for-ever")).await.0, 500);
    assert_eq!(client.ask(&get("/stream")).await, (200, b"data: 1\n\ndata: 2\n\n".to_vec()));
    let big = "z".repeat(50_000);
    for path in ["/buffer", "/turn"] {
        for body in ["", "abc", &big] {
            let post = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            assert_eq!(client.ask(&post).await, (200, body.as_bytes().to_vec()), "{path}");
            let post =
                format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
            assert_eq!(client.ask(&post).await, (200, b"abc".to_vec()), "{path}");
        }
    }
    assert_eq!(client.ask("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await.0, 404);
    assert_eq!(client.ask(&get("/answer")).await.0, 200, "the unread body was dropped");
    let mut head = gate.client().await;
    assert!(
        !String::from_utf8_lossy(&{
            head.send(b"HEAD /answer HTTP/1.1\r\nHost: a\r\n\r\n").await;
            head.all().await.into_bytes()
        })
        .contains("{\"a\"")
    );
    let broken = gate.say(get("/broken").as_bytes()).await;
    assert!(broken.contains("data: 2") && !broken.ends_with("0\r\n\r\n"), "{broken}");
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_only_after_101() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let premature = Arc::new(AtomicBool::new(false));
    let flag = premature.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![];
            let (head, _) = crate::rig::read_message(&mut stream, &mut buffer).await.unwrap();
            if !head.contains("upgrade: websocket") {
                stream.write_all(&status(400)).await.unwrap();
                continue;
            }
            flag.store(!buffer.is_empty(), Ordering::SeqCst);
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nearly";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        }
    });
    let gate = Gate::with(&[address], Policy::default(), ServeConfig::default(), |head, _, mut forward| {
        forward.websocket = head.path() == "/ws";
        forward.into()
    });
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
    };
    assert_eq!(gate.client().await.ask(&ask("/other")).await.0, 400, "only where the route allows it");
    let mut client = gate.client().await;
    client.send(format!("{}hello", ask("/ws")).as_bytes()).await;
    let (head, _) = client.answer().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("Upgrade: websocket"), "{head}");
    assert_eq!(client.rest(10).await, b"earlyhello");
    client.send(b"again").await;
    assert_eq!(client.rest(5).await, b"again");
    assert!(!premature.load(Ordering::SeqCst), "nothing goes through before the 101");
    assert_eq!(gate.upstreams.views()[0].busy, 0, "a tunnel takes no place");
    client.stream.shutdown().await.unwrap();
    assert!(client.is_closed().await);
    assert_eq!(gate.lines(2).await[1].end, End::Tunnel);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let origin = Origin::start(|_| Do::Hang).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    client.send(GET.as_bytes()).await;
    while origin.count() == 0 {
        tokio::task::yield_now().await;
    }
    drop(client);
    let line = gate.lines(1).await.remove(0);
    assert_eq!((line.status, line.end), (499, End::ClientLeft));
    assert_eq!(gate.upstreams.views()[0].failures, 0, "that was not the service's fault");
}

#[tokio::test]
async fn draining_under_load_loses_no_request() {
    let origin = Origin::start(|_| Do::Send(ok("x"))).await;
    let gate = Gate::to(&[origin.address]).await;
    let started = Arc::new(AtomicUsize::new(0));
    let mut clients = vec![];
    for _ in 0..20 {
        let (mut client, started) = (gate.client().await, started.clone());
        clients.push(tokio::spawn(async move {
            for _ in 0.. {
                started.fetch_add(1, Ordering::SeqCst);
                client.send(GET.as_bytes()).await;
                let (head, body) = client.answer().await.expect("an answer to every request");
                assert!(head.starts_with("HTTP/1.1 200") && body == b"x");
                if head.contains("connection: close") {
                    return;
                }
            }
        }));
    }
    let _idle = gate.client().await;
    while started.load(Ordering::SeqCst) < 500 {
        tokio::task::yield_now().await;
    }
    let address = gate.server.address();
    assert!(gate.server.shutdown(Duration::from_secs(5)).await, "all was done in time");
    for client in clients {
        client.await.unwrap();
    }
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert_eq!(origin.count(), started.load(Ordering::SeqCst));
}

#[tokio::test]
async fn what_is_not_done_in_time_is_cut() {
    let origin = Origin::start(|_| Do::Hang).await;
    let gate = Gate::to(&[origin.address]).await;
    let mut client = gate.client().await;
    client.send(GET.as_bytes()).await;
    while origin.count() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!gate.server.shutdown(millis(50)).await);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let config = ServeConfig { max_connections: 1, ..ServeConfig::default() };
    let gate = Gate::with(&[], Policy::default(), config, |_, _, _| Answer::new(204).into());
    let mut first = gate.client().await;
    assert_eq!(first.ask(GET).await.0, 204);
    let mut second = gate.client().await;
    second.send(GET.as_bytes()).await;
    assert_eq!(second.all().await, "");
    drop(first);
    assert!(second.answer().await.unwrap().0.starts_with("HTTP/1.1 204"));
}

#[tokio::test]
async fn a_sidecar_gets_paths_as_they_are() {
    let config = ServeConfig { paths: Paths::AsIs, forwarded: false, ..ServeConfig::default() };
    let origin = Origin::start(|_| Do::Send(ok(""))).await;
    let gate = Gate::with(&[origin.address], Policy::default(), config, |_, _, forward| forward.into());
    let request = "GET /v1.0/state/s/a%2Fb;c//d HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n";
    assert_eq!(gate.client().await.ask(request).await.0, 200);
    let head = origin.seen().remove(0).head;
    assert!(head.starts_with("GET /v1.0/state/s/a%2Fb;c//d HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("X-Forwarded-For: 1.1.1.1\r\n") && !head.contains("x-forwarded-host"), "{head}");
}
