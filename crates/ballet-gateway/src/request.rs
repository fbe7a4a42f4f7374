//! A request as routes' expressions and limits see it.

use std::net::IpAddr;

use ballet_manifest::{EvalError, Template};
use ballet_proxy::Head;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::jwt::Claims;
use crate::route::{Parameters, Pattern};

/// A request with what was found out about it. Cheap to copy.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) head: Head<'a>,
    pub(crate) peer: IpAddr,
    pub(crate) claims: Option<&'a Claims>,
    pub(crate) pattern: &'a Pattern,
    pub(crate) parameters: &'a Parameters,
}

impl View<'_> {
    /// Fills in a path with its query.
    pub(crate) fn path(&self, template: &Template) -> Result<String, EvalError> {
        template.eval_path(&|scope, path| self.lookup(scope, path))
    }

    fn lookup(&self, scope: &str, path: &[String]) -> Option<Value> {
        let text = |text: &str| Some(Value::String(text.to_owned()));
        let name = path.first()?;
        match scope {
            "claims" => self.claims?.get(path).cloned(),
            "path" if name == "**" => text(self.parameters.rest(self.head.path())),
            "path" => {
                let segment = self.parameters.get(self.pattern.parameter(name)?, self.head.path())?;
                // Without its escapes: it gets those of the place it goes to.
                text(&percent_decode_str(segment).decode_utf8_lossy())
            }
            "query" => query(self.head.query()?, name).map(Value::String),
            "header" => text(self.head.header(name)?),
            _ => None,
        }
    }
}

/// The first value of a query's field, decoded as forms are.
fn query(query: &str, name: &str) -> Option<String> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query.split('&').map(|field| field.split_once('=').unwrap_or((field, ""))).find_map(|(key, value)| {
        // Nearly all keys are plain.
        (key == name || decode(key) == name).then(|| decode(value))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use ballet_proxy::h1::request::{Paths, RequestHead};

    use super::*;
    use crate::route::{Found, RouteTable};

    /// Parses a request without body; `lines` are header lines.
    pub(crate) fn head(request_line: &str, lines: &[&str]) -> RequestHead {
        let mut text = format!("{request_line} HTTP/1.1\r\nhost: shop.test\r\n");
        for line in lines {
            text += line;
            text += "\r\n";
        }
        text += "\r\n";
        let mut head = RequestHead::default();
        head.parse(text.as_bytes(), Paths::Strict).unwrap().unwrap();
        head
    }

    #[test]
    fn expressions_see_path_query_header_and_claims() {
        let pattern = Pattern::parse("GET /a/{id}/**").unwrap();
        let table = RouteTable::build(std::slice::from_ref(&pattern)).unwrap();
        let head = head("GET /a/x%20y/r/s?q=1%2F2&empty&two+words=a+b", &["x-shop: north"]);
        let Found::Route { parameters, .. } = table.find("GET", head.view().path()) else { panic!("no route") };
        let claims = Claims::for_tests(serde_json::json!({ "sub": "u/1", "org": { "id": 7 }, "roles": ["a"] }));
        let peer = IpAddr::from([127, 0, 0, 1]);
        let view = View { head: head.view(), peer, claims: Some(&claims), pattern: &pattern, parameters: &parameters };
        let cases = [
            ("/u/${claims.sub}", Some("/u/u%2F1")),
            ("/u/${claims.org.id}/${path.id}", Some("/u/7/x%20y")),
            ("/new/${path.**}", Some("/new/r/s")),
            ("/s?q=${query.q}&h=${header.x-shop}", Some("/s?q=1%2F2&h=north")),
            ("/s?q=${query.empty}&n=${query.none:-3}", Some("/s?q=&n=3")),
            ("/${query.none}", None),
            ("/${claims.roles}", None),
            ("/${query.empty}", None),
        ];
        for (template, expected) in cases {
            let filled = view.path(&Template::parse(template).unwrap()).ok();
            assert_eq!(filled.as_deref(), expected, "{template}");
        }
        assert_eq!(query("two+words=a+b", "two words").as_deref(), Some("a b"));
    }
}
