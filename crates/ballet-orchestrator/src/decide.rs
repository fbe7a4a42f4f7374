//! The decider: what happened to an execution, in; what follows, out. No clock, no randomness, no I/O.
//!
//! The saga contract lives here and nowhere else:
//!
//! ```text
//! Forward ──all steps done──────────────────────────────▶ Ended (COMPLETED)
//!    │ a step failed, a timeout, terminate               (not past a step without way back)
//!    ▼
//! Undoing ──every undo done or set aside──▶ Telling ──`failed:` answered──▶ Ended (FAILED, TIMED_OUT, TERMINATED)
//! ```
//!
//! What an execution *is* changes only in `decide`. Changes that a restart may forget (that a call is under way, that a
//! service was out of reach) are not `durable`: after a restart everything that was scheduled counts as handed out.

use std::time::Duration;

use ballet_core::{ExecutionStatus, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::outcome::{MAX_OUTPUT, Outcome, TOO_LARGE};
use crate::plan::{Message, Overdue, Plan, Rest, UNDO_ATTEMPTS, Work};
use crate::state::{Ending, Execution, Now, Out, Phase, Role, Series, SeriesState, Task, TaskStatus, View};

/// A person is told of a step without way back after this long.
pub(crate) const ALARM_AFTER: Duration = Duration::from_secs(300);
/// Attempts of one series that get rows of their own; later ones take over the last row.
pub(crate) const MAX_ATTEMPT_ROWS: u32 = 20;

const WAIT_CAP: Rest = Rest::Doubling(Duration::from_secs(10));
const UNDO_REST: Rest = Rest::Doubling(Duration::from_secs(5));

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// It was made.
    Start,
    /// It was read from the journal: whatever is open may have been handed out.
    Recover,
    /// Time went by.
    Tick,
    /// A call came to its end.
    Answered {
        /// Index of the attempt.
        task: usize,
        /// What it came to.
        outcome: Outcome,
    },
    /// A worker takes an attempt.
    Polled {
        /// Index of the attempt.
        task: usize,
        /// Its name.
        worker: String,
    },
    /// The worker hung up before it got the attempt.
    Released {
        /// Index of the attempt.
        task: usize,
    },
    /// A worker reports.
    Updated {
        /// Index of the attempt.
        task: usize,
        /// What it says.
        update: Update,
    },
    /// Somebody wants it to end.
    Terminate {
        /// Why.
        reason: String,
    },
    /// Nothing new shall begin.
    Pause,
    /// Go on.
    Resume,
    /// An operator wants the failed step tried again.
    Retry,
    /// An operator wants all of it again.
    Restart {
        /// Another input.
        input: Option<Value>,
    },
    /// An operator settles stuck undos.
    Settle {
        /// Only this step's; all by default.
        step: Option<String>,
        /// Set aside for this reason, instead of tried again.
        set_aside: Option<String>,
    },
}

/// What a worker says of its task.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// The output; none keeps what is there.
    pub(crate) output: Option<Value>,
    /// Adds to the output instead of replacing it.
    pub(crate) merge: bool,
    /// Why it did not complete.
    pub(crate) reason: Option<String>,
    /// With `InProgress`: offered again after this long.
    pub(crate) callback_after: Duration,
    /// Who says it.
    pub(crate) worker: Option<String>,
}

/// What became of a task, says its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Still at it: the lease begins anew (`extendLease`).
    Alive,
    /// Offer it again.
    InProgress,
    /// Done.
    Completed,
    /// Failed, try again.
    Failed,
    /// Refused.
    Terminal,
    /// The whole workflow shall end.
    Canceled,
}

/// What follows from a decision. Everything happens only after the commit.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// State, attempts and history must be written before anything else happens.
    pub(crate) durable: bool,
    /// New rows of history: what, and to which attempt.
    pub(crate) history: Vec<(&'static str, Option<usize>)>,
    /// Attempts to call.
    pub(crate) calls: Vec<usize>,
    /// Attempts to offer to workers.
    pub(crate) offers: Vec<usize>,
    /// Rows of attempts that a restart took away: all from 0 to here.
    pub(crate) erased: usize,
    /// For a person.
    pub(crate) alarms: Vec<String>,
    /// The event had an effect.
    pub(crate) applied: bool,
}

/// The execution's state forbids it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conflict(pub String);

/// Decides what follows from an event. On a conflict nothing has changed.
pub(crate) fn decide(plan: &Plan, x: &mut Execution, event: Event, now: Now) -> Result<Effects, Conflict> {
    let mut d = Decider { plan, x, now, fx: Effects::default() };
    // A hand-out changes only who has the attempt: nothing follows from it, and nothing is written.
    let only_handed = matches!(event, Event::Polled { .. });
    d.take(event)?;
    if only_handed {
        return Ok(d.fx);
    }
    d.overdue();
    d.advance();
    d.launch();
    if d.fx.durable {
        d.x.updated = now.stamp;
        d.x.seen = now.run;
        let repeats = d.repeats();
        if repeats.is_none() || repeats != d.x.repeats {
            d.x.history += 1;
        }
        d.x.repeats = repeats;
        d.fx.applied = true;
    }
    Ok(d.fx)
}

/// Engine time at which something is due without any event; none while it only waits for others.
pub(crate) fn next_due(plan: &Plan, x: &Execution) -> Option<u64> {
    let mut due: Option<u64> = None;
    let mut at = |time: u64| due = Some(due.map_or(time, |d| d.min(time)));
    let waits = |role: Role| !(x.paused && matches!(role, Role::Do(_)));
    for (role, task) in x.open_roles() {
        let (Some(series), Some(task)) = (x.series(role), x.tasks.get(task)) else { continue };
        match task.out {
            Some(Out::Call) => {}
            Some(Out::Worker { until, attempt_until }) => at(attempt_until.map_or(until, |a| a.min(until))),
            None if task.queued || !waits(role) => {}
            None => at(task.due),
        }
        if let Some(time) = step_timeout(plan, x, role, series) {
            at(time);
        }
        if unlimited(plan, role) && !series.alarmed {
            at(series.since + millis(ALARM_AFTER));
        }
    }
    if let Some(time) = workflow_timeout(plan, x) {
        at(time);
    }
    due
}

/// Whether only an answer can end it: a step without way back was handed out or is done, so that what follows must be
/// done too. That holds without any undo: a cancellation left half-way is money lost as well.
pub(crate) fn no_way_back(plan: &Plan, x: &Execution) -> bool {
    plan.steps.iter().zip(&x.steps).filter(|(def, _)| def.attempts.is_none()).any(|(_, series)| match series {
        Some(s) if s.is_open() => s.handed_out || x.tasks.get(s.task).is_some_and(|t| t.out == Some(Out::Call)),
        Some(s) => s.state == SeriesState::Done,
        None => false,
    })
}

fn unlimited(plan: &Plan, role: Role) -> bool {
    match role {
        Role::Do(i) => plan.steps[i].attempts.is_none(),
        Role::Undo(_) => false,
        Role::Failed => true,
    }
}

fn step_timeout(plan: &Plan, x: &Execution, role: Role, series: &Series) -> Option<u64> {
    let Role::Do(i) = role else { return None };
    let timeout = plan.steps[i].timeout?;
    // Past the hand-out of a step without way back only an answer counts; while a call is under way, its end is awaited.
    let calling = x.tasks.get(series.task).is_some_and(|t| t.out == Some(Out::Call));
    let held = plan.steps[i].attempts.is_none() && (series.handed_out || calling);
    (x.ending.is_none() && !held).then(|| series.since.saturating_add(millis(timeout)))
}

fn workflow_timeout(plan: &Plan, x: &Execution) -> Option<u64> {
    x.due.filter(|_| x.phase == Phase::Forward && x.ending.is_none() && !no_way_back(plan, x))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

struct Decider<'a> {
    plan: &'a Plan,
    x: &'a mut Execution,
    now: Now,
    fx: Effects,
}

impl Decider<'_> {
    fn take(&mut self, event: Event) -> Result<(), Conflict> {
        match event {
            Event::Start => {
                self.x.due = self.plan.timeout.map(|t| self.now.after(t));
                self.note("started", None);
            }
            Event::Recover => self.recover(),
            Event::Tick => {}
            Event::Answered { task, outcome } => {
                let Some((role, task)) = self.current(task) else { return Ok(()) };
                if self.x.tasks[task].out == Some(Out::Call) {
                    self.x.tasks[task].out = None;
                    self.outcome(role, outcome);
                }
            }
            Event::Polled { task, worker } => self.polled(task, worker),
            Event::Released { task } => {
                if let Some((_, task)) = self.current(task)
                    && matches!(self.x.tasks[task].out, Some(Out::Worker { .. }))
                {
                    self.x.tasks[task].out = None;
                    self.x.tasks[task].status = TaskStatus::Scheduled;
                    self.x.tasks[task].due = self.now.run;
                    self.fx.applied = true;
                }
            }
            Event::Updated { task, update } => self.updated(task, update),
            Event::Terminate { reason } => self.terminate(reason)?,
            Event::Pause => {
                if self.x.phase != Phase::Forward || self.x.ending.is_some() {
                    return self.conflict("only an execution that goes forward can be paused");
                }
                if !self.x.paused {
                    self.x.paused = true;
                    self.x.status = ExecutionStatus::Paused;
                    for (_, task) in self.x.open_roles().collect::<Vec<_>>() {
                        // It leaves its queue; a worker that has it may finish.
                        self.x.tasks[task].queued = false;
                    }
                    self.note("paused", None);
                }
            }
            Event::Resume => {
                if !self.x.paused {
                    return self.conflict("it is not paused");
                }
                self.x.paused = false;
                self.x.status = ExecutionStatus::Running;
                self.note("resumed", None);
            }
            Event::Retry => self.reopen(None, false)?,
            Event::Restart { input } => self.reopen(input, true)?,
            Event::Settle { step, set_aside } => self.settle(step, set_aside)?,
        }
        Ok(())
    }

    // --- what may happen -------------------------------------------------------------------------------------------

    fn recover(&mut self) {
        for (role, task) in self.x.open_roles().collect::<Vec<_>>() {
            self.x.tasks[task].status = TaskStatus::Scheduled;
            if let Some(series) = self.x.series_mut(role) {
                series.handed_out = true;
                series.contacted = true;
                series.unknown = true;
            }
        }
    }

    fn polled(&mut self, task: usize, worker: String) {
        let Some((role @ Role::Do(i), task)) = self.current(task) else { return };
        let Work::Poll(polled) = &self.plan.steps[i].work else { return };
        let now = self.now;
        let t = &mut self.x.tasks[task];
        if !t.queued || t.out.is_some() {
            return;
        }
        t.out = Some(Out::Worker {
            until: now.after(polled.response_timeout),
            attempt_until: polled.attempt_timeout.map(|(limit, _)| now.after(limit)),
        });
        t.queued = false;
        t.status = TaskStatus::InProgress;
        t.poll_count += 1;
        t.worker = Some(worker).filter(|w| !w.is_empty());
        t.updated = now.stamp;
        if t.started == Timestamp(0) {
            t.started = now.stamp;
        }
        self.x.dirty.insert(task);
        self.hand_out(role);
        self.fx.applied = true;
    }

    fn updated(&mut self, task: usize, update: Update) {
        // Another attempt's, or one that has ended: the first verdict counted.
        let Some((role @ Role::Do(i), task)) = self.current(task) else { return };
        let Work::Poll(polled) = &self.plan.steps[i].work else { return };
        let now = self.now;
        let t = &mut self.x.tasks[task];
        if let Verdict::Alive = update.verdict {
            if let Some(Out::Worker { until, .. }) = &mut t.out {
                *until = now.after(polled.response_timeout);
                t.updated = now.stamp;
                self.fx.applied = true;
            }
            return;
        }
        t.worker = update.worker.filter(|w| !w.is_empty()).or(t.worker.take());
        match (update.output, update.merge) {
            (Some(Value::Object(more)), true) => match &mut t.output {
                Value::Object(map) => map.extend(more),
                other => *other = Value::Object(more),
            },
            (Some(output), _) => t.output = output,
            (None, _) => {}
        }
        let output = t.output.clone();
        let code = output.get("code").and_then(Value::as_str).map(str::to_owned);
        let reason = update.reason.unwrap_or_else(|| "the worker gave no reason".into());
        t.out = None;
        t.queued = false;
        self.hand_out(role);
        match update.verdict {
            Verdict::Alive => {}
            Verdict::InProgress => {
                if let Some(series) = self.x.series_mut(role) {
                    series.contacted = true;
                }
                let t = &mut self.x.tasks[task];
                t.status = TaskStatus::Scheduled;
                t.due = now.after(update.callback_after);
                t.delay_s = update.callback_after.as_secs();
                t.updated = now.stamp;
                self.x.dirty.insert(task);
                self.note("in-progress", Some(task));
            }
            Verdict::Completed if size(&output) > MAX_OUTPUT => {
                self.x.tasks[task].output = json!({});
                let reason = format!("the output is longer than {MAX_OUTPUT} bytes");
                self.outcome(role, Outcome::Unusable(reason));
            }
            Verdict::Completed => self.outcome(role, Outcome::Done(output)),
            Verdict::Failed => {
                self.outcome(role, Outcome::Unknown { reason, code, status: 0, timed_out: false, output })
            }
            Verdict::Terminal => {
                let code = code.unwrap_or_else(|| "task-failed".into());
                self.outcome(role, Outcome::Refused { reason, code, status: 0, output });
            }
            // After an unknown outcome it is no known answer: it may have been done before.
            Verdict::Canceled if unlimited(self.plan, role) && self.x.series(role).is_some_and(|s| s.unknown) => {
                self.attempt_failed(role, reason, code, 0, false, output);
            }
            Verdict::Canceled => {
                if let Some(series) = self.x.series_mut(role) {
                    series.unknown = true;
                }
                self.close(task, TaskStatus::Canceled, Some(reason.clone()));
                self.set_state(role, SeriesState::GivenUp);
                self.end_with(ExecutionStatus::Terminated, role, reason, "canceled".into(), 0);
            }
        }
    }

    fn terminate(&mut self, reason: String) -> Result<(), Conflict> {
        match self.x.phase {
            Phase::Ended => {
                self.conflict(&format!("it has ended already, as {}", crate::state::status_word(self.x.status)))
            }
            // It is on its way to its end.
            Phase::Undoing | Phase::Telling => Ok(()),
            Phase::Forward if self.x.ending.is_some() => Ok(()),
            Phase::Forward if no_way_back(self.plan, self.x) => {
                self.conflict("it is past the point of no return: only the answer of its step ends it")
            }
            Phase::Forward => {
                let role = self.x.open_roles().next().map(|(role, _)| role);
                let step = role.map(|role| self.name(role)).unwrap_or_default();
                let (status, code) = (ExecutionStatus::Terminated, "terminated".to_owned());
                self.x.ending = Some(Ending { status, reason, step, http_status: 0, code });
                self.note("terminating", None);
                Ok(())
            }
        }
    }

    fn reopen(&mut self, input: Option<Value>, all: bool) -> Result<(), Conflict> {
        if self.x.phase != Phase::Ended {
            return self.conflict("it has not ended yet");
        }
        if self.x.undos.iter().any(Option::is_some) {
            return self.conflict("something of it was undone: start a new execution instead");
        }
        if !all && self.x.status == ExecutionStatus::Completed {
            return self.conflict("it has completed: there is nothing to retry");
        }
        if all && self.x.status == ExecutionStatus::Completed && !self.plan.restartable {
            return self.conflict("its definition says that it is not restartable");
        }
        self.x.reopened += 1;
        self.x.phase = Phase::Forward;
        self.x.status = ExecutionStatus::Running;
        self.x.paused = false;
        self.x.ending = None;
        self.x.failed = None;
        self.x.ended = Timestamp(0);
        self.x.output = Value::Null;
        self.x.due = self.plan.timeout.map(|t| self.now.after(t));
        if all {
            self.fx.erased = self.x.tasks.len();
            self.x.tasks.clear();
            self.x.dirty.clear();
            self.x.steps.fill(None);
            if let Some(input) = input {
                self.x.input = input;
            }
        } else {
            for i in 0..self.x.steps.len() {
                if let Some(series) = self.x.steps[i].as_ref().filter(|s| s.state != SeriesState::Done) {
                    let task = series.task;
                    self.x.tasks[task].retried = true;
                    self.x.dirty.insert(task);
                    self.x.steps[i] = None;
                }
            }
        }
        self.note(if all { "restarted" } else { "retried" }, None);
        Ok(())
    }

    fn settle(&mut self, step: Option<String>, set_aside: Option<String>) -> Result<(), Conflict> {
        let stuck = |i: &usize| self.x.undos[*i].as_ref().is_some_and(|s| s.state == SeriesState::Stuck);
        let wanted = |i: &usize| step.as_ref().is_none_or(|s| *s == self.plan.steps[*i].reference);
        let stuck: Vec<usize> = (0..self.x.undos.len()).filter(stuck).filter(wanted).collect();
        if stuck.is_empty() {
            return self.conflict("no undo of it is stuck");
        }
        for i in stuck {
            match &set_aside {
                Some(reason) => {
                    self.set_state(Role::Undo(i), SeriesState::SetAside(reason.clone()));
                    self.note("undo-set-aside", self.x.undos[i].as_ref().map(|s| s.task));
                }
                None => {
                    if let Some(series) = &mut self.x.undos[i] {
                        series.state = SeriesState::Open;
                        series.attempts = 0;
                        series.waits = 0;
                    }
                    self.again(Role::Undo(i), Duration::ZERO);
                    // Made anew: if it could not be filled in before, there is nothing to send.
                    let input = self.input_of(Role::Undo(i));
                    let Some(task) = self.x.undos[i].as_ref().map(|s| s.task) else { continue };
                    match input {
                        Ok(input) => self.x.tasks[task].input = input,
                        Err(problem) => self.stuck(i, task, unmade(&problem)),
                    }
                }
            }
        }
        Ok(())
    }

    // --- what an attempt came to -----------------------------------------------------------------------------------

    fn outcome(&mut self, role: Role, outcome: Outcome) {
        let Some(series) = self.x.series(role).cloned() else { return };
        let task = series.task;
        let unlimited = unlimited(self.plan, role);
        match outcome {
            Outcome::Done(output) => self.done(role, task, output),
            Outcome::Unusable(_) if !matches!(role, Role::Do(_)) => self.done(role, task, Value::Null),
            Outcome::Unusable(reason) if unlimited => {
                self.attempt_failed(role, reason, None, 0, false, json!({}));
            }
            Outcome::Unusable(reason) => {
                self.hand_out(role);
                self.close(task, TaskStatus::FailedWithTerminalError, Some(reason.clone()));
                self.set_state(role, SeriesState::GivenUp);
                self.end_with(ExecutionStatus::Failed, role, reason, TOO_LARGE.into(), 0);
            }
            Outcome::Waiting { reason, contacted } => {
                if contacted {
                    self.hand_out(role);
                }
                let waits = series.waits + 1;
                if let Some(series) = self.x.series_mut(role) {
                    series.contacted |= contacted;
                    series.waits = waits;
                }
                let rest = match role {
                    Role::Do(_) | Role::Failed => WAIT_CAP,
                    Role::Undo(_) => UNDO_REST,
                };
                let t = &mut self.x.tasks[task];
                t.status = TaskStatus::Scheduled;
                t.due = self.now.after(rest.after(waits));
                t.reason = Some(reason);
                t.updated = self.now.stamp;
                self.x.dirty.insert(task);
                self.fx.applied = true;
            }
            Outcome::Refused { reason, code, status, output } => {
                let first = !series.contacted;
                self.hand_out(role);
                if let Some(series) = self.x.series_mut(role) {
                    series.contacted = true;
                }
                match role {
                    // A refusal after an unknown outcome is no known answer: it may have been done before.
                    Role::Do(_) | Role::Failed if unlimited && series.unknown => {
                        self.attempt_failed(role, reason, Some(code), status, false, output);
                    }
                    Role::Do(_) => {
                        self.x.tasks[task].output = output;
                        self.close(task, TaskStatus::FailedWithTerminalError, Some(reason.clone()));
                        self.set_state(role, if first { SeriesState::Refused } else { SeriesState::GivenUp });
                        self.note("refused", Some(task));
                        self.end_with(ExecutionStatus::Failed, role, reason, code, status);
                    }
                    Role::Undo(i) => {
                        self.x.tasks[task].output = output;
                        self.stuck(i, task, reason);
                    }
                    Role::Failed => {
                        self.x.tasks[task].output = output;
                        self.close(task, TaskStatus::FailedWithTerminalError, Some(reason.clone()));
                        self.set_state(role, SeriesState::GivenUp);
                        self.note("refused", Some(task));
                        self.alarm(format!("the `failed:` call was refused: {reason}"));
                    }
                }
            }
            Outcome::Unknown { reason, code, status, timed_out, output } => {
                self.attempt_failed(role, reason, code, status, timed_out, output);
            }
        }
    }

    fn done(&mut self, role: Role, task: usize, output: Value) {
        self.hand_out(role);
        self.x.tasks[task].output = output;
        self.close(task, TaskStatus::Completed, None);
        self.set_state(role, SeriesState::Done);
        self.note("completed", Some(task));
    }

    /// An attempt that may have done something: another one, or the end of it.
    fn attempt_failed(
        &mut self,
        role: Role,
        reason: String,
        code: Option<String>,
        status: u16,
        timed_out: bool,
        output: Value,
    ) {
        self.hand_out(role);
        let Some(series) = self.x.series_mut(role) else { return };
        series.contacted = true;
        series.unknown = true;
        series.attempts = series.attempts.saturating_add(1);
        series.waits = 0;
        let (task, attempts) = (series.task, series.attempts);
        let (limit, rest) = match role {
            Role::Do(i) => (self.plan.steps[i].attempts, self.plan.steps[i].rest),
            Role::Undo(_) => (Some(UNDO_ATTEMPTS), UNDO_REST),
            Role::Failed => (None, WAIT_CAP),
        };
        self.x.tasks[task].output = output;
        let task_status = if timed_out { TaskStatus::TimedOut } else { TaskStatus::Failed };
        self.close(task, task_status, Some(reason.clone()));
        if limit.is_none_or(|limit| attempts < limit) && !(self.x.ending.is_some() && matches!(role, Role::Do(_))) {
            self.note("attempt-failed", Some(task));
            self.again(role, rest.after(attempts));
            return;
        }
        match role {
            Role::Do(i) => {
                self.set_state(role, SeriesState::GivenUp);
                self.note("given-up", Some(task));
                let polled = matches!(self.plan.steps[i].work, Work::Poll(_));
                let status_word = if polled && timed_out { ExecutionStatus::TimedOut } else { ExecutionStatus::Failed };
                let code = code.unwrap_or_else(|| self.unavailable(role));
                self.end_with(status_word, role, reason, code, status);
            }
            Role::Undo(i) => self.stuck(i, task, reason),
            Role::Failed => {}
        }
    }

    fn stuck(&mut self, step: usize, task: usize, reason: String) {
        let text = format!("the undo of step `{}` is stuck: {reason}", self.plan.steps[step].reference);
        self.close(task, TaskStatus::FailedWithTerminalError, Some(reason));
        self.set_state(Role::Undo(step), SeriesState::Stuck);
        self.note("undo-stuck", Some(task));
        self.alarm(text);
    }

    /// Says how the execution will end, unless that is known already or the step is optional.
    fn end_with(&mut self, status: ExecutionStatus, role: Role, reason: String, code: String, http_status: u16) {
        if let Role::Do(i) = role
            && self.plan.steps[i].optional
            && status != ExecutionStatus::Terminated
        {
            if let Some(task) = self.x.series(role).map(|s| s.task) {
                self.x.tasks[task].status = TaskStatus::CompletedWithErrors;
            }
            return;
        }
        if self.x.ending.is_none() {
            let step = self.name(role);
            self.x.ending = Some(Ending { status, reason, step, http_status, code });
        }
    }

    // --- time ------------------------------------------------------------------------------------------------------

    fn overdue(&mut self) {
        let now = self.now.run;
        for (role, task) in self.x.open_roles().collect::<Vec<_>>() {
            if let (Some(Out::Worker { until, attempt_until }), Role::Do(i)) = (self.x.tasks[task].out, role) {
                let ends = match &self.plan.steps[i].work {
                    Work::Poll(polled) => polled.attempt_timeout.is_some_and(|(_, overdue)| overdue == Overdue::End),
                    Work::Call(_) => false,
                };
                if attempt_until.is_some_and(|a| a <= now) && ends && !unlimited(self.plan, role) {
                    let reason = "the task took longer than its timeout";
                    self.x.tasks[task].out = None;
                    self.close(task, TaskStatus::TimedOut, Some(reason.into()));
                    self.set_state(role, SeriesState::GivenUp);
                    self.end_with(ExecutionStatus::TimedOut, role, reason.into(), self.unavailable(role), 0);
                    self.note("given-up", Some(task));
                } else if until <= now || attempt_until.is_some_and(|a| a <= now) {
                    self.x.tasks[task].out = None;
                    let reason = "no word from the worker in time".into();
                    let (code, output) = (None, self.x.tasks[task].output.clone());
                    self.outcome(role, Outcome::Unknown { reason, code, status: 0, timed_out: true, output });
                }
            }
            let Some(series) = self.x.series(role).filter(|s| s.is_open()).cloned() else { continue };
            if step_timeout(self.plan, self.x, role, &series).is_some_and(|at| at <= now) {
                let reason =
                    format!("step `{}` took longer than its timeout{}", self.name(role), self.waiting_for(&series));
                self.end_with(ExecutionStatus::TimedOut, role, reason, self.unavailable(role), 0);
                if self.x.ending.is_none() {
                    // Optional: it alone is given up.
                    self.give_up_open(role);
                }
                self.note("step-timed-out", Some(series.task));
            }
            if unlimited(self.plan, role) && !series.alarmed && series.since + millis(ALARM_AFTER) <= now {
                let why = self.x.tasks[series.task].reason.clone().unwrap_or_else(|| "no answer yet".into());
                self.alarm(format!("step `{}` is tried on: {why}", self.name(role)));
                if let Some(series) = self.x.series_mut(role) {
                    series.alarmed = true;
                }
            }
        }
        if workflow_timeout(self.plan, self.x).is_some_and(|at| at <= now) {
            let open = self.x.open_roles().next().map(|(role, _)| role);
            let (step, code, tail) = match open {
                Some(role) => {
                    let tail = self.x.series(role).cloned().map(|s| self.waiting_for(&s)).unwrap_or_default();
                    (self.name(role), self.unavailable(role), tail)
                }
                None => (String::new(), "timed-out".to_owned(), String::new()),
            };
            let reason = format!("the workflow took longer than its timeout{tail}");
            self.x.ending = Some(Ending { status: ExecutionStatus::TimedOut, reason, step, http_status: 0, code });
            self.note("timed-out", None);
        }
    }

    // --- what follows ----------------------------------------------------------------------------------------------

    fn advance(&mut self) {
        loop {
            match self.x.phase {
                Phase::Forward if self.x.ending.is_some() => {
                    // A call under way comes to its end by itself; then it is known whether there is something to undo.
                    if self.x.tasks.iter().rev().any(|t| t.out == Some(Out::Call)) {
                        return;
                    }
                    for (role, _) in self.x.open_roles().collect::<Vec<_>>() {
                        self.give_up_open(role);
                    }
                    self.x.paused = false;
                    self.x.status = ExecutionStatus::Running;
                    self.x.phase = Phase::Undoing;
                    self.note("failing", None);
                }
                Phase::Forward => {
                    if self.x.paused || self.x.open_roles().next().is_some() {
                        return;
                    }
                    match self.x.steps.iter().position(Option::is_none) {
                        Some(next) => self.schedule(Role::Do(next)),
                        None => return self.complete(),
                    }
                }
                Phase::Undoing => {
                    if self.x.open_roles().next().is_some() {
                        return;
                    }
                    let undoable = |i: &usize| {
                        self.plan.steps[*i].undo.is_some()
                            && self.x.undos[*i].is_none()
                            && self.x.steps[*i].as_ref().is_some_and(Series::needs_undo)
                    };
                    let order = |i: &usize| self.x.steps[*i].as_ref().map(|s| s.first);
                    let next = (0..self.x.steps.len()).filter(undoable).max_by_key(order);
                    match next {
                        Some(i) => self.schedule(Role::Undo(i)),
                        None if self.x.compensation_state() == Some("stuck") => return,
                        None => self.x.phase = Phase::Telling,
                    }
                }
                Phase::Telling => match (&self.plan.failed, &self.x.failed) {
                    (Some(_), None) => self.schedule(Role::Failed),
                    (Some(_), Some(series)) if series.is_open() => return,
                    (Some(_), Some(_)) | (None, _) => return self.end(),
                },
                Phase::Ended => return,
            }
        }
    }

    fn complete(&mut self) {
        let view = View { execution: self.x, plan: self.plan };
        let output = match &self.plan.output {
            Some(template) => template.eval(&view).unwrap_or(Value::Null),
            None => {
                let last = self.x.steps.iter().flatten().map(|s| s.task).max();
                last.map_or(Value::Null, |task| self.x.tasks[task].output.clone())
            }
        };
        self.x.output = output;
        self.x.status = ExecutionStatus::Completed;
        self.x.phase = Phase::Ended;
        self.x.ended = self.now.stamp;
        self.note("ended", None);
    }

    fn end(&mut self) {
        self.x.status = self.x.ending.as_ref().map_or(ExecutionStatus::Failed, |e| e.status);
        self.x.phase = Phase::Ended;
        self.x.ended = self.now.stamp;
        self.note("ended", None);
    }

    /// Makes the first attempt of a series.
    fn schedule(&mut self, role: Role) {
        let delay = match role {
            Role::Do(i) => self.plan.steps[i].start_delay,
            Role::Undo(_) | Role::Failed => Duration::ZERO,
        };
        let (input, problem) = match self.input_of(role) {
            Ok(input) => (input, None),
            Err(problem) => (json!({}), Some(problem)),
        };
        let task = self.x.tasks.len();
        self.x.tasks.push(Task {
            id: task_id(self.x, task, 0, self.now.stamp),
            role,
            status: TaskStatus::Scheduled,
            retry_count: 0,
            retried_id: None,
            retried: false,
            input,
            output: json!({}),
            reason: None,
            scheduled: self.now.stamp,
            started: Timestamp(0),
            updated: self.now.stamp,
            ended: Timestamp(0),
            due: self.now.after(delay),
            delay_s: delay.as_secs(),
            poll_count: 0,
            worker: None,
            out: None,
            queued: false,
        });
        self.x.dirty.insert(task);
        *self.x.series_mut(role) = Some(Series {
            task,
            first: task,
            attempts: 0,
            waits: 0,
            since: self.now.run,
            handed_out: false,
            contacted: false,
            unknown: false,
            alarmed: false,
            state: SeriesState::Open,
        });
        self.note("scheduled", Some(task));
        // What cannot be filled in can never be sent.
        if let Some(problem) = problem {
            let reason = unmade(&problem);
            match role {
                Role::Do(_) => {
                    self.close(task, TaskStatus::FailedWithTerminalError, Some(reason.clone()));
                    self.set_state(role, SeriesState::Refused);
                    self.end_with(ExecutionStatus::Failed, role, reason, "invalid-input".into(), 0);
                }
                Role::Undo(i) => self.stuck(i, task, reason),
                Role::Failed => {
                    self.close(task, TaskStatus::FailedWithTerminalError, Some(reason.clone()));
                    self.set_state(role, SeriesState::GivenUp);
                    self.alarm(format!("the `failed:` call cannot be made: {reason}"));
                }
            }
        }
    }

    fn input_of(&self, role: Role) -> Result<Value, String> {
        let view = View { execution: self.x, plan: self.plan };
        match role {
            Role::Do(i) => self.plan.steps[i].input.eval(&view).map_err(|e| e.to_string()),
            Role::Undo(i) => match &self.plan.steps[i].undo {
                Some(undo) => self.undo_input(i, undo),
                None => Err("there is no undo".into()),
            },
            Role::Failed => match &self.plan.failed {
                Some(failed) => failed.input.eval(&view).map_err(|e| e.to_string()),
                None => Err("there is no `failed:`".into()),
            },
        }
    }

    fn undo_input(&self, step: usize, undo: &Message) -> Result<Value, String> {
        let view = View { execution: self.x, plan: self.plan };
        let mut input = undo.input.eval(&view).map_err(|e| e.to_string())?;
        if undo.default_body {
            let task = self.x.steps[step].as_ref().map(|s| &self.x.tasks[s.task]);
            let (sent, answer) = match (&self.plan.steps[step].work, task) {
                (Work::Call(_), Some(t)) => (&t.input["http_request"]["body"], &t.output["response"]["body"]),
                (Work::Poll(_), Some(t)) => (&t.input, &t.output),
                (Work::Call(_) | Work::Poll(_), None) => (&Value::Null, &Value::Null),
            };
            // Only the answer of a step that is done is its output; a refusal's body is not.
            let known = self.x.steps[step].as_ref().is_some_and(|s| s.state == SeriesState::Done);
            let output = if known { answer.clone() } else { Value::Null };
            input["http_request"]["body"] =
                json!({ "input": sent, "output": output, "key": self.x.key(self.plan, Role::Do(step)) });
        }
        Ok(input)
    }

    /// Makes the next attempt of a series: a new id, the same key.
    fn again(&mut self, role: Role, rest: Duration) {
        let Some(old) = self.x.series(role).map(|s| s.task) else { return };
        let now = self.now;
        let count = self.x.tasks[old].retry_count + 1;
        let mut task = self.x.tasks[old].clone();
        task.retry_count = count;
        task.retried_id = Some(task.id);
        task.retried = false;
        task.status = TaskStatus::Scheduled;
        task.output = json!({});
        task.scheduled = now.stamp;
        task.started = Timestamp(0);
        task.updated = now.stamp;
        task.ended = Timestamp(0);
        task.due = now.after(rest);
        task.delay_s = rest.as_secs();
        task.poll_count = 0;
        task.worker = None;
        task.out = None;
        task.queued = false;
        let index = if count < MAX_ATTEMPT_ROWS { self.x.tasks.len() } else { old };
        task.id = task_id(self.x, index, count, now.stamp);
        if index == old {
            self.x.tasks[old] = task;
        } else {
            task.reason = None;
            self.x.tasks[old].retried = true;
            self.x.dirty.insert(old);
            self.x.tasks.push(task);
        }
        self.x.dirty.insert(index);
        if let Some(series) = self.x.series_mut(role) {
            series.task = index;
        }
        self.note("scheduled", Some(index));
    }

    /// Hands out what is due.
    fn launch(&mut self) {
        let now = self.now;
        for (role, task) in self.x.open_roles().collect::<Vec<_>>() {
            let t = &mut self.x.tasks[task];
            let held = self.x.paused && matches!(role, Role::Do(_));
            if held || t.out.is_some() || t.queued || t.due > now.run {
                continue;
            }
            let polled = match role {
                Role::Do(i) => matches!(self.plan.steps[i].work, Work::Poll(_)),
                Role::Undo(_) | Role::Failed => false,
            };
            self.x.dirty.insert(task);
            let t = &mut self.x.tasks[task];
            if polled {
                t.queued = true;
                self.fx.offers.push(task);
            } else {
                t.out = Some(Out::Call);
                t.status = TaskStatus::InProgress;
                t.poll_count += 1;
                t.updated = now.stamp;
                if t.started == Timestamp(0) {
                    t.started = now.stamp;
                }
                self.fx.calls.push(task);
            }
        }
    }

    // --- small words -----------------------------------------------------------------------------------------------

    /// The role of an attempt, if it is the current one of an open series.
    fn current(&self, task: usize) -> Option<(Role, usize)> {
        let role = self.x.tasks.get(task)?.role;
        self.x.series(role).filter(|s| s.is_open() && s.task == task).map(|_| (role, task))
    }

    fn hand_out(&mut self, role: Role) {
        if let Some(series) = self.x.series_mut(role) {
            series.handed_out = true;
        }
    }

    fn set_state(&mut self, role: Role, state: SeriesState) {
        if let Some(series) = self.x.series_mut(role) {
            series.state = state;
        }
    }

    fn give_up_open(&mut self, role: Role) {
        let Some(task) = self.x.series(role).map(|s| s.task) else { return };
        if self.x.tasks[task].out.is_some() {
            self.hand_out(role);
        }
        self.x.tasks[task].out = None;
        self.x.tasks[task].queued = false;
        self.close(task, TaskStatus::Canceled, None);
        self.set_state(role, SeriesState::GivenUp);
        self.fx.durable = true;
    }

    fn close(&mut self, task: usize, status: TaskStatus, reason: Option<String>) {
        let t = &mut self.x.tasks[task];
        t.status = status;
        t.ended = self.now.stamp;
        t.updated = self.now.stamp;
        t.queued = false;
        match (status, reason) {
            (TaskStatus::Completed, _) => t.reason = None,
            (_, Some(reason)) => t.reason = Some(reason),
            (_, None) => {}
        }
        self.x.dirty.insert(task);
        self.fx.durable = true;
    }

    fn note(&mut self, what: &'static str, task: Option<usize>) {
        self.fx.history.push((what, task));
        self.fx.durable = true;
    }

    /// The attempt whose row of history takes the place of the one before, if that was of the same kind: one that is
    /// still in progress, or that shares its own row with earlier ones.
    fn repeats(&self) -> Option<usize> {
        let (_, task) = *self.fx.history.first()?;
        let shared = self.x.tasks.get(task?)?.retry_count >= MAX_ATTEMPT_ROWS;
        let repeats = |(what, of): &(&str, Option<usize>)| {
            *of == task && (*what == "in-progress" || (shared && matches!(*what, "attempt-failed" | "scheduled")))
        };
        task.filter(|_| self.fx.history.iter().all(repeats))
    }

    fn alarm(&mut self, text: String) {
        self.fx.alarms.push(text);
    }

    fn name(&self, role: Role) -> String {
        match role {
            Role::Do(i) | Role::Undo(i) => self.plan.steps[i].reference.clone(),
            Role::Failed => "failed".into(),
        }
    }

    /// What `${failure.code}` says of a step that got no answer: `payments-unavailable`.
    fn unavailable(&self, role: Role) -> String {
        let of = match role {
            Role::Do(i) => match &self.plan.steps[i].work {
                Work::Call(upstream) => upstream.service.name(),
                Work::Poll(polled) => &polled.queue,
            },
            Role::Undo(_) | Role::Failed => "workflow",
        };
        format!("{of}-unavailable")
    }

    fn waiting_for(&self, series: &Series) -> String {
        match &self.x.tasks[series.task].reason {
            Some(reason) => format!(" ({reason})"),
            None => String::new(),
        }
    }

    fn conflict<T>(&self, why: &str) -> Result<T, Conflict> {
        Err(Conflict(format!("execution `{}`: {why}", self.x.id)))
    }
}

fn unmade(problem: &str) -> String {
    format!("its input cannot be made: {problem}")
}

fn size(value: &Value) -> usize {
    serde_json::to_vec(value).map_or(0, |json| json.len())
}

/// An attempt's id: a UUID v7 whose random part is a hash, so that the decider stays pure.
fn task_id(x: &Execution, index: usize, retry: u32, at: Timestamp) -> String {
    let mut hash = Sha256::new();
    hash.update(x.id.as_str());
    hash.update([0]);
    hash.update(x.created.millis().to_le_bytes());
    hash.update(x.reopened.to_le_bytes());
    hash.update(index.to_le_bytes());
    hash.update(retry.to_le_bytes());
    let digest = hash.finalize();
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    let at = u64::try_from(at.millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(at, &random).into_uuid().to_string()
}

#[cfg(test)]
mod tests;
