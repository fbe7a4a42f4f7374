//! The warehouse at its seam: HTTP in, events and rows out.

#[path = "../../testing.rs"]
mod testing;

use serde_json::{Value, json};
use testing::{Answer, Shop, conform, promised};

use crate::service;

async fn start() -> Shop {
    Shop::start("inventory", service(), &[]).await
}

async fn stock(shop: &Shop, product: &str) -> (i64, i64) {
    let stock = shop.get(&format!("/inventory/{product}")).send().await.expect(200).json;
    (stock["available"].as_i64().unwrap(), stock["reserved"].as_i64().unwrap())
}

async fn reserve(shop: &Shop, order: &str, items: &[(&str, i64)]) -> Answer {
    let items: Vec<Value> = items.iter().map(|(id, n)| json!({"productId": id, "quantity": n})).collect();
    let key = format!("checkout-{order}/reserve/0");
    shop.post("/reservations").step(&key).json(json!({"orderId": order, "items": items})).send().await
}

#[tokio::test]
async fn staff_moves_stock_and_never_below_zero() {
    let shop = start().await;
    assert_eq!(stock(&shop, "whisk").await, (1000, 0));
    assert_eq!((stock(&shop, "last-one").await, stock(&shop, "sold-out").await), ((1, 0), (0, 0)));
    shop.get("/inventory/nothing").send().await.expect(404);

    let decrease = |body: Value| shop.post("/inventory/whisk/decrease").json(body);
    decrease(json!({"quantity": 1})).send().await.problem(401, "CH006");
    decrease(json!({"quantity": 1})).user("ada").send().await.problem(403, "CH007");
    let less = decrease(json!({"quantity": 400})).staff().send().await.expect(200);
    assert_eq!(less.json, json!({"productId": "whisk", "available": 600}));
    decrease(json!({"quantity": 601})).staff().send().await.problem(409, "out-of-stock");
    for bad in [json!({"quantity": 0}), json!({"quantity": -5}), json!({"quantity": "1"}), json!({})] {
        assert_eq!(decrease(bad).staff().send().await.expect(400).fields(), ["quantity"]);
    }
    shop.post("/inventory/nothing/increase").json(json!({"quantity": 1})).staff().send().await.expect(404);
    shop.post("/inventory/whisk/increase").json(json!({"quantity": 5})).staff().send().await.expect(200);
    assert_eq!(stock(&shop, "whisk").await, (605, 0));

    let told = shop.told().await;
    conform(&told);
    let versions: Vec<_> =
        told.iter().map(|(_, data)| (data["available"].as_i64(), data["version"].as_i64())).collect();
    assert_eq!(versions, [(Some(600), Some(2)), (Some(605), Some(3))]);
}

#[tokio::test]
async fn a_reservation_takes_all_or_nothing() {
    let shop = start().await;
    reserve(&shop, "o1", &[("whisk", 2), ("vase", 1), ("whisk", 3)]).await.expect(201);
    assert_eq!((stock(&shop, "whisk").await, stock(&shop, "vase").await), ((995, 5), (999, 1)));
    let again = reserve(&shop, "o1", &[("whisk", 2), ("vase", 1), ("whisk", 3)]).await.expect(201);
    assert_eq!(again.headers["idempotency-replayed"], "true");

    reserve(&shop, "o2", &[("whisk", 1), ("sold-out", 1)]).await.problem(409, "out-of-stock");
    reserve(&shop, "o3", &[("nothing", 1)]).await.problem(409, "out-of-stock");
    assert_eq!(stock(&shop, "whisk").await, (995, 5), "nothing of a refused reservation stays");
    for items in [json!([]), json!([{"productId": "whisk", "quantity": 0}]), json!("whisk")] {
        let body = json!({"orderId": "o4", "items": items});
        shop.post("/reservations").service("orchestrator").json(body).send().await.expect(400);
    }
    let body = json!({"orderId": "o5", "items": [{"productId": "whisk", "quantity": 1}]});
    shop.post("/reservations").staff().json(body).send().await.expect(404);
    conform(&shop.told().await);
}

#[tokio::test]
async fn an_undone_reservation_never_comes_back() {
    let shop = start().await;
    let undo = |order: &str| {
        let key = format!("checkout-{order}/reserve/0/undo");
        shop.call("DELETE", &format!("/reservations/{order}")).step(&key)
    };
    reserve(&shop, "o1", &[("whisk", 2)]).await.expect(201);
    for _ in 0..2 {
        undo("o1").send().await.expect(200);
        assert_eq!(stock(&shop, "whisk").await, (1000, 0));
    }
    undo("o2").send().await.expect(200);
    reserve(&shop, "o2", &[("whisk", 2)]).await.problem(410, "CH012");
    assert_eq!(stock(&shop, "whisk").await, (1000, 0));
}

#[tokio::test]
async fn what_is_confirmed_is_sold_and_may_be_returned() {
    let shop = start().await;
    let confirm = |order: &'static str| shop.deliver("order.confirmed", "orders", order, json!({"id": order}));
    let give_back = |order: &str| shop.post(&format!("/reservations/{order}/return")).service("orchestrator");
    reserve(&shop, "sold", &[("whisk", 2)]).await.expect(201);
    for _ in 0..2 {
        confirm("sold").await.expect(200);
        assert_eq!(stock(&shop, "whisk").await, (998, 0));
    }
    shop.call("DELETE", "/reservations/sold").service("orchestrator").send().await.problem(409, "sold");
    for _ in 0..2 {
        assert_eq!(give_back("sold").send().await.expect(200).json["state"], "returned");
        assert_eq!(stock(&shop, "whisk").await, (1000, 0));
    }

    // Cancelled before the news of the sale came.
    reserve(&shop, "early", &[("whisk", 2)]).await.expect(201);
    assert_eq!(give_back("early").send().await.expect(200).json["state"], "released");
    confirm("early").await.expect(200);
    assert_eq!(stock(&shop, "whisk").await, (1000, 0));

    give_back("nobody").send().await.expect(404);
    confirm("nobody").await.expect(200);
    promised("order.confirmed", &["id"]);

    let ledger = shop.get("/ledger").service("ledger").send().await.expect(200).json;
    let whisk = ledger["products"].as_array().unwrap().iter().find(|p| p["productId"] == "whisk").unwrap();
    assert_eq!((&whisk["initial"], &whisk["available"], &whisk["reserved"]), (&json!(1000), &json!(1000), &json!(0)));
    assert_eq!(ledger["reservations"].as_array().unwrap().len(), 2);
    shop.get("/ledger").staff().send().await.expect(404);
    conform(&shop.told().await);
}
