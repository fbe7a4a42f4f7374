//! The shop's manifest, complete: every kind of value arrives as it was written.

use std::time::Duration;

use ballet_core::Fallback;
use ballet_manifest::{
    Access, Action, Attempts, Engine, EnvValue, JsonTemplate, Keys, LimitBy, Linear, Origin, Pool, Route, Source,
    Store, Target, Work, WorkflowBody,
};
use serde_json::{Value, json};

use crate::{System, expect_file, here};

fn route<'a>(routes: &'a [Route], name: &str) -> &'a Route {
    routes.iter().find(|route| route.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn linear(body: &WorkflowBody) -> &Linear {
    match body {
        WorkflowBody::Linear(linear) => linear,
        WorkflowBody::Conductor { path, .. } => panic!("{}", path.display()),
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn services_policies_and_access_of_the_shop() {
    let system = System::shop();
    let loaded = system.good();
    let manifest = &loaded.manifest;
    assert_eq!(manifest.system, "shop");
    assert_eq!(manifest.profile, None);
    assert_eq!(manifest.build.as_deref().unwrap(), ["cargo", "build", "--release", "--bins"]);
    assert_eq!(manifest.dir, system.dir.path().canonicalize().unwrap());
    assert_eq!(manifest.platform.listen.main.to_string(), "127.0.0.1:7070");
    assert_eq!(manifest.platform.bus, Engine::Embedded);

    let names: Vec<_> = manifest.services.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["users", "catalog", "orders", "inventory", "payments", "notifications"]);
    let orders = &manifest.services["orders"];
    assert_eq!(orders.source, Source::Run(vec!["shop-orders".into()]));
    assert_eq!(orders.store, Some(Store::Sqlite));
    assert_eq!((orders.instances, orders.owner.as_deref()), (2, Some("checkout team")));
    assert_eq!(
        (orders.health.as_deref(), orders.pool, orders.policy.as_deref()),
        (Some("/readyz"), Pool::Normal, None)
    );
    assert_eq!((&orders.calls, orders.init.len(), orders.env.len()), (&None, 0, 0));
    let payments = &manifest.services["payments"];
    assert_eq!((payments.instances, payments.pool), (1, Pool::Critical));
    assert_eq!(manifest.services["notifications"].pool, Pool::Batch);

    let policy = manifest.policy(&payments.name, None);
    assert_eq!((policy.name.as_str(), policy.timeout), ("payments", secs(5)));
    let title = "Payment service is unavailable.".to_owned();
    assert_eq!(policy.fallback, Some(Fallback { status: 503, title }));
    assert_eq!((policy.retry.max, policy.retry.budget), (3, 0.2));
    assert_eq!(policy.retry.backoff_max, Duration::from_millis(400));
    assert_eq!((policy.breaker.failures.get(), policy.breaker.open_for), (5, secs(5)));
    let policy = manifest.policy(&orders.name, None);
    assert_eq!((policy.name.as_str(), policy.timeout, &policy.fallback), ("default", secs(2), &None));
    assert_eq!(manifest.policy(&orders.name, Some("payments")).timeout, secs(5));
    let places = |name: &str| manifest.policy(&name.parse().unwrap(), None).bulkhead.max;
    assert_eq!((places("payments"), places("orders"), places("notifications")), (256, 128, 32), "as their pools");

    let user: &Access = &manifest.access["user"];
    assert_eq!((user.jwt.issuer.as_str(), user.jwt.audience.as_str(), user.roles.len()), ("users", "shop", 0));
    let path = "/.well-known/jwks.json".to_owned();
    assert_eq!(user.jwt.keys, Keys::Service { service: "users".parse().unwrap(), path });
    let staff = &manifest.access["staff"];
    assert_eq!((&staff.jwt, &staff.roles), (&user.jwt, &vec![vec!["staff".to_owned()]]));
}

#[test]
fn routes_of_the_shop() {
    let loaded = System::shop().good();
    let gateway = &loaded.manifest.gateway;
    assert_eq!(gateway.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(gateway.routes.len(), 25);

    let orders = route(&gateway.routes, "POST /orders");
    assert!(matches!(&orders.action, Action::Service { service, rewrite: None } if service.as_str() == "orders"));
    assert_eq!((orders.access.as_ref().unwrap().name.as_str(), orders.idempotent), ("user", true));
    let limit = orders.limit.as_ref().unwrap();
    assert_eq!((limit.count, limit.period, limit.wait), (600, secs(60), Duration::ZERO));
    assert_eq!(limit.by, LimitBy::Claim(vec!["sub".into()]));
    assert_eq!((orders.timeout, &orders.policy), (None, &None));
    assert!(matches!(orders.origin, Origin::File { line: 43, column: 5, .. }), "{}", orders.origin);

    let sessions = route(&gateway.routes, "POST /sessions");
    assert_eq!(sessions.limit.as_ref().unwrap().by, LimitBy::Ip);
    assert!(sessions.access.is_none());
    let short = route(&gateway.routes, "GET /products");
    assert!(matches!(&short.action, Action::Service { service, .. } if service.as_str() == "catalog"));
    let assets = route(&gateway.routes, "GET /assets/**");
    assert!(matches!(&assets.action, Action::Static { dir } if dir.ends_with("storefront/assets")));
    assert_eq!(assets.path.to_string(), "/assets/**");
    assert_eq!(route(&gateway.routes, "GET /").path.segments, []);

    let home = route(&gateway.routes, "GET /home");
    let Action::Merge(parts) = &home.action else { panic!("{:?}", home.action) };
    let shown: Vec<_> = parts
        .iter()
        .map(|part| {
            let access = part.access.as_ref().map(|access| access.name.as_str());
            (part.name.as_str(), part.service.as_str(), part.path.source(), part.required, access, &part.fallback)
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("products", "catalog", "/products?limit=8", true, None, &Value::Null),
            ("profile", "users", "/users/${claims.sub}", false, Some("user"), &Value::Null),
            ("lastOrders", "orders", "/orders?limit=3", false, Some("user"), &json!([])),
        ]
    );
}

#[test]
fn events_and_workflows_of_the_shop() {
    let system = System::shop();
    let loaded = system.good();
    let manifest = &loaded.manifest;
    assert_eq!(manifest.topics.len(), 12);
    let placed = &manifest.topics["order.placed"];
    assert_eq!(placed.keep, secs(7 * 86_400));
    assert!(placed.schema.as_ref().unwrap().ends_with("contracts/order.placed.json"));
    assert_eq!(manifest.subscriptions.len(), 6);
    let confirmed: Vec<_> = manifest
        .subscriptions
        .iter()
        .filter(|subscription| subscription.topic.as_str() == "order.confirmed")
        .map(|subscription| match &subscription.target {
            Target::Service { service, path } => format!("{service}:{path}"),
            Target::Workflow { name, .. } => panic!("{name}"),
        })
        .collect();
    assert_eq!(confirmed, ["inventory:/events", "notifications:/events"]);
    let workflow = Target::Workflow { name: "checkout".parse().unwrap(), id: None };
    assert_eq!(manifest.subscriptions[0].target, workflow);

    let checkout = linear(&manifest.workflows["checkout"].body);
    assert_eq!(checkout.timeout, Some(secs(900)));
    let names: Vec<_> = checkout.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["reserve", "charge", "confirm"]);
    let attempts: Vec<_> = checkout.steps.iter().map(|step| step.attempts).collect();
    assert_eq!(attempts, [Attempts::Times(3), Attempts::Times(3), Attempts::Unlimited]);
    let [reserve, charge, confirm] = checkout.steps.as_slice() else { panic!("three steps") };
    let Work::Call(call) = &reserve.work else { panic!("a call") };
    assert_eq!(
        (call.method.as_str(), call.service.as_str(), call.path.source()),
        ("POST", "inventory", "/reservations")
    );
    let undo = reserve.undo.as_ref().unwrap();
    assert_eq!((undo.method.as_str(), undo.path.source()), ("DELETE", "/reservations/${input.id}"));
    assert_eq!((&reserve.undo_with, &confirm.undo), (&None, &None));

    let input = json!({"id": "a/7", "items": [{"productId": "p1", "quantity": 2}], "total": {"amount": 1250}});
    let lookup = |scope: &str, path: &[String]| match scope {
        "input" => ballet_manifest::descend(&input, path).cloned(),
        "charge" => ballet_manifest::descend(&json!({"output": {"id": 5}}), path).cloned(),
        _ => None,
    };
    assert_eq!(reserve.with.as_ref().unwrap().eval(&lookup), json!({"orderId": "a/7", "items": input["items"]}));
    assert_eq!(undo.path.eval_path(&lookup).unwrap(), "/reservations/a%2F7");
    let sent = charge.with.as_ref().unwrap().eval(&lookup);
    assert_eq!((&sent["amount"], &sent["card"]), (&json!(1250), &Value::Null));
    assert_eq!(confirm.with.as_ref().unwrap().eval(&lookup), json!({"paymentId": 5}));
    assert!(matches!(charge.undo_with, Some(JsonTemplate::Map(_))));
    let failed = checkout.failed.as_ref().unwrap();
    assert_eq!(failed.call.path.source(), "/orders/${input.id}/reject");

    let cancel = linear(&manifest.workflows["cancel-order"].body);
    assert!(cancel.steps.iter().all(|step| step.attempts == Attempts::Unlimited));
    assert_eq!((cancel.steps[1].with.as_ref(), cancel.failed.as_ref()), (None, None));
    assert_eq!(loaded.files.len(), 13);
}

const SMALL: &str = r#"system: small
services:
  orders: { run: "bin/orders --name 'two words'", store: sqlite, env: { LOG: debug, LEVEL: 3, KEY: { env: KEY }, PIN: { file: pin.txt } } }
  legacy: { url: "http://${env.LEGACY:-127.0.0.1:9}/base" }
  packer: { run: bin/packer, health: off }
platform: { listen: { main: 127.0.0.1:0 } }
policies:
  default: { timeout: 1s, breaker: { failures: 2 } }
  slow: { timeout: 9s, retry: { max: 0 } }
gateway:
  routes:
    ANY /legacy/**: { to: "legacy:/v1/${path.**}", policy: slow, timeout: 3s }
    GET /go/{where}: { redirect: { to: "/${path.where}", status: 308 } }
events:
  topics: { thing.done: }
  subscriptions:
    thing.done: { to: workflow:wrap, id: "wrap-${event.data.id}" }
workflows:
  wrap:
    steps:
      - pack: { task: pack, undo: POST orders:/unpack }
      - send: { task: send_parcel, with: { to: "${pack.output.address}", note: "for ${input.name:-you}" } }
profiles:
  large:
    platform: { bus: "nats://${env.NATS}" }
    services: { orders: { store: "postgres://o:geheim@db/orders", instances: 4 } }
    policies: { default: { timeout: 4s } }
  far: { services: { orders: { run: null, env: null, url: "http://10.0.0.1:80", store: null } } }
"#;

fn small() -> System {
    let system = System::new(SMALL).env("KEY", "s3cret");
    system.file("pin.txt", "1234\n");
    system
}

#[test]
fn what_the_shop_does_not_use() {
    let loaded = small().good();
    let manifest = &loaded.manifest;
    let orders = &manifest.services["orders"];
    assert_eq!(orders.source, Source::Run(vec!["bin/orders".into(), "--name".into(), "two words".into()]));
    assert_eq!(orders.env["LEVEL"], EnvValue::Plain("3".into()));
    assert_eq!((orders.env["KEY"].expose(), orders.env["PIN"].expose()), ("s3cret", "1234"));
    assert!(!format!("{manifest:?}").contains("s3cret"));
    let legacy = &manifest.services["legacy"];
    assert!(matches!(&legacy.source, Source::Url(url) if url.to_string() == "http://127.0.0.1:9/base"));
    assert_eq!(legacy.health, None);
    assert_eq!(manifest.services["packer"].health, None);
    let slow = manifest.policies.get(Some("slow"));
    assert_eq!((slow.timeout, slow.retry.max, slow.breaker.failures.get()), (secs(9), 0, 2));
    assert_eq!(manifest.platform.listen.main.port(), 0);

    let routes = &manifest.gateway.routes;
    let Action::Service { rewrite: Some(rewrite), .. } = &routes[0].action else { panic!("{:?}", routes[0].action) };
    let lookup = |_: &str, path: &[String]| (path == ["**"]).then(|| json!("a/b"));
    assert_eq!(rewrite.eval_path(&lookup).unwrap(), "/v1/a/b");
    assert_eq!((routes[0].policy.as_deref(), routes[0].timeout), (Some("slow"), Some(secs(3))));
    assert!(matches!(&routes[1].action, Action::Redirect { status: 308, .. }));

    let wrap = linear(&manifest.workflows["wrap"].body);
    assert_eq!(wrap.steps[1].work, Work::Task("send_parcel".into()));
    assert_eq!(wrap.steps[1].attempts, Attempts::Unlimited);
    let sent = wrap.steps[1].with.as_ref().unwrap().eval(&|_, _| None);
    assert_eq!(sent, json!({"to": null, "note": "for you"}));
    let Target::Workflow { id: Some(id), .. } = &manifest.subscriptions[0].target else { panic!("an id") };
    assert_eq!(id.eval_text(&|_, path| (path == ["data", "id"]).then(|| json!(7))).unwrap(), "wrap-7");
}

#[test]
fn a_profile_is_merged_in_key_by_key() {
    let loaded = small().profile("large").env("NATS", "queue:4222").engine("nats").good();
    let manifest = &loaded.manifest;
    assert_eq!(manifest.profile.as_deref(), Some("large"));
    let orders = &manifest.services["orders"];
    assert_eq!((orders.instances, orders.env.len()), (4, 4));
    assert!(matches!(&orders.store, Some(Store::Url(url)) if url.expose() == "postgres://o:geheim@db/orders"));
    assert!(
        matches!(&manifest.platform.bus, Engine::Url { scheme, url } if scheme == "nats" && url.expose() == "nats://queue:4222")
    );
    assert_eq!(manifest.policies.get(Some("slow")).breaker.failures.get(), 2);
    assert_eq!(manifest.policies.get(None).timeout, secs(4));
    let text = loaded.effective();
    assert!(text.contains("nats://${env.NATS}") && text.contains("postgres://o:***@db/orders"), "{text}");
    assert!(text.contains("profile large ("), "{text}");
    assert_eq!(manifest.secret_env.iter().collect::<Vec<_>>(), ["KEY", "NATS"], "not the plain `LEGACY`");

    let far = small().profile("far").good();
    assert!(matches!(&far.manifest.services["orders"].source, Source::Url(url) if url.port == 80));
}

#[test]
fn set_is_over_everything_and_its_value_is_yaml() {
    let loaded = small()
        .profile("large")
        .env("NATS", "x")
        .engine("nats")
        .env("BALLET_SERVICES__ORDERS__INSTANCES", "6")
        .env("BALLET_GATEWAY__LISTEN", "127.0.0.1:1")
        .env("BALLET_TOKEN", "not ours to read")
        .set("gateway.listen=127.0.0.1:0")
        .set("platform.bus=embedded")
        .set("services.orders.env.PATTERN=a=b")
        .set("services.orders.env={LOG: info}")
        .set("services.orders.env.EXTRA=x=y")
        .set("events.topics.thing.done.keep=2h")
        .set("events.topics.thing.new={keep: 1d}")
        .set("gateway.routes.ANY /legacy/**.timeout=5s")
        .set("workflows.wrap.steps.send.timeout=1h")
        .good();
    let manifest = &loaded.manifest;
    assert_eq!(manifest.gateway.listen.port(), 0);
    assert_eq!(manifest.platform.bus, Engine::Embedded);
    let orders = &manifest.services["orders"];
    assert_eq!(orders.instances, 6);
    assert_eq!(
        orders.env.iter().map(|(name, value)| (name.as_str(), value.expose())).collect::<Vec<_>>(),
        [("LOG", "info"), ("EXTRA", "x=y")]
    );
    assert_eq!(manifest.topics["thing.done"].keep, secs(7200));
    assert_eq!(manifest.topics["thing.new"].keep, secs(86_400));
    assert_eq!(manifest.gateway.routes[0].timeout, Some(secs(5)));
    assert_eq!(linear(&manifest.workflows["wrap"].body).steps[1].timeout, Some(secs(3600)));
    let text = loaded.effective();
    assert!(text.contains("environment BALLET_SERVICES__ORDERS__INSTANCES"), "{text}");
}

#[test]
fn every_value_says_where_it_comes_from() {
    let system = small().profile("large").env("NATS", "x").engine("nats").set("gateway.listen=127.0.0.1:0");
    let loaded = system.good();
    let dir = system.dir.path().display().to_string();
    let text = loaded.effective().replace(&format!("{dir}/"), "");
    expect_file(&here("tests/effective.txt"), &text).unwrap();

    let rows = loaded.effective_json();
    let row = |path: &[&str]| {
        let rows = rows.as_array().expect("a list");
        rows.iter().find(|row| row["path"] == json!(path)).unwrap_or_else(|| panic!("no {path:?}"))
    };
    assert_eq!(row(&["gateway", "listen"])["origin"], json!({"kind": "set"}));
    assert_eq!(row(&["services", "orders", "instances"])["origin"]["kind"], "profile");
    assert_eq!(row(&["services", "orders", "instances"])["value"], 4);
    assert_eq!(row(&["policies", "slow", "breaker", "failures"])["origin"]["name"], "policies.default");
    assert_eq!(row(&["services", "orders", "health"])["origin"], json!({"kind": "default"}));
    assert_eq!(loaded.to_json()["workflows"]["wrap"]["steps"][1]["send"]["attempts"], "unlimited");
}

#[test]
fn a_system_of_one_service_needs_two_lines() {
    let loaded = System::new("services:\n  hello: { run: hello }\n").good();
    assert_eq!(loaded.manifest.services.len(), 1);
    assert_eq!(loaded.manifest.gateway.routes.len(), 0);
}
