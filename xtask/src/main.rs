//! Chores of the repository, run as `cargo xtask CHORE`.

mod changelog;
mod floors;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of the repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fail when a crate imports upwards or sideways.
    Floors {
        /// Another workspace's Cargo.toml.
        #[arg(long)]
        manifest_path: Option<std::path::PathBuf>,
    },
    /// Install and start what the tests need, run all of them, stop what was started.
    Test,
    /// All that must be green before a change lands: format, lints, floors, tests.
    Ci,
    /// Fold `changelog.d/` into `CHANGELOG.md` under a version.
    Changelog {
        /// The version that is published.
        version: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().chore {
        Chore::Floors { manifest_path } => floors::run(manifest_path.as_deref()),
        Chore::Test => test::run(),
        Chore::Ci => test::ci(),
        Chore::Changelog { version } => changelog::run(&version),
    }
}
