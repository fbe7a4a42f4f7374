//! Commands on the manifest alone: `check`, `config`, `schema`.

use ballet_core::{Chain, Classify};
use ballet_manifest::{LoadOptions, Loaded};

use super::system::out;
use super::{CliError, Place};

/// Engines of this build beside the embedded ones.
pub(crate) const ENGINES: &[&str] = &[];

/// Loads the manifest; mistakes are printed on standard error and end with exit code 2.
pub fn load(place: &Place) -> Result<Loaded, CliError> {
    let options = LoadOptions {
        file: place.file.clone(),
        profile: place.profile.clone(),
        set: place.set.clone(),
        env: std::env::vars().collect(),
        engines: ENGINES.iter().map(|engine| (*engine).to_owned()).collect(),
    };
    ballet_manifest::load(&options).map_err(|mistakes| {
        eprintln!("{mistakes}");
        CliError::wrong("")
    })
}

/// Looks at the manifest and says how many services, routes and workflows it has.
pub(crate) fn check(place: &Place) -> Result<(), CliError> {
    let manifest = load(place)?.manifest;
    ballet_gateway::check_routes(&manifest)
        .map_err(|error| CliError::wrong(Chain(&error)).code(error.code().to_string()))?;
    for workflow in manifest.workflows.values() {
        ballet_orchestrator::check(workflow)
            .map_err(|why| CliError::wrong(format!("workflow `{}`: {why}", workflow.name)))?;
    }
    out(&format!(
        "{}: fine ({} services, {} routes, {} topics, {} workflows)\n",
        place.file.display(),
        manifest.services.len(),
        manifest.gateway.routes.len(),
        manifest.topic_names().len(),
        manifest.workflows.len()
    ))
}

/// Prints every value and its origin.
pub(crate) fn effective(place: &Place, as_json: bool) -> Result<(), CliError> {
    let loaded = load(place)?;
    if as_json {
        return out(&format!("{:#}\n", loaded.effective_json()));
    }
    out(&loaded.effective())
}

/// Prints the JSON Schema.
pub(crate) fn schema() -> Result<(), CliError> {
    out(&format!("{:#}\n", ballet_manifest::schema()))
}
