//! What changes something: registering, logging in, changing a profile, rotating the keys.

use axum::extract::{Path, Request};
use ballet_service::{
    Body, Command, Context, Internal, Invalid, Reply, Result, Timestamp, Tx, User, new_id, problem, rfc3339,
};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{keys, passwords};

/// Fewest characters of a password.
const PASSWORD_MIN: usize = 10;
/// Most characters of a password and of a name.
const TEXT_MAX: usize = 200;
/// Most bytes of an e-mail address (RFC 5321, 4.5.3.1).
const EMAIL_MAX: usize = 254;

#[derive(Deserialize)]
pub(crate) struct NewUser {
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) phone: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Change {
    name: String,
    phone: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Login {
    email: String,
    password: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    token: String,
    #[serde(with = "rfc3339")]
    expires_at: Timestamp,
    user: Person,
}

#[derive(Serialize)]
struct Person {
    id: String,
    name: String,
}

/// The data of `user.registered` and `user.updated`.
#[derive(Serialize)]
struct UserEvent<'a> {
    id: &'a str,
    email: &'a str,
    name: &'a str,
    phone: Option<&'a str>,
    version: i64,
}

/// `POST /users`. What remembers the command does not know the password.
pub(crate) async fn register(ctx: Context, request: Request) -> Result<Reply> {
    let command: Command<NewUser> = Command::hiding(request, &ctx, &["password"]).await?;
    let user = &command.body;
    let mut invalid = Invalid::default();
    invalid.unless(is_email(&user.email), "email", "an e-mail address such as ada@shop.test");
    invalid.unless(is_name(&user.name), "name", format!("1 to {TEXT_MAX} characters"));
    let length = user.password.chars().count();
    invalid.unless(
        (PASSWORD_MIN..=TEXT_MAX).contains(&length),
        "password",
        format!("{PASSWORD_MIN} to {TEXT_MAX} characters"),
    );
    invalid.unless(is_phone(user.phone.as_deref()), "phone", "a number such as +49 30 1234567");
    invalid.done()?;

    let hash = passwords::hash(user.password.clone());
    command
        .run_after(hash, |tx, user, hash| {
            let id = new_id();
            insert(tx, &id, &user, &hash, &["customer"])?;
            Ok(Reply::created(format!("/users/{id}"), &json!({"id": id, "email": user.email, "name": user.name})))
        })
        .await
}

/// Writes a new account and says so.
pub(crate) fn insert(tx: &Tx<'_>, id: &str, user: &NewUser, hash: &str, roles: &[&str]) -> Result<()> {
    let phone = user.phone.as_deref().filter(|phone| !phone.is_empty());
    let inserted = tx.execute(
        "INSERT INTO users VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8) ON CONFLICT (email_key) DO NOTHING",
        params![
            id,
            user.email,
            user.email.to_lowercase(),
            user.name,
            phone,
            hash,
            serde_json::to_string(roles)?,
            tx.now().millis()
        ],
    )?;
    if inserted == 0 {
        return Err(problem::conflict("known-email", "somebody has registered with this e-mail address").into());
    }
    tx.publish("user.registered", id, &UserEvent { id, email: &user.email, name: &user.name, phone, version: 1 })
}

/// `PUT /users/{id}`
pub(crate) async fn update(user: User, Path(id): Path<String>, command: Command<Change>) -> Result<Reply> {
    if user.id != id {
        return Err(problem::forbidden("only the user may change this").into());
    }
    let mut invalid = Invalid::default();
    invalid.unless(is_name(&command.body.name), "name", format!("1 to {TEXT_MAX} characters"));
    invalid.unless(is_phone(command.body.phone.as_deref()), "phone", "a number such as +49 30 1234567");
    invalid.done()?;
    command
        .run(move |tx, change| {
            let (name, phone) = (change.name, change.phone.filter(|phone| !phone.is_empty()));
            let changed = tx
                .query_row(
                    "UPDATE users SET name = ?2, phone = ?3, version = version + 1 WHERE id = ?1
                     RETURNING email, version",
                    params![id, name, phone],
                    |row| Ok((row.get::<_, String>(0)?, row.get(1)?)),
                )
                .optional()?;
            let (email, version) = changed.ok_or_else(|| problem::not_found("no such user"))?;
            let event = UserEvent { id: &id, email: &email, name: &name, phone: phone.as_deref(), version };
            tx.publish("user.updated", &id, &event)?;
            Ok(Reply::ok(&json!({"id": id, "email": email, "name": name, "phone": phone})))
        })
        .await
}

/// `POST /sessions`. An unknown e-mail address takes as long as a wrong password: both verify a hash.
pub(crate) async fn log_in(ctx: Context, Body(login): Body<Login>) -> Result<Reply> {
    let email = login.email.to_lowercase();
    let found = ctx.store().read(move |db| {
        let row =
            db.query_row("SELECT id, name, password_hash, roles FROM users WHERE email_key = ?1", [email], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?))
            });
        Ok(row.optional()?)
    });
    let found = found.await?;
    let hash = found.as_ref().map_or(passwords::NOBODYS, |(.., hash, _)| hash);
    let right = passwords::verify(login.password, hash.to_owned()).await?;
    let Some((id, name, _, roles)) = found.filter(|_| right) else {
        return Err(problem::refused(401, "wrong-credentials", "the e-mail address or the password is wrong").into());
    };
    let user = Person { id, name };
    let roles: Vec<String> = serde_json::from_str(&roles)?;
    let (token, expires_at) = keys::sign(&ctx, &user.id, &roles).await?;
    Ok(Reply::new(201, &Session { token, expires_at, user }).header("cache-control", "no-store"))
}

/// `POST /keys/rotate`: a new active key, without a restart.
pub(crate) async fn rotate_keys(_internal: Internal, command: Command) -> Result<Reply> {
    command.run(|tx, _| Ok(Reply::ok(&json!({"kid": keys::rotate(tx)?})))).await
}

/// One `@` with something on both sides, nothing that could end a header line: whether it exists, only a mail can tell.
fn is_email(text: &str) -> bool {
    let parts: Vec<&str> = text.split('@').collect();
    matches!(parts[..], [local, domain] if !local.is_empty() && !domain.is_empty())
        && text.len() <= EMAIL_MAX
        && !text.chars().any(|c| c.is_whitespace() || c.is_control() || "<>,;\"".contains(c))
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control)
}

fn is_phone(phone: Option<&str>) -> bool {
    let Some(text) = phone.filter(|text| !text.is_empty()) else { return true };
    let digits = text.chars().filter(char::is_ascii_digit).count();
    (3..=15).contains(&digits) && text.len() <= 32 && text.chars().all(|c| c.is_ascii_digit() || "+ -()".contains(c))
}
