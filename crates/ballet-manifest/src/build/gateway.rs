//! `gateway:` as types.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use serde_json::Value;

use super::place::Place;
use super::{Builder, boolean, duration, integer};
use crate::format::{self, RouteTarget};
use crate::mistake::{AMBIGUOUS_ROUTE, BAD_VALUE, EXCLUSIVE, MISSING_KEY, NOT_YET};
use crate::model::{Access, Action, Gateway, Limit, LimitBy, MergePart, Route, Segment};
use crate::yaml::{Entry, Node, Raw};

impl Builder<'_> {
    pub(super) fn gateway(&mut self, rules: &IndexMap<String, Arc<Access>>) -> Gateway {
        let mut gateway = Gateway::default();
        let Some(node) = self.root.get("gateway") else { return gateway };
        gateway.listen = self.listener(node.get("listen")).unwrap_or(gateway.listen);
        let mut seen: HashMap<(String, String), &Entry> = HashMap::new();
        for entry in node.get("routes").map_or(&[][..], Node::entries) {
            let Ok((method, path)) = format::route_key(&entry.key) else { continue };
            let shape: String = path
                .segments
                .iter()
                .map(|segment| match segment {
                    Segment::Literal(text) => format!("/{text}"),
                    Segment::Param(_) | Segment::One => "/*".to_owned(),
                    Segment::Rest => "/**".to_owned(),
                })
                .collect();
            if let Some(first) = seen.insert((method.as_str().to_owned(), shape), entry) {
                let message = format!("`{}` takes the same requests as `{}`", entry.key, first.key);
                let help = format!("the other is on line {}; delete one, or make it more specific", first.key_at.line);
                self.note(&entry.key_at, AMBIGUOUS_ROUTE, message, help);
            }
            let node = &entry.value;
            let access_node = node.get("access");
            let access = self.access_rule(access_node, rules);
            let guarded = access_node.is_some();
            let place = Place::Route { segments: &path.segments, access: guarded };
            let action = self.action(node, &place, &path.segments, guarded, rules);
            let limit = self.limit(node.get("limit"), guarded);
            let policy = self.policy_name(node.get("policy"));
            let Some(action) = action else { continue };
            gateway.routes.push(Route {
                name: entry.key.clone(),
                method,
                action,
                access,
                limit,
                idempotent: node.get("idempotent").and_then(boolean).unwrap_or(false),
                policy,
                timeout: node.get("timeout").and_then(duration),
                origin: entry.key_at.origin.clone(),
                path,
            });
        }
        gateway
    }

    pub(super) fn action(
        &mut self,
        node: &Node,
        place: &Place<'_>,
        segments: &[Segment],
        guarded: bool,
        rules: &IndexMap<String, Arc<Access>>,
    ) -> Option<Action> {
        let to = if matches!(node.raw, Raw::Scalar(_)) { Some(node) } else { node.get("to") };
        if let Some(node) = to {
            return self.route_target(node, place);
        }
        if let Some(node) = node.get("redirect") {
            let (location_node, status) = match &node.raw {
                Raw::Map(_) => (node.get("to")?, node.get("status")),
                Raw::Scalar(_) | Raw::List(_) => (node, None),
            };
            let location = format::redirect(location_node.text()?).ok()?;
            self.expressions(location_node, &location, place);
            let number = status.and_then(integer).and_then(|n| u16::try_from(n).ok()).unwrap_or(307);
            if let Some(node) = status.filter(|_| (304..=306).contains(&number)) {
                let message = format!("{number} does not redirect");
                self.note(&node.at, BAD_VALUE, message, "write 301, 302, 303, 307 or 308");
            }
            return Some(Action::Redirect { status: number, location });
        }
        if let Some(node) = node.get("static") {
            return Some(Action::Static { dir: self.around.dir.join(node.text()?) });
        }
        let merge = node.get("merge")?;
        if merge.entries().is_empty() && matches!(merge.raw, Raw::Map(_)) {
            let help = "add one: `products: { get: \"catalog:/products\" }`";
            self.note(&merge.at, MISSING_KEY, "there is nothing to merge", help);
        }
        let mut parts = Vec::new();
        for entry in merge.entries() {
            let node = &entry.value;
            let access_node = node.get("access");
            let access = self.access_rule(access_node, rules);
            let required = node.get("required").and_then(boolean).unwrap_or(false);
            if required && let Some(fallback) = node.entry("fallback") {
                let help = "a required part fails the whole: delete one of them";
                let message = "`fallback` has no meaning beside `required: true`";
                self.note(&fallback.key_at.clone(), EXCLUSIVE, message, help);
            }
            let policy = self.policy_name(node.get("policy"));
            let Some(get) = node.get("get") else { continue };
            let Some(Ok((service, path))) = get.text().map(|text| format::service_path(text, 0)) else { continue };
            self.service_known(get, &service);
            let place = Place::Route { segments, access: guarded || access_node.is_some() };
            self.expressions(get, &path, &place);
            parts.push(MergePart {
                name: entry.key.clone(),
                method: "GET".to_owned(),
                service,
                path,
                required,
                access,
                fallback: node.entry("fallback").map_or(Value::Null, |entry| entry.value.json()),
                policy,
            });
        }
        Some(Action::Merge(parts))
    }

    pub(super) fn route_target(&mut self, node: &Node, place: &Place<'_>) -> Option<Action> {
        Some(match format::route_target(node.text()?).ok()? {
            RouteTarget::Service { service, rewrite } => {
                self.service_known(node, &service);
                if let Some(rewrite) = &rewrite {
                    self.expressions(node, rewrite, place);
                }
                Action::Service { service, rewrite }
            }
            RouteTarget::Url { url, rewrite } => {
                self.no_tls(node, &url);
                if let Some(rewrite) = &rewrite {
                    self.expressions(node, rewrite, place);
                }
                Action::Url { url, rewrite }
            }
            RouteTarget::Workflow(name) => {
                self.look_up(&self.part(node, name.as_str()), "workflow", name.as_str(), &["workflows"]);
                let help = "let a service publish an event, and start the workflow by a subscription";
                self.note(&node.at, NOT_YET, "routes to a workflow are not supported yet", help);
                Action::Workflow(name)
            }
            RouteTarget::Topic(name) => {
                let help = "let a service publish the event";
                self.note(&node.at, NOT_YET, "routes to a topic are not supported yet", help);
                Action::Topic(name)
            }
        })
    }

    pub(super) fn limit(&mut self, node: Option<&Node>, guarded: bool) -> Option<Limit> {
        let node = node?;
        let (limit, by_node) = match &node.raw {
            Raw::Map(_) => {
                let (count, period) = format::rate(node.get("rate")?.text()?).ok()?;
                let by_node = node.get("by");
                let by = match by_node {
                    Some(node) => format::limit_by(node.text()?).ok()?,
                    None => LimitBy::Everyone,
                };
                let wait = node.get("wait").and_then(duration).unwrap_or(Duration::ZERO);
                (Limit { count, period, by, wait }, by_node.unwrap_or(node))
            }
            Raw::Scalar(_) | Raw::List(_) => (format::limit(node.text()?).ok()?, node),
        };
        match &limit.by {
            LimitBy::Claim(path) if !guarded => {
                let at = self.part(by_node, &format!("claims.{}", path.join(".")));
                let help = "add `access:` to this route, or count `by ip`";
                self.note(&at, EXCLUSIVE, "there are no claims on a route without `access`", help);
            }
            LimitBy::Claim(_) | LimitBy::Everyone | LimitBy::Ip | LimitBy::Header(_) => {}
        }
        Some(limit)
    }
}
