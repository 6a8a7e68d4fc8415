//! The files that a client reads on a developer's machine: the user's `config.yml`, and `larder-environments.json` in a repository.
//!
//! A repository may belong to a stranger. Therefore a file of a repository contains addresses and names only, and an unknown key is an error.

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{
    error::{ConfigError, shown},
    reader::ConfigReader,
    yaml::{self, FileLimits, Value},
};
use crate::model::{NameError, SshUrl, Target};

/// The name of the file at the top of a repository.
pub const ENVIRONMENTS_FILE: &str = "larder-environments.json";
/// The maximum number of environments in a file.
const MAX_ENVIRONMENTS: usize = 64;
/// The maximum number of hosts of an environment.
const MAX_HOSTS: usize = 16;
/// The maximum length of the name of an environment in a file, in bytes.
const MAX_NAME: usize = 31;

/// An entry of a client's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientEntry {
    /// The name that the user types.
    pub name: String,
    /// The servers of the environment, at least one.
    pub hosts: Vec<SshUrl>,
    /// The environment on these servers. If absent, the path of the address names the project.
    pub id: Option<Target>,
}

impl ClientEntry {
    /// Parses the user's `config.yml`: a mapping of names to `{url, id}`.
    pub fn parse_user_file(file: &str, bytes: &[u8]) -> Result<Vec<ClientEntry>, ConfigError> {
        let tree = yaml::parse_tree(file, bytes, FileLimits::RECIPE)?;
        let mut reader = ConfigReader::new(file);
        let mut entries = Vec::new();
        for (name, key, node) in reader.pairs(&tree, "the file", "a mapping, such as prod: {url: ssh://larder@HOST:PORT}") {
            if let Err(why) = entry_name(name) {
                reader.problem(key, why);
                continue;
            }
            let section = reader.section(node, name, &["url", "id"], "{url: ssh://larder@HOST:PORT, id: shop/production}");
            let id = section.get("id").and_then(|id| reader.value(id, "id", "PROJECT or PROJECT/ENVIRONMENT", parse_id));
            let Some(url) = section.get("url") else {
                // An unknown or wrong value was reported already.
                if node.children().any(|(key, _)| key != "id") || matches!(node.value, Value::Text(_) | Value::List(_)) {
                    continue;
                }
                reader.problem(node, format!("{name} has no url")).expected = Some(String::from("url: ssh://larder@HOST:PORT"));
                continue;
            };
            let parse = |text: &str| text.parse::<SshUrl>().map_err(|error| error.to_string());
            if let Some(url) = reader.value(url, "url", "the ssh address of a server", parse) {
                entries.push(ClientEntry { name: name.to_owned(), hosts: vec![url], id });
            }
        }
        reader
            .finish(entries)
            .map_err(|problems| problems.into_iter().next().unwrap_or_else(|| ConfigError::new(file, "unknown")))
    }

    /// Parses a `larder-environments.json`.
    pub fn parse_repository_file(bytes: &[u8]) -> Result<Vec<ClientEntry>, ConfigError> {
        let text = yaml::utf8(ENVIRONMENTS_FILE, bytes, FileLimits::RECIPE)?;
        let file: EnvironmentsFile = serde_json::from_str(text).map_err(|error| {
            let (line, column) = (u32::try_from(error.line()), u32::try_from(error.column()));
            // The message names the position at its end.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            ConfigError::new(ENVIRONMENTS_FILE, message)
                .at(line.unwrap_or_default(), column.unwrap_or_default())
                .hint("the form of the file is in docs/client.md")
        })?;
        Ok(file.environments.0)
    }
}

fn parse_id(text: &str) -> Result<Target, String> {
    text.parse().map_err(|error: NameError| error.to_string())
}

/// Checks the name of an entry. An `@` separates a name from a host, and an option begins with `-`.
fn entry_name(name: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=MAX_NAME).contains(&name.len()) && name.chars().all(inner) && !name.starts_with(['-', '.']) {
        return Ok(());
    }
    Err(format!(
        "{} is not the name of an environment (expected 1 to {MAX_NAME} letters, digits, dots, dashes and _)",
        shown(name)
    ))
}

/// The contents of a `larder-environments.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key \"environments\"")]
struct EnvironmentsFile {
    /// The address of the schema, for editors.
    #[serde(rename = "$schema", default)]
    _schema: Option<String>,
    environments: Entries,
}

/// The value of a name in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys \"id\" and \"hosts\"")]
struct Written {
    id: String,
    hosts: Vec<SshUrl>,
}

/// The entries in the order of the file. A repeated name is refused, because readers of the file would disagree on its meaning.
struct Entries(Vec<ClientEntry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping of names to environments")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<ClientEntry> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    entry_name(&name).map_err(A::Error::custom)?;
                    if entries.iter().any(|known| known.name == name) {
                        return Err(A::Error::custom(format!("the name {name} appears twice")));
                    }
                    if entries.len() == MAX_ENVIRONMENTS {
                        return Err(A::Error::custom(format!("there are more than {MAX_ENVIRONMENTS} environments")));
                    }
                    let Written { id, hosts } = map.next_value()?;
                    let id = id.parse::<Target>().map_err(A::Error::custom)?;
                    if !(1..=MAX_HOSTS).contains(&hosts.len()) {
                        let count = hosts.len();
                        return Err(A::Error::custom(format!("{name} has {count} hosts (expected 1 to {MAX_HOSTS})")));
                    }
                    if let Some(other) = hosts.iter().find(|host| host.project().is_some_and(|project| *project != id.project)) {
                        return Err(A::Error::custom(format!("{other} does not name the project {} of the id", id.project)));
                    }
                    entries.push(ClientEntry { name, hosts, id: Some(id) });
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(text: &str) -> Result<Vec<ClientEntry>, String> {
        ClientEntry::parse_repository_file(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn user(text: &str) -> Result<Vec<ClientEntry>, String> {
        ClientEntry::parse_user_file("config.yml", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn user_file_names_servers() {
        let entries = user("prod: {url: ssh://larder@web1:2222/shop, id: shop/production}\nlab:\n  url: ssh://lab\n").unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| format!("{} {} {:?}", entry.name, entry.hosts[0], entry.id.as_ref().map(ToString::to_string)))
            .collect();
        assert_eq!(shown, ["prod ssh://larder@web1:2222/shop Some(\"shop/production\")", "lab ssh://lab None"]);
        assert_eq!(user("").unwrap(), []);
        for (text, why) in [
            ("prod: ssh://web1", "mapping"),
            ("prod: {uri: ssh://web1}", "did you mean \"url\"?"),
            ("prod: {id: shop}", "prod has no url"),
            ("prod: {url: https://web1}", "is not an ssh address"),
            ("prod: {url: ssh://-oX=y}", "unusable host name"),
            ("-x: {url: ssh://web1}", "is not the name of an environment"),
            ("prod: {url: ssh://web1, id: Shop}", "lower-case"),
            ("prod: {url: ssh://web1}\nprod: {url: ssh://web2}", "prod"),
        ] {
            let error = user(text).expect_err(text);
            assert!(error.starts_with("config.yml:") && error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn repository_file_names_environments_and_hosts() {
        let entries = repository(
            r#"{"$schema": "x", "environments": {"production": {"id": "shop/production", "hosts": ["ssh://a", "ssh://b/shop"]}, "lab": {"id": "shop", "hosts": ["ssh://c"]}}}"#,
        );
        let entries = entries.unwrap();
        assert_eq!(
            entries.iter().map(|entry| (entry.name.as_str(), entry.hosts.len())).collect::<Vec<_>>(),
            [("production", 2), ("lab", 1)]
        );
    }

    #[test]
    fn hostile_repository_file_is_refused() {
        let entry = |inner: &str| format!("{{\"environments\": {{\"production\": {inner}}}}}");
        for (text, why) in [
            (String::new(), "EOF"),
            (String::from("[]"), "environments"),
            (String::from("{}"), "environments"),
            (String::from("{\"environments\": {}, \"ssh\": \"sh -c id\"}"), "unknown field `ssh`"),
            (entry("{\"id\": \"shop\"}"), "missing field `hosts`"),
            (entry("{\"hosts\": [\"ssh://a\"]}"), "missing field `id`"),
            (entry("{\"id\": \"shop\", \"hosts\": []}"), "0 hosts"),
            (
                entry("{\"id\": \"shop\", \"hosts\": [\"ssh://a\"], \"options\": [\"-oProxyCommand=id\"]}"),
                "unknown field `options`",
            ),
            (entry("{\"id\": \"shop\", \"hosts\": [\"ssh://-oProxyCommand=id\"]}"), "unusable host name"),
            (entry("{\"id\": \"shop\", \"hosts\": [\"ext::sh -c id\"]}"), "not an ssh address"),
            (entry("{\"id\": \"shop\", \"hosts\": [\"https://a/shop\"]}"), "not an ssh address"),
            (entry("{\"id\": \"shop\", \"hosts\": [\"ssh://a/other\"]}"), "does not name the project shop"),
            (entry("{\"id\": \"--help\", \"hosts\": [\"ssh://a\"]}"), "lower-case"),
            (String::from("{\"environments\": {\"-oX\": {\"id\": \"shop\", \"hosts\": [\"ssh://a\"]}}}"), "is not the name"),
            (
                String::from("{\"environments\": {\"\\u001b[2Jx\": {\"id\": \"shop\", \"hosts\": [\"ssh://a\"]}}}"),
                "is not the name",
            ),
            (
                String::from(
                    "{\"environments\": {\"a\": {\"id\": \"shop\", \"hosts\": [\"ssh://a\"]}, \"a\": {\"id\": \"shop\", \"hosts\": [\"ssh://b\"]}}}",
                ),
                "appears twice",
            ),
            ("[".repeat(70_000), "at most 65536 bytes"),
            ("[".repeat(10_000), "larder-environments.json"),
        ] {
            let error = repository(&text).expect_err(&text);
            let is_clean = !error.contains('\n') && !error.contains('\u{1b}') && error.len() < 500;
            assert!(is_clean && error.starts_with(ENVIRONMENTS_FILE) && error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn published_schema_has_the_keys_of_the_parser() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../docs/schemas/larder-environments.json")).unwrap();
        let example = &schema["examples"][0];
        let entries = ClientEntry::parse_repository_file(example.to_string().as_bytes()).unwrap();
        assert!(entries.len() >= 2 && entries.iter().any(|entry| entry.hosts.len() > 1), "{entries:?}");
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&schema["properties"]), ["$schema", "environments"]);
        let environments = &schema["properties"]["environments"];
        let entry = &environments["additionalProperties"];
        assert_eq!(keys(&entry["properties"]), ["hosts", "id"]);
        assert_eq!(entry["required"], serde_json::json!(["id", "hosts"]));
        for level in [&schema, entry] {
            assert_eq!(level["additionalProperties"], false);
        }
        assert_eq!(environments["maxProperties"], MAX_ENVIRONMENTS);
        assert_eq!(entry["properties"]["hosts"]["maxItems"], MAX_HOSTS);
    }
}
