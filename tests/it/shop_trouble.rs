//! Trouble: killed services, a killed platform, a stopped service, a broken reload; and the ledger afterwards.

use std::time::Duration;

use ballet_tests::{Ballet, Command, bin};

use crate::people::{login, order, settled, until};

const PASSWORD: &str = "correct-horse-battery";

/// Runs the ledger's check over the whole shop; panics with its report if a rule is broken.
fn ledger_agrees(shop: &Ballet) {
    let mut check = Command::new(bin("shop-ledger"));
    check.arg("--platform").arg(format!("http://{}", shop.platform));
    let report = check.output().expect("the ledger runs");
    let text = String::from_utf8_lossy(&report.stdout).into_owned() + &String::from_utf8_lossy(&report.stderr);
    assert!(report.status.success(), "the ledger does not agree:\n{text}");
}

fn kill(pid: i64) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it was there");
}

fn alive(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test]
async fn orders_settle_though_services_and_the_platform_are_killed() {
    let mut shop = Ballet::shop();
    let ada = login(&shop, "ada@shop.test", PASSWORD).await;
    let mut ids = vec![];
    for (round, victim) in ["payments", "inventory", "orders", "notifications"].into_iter().enumerate() {
        for n in 0..6 {
            let card = ["card_ok", "card_refused", "card_flaky"][(round + n) % 3];
            let placed = order(&shop, &ada, "notebook", 1, card).await;
            if placed.status == 202 {
                ids.push(placed.json["id"].as_str().expect("an id").to_owned());
            }
            if n == 2 {
                kill(shop.instance(victim)["pid"].as_i64().expect("a pid"));
            }
        }
        until(
            async || shop.at_platform("GET", "/ballet/v1/system").send().await,
            |system| system.json["ready"] == true,
        )
        .await;
    }

    let pids: Vec<i64> =
        shop.ps()["services"].as_array().expect("services").iter().filter_map(|s| s["pid"].as_i64()).collect();
    for _ in 0..6 {
        let placed = order(&shop, &ada, "notebook", 1, "card_ok").await.expect(202);
        ids.push(placed.json["id"].as_str().expect("an id").to_owned());
    }
    shop.kill();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(tokio::time::Instant::now() < deadline, "something outlived ballet");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    shop.again();
    for id in &ids {
        let order = settled(&shop, &ada, id).await;
        assert!(matches!(order["status"].as_str(), Some("CONFIRMED" | "REJECTED")), "{order}");
    }
    ledger_agrees(&shop);
}

#[tokio::test]
async fn a_stopped_service_opens_the_breaker_and_heals() {
    let shop = Ballet::shop();
    let ada = login(&shop, "ada@shop.test", PASSWORD).await;
    let id =
        order(&shop, &ada, "notebook", 1, "card_ok").await.expect(202).json["id"].as_str().expect("an id").to_owned();
    let payment = settled(&shop, &ada, &id).await["paymentId"].as_str().expect("a payment").to_owned();
    let read = async || shop.at_gateway("GET", &format!("/payments/{payment}")).token(&ada.token).send().await;
    let _ = read().await.expect(200);

    assert!(shop.command(&["stop", "payments"]).status.success());
    let refused = until(read, |reply| reply.status == 503).await.problem(503);
    assert_eq!(refused.json["title"], "Payment service is unavailable.");
    for _ in 0..8 {
        let asked = tokio::time::Instant::now();
        let _ = read().await.problem(503);
        assert!(asked.elapsed() < Duration::from_secs(1), "it answers at once");
    }
    let states = |wanted: &'static str| {
        let shop = &shop;
        async move {
            until(
                async || shop.at_platform("GET", "/ballet/v1/system").send().await,
                |system| {
                    system.json["services"]
                        .as_array()
                        .is_some_and(|all| all.iter().any(|s| s["name"] == "payments" && s["breaker"] == wanted))
                },
            )
            .await
        }
    };
    // An order placed meanwhile waits, and is not rejected.
    let waiting =
        order(&shop, &ada, "notebook", 1, "card_ok").await.expect(202).json["id"].as_str().expect("an id").to_owned();
    states("open").await;
    assert!(shop.command(&["start", "payments"]).status.success());
    until(read, |reply| reply.status == 200).await;
    assert_eq!(settled(&shop, &ada, &waiting).await["status"], "CONFIRMED");
    states("closed").await;
    ledger_agrees(&shop);
}

#[tokio::test]
async fn the_ledger_agrees_after_a_mixed_day() {
    let shop = Ballet::shop();
    let ada = login(&shop, "ada@shop.test", PASSWORD).await;
    let mut ids = vec![];
    for (product, quantity, card) in [
        ("whisk", 2, "card_ok"),
        ("whisk", 1, "card_refused"),
        ("sold-out", 1, "card_ok"),
        ("vase", 1, "card_flaky"),
        ("last-one", 1, "card_ok"),
        ("last-one", 1, "card_ok"),
    ] {
        let placed = order(&shop, &ada, product, quantity, card).await.expect(202);
        ids.push(placed.json["id"].as_str().expect("an id").to_owned());
    }
    for id in &ids {
        settled(&shop, &ada, id).await;
    }
    let _ = shop.at_gateway("POST", &format!("/orders/{}/cancel", ids[0])).token(&ada.token).send().await.expect(202);
    ledger_agrees(&shop);
}

#[tokio::test]
async fn a_reload_under_load_fails_no_request() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path().join("shop");
    copy(&ballet_tests::repository().join("shop"), &folder);
    let shop = Ballet::up(&folder, &["build=true"]);
    let manifest = folder.join("ballet.yaml");
    let text = std::fs::read_to_string(&manifest).expect("the manifest");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (request, stop) = (shop.at_gateway("GET", "/products/whisk"), stop.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let reply = request.send().await;
                    assert_eq!(reply.status, 200, "{}", reply.text);
                    count += 1;
                }
                count
            })
        })
        .collect();
    for n in 0..5 {
        let added = text.replace(
            "    GET /products:",
            &format!("    GET /reloaded/{n}: {{ redirect: /products }}\n    GET /products:"),
        );
        std::fs::write(&manifest, added).expect("written");
        until(async || shop.at_gateway("GET", &format!("/reloaded/{n}")).send().await, |reply| reply.status == 307)
            .await;
    }
    // A broken manifest changes nothing.
    std::fs::write(&manifest, "services: [").expect("written");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(shop.at_gateway("GET", "/reloaded/4").send().await.status, 307);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for task in load {
        assert!(task.await.expect("no request failed") > 10);
    }
    let _ = shop.at_gateway("GET", "/orders").send().await.problem(401);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == ".ballet" || entry.file_name() == "target" {
            continue;
        }
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}
