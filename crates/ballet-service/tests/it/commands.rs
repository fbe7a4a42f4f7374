//! Commands: what is kept under a key, what is not, tombstones, and bad bodies.

use std::time::Duration;

use serde_json::json;

use crate::rig::{Gate, Rig, text};

#[tokio::test]
async fn the_same_key_gives_the_first_answer_again() {
    let rig = Rig::start().await;
    let send = |key: &str, body| rig.post("/things", &body).idempotency_key(key).send();
    let first = send("k1", json!({"name": "cup"})).await.unwrap();
    let again = send("k1", json!({"name": "cup"})).await.unwrap();
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    assert_eq!(first.body, again.body);
    assert_eq!(first.header("location"), again.header("location"));
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), (None, Some("true")));

    let other = send("k1", json!({"name": "saucer"})).await.unwrap();
    assert_eq!((other.status.as_u16(), other.problem().code.as_deref()), (422, Some("CH010")));
    assert_eq!(send("k2", json!({"name": "cup"})).await.unwrap().status, 201);
    assert_eq!(rig.count("cup").await, 2);
    for bad in ["a/b", " ", "ü"] {
        let refused = rig.post("/things", &json!({"name": "x"})).header("idempotency-key", bad).send().await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.problem().code.as_deref()), (400, Some("CH009")), "{bad}");
    }
    // Another service's key is another key.
    let request = rig.post("/things", &json!({"name": "cup"})).header("ballet-caller", "orders").idempotency_key("k1");
    assert_eq!(request.send().await.unwrap().header("idempotency-replayed"), None);
}

#[tokio::test]
async fn what_is_kept_and_what_stays_of_each_ending() {
    let rig = Rig::start().await;
    // How it ends, the status, whether the answer is kept, rows after two requests with one key.
    for (how, status, replayed, rows) in [
        ("fine", 204, true, 1),
        ("refused", 409, true, 0),
        ("declined", 402, true, 1),
        ("flaky", 503, false, 2),
        ("broken", 500, false, 0),
        ("panic", 500, false, 0),
        ("sql", 500, false, 0),
    ] {
        let path = format!("/end/{how}");
        let send = || rig.post(&path, &json!({})).idempotency_key(how).send();
        let (first, second) = (send().await.unwrap(), send().await.unwrap());
        assert_eq!((first.status.as_u16(), second.status.as_u16()), (status, status), "{how}: {}", text(&first));
        assert_eq!(second.header("idempotency-replayed").is_some(), replayed, "{how}");
        assert_eq!(rig.count(how).await, rows, "{how}");
        if status == 500 {
            let problem = first.problem();
            assert_eq!((problem.code.as_deref(), problem.detail), (Some("CH015"), None), "{how}");
            assert_eq!(problem.trace_id.unwrap().len(), 32, "{how}");
        }
    }
    // A bodyless POST needs no Content-Type, and no key either.
    let bare = ballet_client::Client::new("x").post(rig.url("/end/fine")).send().await.unwrap();
    assert_eq!(bare.status, 204);
}

#[tokio::test]
async fn eight_at_once_do_it_once() {
    let rig = Rig::start().await;
    let calls: Vec<_> = (0..8)
        .map(|_| tokio::spawn(rig.post("/things", &json!({"name": "once"})).idempotency_key("k").send()))
        .collect();
    let mut bodies = vec![];
    for call in calls {
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer.status, 201);
        bodies.push(answer.body);
    }
    bodies.dedup();
    assert_eq!((bodies.len(), rig.count("once").await), (1, 1));
}

#[tokio::test]
async fn a_second_waits_for_the_first_then_is_told_to_come_again() {
    let rig = Rig::start().await;
    let request = || rig.post("/slow", &json!({"name": "slow"})).idempotency_key("k");
    let first = tokio::spawn(request().send());
    // The gate is shut, so the first is under way for as long as we like.
    let early = loop {
        let early = request().timeout(Duration::from_millis(500)).send().await.unwrap();
        if early.status == 425 {
            break early;
        }
    };
    assert_eq!((early.problem().code.as_deref(), early.header("retry-after")), (Some("CH011"), Some("1")));
    let waiting = tokio::spawn(request().send());
    rig.service.context().state::<Gate>().0.add_permits(1);
    let (first, second) = (first.await.unwrap().unwrap(), waiting.await.unwrap().unwrap());
    assert_eq!((first.status.as_u16(), first.body.clone()), (200, second.body.clone()));
    let replayed = [&first, &second].map(|answer| answer.header("idempotency-replayed").is_some());
    assert_eq!(replayed.iter().filter(|replayed| **replayed).count(), 1);
    assert_eq!(rig.count("slow").await, 1);
}

#[tokio::test]
async fn a_step_is_done_once_and_its_undo_leaves_a_tombstone() {
    let rig = Rig::start().await;
    let body = json!({"orderId": "7"});
    let key = "checkout-7/reserve/0";
    let undo = "checkout-7/reserve/0/undo";

    let done = rig.step("POST", "/reservations", key, &body).await;
    let again = rig.step("POST", "/reservations", key, &body).await;
    assert_eq!((done.status.as_u16(), again.status.as_u16(), rig.count("held").await), (201, 201, 1));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));

    let undone = rig.step("DELETE", "/reservations/7", undo, &json!({"key": key})).await;
    assert_eq!((undone.status.as_u16(), text(&undone), rig.count("held").await), (200, r#"{"released":1}"#, 0));
    let undone = rig.step("DELETE", "/reservations/7", undo, &json!({"key": key})).await;
    assert_eq!((undone.status.as_u16(), text(&undone)), (200, r#"{"released":1}"#));
    let late = rig.step("POST", "/reservations", key, &body).await;
    assert_eq!(
        (late.status.as_u16(), late.problem().code.as_deref(), rig.count("held").await),
        (410, Some("CH012"), 0)
    );

    // The undo of what never came succeeds, and what comes behind it does nothing.
    let never = rig.step("DELETE", "/reservations/8", "checkout-8/reserve/0/undo", &json!({})).await;
    assert_eq!((never.status.as_u16(), text(&never)), (200, "{}"));
    let late = rig.step("POST", "/reservations", "checkout-8/reserve/0", &json!({"orderId": "8"})).await;
    assert_eq!((late.status.as_u16(), rig.count("held").await), (410, 0));

    // Nobody else may use such keys or endpoints.
    let outside = rig.post("/reservations", &body).send().await.unwrap();
    assert_eq!(outside.status, 404);
}

#[tokio::test]
async fn an_undo_that_did_not_work_is_done_when_it_comes_again() {
    let rig = Rig::start().await;
    let cases = [("refused", 409), ("declined", 402), ("flaky", 503), ("broken", 500)];
    let keys = |how: &str| (format!("checkout-{how}/charge/0"), format!("checkout-{how}/charge/0/undo"));
    for (n, (how, status)) in cases.into_iter().enumerate() {
        let (key, undo) = keys(how);
        let body = json!({"orderId": how});
        let charge = || rig.step("POST", "/charges", &key, &body);
        assert_eq!(charge().await.status, 201, "{how}");
        let path = format!("/refunds/{how}");
        for _ in 0..2 {
            let failed = rig.step("POST", &path, &undo, &json!({})).await;
            assert_eq!(failed.status, status, "{how}: {}", text(&failed));
            assert_eq!(failed.header("idempotency-replayed"), None, "{how}: a failed undo is no answer to keep");
        }
        // The step is still done: a late copy of it changes nothing.
        let late = charge().await;
        assert_eq!((late.status.as_u16(), late.header("idempotency-replayed")), (201, Some("true")), "{how}");
        assert_eq!(rig.count("charged").await, n as i64 + 1, "{how}");
    }
    rig.post("/things", &json!({"name": "repaired"})).send().await.unwrap();
    for (how, _) in cases {
        let (key, undo) = keys(how);
        for _ in 0..2 {
            let undone = rig.step("POST", &format!("/refunds/{how}"), &undo, &json!({})).await;
            assert_eq!((undone.status.as_u16(), text(&undone)), (200, r#"{"refunded":1}"#), "{how}");
        }
        assert_eq!(rig.step("POST", "/charges", &key, &json!({"orderId": how})).await.status, 410, "{how}");
    }
    assert_eq!(rig.count("charged").await, 0);
}

#[tokio::test]
async fn a_long_execution_id_can_be_done_and_undone() {
    let rig = Rig::start().await;
    // What the orchestrator makes of the longest names it takes: 200 characters of four bytes, escaped.
    let key = format!("{}/{}/0", "%F0".repeat(800), "%F0".repeat(800));
    assert_eq!(rig.step("POST", "/reservations", &key, &json!({"orderId": "long"})).await.status, 201);
    let undone = rig.step("DELETE", "/reservations/long", &format!("{key}/undo"), &json!({})).await;
    assert_eq!((undone.status.as_u16(), text(&undone)), (200, r#"{"released":1}"#));
    let client = rig.post("/things", &json!({"name": "x"})).idempotency_key(&"k".repeat(256)).send().await.unwrap();
    assert_eq!(client.status, 400, "a client's key stays short");
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong() {
    let rig = Rig::start().await;
    let send = |body: &'static str, kind: &'static str| rig.post("/things", &json!(0)).body(body, kind).send();
    let json = "application/json";
    for (body, kind, status, code, field) in [
        ("{", json, 400, "CH004", None),
        (r#"{"name": "a"} x"#, json, 400, "CH004", None),
        ("", json, 400, "CH004", Some("name")),
        (r#"{"name": 7}"#, json, 400, "CH004", Some("name")),
        (r#"{"name": "a", "tags": ["x", 1]}"#, json, 400, "CH004", Some("tags[1]")),
        (r#"{"name": "a"}"#, "text/plain", 415, "CH017", None),
        (r#"{"name": "a", "unknown": 1}"#, "application/json; charset=utf-8", 201, "", None),
    ] {
        let answer = send(body, kind).await.unwrap();
        assert_eq!(answer.status, status, "{body}: {}", text(&answer));
        if status >= 400 {
            let problem = answer.problem();
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{body}");
            assert_eq!((problem.code.as_deref(), problem.trace_id.is_some()), (Some(code), true), "{body}");
            assert_eq!(problem.errors.first().map(|error| error.field.as_str()), field, "{body}: {}", text(&answer));
        }
    }
    let large = rig.post("/things", &json!({"name": "x".repeat(1 << 20)})).send().await.unwrap();
    assert_eq!((large.status.as_u16(), large.problem().code.as_deref()), (413, Some("CH016")));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let nowhere = rig.get("/nowhere").header("traceparent", trace).send().await.unwrap();
    assert_eq!((nowhere.status.as_u16(), nowhere.problem().code.as_deref()), (404, Some("CH018")));
    assert_eq!(nowhere.problem().trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    let method = rig.get("/things").send().await.unwrap();
    assert_eq!((method.status.as_u16(), method.problem().code.as_deref()), (405, Some("CH019")));
    assert_eq!(method.header("allow"), Some("POST"));
}

#[tokio::test]
async fn waiting_for_a_row_ends_with_the_row_or_the_wait() {
    let rig = Rig::start().await;
    let store = rig.service.context().store().clone();
    let find = |name: &'static str| {
        move |db: &rusqlite::Connection| {
            let found = db.prepare("SELECT 1 FROM things WHERE name = ?1")?.exists([name])?;
            Ok(found.then_some(name))
        }
    };
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait_for(Duration::from_secs(20), find("late")).await }
    });
    rig.post("/things", &json!({"name": "late"})).send().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Some("late"));
    assert_eq!(store.wait_for(Duration::from_millis(20), find("never")).await.unwrap(), None);
}
