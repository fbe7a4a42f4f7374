//! What an exchange came to, as the saga contract's third line divides it.

use ballet_proxy::{CallError, CallResponse};
use serde_json::{Map, Value, json};

/// Longest output that a task may keep, in bytes of JSON: 1 MiB.
pub(crate) const MAX_OUTPUT: usize = 1 << 20;
/// What `${failure.code}` says of a step whose answer was too long.
pub(crate) const TOO_LARGE: &str = "output-too-large";

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Done, with this output.
    Done(Value),
    /// Not done, and never will be.
    Refused {
        /// For people.
        reason: String,
        /// For `${failure.code}`.
        code: String,
        /// The HTTP status, or 0.
        status: u16,
        /// What came along.
        output: Value,
    },
    /// Out of reach: uses up no attempt.
    Waiting {
        /// For people.
        reason: String,
        /// A byte was written (a 503).
        contacted: bool,
    },
    /// It may have been done, or failed half-way: uses up an attempt.
    Unknown {
        /// For people.
        reason: String,
        /// The code that came along.
        code: Option<String>,
        /// The HTTP status, or 0.
        status: u16,
        /// No answer came in time.
        timed_out: bool,
        /// What came along.
        output: Value,
    },
    /// Done, says its status, but the answer cannot be kept: the workflow fails, and the step is undone. An undo or
    /// `failed:`, whose answers nobody needs, is done.
    Unusable(String),
}

/// Divides an exchange.
pub(crate) fn classify(result: Result<CallResponse, CallError>, keep_headers: bool) -> Outcome {
    let response = match result {
        Ok(response) => response,
        Err(error) => return no_answer(&error),
    };
    let status = response.status;
    if status == 503 {
        return Outcome::Waiting { reason: "the service answered 503".into(), contacted: true };
    }
    if response.body.len() > MAX_OUTPUT {
        let reason = format!("the answer ({status}) is longer than {MAX_OUTPUT} bytes");
        return if (200..300).contains(&status) {
            Outcome::Unusable(reason)
        } else {
            Outcome::Unknown { reason, code: None, status, timed_out: false, output: json!({}) }
        };
    }
    let body = match serde_json::from_slice::<Value>(&response.body) {
        Ok(body) => body,
        Err(_) if response.body.is_empty() => Value::Null,
        Err(_) => Value::String(String::from_utf8_lossy(&response.body).into_owned()),
    };
    let code = body.get("code").and_then(Value::as_str).map(str::to_owned);
    let detail = ["detail", "title", "message"].iter().find_map(|key| body.get(*key)?.as_str());
    let reason = match detail {
        Some(detail) => format!("the service answered {status}: {}", detail.chars().take(300).collect::<String>()),
        None => format!("the service answered {status}"),
    };
    let mut output = json!({ "response": { "statusCode": status, "reasonPhrase": phrase(status), "body": body } });
    if keep_headers {
        output["response"]["headers"] = headers(&response.headers);
    }
    match status {
        200..300 => Outcome::Done(output),
        408 | 425 | 429 => Outcome::Unknown { reason, code, status, timed_out: false, output },
        400..500 => Outcome::Refused { reason, code: code.unwrap_or_else(|| format!("http-{status}")), status, output },
        // 3xx says nothing about whether it was done; neither does a 5xx.
        _ => Outcome::Unknown { reason, code, status, timed_out: false, output },
    }
}

fn no_answer(error: &CallError) -> Outcome {
    let reason = error.to_string();
    match error {
        // Nothing was sent and nothing ever can be: the same as a refusal.
        CallError::Invalid(_) => {
            Outcome::Refused { reason, code: "invalid-request".into(), status: 0, output: json!({}) }
        }
        // Its status went with it.
        CallError::TooLarge => {
            Outcome::Unknown { reason, code: Some(TOO_LARGE.into()), status: 0, timed_out: false, output: json!({}) }
        }
        CallError::TimedOut { sent: true } | CallError::Lost(_) | CallError::Malformed(_) => Outcome::Unknown {
            reason,
            code: None,
            status: 0,
            timed_out: matches!(error, CallError::TimedOut { .. }),
            output: json!({}),
        },
        CallError::NoInstance
        | CallError::Connect(_)
        | CallError::BreakerOpen { .. }
        | CallError::BulkheadFull
        | CallError::TimedOut { sent: false } => Outcome::Waiting { reason, contacted: false },
    }
}

/// Conductor shows headers as lists. A service's cookies are nobody's business.
fn headers(headers: &[(String, String)]) -> Value {
    let mut map: Map<String, Value> = Map::new();
    for (name, value) in headers.iter().filter(|(name, _)| name != "set-cookie") {
        match map.get_mut(name) {
            Some(Value::Array(list)) => list.push(json!(value)),
            Some(_) | None => drop(map.insert(name.clone(), json!([value]))),
        }
    }
    Value::Object(map)
}

fn phrase(status: u16) -> &'static str {
    axum::http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_contract_divides_answers() {
        let answer =
            |status: u16| Ok(CallResponse { status, headers: vec![], body: br#"{"code":"sold-out"}"#.to_vec().into() });
        let long = |status: u16| Ok(CallResponse { status, headers: vec![], body: vec![b' '; MAX_OUTPUT + 1].into() });
        let lost = || io::Error::other("reset");
        let cases: Vec<(Result<CallResponse, CallError>, &str)> = vec![
            (answer(200), "done"),
            (answer(201), "done"),
            (answer(204), "done"),
            (answer(503), "waiting, contacted"),
            (Err(CallError::NoInstance), "waiting"),
            (Err(CallError::Connect(lost())), "waiting"),
            (Err(CallError::BreakerOpen { retry_after: Duration::ZERO }), "waiting"),
            (Err(CallError::BulkheadFull), "waiting"),
            (Err(CallError::TimedOut { sent: false }), "waiting"),
            (answer(408), "unknown"),
            (answer(425), "unknown"),
            (answer(429), "unknown"),
            (answer(500), "unknown"),
            (answer(501), "unknown"),
            (answer(502), "unknown"),
            (answer(504), "unknown"),
            (answer(302), "unknown"),
            (Err(CallError::TimedOut { sent: true }), "unknown"),
            (Err(CallError::Lost(lost())), "unknown"),
            (Err(CallError::Malformed(String::new())), "unknown"),
            (answer(400), "refused"),
            (answer(402), "refused"),
            (answer(404), "refused"),
            (answer(409), "refused"),
            (answer(410), "refused"),
            (Err(CallError::Invalid(String::new())), "refused"),
            (Err(CallError::TooLarge), "unknown"),
            (long(200), "unusable"),
            (long(400), "unknown"),
        ];
        for (result, expected) in cases {
            let mut text = format!("{result:?}");
            text.truncate(200);
            let found = match classify(result, false) {
                Outcome::Done(_) => "done",
                Outcome::Refused { .. } => "refused",
                Outcome::Waiting { contacted: true, .. } => "waiting, contacted",
                Outcome::Waiting { contacted: false, .. } => "waiting",
                Outcome::Unknown { .. } => "unknown",
                Outcome::Unusable(_) => "unusable",
            };
            assert_eq!(found, expected, "{text}");
        }
    }
}
