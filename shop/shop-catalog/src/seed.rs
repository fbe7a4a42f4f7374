//! The first products (not with `SEED_DATA=off`).

use ballet_service::{Money, Result, Tx};
use serde::Deserialize;

use crate::commands::CURRENCY;
use crate::products::{self, Product};

#[derive(Deserialize)]
struct Seed {
    id: String,
    name: String,
    description: String,
    price: i64,
    category: String,
}

pub(crate) fn make(tx: &Tx<'_>) -> Result<()> {
    let seeds: Vec<Seed> = serde_json::from_str(include_str!("../seed.json"))?;
    for Seed { id, name, description, price, category } in seeds {
        let image = format!("/assets/products/{id}.svg");
        products::put(tx, &Product { id, name, description, price: Money::new(price, CURRENCY), category, image })?;
    }
    Ok(())
}
