//! Orders at their seam: HTTP in, events and rows out; catalog and the engine are played.

#[path = "../../testing.rs"]
mod testing;

use ballet_service::axum::extract::Path;
use ballet_service::axum::http::StatusCode;
use ballet_service::axum::routing::get;
use ballet_service::axum::{Json, Router};
use serde_json::{Value, json};
use testing::{Answer, Call, Shop, conform, other};

use crate::service;

/// A catalog that has whisks and cups, and trouble.
async fn catalog() -> String {
    let product = |Path(id): Path<String>| async move {
        let amount = match id.as_str() {
            "whisk" => 999,
            "cup" => 1299,
            "trouble" => return Err(StatusCode::SERVICE_UNAVAILABLE),
            _ => return Err(StatusCode::NOT_FOUND),
        };
        Ok(Json(json!({"id": id, "name": id, "price": {"amount": amount, "currency": "EUR"}})))
    };
    other(Router::new().route("/products/{id}", get(product))).await
}

/// An engine that retried one step of every order.
async fn engine() -> String {
    let execution = |Path(id): Path<String>| async move {
        if id.starts_with("cancel-order-") {
            return Json(
                json!({"tasks": [{"referenceTaskName": "refund", "status": "SCHEDULED", "scheduledTime": 5}]}),
            );
        }
        let task = |name: &str, status: &str, start: i64, end: Value| json!({"referenceTaskName": name, "status": status, "scheduledTime": 1, "startTime": start, "endTime": end});
        Json(json!({"tasks": [
            task("reserve", "COMPLETED", 1, json!(1_000)),
            task("charge", "FAILED", 2, json!(2_000)),
            task("charge", "COMPLETED", 3, json!(3_000)),
            task("confirm", "IN_PROGRESS", 4_000, Value::Null),
        ]}))
    };
    other(Router::new().route("/api/workflow/{id}", get(execution))).await
}

async fn start() -> Shop {
    let catalog = catalog().await;
    Shop::start("orders", service(), &[("CATALOG_URL", &catalog)]).await
}

fn two_whisks() -> Value {
    json!({"items": [{"productId": "whisk", "quantity": 2}], "card": "card_ok"})
}

async fn place(shop: &Shop) -> String {
    let placed = shop.post("/orders").user("ada").json(two_whisks()).send().await.expect(202);
    placed.json["id"].as_str().unwrap().to_owned()
}

fn confirm<'a>(shop: &'a Shop, id: &str) -> Call<'a> {
    shop.post(&format!("/orders/{id}/confirm")).service("orchestrator").json(json!({"paymentId": "p1"}))
}

fn reject<'a>(shop: &'a Shop, id: &str, reason: &str) -> Call<'a> {
    shop.post(&format!("/orders/{id}/reject")).service("orchestrator").json(json!({"reason": reason}))
}

async fn read(shop: &Shop, id: &str) -> Answer {
    shop.get(&format!("/orders/{id}")).user("ada").send().await
}

#[tokio::test]
async fn an_order_is_placed_once_with_its_event() {
    let shop = start().await;
    let mut body = two_whisks();
    body["items"].as_array_mut().unwrap().push(json!({"productId": "cup", "quantity": 1}));
    body["shipTo"] = json!({"city": "Ulm"});
    let post = |body: &Value| shop.post("/orders").user("ada").header("idempotency-key", "k").json(body.clone());
    let placed = post(&body).send().await.expect(202);
    let id = placed.json["id"].as_str().unwrap();
    assert_eq!(placed.json, json!({"id": id, "status": "PENDING", "total": {"amount": 3297, "currency": "EUR"}}));
    assert_eq!(placed.headers["location"].to_str().unwrap(), format!("/orders/{id}"));
    assert_eq!(post(&body).send().await.expect(202).json, placed.json);
    post(&two_whisks()).send().await.problem(422, "CH010");

    let told = shop.told().await;
    conform(&told);
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].0.as_str(), &told[0].1["card"], &told[0].1["version"]),
        ("order.placed", &json!("card_ok"), &json!(1))
    );

    let order = read(&shop, id).await.expect(200).json;
    assert_eq!((&order["status"], &order["shipTo"]), (&json!("PENDING"), &json!({"city": "Ulm"})));
    assert_eq!(order["steps"][0]["name"], "place", "without an engine it says what it knows: {order}");
    shop.get(&format!("/orders/{id}")).staff().send().await.expect(200);
    shop.get(&format!("/orders/{id}")).user("eve").send().await.expect(404);
    shop.get(&format!("/orders/{id}")).send().await.problem(401, "CH006");
}

#[tokio::test]
async fn bad_orders_are_refused_field_by_field() {
    let shop = start().await;
    let with = |field: &str, value: Value| {
        let mut body = two_whisks();
        body[field] = value;
        body
    };
    let line = |product: &str, quantity: Value| with("items", json!([{"productId": product, "quantity": quantity}]));
    for (body, field) in [
        (with("items", json!([])), "items"),
        (json!({"card": "card_ok"}), "items"),
        (line("whisk", json!(0)), "items[0].quantity"),
        (line("whisk", json!(101)), "items[0].quantity"),
        (line("whisk", json!("two")), "items[0].quantity"),
        (line("nothing", json!(1)), "items[0].productId"),
        (line("../users", json!(1)), "items[0].productId"),
        (with("card", json!("4242424242424242")), "card"),
        (with("card", json!("card_")), "card"),
        (with("shipTo", json!("Ulm")), "shipTo"),
    ] {
        let refused = shop.post("/orders").user("ada").json(body.clone()).send().await.expect(400);
        assert_eq!(refused.fields(), [field], "{body}");
    }
    shop.post("/orders").user("ada").json(line("trouble", json!(1))).send().await.problem(503, "CH013");
    shop.post("/orders").json(two_whisks()).send().await.problem(401, "CH006");
    assert_eq!(shop.told().await, []);
}

#[tokio::test]
async fn the_checkout_settles_an_order() {
    let shop = start().await;
    let (good, bad) = (place(&shop).await, place(&shop).await);
    for _ in 0..2 {
        assert_eq!(confirm(&shop, &good).send().await.expect(200).json["status"], "CONFIRMED");
        assert_eq!(reject(&shop, &bad, "payments-unavailable").send().await.expect(200).json["status"], "REJECTED");
    }
    reject(&shop, &good, "out-of-stock").send().await.problem(409, "order-confirmed");
    confirm(&shop, &bad).send().await.problem(409, "order-rejected");
    confirm(&shop, "nothing").send().await.expect(404);
    confirm(&shop, &good).user("ada").send().await.expect(404);
    assert_eq!(read(&shop, &good).await.json["paymentId"], "p1");
    assert_eq!(read(&shop, &bad).await.json["reason"], "payment-unavailable");

    let told = shop.told().await;
    conform(&told);
    let topics: Vec<_> = told.iter().map(|(topic, data)| (topic.as_str(), data["version"].as_i64().unwrap())).collect();
    assert_eq!(topics[2..], [("order.confirmed", 2), ("order.rejected", 2)]);
    let ledger = shop.get("/ledger").service("ledger").send().await.expect(200).json;
    assert_eq!((&ledger["orders"][0]["status"], &ledger["unsent"]), (&json!("CONFIRMED"), &json!(4)));
}

#[tokio::test]
async fn whoever_waits_gets_the_settled_order_or_his_patience_ends() {
    let shop = start().await;
    let post = |wait: &str| shop.post("/orders").user("ada").header("prefer", wait).json(two_whisks());
    post("wait=0").send().await.expect(202);
    let settle = async {
        // The one that waits is the second one.
        let second = loop {
            let told = shop.told().await;
            match told.get(1) {
                Some((_, data)) => break data["id"].as_str().unwrap().to_owned(),
                None => tokio::task::yield_now().await,
            }
        };
        confirm(&shop, &second).send().await.expect(200);
    };
    let (waited, ()) = tokio::join!(post("wait=10").send(), settle);
    assert_eq!(waited.expect(201).json["status"], "CONFIRMED");
}

#[tokio::test]
async fn cancelling_goes_through_its_workflow() {
    let shop = start().await;
    let cancel = |id: &str| shop.post(&format!("/orders/{id}/cancel")).user("ada");
    let cancelled = |id: &str| shop.post(&format!("/orders/{id}/cancelled")).service("orchestrator");
    let (confirmed, pending, rejected) = (place(&shop).await, place(&shop).await, place(&shop).await);
    confirm(&shop, &confirmed).send().await.expect(200);
    for id in [&confirmed, &pending, &rejected] {
        for _ in 0..2 {
            cancel(id).send().await.expect(202);
        }
    }
    shop.post(&format!("/orders/{pending}/cancel")).user("eve").send().await.expect(404);
    shop.post(&format!("/orders/{pending}/cancel")).staff().send().await.problem(403, "CH007");
    cancelled(&pending).send().await.problem(409, "order-pending");
    confirm(&shop, &pending).send().await.expect(200);
    reject(&shop, &rejected, "card-declined").send().await.expect(200);
    cancel(&rejected).send().await.problem(409, "order-rejected");

    let address = json!({"shipTo": {"city": "Ulm"}});
    let ship = |id: &str, body: &Value| shop.call("PATCH", &format!("/orders/{id}")).user("ada").json(body.clone());
    ship(&confirmed, &address).send().await.expect(200);
    assert_eq!(ship(&confirmed, &json!({"shipTo": 7})).send().await.expect(400).fields(), ["shipTo"]);
    for _ in 0..2 {
        assert_eq!(cancelled(&confirmed).send().await.expect(200).json["status"], "CANCELLED");
    }
    cancel(&confirmed).send().await.expect(202);
    ship(&confirmed, &address).send().await.problem(409, "order-cancelled");

    let told = shop.told().await;
    conform(&told);
    let topics = |id: &str| -> Vec<(String, i64)> {
        let of = told.iter().filter(|(_, data)| data["id"] == id);
        of.map(|(topic, data)| (topic["order.".len()..].to_owned(), data["version"].as_i64().unwrap())).collect()
    };
    let way = [("placed", 1), ("confirmed", 2), ("cancel-requested", 3), ("cancelled", 4)];
    let way: Vec<_> = way.into_iter().map(|(topic, version)| (topic.to_owned(), version)).collect();
    assert_eq!((topics(&confirmed), topics(&pending)), (way.clone(), way[..3].to_vec()));
}

#[tokio::test]
async fn the_list_shows_the_own_orders_newest_first() {
    let shop = start().await;
    let mut ids = vec![];
    for _ in 0..5 {
        ids.insert(0, place(&shop).await);
    }
    confirm(&shop, &ids[0]).send().await.expect(200);
    reject(&shop, &ids[1], "out-of-stock").send().await.expect(200);
    let list = async |path: &str| -> (Vec<String>, Value) {
        let page = shop.get(path).user("ada").send().await.expect(200).json;
        let items = page["items"].as_array().unwrap();
        (items.iter().map(|order| order["id"].as_str().unwrap().to_owned()).collect(), page["next"].clone())
    };
    let (first, next) = list("/orders?limit=3").await;
    let (second, end) = list(&format!("/orders?limit=3&after={}", next.as_str().unwrap())).await;
    assert_eq!(([first, second].concat(), end), (ids.clone(), Value::Null));
    let everything = async || shop.get("/orders").user("ada").send().await.expect(200).json;
    let before = everything().await;
    let seen = |n: usize, field: &str| before["items"][n][field].clone();
    assert_eq!((seen(0, "status"), seen(0, "paymentId")), (json!("CONFIRMED"), json!("p1")));
    assert_eq!((seen(1, "status"), seen(1, "reason")), (json!("REJECTED"), json!("out-of-stock")));
    assert_eq!(seen(2, "total"), json!({"amount": 1998, "currency": "EUR"}));
    shop.running.context().rebuild("order_list").await.unwrap();
    assert_eq!(everything().await, before, "built anew it is the same");
    assert_eq!(shop.get("/orders").user("eve").send().await.expect(200).json, json!({"items": [], "next": null}));
    shop.get("/orders?limit=0").user("ada").send().await.expect(400);
}

#[tokio::test]
async fn the_engine_tells_the_steps() {
    let (catalog, engine) = (catalog().await, engine().await);
    let shop = Shop::start("orders", service(), &[("CATALOG_URL", &catalog), ("BALLET_PLATFORM", &engine)]).await;
    let id = place(&shop).await;
    let steps = async || read(&shop, &id).await.expect(200).json["steps"].take();
    let expected = json!([
        {"name": "reserve", "status": "COMPLETED", "at": "1970-01-01T00:00:01Z"},
        {"name": "charge", "status": "COMPLETED", "at": "1970-01-01T00:00:03Z"},
        {"name": "confirm", "status": "IN_PROGRESS", "at": "1970-01-01T00:00:04Z"},
    ]);
    let seconds = |mut steps: Value| {
        for step in steps.as_array_mut().unwrap() {
            let at = step["at"].as_str().unwrap().replace(".000Z", "Z");
            step["at"] = json!(at);
        }
        steps
    };
    assert_eq!(seconds(steps().await), expected);
    shop.post(&format!("/orders/{id}/cancel")).user("ada").send().await.expect(202);
    assert_eq!(steps().await[3]["name"], "refund");
}
