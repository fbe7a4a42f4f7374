//! Payments at their seam: HTTP in, events and rows out.

#[path = "../../testing.rs"]
mod testing;

use serde_json::{Value, json};
use testing::{Answer, Shop, conform};

use crate::service;

async fn start() -> Shop {
    Shop::start("payments", service(), &[]).await
}

/// The step `charge` of an order's checkout, for Ada.
async fn charge(shop: &Shop, order: &str, card: &str) -> Answer {
    let body = json!({"orderId": order, "userId": "ada", "amount": 1299, "currency": "EUR", "card": card});
    shop.post("/payments").step(&format!("checkout-{order}/charge/0")).json(body).send().await
}

async fn undo(shop: &Shop, order: &str) -> Answer {
    let body = json!({"orderId": order});
    shop.post("/refunds").step(&format!("checkout-{order}/charge/0/undo")).json(body).send().await
}

async fn attempts(shop: &Shop, order: &str) -> Vec<String> {
    let list = shop.get(&format!("/payments?orderId={order}")).staff().send().await.expect(200).json;
    list["items"].as_array().unwrap().iter().map(|payment| payment["status"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_card_is_an_id_and_its_number_is_kept_nowhere() {
    let shop = start().await;
    let add = |number: Value, expiry: &str| shop.post("/cards").json(json!({"number": number, "expiry": expiry}));
    let keyed = || add(json!("5555555555554444"), "12/30").user("ada").header("idempotency-key", "k");
    let made = keyed().send().await.expect(201).json;
    assert_eq!((&made["last4"], &made["brand"]), (&json!("4444"), &json!("mastercard")));
    assert_eq!(keyed().send().await.expect(201).json, made, "the same key is the same card");
    add(json!("5555555555554444"), "12/30").send().await.problem(401, "CH006");
    for (number, expiry, field) in [
        (json!("5555555555554445"), "12/30", "number"),
        (json!(5_555_555_555_554_444_u64), "12/30", "number"),
        (json!("5555555555554444"), "12/20", "expiry"),
        (json!("5555555555554444"), "soon", "expiry"),
    ] {
        assert_eq!(add(number, expiry).user("ada").send().await.expect(400).fields(), [field]);
    }
    let files = shop.files();
    assert!(files.windows(4).any(|bytes| bytes == b"4444"), "the files are the right ones");
    assert!(!files.windows(16).any(|bytes| bytes == b"5555555555554444"));

    // It pays for its owner, and for nobody else.
    let card = made["id"].as_str().unwrap();
    charge(&shop, "mine", card).await.expect(201);
    let body = json!({"orderId": "other", "userId": "eve", "amount": 1, "currency": "EUR", "card": card});
    shop.post("/payments").service("orchestrator").json(body).send().await.problem(402, "card-declined");
}

#[tokio::test]
async fn cards_pay_are_refused_or_fail_twice() {
    let shop = start().await;
    let paid = charge(&shop, "o1", "card_ok").await.expect(201);
    let id = paid.json["id"].as_str().unwrap();
    assert_eq!(paid.json, json!({"id": id, "orderId": "o1", "status": "CAPTURED"}));
    assert_eq!(charge(&shop, "o1", "card_ok").await.expect(201).json, paid.json, "the step repeats its answer");
    let body = json!({"orderId": "o1", "amount": 1299, "currency": "EUR", "card": "card_ok"});
    shop.post("/payments").staff().json(body).send().await.problem(409, "already-charged");

    for _ in 0..2 {
        charge(&shop, "o2", "card_refused").await.problem(402, "card-declined");
    }
    charge(&shop, "o3", "card_unknown").await.problem(402, "card-declined");
    for order in ["o4", "o5"] {
        for _ in 0..2 {
            charge(&shop, order, "card_flaky").await.problem(503, "bank-unavailable");
        }
        charge(&shop, order, "card_flaky").await.expect(201);
    }
    assert_eq!(attempts(&shop, "o2").await, ["DECLINED"]);
    assert_eq!(attempts(&shop, "o5").await, ["CAPTURED"]);

    let read = |path: &str| shop.get(&format!("/payments/{path}"));
    let shown = read(id).user("ada").send().await.expect(200).json;
    assert_eq!(
        (&shown["amount"], &shown["currency"], &shown["status"]),
        (&json!(1299), &json!("EUR"), &json!("CAPTURED"))
    );
    assert!(shown["createdAt"].as_str().is_some_and(|at| at.ends_with('Z')));
    read(id).staff().send().await.expect(200);
    read(id).user("eve").send().await.problem(403, "CH007");
    read(id).send().await.problem(401, "CH006");
    read("nothing").user("eve").send().await.expect(404);
    shop.get("/payments?orderId=o1").user("ada").send().await.problem(403, "CH007");
    shop.get("/payments").staff().send().await.expect(400);
    conform(&shop.told().await);
}

#[tokio::test]
async fn bad_payments_are_refused() {
    let shop = start().await;
    let good = json!({"orderId": "o", "amount": 1, "currency": "EUR", "card": "card_ok"});
    for (field, bad) in [
        ("orderId", json!("")),
        ("amount", json!("1")),
        ("amount", json!(-1)),
        ("amount", json!(1.5)),
        ("currency", json!("euro")),
        ("card", json!("4242424242424242")),
        ("card", Value::Null),
    ] {
        let mut body = good.clone();
        body[field] = bad;
        assert_eq!(shop.post("/payments").staff().json(body).send().await.expect(400).fields(), [field]);
    }
    shop.post("/payments").user("ada").json(good.clone()).send().await.problem(403, "CH007");
    shop.post("/payments").service("gateway").json(good).send().await.problem(401, "CH006");
    assert_eq!(shop.told().await, []);
}

#[tokio::test]
async fn money_comes_back_once() {
    let shop = start().await;
    charge(&shop, "o1", "card_ok").await.expect(201);
    for _ in 0..2 {
        let refund = shop.post("/refunds").service("orchestrator").json(json!({"orderId": "o1"}));
        assert_eq!(refund.send().await.expect(200).json["status"], "REFUNDED");
    }
    // Undone before it came: then it never comes.
    undo(&shop, "o2").await.expect(200);
    charge(&shop, "o2", "card_ok").await.problem(410, "CH012");
    // Undone after it came; after it was refused.
    charge(&shop, "o3", "card_ok").await.expect(201);
    undo(&shop, "o3").await.expect(200);
    charge(&shop, "o4", "card_refused").await.expect(402);
    undo(&shop, "o4").await.expect(200);
    assert_eq!(attempts(&shop, "o3").await, ["REFUNDED"]);
    assert_eq!(attempts(&shop, "o4").await, ["DECLINED"]);

    shop.post("/refunds").service("orchestrator").json(json!({"orderId": "o4"})).send().await.expect(404);
    shop.post("/refunds").staff().json(json!({"orderId": "o1"})).send().await.expect(404);
    let told = shop.told().await;
    conform(&told);
    let topics: Vec<_> = told.iter().map(|(topic, data)| (topic.as_str(), data["version"].as_i64().unwrap())).collect();
    let (captured, refunded) = (("payment.captured", 1), ("payment.refunded", 2));
    assert_eq!(topics, [captured, refunded, captured, refunded, ("payment.declined", 1)]);
    let ledger = shop.get("/ledger").service("ledger").send().await.expect(200).json;
    assert_eq!(ledger["payments"].as_array().unwrap().len(), 3);
}
