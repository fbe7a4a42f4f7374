//! What inventory hears.

use ballet_service::{Event, Result, Tx};
use serde::Deserialize;

use crate::store::{self, Change, State};

/// What inventory reads of `order.confirmed`.
#[derive(Deserialize)]
struct OrderConfirmed {
    id: String,
}

/// The goods of a confirmed order are sold.
pub(crate) fn order_confirmed(tx: &Tx<'_>, event: &Event) -> Result<()> {
    let OrderConfirmed { id } = serde_json::from_value(event.data.clone())?;
    match store::reservation(tx, &id)? {
        Some(mut held) if held.state == State::Held => store::step(tx, &mut held, State::Sold, Change::Sell),
        // Cancelled before the news came.
        Some(_) => Ok(()),
        None => {
            tracing::warn!(order = id, "an order was confirmed that nothing is reserved for");
            Ok(())
        }
    }
}
