//! The worker: takes messages from the queue and delivers them. As many workers as there are instances.

use std::time::Duration;

use ballet_service::{Context, Result};
use tokio::task::JoinSet;

use crate::deliver::{self, Undelivered};
use crate::queue::{self, Message};

/// Messages that are sent at once.
const BATCH: usize = 16;
/// Longest attempt; shorter than a claim's lease.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How often the queue is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Sends until the service ends. Whatever is cut off then is due again when its lease ends.
pub(crate) async fn run(ctx: Context) {
    loop {
        let more = round(&ctx).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the queue");
            false
        });
        let tick = if more { Duration::ZERO } else { TICK };
        tokio::select! {
            () = ctx.stopping() => return,
            () = tokio::time::sleep(tick) => {}
        }
    }
}

/// Sends what is due; `true` if more may be.
async fn round(ctx: &Context) -> Result<bool> {
    let now = ctx.now();
    if !ctx.store().read(move |db| queue::any_due(db, now)).await? {
        return Ok(false);
    }
    let messages = ctx.store().write(|tx| queue::claim(tx, BATCH)).await?;
    let full = messages.len() == BATCH;
    let mut sending = JoinSet::new();
    for message in messages {
        sending.spawn(send(ctx.clone(), message));
    }
    while let Some(sent) = sending.join_next().await {
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot note what became of a message"),
            Err(error) => tracing::error!(%error, "a delivery panicked"),
        }
    }
    Ok(full)
}

async fn send(ctx: Context, message: Message) -> Result<()> {
    let attempt = tokio::time::timeout(ATTEMPT, deliver::deliver(&ctx, &message)).await;
    let outcome = attempt.unwrap_or_else(|_| Err(Undelivered::NotYet("it took too long".into())));
    let store = ctx.store();
    match outcome {
        Ok(recipient) => store.write(move |tx| queue::sent(tx, &message.id, &recipient)).await,
        Err(Undelivered::NotYet(error)) => {
            tracing::debug!(id = message.id, attempts = message.attempts, error, "not sent yet");
            store.write(move |tx| queue::again(tx, &message, &error)).await
        }
        Err(Undelivered::Never(error)) => {
            tracing::warn!(id = message.id, error, "a message cannot be sent");
            store.write(move |tx| queue::failed(tx, &message.id, &error)).await
        }
    }
}
