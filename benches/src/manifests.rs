//! The manifests of the systems under test.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::tokens::{AUDIENCE, ISSUER};

/// Routes with features, beside the one for everything else.
pub const ROUTES: usize = 100;
/// A path that one of them takes.
pub const FEATURED_PATH: &str = "/api/v1/svc42/items/7?x=1";
/// Where the upstream shows the public keys.
pub const KEYS_PATH: &str = "/jwks.json";
/// The workflow of [`sagas`].
pub const SAGA: &str = "four-steps";
/// The topic of [`bus`].
pub const TOPIC: &str = "bench.event";
/// `--set` for the shop: as many orders of one customer as the machine can.
pub const NO_ORDER_LIMIT: &str = "gateway.routes.POST /orders.limit=1000000/s by claims.sub";

/// A gateway that forwards everything.
pub fn plain(upstream: SocketAddr) -> String {
    format!(
        "\
system: bench-plain
services:
  upstream: {{ url: \"http://{upstream}\" }}
gateway:
  routes:
    GET /**: upstream
"
    )
}

/// A gateway with its features on: 101 routes, tokens, a rate limit by claim (too high to refuse), retries, breaker.
pub fn features(upstream: SocketAddr) -> String {
    let mut text = format!(
        "\
system: bench-features
services:
  upstream: {{ url: \"http://{upstream}\" }}
policies:
  default: {{ timeout: 15s, retry: {{ max: 3, backoff: 100ms..400ms, budget: 20% }}, breaker: {{ failures: 5, open_for: 10s }} }}
access:
  caller: {{ jwt: {{ issuer: {ISSUER}, audience: {AUDIENCE}, keys: \"upstream:{KEYS_PATH}\" }} }}
gateway:
  routes:
    GET /**: upstream
"
    );
    for n in 0..ROUTES {
        let route = "{ to: upstream, access: caller, idempotent: true, limit: 1000000/s by claims.sub }";
        writeln!(text, "    ANY /api/v1/svc{n}/**: {route}").expect("text can be appended");
    }
    text
}

/// A saga of four steps over HTTP; the first three can be undone, as in a real one.
pub fn sagas(upstream: SocketAddr) -> String {
    let mut text = String::from("system: bench-sagas\nservices:\n");
    for step in STEPS {
        writeln!(text, "  {step}: {{ url: \"http://{upstream}\" }}").expect("text can be appended");
    }
    let order = "orderId: \"${input.id}\"";
    write!(
        text,
        "\
workflows:
  {SAGA}:
    timeout: 15m
    steps:
      - reserve: {{ call: POST inventory:/reserve, with: {{ {order}, items: \"${{input.items}}\" }}, undo: POST inventory:/release }}
      - charge: {{ call: POST payments:/charge, with: {{ {order}, amount: \"${{input.amount}}\" }}, undo: POST payments:/refund }}
      - confirm: {{ call: POST orders:/confirm, with: {{ {order}, paymentId: \"${{charge.output.id}}\" }}, undo: POST orders:/reject }}
      - notify: {{ call: \"POST notifications:/notify/${{input.place}}\", with: {{ {order} }} }}
"
    )
    .expect("text can be appended");
    text
}

/// The services that the saga calls.
const STEPS: [&str; 4] = ["inventory", "payments", "orders", "notifications"];

/// One topic, nobody who is pushed to.
pub fn bus(nobody: SocketAddr) -> String {
    format!(
        "\
system: bench-bus
services:
  nobody: {{ url: \"http://{nobody}\" }}
events:
  topics:
    {TOPIC}: {{ keep: 1h }}
"
    )
}

/// Writes a manifest into a folder and says where it is.
///
/// # Panics
/// If it cannot be written.
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, text).expect("the manifest can be written");
    file
}

/// An nginx configuration made of one of our templates.
pub fn nginx(template: &str, port: u16, upstream: SocketAddr, workers: usize, folder: &Path) -> String {
    let routes = (0..ROUTES).map(|n| format!("    location /api/v1/svc{n}/ {{ proxy_pass http://u; }}\n"));
    template
        .replace("@WORKERS@", &workers.to_string())
        .replace("@PORT@", &port.to_string())
        .replace("@UPSTREAM@", &upstream.to_string())
        .replace("@DIR@", &folder.display().to_string())
        .replace("@ROUTES@\n", &routes.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballet_manifest::{LoadOptions, Loaded, load};

    fn loaded(text: &str) -> Loaded {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = write(dir.path(), "ballet", text);
        load(&LoadOptions { file, ..LoadOptions::default() }).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"))
    }

    #[test]
    fn the_manifests_are_valid() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4711));
        assert_eq!(loaded(&plain(address)).manifest.gateway.routes.len(), 1);
        let features = loaded(&features(address)).manifest;
        assert_eq!(features.gateway.routes.len(), ROUTES + 1);
        assert_eq!(features.gateway.routes.iter().filter(|r| r.access.is_some() && r.limit.is_some()).count(), ROUTES);
        assert_eq!(
            (loaded(&sagas(address)).manifest.workflows.len(), loaded(&bus(address)).manifest.topics.len()),
            (1, 1)
        );
    }

    #[test]
    fn the_shop_takes_what_its_benchmark_sets() {
        let file = ballet_tests::repository().join("shop/ballet.yaml");
        let set = vec![NO_ORDER_LIMIT.to_owned()];
        let shop = load(&LoadOptions { file, set, ..LoadOptions::default() }).unwrap_or_else(|m| panic!("{m}"));
        let route = shop.manifest.gateway.routes.iter().find(|r| r.name == "POST /orders").expect("a route for orders");
        assert_eq!(route.limit.as_ref().map(|limit| limit.count), Some(1_000_000));
    }

    #[test]
    fn nginx_is_told_everything() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4711));
        for template in [include_str!("../nginx.conf"), include_str!("../nginx-features.conf")] {
            let text = nginx(template, 8100, address, 2, Path::new("/tmp/x"));
            assert!(!text.contains('@') && text.contains("127.0.0.1:8100"), "{text}");
        }
    }
}
