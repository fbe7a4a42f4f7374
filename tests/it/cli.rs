//! The command line: exit codes, JSON, and what a running system is told to do.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ballet_tests::{Ballet, repository, request};
use serde_json::{Value, json};

use crate::small::{Ran, Small, alive, gone, until};

const FREE: [&str; 4] = ["--set", "gateway.listen=127.0.0.1:0", "--set", "platform.listen=127.0.0.1:0"];

const TWO: &str = "
system: small
services:
  echo:       { run: <service> say hello-there, store: sqlite }
  stock-room: { run: <service> }
gateway:
  routes:
    GET /who: echo
";

/// A system that was left running. Dropping it takes it down.
struct Detached<'a>(&'a Small);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        self.0.run(&["down"]);
    }
}

fn detach<'a>(small: &'a Small, more: &[&str]) -> (Detached<'a>, Ran) {
    let down = Detached(small);
    let words: Vec<&str> = ["up", "--detach"].into_iter().chain(FREE).chain(more.iter().copied()).collect();
    let ran = small.run(&words);
    (down, ran)
}

/// The rows of a service in `ps --json`, as `ballet` in the manifest's directory prints it.
fn rows(small: &Small, service: &str) -> Vec<Value> {
    let ps = small.run(&["ps", "--json"]).expect(0).json();
    let all = ps["services"].as_array().expect("rows").iter();
    all.filter(|row| row["name"] == service).cloned().collect()
}

fn pids(ps: &Value) -> Vec<i64> {
    ps["services"].as_array().expect("rows").iter().map(|row| row["pid"].as_i64().expect("a pid")).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn ps_prints_the_document_that_machines_rely_on() {
    needs_python!();
    let small = Small::new(TWO);
    assert_eq!(small.run(&["ps", "--json"]).expect(3).out, "", "nothing runs yet");
    let system = small.up();
    let ps = small.run(&["ps", "--json"]).expect(0).json();

    assert_eq!(keys(&ps), ["system", "pid", "profile", "ready", "addresses", "services"]);
    assert_eq!((&ps["system"], &ps["profile"], &ps["ready"]), (&json!("small"), &json!("default"), &json!(true)));
    assert_eq!(ps["pid"], system.pid());
    let url = |address| format!("http://{address}");
    assert_eq!(ps["addresses"], json!({"gateway": url(system.gateway), "platform": url(system.platform)}));

    let [echo, other] = ps["services"].as_array().expect("rows").as_slice() else { panic!("two instances: {ps}") };
    let mut expected = vec!["name", "instance", "state", "ready", "pid", "address", "version", "sidecar", "restarts"];
    expected.extend(["breaker", "rssBytes", "store", "log"]);
    assert_eq!(keys(echo), expected);
    expected.retain(|key| *key != "store");
    assert_eq!(keys(other), expected, "no store, no key");
    let who = system.at_gateway("GET", "/who").send().await.expect(200).json;
    let fixed = json!({
        "name": "echo", "instance": 1, "state": "running", "ready": true, "version": "v1", "restarts": 0,
        "breaker": "closed", "store": "sqlite:.ballet/services/echo/echo.db", "log": ".ballet/services/echo/echo-1.log",
        "pid": who["pid"],
    });
    for (key, value) in fixed.as_object().expect("an object") {
        assert_eq!(&echo[key], value, "{key}");
    }
    assert!(echo["rssBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{echo}");
    assert!(echo["sidecar"]["http"].as_u64().is_some_and(|port| port > 0), "{echo}");
    let address = echo["address"].as_str().and_then(|a| a.strip_prefix("http://")).expect("a URL");
    let direct = request(address.parse().expect("an address"), "GET", "/who").send().await;
    assert_eq!(direct.json["pid"], who["pid"]);

    let table = small.run(&["ps"]).expect(0).out;
    assert_eq!(table.lines().count(), 4, "two lines of heads, two instances:\n{table}");
}

#[test]
fn a_second_up_is_refused_with_the_firsts_pid() {
    needs_python!();
    let small = Small::new(TWO);
    let system = small.up();
    let pid = system.pid().to_string();
    for more in [None, Some("--detach")] {
        let words: Vec<&str> = ["up"].into_iter().chain(FREE).chain(more).collect();
        let second = small.run(&words).expect(1);
        assert!(second.err.contains(&pid) && second.err.contains("ballet down"), "{}", second.err);
    }
    assert_eq!(system.ps()["ready"], true, "the first one does not mind");
}

#[test]
fn services_are_restarted_stopped_started_and_scaled() {
    needs_python!();
    let small = Small::new(TWO);
    let _system = small.up();
    let before = rows(&small, "echo");

    small.run(&["restart", "echo"]).expect(0);
    let after = rows(&small, "echo");
    assert_ne!(after[0]["pid"], before[0]["pid"]);
    assert!(!alive(before[0]["pid"].as_i64().expect("a pid")));
    assert_eq!((&after[0]["address"], &after[0]["restarts"]), (&before[0]["address"], &json!(0)), "asked for");

    small.run(&["stop", "echo"]).expect(0);
    let stopped = rows(&small, "echo");
    assert_eq!(
        (&stopped[0]["state"], &stopped[0]["ready"], &stopped[0]["pid"]),
        (&json!("stopped"), &json!(false), &Value::Null)
    );
    small.run(&["start", "echo"]).expect(0);
    assert_eq!(rows(&small, "echo")[0]["state"], "running");

    small.run(&["scale", "echo=2"]).expect(0);
    let two = rows(&small, "echo");
    let seen: Vec<_> = two.iter().map(|row| (row["instance"].as_u64(), row["ready"].as_bool())).collect();
    assert_eq!(seen, [(Some(1), Some(true)), (Some(2), Some(true))]);
    assert_ne!(two[0]["address"], two[1]["address"]);
    small.run(&["scale", "echo=1"]).expect(0);
    assert_eq!(rows(&small, "echo").len(), 1);
    assert!(!alive(two[1]["pid"].as_i64().expect("a pid")));

    for (words, said) in [
        (["restart", "ech"], "no service named `ech`"),
        (["scale", "echo"], "`echo` is not SERVICE=N"),
        (["scale", "echo=many"], "`echo=many` is not SERVICE=N"),
        (["logs", "ech"], "no service named `ech`"),
    ] {
        let wrong = small.run(&words).expect(2);
        assert!(wrong.err.contains(said), "{words:?}: {}", wrong.err);
    }
}

#[test]
fn logs_are_printed_and_followed() {
    needs_python!();
    let small = Small::new(TWO);
    let _system = small.up();
    let printed = small.run(&["logs", "echo"]).expect(0).out;
    assert!(printed.contains("echo-1") && printed.contains("hello-there"), "{printed}");
    assert!(small.run(&["logs"]).expect(0).out.contains("hello-there"), "everybody's");
    assert!(!small.run(&["logs", "stock-room"]).expect(0).out.contains("hello-there"), "only its own");

    let mut follow = small.command(&["logs", "-f", "-n", "0", "echo"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(follow.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    small.run(&["restart", "echo"]).expect(0);
    assert!(lines.any(|line| line.contains("hello-there")), "what it says again comes by itself");
    small.run(&["down"]).expect(0);
    assert!(follow.wait().expect("it ends").success(), "and ends with the system");
}

#[test]
fn detach_returns_when_all_is_ready_and_down_leaves_nothing() {
    needs_python!();
    let small = Small::new(TWO);
    let (_down, up) = detach(&small, &[]);
    let up = up.expect(0);
    assert!(up.err.contains("ready: http://127.0.0.1:"), "{}", up.err);
    let ps = small.run(&["ps", "--json"]).expect(0).json();
    assert_eq!(ps["ready"], true);

    small.run(&["down"]).expect(0);
    let left: Vec<i64> = pids(&ps).into_iter().chain(ps["pid"].as_i64()).filter(|pid| alive(*pid)).collect();
    assert_eq!(left, [0; 0], "still there when `down` returned");
    let run: Vec<_> = std::fs::read_dir(small.state().join("run")).expect("a folder").flatten().collect();
    assert!(run.is_empty(), "{run:?}");
    assert!(small.state().join("platform/registry.db").exists(), "the state is kept");
    small.run(&["ps"]).expect(3);
    small.run(&["down"]).expect(3);
    small.run(&["logs"]).expect(3);

    let unsure = small.command(&["down", "--wipe"]).stdin(Stdio::null()).output().expect("ballet runs");
    Ran::of(&unsure).expect(1);
    assert!(small.state().exists(), "nobody said yes");
    small.run(&["down", "--wipe", "--yes"]).expect(0);
    assert!(!small.state().exists());
}

#[test]
fn detach_says_what_fails_and_why() {
    needs_python!();
    let small = Small::new(
        "
services:
  echo:   { run: <service> }
  broken: { run: <service>, init: [\"sh -c 'echo no shelves; exit 3'\"] }
",
    );
    let (_down, up) = detach(&small, &[]);
    let up = up.expect(1);
    assert!(up.err.contains("broken is not ready: ") && up.err.contains("exited with code 3"), "{}", up.err);
    let ps = small.run(&["ps", "--json"]).expect(0).json();
    assert_eq!(ps["ready"], false);
    let [broken, echo] = ps["services"].as_array().expect("rows").as_slice() else { panic!("two rows: {ps}") };
    assert_eq!(echo["name"], "echo");
    assert!(echo["pid"].as_i64().is_some_and(alive), "the others go on: {echo}");
    assert_eq!((&broken["state"], &broken["ready"]), (&json!("failed"), &json!(false)));
    assert!(broken["reason"].as_str().is_some_and(|reason| reason.contains("no shelves")), "{broken}");
}

#[test]
fn detach_does_not_wait_for_what_never_comes() {
    needs_python!();
    let small = Small::new("services:\n  echo: { run: <service> }\n  lost: { run: no-such-program }\n");
    let (_down, up) = detach(&small, &[]);
    let up = up.expect(1);
    assert!(up.err.contains("lost is not ready: no program `no-such-program`"), "{}", up.err);
    assert_eq!(rows(&small, "echo")[0]["state"], "running", "the others go on");
}

#[test]
fn manifests_are_checked_without_starting_anything() {
    needs_python!();
    let small = Small::new(TWO);
    let fine = small.run(&["check"]).expect(0);
    assert!(fine.out.contains("2 services") && fine.err.is_empty(), "{fine:?}");

    small.edit("services:\n  echo: { run: true, instnces: 2 }\ngateway:\n  routes:\n    GET /who: eco\n");
    for words in [&["check"][..], &["up"], &["config", "--effective"]] {
        let bad = small.run(words).expect(2);
        for mistake in ["ballet.yaml:2:22: ", "ballet.yaml:5:15: "] {
            assert!(bad.err.lines().any(|line| line.starts_with(mistake)), "{words:?}, {mistake}\n{}", bad.err);
        }
        assert!(bad.err.contains("`instances`") && bad.err.contains("`echo`"), "the nearest names\n{}", bad.err);
        assert_eq!(bad.out, "");
    }
    assert!(!small.state().exists(), "nothing was started");
    small.run(&["check", "elsewhere.yaml"]).expect(2);
    small.run(&["chekc"]).expect(2);

    small.edit("services:\n  echo: { run: true }\ngateway:\n  routes:\n    GET /a/{x}: echo\n    GET /a/{y}: echo\n");
    assert!(small.run(&["check"]).expect(2).err.contains("ballet.yaml:"), "routes that nobody can tell apart");
}

#[test]
fn values_are_shown_with_their_origin() {
    needs_python!();
    let small = Small::new(TWO);
    let words = ["config", "--effective", "--set", "services.echo.instances=3"];
    let mut command = small.command(&words);
    let output = command.env("BALLET_GATEWAY__LISTEN", "127.0.0.1:9999").output().expect("ballet runs");
    let shown = Ran::of(&output).expect(0).out;
    let line = |key: &str| shown.lines().find(|line| line.trim_start().starts_with(key)).unwrap_or_default().to_owned();
    assert!(line("listen: 127.0.0.1:9999").contains("BALLET_GATEWAY__LISTEN"), "{shown}");
    assert!(line("instances: 3").contains("--set"), "{shown}");
    assert!(line("store:").contains("ballet.yaml:4:"), "{shown}");
    assert!(line("pool:").contains("# default"), "{shown}");
    let json = small.run(&["config", "--effective", "--json"]).expect(0).json();
    assert!(json.to_string().contains("stock-room"), "{json}");
}

#[test]
fn the_schema_is_the_committed_one() {
    needs_python!();
    let small = Small::new(TWO);
    let printed = small.run(&["schema"]).expect(0).json();
    let committed = repository().join("crates/ballet-manifest/schema/ballet.schema.json");
    let committed: Value = serde_json::from_slice(&std::fs::read(committed).expect("the file")).expect("JSON");
    assert_eq!(printed, committed);
}

#[test]
fn codes_and_requests_are_explained() {
    needs_python!();
    let small = Small::new(TWO);
    let page = small.run(&["explain", "mf001"]).expect(0).out;
    assert!(page.starts_with("MF001 ") && page.contains("What to do:") && !page.contains(".."), "{page}");
    small.run(&["explain", "XX999"]).expect(2);
    small.run(&["explain", "GET", "/who"]).expect(3);

    let _system = small.up();
    let known = small.run(&["explain", "GET", "/who"]).expect(0).out;
    assert!(known.contains("`GET /who`") && known.contains("ballet.yaml:8:5") && known.contains("`echo`"), "{known}");
    let unknown = small.run(&["explain", "GET", "http://localhost/nowhere"]).expect(0).out;
    assert!(unknown.contains("404") && !unknown.contains("echo"), "{unknown}");
}

#[tokio::test]
async fn workflows_are_listed_shown_and_settled() {
    needs_python!();
    let small = Small::new(
        "
services:
  echo: { run: <service> }
workflows:
  trip:
    steps:
      - book: { call: POST echo:/book, undo: POST echo:/cancel/refused }
      - pay:  { call: POST echo:/pay/refused }
",
    );
    let system = small.up();
    let wish = json!({"name": "trip", "id": "trip-7", "input": {}});
    let _ = system.at_platform("POST", "/ballet/v1/workflows").json(wish).send().await.expect(201);
    let read = || system.at_platform("GET", "/api/workflow/trip-7");
    until(read(), |document| document.json["compensation"]["state"] == "stuck").await;

    let list = small.run(&["workflows", "list"]).expect(0).out;
    assert!(list.contains("trip-7") && list.contains("RUNNING") && list.contains("stuck"), "{list}");
    assert!(small.run(&["workflows", "list", "--json"]).expect(0).json().to_string().contains("trip-7"));
    let page = small.run(&["workflows", "show", "trip-7"]).expect(0).out;
    for word in ["book", "COMPLETED", "pay", "FAILED", "stuck"] {
        assert!(page.contains(word), "`{word}` is missing\n{page}");
    }
    assert_eq!(small.run(&["workflows", "show", "trip-7", "--json"]).expect(0).json()["workflowId"], "trip-7");
    small.run(&["workflows", "show", "trip-8"]).expect(1);
    small.run(&["workflows", "undo", "trip-7"]).expect(2);

    small.run(&["workflows", "undo", "trip-7", "--set-aside", "cancelled by phone"]).expect(0);
    let settled = until(read(), |document| document.json["status"] == "FAILED").await.json;
    assert_eq!(settled["compensation"]["state"], "done", "{settled:#}");
    small.run(&["workflows", "undo", "trip-7", "--retry"]).expect(1);
}

#[test]
fn a_taken_port_names_its_holder_and_the_key() {
    needs_python!();
    let small = Small::new(TWO);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let me = format!("pid {}", std::process::id());
    for key in ["gateway.listen", "platform.listen"] {
        let set = format!("{key}={address}");
        let words: Vec<&str> = ["up"].into_iter().chain(FREE).chain(["--set", &set]).collect();
        let refused = small.run(&words).expect(1);
        for part in [address.as_str(), me.as_str(), key] {
            assert!(refused.err.contains(part), "{key}: `{part}` is missing\n{}", refused.err);
        }
    }
}

#[tokio::test]
async fn a_service_has_the_environment_it_was_promised() {
    needs_python!();
    let small = Small::new(
        "
services:
  echo:       { run: <service>, store: sqlite, env: { GREETING: hi there, OTEL_SERVICE_NAME: renamed } }
  stock-room: { run: <service> }
gateway:
  routes:
    GET /echo/env: { to: \"echo:/env\" }
    GET /stock/env: { to: \"stock-room:/env\" }
",
    );
    let system = small.up();
    let row = system.instance("echo");
    let env = system.at_gateway("GET", "/echo/env").send().await.expect(200).json;
    let own = |name: &str| env[name].as_str().unwrap_or_else(|| panic!("{name} is missing: {env}")).to_owned();

    let port = row["address"].as_str().and_then(|url| url.rsplit(':').next()).expect("a port").to_owned();
    let sidecar = row["sidecar"]["http"].to_string();
    let platform = format!("http://{}", system.platform);
    let state = std::fs::canonicalize(small.state()).expect("it is there");
    for (name, value) in [
        ("PORT", port.clone()),
        ("APP_PORT", port),
        ("APP_ID", "echo".into()),
        ("BALLET_SERVICE", "echo".into()),
        ("BALLET_INSTANCE", "1".into()),
        ("BALLET_URL", format!("http://127.0.0.1:{sidecar}")),
        ("DAPR_HTTP_PORT", sidecar),
        ("BALLET_TOKEN", own("DAPR_API_TOKEN")),
        ("BALLET_PLATFORM", platform.clone()),
        ("CONDUCTOR_SERVER_URL", format!("{platform}/api")),
        ("STORE_URL", format!("sqlite:{}", state.join("services/echo/echo.db").display())),
        ("GREETING", "hi there".into()),
        ("OTEL_SERVICE_NAME", "renamed".into()),
    ] {
        assert_eq!(own(name), value, "{name}");
    }
    assert!(!own("BALLET_TOKEN").is_empty() && !own("APP_API_TOKEN").is_empty());
    assert_eq!(env.get("ECHO_URL"), None, "no way to itself");

    let there = own("STOCK_ROOM_URL");
    let there = there.strip_prefix("http://").expect("plain HTTP");
    let (address, path) = there.split_at(there.find('/').unwrap_or(there.len()));
    let called = request(address.parse().expect("an address"), "GET", &format!("{path}/who")).send().await;
    assert_eq!(called.expect(200).json["service"], "stock-room");

    let other = system.at_gateway("GET", "/stock/env").send().await.expect(200).json;
    assert_eq!(other["OTEL_SERVICE_NAME"], "stock-room");
    assert!(!other.to_string().contains("echo.db"), "nobody else is told of the store: {other}");
    assert_ne!(other["BALLET_TOKEN"], env["BALLET_TOKEN"]);
}

/// Waits until a file says something; panics with what it says else.
async fn until_said(file: &Path, wanted: &str) -> String {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.contains(wanted) {
            return text;
        }
        assert!(tokio::time::Instant::now() < deadline, "`{wanted}` is missing in\n{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn credentials_of_one_service_reach_no_other() {
    needs_python!();
    let small = Small::new(
        "
services:
  echo:       { run: <service>, store: \"postgres://echo:${env.ECHO_PASSWORD}@db/echo\" }
  stock-room: { run: <service>, env: { PIN: { env: STOCK_PIN } } }
gateway:
  routes:
    GET /echo/env: { to: \"echo:/env\" }
    GET /stock/env: { to: \"stock-room:/env\" }
",
    );
    let _down = Detached(&small);
    let words: Vec<&str> = ["up", "--detach"].into_iter().chain(FREE).collect();
    let mut up = small.command(&words);
    up.env("ECHO_PASSWORD", "swordfish").env("STOCK_PIN", "0451").env("PLAIN", "for all");
    Ran::of(&up.output().expect("ballet runs")).expect(0);
    let ps = small.run(&["ps", "--json"]).expect(0);
    assert!(!ps.out.contains("swordfish"), "{}", ps.out);
    let gateway = ps.json()["addresses"]["gateway"].as_str().expect("a URL").replace("http://", "");
    let env = async |path: &str| request(gateway.parse().expect("an address"), "GET", path).send().await.expect(200);
    let (echo, stock) = (env("/echo/env").await, env("/stock/env").await);
    assert_eq!(echo.json["STORE_URL"], "postgres://echo:swordfish@db/echo");
    assert_eq!((&stock.json["PIN"], &stock.json["PLAIN"]), (&json!("0451"), &json!("for all")));
    assert!(!stock.text.contains("swordfish"), "{}", stock.text);
    assert!(!echo.text.contains("0451"), "{}", echo.text);
}

#[tokio::test]
async fn a_reload_says_what_it_cannot_change() {
    needs_python!();
    let small = Small::new(TWO);
    let system = small.up();
    let log = small.state().with_extension("log");
    small.edit(&TWO.replace("/who", "/whoever"));
    let said = until_said(&log, "reloaded\n").await;
    assert!(!said.contains("next `ballet up`"), "{said}");
    until(system.at_gateway("GET", "/who"), |reply| reply.status == 404).await;

    small.edit(
        &TWO.replace("services:\n", "services:\n  fresh: { run: <service> }\n").replace("say hello", "say goodbye"),
    );
    let said = until_said(&log, "reloaded; ").await;
    let line = said.lines().last().expect("a line");
    assert!(line.contains("(echo, fresh)") && line.contains("next `ballet up`"), "{line}");

    small.edit("services: [");
    until_said(&log, "not reloaded; what ran before goes on").await;
    assert_eq!(system.at_gateway("GET", "/who").send().await.status, 200);
}

#[tokio::test]
async fn nothing_outlives_a_killed_ballet_and_its_ports_are_free_at_once() {
    needs_python!();
    let small = Small::new("");
    let file = small.path("grandchildren");
    small.edit(&format!(
        "
services:
  echo: {{ run: \"<service> grandchild '{}'\" }}
gateway:
  routes:
    GET /who: echo
",
        file.display()
    ));
    let mut system = small.up();
    let mut all = pids(&system.ps());
    let grandchildren = std::fs::read_to_string(&file).expect("written before it was ready");
    all.extend(grandchildren.split_whitespace().map(|pid| pid.parse::<i64>().expect("a pid")));
    assert!(all.len() == 3 && all.iter().all(|pid| alive(*pid)), "{all:?}");
    // Connections that a killed process leaves behind must not keep its ports.
    let _open = tokio::net::TcpStream::connect(system.gateway).await.expect("it listens");
    let _ = system.at_gateway("GET", "/who").send().await.expect(200);

    system.kill();
    gone(&all, Duration::from_secs(5)).await;
    let (gateway, platform) = (system.gateway, system.platform);
    system.again();
    assert_eq!((system.gateway, system.platform), (gateway, platform));
    until(system.at_gateway("GET", "/who"), |reply| reply.status == 200).await;

    // Gently ended, with a connection open, they are free at once too.
    let _open = tokio::net::TcpStream::connect(system.gateway).await.expect("it listens");
    small.run(&["down"]).expect(0);
    let set = |key: &str, address| format!("{key}={address}");
    let sets = [set("gateway.listen", gateway), set("platform.listen", platform)];
    let second = Ballet::start(&small.manifest(), &small.state(), &[&sets[0], &sets[1]]);
    assert_eq!((second.gateway, second.platform), (gateway, platform));
}
