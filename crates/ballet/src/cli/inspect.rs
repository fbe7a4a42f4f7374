//! Commands that look at what the parts know: `explain`, `workflows`.

use serde_json::{Value, json};

use super::admin::{Admin, segment};
use super::system::out;
use super::{CliError, Place, errors};

/// Explains a code, or what the gateway would do with a request.
pub(crate) fn explain(place: &Place, what: &[String]) -> Result<(), CliError> {
    match what {
        [code] => {
            let Some(entry) = errors::entry(code) else {
                return Err(CliError::wrong(format!("no error has the code `{code}`"))
                    .hint("codes look like MF001; a request is explained by `ballet explain GET /path`"));
            };
            out(&format!(
                "{} {}\n\nWhy it happens: {}.\nWhat to do:     {}.\n",
                entry.code,
                entry.title,
                entry.cause.trim_end_matches('.'),
                entry.remedy.trim_end_matches('.')
            ))
        }
        [method, url] => {
            let path = format!("/ballet/v1/explain?method={}&url={}", segment(method), segment(url));
            let explanation = Admin::connect(place)?.demand("GET", &path, None)?;
            let steps = explanation["steps"].as_array().into_iter().flatten().filter_map(Value::as_str);
            out(&steps.map(|step| format!("{step}\n")).collect::<String>())
        }
        _ => Err(CliError::wrong("name a code, or a method and a URL")),
    }
}

/// Lists executions.
pub(crate) fn workflows(place: &Place, as_json: bool) -> Result<(), CliError> {
    let answer = Admin::connect(place)?.demand("GET", "/ballet/v1/workflows?limit=100", None)?;
    if as_json {
        return out(&format!("{:#}\n", answer["items"]));
    }
    let list = answer["items"].as_array().cloned().unwrap_or_default();
    let line = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let compensation = row["compensation"]["state"].as_str().map(|s| format!("  undo {s}")).unwrap_or_default();
        format!("{:<44} {:<12} {}{compensation}\n", text("id"), text("status"), text("startedAt"))
    };
    out(&list.iter().map(line).collect::<String>())
}

/// Shows one execution.
pub(crate) fn workflow(place: &Place, id: &str, as_json: bool) -> Result<(), CliError> {
    let admin = Admin::connect(place)?;
    let document = admin.demand("GET", &format!("/api/workflow/{}?includeTasks=true", segment(id)), None)?;
    if as_json {
        return out(&format!("{document:#}\n"));
    }
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut page = format!("{} {} {}\n", text(&document, "workflowName"), id, text(&document, "status"));
    for task in document["tasks"].as_array().into_iter().flatten() {
        let reason = task["reasonForIncompletion"].as_str().map(|r| format!("  {r}")).unwrap_or_default();
        page += &format!("  {:<24} {:<12}{reason}\n", text(task, "referenceTaskName"), text(task, "status"));
    }
    if let Some(state) = document["compensation"]["state"].as_str() {
        page += &format!("  undo: {state}\n");
    }
    out(&page)
}

/// Settles a compensation that is stuck.
pub(crate) fn undo(place: &Place, id: &str, set_aside: Option<&str>) -> Result<(), CliError> {
    let body = match set_aside {
        Some(reason) => json!({ "setAside": reason }),
        None => json!({ "retry": true }),
    };
    Admin::connect(place)?.demand("POST", &format!("/ballet/v1/workflows/{}/undo", segment(id)), Some(&body))?;
    eprintln!("{id}: {}", if set_aside.is_some() { "set aside" } else { "tried again" });
    Ok(())
}
