//! Real processes. This binary is its own shim (`__shim`), its own service (`web`), its own grandchild (`sleeper`) and its own
//! victim (`host`), so it has its own `main`; `cargo test -p ballet-supervisor --test it PART-OF-A-NAME` runs some tests.

#![expect(unreachable_pub, reason = "the modules are this binary's own")]
#![expect(clippy::unwrap_used, reason = "these are tests; clippy does not see that without `#[test]`")]

mod actors;
mod admin;
mod life;
mod rig;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;

/// Tests that run side by side.
const SIDE_BY_SIDE: usize = 3;

type Test = (&'static str, fn() -> BoxFuture<'static, ()>);

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => { &[$((stringify!($name), || Box::pin($module::$name()))),*] };
}

const TESTS: &[Test] = tests![
    life::nothing_outlives_a_killed_supervisor,
    life::nothing_outlives_a_killed_shim,
    life::leftovers_of_a_killed_shim_and_supervisor_are_cleaned_at_the_next_start,
    life::a_crashed_instance_restarts_and_keeps_its_port,
    life::a_service_that_ends_at_once_is_tried_again_and_again,
    life::a_taken_port_is_answered_with_another,
    life::an_instance_drains_before_it_gets_term,
    life::one_that_ignores_term_is_killed_after_the_grace,
    life::initializers_run_in_order_and_once,
    life::a_failed_initializer_says_why_and_can_be_tried_again,
    life::builds_come_first_and_a_failed_one_says_why,
    life::a_service_gets_its_environment_and_nobody_elses,
    life::a_rolling_restart_leaves_one_ready,
    life::scaling_starts_and_stops_the_highest,
    life::a_stop_interrupts_a_build,
    admin::the_system_document_has_the_shape_that_machines_rely_on,
    admin::only_the_token_changes_the_system,
    admin::logs_are_followed_until_the_end,
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|word| word.to_str()) {
        Some("__shim") => return ballet_supervisor::shim::main(args.into_iter().skip(1)),
        Some("web") => return actors::web(&args[1..]),
        Some("sleeper") => return actors::sleeper(&args[1..]),
        Some("host") => return actors::host(&args[1..]),
        _ => {}
    }
    let filter = args.iter().filter_map(|arg| arg.to_str()).find(|arg| !arg.starts_with('-')).unwrap_or("");
    let queue = Mutex::new(TESTS.iter().filter(|(name, _)| name.contains(filter)));
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((name, test)) = next else { return };
                    let run = std::thread::Builder::new().name((*name).to_owned()).spawn(|| {
                        let runtime =
                            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                        runtime.block_on(test());
                    });
                    let good = run.unwrap().join().is_ok();
                    failed.fetch_or(!good, Ordering::Relaxed);
                    println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
                }
            });
        }
    });
    ExitCode::from(u8::from(failed.into_inner()))
}
