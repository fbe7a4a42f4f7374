use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use ballet_core::Timestamp;
use serde_json::{Value, json};

use super::rig::{Message, Rig, TestService};
use super::*;
use crate::issuer::MISS_COOLDOWN;
use crate::jwt::tests::{Signer, claims, jwks};

fn now() -> Timestamp {
    SystemClock.now()
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

/// A users service whose key document tests exchange.
async fn users(document: Vec<u8>) -> (TestService, Arc<Mutex<Vec<u8>>>) {
    let document = Arc::new(Mutex::new(document));
    let served = document.clone();
    let service = TestService::start(move |request| match request.target() {
        "/.well-known/jwks.json" => Some((200, String::from_utf8(served.lock().unwrap().clone()).unwrap())),
        _ => Some((200, "{\"name\":\"Ada\"}".into())),
    })
    .await;
    (service, document)
}

/// Sends until the keys are known. Bounded by the test's own patience: each round is a whole exchange.
async fn until_ready(rig: &Rig, path: &str, token: &str) {
    for _ in 0..2000 {
        if rig.get(path, &[&bearer(token)]).await.status() != 503 {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("keys never came");
}

fn code(message: &Message) -> String {
    message.json()["code"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn requests_go_where_the_routes_say() {
    let catalog = TestService::named("catalog").await;
    let orders = TestService::named("orders").await;
    let routes = "
    GET /products/**: catalog
    POST /orders: orders
    GET /orders/{id}: orders
    GET /old/{id}: { to: \"catalog:/products/${path.id}\" }
    GET /moved/**: { redirect: \"/products/${path.**}\" }
    GET /away/**: \"http://AWAY/other/${path.**}\"
";
    let routes = &routes.replace("AWAY", &orders.address.to_string());
    let rig = Rig::start(routes, &[("catalog", catalog.address), ("orders", orders.address)]);

    let answer = rig.get("/products/cup?full=1", &["x-forwarded-for: 9.9.9.9"]).await;
    assert_eq!((answer.status(), answer.json()), (200, json!({ "service": "catalog" })));
    let seen = catalog.last();
    assert_eq!(seen.target(), "/products/cup?full=1");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("shop.test"));
    assert!(seen.header("traceparent").is_some());

    let cases = [
        ("GET //products/./a/../b", "/products/b"),
        ("GET /%70roducts", "/products"),
        ("HEAD /products/x", "/products/x"),
        ("GET /old/a%20b?q=1", "/products/a%20b?q=1"),
    ];
    for (line, target) in cases {
        assert_eq!(rig.send(line, &[], "").await.status(), 200, "{line}");
        assert_eq!(catalog.last().target(), target, "{line}");
    }
    let answer = rig.send("POST /orders", &[], "{\"items\":[]}").await;
    assert_eq!((answer.status(), orders.last().body.as_str()), (200, "{\"items\":[]}"));
    let moved = rig.get("/moved/a/b", &[]).await;
    assert_eq!((moved.status(), moved.header("location")), (307, Some("/products/a/b")));

    assert_eq!(rig.get("/away/a/b?q=1", &[]).await.status(), 200);
    let seen = orders.last();
    assert_eq!((seen.target(), seen.header("host")), ("/other/a/b?q=1", Some(&*orders.address.to_string())));

    let calls = catalog.count() + orders.count();
    let nowhere = rig.get("/nowhere", &[]).await;
    assert_eq!((nowhere.status(), code(&nowhere).as_str()), (404, "GW002"));
    assert_eq!(nowhere.header("content-type"), Some("application/problem+json"));
    let method = rig.send("DELETE /orders/7", &[], "").await;
    assert_eq!((method.status(), method.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(catalog.count() + orders.count(), calls);

    let lines = rig.lines().await;
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[0]["route"], "GET /products/**");
    assert_eq!((&lines[0]["reason"], &lines[0]["upstream"]), (&json!("forwarded"), &json!("catalog")));
    assert_eq!((&lines[0]["attempts"], &lines[0]["status"]), (&json!(1), &json!(200)));
    assert_eq!(lines[0]["path"], "/products/cup", "queries may hold secrets");
    assert_eq!((&lines[8]["reason"], &lines[8]["code"]), (&json!("no route"), &json!("GW002")));
    assert_eq!(lines[8]["traceId"], nowhere.json()["traceId"]);
}

#[tokio::test]
async fn requests_that_others_would_read_differently_are_refused() {
    let catalog = TestService::named("catalog").await;
    let admin = TestService::named("admin").await;
    let routes = "
    ANY /**: catalog
    ANY /admin/**: { to: payments, access: staff }
";
    let rig = Rig::start(routes, &[("catalog", catalog.address), ("payments", admin.address)]);
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n");
    // What asks for /admin in any spelling is refused, by its rule (401, 503 while keys are unknown) or as malformed.
    let spellings = [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/%2e/admin",
        "/x/%2e%2e/admin",
        "/x%2f..%2fadmin",
        "/x/..;/admin",
        "/admin;a=b",
        "/x\\..\\admin",
        "/adm%00in",
        "/admin#x",
        "http://a.test/admin",
    ];
    for target in spellings {
        let answer = rig.client().await.raw(&get(target)).await.expect("an answer");
        assert!(matches!(answer.status(), 400 | 401), "{target}: {}", answer.line);
    }
    let raw = [
        ("POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", 400),
        ("GET /x HTTP/1.1\r\nX-A: 1\r\n\r\n", 400),
        ("GET /x HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400),
        ("GET /x HTTP/1.1\nHost: a.test\n\n", 400),
        ("GET http://evil.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
        ("GET /x HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer t\r\nConnection: close, Authorization\r\n\r\n", 400),
        ("CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n", 405),
        ("TRACE /x HTTP/1.1\r\nHost: a.test\r\n\r\n", 405),
        ("GET /x HTTP/1.1\r\nHost: a.test\r\nIdempotency-Key: a/b\r\n\r\n", 400),
    ];
    for (text, status) in raw {
        let answer = rig.client().await.raw(text).await.expect("an answer");
        assert_eq!(answer.status(), status, "{text}");
    }
    assert_eq!(catalog.count() + admin.count(), 0, "something was let through");
    // Another path, by case.
    assert_eq!(rig.get("/ADMIN", &[]).await.status(), 200);
}

#[tokio::test]
async fn tokens_open_what_their_roles_allow() {
    let (es, rs) = (Signer::es256("e"), Signer::rs256("r"));
    let (users, _) = users(jwks(&[&es, &rs])).await;
    let orders = TestService::named("orders").await;
    let routes = "
    GET /orders: { to: orders, access: user }
    GET /stock: { to: orders, access: staff }
    GET /open: orders
";
    let rig = Rig::start(routes, &[("orders", orders.address), ("users", users.address)]);
    let staff = |signer: &Signer| {
        let mut all = claims(now());
        all["roles"] = json!(["customer", "staff"]);
        signer.token(&all)
    };
    let customer = es.token(&claims(now()));
    until_ready(&rig, "/orders", &customer).await;
    let mut old = claims(now());
    old["exp"] = json!(now().millis() / 1000 - 60);
    let cases = [
        ("/open", None, 200, ""),
        ("/orders", None, 401, "GW004"),
        ("/orders", Some("authorization: Basic YTpi".to_owned()), 401, "GW004"),
        ("/orders", Some(bearer("nonsense")), 401, "GW005"),
        ("/orders", Some(bearer(&es.token(&old))), 401, "GW005"),
        ("/orders", Some(bearer(&customer)), 200, ""),
        ("/orders", Some(bearer(&staff(&rs))), 200, ""),
        ("/stock", Some(bearer(&customer)), 403, "GW006"),
        ("/stock", Some(bearer(&staff(&es))), 200, ""),
        ("/stock", Some(bearer(&staff(&rs))), 200, ""),
    ];
    for (path, header, status, expected) in cases {
        let lines: Vec<_> = header.iter().map(String::as_str).collect();
        let answer = rig.get(path, &lines).await;
        assert_eq!(answer.status(), status, "{path} {lines:?}");
        if status != 200 {
            assert_eq!(code(&answer), expected, "{path} {lines:?}");
            let challenge = answer.header("www-authenticate").expect("a challenge");
            assert_eq!(challenge.contains("invalid_token"), expected == "GW005", "{challenge}");
        }
    }
    // The token goes on to the service.
    rig.get("/orders", &[&bearer(&customer)]).await;
    assert_eq!(orders.last().header("authorization"), Some(&*format!("Bearer {customer}")));
    let before = rig.gateway.stats();
    rig.get("/orders", &[&bearer(&customer)]).await;
    let after = rig.gateway.stats();
    assert_eq!((after.token_hits - before.token_hits, after.token_misses), (1, before.token_misses));
    let lines = rig.lines().await;
    let last = lines.last().unwrap();
    assert_eq!((&last["access"], &last["subject"]), (&json!("user"), &json!("u-1")));
}

#[tokio::test]
async fn keys_rotate_without_a_refused_request_and_without_a_storm_of_fetches() {
    let (first, second, third) = (Signer::es256("1"), Signer::es256("2"), Signer::es256("3"));
    let (users, document) = users(jwks(&[&first])).await;
    let orders = TestService::named("orders").await;
    let rig = Rig::start("    GET /orders: { to: orders, access: user }\n", &[("orders", orders.address)]);
    let token = |signer: &Signer| bearer(&signer.token(&claims(now())));
    // Closed while keys are unknown, whatever the token.
    for header in [token(&first), bearer("x")] {
        let answer = rig.get("/orders", &[&header]).await;
        assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
    }
    assert_eq!(rig.get("/orders", &[]).await.status(), 401, "without a token nothing has to be verified");
    assert_eq!(orders.count(), 0);
    rig.places.set(&[("orders", orders.address), ("users", users.address)]);
    until_ready(&rig, "/orders", &first.token(&claims(now()))).await;
    let old = token(&first);
    assert_eq!(rig.get("/orders", &[&old]).await.status(), 200);

    // A new key: the first token that names it has the document fetched and waits for it; others wait with it.
    *document.lock().unwrap() = jwks(&[&first, &second]);
    let fetches = users.count();
    let new = token(&second);
    let lines = [new.as_str()];
    let both = tokio::join!(rig.get("/orders", &lines), rig.get("/orders", &lines));
    assert_eq!((both.0.status(), both.1.status()), (200, 200));
    assert_eq!(users.count(), fetches + 1);
    assert_eq!(rig.get("/orders", &[&old]).await.status(), 200);

    // Unknown keys within the cooldown: refused at once, nobody is asked.
    for n in 10..60 {
        assert_eq!(rig.get("/orders", &[&token(&Signer::es256(&n.to_string()))]).await.status(), 401);
    }
    assert_eq!(users.count(), fetches + 1);

    // The first key is withdrawn. The next fetch ends its tokens, also those that were verified before.
    *document.lock().unwrap() = jwks(&[&second, &third]);
    tokio::time::pause();
    tokio::time::advance(MISS_COOLDOWN).await;
    tokio::time::resume();
    assert_eq!(rig.get("/orders", &[&token(&third)]).await.status(), 200);
    let ended = rig.get("/orders", &[&old]).await;
    assert_eq!((ended.status(), code(&ended).as_str()), (401, "GW005"));
    assert_eq!(rig.get("/orders", &[&new]).await.status(), 200);

    // Old keys serve on while nobody can be asked, and over a reload.
    rig.places.set(&[("orders", orders.address)]);
    rig.gateway.reload(&rig.manifest("    GET /orders: { to: orders, access: user }\n    GET /x: orders\n")).unwrap();
    assert_eq!(rig.get("/orders", &[&new]).await.status(), 200);
    assert_eq!(rig.get("/orders", &[&token(&second)]).await.status(), 200);
}

#[tokio::test]
async fn a_merged_answer_has_every_part_or_its_fallback() {
    let signer = Signer::es256("e");
    let (users, _) = users(jwks(&[&signer])).await;
    let down = Arc::new(AtomicBool::new(false));
    let broken = down.clone();
    let catalog = TestService::start(move |_| match broken.load(Ordering::SeqCst) {
        false => Some((200, "{\"items\":[ 1, 2 ]}".into())),
        true => Some((500, "{}".into())),
    })
    .await;
    let orders = TestService::start(|_| Some((200, "not json".into()))).await;
    let routes = "
    GET /home:
      merge:
        products: { get: \"catalog:/products?limit=8\", required: true }
        profile: { get: \"users:/users/${claims.sub}\", access: user, fallback: null }
        lastOrders: { get: \"orders:/orders?limit=3\", access: user, fallback: [] }
    GET /mine: { access: user, merge: { profile: { get: \"users:/users/${claims.sub}\" } } }
";
    let services = [("catalog", catalog.address), ("users", users.address), ("orders", orders.address)];
    let rig = Rig::start(routes, &services);
    let token = signer.token(&claims(now()));
    until_ready(&rig, "/mine", &token).await;

    let anonymous = rig.get("/home", &[]).await;
    assert_eq!(anonymous.json(), json!({ "products": { "items": [1, 2] }, "profile": null, "lastOrders": [] }));
    assert_eq!(anonymous.header("ballet-merge-missing"), Some("profile, lastOrders"));
    let mine = rig.get("/home", &[&bearer(&token)]).await;
    assert_eq!(mine.json(), json!({ "products": { "items": [1, 2] }, "profile": { "name": "Ada" }, "lastOrders": [] }));
    assert_eq!(mine.header("ballet-merge-missing"), Some("lastOrders"));
    let seen = users.last();
    assert_eq!(seen.target(), "/users/u-1");
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {token}")));
    assert_eq!(rig.get("/home", &[&bearer("forged")]).await.json()["profile"], Value::Null);
    assert_eq!(rig.get("/mine", &[&bearer(&token)]).await.json(), json!({ "profile": { "name": "Ada" } }));

    down.store(true, Ordering::SeqCst);
    let failed = rig.get("/home", &[]).await;
    assert_eq!((failed.status(), code(&failed).as_str()), (502, "GW014"));
    assert!(failed.json()["detail"].as_str().unwrap().contains("products"));
    let lines = rig.lines().await;
    assert_eq!(lines.last().unwrap()["reason"], "required part failed");
    assert!(lines.iter().any(|line| line["reason"] == "merged without profile, lastOrders"));
}

#[tokio::test]
async fn a_rate_limit_counts_each_key_for_itself() {
    let orders = TestService::named("orders").await;
    let routes = "
    GET /ip: { to: orders, limit: 3/min by ip }
    GET /key: { to: orders, limit: 1/min by header.x-api-key }
    GET /queue: { to: orders, limit: { rate: 1/s, by: ip, wait: 2s } }
";

    let rig = Rig::start(routes, &[("orders", orders.address)]);
    for left in [2, 1, 0] {
        let answer = rig.get("/ip", &[]).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"route\";q=3;w=60"));
        assert!(answer.header("ratelimit").unwrap().starts_with(&format!("\"route\";r={left};t=")), "{answer:?}");
    }
    let refused = rig.get("/ip", &[]).await;
    assert_eq!((refused.status(), code(&refused).as_str()), (429, "GW008"));
    assert_eq!(refused.header("retry-after"), Some("20"));
    assert_eq!(orders.count(), 3);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(20)).await;
    tokio::time::resume();
    assert_eq!(rig.get("/ip", &[]).await.status(), 200);
    assert_eq!(rig.get("/ip", &[]).await.status(), 429);

    for (key, status) in
        [("x-api-key: a", 200), ("x-api-key: a", 429), ("x-api-key: b", 200), ("x-other: 1", 200), ("x-other: 2", 429)]
    {
        assert_eq!(rig.get("/key", &[key]).await.status(), status, "{key}");
    }

    // The second waits its turn; the reload in between keeps what was used.
    let began = tokio::time::Instant::now();
    assert_eq!(rig.get("/queue", &[]).await.status(), 200);
    rig.gateway.reload(&rig.manifest(routes)).unwrap();
    assert_eq!(rig.get("/queue", &[]).await.status(), 200);
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(rig.get("/ip", &[]).await.status(), 429);
}

#[tokio::test]
async fn a_service_out_of_reach_gets_its_fallback_at_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let payments = TestService::start(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Some((500, "{}".into()))
    })
    .await;
    let routes = "
    GET /payments/{id}: payments
    GET /orders: orders
";
    let rig = Rig::start(routes, &[]);
    let check = |answer: &Message| {
        assert_eq!((answer.status(), code(answer).as_str()), (503, "GW010"));
        assert_eq!(answer.json()["title"], "Payment service is unavailable.");
        assert!(answer.header("retry-after").is_some());
    };
    let began = tokio::time::Instant::now();
    check(&rig.get("/payments/1", &[]).await);
    // No fallback of its own.
    let plain = rig.get("/orders", &[]).await;
    assert_eq!((plain.status(), plain.json()["title"].as_str()), (503, Some("The service is unavailable")));

    rig.places.set(&[("payments", payments.address)]);
    let mut statuses = vec![];
    for _ in 0..30 {
        statuses.push(rig.get("/payments/1", &[]).await.status());
    }
    assert!(statuses.contains(&500), "{statuses:?}");
    assert!(calls.load(Ordering::SeqCst) <= 6, "the breaker let {} calls through", calls.load(Ordering::SeqCst));
    check(&rig.get("/payments/1", &[]).await);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let explanation = rig.gateway.explain("GET", "/payments/1");
    assert_eq!(explanation.calls[0].breaker, "open");
    let reasons: Vec<_> = rig.lines().await.iter().map(|line| line["reason"].as_str().unwrap().to_owned()).collect();
    assert!(reasons.contains(&"no instance".to_owned()) && reasons.contains(&"breaker open".to_owned()), "{reasons:?}");
}

#[tokio::test]
async fn a_post_is_sent_again_only_with_a_key_on_an_idempotent_route() {
    let silent = TestService::start(|_| None).await;
    let routes = "
    POST /safe: { to: orders, idempotent: true }
    POST /plain: orders
";
    for (path, header, expected) in [
        ("/safe", "idempotency-key: k-1", true),
        ("/safe", "x-other: 1", false),
        ("/plain", "idempotency-key: k-1", false),
    ] {
        let rig = Rig::start(routes, &[("orders", silent.address)]);
        let before = silent.count();
        let answer = rig.send(&format!("POST {path}"), &[header], "{}").await;
        assert_eq!(answer.status(), 502, "{path} {header}");
        assert_eq!(silent.count() > before + 1, expected, "{path} {header}: {}", silent.count() - before);
    }
}

#[tokio::test]
async fn a_reload_under_load_loses_nothing_and_a_bad_one_changes_nothing() {
    let (old, new) = (TestService::named("old").await, TestService::named("new").await);
    let to_old = "    GET /x: orders\n    GET /only-old: orders\n";
    let to_new = "    GET /x: catalog\n    GET /only-new: catalog\n";
    let rig = Arc::new(Rig::start(to_old, &[("orders", old.address), ("catalog", new.address)]));
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (rig, done) = (rig.clone(), done.clone());
            tokio::spawn(async move {
                let mut client = rig.client().await;
                let mut answers = 0;
                while !done.load(Ordering::SeqCst) || answers < 50 {
                    let answer = client.send("GET /x", &[], "").await.expect("the connection was closed");
                    assert_eq!(answer.status(), 200);
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    for round in 0..20 {
        let routes = if round % 2 == 0 { to_new } else { to_old };
        rig.gateway.reload(&rig.manifest(routes)).unwrap();
        // Each swap is seen by the very next request.
        let expected = if round % 2 == 0 { "/only-new" } else { "/only-old" };
        assert_eq!(rig.get(expected, &[]).await.status(), 200);
    }
    done.store(true, Ordering::SeqCst);
    let mut total = 0;
    for client in clients {
        total += client.await.unwrap();
    }
    assert!(old.count() > 20 && new.count() > 10 && total >= 200);

    let mut bad = rig.manifest(to_new);
    bad.gateway.routes[1].name = "GET /{y}".into();
    bad.gateway.routes[0].name = "GET /{x}".into();
    let error = rig.gateway.reload(&bad).unwrap_err();
    assert_eq!(crate::check_routes(&bad).unwrap_err().to_string(), error.to_string());
    assert_eq!(error.code(), ErrorCode("GW020"));
    assert_eq!(error.to_string(), "routes `GET /{x}` and `GET /{y}` are the same");
    let mut moved = rig.manifest(to_new);
    moved.gateway.listen.set_port(1);
    assert_eq!(rig.gateway.reload(&moved).unwrap_err().code(), ErrorCode("GW022"));
    assert_eq!(rig.get("/only-old", &[]).await.status(), 200);
}

#[tokio::test]
async fn files_are_served_with_their_types_and_validators() {
    let rig = Rig::start("    GET /: { static: site }\n    GET /assets/**: { static: site/assets }\n", &[]);
    let site = rig.dir.path().join("site");
    std::fs::create_dir_all(site.join("assets/sub")).unwrap();
    std::fs::write(site.join("index.html"), "<h1>shop</h1>").unwrap();
    std::fs::write(site.join("assets/app.js"), "let x = 1;").unwrap();
    std::fs::write(site.join("secret.txt"), "s").unwrap();
    let home = rig.get("/", &[]).await;
    assert_eq!((home.status(), home.body.as_str()), (200, "<h1>shop</h1>"));
    let script = rig.get("/assets/app.js", &[]).await;
    assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
    let tag = format!("if-none-match: {}", script.header("etag").unwrap());
    assert_eq!(rig.get("/assets/app.js", &[&tag]).await.status(), 304);
    let part = rig.get("/assets/app.js", &["range: bytes=4-4"]).await;
    assert_eq!((part.status(), part.body.as_str()), (206, "x"));
    let head = rig.send("HEAD /assets/app.js", &[], "").await;
    assert_eq!((head.status(), head.header("content-length")), (200, Some("10")));
    std::fs::write(site.join("assets/long.bin"), vec![b'x'; 2 << 20]).unwrap();
    let head = rig.send("HEAD /assets/long.bin", &[], "").await;
    assert_eq!((head.status(), head.header("etag").is_some()), (200, true));
    let directory = rig.get("/assets/sub", &[]).await;
    assert_eq!((directory.status(), directory.header("location")), (308, Some("/assets/sub/")));
    for path in ["/assets/../secret.txt", "/assets/%2e%2e/secret.txt", "/secret.txt", "/assets/nope.js"] {
        assert_eq!(rig.get(path, &[]).await.status(), 404, "{path}");
    }
    assert_eq!(rig.get("/assets/..%2fsecret.txt", &[]).await.status(), 400);
    let lines = rig.lines().await;
    assert_eq!((&lines[0]["reason"], &lines.last().unwrap()["status"]), (&json!("file"), &json!(400)));
}

#[tokio::test]
async fn explain_tells_what_would_happen() {
    let orders = TestService::named("orders").await;
    let routes = "
    GET /orders/{id}: { to: orders, access: staff, limit: 10/min by ip }
    POST /orders: { to: orders, idempotent: true }
    GET /old: { redirect: /new }
";
    let rig = Rig::start(routes, &[("orders", orders.address)]);
    assert_eq!(rig.send("POST /orders", &[], "{}").await.status(), 200);
    let order = rig.gateway.explain("GET", "http://shop.test//orders/7?x=1");
    assert_eq!((order.path.as_str(), order.route.as_deref()), ("/orders/7", Some("GET /orders/{id}")));
    assert_eq!(order.access.as_ref().map(|a| (a.rule.as_str(), a.keys_known)), Some(("staff", false)));
    assert_eq!(order.limit.as_deref(), Some("10 per 60 s by ip"));
    assert_eq!((order.action, order.calls[0].service.as_str()), (Some("forward"), "orders"));
    assert_eq!(order.calls[0].instances, [format!("orders-0 {}", orders.address)]);
    assert!(order.origin.as_ref().unwrap().contains("ballet.yaml"), "{order:?}");
    let text = order.steps.join("\n");
    assert!(text.contains("spelled `/orders/7`") && text.contains("with role staff"), "{text}");
    assert!(rig.gateway.explain("POST", "/orders").steps.join("\n").contains("retried only with"));
    for (method, url, status, code) in [
        ("GET", "/nope", Some(404), Some("GW002")),
        ("PUT", "/orders", Some(405), Some("GW003")),
        ("GET", "/a%2fb", Some(400), Some("GW001")),
        ("GET", "/old", Some(307), None),
    ] {
        let explanation = rig.gateway.explain(method, url);
        assert_eq!((explanation.status, explanation.code), (status, code), "{method} {url}");
    }
    let metrics = Metrics::default();
    rig.gateway.register(&metrics);
    let text = metrics.encode();
    assert!(text.contains("ballet_gateway_requests_total{route=\"POST /orders\",status=\"2xx\"} 1"), "{text}");
    assert!(
        text.contains("ballet_breaker_state{caller=\"gateway\",service=\"orders\",policy=\"default\"} 0"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_not_served_yet_is_refused_at_load() {
    let rig = Rig::start("    GET /x: orders\n", &[]);
    let mut manifest = rig.manifest("    GET /x: orders\n");
    manifest.gateway.routes[0].action = ballet_manifest::Action::Topic("order.placed".parse().unwrap());
    let error = rig.gateway.reload(&manifest).unwrap_err();
    assert_eq!(error.to_string(), "route `GET /x`: `topic:` is not served yet");
    assert_eq!(error.code(), ErrorCode("GW021"));
}
