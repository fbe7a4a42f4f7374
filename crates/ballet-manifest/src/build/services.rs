//! `services:` as types.

use std::collections::HashMap;

use ballet_core::ServiceName;
use indexmap::IndexMap;

use super::{Builder, command, integer, one_or_many};
use crate::format;
use crate::mistake::{MISSING_KEY, SHARED_STORE};
use crate::model::{EnvValue, Pool, Service, Source, Store};
use crate::yaml::{Entry, Node, Raw};

impl Builder<'_> {
    pub(super) fn services(&mut self) -> IndexMap<ServiceName, Service> {
        let mut stores: HashMap<String, &str> = HashMap::new();
        let mut services = IndexMap::new();
        let entries = self.section(&["services"]);
        if let Some(entry) = self.root.entry("services")
            && matches!(entry.value.raw, Raw::Map(_))
            && entries.is_empty()
        {
            let help = "add one: `orders: { run: shop-orders }`";
            self.note(&entry.key_at, MISSING_KEY, "there is no service", help);
        }
        for entry in entries {
            let service = self.service(entry);
            if let Some(node) = entry.value.get("store")
                && let Some(Store::Url(url)) = self.store(node)
                && let Some(other) = stores.insert(url.expose().to_owned(), &entry.key)
            {
                self.note(
                    &node.at,
                    SHARED_STORE,
                    format!("`{}` and `{other}` have the same store", entry.key),
                    "give each service its own database; others ask the service that owns it",
                );
            }
            if let Some(service) = service {
                services.insert(service.name.clone(), service);
            }
        }
        services
    }

    pub(super) fn store(&mut self, node: &Node) -> Option<Store> {
        let url = match &node.raw {
            Raw::Map(_) => {
                let quiet = self.mistakes.len();
                let secret = self.secret(node);
                // Asked for twice (here and for the comparison), reported once.
                let fresh = self.mistakes.split_off(quiet);
                for mistake in fresh {
                    if !self.mistakes.contains(&mistake) {
                        self.mistakes.push(mistake);
                    }
                }
                secret?
            }
            Raw::Scalar(_) | Raw::List(_) => self.secret_text(node)?,
        };
        match format::store(url.expose()) {
            Ok(true) => Some(Store::Url(url)),
            Ok(false) => Some(Store::Sqlite),
            Err(_) => None,
        }
    }

    pub(super) fn service(&mut self, entry: &Entry) -> Option<Service> {
        let node = &entry.value;
        let source = if let Some(node) = node.get("run") {
            command(node).map(Source::Run)
        } else if let Some(node) = node.get("url") {
            let url = node.text().and_then(|text| format::http_url(text, false).ok());
            if let Some(url) = &url {
                self.no_tls(node, url);
            }
            url.map(Source::Url)
        } else {
            node.get("image").and_then(Node::text).map(|text| Source::Image(text.to_owned()))
        };
        let env = node.get("env").map_or(&[][..], Node::entries).iter();
        let env: IndexMap<String, EnvValue> = env
            .filter_map(|entry| {
                let value = match &entry.value.raw {
                    Raw::Map(_) => EnvValue::Secret(self.secret(&entry.value)?),
                    Raw::Scalar(scalar) => EnvValue::Plain(scalar.value().to_owned()),
                    Raw::List(_) => return None,
                };
                Some((entry.key.clone(), value))
            })
            .collect();
        let calls = node.get("calls").map(|calls| {
            let mut names = Vec::new();
            for node in one_or_many(calls) {
                if let Some(Ok(name)) = node.text().map(format::service)
                    && self.service_known(node, &name)
                {
                    names.push(name);
                }
            }
            names
        });
        let outside = node.get("url").is_some();
        let health = node.get("health").and_then(Node::text).map(str::to_owned);
        Some(Service {
            name: entry.key.parse().ok()?,
            store: node.get("store").and_then(|node| self.store(node)),
            init: node
                .get("init")
                .map(|init| one_or_many(init).iter().filter_map(command).collect())
                .unwrap_or_default(),
            build: node.get("build").and_then(command),
            env,
            instances: node.get("instances").and_then(integer).and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
            health: health
                .or_else(|| (!outside).then(|| "/readyz".to_owned()))
                .filter(|path| path != format::HEALTH_OFF),
            pool: node.get("pool").and_then(Node::text).and_then(|t| format::pool(t).ok()).unwrap_or(Pool::Normal),
            policy: self.policy_name(node.get("policy")),
            owner: node.get("owner").and_then(Node::text).map(str::to_owned),
            calls,
            source: source?,
        })
    }
}
