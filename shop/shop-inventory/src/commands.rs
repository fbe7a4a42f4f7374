//! Commands: staff moves stock, sagas reserve it.

use std::collections::BTreeMap;

use ballet_service::axum::extract::Path;
use ballet_service::{Command, Error, Internal, Invalid, Reply, Result, Staff, problem};
use serde::Deserialize;
use serde_json::json;

use crate::store::{self, Change, Item, Reservation, State};

/// Most pieces that are moved at once.
const MAX_QUANTITY: i64 = 1_000_000_000;
/// Most lines of a reservation.
const MAX_LINES: usize = 1_000;

#[derive(Deserialize)]
pub(crate) struct Move {
    quantity: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewReservation {
    order_id: String,
    items: Vec<Item>,
}

pub(crate) async fn increase(_: Staff, Path(product): Path<String>, command: Command<Move>) -> Result<Reply> {
    moved(Change::Increase, product, command).await
}

pub(crate) async fn decrease(_: Staff, Path(product): Path<String>, command: Command<Move>) -> Result<Reply> {
    moved(Change::Decrease, product, command).await
}

async fn moved(change: Change, product: String, command: Command<Move>) -> Result<Reply> {
    if !(1..=MAX_QUANTITY).contains(&command.body.quantity) {
        return Err(problem::field("quantity", format!("from 1 to {MAX_QUANTITY}")).into());
    }
    command
        .run(move |tx, Move { quantity }| {
            if store::stock(tx, &product)?.is_none() {
                return Err(problem::not_found("no such product").into());
            }
            let stock = store::change(tx, change, &product, quantity)?.ok_or_else(|| out_of_stock(&product))?;
            Ok(Reply::ok(&json!({"productId": product, "available": stock.available})))
        })
        .await
}

/// Sets goods aside for an order: all of them or none.
pub(crate) async fn reserve(_: Internal, command: Command<NewReservation>) -> Result<Reply> {
    let NewReservation { order_id, items } = &command.body;
    let mut invalid = Invalid::default();
    invalid.unless(!order_id.is_empty(), "orderId", "is required");
    invalid.unless((1..=MAX_LINES).contains(&items.len()), "items", format!("1 to {MAX_LINES} of them"));
    let amounts = items.iter().all(|item| (1..=MAX_QUANTITY).contains(&item.quantity));
    invalid.unless(amounts, "items", format!("each quantity from 1 to {MAX_QUANTITY}"));
    invalid.done()?;
    command
        .run(|tx, NewReservation { order_id, items }| {
            // A product may stand in two lines of an order.
            let mut wanted: BTreeMap<String, i64> = BTreeMap::new();
            for item in items {
                *wanted.entry(item.product_id).or_default() += item.quantity;
            }
            let items = wanted.into_iter().map(|(product_id, quantity)| Item { product_id, quantity }).collect();
            let reservation = Reservation { order_id, state: State::Held, items };
            match store::reservation(tx, &reservation.order_id)? {
                None => {}
                Some(known) if known.state == State::Held && known.items == reservation.items => {
                    return Ok(Reply::ok(&known));
                }
                Some(_) => return Err(problem::conflict("already-reserved", "the order had a reservation").into()),
            }
            store::insert(tx, &reservation)?;
            for Item { product_id, quantity } in &reservation.items {
                store::change(tx, Change::Hold, product_id, *quantity)?.ok_or_else(|| out_of_stock(product_id))?;
            }
            Ok(Reply::created(format!("/reservations/{}", reservation.order_id), &reservation))
        })
        .await
}

/// Undoes a reservation that came to nothing.
pub(crate) async fn release(_: Internal, Path(order): Path<String>, command: Command) -> Result<Reply> {
    end(order, command, |tx, reservation| match reservation.state {
        State::Held => store::step(tx, reservation, State::Released, Change::Release),
        State::Released => Ok(()),
        State::Sold | State::Returned => Err(problem::conflict("sold", "the goods are sold").into()),
    })
    .await
}

/// Takes the goods of a cancelled order back. One that was not turned into a sale yet ends here: the event that says so comes
/// too late then.
pub(crate) async fn take_back(_: Internal, Path(order): Path<String>, command: Command) -> Result<Reply> {
    end(order, command, |tx, reservation| match reservation.state {
        State::Held => store::step(tx, reservation, State::Released, Change::Release),
        State::Sold => store::step(tx, reservation, State::Returned, Change::Return),
        State::Released | State::Returned => Ok(()),
    })
    .await
}

async fn end(
    order: String,
    command: Command,
    step: impl FnOnce(&ballet_service::Tx<'_>, &mut Reservation) -> Result<()> + Send + 'static,
) -> Result<Reply> {
    command
        .run(move |tx, _| {
            let found = store::reservation(tx, &order)?;
            let mut reservation = found.ok_or_else(|| problem::not_found("no reservation for this order"))?;
            step(tx, &mut reservation)?;
            Ok(Reply::ok(&reservation))
        })
        .await
}

fn out_of_stock(product: &str) -> Error {
    problem::conflict("out-of-stock", format!("not enough of `{product}`")).into()
}
