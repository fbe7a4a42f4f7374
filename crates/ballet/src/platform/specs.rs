//! What the manifest says, in the parts' own words.

use ballet_manifest::{Manifest, Source, Store};
use ballet_supervisor::{Config, Health, Runs, ServiceSpec};

use crate::cli::CliError;

/// The supervisor's services.
pub(crate) fn services(manifest: &Manifest) -> Result<Vec<ServiceSpec>, CliError> {
    let spec = |service: &ballet_manifest::Service| {
        let runs = match &service.source {
            Source::Run(words) => Runs::Command(words.clone()),
            Source::Url(url) => Runs::Elsewhere(url.to_string()),
            Source::Image(image) => {
                return Err(CliError::wrong(format!("service `{}` is the image `{image}`", service.name)).hint(
                    "images run on Kubernetes; on this machine give it `run:` or `url:`, in a profile if need be",
                ));
            }
        };
        let mut env: Vec<(String, String)> =
            service.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        if manifest.profile.is_some() && service.env.get("SEED_DATA").is_none() {
            env.push(("SEED_DATA".into(), "off".into()));
        }
        Ok(ServiceSpec {
            name: service.name.clone(),
            runs,
            instances: service.instances,
            env,
            store: service.store.as_ref().map(|store| match store {
                Store::Sqlite => ballet_supervisor::Store::Sqlite,
                Store::Url(url) => ballet_supervisor::Store::Url(url.expose().to_owned()),
            }),
            init: service.init.clone(),
            build: service.build.clone(),
            health: match service.health.as_deref() {
                None => Health::Off,
                Some("/readyz") => Health::Default,
                Some(path) => Health::Path(path.to_owned()),
            },
            cwd: manifest.dir.clone(),
            version: "v1".into(),
        })
    };
    manifest.services.values().map(spec).collect()
}

/// The supervisor's view of the system.
pub(crate) fn config(manifest: &Manifest) -> Config {
    let mut config = Config::new(manifest.system.clone(), manifest.dir.clone());
    config.profile = manifest.profile.clone().unwrap_or_else(|| "default".into());
    config.build = manifest.build.clone();
    config.hidden_env = manifest.secret_env.iter().cloned().collect();
    config
}
