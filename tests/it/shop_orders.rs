//! An order's way through the house: confirmed, rejected, cancelled, replayed, raced for.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::SHOP;
use crate::people::{ada, order, settled, staff, until};

fn id_of(reply: &ballet_tests::Reply) -> String {
    reply.json["id"].as_str().expect("an id").to_owned()
}

async fn stock(product: &str) -> (i64, i64) {
    let reply = SHOP.at_gateway("GET", &format!("/inventory/{product}")).send().await.expect(200);
    (reply.json["available"].as_i64().expect("a number"), reply.json["reserved"].as_i64().expect("a number"))
}

async fn notifications(order: &str) -> Vec<Value> {
    let ada = ada().await;
    let path = format!("/notifications?orderId={order}");
    let reply = SHOP.at_gateway("GET", &path).token(&ada.token).send().await.expect(200);
    reply.json["items"].as_array().expect("items").clone()
}

#[tokio::test]
async fn an_order_goes_all_its_way() {
    let ada = ada().await;
    let (before, _) = stock("tea-pot").await;
    let placed = order(&SHOP, ada, "tea-pot", 2, "card_ok").await.expect(202);
    let id = id_of(&placed);
    assert_eq!(placed.json["status"], "PENDING");
    assert_eq!(placed.json["total"], json!({"amount": 2 * 3499, "currency": "EUR"}));
    assert_eq!(placed.header("location"), Some(format!("/orders/{id}").as_str()));

    let order = settled(&SHOP, ada, &id).await;
    assert_eq!(order["status"], "CONFIRMED", "{order}");
    let payment = order["paymentId"].as_str().expect("a payment");
    let paid = SHOP.at_gateway("GET", &format!("/payments/{payment}")).token(&ada.token).send().await.expect(200);
    assert_eq!((paid.json["status"].as_str(), paid.json["amount"].as_i64()), (Some("CAPTURED"), Some(2 * 3499)));
    assert_eq!(paid.json["orderId"], json!(id));
    until(
        async || SHOP.at_gateway("GET", "/inventory/tea-pot").send().await,
        |reply| reply.json["available"] == before - 2 && reply.json["reserved"] == 0,
    )
    .await;
    let told = until(
        async || SHOP.at_gateway("GET", &format!("/notifications?orderId={id}")).token(&ada.token).send().await,
        |reply| reply.json["items"][0]["status"] == "SENT",
    )
    .await;
    assert_eq!(told.json["items"].as_array().expect("items").len(), 1, "{}", told.text);

    // The engine did it, and shows it.
    let execution =
        SHOP.at_platform("GET", &format!("/api/workflow/checkout-{id}?includeTasks=true")).send().await.expect(200);
    assert_eq!(execution.json["status"], "COMPLETED");
    let tasks: Vec<_> =
        execution.json["tasks"].as_array().expect("tasks").iter().map(|t| t["referenceTaskName"].clone()).collect();
    assert_eq!(tasks, [json!("reserve"), json!("charge"), json!("confirm")]);
    let steps: Vec<_> = order["steps"].as_array().expect("steps").iter().map(|s| s["name"].clone()).collect();
    assert_eq!(steps, [json!("reserve"), json!("charge"), json!("confirm")], "{order}");

    let list = until(
        async || SHOP.at_gateway("GET", "/orders?limit=50").token(&ada.token).send().await.expect(200),
        |list| {
            list.json["items"]
                .as_array()
                .is_some_and(|items| items.iter().any(|o| o["id"] == json!(id) && o["status"] == "CONFIRMED"))
        },
    )
    .await;
    let times: Vec<&str> =
        list.json["items"].as_array().expect("items").iter().filter_map(|o| o["createdAt"].as_str()).collect();
    assert!(times.windows(2).all(|w| w[0] >= w[1]), "newest first: {times:?}");
}

#[tokio::test]
async fn bad_orders_are_refused() {
    let ada = ada().await;
    for body in [
        json!({"items": [], "card": "card_ok"}),
        json!({"items": [{"productId": "whisk", "quantity": 0}], "card": "card_ok"}),
        json!({"items": [{"productId": "whisk", "quantity": 101}], "card": "card_ok"}),
        json!({"items": [{"productId": "no-such-thing", "quantity": 1}], "card": "card_ok"}),
        json!({"items": [{"productId": "whisk", "quantity": 1}], "card": "4242424242424242"}),
        json!({"items": [{"productId": "whisk", "quantity": 1}]}),
    ] {
        let refused = SHOP.at_gateway("POST", "/orders").token(&ada.token).json(body.clone()).send().await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
    }
    let body = json!({"items": [{"productId": "whisk", "quantity": 1}], "card": "card_ok"});
    let _ = SHOP.at_gateway("POST", "/orders").json(body).send().await.problem(401);
    let _ = SHOP.at_gateway("GET", "/orders/no-such-order").token(&ada.token).send().await.problem(404);
}

#[tokio::test]
async fn another_persons_order_is_not_found() {
    let ada = ada().await;
    let id = id_of(&order(&SHOP, ada, "candle", 1, "card_ok").await.expect(202));
    settled(&SHOP, ada, &id).await;
    let email = format!("eve.{}@shop.test", Uuid::new_v4());
    let person = json!({"email": email, "name": "Eve", "password": "longer-than-ten"});
    let _ = SHOP.at_gateway("POST", "/users").json(person).send().await.expect(201);
    let eve = crate::people::login(&SHOP, &email, "longer-than-ten").await;
    for (method, path) in
        [("GET", format!("/orders/{id}")), ("PATCH", format!("/orders/{id}")), ("POST", format!("/orders/{id}/cancel"))]
    {
        let request = SHOP.at_gateway(method, &path).token(&eve.token);
        let request = if method == "PATCH" { request.json(json!({"shipTo": {"city": "Ulm"}})) } else { request };
        assert_eq!(request.send().await.status, 404, "{method} {path}");
    }
    let _ = SHOP.at_gateway("GET", &format!("/orders/{id}")).token(&staff().await.token).send().await.expect(200);
    assert_eq!(SHOP.at_gateway("GET", "/orders").token(&eve.token).send().await.expect(200).json["items"], json!([]));
}

#[tokio::test]
async fn a_refused_card_undoes_the_reservation() {
    let ada = ada().await;
    let (before, _) = stock("hammock").await;
    let id = id_of(&order(&SHOP, ada, "hammock", 3, "card_refused").await.expect(202));
    let order = settled(&SHOP, ada, &id).await;
    assert_eq!(
        (order["status"].as_str(), order["reason"].as_str()),
        (Some("REJECTED"), Some("card-declined")),
        "{order}"
    );
    assert_eq!(stock("hammock").await, (before, 0), "the goods are back before the order is rejected");
    let execution = SHOP.at_platform("GET", &format!("/api/workflow/checkout-{id}")).send().await.expect(200);
    assert_eq!(execution.json["status"], "FAILED", "{}", execution.text);
    assert_eq!(execution.json["compensation"]["state"], "done", "{}", execution.text);
    let staff = &staff().await.token;
    let kept = SHOP.at_gateway("GET", &format!("/payments?orderId={id}")).token(staff).send().await.expect(200);
    assert_eq!(kept.json["items"][0]["status"], "DECLINED", "{}", kept.text);
    until(
        async || SHOP.at_gateway("GET", &format!("/notifications?orderId={id}")).token(&ada.token).send().await,
        |reply| reply.json["items"].as_array().is_some_and(|items| items.len() == 1),
    )
    .await;
    let _ = SHOP.at_gateway("POST", &format!("/orders/{id}/cancel")).token(&ada.token).send().await.problem(409);
    let _ = SHOP
        .at_gateway("PATCH", &format!("/orders/{id}"))
        .token(&ada.token)
        .json(json!({"shipTo": {"city": "Ulm"}}))
        .send()
        .await
        .problem(409);
}

#[tokio::test]
async fn what_is_sold_out_rejects_the_order() {
    let ada = ada().await;
    let id = id_of(&order(&SHOP, ada, "sold-out", 1, "card_ok").await.expect(202));
    let order = settled(&SHOP, ada, &id).await;
    assert_eq!(
        (order["status"].as_str(), order["reason"].as_str()),
        (Some("REJECTED"), Some("out-of-stock")),
        "{order}"
    );
    assert_eq!(stock("sold-out").await, (0, 0));
}

#[tokio::test]
async fn a_flaky_card_pays_in_the_end_and_once() {
    let ada = ada().await;
    let id = id_of(&order(&SHOP, ada, "clock", 1, "card_flaky").await.expect(202));
    assert_eq!(settled(&SHOP, ada, &id).await["status"], "CONFIRMED");
    let staff = &staff().await.token;
    let kept = SHOP.at_gateway("GET", &format!("/payments?orderId={id}")).token(staff).send().await.expect(200);
    let captured = kept.json["items"].as_array().expect("items").iter().filter(|p| p["status"] == "CAPTURED").count();
    assert_eq!(captured, 1, "{}", kept.text);
}

#[tokio::test]
async fn whoever_waits_gets_the_settled_order() {
    let ada = ada().await;
    let body = json!({"items": [{"productId": "vase", "quantity": 1}], "card": "card_ok"});
    let request = SHOP.at_gateway("POST", "/orders").token(&ada.token).header("prefer", "wait=10").json(body);
    let reply = request.send().await.expect(201);
    assert_eq!(reply.json["status"], "CONFIRMED", "{}", reply.text);
}

#[tokio::test]
async fn six_buyers_want_the_last_one() {
    let ada = ada().await;
    let (before, _) = stock("last-one").await;
    let placing: Vec<_> = (0..6)
        .map(|_| tokio::spawn(async { id_of(&order(&SHOP, ada, "last-one", 1, "card_ok").await.expect(202)) }))
        .collect();
    let mut confirmed = 0;
    for id in placing {
        let order = settled(&SHOP, ada, &id.await.expect("placed")).await;
        match order["status"].as_str() {
            Some("CONFIRMED") => confirmed += 1,
            Some("REJECTED") => assert_eq!(order["reason"], "out-of-stock"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((confirmed, before), (1, 1));
    until(
        async || SHOP.at_gateway("GET", "/inventory/last-one").send().await,
        |r| r.json["available"] == 0 && r.json["reserved"] == 0,
    )
    .await;
}

#[tokio::test]
async fn the_same_order_posted_eight_times_at_once_is_one_order() {
    let ada = ada().await;
    let key = Uuid::new_v4().to_string();
    let body = json!({"items": [{"productId": "compass", "quantity": 1}], "card": "card_ok"});
    let post = |body: &Value| {
        SHOP.at_gateway("POST", "/orders").token(&ada.token).header("idempotency-key", key.clone()).json(body.clone())
    };
    let posting: Vec<_> = (0..8)
        .map(|_| {
            let request = post(&body);
            tokio::spawn(async move { request.send().await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    let mut first = 0;
    for reply in posting {
        let reply = reply.await.expect("an answer");
        assert_eq!(reply.status, 202, "{}", reply.text);
        first += usize::from(reply.header("idempotency-replayed").is_none());
        ids.insert(id_of(&reply));
    }
    assert_eq!((ids.len(), first), (1, 1));
    let mut other = body;
    other["items"][0]["quantity"] = json!(2);
    let _ = post(&other).send().await.problem(422);
}

#[tokio::test]
async fn a_confirmed_order_is_cancelled_refunded_and_restocked() {
    let ada = ada().await;
    let (before, _) = stock("lantern").await;
    let id = id_of(&order(&SHOP, ada, "lantern", 4, "card_ok").await.expect(202));
    let order = settled(&SHOP, ada, &id).await;
    let shipping = json!({"shipTo": {"city": "Ulm"}});
    let _ =
        SHOP.at_gateway("PATCH", &format!("/orders/{id}")).token(&ada.token).json(shipping).send().await.expect(200);
    for _ in 0..2 {
        let _ = SHOP.at_gateway("POST", &format!("/orders/{id}/cancel")).token(&ada.token).send().await.expect(202);
    }
    until(
        async || SHOP.at_gateway("GET", &format!("/orders/{id}")).token(&ada.token).send().await,
        |reply| reply.json["status"] == "CANCELLED",
    )
    .await;
    let payment = order["paymentId"].as_str().expect("a payment");
    let paid = SHOP.at_gateway("GET", &format!("/payments/{payment}")).token(&ada.token).send().await.expect(200);
    assert_eq!(paid.json["status"], "REFUNDED");
    until(
        async || SHOP.at_gateway("GET", "/inventory/lantern").send().await,
        |r| r.json["available"] == before && r.json["reserved"] == 0,
    )
    .await;
    until(
        async || SHOP.at_gateway("GET", &format!("/notifications?orderId={id}")).token(&ada.token).send().await,
        |reply| reply.json["items"].as_array().is_some_and(|items| items.len() == 2),
    )
    .await;
    assert_eq!(notifications(&id).await.len(), 2, "one for each outcome");
    let _ = SHOP.at_gateway("POST", &format!("/orders/{id}/cancel")).token(&ada.token).send().await.expect(202);
}

#[tokio::test]
async fn a_cancellation_while_pending_is_noted() {
    let ada = ada().await;
    let id = id_of(&order(&SHOP, ada, "camp-mug", 1, "card_flaky").await.expect(202));
    let _ = SHOP.at_gateway("POST", &format!("/orders/{id}/cancel")).token(&ada.token).send().await.expect(202);
    until(
        async || SHOP.at_gateway("GET", &format!("/orders/{id}")).token(&ada.token).send().await,
        |reply| reply.json["status"] == "CANCELLED",
    )
    .await;
}
