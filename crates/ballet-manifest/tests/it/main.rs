//! The manifest as its users see it.

mod mistakes;
mod shop;

use std::path::{Path, PathBuf};

use ballet_manifest::{LoadOptions, Loaded, Mistakes, load};

/// A directory of its own with a manifest and the files that it may name.
struct System {
    dir: tempfile::TempDir,
    options: LoadOptions,
}

impl System {
    fn new(yaml: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("ballet.yaml");
        std::fs::write(&file, yaml).expect("the manifest");
        Self { options: LoadOptions { file, ..LoadOptions::default() }, dir }
    }

    fn shop() -> Self {
        let system = Self::new(include_str!("../shop.yaml"));
        for line in include_str!("../shop.yaml").lines() {
            if let Some((_, rest)) = line.split_once("schema: ") {
                system.file(rest.split(',').next().expect("a path"), r#"{"type": "object"}"#);
            }
        }
        system
    }

    fn file(&self, path: &str, content: &str) -> &Self {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, content).expect("a file");
        self
    }

    fn set(mut self, set: &str) -> Self {
        self.options.set.push(set.to_owned());
        self
    }

    fn profile(mut self, name: &str) -> Self {
        self.options.profile = Some(name.to_owned());
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.options.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn engine(mut self, name: &str) -> Self {
        self.options.engines.push(name.to_owned());
        self
    }

    fn load(&self) -> Result<Loaded, Mistakes> {
        load(&self.options)
    }

    fn good(&self) -> Loaded {
        self.load().unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    /// All mistakes as text, without the temporary directory's name.
    fn bad(&self) -> String {
        let mistakes = self.load().expect_err("mistakes").to_string();
        mistakes.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with a file, or writes it where `UPDATE_EXPECT=1`.
fn expect_file(path: &Path, actual: &str) -> Result<(), String> {
    if std::env::var("UPDATE_EXPECT").is_ok_and(|value| value == "1") {
        std::fs::write(path, actual).expect("a golden file");
        return Ok(());
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{} differs (UPDATE_EXPECT=1 rewrites it); now it is\n{actual}\n", path.display()))
}

#[test]
fn the_committed_json_schema_is_fresh() {
    let text = serde_json::to_string_pretty(&ballet_manifest::schema()).expect("JSON") + "\n";
    expect_file(&here("schema/ballet.schema.json"), &text).unwrap();
}

#[test]
fn codes_are_told_apart() {
    let mut codes: Vec<_> = ballet_manifest::CODES.iter().map(|entry| entry.code.0).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), ballet_manifest::CODES.len());
    assert!(codes.iter().all(|code| code.starts_with("MF")));
}
