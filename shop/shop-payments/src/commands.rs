//! Commands: cards, charges, refunds.

use ballet_service::axum::body::Body as RawBody;
use ballet_service::axum::extract::{FromRequest, Request};
use ballet_service::{Body, Caller, Command, Context, Internal, Invalid, Reply, Result, User, new_id, problem};
use serde::Deserialize;
use serde_json::json;

use crate::card::{self, Behaviour, Card};
use crate::store::{self, Payment, Status};

/// How often the bank fails for a flaky card and one order.
const FAILURES: i64 = 2;
/// Longest id of an order, a card or a user.
const MAX_ID: usize = 100;

#[derive(Deserialize)]
struct NewCard {
    number: String,
    expiry: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewPayment {
    order_id: String,
    /// Minor units.
    amount: i64,
    currency: String,
    card: String,
    /// Who pays; the staff itself if absent.
    user_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Refund {
    order_id: String,
}

/// Makes an id of a card. The command begins behind the number: what remembers the command must not know it, not even as a
/// digest, which could be guessed.
pub(crate) async fn add_card(user: User, ctx: Context, request: Request) -> Result<Reply> {
    let (head, body) = request.into_parts();
    let Body(NewCard { number, expiry }) = Body::from_request(Request::from_parts(head.clone(), body), &ctx).await?;
    let mut invalid = Invalid::default();
    let card = card::read(&number, &expiry);
    invalid.unless(card.is_some(), "number", "not the number of a card");
    invalid.unless(card::is_valid_until(&expiry, ctx.now()), "expiry", "a month to come, as in 12/30");
    invalid.done()?;
    let body = RawBody::from(serde_json::to_vec(&card)?);
    let command: Command<Card> = Command::from_request(Request::from_parts(head, body), &ctx).await?;
    command
        .run(move |tx, card| {
            let id = format!("card_{}", new_id().replace('-', ""));
            store::add_card(tx, &id, &user.id, &card)?;
            Ok(Reply::new(201, &json!({"id": id, "last4": card.last4, "brand": card.brand})))
        })
        .await
}

/// Charges a card for an order. A refusal is an answer and is kept, with the payment; a failing bank is none.
pub(crate) async fn pay(caller: Caller, command: Command<NewPayment>) -> Result<Reply> {
    caller.staff_or_service()?;
    let new = &command.body;
    let mut invalid = Invalid::default();
    invalid.unless((1..=MAX_ID).contains(&new.order_id.len()), "orderId", "is required");
    invalid.unless(new.amount >= 0, "amount", "not negative, in minor units");
    let currency = new.currency.len() == 3 && new.currency.bytes().all(|b| b.is_ascii_uppercase());
    invalid.unless(currency, "currency", "three letters, as in EUR");
    invalid.unless(new.card.starts_with("card_") && new.card.len() <= MAX_ID, "card", "the id of a card");
    invalid.done()?;
    command
        .run(move |tx, NewPayment { order_id, amount, currency, card, user_id }| {
            if store::charge(tx, &order_id)?.is_some() {
                return Err(problem::conflict("already-charged", "the order was charged before").into());
            }
            let user_id = user_id.or(match caller {
                Caller::User(staff) => Some(staff.id),
                Caller::Service(_) | Caller::Anyone => None,
            });
            let status = match store::behaviour(tx, &card, user_id.as_deref())? {
                Behaviour::Flaky if store::count_failure(tx, &order_id)? <= FAILURES => {
                    // An answer, so that the count stays.
                    let failed = problem::unavailable("the bank does not answer").code("bank-unavailable");
                    return Ok(Reply::problem(&failed));
                }
                Behaviour::Pays | Behaviour::Flaky => Status::Captured,
                Behaviour::Refuses => Status::Declined,
            };
            let created_at = tx.now();
            let payment = Payment { id: new_id(), order_id, user_id, amount, currency, card, status, created_at };
            store::insert(tx, &payment)?;
            Ok(match status {
                Status::Captured | Status::Refunded => {
                    let shown = json!({"id": payment.id, "orderId": payment.order_id, "status": status});
                    Reply::created(format!("/payments/{}", payment.id), &shown)
                }
                // An answer, so that the declined payment stays.
                Status::Declined => {
                    Reply::problem(&problem::refused(402, "card-declined", "the bank refuses this card"))
                }
            })
        })
        .await
}

/// Gives the money of an order back. As the undo of a charge that never came, the chassis answers by itself.
pub(crate) async fn refund(_: Internal, command: Command<Refund>) -> Result<Reply> {
    command
        .run(|tx, Refund { order_id }| {
            let found = store::charge(tx, &order_id)?;
            let mut payment = found.ok_or_else(|| problem::not_found("nothing was charged for this order"))?;
            if payment.status == Status::Captured {
                store::refund(tx, &mut payment)?;
            }
            Ok(Reply::ok(&json!({"id": payment.id, "orderId": order_id, "status": payment.status})))
        })
        .await
}
