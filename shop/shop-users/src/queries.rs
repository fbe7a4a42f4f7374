//! What only reads.

use axum::Json;
use axum::extract::Path;
use ballet_service::{Context, Internal, Result, User, problem};
use serde_json::{Value, json};

use crate::keys;
use crate::profiles::{self, Profile};

/// `GET /users/{id}`
pub(crate) async fn user(ctx: Context, user: User, Path(id): Path<String>) -> Result<Json<Profile>> {
    if !user.may_see(&id) {
        return Err(problem::forbidden("this is somebody else").into());
    }
    profile(&ctx, id).await.map(Json)
}

/// `GET /contacts/{id}`: how to reach somebody.
pub(crate) async fn contact(ctx: Context, _internal: Internal, Path(id): Path<String>) -> Result<Json<Value>> {
    let user = profile(&ctx, id).await?;
    Ok(Json(json!({"email": user.email, "phone": user.phone, "name": user.name})))
}

/// `GET /.well-known/jwks.json`
pub(crate) async fn jwks(ctx: Context) -> Result<Json<Value>> {
    keys::ensure(&ctx).await?;
    let now = ctx.now();
    ctx.store().read(move |db| keys::published(db, now)).await.map(Json)
}

async fn profile(ctx: &Context, id: String) -> Result<Profile> {
    let found = ctx.store().read(move |db| profiles::find(db, &id)).await?;
    Ok(found.ok_or_else(|| problem::not_found("no such user"))?)
}
