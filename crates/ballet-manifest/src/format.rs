//! The small languages inside scalars: durations, rates, addresses, calls. Each reader says what is wrong and how it
//! would be right.

use std::net::SocketAddr;
use std::time::Duration;

use ballet_core::{NameError, ServiceName, TopicName, WorkflowName};

use crate::model::{HttpUrl, Limit, LimitBy, Method, PathTemplate, Segment};
use crate::template::Template;

/// Why a text has the wrong form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bad {
    pub(crate) message: String,
    pub(crate) help: String,
    /// Where in the text, in characters; the whole text if `None`.
    pub(crate) at: Option<(usize, usize)>,
    /// The fault lies in an expression.
    pub(crate) expression: bool,
}

impl Bad {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), at: None, expression: false }
    }

    fn shifted(mut self, by: usize) -> Self {
        self.at = self.at.map(|(at, width)| (at + by, width));
        self
    }
}

/// What a scalar has to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Any text.
    Text,
    /// Any scalar, as text.
    Loose,
    Name,
    Command,
    File,
    Duration,
    Percent,
    Backoff,
    Address,
    ServiceUrl,
    Engine,
    Store,
    Service,
    Health,
    Pool,
    RouteTarget,
    Redirect,
    Limit,
    Rate,
    LimitBy,
    Keys,
    MergeGet,
    Call,
    Subscriber,
    Template,
    Task,
    Attempts,
    Policy,
    Access,
    Role,
}

/// What a route's `to:` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RouteTarget {
    Service { service: ServiceName, rewrite: Option<Template> },
    Url { url: HttpUrl, rewrite: Option<Template> },
    Workflow(WorkflowName),
    Topic(TopicName),
}

/// What a subscription says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Subscriber {
    Service { service: ServiceName, path: Template },
    Workflow(WorkflowName),
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum KeysAt {
    Service { service: ServiceName, path: String },
    Url(HttpUrl),
}

impl Format {
    /// Looks at the form alone; names are looked up elsewhere.
    pub(crate) fn check(self, text: &str) -> Result<(), Bad> {
        match self {
            Self::Loose => Ok(()),
            Self::Text | Self::Role | Self::Policy | Self::Access => not_empty(text),
            Self::Name => system(text),
            Self::Command => command(text).map(drop),
            Self::File => file(text),
            Self::Duration => duration(text).map(drop),
            Self::Percent => percent(text).map(drop),
            Self::Backoff => backoff(text).map(drop),
            Self::Address => address(text).map(drop),
            Self::ServiceUrl => http_url(text, false).map(drop),
            Self::Engine => engine(text).map(drop),
            Self::Store => store(text).map(drop),
            Self::Service => service(text).map(drop),
            Self::Health => health(text),
            Self::Pool => pool(text).map(drop),
            Self::RouteTarget => route_target(text).map(drop),
            Self::Redirect => redirect(text).map(drop),
            Self::Limit => limit(text).map(drop),
            Self::Rate => rate(text).map(drop),
            Self::LimitBy => limit_by(text).map(drop),
            Self::Keys => keys(text).map(drop),
            Self::MergeGet => service_path(text, 0).map(drop),
            Self::Call => call(text).map(drop),
            Self::Subscriber => subscriber(text).map(drop),
            Self::Template => template(text, 0).map(drop),
            Self::Task => task(text),
            Self::Attempts => attempts(text).map(drop),
        }
    }

    /// Whether expressions other than `env` may stand in it.
    pub(crate) fn holds_expressions(self) -> bool {
        match self {
            Self::RouteTarget | Self::Redirect | Self::MergeGet | Self::Call | Self::Subscriber | Self::Template => {
                true
            }
            Self::Text
            | Self::Loose
            | Self::Name
            | Self::Command
            | Self::File
            | Self::Duration
            | Self::Percent
            | Self::Backoff
            | Self::Address
            | Self::ServiceUrl
            | Self::Engine
            | Self::Store
            | Self::Service
            | Self::Health
            | Self::Pool
            | Self::Limit
            | Self::Rate
            | Self::LimitBy
            | Self::Keys
            | Self::Task
            | Self::Attempts
            | Self::Policy
            | Self::Access
            | Self::Role => false,
        }
    }

    /// For the JSON Schema: a pattern that everything valid matches, and an example.
    pub(crate) fn pattern_and_example(self) -> (Option<&'static str>, Option<&'static str>) {
        match self {
            Self::Text | Self::Loose | Self::Role | Self::Access | Self::Policy => (None, None),
            Self::Name => (Some("^[a-z][a-z0-9-]*$"), Some("shop")),
            Self::Command => (None, Some("shop-orders --verbose")),
            Self::File => (None, Some("contracts/order.placed.json")),
            Self::Duration => (Some("^[0-9]+(ms|s|m|h|d)$"), Some("250ms")),
            Self::Percent => (Some("^[0-9]+(\\.[0-9]+)?%$"), Some("20%")),
            Self::Backoff => (Some("^[0-9]+(ms|s|m)(\\.\\.[0-9]+(ms|s|m))?$"), Some("100ms..400ms")),
            Self::Address => (Some(":[0-9]+$"), Some("127.0.0.1:8080")),
            Self::ServiceUrl => (Some("^https?://"), Some("http://10.0.0.7:8080")),
            Self::Engine => (Some("^(embedded|kubernetes|[a-z]+://.+)$"), Some("embedded")),
            Self::Store => (Some("^(sqlite|[a-z][a-z0-9+.-]*:.+)$"), Some("sqlite")),
            Self::Service => (Some("^[a-z][a-z0-9.-]*$"), Some("orders")),
            Self::Health => (Some("^(/|off$)"), Some("/readyz")),
            Self::Pool => (Some("^(critical|normal|batch)$"), Some("normal")),
            Self::RouteTarget => (Some("^[a-z]"), Some("orders:/v2/orders/${path.id}")),
            Self::Redirect => (Some("^(/|https?://)"), Some("/products/${path.id}")),
            Self::Limit => (Some("^[0-9]+/"), Some("10/min by ip")),
            Self::Rate => (Some("^[0-9]+/"), Some("10/min")),
            Self::LimitBy => (Some("^(ip|claims\\..+|header\\..+)$"), Some("claims.sub")),
            Self::Keys => (Some(":/"), Some("users:/.well-known/jwks.json")),
            Self::MergeGet => (Some("^[a-z][a-z0-9.-]*:/"), Some("catalog:/products?limit=8")),
            Self::Call => (Some("^[A-Z]+ [a-z][a-z0-9.-]*:/"), Some("POST payments:/payments")),
            Self::Subscriber => (Some("^(workflow:.+|[a-z][a-z0-9.-]*:/.*)$"), Some("notifications:/events")),
            Self::Template => (None, Some("order-${event.subject}")),
            Self::Task => (None, Some("send_parcel")),
            Self::Attempts => (Some("^([1-9][0-9]*|unlimited)$"), Some("unlimited")),
        }
    }
}

fn not_empty(text: &str) -> Result<(), Bad> {
    if text.trim().is_empty() {
        Err(Bad::new("this text is empty", "write something, or delete the key"))
    } else {
        Ok(())
    }
}

fn named<T>(result: Result<T, NameError>) -> Result<T, Bad> {
    result.map_err(|error| Bad::new(format!("`{}` is not a {}", error.text, error.noun), error.rule))
}

pub(crate) fn system(text: &str) -> Result<(), Bad> {
    named(text.parse::<ballet_core::Namespace>().map(drop))
        .map_err(|bad| Bad { message: format!("`{text}` is not a system name"), ..bad })
}

pub(crate) fn service(text: &str) -> Result<ServiceName, Bad> {
    named(text.parse())
}

/// Splits as a shell would, without a shell.
pub(crate) fn command(text: &str) -> Result<Vec<String>, Bad> {
    match shell_words::split(text) {
        Ok(words) if words.is_empty() => Err(Bad::new("this command is empty", "write a program and its arguments")),
        Ok(words) => Ok(words),
        Err(_) => {
            Err(Bad::new("a quote in this command is not closed", "close it; the text is split as a shell would"))
        }
    }
}

fn file(text: &str) -> Result<(), Bad> {
    not_empty(text)?;
    if text.contains('\0') {
        return Err(Bad::new("a path cannot hold a NUL", "write a path relative to the manifest"));
    }
    Ok(())
}

/// `250ms`, `2s`, `15m`, `1h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, Bad> {
    let help = "write a whole number and a unit: `250ms`, `2s`, `15m`, `1h`, `7d`";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    if number.is_empty() || millis == 0 {
        let what = if unit.is_empty() { "has no unit" } else { "is not a duration" };
        return Err(Bad::new(format!("`{text}` {what}"), help));
    }
    let longest = Duration::from_secs(3650 * 86_400);
    let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis)).map(Duration::from_millis);
    match total {
        Some(Duration::ZERO) => {
            Err(Bad::new("a duration of zero means nothing here", "delete the key, or write at least `1ms`"))
        }
        Some(total) if total <= longest => Ok(total),
        Some(_) | None => Err(Bad::new(format!("`{text}` is longer than ten years"), help)),
    }
}

/// `20%`, as a share from 0 to 1.
pub(crate) fn percent(text: &str) -> Result<f64, Bad> {
    let share = text
        .strip_suffix('%')
        .filter(|number| number.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
        .and_then(|number| number.parse::<f64>().ok())
        .filter(|number| (0.0..=100.0).contains(number));
    share
        .map(|number| number / 100.0)
        .ok_or_else(|| Bad::new(format!("`{text}` is not a share"), "write a percentage from `0%` to `100%`"))
}

/// `100ms..400ms`, or one duration for both.
pub(crate) fn backoff(text: &str) -> Result<(Duration, Duration), Bad> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let help = "write the first and the longest cap: `100ms..400ms`";
    let (first, last) = match (duration(first.trim()), duration(last.trim())) {
        (Ok(first), Ok(last)) => (first, last),
        (Err(bad), _) | (_, Err(bad)) => return Err(Bad { help: help.into(), ..bad }),
    };
    if last < first {
        return Err(Bad::new(format!("`{text}` ends before it begins"), help));
    }
    Ok((first, last))
}

pub(crate) fn address(text: &str) -> Result<SocketAddr, Bad> {
    text.parse().map_err(|_| {
        let help = match text.rsplit_once(':') {
            Some(("localhost", port)) => format!("write `127.0.0.1:{port}`"),
            Some(("" | "*", port)) => {
                format!("write `127.0.0.1:{port}`, or `0.0.0.0:{port}` for every interface")
            }
            Some(_) | None => "write an IP address and a port: `127.0.0.1:8080`; port 0 takes a free one".to_owned(),
        };
        Bad::new(format!("`{text}` is not an address"), help)
    })
}

/// `http://host[:port][/path]`, with a query only where `query` says so.
pub(crate) fn http_url(text: &str, query: bool) -> Result<HttpUrl, Bad> {
    let help = "write `http://host:port/path`";
    let bad = |what: &str| Bad::new(format!("`{}` {what}", mask(text)), help);
    let (tls, rest) = if let Some(rest) = text.strip_prefix("http://") {
        (false, rest)
    } else if let Some(rest) = text.strip_prefix("https://") {
        (true, rest)
    } else {
        return Err(bad("is not a URL"));
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(Bad::new("a URL here holds no user name or password", help));
    }
    if path.contains('#') || (path.contains('?') && !query) {
        return Err(bad("has a query or fragment that cannot stand here"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| bad("has a bracket without its partner"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(bad("has no good host"));
            }
            (host, port.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || !host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':')) {
        return Err(bad("has no good host"));
    }
    let port = match port {
        Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| bad("has no good port"))?,
        None if tls => 443,
        None => 80,
    };
    Ok(HttpUrl { tls, host: host.to_owned(), port, path: path.trim_end_matches('/').to_owned() })
}

/// Scheme of an engine; `None` for `embedded`.
pub(crate) fn engine(text: &str) -> Result<Option<&str>, Bad> {
    match text {
        "embedded" => Ok(None),
        "kubernetes" => Ok(Some("kubernetes")),
        _ => match text.split_once("://") {
            Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() => Ok(Some(match scheme {
                "postgresql" => "postgres",
                "amqp" | "amqps" => "rabbitmq",
                "rediss" => "redis",
                _ => scheme,
            })),
            Some(_) | None => Err(Bad::new(
                format!("`{}` is not an engine", mask(text)),
                "write `embedded`, or a URL such as `postgres://host/database`",
            )),
        },
    }
}

/// Whether a store is a URL.
pub(crate) fn store(text: &str) -> Result<bool, Bad> {
    if text == "sqlite" {
        return Ok(false);
    }
    let good = text.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '.' | '-'))
            && !rest.is_empty()
    });
    if good {
        Ok(true)
    } else {
        Err(Bad::new(
            format!("`{}` is not a store", mask(text)),
            "write `sqlite` for a file of its own, or a URL such as `postgres://host/database`",
        ))
    }
}

/// In place of a path: the program listens nowhere and is ready while it runs.
pub(crate) const HEALTH_OFF: &str = "off";

fn health(text: &str) -> Result<(), Bad> {
    let path = text.starts_with('/') && text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b'#');
    if path || text == HEALTH_OFF {
        Ok(())
    } else {
        let help = "write the path that is asked, `/readyz`, or `off` for a program that does not listen";
        Err(Bad::new(format!("`{text}` is not a path"), help))
    }
}

pub(crate) fn pool(text: &str) -> Result<crate::model::Pool, Bad> {
    use crate::model::Pool;
    [Pool::Critical, Pool::Normal, Pool::Batch]
        .into_iter()
        .find(|pool| pool.as_str() == text)
        .ok_or_else(|| Bad::new(format!("`{text}` is not a pool"), "write `critical`, `normal` or `batch`"))
}

pub(crate) fn template(text: &str, offset: usize) -> Result<Template, Bad> {
    Template::parse(text).map_err(|error| Bad {
        message: error.message,
        help: "write `${scope.name}` or `${scope.name:-default}`; `$${` stands for a plain `${`".into(),
        at: Some((offset + error.at, 2)),
        expression: true,
    })
}

/// A path (and query) with expressions: checked as text, because their values come later.
fn path_template(text: &str, offset: usize) -> Result<Template, Bad> {
    let template = template(text, offset)?;
    let literal: String = template
        .parts()
        .iter()
        .filter_map(|part| match part {
            crate::template::Part::Text(text) => Some(text.as_str()),
            crate::template::Part::Expr(_) => None,
        })
        .collect();
    if !text.starts_with('/') || literal.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(Bad::new(
            format!("`{text}` is not a path"),
            "begin it with `/`, without spaces and `#`: `orders:/orders/${input.id}`",
        ));
    }
    Ok(template)
}

/// `service:/path`.
pub(crate) fn service_path(text: &str, offset: usize) -> Result<(ServiceName, Template), Bad> {
    let Some((name, _)) = text.split_once(":/") else {
        return Err(Bad::new(
            format!("`{text}` is not a service and a path"),
            "write `service:/path`, for instance `orders:/orders`",
        ));
    };
    let service = service(name).map_err(|bad| Bad { at: Some((offset, name.chars().count())), ..bad })?;
    let at = name.chars().count() + 1;
    let path = path_template(&text[name.len() + 1..], offset + at)?;
    Ok((service, path))
}

pub(crate) fn route_target(text: &str) -> Result<RouteTarget, Bad> {
    if text.starts_with("http://") || text.starts_with("https://") {
        let authority_at = text.find("://").map_or(0, |at| at + 3);
        let path_at = text[authority_at..].find('/').map(|at| authority_at + at);
        let url = http_url(&text[..path_at.unwrap_or(text.len())], false)?;
        let rewrite = path_at.map(|at| path_template(&text[at..], text[..at].chars().count())).transpose()?;
        return Ok(RouteTarget::Url { url, rewrite });
    }
    if let Some(name) = text.strip_prefix("workflow:").filter(|name| !name.starts_with('/')) {
        return named(name.parse()).map(RouteTarget::Workflow).map_err(|bad| bad.shifted(9));
    }
    if let Some(name) = text.strip_prefix("topic:").filter(|name| !name.starts_with('/')) {
        return named(name.parse()).map(RouteTarget::Topic).map_err(|bad| bad.shifted(6));
    }
    if text.contains(":/") {
        let (service, path) = service_path(text, 0)?;
        return Ok(RouteTarget::Service { service, rewrite: Some(path) });
    }
    service(text).map(|service| RouteTarget::Service { service, rewrite: None }).map_err(|bad| Bad {
        help: "write `service`, `service:/path`, `workflow:NAME`, `topic:NAME` or a URL".into(),
        ..bad
    })
}

pub(crate) fn redirect(text: &str) -> Result<Template, Bad> {
    let template = template(text, 0)?;
    let good = ["/", "http://", "https://"].iter().any(|start| text.starts_with(start))
        && !text.contains(|c: char| c.is_control() || c == ' ');
    if good {
        Ok(template)
    } else {
        Err(Bad::new(format!("`{text}` is not a location"), "write a path or a URL: `/products/${path.id}`"))
    }
}

/// `10/min by claims.sub`.
pub(crate) fn limit(text: &str) -> Result<Limit, Bad> {
    let (rate_text, by) = match text.split_once(" by ") {
        Some((rate, by)) => (rate, limit_by(by.trim())?),
        None => (text, LimitBy::Everyone),
    };
    let (count, period) = rate(rate_text.trim())?;
    Ok(Limit { count, period, by, wait: Duration::ZERO })
}

pub(crate) fn rate(text: &str) -> Result<(u32, Duration), Bad> {
    let bad = || {
        Bad::new(
            format!("`{text}` is not a rate"),
            "write a number per `s`, `min`, `h` or `day`: `10/min by ip`, `600/min by claims.sub`",
        )
    };
    let (count, unit) = text.split_once('/').ok_or_else(bad)?;
    let count = count.parse::<u32>().ok().filter(|count| *count > 0).ok_or_else(bad)?;
    let seconds = match unit {
        "s" | "sec" | "second" => 1,
        "min" | "minute" => 60,
        "h" | "hour" => 3600,
        "d" | "day" => 86_400,
        _ => return Err(bad()),
    };
    Ok((count, Duration::from_secs(seconds)))
}

pub(crate) fn limit_by(text: &str) -> Result<LimitBy, Bad> {
    if text == "ip" {
        return Ok(LimitBy::Ip);
    }
    match text.split_once('.') {
        Some(("claims", path)) if path.split('.').all(|word| !word.is_empty()) => {
            Ok(LimitBy::Claim(path.split('.').map(str::to_owned).collect()))
        }
        Some(("header", name)) if is_token(name) => Ok(LimitBy::Header(name.to_ascii_lowercase())),
        Some(_) | None => Err(Bad::new(
            format!("requests cannot be counted by `{text}`"),
            "write `by ip`, `by claims.sub` or `by header.x-api-key`",
        )),
    }
}

/// RFC 9110's token.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

pub(crate) fn keys(text: &str) -> Result<KeysAt, Bad> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return http_url(text, true).map(KeysAt::Url);
    }
    let (service, path) = service_path(text, 0)
        .map_err(|bad| Bad { help: "write `service:/path` or a URL: `users:/.well-known/jwks.json`".into(), ..bad })?;
    match path.as_literal() {
        Some(path) => Ok(KeysAt::Service { service, path: path.to_owned() }),
        None => Err(Bad::new("the place of keys cannot hold expressions", "write a fixed path")),
    }
}

/// `METHOD service:/path`.
pub(crate) fn call(text: &str) -> Result<(String, ServiceName, Template), Bad> {
    const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    let help = "write `METHOD service:/path`, for instance `POST payments:/payments`";
    let Some((method, rest)) = text.split_once(' ') else {
        return Err(Bad::new(format!("`{text}` is not a call"), help));
    };
    if !METHODS.contains(&method) {
        return Err(Bad {
            at: Some((0, method.chars().count())),
            ..Bad::new(format!("`{method}` is not a method of a call"), "write GET, POST, PUT, PATCH or DELETE")
        });
    }
    let (service, path) = service_path(rest, method.len() + 1).map_err(|bad| Bad { help: help.into(), ..bad })?;
    Ok((method.to_owned(), service, path))
}

pub(crate) fn subscriber(text: &str) -> Result<Subscriber, Bad> {
    if let Some(name) = text.strip_prefix("workflow:").filter(|name| !name.starts_with('/')) {
        return named(name.parse()).map(Subscriber::Workflow);
    }
    let (service, path) = service_path(text, 0).map_err(|bad| Bad {
        help: "write `service:/path` or `workflow:NAME`: `notifications:/events`".into(),
        ..bad
    })?;
    Ok(Subscriber::Service { service, path })
}

fn task(text: &str) -> Result<(), Bad> {
    named(text.parse::<WorkflowName>().map(drop))
        .map_err(|bad| Bad { message: format!("`{text}` is not a task name"), ..bad })
}

/// `None` is `unlimited`.
pub(crate) fn attempts(text: &str) -> Result<Option<u32>, Bad> {
    if text == "unlimited" {
        return Ok(None);
    }
    text.parse::<u32>().ok().filter(|count| *count > 0).map(Some).ok_or_else(|| {
        Bad::new(
            format!("`{text}` is not a number of attempts"),
            "write a number of at least 1 (the first try counts), or `unlimited`",
        )
    })
}

/// A route's key: `GET /orders/{id}`.
pub(crate) fn route_key(text: &str) -> Result<(Method, PathTemplate), Bad> {
    const METHODS: [&str; 8] = ["ANY", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let help = "write `METHOD /path`, for instance `GET /orders/{id}`";
    let Some((method, path)) = text.split_once(' ') else {
        return Err(Bad::new(format!("`{text}` is not a route"), help));
    };
    let method = match METHODS.iter().find(|known| **known == method) {
        Some(&"ANY") => Method::Any,
        Some(known) => Method::One((*known).to_owned()),
        None => {
            let help = "write ANY, GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, in capitals";
            let width = method.chars().count();
            return Err(Bad {
                at: Some((0, width)),
                ..Bad::new(format!("`{method}` is not a method of a route"), help)
            });
        }
    };
    Ok((method, path_pattern(path)?))
}

fn path_pattern(path: &str) -> Result<PathTemplate, Bad> {
    let bad = |what: &str, help: &str| Err(Bad::new(format!("`{path}` {what}"), help));
    let Some(rest) = path.strip_prefix('/') else {
        return bad("is not a path", "begin it with `/`");
    };
    if rest.is_empty() {
        return Ok(PathTemplate { segments: Vec::new() });
    }
    let mut segments = Vec::new();
    let words: Vec<&str> = rest.split('/').collect();
    for (index, word) in words.iter().enumerate() {
        let last = index + 1 == words.len();
        segments.push(match *word {
            "" => return bad("has an empty segment", "delete the extra `/`; requests are matched without it"),
            "." | ".." => return bad("has a dot segment", "write the path out"),
            "*" => Segment::One,
            "**" if last => Segment::Rest,
            "**" => {
                return bad(
                    "has `**` before its end",
                    "`**` stands only at the end; use `*` or `{name}` for one segment",
                );
            }
            word if word.starts_with('{') && word.ends_with('}') => {
                let name = &word[1..word.len() - 1];
                let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
                if !good {
                    return bad(
                        "has a badly named parameter",
                        "write a parameter as `{name}`: letters, digits, `_` and `-`",
                    );
                }
                let param = Segment::Param(name.to_owned());
                if segments.contains(&param) {
                    return bad("has the same parameter twice", "give each parameter its own name");
                }
                param
            }
            word => {
                let good = word.chars().all(|c| (c.is_ascii_graphic()) && !"{}*?#\\;\"<>|^`".contains(c));
                if !good {
                    return bad(
                        "has a segment that can never match",
                        "a segment is plain text, `{name}`, `*`, or `**` at the end; anything else is percent-encoded",
                    );
                }
                Segment::Literal(word.to_owned())
            }
        });
    }
    Ok(PathTemplate { segments })
}

/// A URL without its password, for messages.
pub(crate) fn mask(text: &str) -> String {
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((user, host)) = rest.rsplit_once('@')
    {
        let user = user.split(':').next().unwrap_or_default();
        return format!("{scheme}://{user}:***@{host}");
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_rates_and_shares() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "5", "s", "1.5s", "-1s", "5 s", "5min", "0s", "99999999999999999999s", "40000d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(backoff("100ms..400ms"), Ok((Duration::from_millis(100), Duration::from_millis(400))));
        assert!(backoff("400ms..100ms").is_err());
        assert_eq!(percent("20%"), Ok(0.2));
        for bad in ["20", "101%", "-1%", "%", "1e1%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
        let by_sub = Limit {
            count: 600,
            period: Duration::from_secs(60),
            by: LimitBy::Claim(vec!["sub".into()]),
            wait: Duration::ZERO,
        };
        assert_eq!(limit("600/min by claims.sub"), Ok(by_sub));
        for bad in ["10", "0/min", "10/week", "10/min by", "10/min by moon", "10/min by claims."] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_are_divided_and_odd_ones_refused() {
        let url = http_url("http://[::1]:81/base/", false).unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str(), url.tls), ("::1", 81, "/base", false));
        assert_eq!(url.to_string(), "http://[::1]:81/base");
        assert_eq!(http_url("https://a.test", false).map(|url| url.port), Ok(443));
        for bad in ["ftp://a", "http://", "http://a:0", "http://a:99999", "http://u:p@a", "http://a/?q", "http://a b"] {
            assert!(http_url(bad, false).is_err(), "{bad}");
        }
        assert_eq!(mask("postgres://u:secret@h/d"), "postgres://u:***@h/d");
    }

    #[test]
    fn route_keys_are_methods_and_patterns() {
        let (method, path) = route_key("GET /orders/{id}/*/**").unwrap();
        assert_eq!((method.as_str(), path.to_string().as_str()), ("GET", "/orders/{id}/*/**"));
        for bad in [
            "/x",
            "GET",
            "get /x",
            "TRACE /x",
            "GET x",
            "GET //x",
            "GET /x/",
            "GET /**/x",
            "GET /{}",
            "GET /{a}/{a}",
            "GET /a?b",
            "GET /../x",
        ] {
            assert!(route_key(bad).is_err(), "{bad}");
        }
    }
}
