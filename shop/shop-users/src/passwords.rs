//! Passwords: Argon2id (RFC 9106) with the crate's defaults, which are OWASP's: 19 MiB, two passes, one lane.

use std::time::Duration;

use argon2::password_hash::generate_salt;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Block, Params, Version};
use ballet_service::{Error, Result, problem};
use tokio::sync::Semaphore;

/// A hash that no password fits, with the cost of all others: what an unknown e-mail address is checked against.
pub(crate) const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5cyBzYWx0ICAgIA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes that are computed at once: each takes 19 MiB and a core for some 20 ms.
static AT_WORK: Semaphore = Semaphore::const_new(4);
/// How long one may wait for its turn; then it is 503.
const TURN: Duration = Duration::from_secs(5);
/// Allocations beyond 32 MiB are always mappings of their own, which glibc gives back to the system at once; of smaller ones
/// each thread's arena would keep 19 MiB for ever. What is not touched of it costs nothing.
const OWN_MAPPING_BLOCKS: usize = 33 << 10;

/// Hashes a password, apart from the threads that serve.
pub(crate) async fn hash(password: String) -> Result<String> {
    apart(move || hash_now(&password)).await
}

/// Hashes a password here and now; for the seed.
pub(crate) fn hash_now(password: &str) -> Result<String> {
    let (salt, params) = (generate_salt(), Params::default());
    let hash = PasswordHash {
        algorithm: ARGON2ID_IDENT,
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(Error::internal)?,
        salt: Some(Salt::new(&salt).map_err(Error::internal)?),
        hash: Some(compute(password, &salt, params)?),
    };
    Ok(hash.to_string())
}

/// Whether the password fits the hash.
pub(crate) async fn verify(password: String, hash: String) -> Result<bool> {
    apart(move || {
        let hash = PasswordHash::new(&hash).map_err(Error::internal)?;
        let params = Params::try_from(&hash).map_err(Error::internal)?;
        let (Some(salt), Some(expected)) = (hash.salt, hash.hash) else {
            return Err(Error::internal("a password's hash has no salt or no output"));
        };
        // `Output` compares in constant time.
        Ok(compute(&password, &salt, params)? == expected)
    })
    .await
}

fn compute(password: &str, salt: &[u8], params: Params) -> Result<Output> {
    let blocks = params.block_count();
    let mut memory = Vec::with_capacity(blocks.max(OWN_MAPPING_BLOCKS));
    memory.resize(blocks, Block::new());
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(password.as_bytes(), salt, &mut output, memory.as_mut_slice())
        .map_err(Error::internal)?;
    Output::new(&output).map_err(Error::internal)
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let turn = tokio::time::timeout(TURN, AT_WORK.acquire()).await;
    let turn = turn.map_err(|_| problem::unavailable("too many logins at once"))?.map_err(Error::internal)?;
    // The turn goes along: work that has begun goes on when whoever asked hangs up.
    let work = move || {
        let out = work();
        drop(turn);
        out
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

#[cfg(test)]
mod tests {
    use argon2::PasswordVerifier;

    use super::*;

    #[tokio::test]
    async fn a_hash_fits_its_password_only() {
        let hash = hash("correct-horse-battery".into()).await.unwrap();
        assert!(verify("correct-horse-battery".into(), hash.clone()).await.unwrap());
        assert!(!verify("correct-horse-batterie".into(), hash.clone()).await.unwrap());
        // Whatever reads PHC strings can read ours.
        let parsed = PasswordHash::new(&hash).unwrap();
        assert!(Argon2::default().verify_password(b"correct-horse-battery", &parsed).is_ok());
    }

    #[tokio::test]
    async fn nobodys_hash_costs_what_others_cost_and_fits_nothing() {
        let (ours, nobodys) = (hash_now("anything").unwrap(), PasswordHash::new(NOBODYS).unwrap());
        let ours = PasswordHash::new(&ours).unwrap();
        let cost =
            |hash: &PasswordHash| (hash.algorithm, hash.version, hash.params.to_string(), hash.salt.unwrap().len());
        assert_eq!(cost(&nobodys), cost(&ours));
        assert!(!verify("correct-horse-battery".into(), NOBODYS.into()).await.unwrap());
    }
}
