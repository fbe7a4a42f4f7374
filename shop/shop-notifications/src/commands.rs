//! What changes something.

use ballet_service::{Command, Error, Invalid, Reply, Result, Staff};
use serde::Deserialize;
use serde_json::json;

use crate::queue::{self, Channel, NewMessage};

/// Most characters of a subject.
const SUBJECT_MAX: usize = 200;
/// Most characters of a text.
const TEXT_MAX: usize = 10_000;
/// Most bytes of a line: mail takes no longer ones (RFC 5322, 2.1.1).
const LINE_MAX: usize = 998;

#[derive(Deserialize)]
pub(crate) struct Letter {
    to: String,
    channel: Channel,
    subject: Option<String>,
    text: String,
}

/// `POST /notifications`: staff writes to somebody.
pub(crate) async fn write(_staff: Staff, command: Command<Letter>) -> Result<Reply> {
    let Letter { to, channel, subject, text } = &command.body;
    let mut invalid = Invalid::default();
    match channel {
        Channel::Email => invalid.unless(is_email(to), "to", "an e-mail address such as ada@shop.test"),
        Channel::Sms => invalid.unless(is_phone(to), "to", "a number such as +49 30 1234567"),
    }
    let subject_fits = |text: &String| text.chars().count() <= SUBJECT_MAX && !text.chars().any(char::is_control);
    invalid.unless(
        subject.as_ref().is_none_or(subject_fits),
        "subject",
        format!("one line of at most {SUBJECT_MAX} characters"),
    );
    let text_fits = !text.trim().is_empty()
        && text.chars().count() <= TEXT_MAX
        && text.lines().all(|line| line.len() <= LINE_MAX)
        && !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    invalid.unless(text_fits, "text", format!("1 to {TEXT_MAX} characters, in lines of at most {LINE_MAX} bytes"));
    invalid.done()?;
    command
        .run(|tx, letter| {
            let message = NewMessage {
                order: None,
                channel: letter.channel,
                recipient: Some(&letter.to),
                subject: letter.subject.as_deref(),
                text: &letter.text,
            };
            let id = queue::put(tx, &message)?.ok_or_else(|| Error::internal("a new id is taken"))?;
            Ok(Reply::new(202, &json!({ "id": id })))
        })
        .await
}

fn is_email(text: &str) -> bool {
    let parts: Vec<&str> = text.split('@').collect();
    matches!(parts[..], [local, domain] if !local.is_empty() && !domain.is_empty())
        && text.len() <= 254
        && !text.chars().any(|c| c.is_whitespace() || c.is_control() || "<>,;\"".contains(c))
}

fn is_phone(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    (3..=15).contains(&digits) && text.len() <= 32 && text.chars().all(|c| c.is_ascii_digit() || "+ -()".contains(c))
}
