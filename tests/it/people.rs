//! Who uses the shop in the tests.

use ballet_tests::{Ballet, Reply};
use serde_json::{Value, json};

/// Somebody who is logged in.
pub(crate) struct Person {
    /// Their id.
    pub(crate) id: String,
    /// Their token.
    pub(crate) token: String,
}

/// Logs in.
pub(crate) async fn login(shop: &Ballet, email: &str, password: &str) -> Person {
    let body = json!({"email": email, "password": password});
    // Ten logins a minute from one address: others use their own address in the tests' eyes, so wait for a turn here.
    loop {
        let reply = shop.at_gateway("POST", "/sessions").json(body.clone()).send().await;
        if reply.status == 429 {
            let rest: u64 = reply.header("retry-after").and_then(|s| s.parse().ok()).unwrap_or(1);
            tokio::time::sleep(std::time::Duration::from_secs(rest.min(10))).await;
            continue;
        }
        let reply = reply.expect(201);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        return Person { id: text(&reply.json["user"]["id"]), token: text(&reply.json["token"]) };
    }
}

/// The seeded customer, logged in once.
pub(crate) async fn ada() -> &'static Person {
    static ADA: tokio::sync::OnceCell<Person> = tokio::sync::OnceCell::const_new();
    ADA.get_or_init(|| login(&crate::SHOP, "ada@shop.test", "correct-horse-battery")).await
}

/// The seeded member of staff, logged in once.
pub(crate) async fn staff() -> &'static Person {
    static STAFF: tokio::sync::OnceCell<Person> = tokio::sync::OnceCell::const_new();
    STAFF.get_or_init(|| login(&crate::SHOP, "staff@shop.test", "correct-horse-battery")).await
}

/// Orders one product and answers the order's first answer.
pub(crate) async fn order(shop: &Ballet, person: &Person, product: &str, quantity: u32, card: &str) -> Reply {
    let body = json!({"items": [{"productId": product, "quantity": quantity}], "card": card});
    shop.at_gateway("POST", "/orders").token(&person.token).json(body).send().await
}

/// Waits until an order has left PENDING; answers it.
pub(crate) async fn settled(shop: &Ballet, person: &Person, id: &str) -> Value {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let order = shop.at_gateway("GET", &format!("/orders/{id}")).token(&person.token).send().await.expect(200).json;
        if order["status"] != "PENDING" {
            return order;
        }
        assert!(tokio::time::Instant::now() < deadline, "the order does not settle: {order}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Asks until the answer holds what is wanted; panics after a minute with the last one.
pub(crate) async fn until(mut ask: impl AsyncFnMut() -> Reply, wanted: impl Fn(&Reply) -> bool) -> Reply {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let reply = ask().await;
        if wanted(&reply) {
            return reply;
        }
        assert!(tokio::time::Instant::now() < deadline, "it does not come: {} {}", reply.status, reply.text);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
