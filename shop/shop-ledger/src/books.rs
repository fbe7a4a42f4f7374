//! The books, and what they must say of each other.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// Everything that was read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Books {
    pub(crate) orders: Orders,
    pub(crate) inventory: Inventory,
    pub(crate) payments: Payments,
    pub(crate) notifications: Notifications,
    /// Topic and group of what the bus has yet to deliver, and how much.
    #[serde(default)]
    pub(crate) waiting: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Orders {
    pub(crate) orders: Vec<Order>,
    #[serde(default)]
    pub(crate) unsent: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) status: Status,
    items: Vec<Item>,
    total: Money,
    payment_id: Option<String>,
    #[serde(default)]
    cancel_requested: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    Pending,
    Confirmed,
    Rejected,
    Cancelled,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    product_id: String,
    quantity: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Money {
    amount: i64,
    currency: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Inventory {
    pub(crate) products: Vec<Product>,
    #[serde(default)]
    pub(crate) unsent: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Product {
    product_id: String,
    initial: i64,
    increased: i64,
    decreased: i64,
    available: i64,
    reserved: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Payments {
    pub(crate) payments: Vec<Payment>,
    #[serde(default)]
    pub(crate) unsent: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Payment {
    id: String,
    order_id: String,
    status: String,
    amount: i64,
    currency: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Notifications {
    pub(crate) notifications: Vec<Notification>,
    pub(crate) heard: Vec<Heard>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Notification {
    order_id: Option<String>,
    outcome: Option<Status>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Heard {
    order_id: String,
    r#type: String,
    version: i64,
}

impl Books {
    /// What has not come to rest.
    pub(crate) fn under_way(&self) -> Vec<String> {
        let orders = &self.orders.orders;
        let pending = orders.iter().filter(|order| order.status == Status::Pending).count();
        let cancelling =
            orders.iter().filter(|order| order.status == Status::Confirmed && order.cancel_requested).count();
        let unsent =
            [("orders", self.orders.unsent), ("inventory", self.inventory.unsent), ("payments", self.payments.unsent)];
        let mut under_way = vec![];
        let mut note = |count: u64, what: String| {
            if count > 0 {
                under_way.push(format!("{count} {what}"));
            }
        };
        note(pending as u64, "orders pending".into());
        note(cancelling as u64, "orders being cancelled".into());
        for (service, count) in unsent {
            note(count, format!("events in the outbox of {service}"));
        }
        for (group, count) in &self.waiting {
            note(*count, format!("events on their way ({group})"));
        }
        under_way
    }

    /// Rule 1: every order has ended.
    pub(crate) fn endings(&self) -> Vec<String> {
        let pending = self.orders.orders.iter().filter(|order| order.status == Status::Pending);
        pending.map(|order| format!("order {} is PENDING", order.id)).collect()
    }

    /// Rule 2: what came in is there or was sold.
    pub(crate) fn stock(&self) -> Vec<String> {
        let mut sold: BTreeMap<&str, i64> = BTreeMap::new();
        for item in self.with(Status::Confirmed).flat_map(|order| &order.items) {
            *sold.entry(&item.product_id).or_default() += item.quantity;
        }
        let mut wrong = vec![];
        for product in &self.inventory.products {
            let Product { product_id: id, initial, increased, decreased, available, reserved } = product;
            let sold = sold.remove(id.as_str()).unwrap_or_default();
            let (came, gone) = (initial + increased - decreased, available + reserved + sold);
            if came != gone {
                wrong.push(format!(
                    "{id}: {initial} + {increased} - {decreased} = {came} came in, but {available} available + {reserved} reserved + {sold} sold = {gone}"
                ));
            }
            if *reserved != 0 {
                wrong.push(format!("{id}: {reserved} still reserved"));
            }
            if *available < 0 || *reserved < 0 {
                wrong.push(format!("{id}: negative stock ({available} available, {reserved} reserved)"));
            }
        }
        wrong.extend(sold.into_iter().map(|(id, count)| format!("{id}: {count} sold of what inventory does not know")));
        wrong
    }

    /// Rule 3: who has goods has paid, who has none has not.
    pub(crate) fn money(&self) -> Vec<String> {
        let mut captured: HashMap<&str, Vec<&Payment>> = HashMap::new();
        for payment in self.payments.payments.iter().filter(|payment| payment.status == "CAPTURED") {
            captured.entry(&payment.order_id).or_default().push(payment);
        }
        let mut wrong = vec![];
        // Payments of no order are staff's own and free.
        for order in &self.orders.orders {
            let Order { id, status, total, payment_id, .. } = order;
            let paid = captured.remove(id.as_str()).unwrap_or_default();
            match (status, paid.as_slice()) {
                (Status::Confirmed, []) => wrong.push(format!("order {id} is CONFIRMED and not paid")),
                (Status::Confirmed, [payment]) => {
                    if payment.amount != total.amount || payment.currency != total.currency {
                        wrong.push(format!(
                            "order {id} costs {} {}, but payment {} took {} {}",
                            total.amount, total.currency, payment.id, payment.amount, payment.currency
                        ));
                    }
                    if payment_id.as_ref() != Some(&payment.id) {
                        wrong.push(format!("order {id} names another payment than {}", payment.id));
                    }
                }
                (Status::Confirmed, several) => wrong.push(format!("order {id} was paid {} times", several.len())),
                (Status::Pending | Status::Rejected | Status::Cancelled, []) => {}
                (Status::Pending | Status::Rejected | Status::Cancelled, taken) => {
                    wrong.push(format!("order {id} is {}, but payment {} is CAPTURED", name(*status), taken[0].id));
                }
            }
        }
        wrong
    }

    /// Rule 4: everybody was told everything once.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut told: BTreeMap<(&str, Status), usize> = BTreeMap::new();
        for notification in &self.notifications.notifications {
            if let (Some(order), Some(outcome)) = (&notification.order_id, notification.outcome) {
                *told.entry((order, outcome)).or_default() += 1;
            }
        }
        let mut wrong = vec![];
        for order in &self.orders.orders {
            let outcomes: &[Status] = match order.status {
                Status::Pending => &[],
                Status::Confirmed => &[Status::Confirmed],
                Status::Rejected => &[Status::Rejected],
                Status::Cancelled => &[Status::Confirmed, Status::Cancelled],
            };
            for outcome in outcomes {
                match told.remove(&(order.id.as_str(), *outcome)) {
                    Some(1) => {}
                    count => wrong.push(format!(
                        "order {}: {} notifications of {}",
                        order.id,
                        count.unwrap_or_default(),
                        name(*outcome)
                    )),
                }
            }
        }
        let left = told.into_keys();
        wrong.extend(
            left.map(|(order, outcome)| format!("order {order}: notified of {}, which it is not", name(outcome))),
        );
        wrong
    }

    /// Rule 5: nobody heard the end before the beginning. The same event once more is no harm.
    pub(crate) fn order_of_events(&self) -> Vec<String> {
        let mut heard: HashMap<&str, Vec<&Heard>> = HashMap::new();
        let mut wrong = vec![];
        for event in &self.notifications.heard {
            let before = heard.entry(&event.order_id).or_default();
            if before.iter().any(|known| known.version == event.version && known.r#type == event.r#type) {
                continue;
            }
            if let Some(last) = before.last().filter(|last| last.version >= event.version) {
                wrong.push(format!(
                    "order {}: {} (version {}) arrived behind {} (version {})",
                    event.order_id, event.r#type, event.version, last.r#type, last.version
                ));
            }
            before.push(event);
        }
        wrong
    }

    pub(crate) fn with(&self, status: Status) -> impl Iterator<Item = &Order> {
        self.orders.orders.iter().filter(move |order| order.status == status)
    }
}

pub(crate) fn name(status: Status) -> &'static str {
    match status {
        Status::Pending => "PENDING",
        Status::Confirmed => "CONFIRMED",
        Status::Rejected => "REJECTED",
        Status::Cancelled => "CANCELLED",
    }
}
