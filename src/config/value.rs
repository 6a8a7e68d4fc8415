//! Names, paths and commands in configuration files. Parsing a value checks its text.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::error::shown;
use crate::model::{CommitId, checked_text};

/// The maximum length of a variable's name, in bytes.
const MAX_VARIABLE_NAME: usize = 128;
/// The maximum length of a path in the application, in bytes.
const MAX_RELATIVE_PATH: usize = 512;
/// The maximum length of a part of a path, in bytes (`NAME_MAX` of Linux).
const MAX_PATH_PART: usize = 255;
/// The maximum length of a host name, in bytes. The 255 octets of RFC 1035, section 2.3.4, are 253 characters of text.
const MAX_DOMAIN: usize = 253;
/// The maximum length of a label of a host name, in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;
/// The maximum length of the path of a request, in bytes.
const MAX_HTTP_PATH: usize = 1024;
/// The maximum length of a command, in bytes.
const MAX_COMMAND: usize = 16 * 1024;
/// The maximum length of the name of a buildpack, in bytes.
const MAX_BUILDPACK_NAME: usize = 63;
/// The maximum length of the address of a buildpack, in bytes.
const MAX_BUILDPACK_URL: usize = 1024;
/// The maximum length of a path on the host, in bytes.
const MAX_HOST_PATH: usize = 1024;

checked_text!(
    /// The name of an environment variable that a project may set.
    VariableName,
    String,
    |text| {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        if !first || text.len() > MAX_VARIABLE_NAME || !bytes.all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            return Err(format!(
                "{} is not the name of a variable (expected at most {MAX_VARIABLE_NAME} letters, digits and _, not starting with a digit)",
                shown(text)
            ));
        }
        if matches!(text, "PORT" | "HOME") || text.starts_with("LARDER_") {
            return Err(format!("the variable {text} is set by larder itself"));
        }
        // These variables would also affect the programs of larder that start a project's processes.
        if text.starts_with("LD_") || matches!(text, "IFS" | "BASH_ENV" | "SHELLOPTS" | "BASHOPTS" | "PS4") {
            return Err(format!("the variable {text} changes how every program starts and is not allowed"));
        }
        Ok(())
    }
);

impl VariableName {
    /// Returns the instruction for a name that a project may not set, or `None` for any other name.
    pub fn remedy(name: &str) -> Option<&'static str> {
        Some(match name {
            "PORT" => "remove the variable, and listen on $PORT: larder chooses the port of each process",
            "HOME" => "remove the variable: HOME is /app",
            "SOURCE_VERSION" => "remove the variable: SOURCE_VERSION is the deployed commit",
            _ if name.starts_with("LARDER_") => "choose a name that does not begin with LARDER_",
            _ if name.starts_with("LD_") => {
                "set the variable for a single command of the Procfile, as in `web: env LD_PRELOAD=/usr/lib/.../libjemalloc.so.2 bin/web`"
            }
            _ if name.parse::<VariableName>().is_err() => "choose another name",
            _ => return None,
        })
    }
}

checked_text!(
    /// A path relative to the application's directory, without empty, `.` and `..` parts, and outside of `.git` and `.larder`.
    RelativePath,
    String,
    |text| {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if text.starts_with('/') || text.starts_with('~') {
            return Err(format!("{} is not relative to the application", shown(text)));
        }
        if text.len() > MAX_RELATIVE_PATH || text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(format!("{} is too long or has control characters or backslashes", shown(text)));
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("{} has an empty, \".\" or \"..\" part", shown(text)));
        }
        if text.split('/').any(|part| part.len() > MAX_PATH_PART) {
            return Err(format!("{} has a part of more than {MAX_PATH_PART} bytes", shown(text)));
        }
        if matches!(text.split('/').next(), Some(".git" | ".larder")) {
            return Err(format!("{} is reserved", shown(text)));
        }
        Ok(())
    }
);

checked_text!(
    /// A path that persists between releases: a [`RelativePath`] that may end with a slash. The slash marks a directory, even if the name
    /// has an extension.
    DataPath,
    String,
    |text| text.strip_suffix('/').unwrap_or(text).parse::<RelativePath>().map(drop)
);

impl DataPath {
    /// Returns the path without the slash at the end.
    pub fn path(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or(&self.0)
    }

    /// Returns true if the two paths are equal, or if one path contains the other path.
    pub fn overlaps(&self, other: &DataPath) -> bool {
        let inside =
            |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        inside(self.path(), other.path()) || inside(other.path(), self.path())
    }
}

checked_text!(
    /// A host name in lower case.
    Domain,
    String,
    |text| {
        let label = |part: &str| {
            (1..=MAX_LABEL).contains(&part.len())
                && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        if text.len() > MAX_DOMAIN || !text.split('.').all(label) {
            return Err(format!("{} is not a host name in lower case", shown(text)));
        }
        if text.split('.').all(|part| part.bytes().all(|c| c.is_ascii_digit())) {
            return Err(format!("{} is an address, not a host name", shown(text)));
        }
        Ok(())
    }
);

impl Domain {
    /// Returns the domain `localhost`, whose subdomains resolve to this machine, too (RFC 6761).
    pub fn localhost() -> Domain {
        Domain("localhost".to_owned())
    }
}

checked_text!(
    /// The path of an HTTP request, such as `/healthz`.
    HttpPath,
    String,
    |text| {
        if text.starts_with('/') && text.len() <= MAX_HTTP_PATH && text.bytes().all(|c| c.is_ascii_graphic() && c != b'#') {
            Ok(())
        } else {
            Err(format!("{} is not the path of a request", shown(text)))
        }
    }
);

checked_text!(
    /// A shell command of one or more lines, which runs in the project's sandbox.
    CommandLine,
    String,
    |text| {
        if text.trim().is_empty() {
            return Err("the command is empty".to_owned());
        }
        if text.len() > MAX_COMMAND {
            return Err(format!("the command has {} bytes; at most {MAX_COMMAND} are allowed", text.len()));
        }
        if text.contains('\0') {
            return Err("the command has a NUL character".to_owned());
        }
        Ok(())
    }
);

/// A reference to a buildpack, in a recipe, `.buildpacks` or `app.json`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BuildpackRef {
    /// The name of a buildpack of larder or of the operator.
    Named(String),
    /// A directory of the project, relative to the project's root directory.
    Directory(RelativePath),
    /// A repository in Heroku's buildpack format.
    Git {
        /// An `https://` or `http://` address.
        url: String,
        /// The commit after `#`. The commit is required, because builds with a branch or a tag would not be reproducible.
        commit: CommitId,
    },
}

impl BuildpackRef {
    /// The maximum number of buildpacks of one project.
    pub(super) const MAX: usize = 32;

    /// The expected form of the text, for errors.
    pub(super) const EXPECTED: &'static str =
        "a name such as python, a directory such as ./tools/buildpack, or https://host/repository#commit";
}

impl FromStr for BuildpackRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("./") {
            return Ok(BuildpackRef::Directory(path.trim_end_matches('/').parse()?));
        }
        // A name of a Heroku buildpack selects larder's buildpack for the same language.
        let name = text.strip_prefix("urn:buildpack:").unwrap_or(text);
        let name = match name.strip_prefix("heroku/").unwrap_or(name) {
            "nodejs" => "node",
            "jvm" | "gradle" => "java",
            "heroku-community/static" => "static",
            other => other,
        };
        let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= MAX_BUILDPACK_NAME && name.bytes().all(word) {
            return Ok(BuildpackRef::Named(name.to_owned()));
        }
        let (url, commit) = text.split_once('#').unwrap_or((text, ""));
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let good = rest
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()) && rest.len() <= MAX_BUILDPACK_URL)
            && url.bytes().all(|c| c.is_ascii_graphic() && !b"\"'`\\<>".contains(&c));
        if !good {
            return Err(format!("{} is not a buildpack", shown(text)));
        }
        if commit.is_empty() {
            return Err(format!("{} names no commit (`git ls-remote {url} HEAD` shows the newest commit)", shown(text)));
        }
        let commit = commit.parse().map_err(|_| format!("{} is not a commit of 40 or 64 hexadecimal digits", shown(commit)))?;
        Ok(BuildpackRef::Git { url: url.to_owned(), commit })
    }
}

impl fmt::Display for BuildpackRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildpackRef::Named(name) => f.write_str(name),
            BuildpackRef::Directory(path) => write!(f, "./{path}"),
            BuildpackRef::Git { url, commit } => write!(f, "{url}#{commit}"),
        }
    }
}

/// Checks the path of a host directory that becomes visible in sandboxes. Refuses system directories that must not be visible.
pub(super) fn host_path(text: &str) -> Result<PathBuf, String> {
    let parts: Vec<&str> = text.split('/').skip(1).collect();
    let clean = text.starts_with('/')
        && text.len() <= MAX_HOST_PATH
        && !text.chars().any(char::is_control)
        && parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
    if !clean {
        return Err(format!("{} is not an absolute path without \".\", \"..\" and empty parts", shown(text)));
    }
    // Directories below /root are allowed: an operator may have installed language runtimes there.
    if matches!(parts.as_slice(), ["proc" | "sys" | "dev" | "run" | "boot", ..] | ["root"]) {
        return Err(format!("{} must not be visible in sandboxes", shown(text)));
    }
    // Every sandbox mounts its own directories at these paths.
    const OWN: [&str; 16] = [
        "app",
        "area",
        "buildpacks",
        "cache",
        "data",
        "deploy",
        "hooks",
        "larder",
        "lower",
        "points",
        "repo",
        "restored",
        "restoring",
        "source",
        "tmp",
        "upper",
    ];
    if parts.first().is_some_and(|first| OWN.contains(first)) || parts.starts_with(&["var", "tmp"]) {
        return Err(format!("{} would be hidden: every sandbox has its own directory at this path", shown(text)));
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_of_larder_or_of_the_loader_is_rejected() {
        for good in ["A", "_x", "DATABASE_URL", "PATH", "ENV"] {
            assert!(good.parse::<VariableName>().is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "PORT", "HOME", "LARDER_DATA", "LD_PRELOAD", "BASH_ENV", "A=B", "A\nB", "\u{e9}"] {
            assert!(bad.parse::<VariableName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn path_that_leaves_the_application_is_rejected() {
        for good in ["media", "var/uploads", "a.b/.c"] {
            assert!(good.parse::<RelativePath>().is_ok(), "{good}");
        }
        for bad in ["", "/etc", "../x", "a/../b", "a//b", "a/", "./a", "a\0b", "~/x", ".git/x", ".larder", "a\\b"] {
            assert!(bad.parse::<RelativePath>().is_err(), "{bad}");
        }
        let path = |text: &str| text.parse::<DataPath>().unwrap();
        assert!("/".parse::<DataPath>().is_err() && "a//".parse::<DataPath>().is_err() && path("a/").path() == "a");
        assert!(path("a").overlaps(&path("a/b")) && path("a/b").overlaps(&path("a/")) && path("a/").overlaps(&path("a")));
        assert!(!path("a").overlaps(&path("ab")));
    }

    #[test]
    fn buildpack_that_is_no_name_directory_or_pinned_address_is_rejected() {
        let named = |name: &str| BuildpackRef::Named(name.to_owned());
        assert_eq!("python".parse(), Ok(named("python")));
        assert_eq!("heroku/nodejs".parse(), Ok(named("node")));
        assert_eq!("heroku-community/static".parse(), Ok(named("static")));
        assert_eq!("./tools/pack/".parse::<BuildpackRef>().unwrap().to_string(), "./tools/pack");
        assert_eq!("urn:buildpack:heroku/ruby".parse(), Ok(named("ruby")));
        let url = "https://example.com/pack.git#0123456789abcdef0123456789abcdef01234567";
        assert_eq!(url.parse::<BuildpackRef>().unwrap().to_string(), url);
        for bad in [
            "",
            "-x",
            "./",
            "./../x",
            "tools/pack",
            "ext::sh -c id",
            "git@host:pack",
            "file:///etc",
            "https://-x/y",
            "https://h/y",
            "https://h/y#main",
            "https://h/ y",
            "https://h/y#0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde",
        ] {
            assert!(bad.parse::<BuildpackRef>().is_err(), "{bad}");
        }
        let long = format!("https://h/y#{}", "a".repeat(64));
        assert!(long.parse::<BuildpackRef>().is_ok());
        let why = "https://h/y#main".parse::<BuildpackRef>().unwrap_err();
        assert!(why.contains("40 or 64 hexadecimal digits"), "{why}");
    }

    #[test]
    fn host_name_in_upper_case_or_ip_address_is_rejected() {
        for good in ["shop.example.com", "localhost", "a-b.c"] {
            assert!(good.parse::<Domain>().is_ok(), "{good}");
        }
        for bad in ["", "Shop.com", "a..b", "-a.b", "*.a.b", "a.b:80", "10.0.0.1", "a/b"] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
