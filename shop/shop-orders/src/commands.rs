//! Commands: customers place, change and cancel orders; the workflows confirm, reject and end them.

use std::time::Duration;

use ballet_service::axum::extract::Path;
use ballet_service::axum::http::HeaderMap;
use ballet_service::{Command, Context, Internal, Invalid, Money, Reply, Result, Tx, User, new_id, problem};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::order::{self, Item, Order, Status, Told};
use crate::{queries, store};

/// Most lines of an order.
const MAX_LINES: usize = 50;
/// Most pieces of a product in a line.
const MAX_QUANTITY: i64 = 100;
/// Longest id of a product or a card.
const MAX_ID: usize = 100;
/// Longest address, in bytes of JSON.
const MAX_ADDRESS: usize = 4096;
/// Longest wait for an order to settle.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// What is left of the caller's time when the wait ends.
const RESERVE: Duration = Duration::from_millis(300);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewOrder {
    items: Vec<Line>,
    card: String,
    ship_to: Option<Value>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    product_id: String,
    quantity: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    ship_to: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Confirmation {
    payment_id: String,
}

#[derive(Deserialize)]
pub(crate) struct Rejection {
    reason: Option<String>,
}

/// What orders reads of a product.
#[derive(Deserialize)]
struct Product {
    name: String,
    price: Money,
}

/// Places an order: one transaction writes it and `order.placed`, which starts the checkout.
pub(crate) async fn place(user: User, ctx: Context, headers: HeaderMap, command: Command<NewOrder>) -> Result<Reply> {
    check(&command.body)?;
    let priced = price(ctx.clone(), command.body.items.clone());
    let reply = command
        .run_after(priced, |tx, new, items| {
            let total = order::total(&items).ok_or_else(|| problem::field("items", "their prices do not add up"))?;
            let mut order = Order {
                id: new_id(),
                user_id: user.id,
                status: Status::Pending,
                reason: None,
                items,
                total,
                card: new.card,
                ship_to: new.ship_to,
                payment_id: None,
                cancel_requested: false,
                version: 0,
                created_at: tx.now(),
                changed_at: tx.now(),
            };
            store::insert(tx, &mut order)?;
            let shown = json!({"id": order.id, "status": order.status, "total": order.total});
            Ok(Reply::accepted(format!("/orders/{}", order.id), &shown))
        })
        .await?;
    match patience(&headers) {
        Some(wait) if reply.status() == 202 => settled(&ctx, reply, wait).await,
        Some(_) | None => Ok(reply),
    }
}

/// Another address.
pub(crate) async fn change(user: User, Path(id): Path<String>, command: Command<Change>) -> Result<Reply> {
    let mut invalid = Invalid::default();
    check_address(&mut invalid, &command.body.ship_to);
    invalid.done()?;
    command
        .run(move |tx, Change { ship_to }| Ok(Reply::ok(&owned(tx, &user, &id, |order| order.ship_to(ship_to))?)))
        .await
}

/// Asks for a cancellation; the workflow `cancel-order` does it.
pub(crate) async fn cancel(user: User, Path(id): Path<String>, command: Command) -> Result<Reply> {
    command
        .run(move |tx, _| {
            let order = owned(tx, &user, &id, Order::cancel)?;
            let shown = json!({"id": id, "status": order.status, "cancelRequested": order.cancel_requested});
            Ok(Reply::accepted(format!("/orders/{id}"), &shown))
        })
        .await
}

pub(crate) async fn confirm(_: Internal, Path(id): Path<String>, command: Command<Confirmation>) -> Result<Reply> {
    command
        .run(move |tx, Confirmation { payment_id }| {
            Ok(Reply::ok(&store::step(tx, &id, |order| order.confirm(payment_id, tx.now()))?))
        })
        .await
}

pub(crate) async fn reject(_: Internal, Path(id): Path<String>, command: Command<Rejection>) -> Result<Reply> {
    command
        .run(move |tx, Rejection { reason }| {
            Ok(Reply::ok(&store::step(tx, &id, |order| order.reject(order::reason(reason), tx.now()))?))
        })
        .await
}

pub(crate) async fn cancelled(_: Internal, Path(id): Path<String>, command: Command) -> Result<Reply> {
    command.run(move |tx, _| Ok(Reply::ok(&store::step(tx, &id, |order| order.cancelled(tx.now()))?))).await
}

/// A step that only the order's owner may ask for; to others there is no such order.
fn owned(tx: &Tx<'_>, user: &User, id: &str, decide: impl FnOnce(&mut Order) -> Result<Vec<Told>>) -> Result<Order> {
    store::step(tx, id, |order| {
        if !user.may_see(&order.user_id) {
            return Err(problem::not_found("no such order").into());
        }
        if user.id != order.user_id {
            return Err(problem::forbidden("for the customer only").into());
        }
        decide(order)
    })
}

fn check(new: &NewOrder) -> Result<()> {
    let mut invalid = Invalid::default();
    invalid.unless((1..=MAX_LINES).contains(&new.items.len()), "items", format!("1 to {MAX_LINES} of them"));
    for (n, line) in new.items.iter().enumerate() {
        let possible = (1..=MAX_QUANTITY).contains(&line.quantity);
        invalid.unless(possible, format!("items[{n}].quantity"), format!("from 1 to {MAX_QUANTITY}"));
    }
    let card = new.card.strip_prefix("card_").is_some_and(is_id);
    invalid.unless(card, "card", "the id of a card, as in card_ok");
    if let Some(address) = &new.ship_to {
        check_address(&mut invalid, address);
    }
    invalid.done()
}

fn check_address(invalid: &mut Invalid, address: &Value) {
    let fits = address.is_object() && address.to_string().len() <= MAX_ADDRESS;
    invalid.unless(fits, "shipTo", format!("an object of at most {MAX_ADDRESS} bytes"));
}

fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Asks catalog for names and prices.
async fn price(ctx: Context, lines: Vec<Line>) -> Result<Vec<Item>> {
    let mut items = Vec::with_capacity(lines.len());
    for (n, Line { product_id, quantity }) in lines.into_iter().enumerate() {
        let product: Option<Product> = match is_id(&product_id) {
            true => ctx.service("catalog").get(&format!("/products/{product_id}")).fetch().await?,
            false => None,
        };
        let Some(Product { name, price }) = product else {
            return Err(problem::field(format!("items[{n}].productId"), "no such product").into());
        };
        items.push(Item { product_id, quantity, name, price });
    }
    Ok(items)
}

/// How long the caller would wait for the order to settle: `Prefer: wait=10` (RFC 7240), within the time that the call has.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let texts = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let seconds = texts
        .flat_map(|text| text.split([',', ';']))
        .filter_map(|preference| preference.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())?;
    let wait = Duration::from_secs(seconds).min(MAX_WAIT);
    let left = headers.get("ballet-timeout-ms").and_then(|left| left.to_str().ok()?.parse().ok());
    Some(left.map_or(wait, |left| wait.min(Duration::from_millis(left).saturating_sub(RESERVE))))
}

/// 201 with the settled order if it settles in time, else the answer as it was.
async fn settled(ctx: &Context, reply: Reply, wait: Duration) -> Result<Reply> {
    let placed: Value = serde_json::from_str(reply.body())?;
    let id = placed["id"].as_str().unwrap_or_default().to_owned();
    let location = format!("/orders/{id}");
    let settled =
        ctx.store().wait_for(wait, move |db| Ok(store::find(db, &id)?.filter(|order| order.status != Status::Pending)));
    let Some(order) = settled.await? else { return Ok(reply) };
    let answer = Reply::created(location, &queries::with_steps(ctx, order).await);
    Ok(if reply.is_replayed() { answer.header("idempotency-replayed", "true") } else { answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_says_how_long() {
        for (prefer, left, expected) in [
            ("wait=10", None, Some(10_000)),
            ("respond-async, Wait=\"2\"", None, Some(2_000)),
            ("wait=3600", None, Some(30_000)),
            ("wait=10", Some("2000"), Some(1_700)),
            ("wait=10", Some("100"), Some(0)),
            ("wait=soon", None, None),
            ("return=minimal", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", prefer.parse().unwrap());
            if let Some(left) = left {
                headers.insert("ballet-timeout-ms", left.parse().unwrap());
            }
            assert_eq!(patience(&headers), expected.map(Duration::from_millis), "{prefer} {left:?}");
        }
    }
}
