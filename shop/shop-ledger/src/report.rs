//! What the auditor says.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::books::{Books, Status, name};

/// Broken rules that are printed one by one; the rest is counted.
const SHOWN: usize = 20;

/// What was checked, and what was found.
pub(crate) struct Report {
    waited: Duration,
    orders: Vec<(Status, usize)>,
    products: usize,
    payments: usize,
    notifications: usize,
    events: usize,
    pub(crate) rules: Vec<Rule>,
    /// What had not come to rest when patience ended.
    pub(crate) under_way: Vec<String>,
}

pub(crate) struct Rule {
    pub(crate) number: usize,
    title: &'static str,
    pub(crate) violations: Vec<String>,
}

impl Report {
    pub(crate) fn of(books: &Books, waited: Duration) -> Self {
        let rules = [
            ("every order has ended", books.endings()),
            ("stock adds up, nothing is reserved or negative", books.stock()),
            ("captured payments are those of confirmed orders", books.money()),
            ("one notification for each order and outcome", books.notes()),
            ("each order's events arrived in order", books.order_of_events()),
        ];
        let statuses = [Status::Confirmed, Status::Rejected, Status::Cancelled, Status::Pending];
        Self {
            waited,
            orders: statuses.into_iter().map(|status| (status, books.with(status).count())).collect(),
            products: books.inventory.products.len(),
            payments: books.payments.payments.len(),
            notifications: books.notifications.notifications.len(),
            events: books.notifications.heard.len(),
            rules: (1..).zip(rules).map(|(number, (title, violations))| Rule { number, title, violations }).collect(),
            under_way: books.under_way(),
        }
    }

    pub(crate) fn agrees(&self) -> bool {
        self.rules.iter().all(|rule| rule.violations.is_empty())
    }

    pub(crate) fn text(&self) -> String {
        let orders: Vec<_> = self.orders.iter().map(|(status, count)| format!("{count} {}", name(*status))).collect();
        let mut text = format!(
            "checked {} orders ({}), {} products, {} payments, {} notifications, {} events\n",
            self.orders.iter().map(|(_, count)| count).sum::<usize>(),
            orders.join(", "),
            self.products,
            self.payments,
            self.notifications,
            self.events
        );
        for what in &self.under_way {
            text += &format!("still under way after {} s: {what}\n", self.waited.as_secs());
        }
        for Rule { number, title, violations } in &self.rules {
            let verdict =
                if violations.is_empty() { "holds".into() } else { format!("broken {} times", violations.len()) };
            let _ = writeln!(text, "rule {number}: {title}: {verdict}");
            for violation in violations.iter().take(SHOWN) {
                let _ = writeln!(text, "  {violation}");
            }
            if violations.len() > SHOWN {
                let _ = writeln!(text, "  and {} more", violations.len() - SHOWN);
            }
        }
        text += if self.agrees() { "the books agree\n" } else { "the books do not agree\n" };
        text
    }

    pub(crate) fn json(&self) -> String {
        let rule = |Rule { number, title, violations }: &Rule| -> Value {
            json!({"rule": number, "title": title, "violations": violations})
        };
        let orders: serde_json::Map<_, _> =
            self.orders.iter().map(|(status, count)| (name(*status).to_lowercase(), json!(count))).collect();
        let report = json!({
            "agrees": self.agrees(),
            "waitedMs": u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX),
            "checked": {
                "orders": orders, "products": self.products, "payments": self.payments,
                "notifications": self.notifications, "events": self.events,
            },
            "rules": self.rules.iter().map(rule).collect::<Vec<_>>(),
            "underWay": self.under_way,
        });
        format!("{report:#}\n")
    }
}
