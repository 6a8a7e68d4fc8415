//! Secrets of the recipe: values of the pillar that processes get as files.

use serde::{Deserialize, Serialize};

use super::{
    error::shown,
    keys::{self, Fallback, KeyRow},
    reader::ConfigReader,
    template,
    yaml::Node,
};

/// The maximum number of secret files of a project.
const MAX_FILES: usize = 64;
/// The mode of a secret file.
const DEFAULT_MODE: u32 = 0o400;

/// A value of the pillar that processes get as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFileSpec {
    /// The key of the pillar, such as `tls.key`.
    pub key: String,
    /// The name of the file in the directory `$LARDER_SECRETS`.
    pub file: String,
    /// The mode of the file.
    pub mode: u32,
}

/// The keys of one secret file in a recipe.
#[derive(Default)]
pub(super) struct SecretFileDraft {
    key: Option<String>,
    file: Option<String>,
    mode: Option<u32>,
}

const KEY: &str = "a key of the pillar, such as tls.key, of letters, digits and _-";
const FILE: &str = "the name of a file, such as tls.key, of letters, digits and ._-";

pub(super) const SECRET_FILE_KEYS: &[KeyRow<SecretFileDraft>] = &[
    KeyRow::value("key", "", Fallback::Unstated, "tls.key", |reader, node, key, draft| {
        draft.key = reader.value(node, key, KEY, |text| word(text, b"_-."));
    }),
    KeyRow::value("file", "", Fallback::Says("the key"), "server.key", |reader, node, key, draft| {
        draft.file = reader.value(node, key, FILE, |text| word(text, b"_-."));
    }),
    KeyRow::value("owner", "", Fallback::Is("app"), "app", |reader, node, key, _| {
        if node.text() != Some("app") {
            reader.mismatch(node, key, "app, the user of the processes; a secret file has no other owner");
        }
    }),
    KeyRow::value("mode", "", Fallback::Is("\"0400\""), "\"0400\"", |reader, node, key, draft| {
        draft.mode =
            reader.value(node, key, "an octal mode such as \"0400\", readable by the owner, at most \"0755\"", template::mode);
    }),
];

/// Renders the example of `secrets:` in the reference.
pub(super) fn secrets_example() -> String {
    let second = keys::render(SECRET_FILE_KEYS);
    let lines = second.lines().enumerate().map(|(at, line)| format!("{} {line}\n", if at == 0 { "-" } else { " " }));
    format!("- database.password\n{}", lines.collect::<String>())
}

/// Reads the list of secret files. A key alone is short for a file with the name of the key.
pub(super) fn read_secrets(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<SecretFileSpec> {
    let mut all: Vec<SecretFileSpec> = Vec::new();
    for item in reader.list_up_to(node, key, "[tls.key]", MAX_FILES) {
        let mut draft = SecretFileDraft::default();
        match item.text() {
            Some(_) => draft.key = reader.value(item, key, KEY, |text| word(text, b"_-.")),
            None => keys::read_section(reader, item, key, "{key: tls.key, file: server.key}", SECRET_FILE_KEYS, &mut draft),
        }
        let Some(name) = draft.key else {
            if item.text().is_none() {
                reader.problem(item, format!("{key}: a secret has no `key`")).hint =
                    Some("name the key of the pillar".to_owned());
            }
            continue;
        };
        let file = draft.file.unwrap_or_else(|| name.clone());
        if all.iter().any(|other| other.file == file) {
            let problem = format!("{key}: {} is written twice", shown(&file));
            reader.problem(item, problem).hint = Some("choose another `file`".to_owned());
            continue;
        }
        all.push(SecretFileSpec { key: name, file, mode: draft.mode.unwrap_or(DEFAULT_MODE) });
    }
    all
}

/// Parses a key of the pillar, such as `tls.key`.
pub(super) fn key_of_pillar(text: &str) -> Result<String, String> {
    word(text, b"_-.")
}

fn word(text: &str, marks: &[u8]) -> Result<String, String> {
    let is_word = (1..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || marks.contains(&c));
    if is_word { Ok(text.to_owned()) } else { Err(format!("{} is not allowed", shown(text))) }
}
