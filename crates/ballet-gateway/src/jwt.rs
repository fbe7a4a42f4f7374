//! Tokens: JSON Web Tokens signed with ES256 or RS256 (RFC 7519, RFC 8725).
//!
//! The algorithm comes from the key, never from the token; keys inside the token (`jwk`, `jku`, `x5u`) are not looked
//! at; `crit` is refused; `exp` is required; issuer and audience are exact. Pure: told the time, given the keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ballet_core::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How far the clocks of issuer and gateway may differ.
pub(crate) const LEEWAY_SECONDS: i64 = 10;
/// Longest token, in bytes.
pub(crate) const MAX_TOKEN_BYTES: usize = 8192;
/// Keys of a JWKS document that are kept; later ones are ignored.
pub(crate) const MAX_KEYS: usize = 64;
/// Verified tokens that are remembered, per issuer.
pub(crate) const CACHED_TOKENS: usize = 8192;

const SHARDS: usize = 16;

/// What a verified token says.
#[derive(Debug, PartialEq)]
pub(crate) struct Claims {
    /// All of it.
    pub(crate) all: Value,
    /// Seconds since 1970.
    expires: i64,
}

/// The public keys of an issuer.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
    /// Changes with the keys: what was verified with others is verified again.
    pub(crate) version: u64,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    /// The material, to see whether a refresh changed anything.
    material: String,
}

/// Why a token is not good. All but `UnknownKey` are final.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token is signed in a way that is not accepted")]
    Algorithm,
    #[error("no key of this id is known")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is another issuer's")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
}

/// Why a document is no JWKS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwksError {
    #[error("it is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("it has no key that can verify ES256 or RS256")]
    NoKey,
}

/// Verified tokens by all their bytes, in two generations: when the young one is full it becomes the old one, and the
/// old one is forgotten. An entry ends with its token or with a change of the keys.
pub(crate) struct TokenCache {
    shards: [Mutex<Generations>; SHARDS],
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct Generations {
    young: HashMap<Box<[u8]>, Verified>,
    old: HashMap<Box<[u8]>, Verified>,
}

#[derive(Clone)]
struct Verified {
    claims: Arc<Claims>,
    keys: u64,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

impl Claims {
    /// The claim at a path: `["sub"]`.
    pub(crate) fn get(&self, path: &[String]) -> Option<&Value> {
        ballet_manifest::descend(&self.all, path)
    }

    /// Whether a claim is this text, or a list that holds one of these texts.
    pub(crate) fn has_any(&self, claim: &str, wanted: &[String]) -> bool {
        let is = |value: &Value| value.as_str().is_some_and(|text| wanted.iter().any(|w| w == text));
        match self.all.get(claim) {
            Some(Value::Array(list)) => list.iter().any(is),
            Some(value) => is(value),
            None => false,
        }
    }
}

#[cfg(test)]
impl Claims {
    pub(crate) fn for_tests(all: Value) -> Self {
        Self { all, expires: i64::MAX }
    }
}

impl KeySet {
    /// Reads a JWKS document (RFC 7517). Keys that cannot be used are left out.
    pub(crate) fn parse(document: &[u8]) -> Result<Self, JwksError> {
        let jwks: Jwks = serde_json::from_slice(document).map_err(JwksError::Json)?;
        let keys: Vec<_> = jwks.keys.into_iter().filter_map(Key::read).take(MAX_KEYS).collect();
        if keys.is_empty() {
            return Err(JwksError::NoKey);
        }
        Ok(Self { keys, version: 0 })
    }

    /// Whether it holds the same keys as another.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.keys.len() == other.keys.len() && self.keys.iter().zip(&other.keys).all(|(a, b)| a.material == b.material)
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, TokenError> {
        let mut fitting = self.keys.iter().filter(|key| match id {
            Some(_) => key.id.as_deref() == id,
            // Without an id only a single key leaves no doubt.
            None => key.algorithm == algorithm,
        });
        match (fitting.next(), id) {
            (Some(key), Some(_)) if key.algorithm == algorithm => Ok(key),
            (Some(_), Some(_)) => Err(TokenError::Algorithm),
            (Some(key), None) if fitting.next().is_none() => Ok(key),
            (Some(_) | None, None) | (None, Some(_)) => Err(TokenError::UnknownKey),
        }
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature) {
            return None;
        }
        let (algorithm, named, material) = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256, format!("{} {}", key.x, key.y))
            }
            AlgorithmParameters::RSA(key) => (Algorithm::RS256, KeyAlgorithm::RS256, format!("{} {}", key.n, key.e)),
            _ => return None,
        };
        if jwk.common.key_algorithm.is_some_and(|written| written != named) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let id = jwk.common.key_id;
        Some(Self { algorithm, key, material: format!("{id:?} {algorithm:?} {material}"), id })
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.material)
    }
}

/// Verifies a token against an issuer's keys at `now`.
pub(crate) fn verify(
    token: &[u8],
    keys: &KeySet,
    issuer: &str,
    audience: &str,
    now: Timestamp,
) -> Result<Claims, TokenError> {
    let token = std::str::from_utf8(token).map_err(|_| TokenError::Malformed)?;
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
    if token.len() > MAX_TOKEN_BYTES || payload.contains('.') {
        return Err(TokenError::Malformed);
    }
    let header: Header = decode(header)?;
    let algorithm = match (header.alg.as_str(), &header.crit) {
        ("ES256", None) => Algorithm::ES256,
        ("RS256", None) => Algorithm::RS256,
        _ => return Err(TokenError::Algorithm),
    };
    let key = keys.find(header.kid.as_deref(), algorithm)?;
    match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, algorithm) {
        Ok(true) => {}
        Ok(false) => return Err(TokenError::Signature),
        Err(_) => return Err(TokenError::Malformed),
    }
    let claims: Map<String, Value> = decode(payload)?;
    let now = now.millis().div_euclid(1000);
    let expires = seconds(&claims, "exp")?.ok_or(TokenError::Expired)?;
    if now >= expires.saturating_add(LEEWAY_SECONDS) {
        return Err(TokenError::Expired);
    }
    if seconds(&claims, "nbf")?.is_some_and(|from| now < from.saturating_sub(LEEWAY_SECONDS)) {
        return Err(TokenError::NotYet);
    }
    if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
        return Err(TokenError::Issuer);
    }
    let all = Value::Object(claims);
    let claims = Claims { all, expires };
    if !claims.has_any("aud", &[audience.to_owned()]) {
        return Err(TokenError::Audience);
    }
    Ok(claims)
}

/// The token of an `Authorization: Bearer` header.
pub(crate) fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

/// A NumericDate; a fraction is cut off.
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match (value.as_i64(), value.as_f64()) {
            (Some(whole), _) => Ok(Some(whole)),
            (None, Some(float)) if float.abs() < 1e15 => Ok(Some(float as i64)),
            (None, _) => Err(TokenError::Malformed),
        },
    }
}

impl TokenCache {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The claims of a token that was verified with these keys and has not expired.
    pub(crate) fn get(&self, token: &[u8], keys: &KeySet, now: Timestamp) -> Option<Arc<Claims>> {
        let mut shard = self.shard(token).lock().unwrap_or_else(PoisonError::into_inner);
        let found = match shard.young.get(token) {
            Some(found) => Some(found.clone()),
            None => shard.old.remove(token).inspect(|found| shard.put(token.into(), found.clone())),
        };
        let good = found.filter(|v| {
            v.keys == keys.version && now.millis().div_euclid(1000) < v.claims.expires.saturating_add(LEEWAY_SECONDS)
        });
        let counter = if good.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        good.map(|v| v.claims)
    }

    /// Remembers a verified token.
    pub(crate) fn put(&self, token: &[u8], claims: Arc<Claims>, keys: &KeySet) {
        let mut shard = self.shard(token).lock().unwrap_or_else(PoisonError::into_inner);
        shard.put(token.into(), Verified { claims, keys: keys.version });
    }

    /// Found and not found, since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// The signature's last bytes are as good as random.
    fn shard(&self, token: &[u8]) -> &Mutex<Generations> {
        let sum =
            token.iter().rev().take(8).fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        &self.shards[sum % SHARDS]
    }
}

impl Generations {
    fn put(&mut self, token: Box<[u8]>, verified: Verified) {
        if self.young.len() >= CACHED_TOKENS / SHARDS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token, verified);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    use jsonwebtoken::EncodingKey;
    use serde_json::json;

    use super::*;

    /// A key pair that signs tokens.
    pub(crate) struct Signer {
        id: String,
        algorithm: Algorithm,
        key: EncodingKey,
    }

    impl Signer {
        pub(crate) fn es256(id: &str) -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let key = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
            Self { id: id.into(), algorithm: Algorithm::ES256, key }
        }

        pub(crate) fn rs256(id: &str) -> Self {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            // jsonwebtoken wants PKCS#1, which stands in PKCS#8 behind a head of fixed length (RFC 5958 §2).
            let pkcs8 = pair.as_der().unwrap();
            let key = EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]);
            Self { id: id.into(), algorithm: Algorithm::RS256, key }
        }

        pub(crate) fn jwk(&self) -> Value {
            let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
            jwk.common.key_id = Some(self.id.clone());
            serde_json::to_value(jwk).unwrap()
        }

        pub(crate) fn token(&self, claims: &Value) -> String {
            let mut header = jsonwebtoken::Header::new(self.algorithm);
            header.kid = Some(self.id.clone());
            self.sign(&serde_json::to_value(header).unwrap(), claims)
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let message = format!("{}.{}", part(header), part(claims));
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
            format!("{message}.{signature}")
        }
    }

    pub(crate) fn jwks(signers: &[&Signer]) -> Vec<u8> {
        json!({ "keys": signers.iter().map(|s| s.jwk()).collect::<Vec<_>>() }).to_string().into_bytes()
    }

    pub(crate) fn claims(now: Timestamp) -> Value {
        let now = now.millis() / 1000;
        json!({ "iss": "users", "aud": "shop", "sub": "u-1", "roles": ["customer"], "iat": now, "exp": now + 3600 })
    }

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn check(token: &str, keys: &KeySet) -> Result<Claims, TokenError> {
        verify(token.as_bytes(), keys, "users", "shop", NOW)
    }

    #[test]
    fn tokens_of_both_algorithms_are_verified() {
        let (es, rs) = (Signer::es256("e"), Signer::rs256("r"));
        let keys = KeySet::parse(&jwks(&[&es, &rs])).unwrap();
        for signer in [&es, &rs] {
            let token = signer.token(&claims(NOW));
            let claims = check(&token, &keys).unwrap();
            assert_eq!(claims.get(&["sub".into()]), Some(&json!("u-1")));
            // One flipped bit anywhere in the signature.
            let (message, signature) = token.rsplit_once('.').unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
            bytes[10] ^= 1;
            let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes));
            assert_eq!(check(&forged, &keys), Err(TokenError::Signature));
        }
    }

    #[test]
    fn a_token_that_is_wrong_in_one_way_is_refused_for_it() {
        let (signer, other) = (Signer::es256("e"), Signer::es256("e"));
        let keys = KeySet::parse(&jwks(&[&signer])).unwrap();
        let with = |change: Value| {
            let mut all = claims(NOW);
            for (name, value) in change.as_object().unwrap() {
                all[name] = value.clone();
            }
            signer.token(&all)
        };
        let now = NOW.millis() / 1000;
        let header = |header: Value| signer.sign(&header, &claims(NOW));
        let good = with(json!({}));
        let cases = [
            (with(json!({ "aud": ["other", "shop"], "nbf": now + 9, "exp": now - 9 })), Ok(())),
            (with(json!({ "exp": now - 10 })), Err(TokenError::Expired)),
            (with(json!({ "exp": null })), Err(TokenError::Malformed)),
            (with(json!({ "exp": "tomorrow" })), Err(TokenError::Malformed)),
            (signer.token(&json!({ "iss": "users", "aud": "shop" })), Err(TokenError::Expired)),
            (with(json!({ "nbf": now + 11 })), Err(TokenError::NotYet)),
            (with(json!({ "iss": "Users" })), Err(TokenError::Issuer)),
            (with(json!({ "iss": ["users"] })), Err(TokenError::Issuer)),
            (with(json!({ "aud": "shops" })), Err(TokenError::Audience)),
            (with(json!({ "aud": null })), Err(TokenError::Audience)),
            (other.token(&claims(NOW)), Err(TokenError::Signature)),
            (Signer::es256("x").token(&claims(NOW)), Err(TokenError::UnknownKey)),
            (Signer::rs256("e").token(&claims(NOW)), Err(TokenError::Algorithm)),
            (header(json!({ "alg": "ES256", "typ": "JWT" })), Ok(())),
            (header(json!({ "alg": "none", "kid": "e" })), Err(TokenError::Algorithm)),
            (header(json!({ "alg": "HS256", "kid": "e" })), Err(TokenError::Algorithm)),
            (header(json!({ "alg": "ES256", "kid": "e", "crit": ["b64"], "b64": false })), Err(TokenError::Algorithm)),
            (good.replace('.', ""), Err(TokenError::Malformed)),
            (format!("{good}=="), Err(TokenError::Malformed)),
            (format!("a.{good}"), Err(TokenError::Malformed)),
            ("..".into(), Err(TokenError::Malformed)),
            (String::new(), Err(TokenError::Malformed)),
            ("a".repeat(MAX_TOKEN_BYTES) + &good, Err(TokenError::Malformed)),
        ];
        for (place, (token, expected)) in cases.iter().enumerate() {
            assert_eq!(check(token, &keys).map(drop), *expected, "case {place}: {token:.60}");
        }
    }

    #[test]
    fn keys_that_cannot_verify_are_left_out() {
        let (es, rs) = (Signer::es256("e"), Signer::rs256("r"));
        let mut wrong_use = es.jwk();
        wrong_use["use"] = json!("enc");
        let mut wrong_algorithm = rs.jwk();
        wrong_algorithm["alg"] = json!("PS256");
        let secret = json!({ "kty": "oct", "k": "AAAA", "alg": "HS256" });
        let document = |keys: Value| json!({ "keys": keys }).to_string().into_bytes();
        assert!(KeySet::parse(&document(json!([wrong_use, wrong_algorithm, secret, 7]))).is_err());
        assert_eq!(KeySet::parse(&document(json!([wrong_use, es.jwk()]))).unwrap().keys.len(), 1);
        assert!(KeySet::parse(b"<html>").is_err());
        // Without an id in the token two keys of one algorithm leave a doubt.
        let keys = KeySet::parse(&jwks(&[&es, &Signer::es256("f")])).unwrap();
        let token = es.sign(&json!({ "alg": "ES256" }), &claims(NOW));
        assert_eq!(check(&token, &keys), Err(TokenError::UnknownKey));
    }

    #[test]
    fn a_cached_token_ends_with_its_time_or_its_keys_and_the_cache_is_bounded() {
        let cache = TokenCache::new();
        let keys = KeySet { keys: vec![], version: 1 };
        let expires = NOW.millis() / 1000 + 60;
        let put = |token: &[u8]| cache.put(token, Arc::new(Claims { all: json!({}), expires }), &keys);
        put(b"t");
        assert!(cache.get(b"t", &keys, NOW).is_some());
        assert!(cache.get(b"T", &keys, NOW).is_none());
        assert!(cache.get(b"t", &keys, Timestamp((expires + LEEWAY_SECONDS - 1) * 1000)).is_some());
        assert!(cache.get(b"t", &keys, Timestamp((expires + LEEWAY_SECONDS) * 1000)).is_none());
        assert!(cache.get(b"t", &KeySet { keys: vec![], version: 2 }, NOW).is_none());
        for n in 0..3 * CACHED_TOKENS {
            put(n.to_string().as_bytes());
            // In constant use, so it stays.
            assert!(cache.get(b"t", &keys, NOW).is_some(), "{n}");
        }
        let size: usize = cache.shards.iter().map(|s| s.lock().unwrap()).map(|s| s.young.len() + s.old.len()).sum();
        assert!((CACHED_TOKENS / 3..=CACHED_TOKENS).contains(&size), "{size}");
    }

    #[test]
    fn the_scheme_of_authorization_has_no_case() {
        assert_eq!(bearer(b"bEARER  a.b.c "), Some(b"a.b.c".as_slice()));
        for bad in ["", "Bearer", "Bearer ", "Basic abc", "Bearera.b.c"] {
            assert_eq!(bearer(bad.as_bytes()), None, "{bad}");
        }
    }
}
