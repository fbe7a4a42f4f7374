//! The house's floors: a crate may import from lower floors only, and a shop crate nothing of ours but the chassis.

use std::path::Path;

use anyhow::{Context, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Where a crate lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A floor of the house, 0 at the bottom.
    Floor(u8),
    /// A service of the shop.
    Shop,
    /// Tests, benches and chores: above the house, may import everything.
    Above,
}

/// The house, as drawn in ARCHITECTURE.md. A crate that stands nowhere fails the check.
fn place(name: &str) -> Option<Place> {
    let crate_name = name.strip_prefix("ballet-").unwrap_or(name);
    Some(match crate_name {
        "core" => Place::Floor(0),
        "manifest" | "resilience" | "telemetry" | "store" => Place::Floor(1),
        "proxy" | "client" | "testkit" => Place::Floor(2),
        "gateway" | "registry" | "bus" | "orchestrator" | "sidecar" | "supervisor" | "observe" | "service" => {
            Place::Floor(3)
        }
        "sqlite" | "postgres" | "nats" | "redis" | "rabbitmq" | "kafka" | "consul" | "kubernetes" => Place::Floor(3),
        "ballet" => Place::Floor(4),
        "tests" | "benches" | "xtask" => Place::Above,
        other if other.starts_with("shop-") => Place::Shop,
        _ => return None,
    })
}

/// Prints every forbidden import and fails if there is one.
pub(crate) fn run(manifest_path: Option<&Path>) -> anyhow::Result<()> {
    let mut command = MetadataCommand::new();
    command.no_deps();
    if let Some(path) = manifest_path {
        command.manifest_path(path);
    }
    let metadata = command.exec().context("cannot read the workspace's metadata")?;
    let broken: Vec<String> = metadata.packages.iter().flat_map(broken).collect();
    if broken.is_empty() {
        eprintln!("floors: {} packages, every import goes downwards", metadata.packages.len());
        return Ok(());
    }
    for line in &broken {
        eprintln!("{line}");
    }
    bail!("{} imports go upwards or sideways; the house is drawn in ARCHITECTURE.md", broken.len())
}

fn broken(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let Some(from) = place(name) else {
        return vec![format!("{name}: stands on no floor; add it to xtask/src/floors.rs and ARCHITECTURE.md")];
    };
    let ours = package.dependencies.iter().filter(|d| d.path.is_some() && d.name != name);
    ours.filter_map(|dependency| {
        let to = place(&dependency.name)?;
        // Test code may bring what breaks things, and the suite of the crate itself, but nothing from above.
        let testing = dependency.kind == DependencyKind::Development && dependency.name == "ballet-testkit";
        (!testing && !allowed(from, to, &dependency.name))
            .then(|| format!("{name} ({from:?}) may not import {} ({to:?})", dependency.name))
    })
    .collect()
}

fn allowed(from: Place, to: Place, to_name: &str) -> bool {
    match (from, to) {
        (Place::Above, _) => true,
        (Place::Floor(from), Place::Floor(to)) => to < from,
        (Place::Shop, _) => to_name == "ballet-service",
        (Place::Floor(_), Place::Shop | Place::Above) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace of small crates: name and what each imports.
    fn workspace(crates: &[(&str, &[&str])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let members: Vec<String> = crates.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let root = format!("[workspace]\nresolver = \"3\"\nmembers = [{}]\n", members.join(", "));
        std::fs::write(dir.path().join("Cargo.toml"), root).unwrap();
        for (name, imports) in crates {
            let at = dir.path().join(name);
            std::fs::create_dir_all(at.join("src")).unwrap();
            std::fs::write(at.join("src/lib.rs"), "").unwrap();
            let imports: String = imports.iter().map(|i| format!("{i} = {{ path = \"../{i}\" }}\n")).collect();
            let text = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\n[dependencies]\n{imports}");
            std::fs::write(at.join("Cargo.toml"), text).unwrap();
        }
        dir
    }

    #[test]
    fn imports_upwards_sideways_and_past_the_chassis_fail() {
        let base =
            [("ballet-core", &[][..]), ("ballet-client", &["ballet-core"]), ("ballet-service", &["ballet-client"])];
        for (name, import, fine) in [
            ("ballet-gateway", "ballet-client", true),
            ("ballet-gateway", "ballet-service", false),
            ("ballet-store", "ballet-client", false),
            ("ballet-proxy", "ballet-client", false),
            ("shop-orders", "ballet-service", true),
            ("shop-orders", "ballet-core", false),
            ("ballet-nowhere", "ballet-core", false),
            ("tests", "ballet-service", true),
        ] {
            let imports = [import];
            let mut crates: Vec<(&str, &[&str])> = base.to_vec();
            crates.push((name, &imports));
            let dir = workspace(&crates);
            let result = run(Some(&dir.path().join("Cargo.toml")));
            assert_eq!(result.is_ok(), fine, "{name} imports {import}");
        }
    }
}
