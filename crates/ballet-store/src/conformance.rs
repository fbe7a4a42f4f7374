//! One suite for each seam; every driver passes it, the memory ones included.
//!
//! A driver's `tests/conformance.rs` is one line: `ballet_store::journal_conformance!(SqliteRig::new());`. Each test has the
//! number of the contract's lines that it breaks.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{Event, GroupName, Offset, Receipt, TopicName};
use serde_json::json;

use crate::{
    Batch, Broker, Epoch, Fence, Filter, Handed, Journal, Kind, MAX_INDEXED_BYTES, Op, Position, Query, Row, Shard,
    StoreError, Table, Take, TopicSpec, Value, row,
};

/// Gives the journal's suite its stores.
pub trait JournalRig: Send + Sync {
    /// Another handle on the rig's one store, as another process would have it.
    fn handle(&self) -> Arc<dyn Journal>;
    /// Whether tables outlive the process that opened them.
    fn keeps_tables(&self) -> bool {
        true
    }
}

/// Gives the broker's suite its broker.
pub trait BrokerRig: Send + Sync {
    /// A handle on the rig's one broker.
    fn handle(&self) -> Arc<dyn Broker>;
}

/// Runs the journal's suite: one test for each group of the contract. The expression makes a fresh [`JournalRig`].
#[macro_export]
macro_rules! journal_conformance {
    ($rig:expr) => {
        $crate::journal_conformance!(@tests $rig;
            reads_what_was_acknowledged, refuses_a_batch_alone, keeps_the_order_of_the_calls, pages_and_filters,
            limits_are_the_same_everywhere, leases_raise_epochs, nothing_of_an_old_epoch_lands, tables_only_grow);
    };
    (@tests $rig:expr; $($name:ident),*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $crate::conformance::journal::$name(&$rig).await;
        })*
    };
}

/// Runs the broker's suite. The expression makes a fresh [`BrokerRig`].
#[macro_export]
macro_rules! broker_conformance {
    ($rig:expr) => {
        $crate::broker_conformance!(@tests $rig;
            carries_every_event_to_every_group, hands_out_again_what_is_not_settled, buries_and_replays, seeks,
            refuses_what_it_does_not_know);
    };
    (@tests $rig:expr; $($name:ident),*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $crate::conformance::broker::$name(&$rig).await;
        })*
    };
}

/// The journal's tests.
pub mod journal {
    use super::*;

    static T: Table = Table {
        name: "t",
        key: 2,
        columns: &[
            ("a", Kind::Text),
            ("n", Kind::Int),
            ("due", Kind::Time),
            ("note", Kind::Text),
            ("body", Kind::Bytes),
        ],
        indexes: &[&[2]],
    };
    static V1: Table = Table { name: "m", key: 1, columns: &[("id", Kind::Int), ("a", Kind::Text)], indexes: &[] };
    static V2: Table = Table {
        name: "m",
        key: 1,
        columns: &[("id", Kind::Int), ("a", Kind::Text), ("b", Kind::Bytes), ("c", Kind::Int)],
        indexes: &[&[3]],
    };
    static BAD_KIND: Table =
        Table { name: "m", key: 1, columns: &[("id", Kind::Int), ("a", Kind::Bytes)], indexes: &[] };
    static BAD_KEY: Table = Table { name: "m", key: 2, columns: &[("id", Kind::Int), ("a", Kind::Text)], indexes: &[] };

    fn t(a: &str, n: i64, due: i64, note: &str) -> Row {
        row![a, n, due, note, vec![0u8, 255]]
    }

    fn put(a: &str, n: i64) -> Op {
        Op::Put(&T, t(a, n, 0, ""))
    }

    fn fenced(shard: Shard, epoch: Epoch, ops: Vec<Op>) -> Batch {
        Batch::fenced(Fence { shard, epoch }, ops)
    }

    async fn open(rig: &dyn JournalRig) -> (Arc<dyn Journal>, Arc<dyn Journal>) {
        let (one, other) = (rig.handle(), rig.handle());
        one.open(&[&T]).await.expect("the table is made");
        other.open(&[&T]).await.expect("the table is there");
        (one, other)
    }

    /// Keys of all pages as text.
    async fn keys(journal: &Arc<dyn Journal>, mut query: Query) -> Vec<String> {
        let mut out = vec![];
        loop {
            let page = journal.scan(query.clone()).await.expect("a page");
            out.extend(page.rows.iter().map(|r| format!("{}{}", r[0].text(), r[1].int())));
            match page.next {
                Some(next) => query.after = Some(next),
                None => return out,
            }
        }
    }

    /// 5.
    pub async fn reads_what_was_acknowledged(rig: &dyn JournalRig) {
        let (one, other) = open(rig).await;
        let rows = vec![t("x", 1, 5, ""), t("x", 2, 4, "Straße 100%_'\\")];
        let ops = vec![Op::Put(&T, rows[0].clone()), Op::Insert(&T, rows[1].clone())];
        one.commit(Batch::of(ops)).await.expect("written");
        assert_eq!(other.scan(Query::of(&T)).await.expect("a page").rows, rows, "by any handle, exactly as written");
    }

    /// 7, 9, 10.
    pub async fn refuses_a_batch_alone(rig: &dyn JournalRig) {
        let (one, _) = open(rig).await;
        one.commit(Batch::of(vec![put("x", 1)])).await.expect("written");
        let clash = vec![put("y", 1), Op::Insert(&T, t("x", 1, 0, "")), put("y", 2)];
        let mut replies: Vec<_> = (0..40).map(|n| one.commit(Batch::of(vec![put("g", n)]))).collect();
        let clash = one.commit(Batch::of(clash));
        let nobody = one.commit(fenced(9, 1, vec![put("y", 3)]));
        let short = one.commit(Batch::of(vec![Op::Put(&T, row!["y", 4])]));
        replies.extend((40..80).map(|n| one.commit(Batch::of(vec![put("g", n)]))));
        assert_eq!(clash.await, Err(StoreError::Exists("t")));
        assert_eq!(nobody.await, Err(StoreError::Fenced(9)));
        assert!(matches!(short.await, Err(StoreError::Invalid(_))));
        for reply in replies {
            reply.await.expect("neighbours are written");
        }
        assert_eq!(keys(&one, Query::of(&T).eq(0, "y")).await.len(), 0, "nothing of a refused batch");
        assert_eq!(keys(&one, Query::of(&T).eq(0, "g").limit(7)).await.len(), 80);
    }

    /// 6; and a dropped reply takes nothing back.
    pub async fn keeps_the_order_of_the_calls(rig: &dyn JournalRig) {
        let (one, other) = open(rig).await;
        for i in 0..20 {
            drop(one.commit(Batch::of(vec![Op::Put(&T, t("o", 1, i, "")), Op::Put(&T, t("o", 2, i, ""))])));
            drop(one.commit(Batch::of(vec![Op::Delete(&T, row!["o", 2])])));
            if i == 10 {
                drop(one.commit(Batch::of(vec![Op::Insert(&T, t("o", 2, 77, ""))])));
            }
        }
        one.commit(Batch::default()).await.expect("an empty batch is no error");
        let rows = other.scan(Query::of(&T).eq(0, "o")).await.expect("a page").rows;
        assert_eq!(rows, vec![t("o", 1, 19, "")]);
    }

    /// 11 to 13.
    pub async fn pages_and_filters(rig: &dyn JournalRig) {
        let (one, _) = open(rig).await;
        let rows = [
            ("B", 1, 3, "Alpha beta"),
            ("a", 1, 3, "gamma 50%"),
            ("a", 2, 1, "ALPHABET"),
            ("é", 1, 2, "50x alpha"),
            ("Z", 1, 3, "O'Hara\\"),
        ];
        let ops = rows.iter().map(|r| Op::Put(&T, t(r.0, r.1, r.2, r.3))).collect();
        one.commit(Batch::of(ops)).await.expect("written");
        for limit in [1, 2, 1000] {
            let query = || Query::of(&T).limit(limit);
            assert_eq!(keys(&one, query()).await, ["B1", "Z1", "a1", "a2", "é1"], "by bytes");
            assert_eq!(keys(&one, query().down()).await, ["é1", "a2", "a1", "Z1", "B1"]);
            assert_eq!(keys(&one, query().by(0)).await, ["a2", "é1", "B1", "Z1", "a1"], "then by key");
            assert_eq!(keys(&one, query().by(0).down()).await, ["a1", "Z1", "B1", "é1", "a2"]);
            let range = Filter::Range(2, Bound::Excluded(1.into()), Bound::Included(2.into()));
            assert_eq!(keys(&one, query().by(0).filter(range)).await, ["é1"]);
            for (needle, found) in [("aLPHa", vec!["B1", "a2", "é1"]), ("0%", vec!["a1"]), ("'hara\\", vec!["Z1"])] {
                assert_eq!(keys(&one, query().filter(Filter::Contains(3, needle.into()))).await, found);
            }
            let some = Filter::In(0, vec!["a".into(), "é".into(), "no".into()]);
            assert_eq!(keys(&one, query().filter(some)).await, ["a1", "a2", "é1"]);
        }
    }

    /// 9, 10.
    pub async fn limits_are_the_same_everywhere(rig: &dyn JournalRig) {
        let (one, _) = open(rig).await;
        let letter = |i: u32| char::from(33 + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 90);
        let long: String = (0..MAX_INDEXED_BYTES as u32 - 16).map(letter).collect();
        one.commit(Batch::of(vec![put(&long, 1)])).await.expect("as long as allowed");
        let bad = [t(&(long + "x"), 1, 0, ""), t("nul\0", 1, 0, ""), row![1, 1, 1, "", vec![]], row!["a", 1, 1, ""]];
        for row in bad {
            assert!(matches!(one.commit(Batch::of(vec![Op::Put(&T, row)])).await, Err(StoreError::Invalid(_))));
        }
        let twice = vec![put("i", 1), Op::Insert(&T, t("i", 1, 0, ""))];
        assert!(matches!(one.commit(Batch::of(twice)).await, Err(StoreError::Invalid(_))));
    }

    /// 8, 14, 16.
    pub async fn leases_raise_epochs(rig: &dyn JournalRig) {
        let (one, other) = open(rig).await;
        let lease = Duration::from_millis(150);
        assert_eq!(one.claim(&[1, 2], "A", lease).await.expect("held"), [(1, 1), (2, 1)]);
        assert_eq!(other.claim(&[1, 2, 3], "B", lease).await.expect("held"), [(3, 1)]);
        assert_eq!(one.claim(&[1], "A", Duration::from_secs(60)).await.expect("renewed"), [(1, 1)]);
        // The store's clock runs by itself: ask until it lets go of shard 2.
        let taken = loop {
            let held = other.claim(&[1, 2], "B", lease).await.expect("held");
            if !held.is_empty() {
                break held;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(taken, [(2, 2)]);
        let (good, stale) = (one.commit(fenced(1, 1, vec![put("f", 1)])), one.commit(fenced(2, 1, vec![put("f", 2)])));
        assert_eq!((good.await, stale.await), (Ok(()), Err(StoreError::Fenced(2))));
        other.commit(fenced(2, 2, vec![put("f", 3)])).await.expect("the new owner writes");
        // Old and new epoch of one shard in one group.
        let both = [(2, 4), (1, 5), (2, 6)].map(|(epoch, n)| one.commit(fenced(2, epoch, vec![put("f", n)])));
        for (reply, want) in both.into_iter().zip([Ok(()), Err(StoreError::Fenced(2)), Ok(())]) {
            assert_eq!(reply.await, want);
        }
        assert_eq!(keys(&one, Query::of(&T).eq(0, "f")).await, ["f1", "f3", "f4", "f6"]);
        assert_eq!(one.claim(&[1], "A", Duration::ZERO).await.expect("given back"), [(1, 1)]);
        assert_eq!(other.claim(&[1], "B", Duration::ZERO).await.expect("held"), [(1, 2)]);
    }

    /// 15.
    pub async fn nothing_of_an_old_epoch_lands(rig: &dyn JournalRig) {
        let (one, other) = open(rig).await;
        for turn in 0..12i64 {
            let (me, next, who) = if turn % 2 == 0 { (&one, &other, ["C", "D"]) } else { (&other, &one, ["D", "C"]) };
            let epoch = me.claim(&[5], who[0], Duration::ZERO).await.expect("held")[0].1;
            // Slow batches, so that a claim comes between; the row looked at comes last.
            let slow = || (2..1000).chain([1]).map(|n| Op::Put(&T, t("race", n, epoch, ""))).collect();
            let old: Vec<_> = (0..4).map(|_| me.commit(fenced(5, epoch, slow()))).collect();
            let new = next.claim(&[5], who[1], Duration::ZERO).await.expect("held")[0].1;
            next.commit(fenced(5, new, vec![Op::Put(&T, t("race", 1, new, ""))])).await.expect("written");
            for reply in old {
                let _ = reply.await;
            }
            let row = one.scan(Query::of(&T).eq(0, "race").limit(1)).await.expect("a page").rows.remove(0);
            assert_eq!(row[2], Value::Int(new), "turn {turn}");
        }
    }

    /// 1 to 4.
    pub async fn tables_only_grow(rig: &dyn JournalRig) {
        let (one, other) = (rig.handle(), rig.handle());
        one.open(&[&V1]).await.expect("made");
        one.commit(Batch::of(vec![Op::Put(&V1, row![1, "one"])])).await.expect("written");
        if !rig.keeps_tables() {
            return;
        }
        other.open(&[&V2]).await.expect("columns added");
        other.commit(Batch::of(vec![Op::Put(&V2, row![2, "two", vec![7], 8])])).await.expect("written");
        // The old version runs on beside it.
        let old = vec![Op::Put(&V1, row![2, "zwei"]), Op::Put(&V1, row![3, "drei"])];
        one.commit(Batch::of(old)).await.expect("written");
        let rows = other.scan(Query::of(&V2).by(0)).await.expect("a page").rows;
        assert_eq!(rows, vec![row![1, "one", vec![], 0], row![3, "drei", vec![], 0], row![2, "zwei", vec![7], 8]]);
        one.open(&[&V1]).await.expect("fewer columns than stored are fine");
        for bad in [&BAD_KIND, &BAD_KEY] {
            assert!(matches!(one.open(&[bad]).await, Err(StoreError::Shape(_))));
        }
        one.commit(Batch::of(vec![Op::Delete(&V1, row![3])])).await.expect("nothing was changed");
    }
}

/// The broker's tests.
pub mod broker {
    use super::*;

    fn topic() -> TopicName {
        "order.placed".parse().expect("a valid topic")
    }

    fn group(name: &str) -> GroupName {
        name.parse().expect("a valid group")
    }

    fn event(n: i64) -> Event {
        Event::new(topic(), "conformance", json!({ "n": n })).subject(n.to_string())
    }

    fn take(name: &str, max: usize) -> Take {
        Take { topic: topic(), group: group(name), max, lease: Duration::from_secs(60) }
    }

    fn numbers(handed: &[Handed]) -> Vec<i64> {
        handed.iter().map(|h| h.event.data["n"].as_i64().unwrap_or_default()).collect()
    }

    async fn open(rig: &dyn BrokerRig) -> Arc<dyn Broker> {
        let broker = rig.handle();
        let spec = TopicSpec { name: topic(), keep: Duration::from_secs(3600) };
        broker.declare(spec.clone()).await.expect("declared");
        broker.declare(spec).await.expect("8: twice is no error");
        for name in ["a", "b"] {
            broker.join(&topic(), &group(name), Position::Start).await.expect("joined");
        }
        broker
    }

    /// Takes until something is due: the broker's clock runs by itself.
    async fn take_due(broker: &Arc<dyn Broker>, wish: Take) -> Vec<Handed> {
        loop {
            let handed = broker.take(wish.clone()).await.expect("taken");
            if !handed.is_empty() {
                return handed;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// 1, 2, 6.
    pub async fn carries_every_event_to_every_group(rig: &dyn BrokerRig) {
        let broker = open(rig).await;
        let places = broker.publish(&topic(), (1..=5).map(event).collect()).await.expect("published");
        assert!(places.windows(2).all(|w| w[0] < w[1]), "places rise");
        let first = broker.take(take("a", 2)).await.expect("taken");
        let second = broker.take(take("a", 10)).await.expect("taken");
        assert_eq!((numbers(&first), numbers(&second)), (vec![1, 2], vec![3, 4, 5]), "each once, in order");
        assert_eq!(numbers(&broker.take(take("b", 10)).await.expect("taken")), [1, 2, 3, 4, 5], "b sees them too");
        assert_eq!(first[0].event.subject.as_deref(), Some("1"), "whole events");
        let receipts = first.iter().chain(&second).map(|h| h.receipt.clone()).collect();
        broker.ack(receipts).await.expect("settled");
        broker.join(&topic(), &group("late"), Position::End).await.expect("joined");
        assert!(broker.take(take("late", 10)).await.expect("taken").is_empty(), "a late group begins at the end");
        let groups = broker.groups(&topic()).await.expect("groups");
        let a = groups.iter().find(|g| g.group.as_str() == "a").expect("group a");
        assert_eq!((a.waiting, a.in_flight, a.dead), (0, 0, 0));
        let b = groups.iter().find(|g| g.group.as_str() == "b").expect("group b");
        assert_eq!((b.waiting, b.in_flight), (0, 5));
    }

    /// 3, 4, 5.
    pub async fn hands_out_again_what_is_not_settled(rig: &dyn BrokerRig) {
        let broker = open(rig).await;
        broker.publish(&topic(), vec![event(1), event(2)]).await.expect("published");
        let short = Take { lease: Duration::from_millis(20), ..take("a", 1) };
        let first = broker.take(short).await.expect("taken").remove(0);
        let second = broker.take(take("a", 1)).await.expect("taken");
        assert_eq!(numbers(&second), [2], "the first is somebody's");
        let again = take_due(&broker, take("a", 1)).await.remove(0);
        assert_eq!((again.receipt.offset, again.receipt.attempt), (first.receipt.offset, 2), "after its lease");
        assert!(matches!(broker.ack(vec![first.receipt.clone()]).await, Err(StoreError::Invalid(_))), "stale");
        assert!(broker.nack(first.receipt, Duration::ZERO, String::new()).await.is_err(), "stale");
        broker.nack(again.receipt.clone(), Duration::from_millis(20), "busy".into()).await.expect("given back");
        let third = take_due(&broker, take("a", 1)).await.remove(0);
        assert_eq!((third.receipt.offset, third.receipt.attempt), (again.receipt.offset, 3), "after the delay");
        broker.ack(vec![third.receipt.clone()]).await.expect("settled");
        assert!(broker.ack(vec![third.receipt]).await.is_err(), "once is enough");
    }

    /// 5.
    pub async fn buries_and_replays(rig: &dyn BrokerRig) {
        let broker = open(rig).await;
        broker.publish(&topic(), vec![event(1), event(2)]).await.expect("published");
        let handed = broker.take(take("a", 10)).await.expect("taken");
        broker.bury(handed[0].receipt.clone(), "no such order".into()).await.expect("buried");
        let dead = broker.dead(&topic(), &group("a"), Offset(0), 10).await.expect("dead letters");
        assert_eq!(dead.len(), 1);
        assert_eq!((dead[0].reason.as_str(), dead[0].attempts), ("no such order", 1));
        assert_eq!(dead[0].event.data["n"], json!(1));
        assert!(broker.dead(&topic(), &group("b"), Offset(0), 10).await.expect("none").is_empty(), "groups are apart");
        broker.replay(&topic(), &group("a"), dead[0].offset).await.expect("due again");
        let again = broker.take(take("a", 10)).await.expect("taken");
        assert_eq!((numbers(&again), again[0].receipt.attempt), (vec![1], 1));
        assert!(broker.dead(&topic(), &group("a"), Offset(0), 10).await.expect("none").is_empty());
        assert!(broker.replay(&topic(), &group("a"), dead[0].offset).await.is_err(), "it is no dead letter now");
    }

    /// 7.
    pub async fn seeks(rig: &dyn BrokerRig) {
        let broker = open(rig).await;
        let places = broker.publish(&topic(), (1..=4).map(event).collect()).await.expect("published");
        let handed = broker.take(take("a", 10)).await.expect("taken");
        broker.ack(handed.into_iter().map(|h| h.receipt).collect()).await.expect("settled");
        broker.seek(&topic(), &group("a"), Position::Offset(places[2])).await.expect("moved");
        assert_eq!(numbers(&broker.take(take("a", 10)).await.expect("taken")), [3, 4]);
        broker.seek(&topic(), &group("a"), Position::End).await.expect("moved");
        assert!(broker.take(take("a", 10)).await.expect("taken").is_empty());
        broker.seek(&topic(), &group("a"), Position::Start).await.expect("moved");
        assert_eq!(numbers(&broker.take(take("a", 10)).await.expect("taken")), [1, 2, 3, 4]);
    }

    /// 4, 8.
    pub async fn refuses_what_it_does_not_know(rig: &dyn BrokerRig) {
        let broker = open(rig).await;
        let unknown: TopicName = "nobody.knows".parse().expect("a valid topic");
        assert!(matches!(broker.publish(&unknown, vec![event(1)]).await, Err(StoreError::Invalid(_))));
        assert!(broker.join(&unknown, &group("a"), Position::Start).await.is_err());
        assert!(broker.take(take("nobody", 1)).await.is_err(), "a group that never joined");
        let made_up = Receipt { topic: topic(), group: group("a"), offset: Offset(77), attempt: 1 };
        assert!(matches!(broker.ack(vec![made_up]).await, Err(StoreError::Invalid(_))));
    }
}
