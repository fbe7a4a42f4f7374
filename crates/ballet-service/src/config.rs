//! A service's configuration: the environment that the supervisor gives it, and nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ballet_core::{Classify, ErrorCode, NameError, Retry, ServiceName};

/// What a service reads from its environment when it starts.
///
/// | variable | what | default |
/// |---|---|---|
/// | `PORT`, `HOST` | where to listen | a free port of 127.0.0.1 |
/// | `STORE_URL` | `sqlite:PATH` | `sqlite:.ballet/services/NAME/NAME.db` |
/// | `BALLET_INSTANCE` | which instance this is | `NAME-1` |
/// | `BALLET_URL` | the own sidecar | none: calls retry by themselves |
/// | `BALLET_PLATFORM` | the platform, for the bus | none: events wait in the outbox |
/// | `<NAME>_URL` | another service | none: calling it is 503 |
/// | `SEED_DATA` | `off` makes no seed data | on |
/// | `BALLET_LOG` | log filter (`info`, `shop_orders=debug`) | `info` |
#[derive(Clone, Debug)]
pub struct Config {
    /// The service's name.
    pub service: ServiceName,
    /// Which instance this is: `orders-1`.
    pub instance: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The store's file.
    pub store: PathBuf,
    /// The own sidecar's address.
    pub sidecar: Option<String>,
    /// The platform's address.
    pub platform: Option<String>,
    /// Whether seed data is made.
    pub seed: bool,
    env: BTreeMap<String, String>,
}

/// Why the environment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The service's name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A variable is malformed.
    #[error("`{variable}` is `{value}`: {rule}")]
    Variable {
        /// Which.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        rule: &'static str,
    },
}

impl Classify for ConfigError {
    fn code(&self) -> ErrorCode {
        ErrorCode("CH001")
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// A malformed variable.
    pub fn from_env(service: &str) -> Result<Self, ConfigError> {
        Self::from_pairs(
            service,
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// Reads the given variables; for tests.
    ///
    /// # Errors
    /// A malformed variable.
    pub fn from_pairs(
        service: &str,
        pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Result<Self, ConfigError> {
        let env: BTreeMap<String, String> =
            pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let get = |name: &str| env.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let name: ServiceName = service.parse()?;

        let port = get("PORT").unwrap_or("0");
        let port = port.parse::<u16>().map_err(|_| bad("PORT", port, "a port, 0 to 65535"))?;
        let host = get("HOST").map_or(Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)), |host| {
            host.parse().map_err(|_| bad("HOST", host, "an IP address"))
        })?;
        let store = match get("STORE_URL") {
            None => format!(".ballet/services/{0}/{0}.db", name.name()).into(),
            Some(url) => {
                let path = url.strip_prefix("sqlite:").filter(|path| !path.is_empty() && !path.starts_with(':'));
                let path = path.ok_or_else(|| bad("STORE_URL", url, "`sqlite:` and the path of a file"))?;
                // `sqlite:///var/x.db` is the same file as `sqlite:/var/x.db`.
                PathBuf::from(path.strip_prefix("//").unwrap_or(path))
            }
        };
        let address = |variable: &'static str| match get(variable) {
            Some(url) if !url.starts_with("http://") => {
                Err(bad(variable, url, "an address such as http://127.0.0.1:7070"))
            }
            Some(url) => Ok(Some(url.trim_end_matches('/').to_owned())),
            None => Ok(None),
        };
        Ok(Self {
            instance: get("BALLET_INSTANCE").map_or_else(|| format!("{}-1", name.name()), str::to_owned),
            listen: SocketAddr::new(host, port),
            store,
            sidecar: address("BALLET_URL")?,
            platform: address("BALLET_PLATFORM")?,
            seed: get("SEED_DATA") != Some("off"),
            service: name,
            env,
        })
    }

    /// A variable of the environment.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    /// Address of another service: `$<NAME>_URL`, upper case, `-` as `_`.
    pub fn service_url(&self, service: &str) -> Option<&str> {
        let name: String =
            service.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        self.env(&format!("{name}_URL")).map(|url| url.trim_end_matches('/'))
    }
}

fn bad(variable: &'static str, value: &str, rule: &'static str) -> ConfigError {
    ConfigError::Variable { variable, value: value.to_owned(), rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_once_and_strictly() {
        let config = Config::from_pairs(
            "order-list",
            [
                ("PORT", "8123"),
                ("STORE_URL", "sqlite:/tmp/x.db"),
                ("CARD_VAULT_URL", "http://127.0.0.1:1/"),
                ("BALLET_URL", ""),
            ],
        )
        .unwrap();
        assert_eq!((config.listen.port(), config.store.to_str().unwrap()), (8123, "/tmp/x.db"));
        assert_eq!(config.service_url("card-vault"), Some("http://127.0.0.1:1"));
        assert_eq!((config.sidecar, config.instance.as_str()), (None, "order-list-1"));
        for (variable, value) in
            [("PORT", "x"), ("STORE_URL", "postgres://x"), ("BALLET_PLATFORM", "ftp://x"), ("HOST", "a b")]
        {
            let error = Config::from_pairs("a", [(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains(value), "{error}");
        }
        assert!(Config::from_pairs("No Name", [("PORT", "1")]).is_err());
    }
}
