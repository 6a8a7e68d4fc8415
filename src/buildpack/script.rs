//! Phase scripts: the project's `.larder/<phase>`, which may read and change the variables.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde_json::{Map, Value};

/// Bytes of variables, as JSON.
pub(super) const VARIABLES: u64 = 256 * 1024;
/// Objects within objects.
const DEPTH: usize = 32;

/// What stands at the path of a phase script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: most phases have none.
    Nothing,
    /// A file, but its executable bit is missing.
    NotExecutable,
    /// A script.
    Script,
}

/// Looks at the path of a script.
pub(super) fn look(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Found::Script,
        Ok(found) if found.is_file() => Found::NotExecutable,
        Ok(_) | Err(_) => Found::Nothing,
    }
}

/// Reads what a script left in the file of variables.
pub(super) fn read_back(path: &Path) -> Result<Map<String, Value>, String> {
    // The script may have put anything there: no link is followed, no pipe waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let gone = |error: io::Error| format!("the file cannot be read: {error}");
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(gone)?;
    if !file.metadata().map_err(gone)?.is_file() {
        return Err(String::from("it is not a file any more"));
    }
    let mut text = String::new();
    file.take(VARIABLES + 1).read_to_string(&mut text).map_err(gone)?;
    if text.len() as u64 > VARIABLES {
        return Err(format!("it is larger than {} KiB", VARIABLES / 1024));
    }
    parse(&text)
}

/// Variables from JSON text: an object that is not too deep.
pub fn parse(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))? {
        Value::Object(object) if object.values().all(|value| depth(value, DEPTH)) => Ok(object),
        Value::Object(_) => Err(format!("it is nested more than {DEPTH} deep")),
        _ => Err(String::from("it is JSON, but not an object")),
    }
}

fn depth(value: &Value, left: usize) -> bool {
    match (value, left) {
        (Value::Object(_) | Value::Array(_), 0) => false,
        (Value::Object(inner), _) => inner.values().all(|value| depth(value, left - 1)),
        (Value::Array(inner), _) => inner.iter().all(|value| depth(value, left - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_a_sane_shape_come_back() {
        assert!(parse("{\"a\": [1, {\"b\": null}]}").is_ok());
        assert!(parse("[1]").is_err() && parse("{").is_err() && parse("").is_err());
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(40), "]".repeat(40));
        assert!(parse(&deep).unwrap_err().contains("deep"));
    }

    #[test]
    fn links_pipes_and_large_files_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("variables.json");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read_back(&path).is_err());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read_back(&path).unwrap_err().contains("not a file"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, format!("{{\"a\": \"{}\"}}", "x".repeat(300_000))).unwrap();
        assert!(read_back(&path).unwrap_err().contains("larger"));
    }
}
