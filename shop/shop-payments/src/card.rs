//! What a card's number tells, so that the number itself can be forgotten.

use ballet_service::Timestamp;
use serde::{Deserialize, Serialize};

/// All that is kept of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    pub(crate) last4: String,
    pub(crate) brand: String,
    pub(crate) expiry: String,
    pub(crate) behaviour: Behaviour,
}

/// What the bank does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Behaviour {
    Pays,
    Refuses,
    /// Fails twice for each order, then pays.
    Flaky,
}

impl Behaviour {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pays => "pays",
            Self::Refuses => "refuses",
            Self::Flaky => "flaky",
        }
    }
}

/// Reads a number, spaces and dashes allowed; `None` if it is none (12 to 19 digits that pass the check of Luhn, ISO/IEC
/// 7812-1).
pub(crate) fn read(number: &str, expiry: &str) -> Option<Card> {
    let digits: String = number.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    let plain = (12..=19).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if !plain || !luhn(&digits) {
        return None;
    }
    let behaviour = match digits.as_str() {
        "4000000000000002" => Behaviour::Refuses,
        "4000000000000119" => Behaviour::Flaky,
        _ => Behaviour::Pays,
    };
    let last4 = digits[digits.len() - 4..].to_owned();
    Some(Card { last4, brand: brand(&digits).into(), expiry: expiry.into(), behaviour })
}

/// Whether `expiry` is `MM/YY` and that month is not over.
pub(crate) fn is_valid_until(expiry: &str, now: Timestamp) -> bool {
    let two = |text: &str| text.parse::<u32>().ok().filter(|_| text.len() == 2 && !text.starts_with('+'));
    let Some((month, year)) = expiry.split_once('/').and_then(|(month, year)| Some((two(month)?, two(year)?))) else {
        return false;
    };
    // "2026-11-21T13:30:00.250Z"
    let today = now.to_string();
    let (this_year, this_month) = (today.get(2..4).and_then(two), today.get(5..7).and_then(two));
    (1..=12).contains(&month) && (Some(year), Some(month)) >= (this_year, this_month)
}

fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .bytes()
        .rev()
        .zip([1, 2].into_iter().cycle())
        .map(|(digit, weight)| u32::from(digit - b'0') * weight)
        .map(|product| product / 10 + product % 10)
        .sum();
    sum.is_multiple_of(10)
}

fn brand(digits: &str) -> &'static str {
    let prefix = |length: usize| digits[..length].parse::<u32>().unwrap_or_default();
    match (prefix(2), prefix(4)) {
        (40..=49, _) => "visa",
        (51..=55, _) | (_, 2221..=2720) => "mastercard",
        (34 | 37, _) => "amex",
        _ => "card",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_tells_its_brand_and_a_wrong_one_nothing() {
        for (number, expected) in [
            ("4242424242424242", Some(("4242", "visa", Behaviour::Pays))),
            ("4000 0000 0000 0002", Some(("0002", "visa", Behaviour::Refuses))),
            ("4000-0000-0000-0119", Some(("0119", "visa", Behaviour::Flaky))),
            ("5555555555554444", Some(("4444", "mastercard", Behaviour::Pays))),
            ("2223003122003222", Some(("3222", "mastercard", Behaviour::Pays))),
            ("378282246310005", Some(("0005", "amex", Behaviour::Pays))),
            ("6011111111111117", Some(("1117", "card", Behaviour::Pays))),
            ("4242424242424241", None),
            ("42424242", None),
            ("", None),
            ("٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢", None),
            ("4242424242424242424242424242", None),
        ] {
            let card = read(number, "12/30");
            let seen = card.as_ref().map(|card| (card.last4.as_str(), card.brand.as_str(), card.behaviour));
            assert_eq!(seen, expected, "{number}");
        }
    }

    #[test]
    fn a_card_is_good_until_its_month_is_over() {
        let now = Timestamp::parse("2026-11-21T13:30:00Z").unwrap();
        for (expiry, good) in [
            ("11/26", true),
            ("12/26", true),
            ("01/27", true),
            ("10/26", false),
            ("12/25", false),
            ("13/30", false),
            ("1/30", false),
            ("12/2030", false),
            ("+1/30", false),
            ("", false),
        ] {
            assert_eq!(is_valid_until(expiry, now), good, "{expiry}");
        }
    }
}
