//! An order and its way: told what happens, it decides what becomes of it and what the world is told.

use ballet_service::{Money, Result, Timestamp, problem, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An order, as it is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Order {
    pub(crate) id: String,
    #[serde(skip)]
    pub(crate) user_id: String,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) items: Vec<Item>,
    pub(crate) total: Money,
    #[serde(skip)]
    pub(crate) card: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ship_to: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payment_id: Option<String>,
    /// The customer wants it cancelled; while it is PENDING only noted.
    pub(crate) cancel_requested: bool,
    /// That of its last event.
    #[serde(skip)]
    pub(crate) version: i64,
    #[serde(with = "rfc3339")]
    pub(crate) created_at: Timestamp,
    #[serde(skip)]
    pub(crate) changed_at: Timestamp,
}

/// Where an order is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    Pending,
    Confirmed,
    Rejected,
    Cancelled,
}

/// So many of a product, at the price of the day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Item {
    pub(crate) product_id: String,
    pub(crate) quantity: i64,
    pub(crate) name: String,
    pub(crate) price: Money,
}

/// What the world is told: topic and data.
pub(crate) type Told = (&'static str, Value);

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Confirmed => "CONFIRMED",
            Self::Rejected => "REJECTED",
            Self::Cancelled => "CANCELLED",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Pending, Self::Confirmed, Self::Rejected, Self::Cancelled]
            .into_iter()
            .find(|status| status.name() == name)
    }
}

impl Order {
    /// It was placed.
    pub(crate) fn placed(&mut self) -> Told {
        let data = json!({"items": self.items, "card": self.card, "shipTo": self.ship_to});
        self.tell("order.placed", data)
    }

    /// PENDING -> CONFIRMED. A cancellation that was noted begins here.
    pub(crate) fn confirm(&mut self, payment_id: String, now: Timestamp) -> Result<Vec<Told>> {
        match self.status {
            Status::Pending => {
                self.enter(Status::Confirmed, now);
                let data = json!({"items": self.items, "paymentId": payment_id});
                self.payment_id = Some(payment_id);
                let mut told = vec![self.tell("order.confirmed", data)];
                if self.cancel_requested {
                    told.push(self.tell("order.cancel-requested", json!({})));
                }
                Ok(told)
            }
            // Confirmed before; somebody has not heard the answer.
            Status::Confirmed | Status::Cancelled => Ok(vec![]),
            Status::Rejected => self.refuse("confirmed"),
        }
    }

    /// PENDING -> REJECTED.
    pub(crate) fn reject(&mut self, reason: String, now: Timestamp) -> Result<Vec<Told>> {
        match self.status {
            Status::Pending => {
                self.enter(Status::Rejected, now);
                let data = json!({"reason": reason});
                self.reason = Some(reason);
                Ok(vec![self.tell("order.rejected", data)])
            }
            Status::Rejected => Ok(vec![]),
            Status::Confirmed | Status::Cancelled => self.refuse("rejected"),
        }
    }

    /// The customer wants it cancelled.
    pub(crate) fn cancel(&mut self) -> Result<Vec<Told>> {
        match self.status {
            Status::Pending => {
                self.cancel_requested = true;
                Ok(vec![])
            }
            Status::Confirmed if !self.cancel_requested => {
                self.cancel_requested = true;
                Ok(vec![self.tell("order.cancel-requested", json!({}))])
            }
            Status::Confirmed | Status::Cancelled => Ok(vec![]),
            Status::Rejected => self.refuse("cancelled"),
        }
    }

    /// CONFIRMED -> CANCELLED: the money and the goods are back.
    pub(crate) fn cancelled(&mut self, now: Timestamp) -> Result<Vec<Told>> {
        match self.status {
            Status::Confirmed => {
                self.enter(Status::Cancelled, now);
                Ok(vec![self.tell("order.cancelled", json!({}))])
            }
            Status::Cancelled => Ok(vec![]),
            Status::Pending | Status::Rejected => self.refuse("cancelled"),
        }
    }

    /// Another address, while there is still somewhere to send it.
    pub(crate) fn ship_to(&mut self, address: Value) -> Result<Vec<Told>> {
        match self.status {
            Status::Pending | Status::Confirmed => {
                self.ship_to = Some(address);
                Ok(vec![])
            }
            Status::Rejected | Status::Cancelled => self.refuse("changed"),
        }
    }

    fn enter(&mut self, status: Status, now: Timestamp) {
        (self.status, self.changed_at) = (status, now);
    }

    fn refuse<T>(&self, wish: &str) -> Result<T> {
        let code = format!("order-{}", self.status.name().to_lowercase());
        Err(problem::conflict(&code, format!("a {} order cannot be {wish}", self.status.name())).into())
    }

    /// Each event has the order's next version, so that readers know older from newer.
    fn tell(&mut self, topic: &'static str, mut data: Value) -> Told {
        self.version += 1;
        data["id"] = json!(self.id);
        data["userId"] = json!(self.user_id);
        data["total"] = json!(self.total);
        data["version"] = json!(self.version);
        (topic, data)
    }
}

/// What the items cost together; `None` if that is more than can be counted, or not one currency.
pub(crate) fn total(items: &[Item]) -> Option<Money> {
    let currency = &items.first()?.price.currency;
    let amount = items.iter().try_fold(0_i64, |sum, item| {
        let price = Some(item.price.amount).filter(|_| item.price.currency == *currency)?;
        sum.checked_add(price.checked_mul(item.quantity)?)
    })?;
    Some(Money::new(amount, currency))
}

/// The refusal's code, in the shop's words.
pub(crate) fn reason(code: Option<String>) -> String {
    match code.as_deref().map(str::trim) {
        None | Some("") => "failed".into(),
        // The engine names the service.
        Some("payments-unavailable") => "payment-unavailable".into(),
        Some(code) => code.chars().take(100).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(status: Status, cancel_requested: bool) -> Order {
        let items =
            vec![Item { product_id: "whisk".into(), quantity: 2, name: "Whisk".into(), price: Money::new(999, "EUR") }];
        Order {
            id: "o1".into(),
            user_id: "ada".into(),
            status,
            reason: None,
            total: total(&items).unwrap(),
            items,
            card: "card_ok".into(),
            ship_to: None,
            payment_id: None,
            cancel_requested,
            version: 1,
            created_at: Timestamp(1),
            changed_at: Timestamp(1),
        }
    }

    #[test]
    fn every_step_fits_its_state() {
        type Step = fn(&mut Order) -> Result<Vec<Told>>;
        let confirm: Step = |order| order.confirm("p".into(), Timestamp(2));
        let reject: Step = |order| order.reject("out-of-stock".into(), Timestamp(2));
        let cancelled: Step = |order| order.cancelled(Timestamp(2));
        let ship: Step = |order| order.ship_to(json!({"city": "Ulm"}));
        use Status::*;
        // Status, whether cancelling is noted, step; then: the status behind it and what is told, or a refusal.
        type Row = (Status, bool, Step, Option<(Status, &'static [&'static str])>);
        let table: &[Row] = &[
            (Pending, false, confirm, Some((Confirmed, &["order.confirmed"]))),
            (Pending, true, confirm, Some((Confirmed, &["order.confirmed", "order.cancel-requested"]))),
            (Confirmed, false, confirm, Some((Confirmed, &[]))),
            (Cancelled, true, confirm, Some((Cancelled, &[]))),
            (Rejected, false, confirm, None),
            (Pending, true, reject, Some((Rejected, &["order.rejected"]))),
            (Rejected, false, reject, Some((Rejected, &[]))),
            (Confirmed, false, reject, None),
            (Cancelled, true, reject, None),
            (Pending, false, Order::cancel, Some((Pending, &[]))),
            (Confirmed, false, Order::cancel, Some((Confirmed, &["order.cancel-requested"]))),
            (Confirmed, true, Order::cancel, Some((Confirmed, &[]))),
            (Cancelled, true, Order::cancel, Some((Cancelled, &[]))),
            (Rejected, true, Order::cancel, None),
            (Confirmed, true, cancelled, Some((Cancelled, &["order.cancelled"]))),
            (Cancelled, true, cancelled, Some((Cancelled, &[]))),
            (Pending, true, cancelled, None),
            (Rejected, false, cancelled, None),
            (Pending, false, ship, Some((Pending, &[]))),
            (Confirmed, true, ship, Some((Confirmed, &[]))),
            (Rejected, false, ship, None),
            (Cancelled, true, ship, None),
        ];
        for (n, (status, noted, step, expected)) in table.iter().enumerate() {
            let mut order = order(*status, *noted);
            let told = step(&mut order).ok();
            let topics: Option<Vec<_>> = told.map(|told| told.iter().map(|(topic, _)| *topic).collect());
            assert_eq!(topics.as_deref().map(|topics| (order.status, topics)), *expected, "row {n}");
            let events = i64::try_from(topics.unwrap_or_default().len()).unwrap();
            assert_eq!(order.version, 1 + events, "row {n}: one version for each event");
        }
    }

    #[test]
    fn a_total_that_cannot_be_counted_is_none() {
        let item = |amount, currency, quantity| Item {
            price: Money::new(amount, currency),
            quantity,
            ..order(Status::Pending, false).items[0].clone()
        };
        assert_eq!(total(&[item(999, "EUR", 2), item(1, "EUR", 100)]), Some(Money::new(2098, "EUR")));
        assert_eq!(total(&[item(999, "EUR", 2), item(1, "USD", 1)]), None);
        assert_eq!(total(&[item(i64::MAX, "EUR", 2)]), None);
        assert_eq!(total(&[]), None);
    }
}
