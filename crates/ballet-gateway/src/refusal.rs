//! Every way in which the gateway refuses a request: code, status, and what the client is told.

use std::time::Duration;

use ballet_core::{CodeEntry, ErrorCode, Policy, Problem, TraceContext};
use ballet_proxy::{Answer, CallError};
use ballet_resilience::Rate;

use crate::jwt::TokenError;
use crate::route::Allow;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// The codec says the bytes are no acceptable request.
    Bad {
        status: u16,
        reason: String,
    },
    NoRoute,
    Method(Allow),
    NoToken,
    Token(TokenError),
    Role {
        rule: String,
    },
    NoKeys,
    Limited {
        retry_after: Duration,
        reset: Duration,
        rate: Rate,
    },
    IdempotencyKey,
    /// The service is out of reach; nothing or something was sent.
    Unavailable {
        reason: &'static str,
        retry_after: Option<Duration>,
        title: Option<(u16, String)>,
    },
    Timeout {
        title: Option<(u16, String)>,
    },
    BadAnswer {
        reason: &'static str,
    },
    /// An expression of the route has no value for this request.
    Expression {
        detail: String,
    },
    /// A required part of a merged answer failed.
    Part {
        name: String,
        status: u16,
        detail: String,
    },
    NotFound,
    TooLarge {
        detail: &'static str,
    },
    Internal {
        reason: &'static str,
    },
}

impl Refusal {
    /// What a failed call means for the client, with the policy's fallback.
    pub(crate) fn of_call(error: &CallError, policy: &Policy) -> Self {
        let title = policy.fallback.as_ref().map(|fallback| (fallback.status, fallback.title.clone()));
        let unavailable = |reason, retry_after| Self::Unavailable { reason, retry_after, title: title.clone() };
        match error {
            CallError::NoInstance => unavailable("no instance", None),
            CallError::Connect(_) => unavailable("cannot connect", None),
            CallError::BreakerOpen { retry_after } => unavailable("breaker open", Some(*retry_after)),
            CallError::BulkheadFull => unavailable("bulkhead full", None),
            CallError::TimedOut { .. } => Self::Timeout { title },
            CallError::Lost(_) => match title {
                Some(_) => unavailable("connection lost", None),
                None => Self::BadAnswer { reason: "connection lost" },
            },
            CallError::TooLarge => Self::BadAnswer { reason: "answer too large" },
            CallError::Malformed(_) => Self::BadAnswer { reason: "answer is not HTTP" },
            CallError::Invalid(_) => Self::Internal { reason: "request could not be written" },
        }
    }

    pub(crate) fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Bad { .. } => "GW001",
            Self::NoRoute => "GW002",
            Self::Method(_) => "GW003",
            Self::NoToken => "GW004",
            Self::Token(_) => "GW005",
            Self::Role { .. } => "GW006",
            Self::NoKeys => "GW007",
            Self::Limited { .. } => "GW008",
            Self::IdempotencyKey => "GW009",
            Self::Unavailable { .. } => "GW010",
            Self::Timeout { .. } => "GW011",
            Self::BadAnswer { .. } => "GW012",
            Self::Expression { .. } => "GW013",
            Self::Part { .. } => "GW014",
            Self::NotFound => "GW015",
            Self::TooLarge { .. } => "GW016",
            Self::Internal { .. } => "GW017",
        })
    }

    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Bad { status, .. } | Self::Part { status, .. } => *status,
            Self::NoRoute | Self::NotFound => 404,
            Self::Method(_) => 405,
            Self::NoToken | Self::Token(_) => 401,
            Self::Role { .. } => 403,
            Self::NoKeys => 503,
            Self::Limited { .. } => 429,
            Self::IdempotencyKey | Self::Expression { .. } => 400,
            Self::Unavailable { title, .. } => title.as_ref().map_or(503, |(status, _)| *status),
            Self::Timeout { title } => title.as_ref().map_or(504, |(status, _)| *status),
            Self::BadAnswer { .. } => 502,
            Self::TooLarge { .. } => 413,
            Self::Internal { .. } => 500,
        }
    }

    /// The reason as the access log tells it: few values, no names of users.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Bad { reason, .. } => reason,
            Self::NoRoute => "no route",
            Self::Method(_) => "method not allowed",
            Self::NoToken => "no token",
            Self::Token(error) => match error {
                TokenError::Malformed => "token malformed",
                TokenError::Algorithm => "token algorithm",
                TokenError::UnknownKey => "token key unknown",
                TokenError::Signature => "token signature",
                TokenError::Expired => "token expired",
                TokenError::NotYet => "token not yet valid",
                TokenError::Issuer => "token issuer",
                TokenError::Audience => "token audience",
            },
            Self::Role { .. } => "role missing",
            Self::NoKeys => "keys unknown",
            Self::Limited { .. } => "rate limit",
            Self::IdempotencyKey => "idempotency key",
            Self::Unavailable { reason, .. } | Self::BadAnswer { reason } | Self::Internal { reason } => reason,
            Self::Timeout { .. } => "timed out",
            Self::Expression { .. } => "expression without value",
            Self::Part { .. } => "required part failed",
            Self::NotFound => "no such file",
            Self::TooLarge { .. } => "too large",
        }
    }

    fn title(&self) -> &str {
        match self {
            Self::Bad { .. } => "The request is malformed",
            Self::NoRoute | Self::NotFound => "Not found",
            Self::Method(_) => "Method not allowed",
            Self::NoToken => "A token is needed",
            Self::Token(_) => "The token is not valid",
            Self::Role { .. } => "Not allowed",
            Self::NoKeys => "Tokens cannot be checked at the moment",
            Self::Limited { .. } => "Too many requests",
            Self::IdempotencyKey => "The Idempotency-Key is not valid",
            Self::Unavailable { title, .. } => title.as_ref().map_or("The service is unavailable", |(_, title)| title),
            Self::Timeout { title } => title.as_ref().map_or("The service did not answer in time", |(_, title)| title),
            Self::BadAnswer { .. } => "The service gave no proper answer",
            Self::Expression { .. } => "The request lacks something",
            Self::Part { .. } => "A part of the answer is missing",
            Self::TooLarge { .. } => "Too large",
            Self::Internal { .. } => "The gateway failed",
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Bad { reason, .. } => Some(reason.clone()),
            Self::Method(allow) => Some(format!("this path answers to {allow}")),
            Self::Token(error) => Some(error.to_string()),
            Self::Role { rule } => Some(format!("the rule `{rule}` asks for a role that the token does not have")),
            Self::NoKeys => Some("the keys that verify tokens are not known yet".into()),
            Self::Limited { rate, .. } => Some(format!("the limit is {} per {} s", rate.count, rate.per.as_secs())),
            Self::IdempotencyKey => Some("keys with `/` are the platform's own".into()),
            Self::Expression { detail } => Some(detail.clone()),
            Self::Part { name, detail, .. } => Some(format!("`{name}`: {detail}")),
            Self::TooLarge { detail } => Some((*detail).into()),
            Self::NoRoute
            | Self::NoToken
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::BadAnswer { .. }
            | Self::NotFound
            | Self::Internal { .. } => None,
        }
    }

    /// The whole answer.
    pub(crate) fn answer(&self, trace: &TraceContext) -> Answer {
        let mut problem = Problem::new(self.status(), self.title()).code(self.code().0).trace_id(trace.trace_id());
        problem.detail = self.detail();
        let answer = Answer::problem(&problem);
        match self {
            Self::Method(allow) => answer.header("allow", allow.to_string()),
            // RFC 6750 §3: no error code when no token came.
            Self::NoToken => answer.header("www-authenticate", "Bearer"),
            Self::Token(error) => {
                let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{error}\"");
                answer.header("www-authenticate", challenge)
            }
            Self::Role { .. } => answer.header("www-authenticate", "Bearer error=\"insufficient_scope\""),
            Self::NoKeys => answer.header("retry-after", "1"),
            Self::Limited { retry_after, reset, rate } => answer
                .header("retry-after", whole_seconds(*retry_after).to_string())
                .header("ratelimit-policy", policy(*rate))
                .header("ratelimit", state(0, *reset)),
            Self::Unavailable { retry_after, .. } => {
                let rest = retry_after.map_or(1, whole_seconds).max(1);
                answer.header("retry-after", rest.to_string())
            }
            Self::Bad { .. }
            | Self::NoRoute
            | Self::IdempotencyKey
            | Self::Timeout { .. }
            | Self::BadAnswer { .. }
            | Self::Expression { .. }
            | Self::Part { .. }
            | Self::NotFound
            | Self::TooLarge { .. }
            | Self::Internal { .. } => answer,
        }
    }
}

/// The number of one of our codes: 8 for `GW008`.
pub(crate) fn number(code: ErrorCode) -> usize {
    code.0.get(2..).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
pub(crate) fn policy(rate: Rate) -> String {
    format!("\"route\";q={};w={}", rate.count, rate.per.as_secs())
}

/// `RateLimit`.
pub(crate) fn state(left: u32, reset: Duration) -> String {
    format!("\"route\";r={left};t={}", whole_seconds(reset))
}

/// Rounded up: whoever comes back then is let in.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

const fn row(code: &'static str, title: &'static str, cause: &'static str, remedy: &'static str) -> CodeEntry {
    CodeEntry { code: ErrorCode(code), title, cause, remedy }
}

/// The gateway's rows of the error table.
pub static CODES: &[CodeEntry] = &[
    row(
        "GW001",
        "the request is malformed",
        "The bytes are not a request that every program would read the same way: framing, Host, path or header lines.",
        "See `detail`. Strictness is no setting: what is refused here has been used to smuggle requests past gateways.",
    ),
    row(
        "GW002",
        "no route matches",
        "No route of `gateway: routes:` has this path.",
        "`ballet explain GET /path` shows what would match. Paths are compared with case, and `/a/` is not `/a`.",
    ),
    row(
        "GW003",
        "the path answers to other methods",
        "Routes have this path, none this method.",
        "The `Allow` header lists the methods. `ANY` in a route takes all but CONNECT and TRACE.",
    ),
    row(
        "GW004",
        "no token",
        "The route has an `access:` rule and the request has no `Authorization: Bearer` header.",
        "Log in and send the token.",
    ),
    row(
        "GW005",
        "the token is not valid",
        "Signature, issuer, audience or times are not what the rule's `jwt:` asks for.",
        "See `detail`. `issuer` and `audience` are compared exactly; clocks may differ by 10 s.",
    ),
    row(
        "GW006",
        "a role is missing",
        "The token is valid, and its `roles` hold none of those that the rule allows.",
        "Give the user the role, or use another rule. A new role needs a new token.",
    ),
    row(
        "GW007",
        "the keys are unknown",
        "The JWKS document of the rule could not be fetched since the start, so no token can be verified, and none is let through.",
        "Look whether the service that serves it is up (`ballet ps`) and the path in `keys:` is right. It heals by itself.",
    ),
    row(
        "GW008",
        "the rate limit is reached",
        "The route's `limit:` admits no further request of this address, claim or header value now.",
        "Come back after `Retry-After` seconds, or raise the limit; `wait:` queues instead of refusing.",
    ),
    row(
        "GW009",
        "the idempotency key is not a client's",
        "`Idempotency-Key` holds `/`, which divides the parts of the engine's own keys, or is longer than 255 characters.",
        "Use a UUID.",
    ),
    row(
        "GW010",
        "the service is unavailable",
        "No instance is up, none takes a connection, its breaker is open, or its bulkhead is full.",
        "`ballet ps` shows instances and breakers. The breaker closes by itself once a probe succeeds.",
    ),
    row(
        "GW011",
        "the service did not answer in time",
        "The policy's or the route's `timeout` passed. What the service did is unknown.",
        "Look at the trace. Raise `timeout`, or make the answer come later (`202`).",
    ),
    row(
        "GW012",
        "the service gave no proper answer",
        "The connection was lost before the whole answer came, or the answer is not HTTP/1.1 as the standard has it.",
        "Look at the service's log at that time.",
    ),
    row(
        "GW013",
        "an expression has no value",
        "The route's target holds `${…}` for which this request has nothing, or something that would change the path's shape.",
        "Send what is missing, or give the expression a default: `${query.page:-1}`.",
    ),
    row(
        "GW014",
        "a required part failed",
        "A part of a `merge:` route with `required: true` gave no good answer.",
        "See `detail`. A part that is not required gives its `fallback` instead.",
    ),
    row(
        "GW015",
        "no such file",
        "Nothing lies at this path below the route's `static:` directory, or it may not be served.",
        "Names that begin with a dot, and links that lead outside, are never served.",
    ),
    row(
        "GW016",
        "too large",
        "A merged answer is longer than 16 MiB.",
        "Ask the parts for less: a `limit` in their queries.",
    ),
    row(
        "GW017",
        "the gateway failed",
        "An error of the gateway or its machine, not of the request.",
        "The gateway's log has the cause under the same trace id. Please report it.",
    ),
    row(
        "GW020",
        "the routes cannot be loaded",
        "Two routes are the same, or both match some path and neither is more specific, or one is malformed.",
        "The message names both. Routes are compared segment by segment: a literal beats `{name}`, which beats `**`.",
    ),
    row(
        "GW021",
        "the route's target is not built in yet",
        "`workflow:`, `topic:` and `migrate:` targets, and addresses behind `https`, are not served by this version.",
        "Use a service as target.",
    ),
    row(
        "GW022",
        "the gateway cannot listen",
        "The address of `gateway: listen:` is taken, or is not this machine's.",
        "Choose another port: `--set gateway.listen=127.0.0.1:8081`.",
    ),
    row(
        "GW023",
        "the access log cannot be opened",
        "The file or its directory cannot be written.",
        "Look at the path's owner and rights.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_in_the_table_once() {
        let mut codes: Vec<_> = CODES.iter().map(|entry| entry.code).collect();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
        let refusals = [
            Refusal::Bad { status: 400, reason: String::new() },
            Refusal::NoRoute,
            Refusal::NoKeys,
            Refusal::NotFound,
            Refusal::Internal { reason: "" },
        ];
        for refusal in refusals {
            assert!(codes.contains(&refusal.code()), "{refusal:?}");
            assert!(number(refusal.code()) < crate::handler::REFUSALS);
        }
    }

    #[test]
    fn a_fallback_speaks_for_a_service_out_of_reach() {
        let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let fallback = ballet_core::Fallback { status: 503, title: "Payment service is unavailable.".into() };
        let policy = Policy { fallback: Some(fallback), ..Policy::default() };
        let retry_after = Duration::from_millis(2500);
        let cases = [
            (CallError::BreakerOpen { retry_after }, 503, "GW010", Some("3")),
            (CallError::NoInstance, 503, "GW010", Some("1")),
            (CallError::TimedOut { sent: true }, 503, "GW011", None),
            (CallError::Malformed(String::new()), 502, "GW012", None),
        ];
        for (error, status, code, retry_after) in cases {
            let answer = Refusal::of_call(&error, &policy).answer(&trace);
            let ballet_proxy::AnswerBody::Full(body) = &answer.body else { panic!("a stream") };
            let problem: Problem = serde_json::from_slice(body).unwrap();
            assert_eq!((answer.status, problem.code.as_deref()), (status, Some(code)), "{error}");
            let header = answer.headers.iter().find(|(name, _)| name == "retry-after").map(|(_, value)| value.as_str());
            assert_eq!(header, retry_after, "{error}");
            if status == 503 {
                assert_eq!(problem.title, "Payment service is unavailable.", "{error}");
            }
            assert_eq!(problem.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        }
        assert_eq!(Refusal::of_call(&CallError::TimedOut { sent: true }, &Policy::default()).status(), 504);
    }
}
