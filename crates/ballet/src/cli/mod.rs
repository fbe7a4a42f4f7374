//! The command line: what each command is called, what it takes, and how it reports.

mod admin;
mod errors;
mod inspect;
mod manifest;
mod system;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use errors::CliError;
pub use manifest::load as load_manifest;

/// A whole microservice platform in one binary.
#[derive(Parser)]
#[command(name = "ballet", version, after_help = "Examples:\n  ballet up shop\n  ballet ps --json")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Which manifest, and what is over it.
#[derive(Args, Clone, Debug, Default)]
pub struct Target {
    /// The manifest, or the directory that holds `ballet.yaml`. Default: the current directory.
    #[arg(value_name = "DIR|FILE")]
    place: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Which manifest, for commands whose positional argument is something else.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// The manifest, or the directory that holds `ballet.yaml`.
    #[arg(long, short, value_name = "PATH")]
    file: Option<PathBuf>,
    #[command(flatten)]
    over: Over,
}

/// What is over the manifest.
#[derive(Args, Clone, Debug, Default)]
pub struct Over {
    /// Profile of the manifest to merge in.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Sets any key by its dotted path, over profile and file; the value is YAML.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where the state is kept. Default: `.ballet/` beside the manifest.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Build, start and watch the system.
    #[command(after_help = "Examples:\n  ballet up shop\n  ballet up --detach --set gateway.listen=127.0.0.1:0")]
    Up {
        #[command(flatten)]
        target: Target,
        /// Return when all is ready, and leave the system running.
        #[arg(long)]
        detach: bool,
        /// End when standard input does: for tests and editors that start a system of their own.
        #[arg(long, conflicts_with = "detach", hide = true)]
        tied: bool,
    },
    /// Stop the system.
    #[command(after_help = "Examples:\n  ballet down\n  ballet down shop --wipe --yes")]
    Down {
        #[command(flatten)]
        target: Target,
        /// Remove its state too.
        #[arg(long)]
        wipe: bool,
        /// Do not ask before removing.
        #[arg(long)]
        yes: bool,
    },
    /// Show the instances: state, address, memory, breaker.
    #[command(after_help = "Examples:\n  ballet ps\n  ballet ps shop --json")]
    Ps {
        #[command(flatten)]
        target: Target,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the services' logs.
    #[command(after_help = "Examples:\n  ballet logs orders\n  ballet logs -f --file shop")]
    Logs {
        /// Only this service's.
        service: Option<String>,
        /// Go on printing what comes.
        #[arg(long, short = 'f')]
        follow: bool,
        /// Lines of each instance to begin with.
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
        /// The manifest, or the directory that holds `ballet.yaml`.
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
        #[command(flatten)]
        over: Over,
    },
    /// Restart a service, one instance after the other.
    Restart {
        /// The service.
        service: String,
        #[command(flatten)]
        options: Options,
    },
    /// Stop a service until it is started again.
    Stop {
        /// The service.
        service: String,
        #[command(flatten)]
        options: Options,
    },
    /// Start a stopped service.
    Start {
        /// The service.
        service: String,
        #[command(flatten)]
        options: Options,
    },
    /// Change how many instances of a service run.
    #[command(after_help = "Examples:\n  ballet scale orders=3\n  ballet scale orders=1 --file shop")]
    Scale {
        /// The service and its number of instances.
        #[arg(value_name = "SERVICE=N")]
        wish: String,
        #[command(flatten)]
        options: Options,
    },
    /// Look at the manifest and the files it names, without starting anything.
    #[command(after_help = "Examples:\n  ballet check\n  ballet check shop --profile large")]
    Check {
        #[command(flatten)]
        target: Target,
    },
    /// Print every value of the manifest and where it comes from.
    #[command(after_help = "Examples:\n  ballet config --effective\n  ballet config shop --effective --json")]
    Config {
        #[command(flatten)]
        target: Target,
        /// With all defaults filled in.
        #[arg(long, required = true)]
        effective: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the manifest's JSON Schema.
    Schema,
    /// Explain an error's code, or what the gateway would do with a request.
    #[command(after_help = "Examples:\n  ballet explain MF001\n  ballet explain GET /orders/7")]
    Explain {
        /// A code, or a method and a URL.
        #[arg(required = true, num_args = 1..=2, value_name = "CODE | METHOD URL")]
        what: Vec<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Look at workflows.
    #[command(subcommand)]
    Workflows(Workflows),
}

#[derive(Subcommand)]
enum Workflows {
    /// List executions, newest first.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Show one execution.
    Show {
        /// The execution's id.
        id: String,
        /// Print Conductor's document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Settle a compensation that is stuck.
    #[command(
        after_help = "Examples:\n  ballet workflows undo checkout-7 --retry\n  ballet workflows undo checkout-7 --set-aside \"refunded by hand\""
    )]
    Undo {
        /// The execution's id.
        id: String,
        /// Try the undo again.
        #[arg(long, conflicts_with = "set_aside", required_unless_present = "set_aside")]
        retry: bool,
        /// Count the undo as done, for this reason.
        #[arg(long, value_name = "REASON")]
        set_aside: Option<String>,
        #[command(flatten)]
        options: Options,
    },
}

/// Parses, runs, reports; answers the exit code: 0 done, 1 the answer is no, 2 the question was wrong, 3 out of reach.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report();
            ExitCode::from(error.exit)
        }
    }
}

fn dispatch(command: Command) -> Result<(), CliError> {
    match command {
        Command::Up { target, detach, tied } => up::run(&target.resolve(), detach, tied),
        Command::Down { target, wipe, yes } => system::down(&target.resolve(), wipe, yes),
        Command::Ps { target, json } => system::ps(&target.resolve(), json),
        Command::Logs { service, follow, lines, file, over } => {
            system::logs(&Place::new(file, over), service.as_deref(), follow, lines)
        }
        Command::Restart { service, options } => system::act(&options.resolve(), &service, "restart", None),
        Command::Stop { service, options } => system::act(&options.resolve(), &service, "stop", None),
        Command::Start { service, options } => system::act(&options.resolve(), &service, "start", None),
        Command::Scale { wish, options } => system::scale(&options.resolve(), &wish),
        Command::Check { target } => manifest::check(&target.resolve()),
        Command::Config { target, effective: _, json } => manifest::effective(&target.resolve(), json),
        Command::Schema => manifest::schema(),
        Command::Explain { what, options } => inspect::explain(&options.resolve(), &what),
        Command::Workflows(Workflows::List { json, options }) => inspect::workflows(&options.resolve(), json),
        Command::Workflows(Workflows::Show { id, json, options }) => inspect::workflow(&options.resolve(), &id, json),
        Command::Workflows(Workflows::Undo { id, retry: _, set_aside, options }) => {
            inspect::undo(&options.resolve(), &id, set_aside.as_deref())
        }
    }
}

/// Where the manifest and the state are, and what is over the manifest.
#[derive(Clone, Debug)]
pub struct Place {
    /// The manifest.
    pub file: PathBuf,
    /// Profile to merge in.
    pub profile: Option<String>,
    /// `KEY=VALUE` pairs.
    pub set: Vec<String>,
    /// The state's directory.
    pub state: PathBuf,
}

impl Place {
    fn new(place: Option<PathBuf>, over: Over) -> Self {
        let place = place.unwrap_or_else(|| PathBuf::from("."));
        let file = if place.is_dir() { place.join("ballet.yaml") } else { place };
        let file = file.strip_prefix("./").map(PathBuf::from).unwrap_or(file);
        let beside = file.parent().map(|dir| dir.join(".ballet")).unwrap_or_else(|| PathBuf::from(".ballet"));
        Self { file, profile: over.profile, set: over.set, state: over.state.unwrap_or(beside) }
    }
}

impl Target {
    fn resolve(self) -> Place {
        Place::new(self.place.or(self.options.file), self.options.over)
    }
}

impl Options {
    fn resolve(self) -> Place {
        Place::new(self.file, self.over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
