//! Every row of the shop's contract but the orders', through the gateway, bad input included.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::SHOP;
use crate::people::{ada, login, settled, staff, until};

#[tokio::test]
async fn anyone_registers_and_logs_in_without_case() {
    let email = format!("Grace.{}@Shop.Test", Uuid::new_v4());
    let person = json!({"email": email, "name": "Grace", "password": "longer-than-ten", "phone": "+4912345"});
    let made = SHOP.at_gateway("POST", "/users").json(person.clone()).send().await.expect(201);
    let id = made.json["id"].as_str().expect("an id").to_owned();
    assert_eq!(made.header("location"), Some(format!("/users/{id}").as_str()));
    assert_eq!(made.json["name"], "Grace");
    assert!(made.json.get("password").is_none());

    let mut again = person;
    again["email"] = json!(email.to_lowercase());
    let _ = SHOP.at_gateway("POST", "/users").json(again).send().await.problem(409);

    let grace = login(&SHOP, &email.to_uppercase(), "longer-than-ten").await;
    assert_eq!(grace.id, id);
    let me = until(
        async || SHOP.at_gateway("GET", &format!("/users/{id}")).token(&grace.token).send().await,
        |reply| reply.status == 200,
    )
    .await;
    assert_eq!(me.json["phone"], "+4912345");

    let change = json!({"name": "Grace H.", "phone": "+49999"});
    let _ = SHOP.at_gateway("PUT", &format!("/users/{id}")).token(&grace.token).json(change).send().await.expect(200);
    until(
        async || SHOP.at_gateway("GET", &format!("/users/{id}")).token(&grace.token).send().await,
        |reply| reply.json["name"] == "Grace H." && reply.json["phone"] == "+49999",
    )
    .await;

    let ada = ada().await;
    let other = format!("/users/{}", ada.id);
    let _ = SHOP.at_gateway("GET", &other).token(&grace.token).send().await.problem(403);
    let _ = SHOP.at_gateway("PUT", &other).token(&grace.token).json(json!({"name": "x"})).send().await.problem(403);
    let _ = SHOP.at_gateway("GET", &other).send().await.problem(401);
    let _ = SHOP.at_gateway("GET", &other).token(&staff().await.token).send().await.expect(200);
}

#[tokio::test]
async fn bad_people_are_refused_field_by_field() {
    for (body, field) in [
        (json!({"email": "nobody", "name": "N", "password": "longer-than-ten"}), "email"),
        (json!({"email": "n@shop.test", "name": "N", "password": "short"}), "password"),
        (json!({"email": "n@shop.test", "password": "longer-than-ten"}), "name"),
    ] {
        let refused = SHOP.at_gateway("POST", "/users").json(body).send().await.problem(400);
        let fields: Vec<&Value> =
            refused.json["errors"].as_array().into_iter().flatten().map(|e| &e["field"]).collect();
        assert_eq!(fields, [field], "{}", refused.text);
    }
    let _ = SHOP.at_gateway("POST", "/users").body("application/json", "{").send().await.problem(400);
}

#[tokio::test]
async fn a_wrong_token_is_no_token() {
    let ada = ada().await;
    let mut forged = ada.token.clone();
    // Somebody else's subject under the same signature.
    let parts: Vec<&str> = ada.token.split('.').collect();
    forged.replace_range(parts[0].len() + 1..parts[0].len() + 5, "AAAA");
    for token in [forged.as_str(), "nonsense", "a.b.c"] {
        let refused = SHOP.at_gateway("GET", "/orders").token(token).send().await.problem(401);
        assert!(refused.header("www-authenticate").is_some_and(|h| h.starts_with("Bearer")));
    }
    let _ = SHOP.at_gateway("GET", "/orders").send().await.problem(401);
    let keys = SHOP.at_gateway("GET", "/.well-known/jwks.json").send().await.expect(200);
    assert_eq!(keys.json["keys"][0]["kty"], "EC");
    assert!(keys.json["keys"][0].get("d").is_none(), "the private key stays home");
}

#[tokio::test]
async fn anyone_looks_at_products_page_by_page() {
    let all = SHOP.at_gateway("GET", "/products?limit=100").send().await.expect(200);
    let items = all.json["items"].as_array().expect("items");
    assert_eq!(items.len(), 24);
    let categories: std::collections::BTreeSet<_> = items.iter().map(|i| i["category"].as_str()).collect();
    assert_eq!(categories.len(), 4);
    let image = items[0]["image"].as_str().expect("an image");
    let picture = SHOP.at_gateway("GET", image).send().await.expect(200);
    assert_eq!(picture.header("content-type"), Some("image/svg+xml"));

    let mut seen: Vec<String> = vec![];
    let mut path = "/products?limit=10".to_owned();
    loop {
        let page = SHOP.at_gateway("GET", &path).send().await.expect(200);
        seen.extend(page.json["items"].as_array().expect("items").iter().map(|i| i["id"].to_string()));
        let Some(next) = page.json["next"].as_str() else { break };
        path = format!("/products?limit=10&after={next}");
    }
    let unique: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), unique.len()), (24, 24));

    let some = SHOP.at_gateway("GET", "/products?q=CUP").send().await.expect(200);
    assert!(some.json["items"].as_array().expect("items").iter().any(|i| i["id"] == "espresso-cup"));
    let kitchen = SHOP.at_gateway("GET", "/products?category=kitchen&limit=100").send().await.expect(200);
    assert!(kitchen.json["items"].as_array().expect("items").iter().all(|i| i["category"] == "kitchen"));

    let cup = SHOP.at_gateway("GET", "/products/espresso-cup").send().await.expect(200);
    assert!(cup.json["price"]["amount"].is_u64() && cup.json["price"]["currency"] == "EUR");
    let _ = SHOP.at_gateway("GET", "/products/no-such-thing").send().await.problem(404);
    let _ = SHOP.at_gateway("GET", "/products?limit=none").send().await.problem(400);
}

#[tokio::test]
async fn only_staff_changes_a_product() {
    let mut whisk = SHOP.at_gateway("GET", "/products/whisk").send().await.expect(200).json;
    whisk["description"] = json!("Beats everything.");
    let put = || SHOP.at_gateway("PUT", "/products/whisk").json(whisk.clone());
    let _ = put().send().await.problem(401);
    let _ = put().token(&ada().await.token).send().await.problem(403);
    let _ = put().token(&staff().await.token).send().await.expect(200);
    let now = SHOP.at_gateway("GET", "/products/whisk").send().await.expect(200);
    assert_eq!(now.json["description"], "Beats everything.");
}

#[tokio::test]
async fn a_card_is_an_id_and_its_number_is_nowhere() {
    let ada = ada().await;
    let card = |number: &str| {
        let body = json!({"number": number, "expiry": "12/30"});
        SHOP.at_gateway("POST", "/cards").token(&ada.token).json(body)
    };
    let made = card("4111111111111111").send().await.expect(201);
    assert!(made.json["id"].as_str().is_some_and(|id| id.starts_with("card_")), "{}", made.text);
    assert_eq!((made.json["last4"].as_str(), made.json["brand"].as_str()), (Some("1111"), Some("visa")));
    let _ = card("4111111111111112").send().await.problem(400);
    let _ = SHOP.at_gateway("POST", "/cards").json(json!({})).send().await.problem(401);

    let services = SHOP.state().join("services/payments");
    for file in std::fs::read_dir(services).expect("the service's folder") {
        let bytes = std::fs::read(file.expect("an entry").path()).unwrap_or_default();
        assert!(!bytes.windows(16).any(|w| w == b"4111111111111111"), "the number was kept");
    }
}

#[tokio::test]
async fn stock_moves_by_staff_only_and_never_below_zero() {
    let path = "/inventory/desk-lamp";
    let before = SHOP.at_gateway("GET", path).send().await.expect(200).json["available"].as_i64().expect("a number");
    let _ = SHOP.at_gateway("GET", "/inventory/no-such-thing").send().await.problem(404);
    let change = |verb: &str, quantity: Value| {
        SHOP.at_gateway("POST", &format!("{path}/{verb}")).json(json!({"quantity": quantity}))
    };
    let _ = change("decrease", json!(1)).send().await.problem(401);
    let _ = change("decrease", json!(1)).token(&ada().await.token).send().await.problem(403);
    let staff = &staff().await.token;
    let less = change("decrease", json!(3)).token(staff).send().await.expect(200);
    assert_eq!(less.json["available"], before - 3);
    let gone = change("decrease", json!(1_000_000)).token(staff).send().await.problem(409);
    assert_eq!(gone.json["code"], "out-of-stock");
    for bad in [json!(0), json!(-1), json!("three"), Value::Null] {
        let _ = change("decrease", bad).token(staff).send().await.problem(400);
    }
    // The same wish twice is one wish.
    let key = Uuid::new_v4().to_string();
    let once =
        change("increase", json!(3)).token(staff).header("idempotency-key", key.clone()).send().await.expect(200);
    let twice =
        change("increase", json!(3)).token(staff).header("idempotency-key", key.clone()).send().await.expect(200);
    assert_eq!((once.json, twice.header("idempotency-replayed")), (twice.json.clone(), Some("true")));
    assert_eq!(twice.json["available"], before);
    let _ = change("increase", json!(4)).token(staff).header("idempotency-key", key).send().await.problem(422);
    let _ = change("increase", json!(1)).token(staff).header("idempotency-key", "a/b").send().await.problem(400);
}

#[tokio::test]
async fn staff_takes_and_reads_payments() {
    let staff = &staff().await.token;
    let pay = |order: &str, card: &str| {
        let body = json!({"orderId": order, "amount": 1299, "currency": "EUR", "card": card});
        SHOP.at_gateway("POST", "/payments").token(staff).json(body)
    };
    let order = Uuid::new_v4().to_string();
    let paid = pay(&order, "card_ok").send().await.expect(201);
    assert_eq!((paid.json["status"].as_str(), paid.json["orderId"].as_str()), (Some("CAPTURED"), Some(order.as_str())));
    let path = format!("/payments/{}", paid.json["id"].as_str().expect("an id"));
    let read = SHOP.at_gateway("GET", &path).token(staff).send().await.expect(200);
    assert_eq!((read.json["amount"].as_i64(), read.json["currency"].as_str()), (Some(1299), Some("EUR")));
    let _ = SHOP.at_gateway("GET", &path).token(&ada().await.token).send().await.problem(403);
    let _ = SHOP.at_gateway("GET", &path).send().await.problem(401);

    let refused = Uuid::new_v4().to_string();
    let declined = pay(&refused, "card_refused").send().await.problem(402);
    assert_eq!(declined.json["code"], "card-declined");
    let kept = SHOP.at_gateway("GET", &format!("/payments?orderId={refused}")).token(staff).send().await.expect(200);
    assert_eq!(kept.json["items"][0]["status"], "DECLINED");
    let body = json!({"orderId": order, "amount": "12", "currency": "EUR", "card": "card_ok"});
    let _ = SHOP.at_gateway("POST", "/payments").token(staff).json(body).send().await.problem(400);
    let body = json!({"orderId": order, "amount": 12, "currency": "EUR", "card": "card_ok"});
    let _ = SHOP.at_gateway("POST", "/payments").token(&ada().await.token).json(body).send().await.problem(403);
}

#[tokio::test]
async fn staff_sends_a_notification_that_lands_in_a_file() {
    let mark = Uuid::new_v4().to_string();
    for (channel, to, folder) in [("email", "somebody@shop.test", "mail"), ("sms", "+4912345", "sms")] {
        let body = json!({"to": to, "channel": channel, "subject": "Hello", "text": mark});
        let _ = SHOP.at_gateway("POST", "/notifications").json(body.clone()).send().await.problem(401);
        let _ = SHOP
            .at_gateway("POST", "/notifications")
            .token(&ada().await.token)
            .json(body.clone())
            .send()
            .await
            .problem(403);
        let sent =
            SHOP.at_gateway("POST", "/notifications").token(&staff().await.token).json(body).send().await.expect(202);
        assert!(sent.json["id"].is_string());
        let folder = SHOP.state().join(folder);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
            if texts.any(|text| text.contains(&mark) && text.contains(to)) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "nothing landed in {}", folder.display());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    let bad = json!({"to": "x", "channel": "pigeon", "text": "hi"});
    let _ = SHOP.at_gateway("POST", "/notifications").token(&staff().await.token).json(bad).send().await.problem(400);
}

#[tokio::test]
async fn home_shows_more_to_those_who_are_logged_in() {
    let anyone = SHOP.at_gateway("GET", "/home").send().await.expect(200);
    assert_eq!(anyone.json["products"]["items"].as_array().expect("items").len(), 8);
    assert_eq!((&anyone.json["profile"], &anyone.json["lastOrders"]), (&Value::Null, &json!([])));
    let ada = ada().await;
    let placed = crate::people::order(&SHOP, ada, "notebook", 1, "card_ok").await.expect(202);
    let id = placed.json["id"].as_str().expect("an id");
    settled(&SHOP, ada, id).await;
    let mine = until(
        async || SHOP.at_gateway("GET", "/home").token(&ada.token).send().await.expect(200),
        |home| home.json["lastOrders"]["items"].as_array().is_some_and(|list| !list.is_empty()),
    )
    .await;
    assert_eq!(mine.json["profile"]["id"], ada.id);
}

#[tokio::test]
async fn what_has_no_route_is_not_found_and_what_has_another_method_says_so() {
    for path in ["/reservations", "/refunds", "/events", "/orders/1/confirm", "/orders/1/reject", "/nowhere"] {
        let refused = SHOP.at_gateway("POST", path).json(json!({})).send().await;
        assert_eq!(refused.status, 404, "{path}: {}", refused.text);
    }
    let refused = SHOP.at_gateway("DELETE", "/products/whisk").send().await.problem(405);
    assert!(refused.header("allow").is_some_and(|allow| allow.contains("GET") && allow.contains("PUT")));
    assert!(SHOP.at_gateway("GET", "/").send().await.expect(200).text.contains("<html"));
}

#[tokio::test]
async fn every_answer_can_be_traced() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let refused = SHOP.at_gateway("GET", "/products/no-such-thing");
    let refused = refused.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01")).send().await.problem(404);
    assert_eq!(refused.json["traceId"], trace);
}
