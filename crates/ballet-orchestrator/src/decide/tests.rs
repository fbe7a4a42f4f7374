//! The decider against a world that fails in every way the saga contract names, and a journal that forgets what was not
//! committed. The world's services keep the contract's sixth line: they know keys, and an undo leaves a tombstone.

use std::collections::{HashMap, HashSet};

use ballet_core::ExecutionId;
use ballet_store::{Batch, Journal, Memory};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Map;

use super::*;
use crate::tables;

/// A line of steps `s0, s1, …`; `undo` says which can be taken back.
fn line(steps: &[(bool, Option<u32>)]) -> Plan {
    let task = |(i, (undo, attempts)): (usize, &(bool, Option<u32>))| {
        let mut ballet = json!({ "attempts": attempts.map_or(json!("unlimited"), |n| json!(n)) });
        if *undo {
            ballet["undo"] = json!({ "uri": format!("service://s{i}/undo"), "method": "POST" });
        }
        json!({
            "name": format!("s{i}"), "taskReferenceName": format!("s{i}"), "type": "HTTP", "metadata": { "ballet": ballet },
            "inputParameters": { "http_request": { "uri": format!("service://s{i}/do"), "method": "POST", "body": "${workflow.input}" } },
        })
    };
    let failed = json!({ "uri": "service://told/failed", "method": "POST", "body": { "reason": "${failure.code}" } });
    let tasks: Vec<Value> = steps.iter().enumerate().map(task).collect();
    let definition =
        json!({ "name": "line", "tasks": tasks, "metadata": { "ballet": { "failed": failed, "timeoutMs": 900_000 } } });
    Plan::compile(&definition, &Map::new()).unwrap()
}

fn execution(plan: &Plan) -> Execution {
    let none = || vec![None; plan.steps.len()];
    Execution {
        id: "line-1".parse().unwrap(),
        name: plan.name.clone(),
        version: 1,
        revision: 0,
        inline: None,
        task_defs: Map::new(),
        status: ExecutionStatus::Running,
        phase: Phase::Forward,
        input: json!({ "id": "1" }),
        output: Value::Null,
        correlation_id: None,
        created_by: None,
        trace: String::new(),
        priority: 0,
        created: Timestamp(1_000),
        updated: Timestamp(1_000),
        ended: Timestamp(0),
        due: None,
        reopened: 0,
        paused: false,
        ending: None,
        steps: none(),
        undos: none(),
        failed: None,
        history: 0,
        repeats: None,
        seen: 0,
        tasks: vec![],
        dirty: Default::default(),
    }
}

/// One execution, without a world: outcomes are fed by hand.
struct Bench {
    plan: Plan,
    x: Execution,
    run: u64,
    calls: Vec<usize>,
    alarms: Vec<String>,
}

impl Bench {
    fn of(plan: Plan) -> Self {
        let x = execution(&plan);
        let mut bench = Self { plan, x, run: 0, calls: vec![], alarms: vec![] };
        bench.event(Event::Start).unwrap();
        bench
    }

    fn event(&mut self, event: Event) -> Result<(), Conflict> {
        let now = Now { stamp: Timestamp(1_000 + self.run as i64), run: self.run };
        let fx = decide(&self.plan, &mut self.x, event, now)?;
        self.calls.extend(fx.calls);
        self.alarms.extend(fx.alarms);
        Ok(())
    }

    /// Waits for the next call and answers it; says whose it was.
    fn answer(&mut self, outcome: Outcome) -> String {
        while self.calls.is_empty() {
            let due = next_due(&self.plan, &self.x).expect("something will happen");
            assert!(due >= self.run, "time goes forward");
            self.run = due;
            self.event(Event::Tick).unwrap();
            assert!(!self.calls.is_empty() || next_due(&self.plan, &self.x) != Some(due), "a timer that does nothing");
        }
        let task = self.calls.remove(0);
        let key = self.x.key(&self.plan, self.x.tasks[task].role);
        self.event(Event::Answered { task, outcome }).unwrap();
        key
    }

    fn wait(&mut self, for_ms: u64) {
        self.run += for_ms;
        self.event(Event::Tick).unwrap();
    }
}

fn done() -> Outcome {
    Outcome::Done(json!({ "response": { "statusCode": 200, "body": { "id": "x" } } }))
}

fn refused() -> Outcome {
    Outcome::Refused { reason: "no".into(), code: "out-of-stock".into(), status: 409, output: json!({}) }
}

fn unknown() -> Outcome {
    Outcome::Unknown { reason: "500".into(), code: None, status: 500, timed_out: false, output: json!({}) }
}

fn waiting(contacted: bool) -> Outcome {
    Outcome::Waiting { reason: "nobody there".into(), contacted }
}

const SHOP: &[(bool, Option<u32>)] = &[(true, Some(3)), (true, Some(3)), (false, None)];

#[test]
fn an_order_that_goes_well_calls_each_step_once() {
    let mut b = Bench::of(line(SHOP));
    let keys: Vec<String> = (0..3).map(|_| b.answer(done())).collect();
    assert_eq!(keys, ["line-1/s0/0", "line-1/s1/0", "line-1/s2/0"]);
    assert_eq!((b.x.status, b.x.phase), (ExecutionStatus::Completed, Phase::Ended));
    assert_eq!(b.x.compensation(&b.plan), None);
    assert_eq!(next_due(&b.plan, &b.x), None);
}

#[test]
fn failing_at_each_step_undoes_what_the_contract_says() {
    // At which step, with which outcomes; the calls that follow.
    let cases: Vec<(usize, Vec<Outcome>, &[&str])> = vec![
        // 4: refused on its first contact: nothing happened there.
        (0, vec![refused()], &["failed"]),
        (1, vec![refused()], &["s0/undo", "failed"]),
        (2, vec![refused()], &["s1/undo", "s0/undo", "failed"]),
        // 3: three attempts of unknown outcome; 4: undone, because unknown.
        (0, vec![unknown(), unknown(), unknown()], &["s0/undo", "failed"]),
        (1, vec![unknown(), unknown(), unknown()], &["s1/undo", "s0/undo", "failed"]),
        // 4: a refusal after an attempt of unknown outcome counts as unknown.
        (0, vec![unknown(), refused()], &["s0/undo", "failed"]),
        (1, vec![unknown(), unknown(), refused()], &["s1/undo", "s0/undo", "failed"]),
        // 3: waiting uses up no attempt, and without a byte it is no contact.
        (1, vec![waiting(false), waiting(false), waiting(false), waiting(false), refused()], &["s0/undo", "failed"]),
        // A 503 was a contact: the refusal after it is not the first.
        (1, vec![waiting(true), refused()], &["s1/undo", "s0/undo", "failed"]),
    ];
    for (step, outcomes, expected) in cases {
        let text = format!("step {step}, {outcomes:?}");
        let mut b = Bench::of(line(SHOP));
        for _ in 0..step {
            b.answer(done());
        }
        for outcome in outcomes {
            assert_eq!(b.answer(outcome), format!("line-1/s{step}/0"), "{text}");
        }
        for follows in expected {
            assert_eq!(b.x.status, ExecutionStatus::Running, "7: Conductor's clients see RUNNING meanwhile; {text}");
            let key = b.answer(done());
            let (reference, undo) = follows.split_once('/').map_or((*follows, ""), |(r, _)| (r, "/undo"));
            assert_eq!(key, format!("line-1/{reference}/0{undo}"), "{text}");
        }
        assert_eq!((b.x.status, b.x.phase), (ExecutionStatus::Failed, Phase::Ended), "{text}");
        assert_eq!(b.x.compensation_state(), Some("done"), "{text}");
        assert!(b.x.tasks.iter().all(|t| t.status.is_final()), "{text}");
        let again = b.event(Event::Retry).is_ok();
        assert_eq!(again, expected == ["failed"], "7: retry only where nothing was undone; {text}");
    }
}

#[test]
fn past_the_point_of_no_return_only_an_answer_counts() {
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    b.answer(done());
    for _ in 0..30 {
        b.answer(unknown());
    }
    b.answer(refused());
    assert_eq!(b.x.phase, Phase::Forward, "5: a refusal after an unknown outcome is no known answer");
    b.wait(3_600_000);
    assert_eq!(b.x.phase, Phase::Forward, "5: nor is the workflow's timeout");
    assert_eq!(b.alarms.len(), 1, "5: a person hears of it, once: {:?}", b.alarms);
    assert!(b.event(Event::Terminate { reason: "stop".into() }).is_err(), "5: nor can it be terminated");
    assert!(b.x.tasks.len() <= 2 + MAX_ATTEMPT_ROWS as usize, "rows are bounded: {}", b.x.tasks.len());
    let key = b.answer(done());
    assert_eq!(key, "line-1/s2/0", "1: the key is the same over all attempts");
    assert_eq!(b.x.status, ExecutionStatus::Completed);

    // Not handed out yet, it can still be ended, and what went before is undone.
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    b.answer(done());
    b.answer(waiting(false));
    b.wait(900_000);
    if !b.calls.is_empty() {
        b.answer(waiting(false));
    }
    assert_eq!(b.x.ending.as_ref().unwrap().status, ExecutionStatus::TimedOut);
    assert_eq!(b.x.ending.as_ref().unwrap().code, "s2-unavailable");
    let keys = [b.answer(done()), b.answer(done()), b.answer(done())];
    assert_eq!(keys, ["line-1/s1/0/undo", "line-1/s0/0/undo", "line-1/failed/0"]);
    assert_eq!(b.x.status, ExecutionStatus::TimedOut, "7: by its cause");
}

#[test]
fn what_is_tried_on_for_ever_has_a_short_history() {
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    b.answer(done());
    for _ in 0..MAX_ATTEMPT_ROWS {
        b.answer(unknown());
    }
    let rows = b.x.history;
    for _ in 0..1_000 {
        b.answer(unknown());
    }
    assert_eq!(b.x.history, rows, "attempts that share a row share one of history");
    b.event(Event::Pause).unwrap();
    b.event(Event::Resume).unwrap();
    b.answer(unknown());
    b.answer(unknown());
    assert_eq!(b.x.history, rows + 3, "what else happened keeps its rows");
    b.answer(done());
    assert_eq!(b.x.history, rows + 4);

    let mut b = Bench::of(polled_line());
    for _ in 0..1_000 {
        b.work(0, Verdict::InProgress);
    }
    assert_eq!(b.x.history, 2, "a worker that is at it for ever likewise");
    b.work(0, Verdict::Failed);
    b.wait(100);
    b.work(1, Verdict::InProgress);
    assert_eq!(b.x.history, 4);
}

#[test]
fn a_step_timeout_ends_no_step_without_way_back_that_was_handed_out() {
    let mut definition = line(SHOP).definition;
    definition["tasks"][2]["metadata"]["ballet"]["timeoutMs"] = json!(60_000);
    let third = || {
        let mut b = Bench::of(Plan::compile(&definition, &Map::new()).unwrap());
        b.answer(done());
        b.answer(done());
        b
    };
    // Its first call is under way, nobody knows whether a byte was written.
    let mut b = third();
    b.wait(61_000);
    assert_eq!((b.x.phase, &b.x.ending), (Phase::Forward, &None));
    b.answer(done());
    assert_eq!(b.x.status, ExecutionStatus::Completed);
    // Handed out, it waits for its next attempt.
    for outcome in [unknown(), waiting(true)] {
        let mut b = third();
        b.run += 59_950;
        b.answer(outcome);
        assert!(b.calls.is_empty());
        b.run += 60;
        b.event(Event::Tick).unwrap();
        assert_eq!((b.x.phase, &b.x.ending), (Phase::Forward, &None));
    }
    // Out of reach, it was not handed out yet.
    let mut b = third();
    b.run += 59_950;
    b.answer(waiting(false));
    b.wait(60);
    assert_eq!(b.x.ending.as_ref().unwrap().status, ExecutionStatus::TimedOut);
    assert_eq!(b.answer(done()), "line-1/s1/0/undo");
}

#[test]
fn while_a_step_without_way_back_is_called_first_nothing_ends_it() {
    let third = || {
        let mut b = Bench::of(line(SHOP));
        b.answer(done());
        b.answer(done());
        b.event(Event::Terminate { reason: "stop".into() }).unwrap_err();
        b.wait(3_600_000);
        assert_eq!((b.x.phase, &b.x.ending), (Phase::Forward, &None), "5: nor does a timeout");
        b
    };
    let mut b = third();
    b.answer(done());
    assert_eq!(b.x.status, ExecutionStatus::Completed, "nothing was undone");

    let mut b = third();
    b.answer(unknown());
    b.event(Event::Terminate { reason: "stop".into() }).unwrap_err();
    b.answer(done());
    assert_eq!(b.x.status, ExecutionStatus::Completed, "nothing was undone");

    // No byte was written: now the timeout, or whoever asks again, is heard.
    let mut b = third();
    b.answer(waiting(false));
    assert_eq!(b.answer(done()), "line-1/s1/0/undo");
}

#[test]
fn a_line_without_undos_is_not_left_half_done() {
    let mut b = Bench::of(line(&[(false, None), (false, None)]));
    b.answer(done());
    b.answer(waiting(false));
    assert!(b.event(Event::Terminate { reason: "stop".into() }).is_err(), "5: it cannot be terminated");
    while b.run < 1_000_000 {
        b.answer(waiting(false));
    }
    assert_eq!((b.x.phase, &b.x.ending), (Phase::Forward, &None), "5: nor does the workflow's timeout end it");
    b.answer(done());
    assert_eq!(b.x.status, ExecutionStatus::Completed);

    let mut b = Bench::of(line(&[(false, None), (false, None)]));
    b.answer(waiting(false));
    b.event(Event::Terminate { reason: "stop".into() }).unwrap();
    assert_eq!(b.answer(done()), "line-1/failed/0", "before its first step was handed out, it can be");
    assert_eq!(b.x.status, ExecutionStatus::Terminated);
}

#[test]
fn a_service_that_is_away_until_the_timeout_is_not_undone() {
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    let mut rests = vec![];
    while b.x.phase == Phase::Forward {
        let before = b.run;
        b.answer(waiting(false));
        rests.push(b.run - before);
    }
    assert_eq!(rests[..8], [0, 100, 200, 400, 800, 1_600, 3_200, 6_400], "3: 100 ms doubling");
    assert_eq!(rests[8], 10_000, "3: at most 10 s");
    assert!((899_000..=910_000).contains(&b.run), "until the workflow's timeout: {}", b.run);
    assert_eq!(b.x.ending.as_ref().unwrap().code, "s1-unavailable");
    assert_eq!(b.answer(done()), "line-1/s0/0/undo", "4: a step that was never handed out is not undone");
    assert_eq!(b.answer(done()), "line-1/failed/0");
    let body = &b.x.tasks.last().unwrap().input["http_request"]["body"];
    assert_eq!(body["reason"], "s1-unavailable");
}

#[test]
fn undos_never_give_up_waiting_but_get_stuck() {
    let stuck_after = |outcomes: Vec<Outcome>| {
        let mut b = Bench::of(line(SHOP));
        b.answer(done());
        b.answer(done());
        b.answer(refused());
        for outcome in outcomes {
            assert_eq!(b.answer(outcome), "line-1/s1/0/undo");
        }
        b
    };
    // 503, unreachable, breaker open: for ever; the workflow's timeout does not hold.
    let mut b = stuck_after(vec![waiting(true); 300]);
    assert!(b.run > 900_000);
    assert_eq!(b.x.compensation_state(), Some("running"));
    assert_eq!(b.answer(done()), "line-1/s1/0/undo");
    assert_eq!(b.answer(done()), "line-1/s0/0/undo");

    for mut b in [stuck_after(vec![unknown(); 10]), stuck_after(vec![refused()])] {
        assert_eq!(b.x.compensation_state(), Some("stuck"));
        assert_eq!(b.alarms.len(), 1, "7: stuck raises an alarm");
        assert_eq!(b.answer(done()), "line-1/s0/0/undo", "7: earlier undos go on");
        assert_eq!((b.x.status, b.x.phase), (ExecutionStatus::Running, Phase::Undoing), "7: `failed:` waits");
        assert_eq!(next_due(&b.plan, &b.x), None, "for a person");
        b.event(Event::Settle { step: Some("s0".into()), set_aside: None }).unwrap_err();
        b.event(Event::Settle { step: None, set_aside: None }).unwrap();
        assert_eq!(b.answer(refused()), "line-1/s1/0/undo", "tried again under the same key");
        b.event(Event::Settle { step: Some("s1".into()), set_aside: Some("refunded by hand".into()) }).unwrap();
        assert_eq!(b.x.compensation_state(), Some("done"));
        assert_eq!(b.answer(done()), "line-1/failed/0");
        assert_eq!(b.x.status, ExecutionStatus::Failed);
        let steps = b.x.compensation(&b.plan).unwrap();
        assert_eq!(steps["steps"][0]["state"], "set-aside");
        assert_eq!(steps["steps"][1]["state"], "done");
        assert!(b.event(Event::Restart { input: None }).is_err(), "7: for ever");
    }
}

#[test]
fn an_undo_that_cannot_be_filled_in_is_never_sent() {
    let undo = json!({ "uri": "service://s0/payments/${s0.output.response.body.id}", "method": "DELETE" });
    let task = json!({
        "name": "s0", "taskReferenceName": "s0", "type": "HTTP", "metadata": { "ballet": { "undo": undo, "attempts": 1 } },
        "inputParameters": { "http_request": { "uri": "service://s0/do", "method": "POST" } },
    });
    let definition = json!({ "name": "line", "tasks": [task], "metadata": { "ballet": {} } });
    let mut b = Bench::of(Plan::compile(&definition, &Map::new()).unwrap());
    b.answer(unknown());
    for tries in 1..=2 {
        assert_eq!(b.x.compensation_state(), Some("stuck"), "nobody knows the payment's id");
        assert!(b.calls.is_empty(), "nothing is sent: {:?}", b.x.tasks.last());
        assert_eq!((b.alarms.len(), b.x.tasks.len()), (tries, tries + 1));
        b.event(Event::Settle { step: None, set_aside: None }).unwrap();
    }
    // It can be filled in by now.
    b.x.tasks[0].output = json!({ "response": { "body": { "id": "p1" } } });
    b.event(Event::Settle { step: None, set_aside: None }).unwrap();
    assert_eq!(b.x.tasks.last().unwrap().input["http_request"]["uri"], "service://s0/payments/p1");
    assert_eq!(b.answer(done()), "line-1/s0/0/undo");
    assert_eq!(b.x.status, ExecutionStatus::Failed);
}

#[test]
fn an_answer_that_nobody_read_is_no_known_answer() {
    let too_large = || crate::outcome::classify(Err(ballet_proxy::CallError::TooLarge), false);
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    b.answer(refused());
    assert_eq!(b.answer(too_large()), "line-1/s0/0/undo");
    assert_eq!(b.answer(done()), "line-1/s0/0/undo", "its status is unknown: tried again");
    assert_eq!(b.answer(too_large()), "line-1/failed/0");
    assert_eq!(b.answer(done()), "line-1/failed/0", "5: `failed:` likewise");
    assert_eq!(b.x.status, ExecutionStatus::Failed);

    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    for _ in 0..3 {
        assert_eq!(b.answer(too_large()), "line-1/s1/0");
    }
    assert_eq!(b.x.ending.as_ref().unwrap().code, "output-too-large");
    assert_eq!(b.answer(done()), "line-1/s1/0/undo", "4: it may have been done");
}

#[test]
fn an_undo_is_sent_what_the_step_was_sent_and_answered() {
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    b.answer(unknown());
    b.answer(unknown());
    b.answer(unknown());
    b.answer(done());
    b.answer(done());
    let bodies: Vec<&Value> =
        b.x.tasks
            .iter()
            .filter(|t| matches!(t.role, Role::Undo(_)))
            .map(|t| &t.input["http_request"]["body"])
            .collect();
    assert_eq!(*bodies[0], json!({ "input": { "id": "1" }, "output": null, "key": "line-1/s1/0" }));
    assert_eq!(*bodies[1], json!({ "input": { "id": "1" }, "output": { "id": "x" }, "key": "line-1/s0/0" }));
}

#[test]
fn terminate_undoes_first_and_waits_for_the_call_under_way() {
    let mut b = Bench::of(line(SHOP));
    b.answer(done());
    b.event(Event::Terminate { reason: "changed my mind".into() }).unwrap();
    assert_eq!(b.x.phase, Phase::Forward, "the call's outcome is awaited");
    assert_eq!(b.answer(refused()), "line-1/s1/0", "it was refused on its first contact: nothing to undo there");
    assert_eq!(b.answer(done()), "line-1/s0/0/undo");
    assert_eq!(b.answer(done()), "line-1/failed/0");
    assert_eq!(b.x.status, ExecutionStatus::Terminated);
    assert!(b.event(Event::Terminate { reason: "again".into() }).is_err());
}

#[test]
fn an_operators_retry_has_new_keys() {
    let mut b = Bench::of(line(SHOP));
    b.answer(refused());
    b.answer(done());
    assert_eq!(b.x.status, ExecutionStatus::Failed);
    b.event(Event::Retry).unwrap();
    assert_eq!(b.answer(done()), "line-1.1/s0/0", "1: `.N` on the execution part");
    b.answer(done());
    b.answer(done());
    assert_eq!(b.x.status, ExecutionStatus::Completed);
    b.event(Event::Restart { input: Some(json!({ "id": "2" })) }).unwrap();
    assert_eq!(b.answer(done()), "line-1.2/s0/0");
    assert_eq!(b.x.tasks[0].input["http_request"]["body"]["id"], "2");
}

fn polled_line() -> Plan {
    let task = |name: &str, ballet: Value| json!({ "name": name, "taskReferenceName": name, "type": "SIMPLE", "inputParameters": {}, "metadata": { "ballet": ballet } });
    let undo = json!({ "uri": "service://pack/undo", "method": "POST" });
    let definition = json!({ "name": "polled", "metadata": { "ballet": {} }, "tasks": [
        task("pack", json!({ "attempts": 2, "undo": undo })), task("ship", json!({ "attempts": 2 })),
    ] });
    Plan::compile(&definition, &Map::new()).unwrap()
}

fn update(verdict: Verdict) -> Update {
    let output = Some(json!({ "ok": true }));
    Update { verdict, output, merge: false, reason: None, callback_after: Duration::ZERO, worker: None }
}

impl Bench {
    /// A worker takes the attempt and says what became of it.
    fn work(&mut self, task: usize, verdict: Verdict) {
        self.event(Event::Polled { task, worker: "w".into() }).unwrap();
        self.event(Event::Updated { task, update: update(verdict) }).unwrap();
    }
}

#[test]
fn a_workers_silence_makes_a_new_attempt_with_the_same_key() {
    let mut b = Bench::of(polled_line());
    b.event(Event::Polled { task: 0, worker: "w1".into() }).unwrap();
    assert_eq!(next_due(&b.plan, &b.x), Some(10_000), "2: response timeout of 10 s");
    b.wait(8_000);
    b.event(Event::Updated { task: 0, update: update(Verdict::Alive) }).unwrap();
    assert_eq!(next_due(&b.plan, &b.x), Some(18_000), "2: extended while it works");
    b.wait(10_000);
    assert_eq!(b.x.tasks[0].status, TaskStatus::TimedOut);
    b.wait(100);
    assert!(b.x.tasks[1].queued, "offered again, with a new id");
    assert_ne!(b.x.tasks[0].id, b.x.tasks[1].id);
    assert_eq!(b.x.key(&b.plan, b.x.tasks[0].role), b.x.key(&b.plan, b.x.tasks[1].role));

    let before = format!("{:?}", b.x);
    b.event(Event::Updated { task: 0, update: update(Verdict::Completed) }).unwrap();
    assert_eq!(before, format!("{:?}", b.x), "a late completion carries a dead id");

    b.event(Event::Polled { task: 1, worker: "w2".into() }).unwrap();
    b.event(Event::Updated { task: 1, update: update(Verdict::Completed) }).unwrap();
    b.event(Event::Polled { task: 2, worker: "w2".into() }).unwrap();
    b.event(Event::Updated { task: 2, update: update(Verdict::Terminal) }).unwrap();
    assert_eq!(b.answer(done()), "polled-1/pack/0/undo".replace("polled-1", "line-1"));
    assert_eq!(b.x.status, ExecutionStatus::Failed);
    let bodies = &b.x.tasks[3].input["http_request"]["body"];
    assert_eq!(bodies["output"], json!({ "ok": true }));
}

#[test]
fn a_worker_cancels_a_step_without_way_back_only_at_first() {
    let polled = || {
        let mut definition = polled_line().definition;
        definition["tasks"][1]["metadata"]["ballet"]["attempts"] = json!("unlimited");
        let mut b = Bench::of(Plan::compile(&definition, &Map::new()).unwrap());
        b.work(0, Verdict::Completed);
        b
    };
    let mut b = polled();
    b.event(Event::Polled { task: 1, worker: "w".into() }).unwrap();
    b.wait(10_000);
    b.wait(200);
    b.work(2, Verdict::Canceled);
    assert_eq!(b.x.phase, Phase::Forward, "5: after an unknown outcome it is no known answer");
    assert_eq!(b.x.tasks[2].status, TaskStatus::Failed);
    b.wait(400);
    b.work(3, Verdict::Completed);
    assert_eq!(b.x.status, ExecutionStatus::Completed);

    let mut b = polled();
    b.work(1, Verdict::Canceled);
    assert_eq!(b.answer(done()), "line-1/pack/0/undo");
    assert_eq!(b.x.status, ExecutionStatus::Terminated);
}

#[test]
fn a_worker_that_was_at_it_refuses_too_late() {
    for (verdicts, ends) in
        [(&[Verdict::Terminal][..], Phase::Ended), (&[Verdict::InProgress, Verdict::Terminal], Phase::Undoing)]
    {
        let mut b = Bench::of(polled_line());
        for verdict in verdicts {
            b.work(0, *verdict);
        }
        assert_eq!(b.x.phase, ends, "4: only a refusal on its first contact needs no undo; {verdicts:?}");
    }
}

// --- a world with seeds ---------------------------------------------------------------------------------------------

/// What one service knows, by key: the chassis' inbox.
#[derive(Default)]
struct World {
    /// Effects in force, by the key of the do.
    done: HashMap<String, u32>,
    tombstones: HashSet<String>,
    /// Effects that were ever applied: more than one for a key is money lost.
    applied: HashMap<String, u32>,
    undo_order: Vec<String>,
    told: u32,
}

impl World {
    /// One exchange as the service sees it. `refuses`: it says no to this step.
    fn exchange(&mut self, key: &str, refuses: bool) -> Outcome {
        if key.ends_with("/failed/0") {
            self.told += 1;
            return done();
        }
        if let Some(of) = key.strip_suffix("/undo") {
            if self.tombstones.insert(of.to_owned()) {
                self.undo_order.push(of.to_owned());
            }
            self.done.remove(of);
            return done();
        }
        if self.tombstones.contains(key) {
            return Outcome::Refused { reason: "gone".into(), code: "http-410".into(), status: 410, output: json!({}) };
        }
        if self.done.contains_key(key) {
            return done();
        }
        if refuses {
            return refused();
        }
        self.done.insert(key.to_owned(), 1);
        *self.applied.entry(key.to_owned()).or_default() += 1;
        done()
    }
}

/// Rows as the engine writes them, and what is left of an execution after a crash.
struct Rows {
    journal: Memory,
    runtime: tokio::runtime::Runtime,
}

impl Rows {
    fn new() -> Self {
        let journal = Memory::default();
        journal.open(tables::ALL).wait().unwrap();
        Self { journal, runtime: tokio::runtime::Builder::new_current_thread().build().unwrap() }
    }

    fn write(&self, plan: &Plan, x: &mut Execution, fx: &Effects, new: bool) {
        self.journal.commit(Batch::of(tables::writes(plan, x, 0, fx, new))).wait().unwrap();
    }

    fn read(&self, id: &ExecutionId) -> Execution {
        self.runtime.block_on(tables::load(&self.journal, id)).unwrap().unwrap().0
    }
}

fn run_world(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let undoable = rng.random_range(0..4);
    let mut steps: Vec<(bool, Option<u32>)> = (0..undoable).map(|_| (true, Some(rng.random_range(1..4)))).collect();
    steps.extend((0..rng.random_range(u32::from(undoable == 0)..3)).map(|_| (false, None)));
    let plan = line(&steps);
    let refuser = rng.random_range(0..steps.len() * 2);
    let impatience = *[0.0, 0.002, 0.05].choose(&mut rng).unwrap();
    let bad_luck = rng.random_range(0.0..0.6);
    let (rows, mut world) = (Rows::new(), World::default());
    let mut x = execution(&plan);
    let mut run = 0_u64;
    // Calls under way, and those that a dead engine had sent: they may arrive at any time later.
    let mut calls: Vec<usize> = vec![];
    let mut ghosts: Vec<String> = vec![];
    let mut next = Event::Start;
    for round in 0.. {
        assert!(round < 20_000, "seed {seed}: it never ends: {x:#?}");
        let new = matches!(next, Event::Start);
        let now = Now { stamp: Timestamp(run as i64), run };
        let fx = decide(&plan, &mut x, next, now).unwrap_or_default();
        // A crash before the commit, right after it, or while what it handed out is under way.
        let before = fx.durable && !new && rng.random_bool(0.03);
        if fx.durable && !before {
            rows.write(&plan, &mut x, &fx, new);
        }
        let crashed = before || rng.random_bool(0.05);
        if x.phase == Phase::Ended && !crashed {
            break;
        }
        if !before {
            calls.extend(fx.calls);
        }
        if crashed {
            // The services may see it now, or much later.
            ghosts.extend(calls.drain(..).map(|t| x.key(&plan, x.tasks[t].role)));
            x = rows.read(&x.id);
            if x.phase == Phase::Ended {
                break;
            }
            next = Event::Recover;
            continue;
        }
        if !ghosts.is_empty() && rng.random_bool(0.2) {
            let key = ghosts.swap_remove(rng.random_range(0..ghosts.len()));
            world.exchange(&key, false);
        }
        if rng.random_bool(impatience) {
            next = Event::Terminate { reason: "by chance".into() };
            continue;
        }
        if x.compensation_state() == Some("stuck") && x.open_roles().next().is_none() {
            next = Event::Settle { step: None, set_aside: None };
            continue;
        }
        if calls.is_empty() {
            let due = next_due(&plan, &x).unwrap_or_else(|| panic!("seed {seed}: nothing is due: {x:#?}"));
            assert!(due > run || round < 2 || x.tasks.iter().any(|t| t.out.is_none()), "seed {seed}: stands still");
            run = run.max(due);
            next = Event::Tick;
            continue;
        }
        run += rng.random_range(0..50);
        let luck = !rng.random_bool(bad_luck);
        let task = calls.swap_remove(rng.random_range(0..calls.len()));
        let role = x.tasks[task].role;
        let key = x.key(&plan, role);
        // A step without way back that refuses for ever after a lost answer would be tried for ever, as the contract says.
        let first = x.series(role).is_none_or(|s| !s.contacted);
        let refuses = matches!(role, Role::Do(i) if i == refuser && (steps[i].1.is_some() || (first && luck)));
        let outcome = if !luck {
            match rng.random_range(0..5) {
                0 => waiting(false),
                1 => waiting(true),
                2 => unknown(),
                // The answer was lost after the work was done; or it is done much later.
                3 => {
                    world.exchange(&key, refuses);
                    unknown()
                }
                _ => {
                    ghosts.push(key.clone());
                    unknown()
                }
            }
        } else {
            // Everything twice: the second time changes nothing.
            let first = world.exchange(&key, refuses);
            let again = world.exchange(&key, refuses);
            assert_eq!(first, again, "seed {seed}: the model's services are idempotent");
            first
        };
        next = Event::Answered { task, outcome };
    }
    // Whatever was still on its way arrives now.
    for key in ghosts {
        world.exchange(&key, false);
    }
    let in_force = |i: usize| world.done.contains_key(&format!("line-1/s{i}/0"));
    match x.status {
        ExecutionStatus::Completed => {
            assert!((0..steps.len()).all(in_force), "seed {seed}: completed, but not all of it is done");
            assert!(world.undo_order.is_empty() && world.told == 0, "seed {seed}: nothing was undone");
        }
        _ => {
            let left: Vec<usize> = (0..steps.len()).filter(|i| steps[*i].0 && in_force(*i)).collect();
            assert!(left.is_empty(), "seed {seed}: failed, but {left:?} are still done: {x:#?}");
            assert!(world.told > 0, "seed {seed}: `failed:` was told");
            let mut order = world.undo_order.clone();
            order.sort();
            order.reverse();
            assert_eq!(world.undo_order, order, "seed {seed}: in reverse order");
        }
    }
    assert!(world.applied.values().all(|n| *n == 1), "seed {seed}: an effect was applied twice");
    assert!(x.tasks.iter().all(|t| t.status.is_final()), "seed {seed}: every attempt has ended");
    let stored = rows.read(&x.id);
    assert_eq!(format!("{:?}", stored.tasks), format!("{:?}", x.tasks), "seed {seed}: the rows are what it was");
}

#[test]
fn every_saga_completes_or_is_undone() {
    if let Ok(seed) = std::env::var("BALLET_SEED") {
        return run_world(seed.parse().unwrap());
    }
    let first = StdRng::seed_from_u64(0x5a6a).next_u64() % 1_000_000;
    println!("seeds {first}..{}; BALLET_SEED=N runs one of them", first + 600);
    (first..first + 600).for_each(run_world);
}
