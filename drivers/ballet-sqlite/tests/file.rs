//! What the suite cannot ask: crashes, closing, foreign and later files, counting of syncs.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ballet_sqlite::{FORMAT, Options, Sqlite};
use ballet_store::{Batch, Journal, Kind, Op, Query, StoreError, Table, row};

static COUNT: Table = Table { name: "count", key: 1, columns: &[("n", Kind::Int)], indexes: &[] };
/// Names the file to the process that gets killed.
const FILE: &str = "BALLET_TEST_SQLITE_FILE";

fn open(file: &Path) -> Sqlite {
    let journal = Sqlite::open(file, Options::default()).expect("the file opens");
    journal.open(&[&COUNT]).wait().expect("the table is there");
    journal
}

fn put(n: i64) -> Batch {
    Batch::of(vec![Op::Put(&COUNT, row![n])])
}

fn rows(journal: &Sqlite) -> Vec<i64> {
    let (mut found, mut query) = (vec![], Query::of(&COUNT));
    loop {
        let page = journal.scan(query.clone()).wait().expect("a page");
        found.extend(page.rows.iter().map(|r| r[0].int()));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return found,
        }
    }
}

/// Not a test by itself: the process that [`what_was_acknowledged_survives_a_kill`] kills. Says every number that is
/// acknowledged, with many commits under way at any moment.
#[test]
fn commits_until_killed() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let journal = open(Path::new(&file));
    let mut waiting = std::collections::VecDeque::new();
    for n in 0.. {
        waiting.push_back((n, journal.commit(put(n))));
        if waiting.len() == 64 {
            let (n, reply) = waiting.pop_front().expect("there are 64");
            reply.wait().expect("written");
            let mut out = std::io::stdout().lock();
            writeln!(out, "ack {n}").expect("the parent listens");
            out.flush().expect("the parent listens");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("journal.db");
    let mut acknowledged = -1;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["commits_until_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(FILE, &file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        let mut seen = 0;
        for line in said.lines() {
            let line = line.expect("text");
            // The first line shares its line with the harness's own words.
            let Some((_, n)) = line.split_once("ack ") else { continue };
            acknowledged = acknowledged.max(n.parse::<i64>().expect("a number"));
            seen += 1;
            if seen == 300 * round {
                child.kill().expect("killed");
            }
        }
        child.wait().expect("ended");
        assert!(seen >= 300 * round, "it was killed while it worked");
        let journal = open(&file);
        let found = rows(&journal);
        assert!(found.starts_with(&(0..=acknowledged).collect::<Vec<_>>()), "all {acknowledged} and no hole");
        journal.close().wait().expect("closed");
    }
}

#[test]
fn batches_that_wait_share_a_sync() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = open(&directory.path().join("journal.db"));
    let before = journal.stats();
    let replies: Vec<_> = (0..2000).map(|n| journal.commit(put(n))).collect();
    replies.into_iter().for_each(|reply| reply.wait().expect("written"));
    let after = journal.stats();
    assert_eq!(after.batches - before.batches, 2000);
    assert!(after.commits - before.commits < 500, "{after:?}");
}

#[test]
fn a_full_queue_refuses_and_writes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("journal.db");
    let journal = Sqlite::open(&file, Options { queue: 4, ..Options::default() }).expect("the file opens");
    journal.open(&[&COUNT]).wait().expect("the table is there");
    let replies: Vec<_> = (0..5000).map(|n| (n, journal.commit(put(n)))).collect();
    let mut written = vec![];
    let mut refused = 0;
    for (n, reply) in replies {
        match reply.wait() {
            Ok(()) => written.push(n),
            Err(StoreError::Failed(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0, "four places are not enough for five thousand");
    assert_eq!((rows(&journal), journal.stats().refused), (written, refused));
}

#[test]
fn closing_writes_what_was_queued_and_leaves_one_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("journal.db");
    let journal = open(&file);
    (0..100).for_each(|n| drop(journal.commit(put(n))));
    journal.close().wait().expect("closed");
    assert!(matches!(journal.commit(put(100)).wait(), Err(StoreError::Unknown(_))), "closed is closed");
    let log = std::fs::metadata(directory.path().join("journal.db-wal")).map_or(0, |m| m.len());
    assert_eq!(log, 0, "the log was carried over");
    assert_eq!(rows(&open(&file)).len(), 100);
}

#[test]
fn later_and_foreign_files_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let (later, foreign) = (directory.path().join("later.db"), directory.path().join("foreign.db"));
    drop(open(&later));
    let sqlite = |file: &Path, sql: &str| rusqlite::Connection::open(file).and_then(|c| c.execute_batch(sql));
    sqlite(&later, &format!("PRAGMA user_version={}", FORMAT + 1)).expect("written");
    sqlite(&foreign, "CREATE TABLE theirs(x)").expect("written");
    for (file, why) in [(&later, "later version"), (&foreign, "another program")] {
        match Sqlite::open(file, Options::default()) {
            Err(StoreError::Shape(text)) => assert!(text.contains(why), "{text}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{} was opened", file.display()),
        }
    }
}

#[test]
fn alone_on_the_file_old_leases_are_void() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("journal.db");
    let hour = Duration::from_secs(3600);
    let claim = |sole: bool, owner: &str| {
        let journal = Sqlite::open(&file, Options { sole, ..Options::default() }).expect("the file opens");
        journal.claim(&[7], owner, hour).wait().expect("asked")
    };
    assert_eq!(claim(false, "first"), [(7, 1)]);
    assert_eq!(claim(false, "second"), []);
    assert_eq!(claim(true, "third"), [(7, 2)]);
}
