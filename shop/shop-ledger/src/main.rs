//! The shop's auditor: reads every service's books over the wire and checks that they agree.
//!
//! No service knows whether the shop as a whole is right. These rules do, at rest:
//! 1. Every order has ended: CONFIRMED, REJECTED or CANCELLED.
//! 2. For each product: initial stock + increases − decreases = available + reserved + what CONFIRMED orders took; nothing is
//!    reserved any more, nothing is negative.
//! 3. The captured payments of orders are exactly those of CONFIRMED orders, of the same amount; no order was charged twice.
//! 4. There is exactly one notification for each order and outcome.
//! 5. Each order's events arrived in order.

mod books;
mod reader;
mod report;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::time::Instant;

use crate::reader::{ReadError, Reader};
use crate::report::Report;

/// Checks that the books of the shop's services agree.
///
/// Waits until no order is pending and no event is under way, up to a minute, and then judges.
/// Exit code: 0 they agree, 1 they do not, 2 wrong usage, 3 they could not be read.
#[derive(Parser)]
#[command(
    name = "shop-ledger",
    after_help = "Examples:\n  shop-ledger\n  shop-ledger --platform http://127.0.0.1:7070 --json"
)]
struct Args {
    /// Where the platform listens [default: $BALLET_PLATFORM, else http://127.0.0.1:7070]
    #[arg(long, value_name = "URL")]
    platform: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How long to wait for the shop to come to rest.
struct Patience {
    /// Between two looks.
    poll: Duration,
    /// How long broken rules must stay so while nothing is under way: services are not read at the same moment.
    calm: Duration,
    /// At most.
    most: Duration,
}

const PATIENCE: Patience =
    Patience { poll: Duration::from_millis(200), calm: Duration::from_secs(1), most: Duration::from_secs(60) };

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let environment = || std::env::var("BALLET_PLATFORM").ok().filter(|url| !url.is_empty());
    let platform = args.platform.or_else(environment).unwrap_or_else(|| "http://127.0.0.1:7070".into());
    match audit(&Reader::new(&platform), &PATIENCE).await {
        Ok(report) => {
            let text = if args.json { report.json() } else { report.text() };
            // Whoever closes the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if report.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("shop-ledger: {error}");
            eprintln!("start the shop with `ballet up shop`, or pass `--platform URL`");
            ExitCode::from(3)
        }
    }
}

/// Looks until the books agree at rest, or disagree at rest for a while, or patience ends.
async fn audit(reader: &Reader, patience: &Patience) -> Result<Report, ReadError> {
    let began = Instant::now();
    // Nobody there at all: no reason to wait.
    reader.platform().await?;
    let mut calm_since = None;
    loop {
        let over = began.elapsed() >= patience.most;
        match reader.books().await {
            Ok(books) => {
                let report = Report::of(&books, began.elapsed());
                let at_rest = report.under_way.is_empty();
                if !at_rest {
                    calm_since = None;
                }
                let calm = at_rest && calm_since.get_or_insert_with(Instant::now).elapsed() >= patience.calm;
                if over || calm || (at_rest && report.agrees()) {
                    return Ok(report);
                }
            }
            Err(error) if over => return Err(error),
            Err(_) => calm_since = None,
        }
        tokio::time::sleep(patience.poll).await;
    }
}
