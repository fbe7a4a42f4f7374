//! What is heard of orders. Of each event only those fields are read that are needed here.

use ballet_service::{Error, Event, Money, Result, Tx, problem};
use rusqlite::params;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::queue::{self, Channel, NewMessage};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Confirmed {
    id: String,
    user_id: String,
    version: i64,
    total: Money,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rejected {
    id: String,
    user_id: String,
    version: i64,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cancelled {
    id: String,
    user_id: String,
    version: i64,
}

/// An order and what became of it.
struct Outcome<'a> {
    order: &'a str,
    user: &'a str,
    version: i64,
    name: &'static str,
    subject: &'static str,
    text: String,
}

pub(crate) fn confirmed(tx: &Tx<'_>, event: &Event) -> Result<()> {
    let order: Confirmed = read(event)?;
    let (whole, cents) = (order.total.amount / 100, order.total.amount % 100);
    let text = format!(
        "Your order {} is confirmed. You paid {whole}.{cents:02} {}. It is on its way.",
        order.id, order.total.currency
    );
    let outcome = Outcome {
        order: &order.id,
        user: &order.user_id,
        version: order.version,
        name: "CONFIRMED",
        subject: "Your order is confirmed",
        text,
    };
    record(tx, event, outcome)
}

pub(crate) fn rejected(tx: &Tx<'_>, event: &Event) -> Result<()> {
    let order: Rejected = read(event)?;
    let why = match order.reason.as_str() {
        "out-of-stock" => "we do not have enough of it in stock",
        "card-declined" => "your card was declined",
        "payment-unavailable" => "the payment service could not be reached",
        _ => "something went wrong on our side",
    };
    let text = format!("We cannot fulfil your order {}: {why}. You were not charged.", order.id);
    let outcome = Outcome {
        order: &order.id,
        user: &order.user_id,
        version: order.version,
        name: "REJECTED",
        subject: "Your order could not be fulfilled",
        text,
    };
    record(tx, event, outcome)
}

pub(crate) fn cancelled(tx: &Tx<'_>, event: &Event) -> Result<()> {
    let order: Cancelled = read(event)?;
    let text = format!("Your order {} is cancelled, and you have your money back.", order.id);
    let outcome = Outcome {
        order: &order.id,
        user: &order.user_id,
        version: order.version,
        name: "CANCELLED",
        subject: "Your order is cancelled",
        text,
    };
    record(tx, event, outcome)
}

/// Reads an event's data; what cannot be read now cannot be read later either.
pub(crate) fn read<T: DeserializeOwned>(event: &Event) -> Result<T> {
    serde_json::from_value(event.data.clone())
        .map_err(|error| Error::from(problem::bad_request(format!("the data of `{}`: {error}", event.topic))))
}

/// One record for each order and outcome, whatever comes twice.
fn record(tx: &Tx<'_>, event: &Event, outcome: Outcome<'_>) -> Result<()> {
    tx.prepare_cached("INSERT INTO heard (order_id, type, version) VALUES (?1, ?2, ?3)")?.execute(params![
        outcome.order,
        event.topic.as_str(),
        outcome.version
    ])?;
    let message = NewMessage {
        order: Some((outcome.order, outcome.name, outcome.user)),
        channel: Channel::Email,
        recipient: None,
        subject: Some(outcome.subject),
        text: &outcome.text,
    };
    queue::put(tx, &message).map(drop)
}
