//! Reads the process types from the YAML that `bin/release` prints.

use serde::Deserialize;

use crate::{
    config::yaml::{self, FileLimits},
    model::ProcessType,
};

/// The part of the YAML that larder uses. The keys `addons` and `config_vars` of Heroku's API have no effect.
#[derive(Debug, Default, Deserialize)]
struct Document {
    #[serde(default)]
    default_process_types: Option<indexmap::IndexMap<String, String>>,
}

/// The maximum number of process types.
const MAX_TYPES: usize = 64;
/// The maximum length of a command in bytes.
const MAX_COMMAND: usize = 4096;

/// Returns the default process types in the output of `bin/release`.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<(ProcessType, String)>, String> {
    let mut processes = Vec::new();
    for (name, command) in document(bytes)?.default_process_types.unwrap_or_default() {
        let name: ProcessType = name.parse().map_err(|error| format!("default_process_types: {error}"))?;
        let command = command.trim().to_owned();
        if command.is_empty() || command.len() > MAX_COMMAND || command.contains(['\n', '\0']) {
            return Err(format!("default_process_types: the command of {name} must be one line of at most {MAX_COMMAND} bytes"));
        }
        if processes.len() == MAX_TYPES {
            return Err(format!("default_process_types: at most {MAX_TYPES} process types are allowed"));
        }
        processes.push((name, command));
    }
    Ok(processes)
}

fn document(bytes: &[u8]) -> Result<Document, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Document::default());
    }
    let document: Option<Document> = yaml::parse("bin/release", bytes, FileLimits::RECIPE).map_err(|error| error.to_string())?;
    Ok(document.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
        Ok(parse(text.as_bytes())?.into_iter().map(|(name, command)| (name.to_string(), command)).collect())
    }

    #[test]
    fn documents_of_real_buildpacks_are_read() {
        let web = vec![(String::from("web"), String::from("npm start"))];
        assert_eq!(pairs("---\naddons: []\ndefault_process_types:\n  web: npm start\n"), Ok(web.clone()));
        assert_eq!(
            pairs("addons:\n  - heroku-postgresql\nconfig_vars:\n  A: b\ndefault_process_types:\n  web: npm start\n"),
            Ok(web)
        );
        for empty in ["", "\n", "--- {}\n", "---\n", "---\n{}\n", "default_process_types:\n"] {
            assert_eq!(pairs(empty), Ok(vec![]), "{empty:?}");
        }
    }

    #[test]
    fn malformed_documents_are_refused() {
        for bad in
            ["default_process_types: 3", "default_process_types:\n  'a b': x\n", "default_process_types:\n  web: ''\n", "[1", "{"]
        {
            assert!(pairs(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&[0xff, 0xfe]).is_err());
    }
}
