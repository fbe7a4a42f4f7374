//! Delivery of one message. Mail becomes a file `ID.eml` of `$MAIL_DIR`, SMS a file `ID.txt` of `$SMS_DIR`; by default those
//! are `mail` and `sms` of the state directory. An SMTP server or a webhook would be another arm of [`deliver`]; the stable
//! `Message-ID` lets the other end recognise what comes twice.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ballet_service::{Config, Context, Timestamp};
use serde::Deserialize;

use crate::queue::{Channel, Message};

/// Who writes.
const FROM: &str = "The shop <shop@shop.test>";

/// How long users may take to answer.
const CONTACT: Duration = Duration::from_secs(3);

/// Why a message was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undelivered {
    /// Worth another try.
    #[error("{0}")]
    NotYet(String),
    /// It would fail again.
    #[error("{0}")]
    Never(String),
}

/// How to reach a user: what is read of users' `GET /contacts/{id}`.
#[derive(Deserialize)]
struct Contact {
    email: String,
    phone: Option<String>,
    name: String,
}

/// Delivers a message; answers to whom.
pub(crate) async fn deliver(ctx: &Context, message: &Message) -> Result<String, Undelivered> {
    let (recipient, text) = match (&message.recipient, &message.user_id) {
        (Some(recipient), _) => (recipient.clone(), message.text.clone()),
        (None, Some(user)) => {
            let contact = contact(ctx, user).await?;
            let recipient = match message.channel {
                Channel::Email => contact.email,
                Channel::Sms => contact.phone.ok_or_else(|| Undelivered::Never("the user has no phone".into()))?,
            };
            (recipient, format!("Hello {},\n\n{}", contact.name, message.text))
        }
        (None, None) => return Err(Undelivered::Never("nobody to send it to".into())),
    };
    let (folder, file, content) = match message.channel {
        Channel::Email => {
            (folder(ctx.config(), "MAIL_DIR", "mail"), format!("{}.eml", message.id), mail(message, &recipient, &text))
        }
        Channel::Sms => (
            folder(ctx.config(), "SMS_DIR", "sms"),
            format!("{}.txt", message.id),
            format!("To: {recipient}\n\n{text}\n"),
        ),
    };
    let put = tokio::task::spawn_blocking(move || put(&folder, &file, content.as_bytes()));
    match put.await {
        Ok(Ok(())) => Ok(recipient),
        Ok(Err(error)) => Err(Undelivered::NotYet(error.to_string())),
        Err(error) => Err(Undelivered::NotYet(error.to_string())),
    }
}

async fn contact(ctx: &Context, user: &str) -> Result<Contact, Undelivered> {
    let found = ctx.service("users").get(&format!("/contacts/{user}")).timeout(CONTACT).fetch().await;
    let found = found.map_err(|error| Undelivered::NotYet(error.to_string()))?;
    found.ok_or_else(|| Undelivered::Never("users knows no such user".into()))
}

/// A mail as RFC 5322 has it, in UTF-8 throughout (RFC 6532).
fn mail(message: &Message, recipient: &str, text: &str) -> String {
    let subject = message.subject.as_deref().unwrap_or("A message from the shop");
    let head = format!(
        "From: {FROM}\nTo: {recipient}\nSubject: {subject}\nDate: {}\nMessage-ID: <{}@notifications.shop.test>\n\
         MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n",
        date(message.created_at),
        message.id,
    );
    let text = text.replace('\r', "");
    format!("{head}\n{text}\n").lines().map(|line| format!("{line}\r\n")).collect()
}

fn date(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_millisecond(time.millis()).unwrap_or_default();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_string(&time).unwrap_or_default()
}

fn folder(config: &Config, variable: &str, name: &str) -> PathBuf {
    if let Some(folder) = config.env(variable).filter(|folder| !folder.is_empty()) {
        return folder.into();
    }
    // The store is STATE/services/notifications/notifications.db.
    let state = config.store.ancestors().nth(3).unwrap_or(Path::new("."));
    state.join(name)
}

/// Writes a file whole or not at all: aside first, then to its name.
fn put(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    // An attempt that outlived its lease may write the same message at the same time.
    let aside = folder.join(format!(".{name}.{}", ballet_service::new_id()));
    let written = std::fs::File::create(&aside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&aside, folder.join(name))?;
        std::fs::File::open(folder)?.sync_all()
    });
    if written.is_err() {
        // It is gone already, or never was.
        let _ = std::fs::remove_file(&aside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_is_made_of_lines_that_mail_servers_like() {
        let message = Message {
            id: "m1".into(),
            user_id: None,
            channel: Channel::Email,
            recipient: None,
            subject: Some("Grüße".into()),
            text: String::new(),
            attempts: 1,
            created_at: Timestamp::parse("2026-11-21T13:30:00Z").unwrap(),
        };
        assert_eq!(
            mail(&message, "ada@shop.test", "one\r\n\ntwo"),
            "From: The shop <shop@shop.test>\r\nTo: ada@shop.test\r\nSubject: Grüße\r\n\
             Date: Sat, 21 Nov 2026 13:30:00 -0000\r\nMessage-ID: <m1@notifications.shop.test>\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
             one\r\n\r\ntwo\r\n"
        );
    }

    #[test]
    fn folders_are_the_state_directorys_unless_told() {
        let config = |env: &[(&str, &str)]| Config::from_pairs("notifications", env.iter().copied()).unwrap();
        let store = ("STORE_URL", "sqlite:/s/services/notifications/notifications.db");
        assert_eq!(folder(&config(&[store]), "MAIL_DIR", "mail"), Path::new("/s/mail"));
        assert_eq!(folder(&config(&[store, ("MAIL_DIR", "/m")]), "MAIL_DIR", "mail"), Path::new("/m"));
        assert_eq!(folder(&config(&[]), "SMS_DIR", "sms"), Path::new(".ballet/sms"));
    }
}
