//! What changes something.

use axum::extract::Path;
use ballet_service::{Command, Invalid, Money, Reply, Result, Staff, problem};
use serde::Deserialize;

use crate::products::{self, Product};

/// The shop's one currency.
pub(crate) const CURRENCY: &str = "EUR";
/// Most characters of a text, but for descriptions.
const TEXT_MAX: usize = 200;
/// Most characters of a description.
const DESCRIPTION_MAX: usize = 4_000;
/// Dearest price, in minor units: 100 of it still add up without harm.
const PRICE_MAX: i64 = 100_000_000;

#[derive(Deserialize)]
pub(crate) struct Change {
    name: String,
    description: String,
    price: Money,
    category: String,
    image: String,
}

/// `PUT /products/{id}`: the whole product, as `GET` answers it.
pub(crate) async fn change(_staff: Staff, Path(id): Path<String>, command: Command<Change>) -> Result<Reply> {
    let Change { name, description, price, category, image } = &command.body;
    let mut invalid = Invalid::default();
    for (field, text, most) in [
        ("name", name, TEXT_MAX),
        ("description", description, DESCRIPTION_MAX),
        ("category", category, TEXT_MAX),
        ("image", image, TEXT_MAX),
    ] {
        let fits = !text.trim().is_empty() && text.chars().count() <= most;
        invalid.unless(fits, field, format!("1 to {most} characters"));
    }
    invalid.unless((0..=PRICE_MAX).contains(&price.amount), "price.amount", format!("0 to {PRICE_MAX}"));
    invalid.unless(price.currency == CURRENCY, "price.currency", CURRENCY);
    invalid.done()?;
    command
        .run(move |tx, Change { name, description, price, category, image }| {
            if products::find(tx, &id)?.is_none() {
                return Err(problem::not_found("no such product").into());
            }
            let product = Product { id, name, description, price, category, image };
            products::put(tx, &product)?;
            Ok(Reply::ok(&product))
        })
        .await
}
