//! The files of phase scripts: the project's executable `.larder/<phase>`, and the variables that a script reads and changes.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde_json::{Map, Value};

/// The maximum size of the variables as JSON, in bytes.
pub(super) const MAX_VARIABLES: u64 = 256 * 1024;
/// The maximum depth of nested objects and lists.
const MAX_DEPTH: usize = 32;

/// The kind of file at the path of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScriptFile {
    /// There is no regular file.
    Missing,
    /// The file has no executable bit.
    NotExecutable,
    /// The file is executable.
    Executable,
}

/// Returns the kind of file at the path of a script.
pub(super) fn look(path: &Path) -> ScriptFile {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => ScriptFile::Executable,
        Ok(found) if found.is_file() => ScriptFile::NotExecutable,
        Ok(_) | Err(_) => ScriptFile::Missing,
    }
}

/// Reads the file of variables after a script has run.
pub(super) fn read_back(path: &Path) -> Result<Map<String, Value>, String> {
    // The script may have replaced the file, so this call follows no symlink and does not wait for the writer of a pipe.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let gone = |error: io::Error| format!("cannot read the file: {error}");
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(gone)?;
    let metadata = file.metadata().map_err(gone)?;
    if !metadata.is_file() {
        return Err(String::from("the script replaced the file with another kind of file"));
    }
    let size = metadata.len();
    let mut text = String::new();
    file.take(MAX_VARIABLES + 1).read_to_string(&mut text).map_err(gone)?;
    if text.len() as u64 > MAX_VARIABLES {
        return Err(format!("the file has {size} bytes (limit {MAX_VARIABLES} bytes)"));
    }
    parse(&text)
}

/// Parses variables: a JSON object of limited depth.
pub fn parse(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text).map_err(|error| format!("the text is not JSON: {error}"))? {
        Value::Object(object) if object.values().all(|value| is_within_depth(value, MAX_DEPTH)) => Ok(object),
        Value::Object(_) => Err(format!("the JSON is nested more than {MAX_DEPTH} levels deep")),
        _ => Err(String::from("the JSON is not an object")),
    }
}

/// Returns true if a value is at most `left` levels deep.
fn is_within_depth(value: &Value, left: usize) -> bool {
    match (value, left) {
        (Value::Object(_) | Value::Array(_), 0) => false,
        (Value::Object(inner), _) => inner.values().all(|value| is_within_depth(value, left - 1)),
        (Value::Array(inner), _) => inner.iter().all(|value| is_within_depth(value, left - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_are_not_a_shallow_object_are_refused() {
        assert!(parse("{\"a\": [1, {\"b\": null}]}").is_ok());
        assert!(parse("[1]").is_err() && parse("{").is_err() && parse("").is_err());
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(40), "]".repeat(40));
        assert!(parse(&deep).unwrap_err().contains("deep"));
    }

    #[test]
    fn variables_in_links_pipes_or_large_files_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("variables.json");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read_back(&path).is_err());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read_back(&path).unwrap_err().contains("replaced the file"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, format!("{{\"a\": \"{}\"}}", "x".repeat(300_000))).unwrap();
        assert!(read_back(&path).unwrap_err().contains("(limit 262144 bytes)"));
    }
}
