//! Who calls: bearer tokens (ES256 JWTs) checked with the keys that the users service publishes, and `ballet-caller`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tokio::time::Instant;

use ballet_core::{Chain, Problem, headers};

use crate::request::text;
use crate::{Context, Error, Result, problem};

/// How old the keys may be before they are fetched again.
const FRESH: Duration = Duration::from_secs(300);
/// How old they may be when they cannot be fetched.
const STALE: Duration = Duration::from_secs(3_600);
/// Rest between two fetches.
const REST: Duration = Duration::from_secs(1);
/// Seconds that clocks may differ.
const LEEWAY_S: u64 = 5;
/// Longest token that is looked at.
const TOKEN_BYTES: usize = 4096;
/// The gateway's name in `ballet-caller`: whoever comes through it is no service.
const GATEWAY: &str = "gateway";

/// A logged-in user: an extractor that answers 401 without a valid token, 503 while the keys are unknown.
/// `Option<User>` is `None` without a token, and still 401 with a bad one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's id: the token's `sub`.
    pub id: String,
    /// `customer`, `staff`.
    pub roles: Vec<String>,
}

/// A user with the role `staff`: an extractor that answers 403 to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staff(pub User);

/// Whoever calls: an extractor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A user with a valid token.
    User(User),
    /// A service or a part of the platform, by its name in `ballet-caller`, without a user's token.
    Service(String),
    /// Anybody.
    Anyone,
}

/// An endpoint for services and the platform only: an extractor that answers 404 to what comes through the gateway or with a
/// user's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Internal;

impl User {
    /// Whether the user has a role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r == role)
    }

    /// Whether the user is staff.
    pub fn is_staff(&self) -> bool {
        self.has_role("staff")
    }

    /// Whether the user may see what belongs to `owner`: it is their own, or they are staff.
    pub fn may_see(&self, owner: &str) -> bool {
        self.id == owner || self.is_staff()
    }
}

impl Caller {
    /// Refuses all but staff and services: 401 without a token, 403 to others.
    ///
    /// # Errors
    /// The refusal.
    pub fn staff_or_service(&self) -> Result<()> {
        match self {
            Self::Service(_) => Ok(()),
            Self::User(user) if user.is_staff() => Ok(()),
            Self::User(_) => Err(problem::forbidden("for staff only").into()),
            Self::Anyone => Err(problem::unauthorized("a bearer token is needed").into()),
        }
    }

    /// The scope of its idempotency keys.
    pub(crate) fn scope(&self) -> String {
        match self {
            Self::User(user) => format!("user:{}", user.id),
            Self::Service(name) => format!("service:{name}"),
            Self::Anyone => "anyone".into(),
        }
    }

    /// As the extractor, but a bad token makes anyone of the caller: for endpoints that are open.
    pub(crate) async fn of(parts: &mut Parts, ctx: &Context) -> Self {
        match verified(parts, ctx).await {
            Some(Ok(user)) => Self::User(user),
            Some(Err(_)) => Self::Anyone,
            None => Self::without_token(parts),
        }
    }

    fn without_token(parts: &Parts) -> Self {
        match text(&parts.headers, headers::CALLER) {
            Some(name) if name != GATEWAY && !name.is_empty() => Self::Service(name.to_owned()),
            Some(_) | None => Self::Anyone,
        }
    }
}

impl FromRequestParts<Context> for User {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, ctx: &Context) -> Result<Self> {
        match verified(parts, ctx).await {
            Some(outcome) => Ok(outcome?),
            None => Err(problem::unauthorized("a bearer token is needed").into()),
        }
    }
}

impl OptionalFromRequestParts<Context> for User {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, ctx: &Context) -> Result<Option<Self>> {
        Ok(verified(parts, ctx).await.transpose()?)
    }
}

impl FromRequestParts<Context> for Staff {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, ctx: &Context) -> Result<Self> {
        let user = <User as FromRequestParts<Context>>::from_request_parts(parts, ctx).await?;
        if !user.is_staff() {
            return Err(problem::forbidden("for staff only").into());
        }
        Ok(Self(user))
    }
}

impl FromRequestParts<Context> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, ctx: &Context) -> Result<Self> {
        match verified(parts, ctx).await {
            Some(user) => Ok(Self::User(user?)),
            None => Ok(Self::without_token(parts)),
        }
    }
}

impl FromRequestParts<Context> for Internal {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _ctx: &Context) -> Result<Self> {
        let outside =
            text(&parts.headers, headers::CALLER) == Some(GATEWAY) || parts.headers.contains_key(AUTHORIZATION);
        if outside { Err(Problem::new(404, "not found").code("CH018").into()) } else { Ok(Self) }
    }
}

impl FromRequestParts<Context> for Context {
    type Rejection = Infallible;

    async fn from_request_parts(_parts: &mut Parts, ctx: &Context) -> Result<Self, Infallible> {
        Ok(ctx.clone())
    }
}

/// What became of the request's token, so that several extractors check it once.
#[derive(Clone)]
struct Verified(Option<Result<User, Problem>>);

async fn verified(parts: &mut Parts, ctx: &Context) -> Option<Result<User, Problem>> {
    if let Some(Verified(known)) = parts.extensions.get() {
        return known.clone();
    }
    let outcome = match parts.headers.get(AUTHORIZATION) {
        None => None,
        Some(value) => Some(match value.to_str().ok().and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                ctx.keys().verify(ctx, token.trim()).await
            }
            Some(_) | None => Err(problem::unauthorized("`Authorization` is not `Bearer TOKEN`")),
        }),
    };
    parts.extensions.insert(Verified(outcome.clone()));
    outcome
}

/// Where the keys come from: a JSON Web Key Set in the own store, read again and again.
pub(crate) type OwnKeys = Arc<dyn Fn(&rusqlite::Connection) -> Result<serde_json::Value> + Send + Sync>;

/// The keys that tokens are signed with, fetched from the users service (`$USERS_URL/.well-known/jwks.json`) or the own store.
pub(crate) struct Keys {
    own: Option<OwnKeys>,
    validation: Validation,
    known: Mutex<Option<Known>>,
    /// Whoever holds it fetches; others wait for the outcome. The time of the last attempt.
    fetching: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Known {
    keys: Arc<HashMap<String, DecodingKey>>,
    at: Instant,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    roles: Vec<String>,
}

impl Keys {
    pub(crate) fn new(issuer: &str, audience: &str, own: Option<OwnKeys>) -> Self {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY_S;
        Self { own, validation, known: Mutex::default(), fetching: tokio::sync::Mutex::default() }
    }

    async fn verify(&self, ctx: &Context, token: &str) -> Result<User, Problem> {
        if token.len() > TOKEN_BYTES {
            return Err(problem::unauthorized("the token is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| problem::unauthorized("the token is malformed"))?;
        let kid = header.kid.filter(|_| header.alg == Algorithm::ES256);
        let kid = kid.ok_or_else(|| problem::unauthorized("the token is not signed with ES256 and a key id"))?;
        let key = self.key(ctx, &kid).await?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &self.validation).map_err(|error| {
            use jsonwebtoken::errors::ErrorKind;
            problem::unauthorized(match error.kind() {
                ErrorKind::ExpiredSignature => "the token has expired",
                ErrorKind::InvalidSignature => "the token's signature is wrong",
                ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => "the token is not meant for this system",
                _ => "the token is not valid",
            })
        })?;
        Ok(User { id: claims.claims.sub, roles: claims.claims.roles })
    }

    /// The key of that id: from what is known, else fetched, at most once a second for ids that nobody knows.
    async fn key(&self, ctx: &Context, kid: &str) -> Result<DecodingKey, Problem> {
        let now = Instant::now();
        if let Some(known) = self.known()
            && now.duration_since(known.at) < FRESH
            && let Some(key) = known.keys.get(kid)
        {
            return Ok(key.clone());
        }
        let mut last = self.fetching.lock().await;
        // Whoever held the lock before us may have fetched what we want.
        let known = self.known().filter(|known| known.at >= now);
        let rested = last.is_none_or(|last| Instant::now().duration_since(last) >= REST);
        if known.is_none() && rested {
            match self.fetch(ctx).await {
                Ok(keys) => {
                    let known = Known { keys: Arc::new(keys), at: Instant::now() };
                    *self.known.lock().expect("nobody panics while it is held") = Some(known);
                }
                Err(error) => tracing::warn!(error = %Chain(&error), "cannot fetch the signing keys"),
            }
            *last = Some(Instant::now());
        }
        drop(last);
        match self.known().filter(|known| known.at.elapsed() < STALE) {
            Some(known) => known
                .keys
                .get(kid)
                .cloned()
                .ok_or_else(|| problem::unauthorized("the token is signed with an unknown key")),
            None => Err(Problem::new(503, "the signing keys are unknown").code("CH008")),
        }
    }

    fn known(&self) -> Option<Known> {
        self.known.lock().expect("nobody panics while it is held").clone()
    }

    async fn fetch(&self, ctx: &Context) -> Result<HashMap<String, DecodingKey>> {
        let set: JwkSet = match self.own.clone() {
            Some(own) => serde_json::from_value(ctx.store().read(move |db| own(db)).await?)?,
            None => {
                let found =
                    ctx.service("users").get("/.well-known/jwks.json").timeout(Duration::from_secs(3)).fetch().await?;
                found.ok_or_else(|| Error::internal("users has no JWKS"))?
            }
        };
        let keys = set.keys.iter().filter_map(|jwk| {
            let key = DecodingKey::from_jwk(jwk).ok()?;
            Some((jwk.common.key_id.clone()?, key))
        });
        Ok(keys.collect())
    }
}
