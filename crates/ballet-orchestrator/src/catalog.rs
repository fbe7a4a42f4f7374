//! Workflow and task definitions: kept in the journal, compiled once, looked up by everyone.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use ballet_core::{Clock, WorkflowName, WorkflowsError};
use ballet_store::{Batch, Journal, Op, Query, StoreError, row};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::plan::{self, Plan, PlanError};
use crate::state::Execution;
use crate::tables::{DEFINITIONS, TASK_DEFS};

/// What to do when the version is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Replace it; running executions keep theirs.
    Replace,
    /// The content decides: the newest version's own is nothing new, any other makes the next version.
    NextVersion,
}

/// Why a definition was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CatalogError {
    /// It has a mistake.
    #[error(transparent)]
    Invalid(#[from] PlanError),
    /// The version is there already.
    #[error("workflow `{0}` exists already in version {1}")]
    Exists(String, u32),
    /// There is none.
    #[error("no such {0}: not found")]
    Missing(String),
    /// The journal refuses.
    #[error("the definition cannot be written")]
    Store(#[from] StoreError),
}

impl From<CatalogError> for WorkflowsError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Invalid(error) => Self::Invalid(error.to_string()),
            CatalogError::Exists(..) | CatalogError::Missing(_) => Self::Conflict(error.to_string()),
            CatalogError::Store(error) => Self::Unavailable(error.to_string()),
        }
    }
}

pub(crate) struct Catalog {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    known: RwLock<Known>,
    /// One writer at a time: a version is chosen and written before the next looks.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// The content that new executions get, by name and version.
    live: BTreeMap<String, BTreeMap<u32, Entry>>,
    /// Every content that was ever there.
    all: HashMap<(String, u32, u32), Arc<Value>>,
    task_defs: Map<String, Value>,
    /// Compiled without task definitions: those would have to be part of the key.
    plans: HashMap<(String, u32, u32), Arc<Plan>>,
}

#[derive(Clone)]
struct Entry {
    revision: u32,
    hash: String,
    body: Arc<Value>,
}

/// What a new execution gets.
pub(crate) struct Chosen {
    pub(crate) plan: Arc<Plan>,
    pub(crate) version: u32,
    pub(crate) revision: u32,
    pub(crate) task_defs: Map<String, Value>,
}

impl Catalog {
    pub(crate) async fn load(journal: Arc<dyn Journal>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let mut known = Known::default();
        let mut after = None;
        loop {
            let page = journal.scan(Query::of(&DEFINITIONS).after(after)).await?;
            for row in &page.rows {
                let int = |i: usize| u32::try_from(row[i].int()).unwrap_or_default();
                let (name, version, revision) = (row[0].text().to_owned(), int(1), int(2));
                let body: Arc<Value> = Arc::new(serde_json::from_str(row[5].text()).unwrap_or_default());
                if row[3].int() == 1 {
                    let entry = Entry { revision, hash: row[4].text().to_owned(), body: body.clone() };
                    known.live.entry(name.clone()).or_default().insert(version, entry);
                }
                known.all.insert((name, version, revision), body);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        loop {
            let page = journal.scan(Query::of(&TASK_DEFS).after(after)).await?;
            for row in &page.rows {
                let body = serde_json::from_str(row[1].text()).unwrap_or_default();
                known.task_defs.insert(row[0].text().to_owned(), body);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(Self { journal, clock, known: RwLock::new(known), writing: tokio::sync::Mutex::new(()) })
    }

    /// Takes a definition; answers its version. Not cancel safe: dropped, it may have been taken.
    pub(crate) async fn register(&self, definition: &Value, existing: Existing) -> Result<u32, CatalogError> {
        let mut definition = plan::normal(definition)?;
        let name = definition["name"].as_str().unwrap_or_default().to_owned();
        let hash = hash(&definition);
        let _writing = self.writing.lock().await;
        let (version, revision, old) = {
            let known = self.read();
            let versions = known.live.get(&name);
            let version = match existing {
                Existing::Refuse | Existing::Replace => {
                    u32::try_from(definition["version"].as_u64().unwrap_or(1)).unwrap_or(1)
                }
                Existing::NextVersion => match versions.and_then(|v| v.last_key_value()) {
                    Some((version, entry)) if entry.hash == hash => return Ok(*version),
                    Some((version, _)) => version + 1,
                    None => 1,
                },
            };
            let old = versions.and_then(|v| v.get(&version)).cloned();
            if old.is_some() && existing == Existing::Refuse {
                return Err(CatalogError::Exists(name, version));
            }
            let used = known.all.keys().filter(|(n, v, _)| *n == name && *v == version).map(|(_, _, r)| *r).max();
            (version, used.map_or(0, |r| r + 1), old)
        };
        definition["version"] = json!(version);
        let now = self.clock.now().0;
        let field = if old.is_some() { "updateTime" } else { "createTime" };
        definition[field] = json!(now);
        Plan::compile(&definition, &self.read().task_defs)?;
        let text = definition.to_string();
        let row = |revision: u32, live: i64, hash: &str, body: &str| {
            row![name.as_str(), i64::from(version), i64::from(revision), live, hash, body]
        };
        let mut ops = vec![Op::Put(&DEFINITIONS, row(revision, 1, &hash, &text))];
        if let Some(old) = &old {
            ops.push(Op::Put(&DEFINITIONS, row(old.revision, 0, &old.hash, &old.body.to_string())));
        }
        self.journal.commit(Batch::of(ops)).await?;
        let body = Arc::new(definition);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.all.insert((name.clone(), version, revision), body.clone());
        known.live.entry(name).or_default().insert(version, Entry { revision, hash, body });
        Ok(version)
    }

    pub(crate) async fn remove(&self, name: &str, version: u32) -> Result<(), CatalogError> {
        let _writing = self.writing.lock().await;
        let missing = || CatalogError::Missing(format!("workflow `{name}` in version {version}"));
        let old = self.read().live.get(name).and_then(|v| v.get(&version)).cloned().ok_or_else(missing)?;
        let (version_int, revision) = (i64::from(version), i64::from(old.revision));
        let row = row![name, version_int, revision, 0, old.hash.as_str(), old.body.to_string()];
        self.journal.commit(Batch::of(vec![Op::Put(&DEFINITIONS, row)])).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(versions) = known.live.get_mut(name) {
            versions.remove(&version);
            if versions.is_empty() {
                known.live.remove(name);
            }
        }
        Ok(())
    }

    /// Definitions of one name (or all), ascending.
    pub(crate) fn definitions(&self, name: Option<&str>) -> Vec<Arc<Value>> {
        let known = self.read();
        let wanted = known.live.iter().filter(|(n, _)| name.is_none_or(|name| name == *n));
        wanted.flat_map(|(_, versions)| versions.values().map(|e| e.body.clone())).collect()
    }

    pub(crate) fn definition(&self, name: &str, version: Option<u32>) -> Option<Arc<Value>> {
        let known = self.read();
        let versions = known.live.get(name)?;
        match version {
            Some(version) => versions.get(&version).map(|e| e.body.clone()),
            None => versions.last_key_value().map(|(_, e)| e.body.clone()),
        }
    }

    pub(crate) async fn put_task_defs(&self, defs: &[Value]) -> Result<(), CatalogError> {
        let _writing = self.writing.lock().await;
        let mut all = vec![];
        for def in defs {
            let mut def = plan::normal_task_def(def)?;
            let name = def["name"].as_str().unwrap_or_default().to_owned();
            if name.len() > 200 {
                return Err(PlanError::new("name", "a name has at most 200 bytes").into());
            }
            let field = if self.read().task_defs.contains_key(&name) { "updateTime" } else { "createTime" };
            def[field] = json!(self.clock.now().0);
            all.push((name, def));
        }
        let ops = all.iter().map(|(name, def)| Op::Put(&TASK_DEFS, row![name.as_str(), def.to_string()])).collect();
        self.journal.commit(Batch::of(ops)).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.task_defs.extend(all);
        Ok(())
    }

    pub(crate) async fn remove_task_def(&self, name: &str) -> Result<(), CatalogError> {
        let _writing = self.writing.lock().await;
        if !self.read().task_defs.contains_key(name) {
            return Err(CatalogError::Missing(format!("task definition `{name}`")));
        }
        self.journal.commit(Batch::of(vec![Op::Delete(&TASK_DEFS, row![name])])).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.task_defs.remove(name);
        Ok(())
    }

    pub(crate) fn task_defs(&self) -> Vec<Value> {
        self.read().task_defs.values().cloned().collect()
    }

    pub(crate) fn task_def(&self, name: &str) -> Option<Value> {
        self.read().task_defs.get(name).cloned()
    }

    /// The plan for a new execution.
    pub(crate) fn choose(&self, name: &WorkflowName, version: Option<u32>) -> Result<Chosen, WorkflowsError> {
        let missing = || WorkflowsError::UnknownWorkflow { name: name.clone(), version };
        let (version, revision, body, task_defs) = {
            let known = self.read();
            let versions = known.live.get(name.as_str()).ok_or_else(missing)?;
            let (version, entry) = match version {
                Some(version) => (version, versions.get(&version)),
                None => versions.last_key_value().map_or((0, None), |(v, e)| (*v, Some(e))),
            };
            let entry = entry.ok_or_else(missing)?;
            let task_defs = used(&entry.body, &known.task_defs);
            let key = (name.as_str().to_owned(), version, entry.revision);
            if task_defs.is_empty()
                && let Some(plan) = known.plans.get(&key)
            {
                return Ok(Chosen { plan: plan.clone(), version, revision: entry.revision, task_defs });
            }
            (version, entry.revision, entry.body.clone(), task_defs)
        };
        let plan = Plan::compile(&body, &task_defs).map_err(|e| WorkflowsError::Invalid(e.to_string()))?;
        let plan = Arc::new(plan);
        if task_defs.is_empty() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.plans.insert((name.as_str().to_owned(), version, revision), plan.clone());
        }
        Ok(Chosen { plan, version, revision, task_defs })
    }

    /// The plan of an execution that is there.
    pub(crate) fn plan_of(&self, x: &Execution) -> Result<Arc<Plan>, WorkflowsError> {
        let body = match &x.inline {
            Some(body) => Arc::new(body.clone()),
            None => {
                let key = (x.name.clone(), x.version, x.revision);
                let known = self.read();
                if x.task_defs.is_empty()
                    && let Some(plan) = known.plans.get(&key)
                {
                    return Ok(plan.clone());
                }
                let body = known.all.get(&key).cloned();
                body.ok_or_else(|| WorkflowsError::Invalid(format!("the definition of execution `{}` is gone", x.id)))?
            }
        };
        let plan = Plan::compile(&body, &x.task_defs).map_err(|e| WorkflowsError::Invalid(e.to_string()))?;
        Ok(Arc::new(plan))
    }

    /// Compiles a definition that comes with a start; answers it normalised.
    pub(crate) fn inline(&self, definition: &Value) -> Result<(Chosen, Value), WorkflowsError> {
        let invalid = |e: PlanError| WorkflowsError::Invalid(e.to_string());
        let definition = plan::normal(definition).map_err(invalid)?;
        let task_defs = used(&definition, &self.read().task_defs);
        let plan = Arc::new(Plan::compile(&definition, &task_defs).map_err(invalid)?);
        let version = plan.version;
        Ok((Chosen { plan, version, revision: 0, task_defs }, definition))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registered task definitions that a definition's tasks take: of those tasks that bring none.
fn used(definition: &Value, task_defs: &Map<String, Value>) -> Map<String, Value> {
    let tasks = definition["tasks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = tasks.iter().filter(|t| t["taskDefinition"].is_null()).filter_map(|t| t["name"].as_str());
    names.filter_map(|name| Some((name.to_owned(), task_defs.get(name)?.clone()))).collect()
}

/// The content's hash: everything but version and times.
fn hash(definition: &Value) -> String {
    let mut content = definition.clone();
    if let Value::Object(map) = &mut content {
        for key in ["version", "createTime", "updateTime"] {
            map.remove(key);
        }
    }
    let digest = Sha256::digest(content.to_string().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
