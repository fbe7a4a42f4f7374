//! A key pair, its JWKS document and a token, for gateways that check them.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

/// What a token names as its issuer.
pub const ISSUER: &str = "bench";
/// What a token is for.
pub const AUDIENCE: &str = "ballet";

/// A new RSA key's JWKS document, and an RS256 token that it signed; valid until 2100.
pub fn issue() -> (String, String) {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key pair");
    // jsonwebtoken wants PKCS#1, which stands in PKCS#8 behind a head of fixed length (RFC 5958 §2).
    let pkcs8 = pair.as_der().expect("a key has a form");
    let key = EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]);
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).expect("a private key knows its public half");
    jwk.common.key_id = Some("k1".into());
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some("k1".into());
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "iat": 1_700_000_000, "exp": 4_102_444_800_u64,
        "scope": "read write", "roles": ["admin", "shop"], "email": "user@example.com",
    });
    let token = jsonwebtoken::encode(&header, &claims, &key).expect("claims can be signed");
    (json!({ "keys": [jwk] }).to_string(), token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation, decode};

    #[test]
    fn the_token_fits_the_document() {
        let (document, token) = issue();
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&document).expect("a JWKS document");
        let key = DecodingKey::from_jwk(&set.keys[0]).expect("a key");
        let mut rules = Validation::new(Algorithm::RS256);
        rules.set_audience(&[AUDIENCE]);
        let claims = decode::<serde_json::Value>(&token, &key, &rules).expect("a valid token").claims;
        assert_eq!(claims["iss"], ISSUER);
    }
}
