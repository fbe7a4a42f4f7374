//! Names and ids: strings whose form was checked once, cheap to clone and never mixed up.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {noun}: {rule}")]
pub struct NameError {
    /// What was read, shortened to 80 characters.
    pub text: String,
    /// What it should have been: "service name".
    pub noun: &'static str,
    /// The rule it breaks.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $noun:literal, $check:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                if $check(text) {
                    return Ok(Self(text.into()));
                }
                Err(NameError { text: text.chars().take(80).collect(), noun: $noun, rule: $rule })
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// Name of a service, alone (`orders`, in the namespace `default`) or with its namespace (`orders.shop`).
    /// Each part is a DNS label (RFC 1123), because DNS, Consul and Kubernetes have to carry it.
    ServiceName, "service name", service, "use a-z, 0-9 and `-`, a letter first, at most 63 characters (`name` or `name.namespace`)"
}
name! {
    /// Namespace that names live in. `default` unless said otherwise.
    Namespace, "namespace", label, "use a-z, 0-9 and `-`, a letter first, at most 63 characters"
}
name! {
    /// Name of a topic, which is also the type of its events: `order.placed`.
    TopicName, "topic name", dotted, "use a-z, 0-9, `.`, `_` and `-`, a letter or digit first, at most 200 characters"
}
name! {
    /// Name of a consumer group.
    GroupName, "consumer group name", free, "use 1 to 200 visible characters without `/` or spaces at the ends"
}
name! {
    /// Name of a workflow definition. Conductor allows nearly any text.
    WorkflowName, "workflow name", free, "use 1 to 200 visible characters without `/` or spaces at the ends"
}
name! {
    /// Id of one execution of a workflow: `checkout-42`. Without `/`, which divides the parts of an idempotency key.
    ExecutionId, "execution id", free, "use 1 to 200 visible characters without `/` or spaces at the ends"
}
name! {
    /// Id of one task of an execution; every attempt has its own.
    TaskId, "task id", free, "use 1 to 200 visible characters without `/` or spaces at the ends"
}
name! {
    /// Id of one instance of a service: `orders-1`.
    InstanceId, "instance id", free, "use 1 to 200 visible characters without `/` or spaces at the ends"
}

impl ServiceName {
    /// The service's own name, without its namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('.').map_or(&*self.0, |(name, _)| name)
    }

    /// The namespace; `default` when none was given.
    pub fn namespace(&self) -> &str {
        self.0.split_once('.').map_or("default", |(_, namespace)| namespace)
    }
}

fn label(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn service(text: &str) -> bool {
    match text.split_once('.') {
        // `orders.default` and `orders` would be two names for one service.
        Some((name, namespace)) => label(name) && label(namespace) && namespace != "default",
        None => label(text),
    }
}

fn dotted(text: &str) -> bool {
    text.len() <= 200
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

fn free(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && text.trim() == text
        && !text.contains('/')
        && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        for good in ["orders", "a", "order-items2", "orders.shop"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "Orders", "1st", "a_b", "a-", "a.b.c", "a.default", "ü", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
        for bad in ["", "a/b", " a", "a\n"] {
            assert!(bad.parse::<ExecutionId>().is_err(), "{bad:?}");
        }
        assert!("order.placed".parse::<TopicName>().is_ok());
        assert!("Order Placed".parse::<TopicName>().is_err());
    }

    #[test]
    fn a_service_name_carries_its_namespace() {
        let name: ServiceName = "orders.shop".parse().unwrap();
        assert_eq!((name.name(), name.namespace()), ("orders", "shop"));
        let name: ServiceName = "orders".parse().unwrap();
        assert_eq!((name.name(), name.namespace()), ("orders", "default"));
    }

    #[test]
    fn a_bad_name_is_refused_inside_json_too() {
        let error = serde_json::from_str::<TopicName>("\"No Good\"").unwrap_err().to_string();
        assert!(error.contains("is not a topic name"), "{error}");
    }
}
