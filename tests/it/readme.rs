//! Every command of the README's tour, as it stands there, against a running shop.

use ballet_tests::{Ballet, Command, bin, repository};

/// The shell blocks of the README, in order.
fn blocks() -> String {
    let text = std::fs::read_to_string(repository().join("README.md")).expect("the README");
    let mut script = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => script += &format!("{line}\n"),
            _ => {}
        }
    }
    script
}

fn there(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_readmes_tour_works_as_it_stands() {
    if !["bash", "curl", "jq"].into_iter().all(there) {
        assert!(std::env::var_os("CI").is_none(), "the tour needs bash, curl and jq; `cargo xtask test` installs them");
        eprintln!("SKIPPED: the README's tour needs bash, curl and jq; `cargo xtask test` installs them");
        return;
    }
    let shop = Ballet::shop();
    // The order settles a moment later; a reader's eyes take longer than this script's.
    let settled = "until [ \"$(curl -s http://127.0.0.1:8080/orders/$ID -H \"authorization: Bearer $TOKEN\" | jq -r .status)\" != PENDING ]; do sleep 0.05; done\n";
    let script = blocks().replace("PAYMENT=$(", &format!("{settled}PAYMENT=$("));
    assert!(script.contains("POST") || script.contains("-d '{"), "the README has a tour");
    let program = format!("{} ", bin("ballet").display());
    let state = format!("--state {} ", shop.state().display());
    let script = script
        .replace(
            "cargo run --release -- stop payments --file shop",
            &format!("{program}stop payments --file shop {state}"),
        )
        .replace(
            "cargo run --release -- start payments --file shop",
            &format!("{program}start payments --file shop {state}"),
        )
        .replace("cargo run --release -- ps shop", &format!("{program}ps shop {state}"))
        .replace("127.0.0.1:8080", &shop.gateway.to_string())
        .replace("127.0.0.1:7070", &shop.platform.to_string());
    assert!(!script.contains("cargo "), "a command of ballet is not run by this test: {script}");
    let check = "\nuntil [ \"$(curl -s $GATEWAY/orders/$ID -H \"authorization: Bearer $TOKEN\" | jq -r .status)\" = CANCELLED ]; do sleep 0.05; done\n";
    let script = script + &check.replace("$GATEWAY", &format!("http://{}", shop.gateway));
    let run = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(repository())
        .output()
        .expect("bash runs");
    let (said, wrong) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{script}\n{said}\n{wrong}");
    assert!(said.contains("CAPTURED") && said.contains("COMPLETED"), "{said}");
    assert!(said.contains("Payment service is unavailable."), "payments were stopped: {said}");
    assert_eq!(said.matches("about:blank").count(), 1, "everything else is answered well: {said}");
}
