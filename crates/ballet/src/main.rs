//! The `ballet` program: parses, runs, reports.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "__shim") {
        return ballet_supervisor::shim::main(args.into_iter().skip(2));
    }
    ballet::cli::run(args)
}
