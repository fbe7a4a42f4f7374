//! Tokens: who is let in, keys that rotate, keys that cannot be had.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use ballet_service::axum::routing::get;
use ballet_service::axum::{Json, Router};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::{Rig, builder};

struct Signer {
    kid: &'static str,
    key: EncodingKey,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &aws_lc_rs::rand::SystemRandom::new());
        Self { kid, key: EncodingKey::from_ec_der(pkcs8.unwrap().as_ref()) }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn token(&self, change: &[(&str, Value)]) -> String {
        let expires = jsonwebtoken::get_current_timestamp() + 3_600;
        let mut claims = json!({"sub": "ada", "iss": "users", "aud": "shop", "exp": expires, "roles": ["customer"]});
        for (name, value) in change {
            claims[*name] = value.clone();
        }
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

/// A users service that publishes what it is told to.
async fn users() -> (String, Arc<Mutex<Option<Value>>>) {
    let set: Arc<Mutex<Option<Value>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shown = set.clone();
    let answer = async move || match shown.lock().unwrap().clone() {
        Some(set) => Ok(Json(set)),
        None => Err(http::StatusCode::SERVICE_UNAVAILABLE),
    };
    let routes = Router::new().route("/.well-known/jwks.json", get(answer));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, set)
}

async fn ask(rig: &Rig, path: &str, token: &str) -> (u16, String) {
    let answer = rig.get(path).header("authorization", format!("Bearer {token}")).send().await.unwrap();
    (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).unwrap())
}

#[tokio::test]
async fn tokens_open_doors_and_keys_rotate() {
    let (url, set) = users().await;
    let directory = Arc::new(TempDir::new().unwrap());
    let rig = Rig::with(builder(), directory, "things-1", &[("USERS_URL", &url)]).await;
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    let token = old.token(&[]);

    let (status, body) = ask(&rig, "/me", &token).await;
    assert_eq!((status, body.contains("CH008")), (503, true), "the keys are unknown: {body}");

    *set.lock().unwrap() = Some(json!({"keys": [old.jwk()]}));
    // A second fetch comes at the earliest a second after the first.
    let mut last = (0, String::new());
    for _ in 0..40 {
        last = ask(&rig, "/me", &token).await;
        if last.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(last, (200, "ada".into()));
    assert_eq!(ask(&rig, "/maybe", &token).await, (200, "ada".into()));
    assert_eq!(ask(&rig, "/staff", &token).await.0, 403);
    assert_eq!(ask(&rig, "/staff", &old.token(&[("roles", json!(["staff"]))])).await, (200, "ada".into()));
    let bare = rig.get("/maybe").send().await.unwrap();
    assert_eq!((bare.status.as_u16(), bare.body.as_ref()), (200, b"nobody".as_ref()));
    let missing = rig.get("/me").send().await.unwrap();
    assert_eq!((missing.status.as_u16(), missing.header("www-authenticate")), (401, Some("Bearer")));

    let mut forged = token.clone();
    forged.replace_range(forged.len() - 6..forged.len() - 2, "AAAA");
    for (what, bad) in [
        ("expired", old.token(&[("exp", json!(1_000_000))])),
        ("issuer", old.token(&[("iss", json!("others"))])),
        ("audience", old.token(&[("aud", json!("others"))])),
        ("signature", forged),
        ("impostor", Signer::new("k1").token(&[])),
        ("malformed", "a.b.c".into()),
        ("none", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.".into()),
    ] {
        for path in ["/me", "/maybe", "/staff"] {
            assert_eq!(ask(&rig, path, &bad).await.0, 401, "{what} {path}");
        }
    }

    // Rotated: the new key is fetched when a token names it; the old one is known as long as it is published.
    *set.lock().unwrap() = Some(json!({"keys": [new.jwk(), old.jwk()]}));
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(ask(&rig, "/me", &new.token(&[])).await.0, 200);
    assert_eq!(ask(&rig, "/me", &token).await.0, 200);
    // Users gone: what is known still serves.
    *set.lock().unwrap() = None;
    assert_eq!(ask(&rig, "/me", &new.token(&[])).await.0, 200);
}
