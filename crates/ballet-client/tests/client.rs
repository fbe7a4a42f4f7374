//! The client against a server that answers what it is told, one connection for each answer.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as they do")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_client::{Client, ClientError, RemoteDiscovery, RemoteEvents, RemoteWorkflows, Retries};
use ballet_core::{
    Classify, Deadline, Discovery, Event, Events, EventsError, Retry, Start, TraceContext, Workflows, WorkflowsError,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers with these in turn (`""` hangs up, `"…"` stays silent); then remembers what came.
async fn server(answers: &'static [&'static str]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 64 << 10];
            let mut length = 0;
            while !complete(&head[..length]) {
                length += stream.read(&mut head[length..]).await.unwrap();
            }
            log.lock().unwrap().push(String::from_utf8_lossy(&head[..length]).into_owned());
            if *answer == "…" {
                tokio::spawn(async move { stream.read(&mut [0]).await });
                continue;
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, seen)
}

fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const GONE: &str = "";

#[tokio::test]
async fn only_what_may_come_twice_is_sent_again() {
    use Retries::{ConnectOnly, Idempotent, None};
    // Method, with a key, retries, answers, status at the end (0: an error), requests sent.
    type Case = (&'static str, bool, Retries, &'static [&'static str], u16, usize);
    let table: &[Case] = &[
        ("GET", false, Idempotent, &[BUSY, GONE, OK], 200, 3),
        ("POST", true, Idempotent, &[GONE, BUSY, OK], 200, 3),
        ("POST", false, Idempotent, &[BUSY, OK], 503, 1),
        ("POST", false, Idempotent, &[GONE, OK], 0, 1),
        ("GET", false, ConnectOnly, &[BUSY, OK], 503, 1),
        ("GET", false, ConnectOnly, &[GONE, OK], 0, 1),
        ("GET", false, None, &[BUSY, OK], 503, 1),
        ("GET", false, Idempotent, &[BUSY, BUSY, BUSY, BUSY, OK], 503, 4),
    ];
    for (method, key, retries, answers, status, sent) in table {
        let (url, seen) = server(answers).await;
        let mut request = Client::with("tests", *retries).request(method.parse().unwrap(), url);
        if *key {
            request = request.idempotency_key("k");
        }
        let result = request.send().await;
        let got = result.as_ref().map_or(0, |response| response.status.as_u16());
        let case = format!("{method} {key} {retries:?} {answers:?}: {result:?}");
        assert_eq!((got, seen.lock().unwrap().len()), (*status, *sent), "{case}");
        assert!(result.err().is_none_or(|error| error.retry() == Retry::IfIdempotent), "{case}");
    }
}

#[tokio::test]
async fn errors_say_whether_anything_was_sent() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::with("tests", Retries::None);
    let nobody = client.get(format!("http://{port}/")).send().await.unwrap_err();
    assert!(matches!(nobody, ClientError::Connect { .. }), "{nobody:?}");
    assert_eq!(nobody.retry(), Retry::Safe(None));

    let (url, _) = server(&["…"]).await;
    let silent = client.get(url).timeout(Duration::from_millis(100)).send().await.unwrap_err();
    assert!(matches!(silent, ClientError::TimedOut { .. }), "{silent:?}");
    assert_eq!((silent.retry(), silent.code().0), (Retry::IfIdempotent, "CL004"));
    for url in ["ftp://127.0.0.1/", "nonsense", "https://127.0.0.1/"] {
        let bad = client.get(url).send().await.unwrap_err();
        assert!(matches!(bad, ClientError::Url { .. }), "{bad:?}");
    }
}

#[tokio::test]
async fn trace_deadline_and_caller_go_along() {
    let (url, seen) = server(&[OK]).await;
    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let deadline = Some(Deadline::after(Duration::from_millis(1_500)));
    Client::new("orders").get(url).trace(trace).deadline(deadline).send().await.unwrap();
    let request = seen.lock().unwrap()[0].to_lowercase();
    assert!(request.contains("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{request}");
    assert!(!request.contains("-00f067aa0ba902b7-"), "with a span of its own: {request}");
    assert!(request.contains("ballet-caller: orders"), "{request}");
    let left =
        request.split("ballet-timeout-ms: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse::<u64>().ok());
    assert!(left.is_some_and(|left| left <= 1_500), "{request}");
}

#[tokio::test]
async fn the_platforms_errors_come_back_as_what_they_were() {
    let client = Client::with("tests", Retries::None);
    let problem = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 83\r\n\r\n{\"title\":\"unknown\",\"status\":404,\"code\":\"EV010\",\"detail\":\"no topic named `a.topic`\"}";
    let (url, _) = server(Box::leak(Box::new([problem]))).await;
    let event = Event::new("a.topic".parse().unwrap(), "tests", json!({}));
    let error = RemoteEvents::new(client.clone(), &url).publish(vec![event.clone()]).await.unwrap_err();
    assert!(matches!(&error, EventsError::UnknownTopic(topic) if topic.as_str() == "a.topic"), "{error:?}");

    let (start, name) = (Start::new("w".parse().unwrap(), json!({})), "orders".parse().unwrap());
    let gone = "http://127.0.0.1:1";
    assert!(matches!(
        RemoteEvents::new(client.clone(), gone).publish(vec![event]).await,
        Err(EventsError::Unavailable(_))
    ));
    let remote = RemoteWorkflows::new(client.clone(), gone);
    assert!(matches!(remote.start(start).await, Err(WorkflowsError::Unavailable(_))));
    assert!(RemoteDiscovery::new(client, gone).resolve(&name).await.is_err());

    let problem = "HTTP/1.1 409 Conflict\r\nconnection: close\r\ncontent-length: 69\r\n\r\n{\"title\":\"conflict\",\"status\":409,\"code\":\"WF004\",\"detail\":\"has ended\"}";
    let (url, _) = server(Box::leak(Box::new([problem]))).await;
    let remote = RemoteWorkflows::new(Client::with("tests", Retries::None), &url);
    let error = remote.terminate(&"x-1".parse().unwrap(), "why not").await.unwrap_err();
    assert!(matches!(&error, WorkflowsError::Conflict(text) if text == "has ended"), "{error:?}");
}
