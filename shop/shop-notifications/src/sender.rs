//! The worker: takes messages from the queue and delivers them. As many workers as there are instances.
//!
//! It sleeps until this process puts a message into the queue, or the next one is due. What another instance puts there is
//! that one's to send; a slow tick sees it too.

use std::time::Duration;

use ballet_service::{Context, Result, Timestamp};
use tokio::task::JoinSet;

use crate::deliver::{self, Undelivered};
use crate::queue::{self, Message};

/// Messages that are sent at once.
const BATCH: usize = 16;
/// Longest attempt; shorter than a claim's lease.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How often the queue is looked at all the same, because of other instances.
const TICK: Duration = Duration::from_secs(2);
/// Rest after the queue could not be read.
const REST: Duration = Duration::from_millis(200);

/// Sends until the service ends. Whatever is cut off then is due again when its lease ends.
pub(crate) async fn run(ctx: Context) {
    loop {
        let rest = round(&ctx).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the queue");
            REST
        });
        tokio::select! {
            () = ctx.stopping() => return,
            () = ctx.store().woken(queue::WAKES) => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// Sends what is due; how long to rest then, unless woken.
async fn round(ctx: &Context) -> Result<Duration> {
    let next = ctx.store().read(queue::next_due).await?;
    let rest = until(next, ctx.now());
    if !rest.is_zero() {
        return Ok(rest);
    }
    // A claim that a crash of the machine takes back held nobody: the message is due at once.
    let messages = ctx.store().write_unsynced(|tx| queue::claim(tx, BATCH)).await?;
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
    // While these were sent, others may have come.
    Ok(Duration::ZERO)
}

fn until(due: Option<Timestamp>, now: Timestamp) -> Duration {
    due.map_or(TICK, |due| due.since(now)).min(TICK)
}

async fn send(ctx: Context, message: Message) -> Result<()> {
    let attempt = tokio::time::timeout(ATTEMPT, deliver::deliver(&ctx, &message)).await;
    let outcome = attempt.unwrap_or_else(|_| Err(Undelivered::NotYet("it took too long".into())));
    let store = ctx.store();
    match outcome {
        Ok(recipient) => store.write(move |tx| queue::sent(tx, &message.id, &recipient)).await,
        Err(Undelivered::NotYet(error)) => {
            tracing::debug!(id = message.id, attempts = message.attempts, error, "not sent yet");
            // If a crash of the machine takes that back, it is merely tried earlier.
            store.write_unsynced(move |tx| queue::again(tx, &message, &error)).await
        }
        Err(Undelivered::Never(error)) => {
            tracing::warn!(id = message.id, error, "a message cannot be sent");
            store.write(move |tx| queue::failed(tx, &message.id, &error)).await
        }
    }
}
