//! Books that agree, books that do not, and a shop that comes to rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Path, Request};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::books::Books;
use crate::reader::{ReadError, Reader};
use crate::report::Report;
use crate::{Patience, audit};

/// A shop with one order of each ending.
fn good() -> Value {
    let order = |id: &str, status: &str, quantity: i64, payment: Value| {
        json!({"id": id, "status": status, "items": [{"productId": "cup", "quantity": quantity}],
               "total": {"amount": 100 * quantity, "currency": "EUR"}, "paymentId": payment, "cancelRequested": status == "CANCELLED"})
    };
    let payment = |id: &str, order: &str, status: &str, amount: i64| json!({"id": id, "orderId": order, "status": status, "amount": amount, "currency": "EUR"});
    let note = |order: &str, outcome: &str| json!({"id": "n", "orderId": order, "outcome": outcome, "status": "SENT"});
    let heard = |order: &str, kind: &str, version: i64| json!({"orderId": order, "type": kind, "version": version});
    json!({
        "orders": {"orders": [
            order("c", "CONFIRMED", 3, json!("p1")), order("r", "REJECTED", 5, Value::Null), order("x", "CANCELLED", 7, json!("p2")),
        ], "unsent": 0},
        "inventory": {"products": [
            {"productId": "cup", "initial": 100, "increased": 20, "decreased": 10, "available": 107, "reserved": 0},
        ]},
        "payments": {"payments": [
            payment("p1", "c", "CAPTURED", 300), payment("p0", "r", "DECLINED", 500), payment("p2", "x", "REFUNDED", 700),
            payment("p3", "nobody's", "CAPTURED", 1),
        ]},
        "notifications": {
            "notifications": [note("c", "CONFIRMED"), note("r", "REJECTED"), note("x", "CONFIRMED"), note("x", "CANCELLED")],
            "heard": [
                heard("c", "order.confirmed", 2), heard("x", "order.confirmed", 2), heard("x", "order.cancelled", 4),
                heard("r", "order.rejected", 2), heard("x", "order.confirmed", 2),
            ],
        },
    })
}

fn report(books: &Value) -> Report {
    let books: Books = serde_json::from_value(books.clone()).unwrap();
    Report::of(&books, Duration::ZERO)
}

#[test]
fn each_rule_is_broken_by_what_breaks_it() {
    assert!(report(&good()).agrees(), "{}", report(&good()).text());
    let changes: &[(&str, Value, &[usize])] = &[
        ("/orders/orders/1/status", json!("PENDING"), &[1, 4]),
        ("/inventory/products/0/available", json!(106), &[2]),
        ("/inventory/products/0/decreased", json!(11), &[2]),
        ("/inventory/products/0/productId", json!("pot"), &[2]),
        ("/orders/orders/0/items/0/quantity", json!(4), &[2]),
        ("/payments/payments/0/status", json!("REFUNDED"), &[3]),
        ("/payments/payments/0/amount", json!(299), &[3]),
        ("/payments/payments/0/id", json!("p9"), &[3]),
        ("/payments/payments/1/status", json!("CAPTURED"), &[3]),
        ("/payments/payments/2/status", json!("CAPTURED"), &[3]),
        ("/payments/payments/3/orderId", json!("c"), &[3]),
        ("/notifications/notifications/0/outcome", json!("REJECTED"), &[4]),
        ("/notifications/notifications/3/outcome", json!("CONFIRMED"), &[4]),
        ("/notifications/notifications/1/orderId", json!("ghost"), &[4]),
        ("/notifications/heard/1/version", json!(5), &[5]),
    ];
    for (place, value, broken) in changes {
        let mut books = good();
        *books.pointer_mut(place).unwrap() = value.clone();
        let report = report(&books);
        let found: Vec<_> =
            report.rules.iter().filter(|rule| !rule.violations.is_empty()).map(|rule| rule.number).collect();
        assert_eq!(found, *broken, "{place} = {value}\n{}", report.text());
        assert!(report.text().contains("do not agree") && report.json().contains("\"agrees\": false"));
    }
    let mut reserved = good();
    reserved["inventory"]["products"][0]["reserved"] = json!(1);
    reserved["inventory"]["products"][0]["available"] = json!(106);
    assert_eq!(report(&reserved).rules[1].violations, ["cup: 1 still reserved"]);
    let mut doubled = good();
    let again = doubled["notifications"]["notifications"][0].clone();
    doubled["notifications"]["notifications"].as_array_mut().unwrap().push(again);
    assert_eq!(report(&doubled).rules[3].violations, ["order c: 2 notifications of CONFIRMED"]);
}

/// A platform and its services in one: what it shows depends on how often it was asked for the orders.
async fn shop(look: impl Fn(usize) -> Value + Send + Sync + 'static) -> Reader {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (look, looks) = (Arc::new(look), Arc::new(AtomicUsize::new(0)));
    // Each service answers at an own port; which one is asked, the port tells.
    let mut ports = std::collections::BTreeMap::new();
    for name in ["orders", "inventory", "payments", "notifications"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.insert(name.to_owned(), listener.local_addr().unwrap().to_string());
        let (look, looks) = (look.clone(), looks.clone());
        let ledger = async move |request: Request| {
            assert_eq!(request.headers()["ballet-caller"], "ledger");
            let now = looks.fetch_add(usize::from(name == "orders"), Ordering::SeqCst) + usize::from(name == "orders");
            Json(look(now)[name].clone())
        };
        let routes = Router::new().route("/ledger", get(ledger));
        tokio::spawn(async move { axum::serve(listener, routes).await });
    }
    let services = async move |Path(name): Path<String>| {
        let down = json!({"address": "127.0.0.1:1", "state": "down"});
        Json(json!({"version": 1, "all": [down, {"address": ports[&name], "state": "up"}]}))
    };
    let topics = async || {
        let group = json!({"group": "inventory", "target": "x", "waiting": 0, "inFlight": 0, "dead": 0});
        Json(json!({"topics": [{"name": "order.confirmed", "keepMs": 1, "groups": [group]}]}))
    };
    let routes =
        Router::new().route("/ballet/v1/services/{name}", get(services)).route("/ballet/v1/topics", get(topics));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Reader::new(&format!("http://{address}/"))
}

const HURRY: Patience =
    Patience { poll: Duration::from_millis(5), calm: Duration::from_millis(20), most: Duration::from_secs(5) };

#[tokio::test]
async fn it_waits_until_the_shop_is_at_rest() {
    let reader = shop(|look| {
        let mut books = good();
        if look < 4 {
            books["orders"]["orders"][0]["status"] = json!("PENDING");
        }
        if look < 6 {
            books["orders"]["unsent"] = json!(1);
        }
        books
    });
    let report = audit(&reader.await, &HURRY).await.unwrap();
    assert!(report.agrees() && report.under_way.is_empty(), "{}", report.text());
}

#[tokio::test]
async fn it_judges_what_is_wrong_at_rest_and_what_never_rests() {
    let wrong = shop(|_| {
        let mut books = good();
        books["payments"]["payments"][1]["status"] = json!("CAPTURED");
        books
    });
    let report = audit(&wrong.await, &HURRY).await.unwrap();
    assert!(!report.agrees() && report.under_way.is_empty(), "{}", report.text());

    let restless = shop(|_| {
        let mut books = good();
        books["orders"]["orders"][1]["status"] = json!("PENDING");
        books
    });
    let patience = Patience { most: Duration::from_millis(60), ..HURRY };
    let report = audit(&restless.await, &patience).await.unwrap();
    assert_eq!(report.under_way, ["1 orders pending"]);
    assert!(!report.agrees());

    let nobody = audit(&Reader::new("http://127.0.0.1:1"), &HURRY).await;
    assert!(matches!(nobody, Err(ReadError::Unreachable { .. })));
}
