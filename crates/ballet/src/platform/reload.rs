//! Watches the manifest and swaps routes, policies, workflows and subscriptions when it changes; a broken manifest changes nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ballet_manifest::Manifest;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::cli::{self, Place};

/// Editors write in several steps: wait until the file has rested this long.
const REST: Duration = Duration::from_millis(100);

/// What can be swapped while the system runs.
pub(crate) trait Reload: Send + Sync + 'static {
    /// Takes a manifest that has no mistakes.
    ///
    /// # Errors
    /// Why a part keeps what it had.
    fn reload(&self, manifest: &Manifest) -> impl Future<Output = Result<(), String>> + Send;
}

/// Ends the watching when dropped.
pub(crate) struct Watching {
    _watcher: Option<RecommendedWatcher>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches the manifest's directory and reloads when the file has changed.
pub(crate) fn watch(place: Place, parts: impl Reload) -> Watching {
    let (changed, mut changes) = mpsc::channel::<()>(1);
    let file = place.file.clone();
    let watcher = watcher(&file, changed);
    let task = tokio::spawn(async move {
        let mut last = content(&file);
        while changes.recv().await.is_some() {
            // Take in everything that belongs to one save.
            while tokio::time::timeout(REST, changes.recv()).await.is_ok_and(|more| more.is_some()) {}
            let now = content(&file);
            if now == last {
                continue;
            }
            last = now;
            apply(&place, &parts).await;
        }
    });
    Watching { _watcher: watcher, task }
}

async fn apply(place: &Place, parts: &impl Reload) {
    let Ok(loaded) = cli::load_manifest(place) else {
        eprintln!("{}: not reloaded; what ran before goes on", place.file.display());
        return;
    };
    match parts.reload(&loaded.manifest).await {
        Ok(()) => eprintln!("{}: reloaded", place.file.display()),
        Err(why) => eprintln!("{}: not reloaded: {why}", place.file.display()),
    }
}

fn content(file: &Path) -> Option<Vec<u8>> {
    std::fs::read(file).ok()
}

/// Watches the directory, because editors replace the file.
fn watcher(file: &Path, changed: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let name = file.file_name()?.to_owned();
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let tell = move |event: notify::Result<notify::Event>| {
        let ours = event.is_ok_and(|event| event.paths.iter().any(|path| path.file_name() == Some(&name)));
        if ours {
            // One word is enough: the file is read when it is taken.
            let _ = changed.try_send(());
        }
    };
    let watching = notify::recommended_watcher(tell).and_then(|mut watcher| {
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watching.inspect_err(|error| eprintln!("{}: is not watched: {error}", file.display())).ok()
}
