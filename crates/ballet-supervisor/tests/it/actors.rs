//! What this binary plays besides the tests.

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use ballet_supervisor::{Config, Limits, ServiceSpec, StateDir, Supervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A service: answers 200 to everything on `$PORT`. Options: `ignore-term`, `children FILE` (starts two sleepers, one with a session of
/// its own, and writes all pids to the file), `say TEXT` (prints it), `env` (prints the environment).
pub fn web(args: &[OsString]) -> ExitCode {
    let has = |word: &str| args.iter().any(|arg| arg == word);
    let after = |word: &str| args.iter().skip_while(|arg| *arg != word).nth(1);
    let own = std::env::current_exe().unwrap();
    if let Some(text) = after("say") {
        println!("{}", text.to_string_lossy());
        eprintln!(
            "{{\"level\":\"warn\",\"message\":\"from stderr\",\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}}"
        );
    }
    if has("env") {
        for (name, value) in std::env::vars() {
            println!("{name}={value}");
        }
        println!("that was all");
    }
    if let Some(file) = after("children") {
        let pids = [&["sleeper"][..], &["sleeper", "session"]]
            .map(|words| Command::new(&own).args(words).spawn().unwrap().id());
        let parent = std::os::unix::process::parent_id();
        let text = format!("{} {} {} {parent}\n", std::process::id(), pids[0], pids[1]);
        // Whole or not at all: a test is waiting for it.
        let fresh = std::path::Path::new(file).with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, file).unwrap();
    }
    let ignores = has("ignore-term");
    runtime().block_on(async {
        let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
        let Ok(listener) = tokio::net::TcpListener::bind(("127.0.0.1", port)).await else {
            eprintln!("port {port} is taken");
            return ExitCode::from(3);
        };
        let mut term = signal(SignalKind::terminate()).unwrap();
        loop {
            tokio::select! {
                connection = listener.accept() => {
                    let (mut stream, _) = connection.unwrap();
                    tokio::spawn(async move {
                        let mut head = [0; 1024];
                        let _ = stream.read(&mut head).await;
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                    });
                }
                _ = term.recv() => {
                    println!("term");
                    if !ignores {
                        return ExitCode::SUCCESS;
                    }
                }
            }
        }
    })
}

/// A grandchild that hears no TERM; with `session` it has left group and session.
pub fn sleeper(args: &[OsString]) -> ExitCode {
    if !args.is_empty() {
        rustix::process::setsid().unwrap();
    }
    runtime().block_on(async {
        let _deaf = signal(SignalKind::terminate()).unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
    });
    ExitCode::SUCCESS
}

/// A `ballet up` to be killed: `host DIR FILE [WORD…]` runs one service with children in DIR and says so.
pub fn host(args: &[OsString]) -> ExitCode {
    let own = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let mut words: Vec<String> = vec![own, "web".into(), "children".into()];
    words.extend(args[1..].iter().map(|arg| arg.to_string_lossy().into_owned()));
    let dir = std::path::PathBuf::from(&args[0]);
    runtime().block_on(async {
        let state = Arc::new(StateDir::open(dir.join(".ballet")).unwrap());
        let spec = ServiceSpec::run("orders".parse().unwrap(), words, &dir);
        let limits = Limits { vanish_grace: Duration::from_millis(300), ..Limits::default() };
        let config = Config { limits, ..Config::new("shop", &dir) };
        let handle = Supervisor::start(config, state, vec![spec], Arc::new(()), Arc::new(())).await.unwrap();
        assert!(handle.settled("orders", Duration::from_secs(20)).await);
        println!("ready");
        std::io::stdout().flush().unwrap();
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}
