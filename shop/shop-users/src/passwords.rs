//! Passwords: Argon2id (RFC 9106) with the crate's defaults, which are OWASP's: 19 MiB, two passes, one lane.

use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use ballet_service::{Error, Result, problem};
use tokio::sync::Semaphore;

/// A hash that no password fits, with the cost of all others: what an unknown e-mail address is checked against.
pub(crate) const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5J3Mgc2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes that are computed at once: each takes 19 MiB and a core for some 20 ms.
static AT_WORK: Semaphore = Semaphore::const_new(4);
/// How long one may wait for its turn; then it is 503.
const TURN: Duration = Duration::from_secs(5);

/// Hashes a password, apart from the threads that serve.
pub(crate) async fn hash(password: String) -> Result<String> {
    apart(move || hash_now(&password)).await?
}

/// Hashes a password here and now; for the seed.
pub(crate) fn hash_now(password: &str) -> Result<String> {
    let hash: PasswordHash = Argon2::default().hash_password(password.as_bytes()).map_err(Error::internal)?;
    Ok(hash.to_string())
}

/// Whether the password fits the hash.
pub(crate) async fn verify(password: String, hash: String) -> Result<bool> {
    apart(move || {
        let hash = PasswordHash::new(&hash).map_err(Error::internal)?;
        Ok(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
    })
    .await?
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let turn = tokio::time::timeout(TURN, AT_WORK.acquire()).await;
    let _turn = turn.map_err(|_| problem::unavailable("too many logins at once"))?.map_err(Error::internal)?;
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobodys_hash_costs_what_others_cost_and_fits_nothing() {
        let hash = hash("correct-horse-battery".into()).await.unwrap();
        let cost = |hash: &str| hash.split('$').take(4).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cost(NOBODYS), cost(&hash));
        let lengths = |hash: &str| hash.split('$').skip(4).map(str::len).collect::<Vec<_>>();
        assert_eq!(lengths(NOBODYS)[1], lengths(&hash)[1]);
        assert!(verify("correct-horse-battery".into(), hash).await.unwrap());
        assert!(!verify("correct-horse-battery".into(), NOBODYS.into()).await.unwrap());
    }
}
