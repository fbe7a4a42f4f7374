//! One instance's life, decided apart from doing: told what happened and when, it says what to do.
//!
//! ```text
//! building → initializing → starting → running → draining → stopped
//!     └──────────┴→ failed      └────────┴→ restarting (at once) or waiting (backoff) → starting
//! ```
//!
//! A service restarts at once after a run of a second or more, else after 100 ms doubling to 2 s. It is never given up.

use std::time::Duration;

use tokio::time::Instant;

use crate::spec::Limits;

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The build command of the system or of the service runs.
    Building,
    /// The service's initializers run.
    Initializing,
    /// The process runs and is not ready yet.
    Starting,
    /// The process runs and was ready.
    Running,
    /// It takes no new calls, finishes the old ones, then ends.
    Draining,
    /// It ended and is started again at once.
    Restarting,
    /// It ended too soon (or could not be started) and is started again after a rest.
    Waiting,
    /// It does not run, as asked.
    Stopped,
    /// Building or initializing failed; `restart` tries again.
    Failed,
}

impl State {
    /// The word for it in `ps --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Initializing => "initializing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Restarting => "restarting",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// What the machine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The service is being built.
    Building,
    /// The service's initializers run.
    Initializing,
    /// Building or initializing failed.
    Failed(String),
    /// Everything is prepared: run.
    Start,
    /// Drain and end.
    Stop,
    /// Drain, end, run again.
    Restart,
    /// The process runs.
    Spawned,
    /// The process could not be started.
    SpawnFailed(String),
    /// The answer to a health check.
    Probe(bool),
    /// The process and all its children are gone.
    Exited(String),
    /// The time that [`Machine::wake`] named has come.
    Timer,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Rest,
    /// Start the process, then tell `Spawned` or `SpawnFailed`.
    Spawn,
    /// Send TERM, and KILL after the grace; then tell `Exited`.
    Terminate,
}

/// What follows the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Stop,
    Restart,
}

/// The life of one instance.
#[derive(Debug)]
pub(crate) struct Machine {
    limits: Limits,
    state: State,
    after: After,
    ready: bool,
    reason: Option<String>,
    /// Restarts after an end that nobody asked for.
    restarts: u32,
    misses: u32,
    spawned: Option<Instant>,
    backoff: Duration,
    wake: Option<Instant>,
}

impl Machine {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            state: State::Stopped,
            after: After::Restart,
            ready: false,
            reason: None,
            restarts: 0,
            misses: 0,
            spawned: None,
            backoff: limits.backoff_first,
            wake: None,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn ready(&self) -> bool {
        self.ready
    }

    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Why it is waiting or failed.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// When it wants `Timer`.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// Takes in what happened at `now`.
    pub(crate) fn on(&mut self, input: Input, now: Instant) -> Action {
        match input {
            Input::Building => self.prepare(State::Building),
            Input::Initializing => self.prepare(State::Initializing),
            Input::Failed(reason) => {
                self.prepare(State::Failed);
                self.reason = Some(reason);
                Action::Rest
            }
            Input::Start => self.start(),
            Input::Stop => self.end(After::Stop, now),
            Input::Restart => self.end(After::Restart, now),
            Input::Spawned => {
                self.spawned = Some(now);
                self.misses = 0;
                self.enter(State::Starting);
                Action::Rest
            }
            Input::SpawnFailed(reason) => self.rest(reason, now),
            Input::Probe(good) => self.probe(good),
            Input::Exited(reason) => self.exited(reason, now),
            Input::Timer => self.timer(now),
        }
    }

    fn prepare(&mut self, state: State) -> Action {
        if !self.has_process() {
            self.enter(state);
            self.reason = None;
        }
        Action::Rest
    }

    fn start(&mut self) -> Action {
        self.after = After::Restart;
        match self.state {
            State::Building | State::Initializing | State::Waiting | State::Stopped | State::Failed => {
                self.backoff = self.limits.backoff_first;
                self.reason = None;
                self.enter(State::Starting);
                Action::Spawn
            }
            // A draining one comes back by itself when it has ended.
            State::Starting | State::Running | State::Draining | State::Restarting => Action::Rest,
        }
    }

    fn end(&mut self, after: After, now: Instant) -> Action {
        self.after = after;
        match (self.state, after) {
            // It never was offered to anybody, so there is nothing to drain.
            (State::Starting, _) => {
                self.enter(State::Draining);
                Action::Terminate
            }
            (State::Running, _) => {
                self.enter(State::Draining);
                self.wake = Some(now + self.limits.drain);
                Action::Rest
            }
            (State::Draining, _) => Action::Rest,
            (
                State::Building
                | State::Initializing
                | State::Restarting
                | State::Waiting
                | State::Stopped
                | State::Failed,
                After::Stop,
            ) => {
                self.reason = None;
                self.enter(State::Stopped);
                Action::Rest
            }
            (State::Waiting | State::Stopped | State::Failed, After::Restart) => self.start(),
            (State::Building | State::Initializing | State::Restarting, After::Restart) => Action::Rest,
        }
    }

    fn probe(&mut self, good: bool) -> Action {
        match self.state {
            State::Starting if good => {
                self.reason = None;
                self.enter(State::Running);
                self.ready = true;
            }
            State::Running if good => {
                self.misses = 0;
                self.ready = true;
            }
            State::Running => {
                self.misses += 1;
                self.ready = self.ready && self.misses < self.limits.probe_misses;
            }
            State::Starting
            | State::Building
            | State::Initializing
            | State::Draining
            | State::Restarting
            | State::Waiting
            | State::Stopped
            | State::Failed => {}
        }
        Action::Rest
    }

    fn exited(&mut self, reason: String, now: Instant) -> Action {
        let ran = self.spawned.take().map_or(Duration::ZERO, |at| now - at);
        let asked = self.state == State::Draining;
        match (asked, self.after) {
            (true, After::Stop) => {
                self.reason = None;
                self.enter(State::Stopped);
                Action::Rest
            }
            (true, After::Restart) => {
                self.reason = None;
                self.enter(State::Restarting);
                Action::Spawn
            }
            (false, _) if ran >= self.limits.steady => {
                self.backoff = self.limits.backoff_first;
                self.restarts += 1;
                self.reason = Some(reason);
                self.enter(State::Restarting);
                Action::Spawn
            }
            (false, _) => self.rest(reason, now),
        }
    }

    fn rest(&mut self, reason: String, now: Instant) -> Action {
        self.reason = Some(reason);
        self.spawned = None;
        self.enter(State::Waiting);
        self.wake = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(self.limits.backoff_last);
        Action::Rest
    }

    fn timer(&mut self, now: Instant) -> Action {
        if self.wake.is_none_or(|at| now < at) {
            return Action::Rest;
        }
        self.wake = None;
        match self.state {
            State::Waiting => {
                self.restarts += 1;
                self.enter(State::Restarting);
                Action::Spawn
            }
            State::Draining => Action::Terminate,
            State::Building
            | State::Initializing
            | State::Starting
            | State::Running
            | State::Restarting
            | State::Stopped
            | State::Failed => Action::Rest,
        }
    }

    fn has_process(&self) -> bool {
        match self.state {
            State::Starting | State::Running | State::Draining | State::Restarting => true,
            State::Building | State::Initializing | State::Waiting | State::Stopped | State::Failed => false,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.ready = false;
        self.wake = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A machine whose process has just been spawned.
    fn spawned(now: Instant) -> Machine {
        let mut machine = Machine::new(&Limits::default());
        assert_eq!(machine.on(Input::Start, now), Action::Spawn);
        assert_eq!(machine.on(Input::Spawned, now), Action::Rest);
        assert_eq!(machine.state(), State::Starting);
        machine
    }

    #[test]
    fn quick_ends_are_answered_by_growing_rests_and_never_given_up() {
        let mut now = Instant::now();
        let mut machine = spawned(now);
        let mut rests = vec![];
        for round in 1..=12 {
            now += ms(10);
            assert_eq!(machine.on(Input::Exited("exited with code 1".into()), now), Action::Rest);
            assert_eq!(machine.state(), State::Waiting);
            assert_eq!(machine.reason(), Some("exited with code 1"));
            let wake = machine.wake().unwrap();
            rests.push((wake - now).as_millis());
            assert_eq!(machine.on(Input::Timer, wake - ms(1)), Action::Rest);
            assert_eq!(machine.on(Input::Timer, wake), Action::Spawn);
            assert_eq!(machine.restarts(), round);
            machine.on(Input::Spawned, wake);
            now = wake;
        }
        assert_eq!(rests, [100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000, 2000, 2000, 2000]);
    }

    #[test]
    fn a_steady_run_is_restarted_at_once_and_clears_the_backoff() {
        let now = Instant::now();
        let mut machine = spawned(now);
        machine.on(Input::Exited("x".into()), now);
        machine.on(Input::Timer, now + ms(100));
        machine.on(Input::Spawned, now + ms(100));
        assert_eq!(machine.on(Input::Exited("x".into()), now + ms(1100)), Action::Spawn);
        assert_eq!(machine.state(), State::Restarting);
        machine.on(Input::Spawned, now + ms(1100));
        machine.on(Input::Exited("x".into()), now + ms(1150));
        assert_eq!(machine.wake(), Some(now + ms(1250)), "the first rest again");
    }

    #[test]
    fn a_running_one_drains_before_it_is_terminated() {
        let now = Instant::now();
        let mut machine = spawned(now);
        machine.on(Input::Probe(true), now);
        assert_eq!(machine.on(Input::Stop, now), Action::Rest);
        assert_eq!((machine.state(), machine.ready()), (State::Draining, false));
        let wake = machine.wake().unwrap();
        assert_eq!(wake, now + Limits::default().drain);
        assert_eq!(machine.on(Input::Timer, wake), Action::Terminate);
        assert_eq!(machine.on(Input::Exited("x".into()), wake), Action::Rest);
        assert_eq!((machine.state(), machine.restarts(), machine.reason()), (State::Stopped, 0, None));
    }

    #[test]
    fn one_that_was_never_ready_is_terminated_at_once() {
        let now = Instant::now();
        let mut machine = spawned(now);
        assert_eq!(machine.on(Input::Stop, now), Action::Terminate);
        assert_eq!(machine.state(), State::Draining);
    }

    #[test]
    fn a_restart_drains_and_comes_back() {
        let now = Instant::now();
        let mut machine = spawned(now);
        machine.on(Input::Probe(true), now);
        machine.on(Input::Restart, now);
        let wake = machine.wake().unwrap();
        assert_eq!(machine.on(Input::Timer, wake), Action::Terminate);
        assert_eq!(machine.on(Input::Exited("x".into()), wake), Action::Spawn);
        assert_eq!(machine.restarts(), 0, "asked for");
    }

    #[test]
    fn the_last_word_counts_while_draining() {
        let now = Instant::now();
        for (words, action) in
            [([Input::Stop, Input::Start], Action::Spawn), ([Input::Restart, Input::Stop], Action::Rest)]
        {
            let mut machine = spawned(now);
            machine.on(Input::Probe(true), now);
            for word in words {
                assert_eq!(machine.on(word, now), Action::Rest);
            }
            assert_eq!(machine.on(Input::Exited("x".into()), now), action);
        }
    }

    #[test]
    fn three_misses_make_it_unready_and_one_answer_ready_again() {
        let now = Instant::now();
        let mut machine = spawned(now);
        machine.on(Input::Probe(false), now);
        assert_eq!(machine.state(), State::Starting, "it may take its time");
        for (good, ready) in
            [(true, true), (false, true), (false, true), (false, false), (false, false), (true, true), (false, true)]
        {
            machine.on(Input::Probe(good), now);
            assert_eq!((machine.state(), machine.ready()), (State::Running, ready));
        }
    }

    #[test]
    fn a_failed_preparation_stays_until_somebody_asks_again() {
        let now = Instant::now();
        let mut machine = Machine::new(&Limits::default());
        machine.on(Input::Building, now);
        machine.on(Input::Failed("cargo build exited with code 101".into()), now);
        assert_eq!((machine.state(), machine.wake()), (State::Failed, None));
        machine.on(Input::Building, now);
        assert_eq!((machine.state(), machine.reason()), (State::Building, None));
        machine.on(Input::Initializing, now);
        assert_eq!(machine.on(Input::Start, now), Action::Spawn);
    }

    #[test]
    fn a_program_that_cannot_be_started_is_tried_again() {
        let now = Instant::now();
        let mut machine = Machine::new(&Limits::default());
        machine.on(Input::Start, now);
        machine.on(Input::SpawnFailed("no program `shop-orders`".into()), now);
        assert_eq!((machine.state(), machine.wake()), (State::Waiting, Some(now + ms(100))));
        assert_eq!(machine.on(Input::Stop, now), Action::Rest);
        assert_eq!((machine.state(), machine.wake()), (State::Stopped, None));
    }
}
