//! The rows of the shop's contract that belong to the catalog, over the wire.

use std::collections::BTreeSet;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use ballet_service::{Builder, Config, Running, Service};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::service;

/// The service, another one that calls it, and a key that signs tokens.
struct Rig {
    catalog: Running,
    caller: Running,
    key: EncodingKey,
    _dir: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let key = EncodingKey::from_ec_der(pkcs8.as_ref());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("test".into());

        let dir = TempDir::new().unwrap();
        let catalog = start("catalog", service().own_keys(move |_| Ok(json!({"keys": [jwk]}))), &dir, &[]).await;
        let url = format!("http://{}", catalog.address());
        let caller = start("caller", Service::builder("caller"), &dir, &[("CATALOG_URL", &url)]).await;
        Self { catalog, caller, key, _dir: dir }
    }

    fn token(&self, role: &str) -> String {
        let expires = jsonwebtoken::get_current_timestamp() + 3_600;
        let claims = json!({"sub": "somebody", "iss": "users", "aud": "shop", "exp": expires, "roles": [role]});
        let header = Header { kid: Some("test".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.caller.context().service("catalog").get(path).send().await.unwrap();
        (answer.status.as_u16(), answer.json().unwrap())
    }

    async fn ids(&self, path: &str) -> Vec<String> {
        let (status, page) = self.get(path).await;
        assert_eq!(status, 200, "{page}");
        let ids = page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned());
        ids.collect()
    }

    async fn put(&self, path: &str, role: Option<&str>, body: &Value) -> (u16, Value) {
        let mut call = self.caller.context().service("catalog").put(path).json(body);
        if let Some(role) = role {
            call = call.bearer(&self.token(role));
        }
        let answer = call.send().await.unwrap();
        (answer.status.as_u16(), answer.json().unwrap())
    }
}

async fn start(name: &str, builder: Builder, dir: &TempDir, env: &[(&str, &str)]) -> Running {
    let store = format!("sqlite:{}/{name}.db", dir.path().display());
    let env = env.iter().copied().chain([("STORE_URL", store.as_str())]);
    builder.build_with(Config::from_pairs(name, env).unwrap()).start().await.unwrap()
}

#[tokio::test]
async fn anyone_searches_and_pages() {
    let rig = Rig::start().await;
    let all = rig.ids("/products?limit=100").await;
    let unique: BTreeSet<_> = all.iter().collect();
    assert_eq!((all.len(), unique.len(), rig.ids("/products").await.len()), (24, 24, 20));

    let mut paged = vec![];
    let mut after = String::new();
    loop {
        let (_, page) = rig.get(&format!("/products?limit=10&after={after}")).await;
        paged.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
    }
    assert_eq!(paged, all);

    for (query, expected) in [
        ("q=ESPRESSO", "espresso-cup"),
        ("q=Cedar", "pencil-set"),
        ("q=a&category=kitchen&limit=2", "bread-board espresso-cup"),
        ("category=Kitchen", ""),
        ("q=%25", ""),
        ("q=no+such+thing", ""),
    ] {
        assert_eq!(rig.ids(&format!("/products?{query}")).await.join(" "), expected, "{query}");
    }
    for bad in ["limit=0", "limit=101", "limit=none", "limit=-1", "limit=1.5"] {
        let (status, refused) = rig.get(&format!("/products?{bad}")).await;
        assert_eq!((status, &refused["errors"][0]["field"]), (400, &json!("limit")), "{bad}");
    }
    let (status, cup) = rig.get("/products/espresso-cup").await;
    assert_eq!((status, &cup["price"]), (200, &json!({"amount": 1299, "currency": "EUR"})));
    assert_eq!(cup["image"], "/assets/products/espresso-cup.svg");
    assert_eq!(rig.get("/products/no-such-thing").await.0, 404);
}

#[tokio::test]
async fn every_seeded_product_has_its_picture() {
    let rig = Rig::start().await;
    for id in rig.ids("/products?limit=100").await {
        let picture = format!("{}/../storefront/assets/products/{id}.svg", env!("CARGO_MANIFEST_DIR"));
        assert!(std::fs::exists(&picture).unwrap(), "{picture}");
    }
}

#[tokio::test]
async fn staff_changes_a_product_and_the_world_hears() {
    let rig = Rig::start().await;
    let (_, mut whisk) = rig.get("/products/whisk").await;
    whisk["description"] = json!("Beats EVERYTHING.");
    whisk["price"]["amount"] = json!(1099);
    for (role, status) in [(None, 401), (Some("customer"), 403), (Some("staff"), 200)] {
        assert_eq!(rig.put("/products/whisk", role, &whisk).await.0, status, "{role:?}");
    }
    assert_eq!(rig.get("/products/whisk").await, (200, whisk.clone()));
    assert_eq!(rig.ids("/products?q=beats+everything").await, ["whisk"]);
    assert_eq!(rig.put("/products/no-such-thing", Some("staff"), &whisk).await.0, 404);

    for (field, bad) in [
        ("name", json!(" ")),
        ("description", json!("")),
        ("price.amount", json!({"amount": -1, "currency": "EUR"})),
        ("price.amount", json!({"amount": 1.5, "currency": "EUR"})),
        ("price.currency", json!({"amount": 1, "currency": "USD"})),
        ("category", Value::Null),
    ] {
        let mut body = whisk.clone();
        body[field.split('.').next().unwrap()] = bad.clone();
        let (status, refused) = rig.put("/products/whisk", Some("staff"), &body).await;
        assert_eq!((status, &refused["errors"][0]["field"]), (400, &json!(field)), "{bad}: {refused}");
    }

    let events = rig.catalog.context().store().read(|db| {
        let mut rows = db.prepare("SELECT event FROM outbox WHERE topic = 'product.changed' ORDER BY id")?;
        let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    });
    let events: Vec<Value> = events.await.unwrap().iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(events.len(), 25, "one for each seeded product, one for the change");
    let schema = format!("{}/../contracts/product.changed.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    for event in &events {
        jsonschema::validate(&schema, &event["data"]).unwrap_or_else(|error| panic!("{event}: {error}"));
    }
    let last = &events[24];
    assert_eq!((&last["subject"], &last["data"]["version"]), (&json!("whisk"), &json!(2)));
}
