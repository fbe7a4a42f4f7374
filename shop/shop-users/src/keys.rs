//! The keys that tokens are signed with: ES256 (RFC 7518), published as a JSON Web Key Set (RFC 7517).
//!
//! They live in the store, so every instance sees a rotation at once, and a restart changes nothing. Private keys leave the
//! store only to sign.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use ballet_service::{Context, Error, Result, Timestamp, Tx, new_id};
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

/// How long a token is good for.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(3_600);
/// How long a key that was rotated out is published: as long as its last token lives, and a minute for clocks that differ.
pub(crate) const KEY_AFTERLIFE: Duration = Duration::from_secs(3_660);

struct SigningKey {
    kid: String,
    pkcs8: Vec<u8>,
}

/// A token for a user, and when it expires.
pub(crate) async fn sign(ctx: &Context, user: &str, roles: &[String]) -> Result<(String, Timestamp)> {
    let key = active(ctx).await?;
    let now = ctx.now();
    let expires = now.plus(TOKEN_LIFE);
    let claims = json!({
        "iss": "users",
        "aud": "shop",
        "sub": user,
        "roles": roles,
        "iat": now.millis() / 1_000,
        "exp": expires.millis() / 1_000,
    });
    let header = Header { kid: Some(key.kid), ..Header::new(Algorithm::ES256) };
    let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&key.pkcs8));
    Ok((token.map_err(Error::internal)?, expires))
}

/// The key set: the active key first, then those that may still have tokens.
pub(crate) fn published(db: &Connection, now: Timestamp) -> Result<Value> {
    let since = now.millis() - KEY_AFTERLIFE.as_millis() as i64;
    let keys = db
        .prepare_cached(
            "SELECT public FROM keys WHERE retired_at IS NULL OR retired_at > ?1
             ORDER BY retired_at IS NOT NULL, retired_at DESC",
        )?
        .query_map([since], |row| row.get::<_, String>(0))?
        .map(|text| Ok(serde_json::from_str::<Value>(&text?)?))
        .collect::<Result<Vec<_>>>()?;
    Ok(json!({ "keys": keys }))
}

/// Makes the first key if there is none yet.
pub(crate) async fn ensure(ctx: &Context) -> Result<()> {
    active(ctx).await.map(drop)
}

/// Makes a new active key. The old one signs no more, and is published until its last token has expired.
pub(crate) fn rotate(tx: &Tx<'_>) -> Result<String> {
    let now = tx.now().millis();
    tx.execute("UPDATE keys SET retired_at = ?1, private = NULL WHERE retired_at IS NULL", [now])?;
    tx.execute("DELETE FROM keys WHERE retired_at <= ?1", [now - KEY_AFTERLIFE.as_millis() as i64])?;

    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let pkcs8 = pkcs8.map_err(Error::internal)?;
    let kid = new_id();
    let mut public =
        Jwk::from_encoding_key(&EncodingKey::from_ec_der(pkcs8.as_ref()), Algorithm::ES256).map_err(Error::internal)?;
    public.common.key_id = Some(kid.clone());
    public.common.public_key_use = Some(PublicKeyUse::Signature);
    tx.execute(
        "INSERT INTO keys VALUES (?1, ?2, ?3, ?4, NULL)",
        params![kid, pkcs8.as_ref(), serde_json::to_string(&public)?, now],
    )?;
    Ok(kid)
}

async fn active(ctx: &Context) -> Result<SigningKey> {
    if let Some(key) = ctx.store().read(find).await? {
        return Ok(key);
    }
    ctx.store()
        .write(|tx| match find(tx)? {
            Some(key) => Ok(key),
            None => {
                rotate(tx)?;
                find(tx)?.ok_or_else(|| Error::internal("the new key is not there"))
            }
        })
        .await
}

fn find(db: &Connection) -> Result<Option<SigningKey>> {
    let row = db
        .prepare_cached("SELECT kid, private FROM keys WHERE retired_at IS NULL")?
        .query_row([], |row| Ok(SigningKey { kid: row.get(0)?, pkcs8: row.get(1)? }));
    Ok(row.optional()?)
}
