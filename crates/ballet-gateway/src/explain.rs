//! What would happen to a request, and why: `ballet explain GET /orders/7`.

use ballet_manifest::LimitBy;
use ballet_proxy::h1::path::normalize;
use ballet_proxy::{BreakerState, Upstream};
use serde::Serialize;

use crate::plan::{AccessPlan, ActionPlan, Plan, RoutePlan};
use crate::route::Found;

/// What would happen to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The method asked about.
    pub method: String,
    /// The path in its one form, without the query.
    pub path: String,
    /// The steps in their order, each a line for people.
    pub steps: Vec<String>,
    /// The status that the gateway itself would answer with; `None` when others decide.
    pub status: Option<u16>,
    /// Code of the refusal, if it would be refused.
    pub code: Option<&'static str>,
    /// The route, as written.
    pub route: Option<String>,
    /// Where the manifest has it.
    pub origin: Option<String>,
    /// The rule that has to hold; `None`: open to everyone, or no route.
    pub access: Option<ExplainedAccess>,
    /// The rate limit: `10/min by ip`.
    pub limit: Option<String>,
    /// What becomes of it: `forward`, `redirect`, `static`, `merge`.
    pub action: Option<&'static str>,
    /// Services that would be called.
    pub calls: Vec<ExplainedCall>,
}

/// A rule of `access:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedAccess {
    /// Its name.
    pub rule: String,
    /// Whose tokens.
    pub issuer: String,
    /// For whom.
    pub audience: String,
    /// Roles: all must hold, each by any of its names.
    pub roles: Vec<Vec<String>>,
    /// Whether the keys are known; until then every token gets 503.
    pub keys_known: bool,
}

/// A call to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedCall {
    /// The service.
    pub service: String,
    /// Path and query sent, with expressions as written; `None`: as it came.
    pub path: Option<String>,
    /// The part of a merged answer that it fills.
    pub part: Option<String>,
    /// The policy.
    pub policy: String,
    /// Longest time for the whole call.
    pub timeout_ms: u64,
    /// Retries at most.
    pub retries: u32,
    /// `closed`, `open` or `half-open`.
    pub breaker: &'static str,
    /// Instances that may be called: id and address.
    pub instances: Vec<String>,
    /// What the client gets when the service is out of reach: status and title.
    pub fallback: Option<String>,
}

pub(crate) fn explain(plan: &Plan, method: &str, url: &str) -> Explanation {
    let path = path_of(url);
    let mut spelled = vec![];
    let mut explanation = Explanation {
        method: method.to_owned(),
        path: path.to_owned(),
        steps: vec![],
        status: None,
        code: None,
        route: None,
        origin: None,
        access: None,
        limit: None,
        action: None,
        calls: vec![],
    };
    match normalize(path.as_bytes(), &mut spelled) {
        Ok(false) => {}
        Ok(true) => {
            explanation.path = String::from_utf8_lossy(&spelled).into_owned();
            explanation.say(format!("the path is spelled `{}`", explanation.path));
        }
        Err(error) => return explanation.refuse(400, "GW001", &error.to_string()),
    }
    match plan.table.find(method, &explanation.path) {
        Found::Nothing => explanation.refuse(404, "GW002", "no route has this path"),
        Found::OtherMethods(allow) => explanation.refuse(405, "GW003", &format!("this path answers to {allow}")),
        Found::Route { route, .. } => explanation.follow(&plan.routes[route], method),
    }
}

impl Explanation {
    fn follow(mut self, route: &RoutePlan, method: &str) -> Self {
        self.route = Some(route.name.to_string());
        self.origin = Some(route.origin.to_string());
        self.say(format!("route `{}` ({})", route.name, route.origin));
        if let Some(limit) = &route.limit {
            let by = match &limit.limit.by {
                LimitBy::Everyone => "all together".to_owned(),
                LimitBy::Ip => "ip".to_owned(),
                LimitBy::Claim(path) => format!("claims.{}", path.join(".")),
                LimitBy::Header(name) => format!("header.{name}"),
            };
            let text = format!("{} per {} s by {by}", limit.limit.count, limit.limit.period.as_secs());
            self.say(format!("limit: {text}, 429 beyond"));
            self.limit = Some(text);
        }
        match &route.access {
            Some(access) => {
                let explained = explain_access(access);
                self.say(describe(&explained));
                self.access = Some(explained);
            }
            None => self.say("open to everyone".to_owned()),
        }
        match &route.action {
            ActionPlan::Forward { upstream, rewrite, host: _ } => {
                self.action = Some("forward");
                let mut call = explain_call(upstream);
                call.path = rewrite.as_ref().map(ToString::to_string);
                if let Some(timeout) = route.timeout {
                    call.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                }
                if !matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS") {
                    self.say(match route.idempotent {
                        true => "retried only with an `Idempotency-Key`".to_owned(),
                        false => "never retried once sent: neither the method nor the route is idempotent".to_owned(),
                    });
                }
                self.call(call);
            }
            ActionPlan::Redirect { status, location } => {
                self.action = Some("redirect");
                self.status = Some(*status);
                self.say(format!("answer {status} with location `{location}`"));
            }
            ActionPlan::Static { dir } => {
                self.action = Some("static");
                self.say(format!("file below `{}`", dir.display()));
            }
            ActionPlan::Merge { parts } => {
                self.action = Some("merge");
                for part in parts {
                    let mut call = explain_call(&part.upstream);
                    call.part = Some(part.name.to_string());
                    call.path = Some(part.path.to_string());
                    let who = part
                        .access
                        .as_ref()
                        .map_or(String::new(), |access| format!(", {}", describe(&explain_access(access))));
                    let otherwise = match part.required {
                        true => "required".to_owned(),
                        false => format!("else `{}`", part.fallback),
                    };
                    self.say(format!("part `{}`: {otherwise}{who}", part.name));
                    self.call(call);
                }
            }
        }
        self
    }

    fn call(&mut self, call: ExplainedCall) {
        let path = call.path.as_deref().unwrap_or("the same path");
        let up = match call.instances.len() {
            0 => "no instance is up".to_owned(),
            _ => call.instances.join(", "),
        };
        let ExplainedCall { service, policy, timeout_ms, breaker, .. } = &call;
        self.say(format!("call `{service}` at {path}: policy `{policy}`, {timeout_ms} ms, breaker {breaker}, {up}"));
        self.calls.push(call);
    }

    fn refuse(mut self, status: u16, code: &'static str, why: &str) -> Self {
        self.status = Some(status);
        self.code = Some(code);
        self.say(format!("{status} {code}: {why}"));
        self
    }

    fn say(&mut self, step: String) {
        self.steps.push(step);
    }
}

fn explain_access(access: &AccessPlan) -> ExplainedAccess {
    ExplainedAccess {
        rule: access.name.to_string(),
        issuer: access.issuer.jwt.issuer.clone(),
        audience: access.issuer.jwt.audience.clone(),
        roles: access.roles.clone(),
        keys_known: access.issuer.ready(),
    }
}

fn describe(access: &ExplainedAccess) -> String {
    let mut text = format!("access `{}`: a token of `{}` for `{}`", access.rule, access.issuer, access.audience);
    for any_of in &access.roles {
        text += &format!(" with role {}", any_of.join(" or "));
    }
    if !access.keys_known {
        text += "; its keys are not known yet, so every token gets 503";
    }
    text
}

fn explain_call(upstream: &Upstream) -> ExplainedCall {
    let view = upstream.view();
    ExplainedCall {
        service: view.service.to_string(),
        path: None,
        part: None,
        policy: view.policy.name.clone(),
        timeout_ms: u64::try_from(view.policy.timeout.as_millis()).unwrap_or(u64::MAX),
        retries: view.policy.retry.max,
        breaker: match view.breaker {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        },
        instances: view
            .instances
            .iter()
            .map(|i| format!("{} {}{}", i.id, i.address, if i.ejected { " (left out for a while)" } else { "" }))
            .collect(),
        fallback: view.policy.fallback.as_ref().map(|fallback| format!("{} {}", fallback.status, fallback.title)),
    }
}

/// The path of an address or of a path with query.
fn path_of(url: &str) -> &str {
    let rest = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let path = match rest {
        Some(rest) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        None => url,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if path.is_empty() { "/" } else { path }
}

#[cfg(test)]
mod tests {
    use super::path_of;

    #[test]
    fn a_path_is_taken_out_of_an_address() {
        for (url, path) in [
            ("/a?b=c", "/a"),
            ("http://shop.test/a/b?c", "/a/b"),
            ("https://shop.test", "/"),
            ("https://shop.test?x=/y", "/"),
            ("/", "/"),
        ] {
            assert_eq!(path_of(url), path, "{url}");
        }
    }
}
