//! The checked values of configuration files: durations, sizes, paths, hosts, names of variables, buildpacks.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::error::shown;
use crate::model::{CommitId, checked_text, text_form};

/// A span of time, written `500ms`, `90s`, `15m`, `1h` or `2d`; at most 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeSpan(Duration);

impl TimeSpan {
    /// What is expected, for errors.
    pub(super) const EXPECTED: &'static str = "a duration such as 500ms, 90s, 15m or 1h";
    const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

    /// So many seconds.
    pub const fn seconds(seconds: u64) -> TimeSpan {
        TimeSpan(Duration::from_secs(seconds))
    }

    /// So many minutes.
    pub const fn minutes(minutes: u64) -> TimeSpan {
        TimeSpan(Duration::from_secs(minutes * 60))
    }

    /// The same for the clock.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeSpan {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let number: u64 = number.parse().map_err(|_| format!("{} is not a duration", shown(text)))?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("{} has no unit", shown(text))),
            other => return Err(format!("{} has the unknown unit {}", shown(text), shown(other))),
        };
        let span = number.checked_mul(milliseconds).map(Duration::from_millis).filter(|span| *span <= Self::LONGEST);
        span.map(TimeSpan).ok_or_else(|| format!("{} is longer than 30 days", shown(text)))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units.into_iter().find(|(unit, _)| milliseconds > 0 && milliseconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", milliseconds / unit),
            None => write!(f, "{milliseconds}ms"),
        }
    }
}

text_form!(TimeSpan, String);

/// An amount of memory or disk, written `512K`, `64M`, `2G` or `1T` (powers of 1024), or as plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

impl ByteSize {
    /// What is expected, for errors.
    pub(super) const EXPECTED: &'static str = "a size such as 512M or 2G";

    /// So many MiB.
    pub const fn mebibytes(number: u64) -> ByteSize {
        ByteSize(number << 20)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let number: u64 = number.parse().map_err(|_| format!("{} is not a size", shown(text)))?;
        let factor: u64 = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 1,
            "K" | "KB" | "KIB" => 1 << 10,
            "M" | "MB" | "MIB" => 1 << 20,
            "G" | "GB" | "GIB" => 1 << 30,
            "T" | "TB" | "TIB" => 1 << 40,
            _ => return Err(format!("{} has the unknown unit {}", shown(text), shown(unit))),
        };
        // Bounded so that sums of sizes cannot overflow and every figure fits the kernel's signed ones.
        let bytes = number.checked_mul(factor).filter(|bytes| *bytes <= 1 << 50);
        bytes.map(ByteSize).ok_or_else(|| format!("{} is more than 1024T", shown(text)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        match units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, name)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

text_form!(ByteSize, String);

fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    (number, unit.trim_start_matches(' '))
}

checked_text!(
    /// The name of an environment variable that a project may set.
    VariableName,
    String,
    |text| {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        if !first || text.len() > 128 || !bytes.all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            return Err(format!("{} is not a name for a variable (letters, digits and _, not starting with a digit)", shown(text)));
        }
        if matches!(text, "PORT" | "HOME") || text.starts_with("LARDER_") {
            return Err(format!("the variable {text} is set by larder itself"));
        }
        // These would also change the programs of larder that start the process.
        if text.starts_with("LD_") || matches!(text, "IFS" | "BASH_ENV" | "ENV" | "SHELLOPTS" | "BASHOPTS" | "PS4") {
            return Err(format!("the variable {text} changes how every program starts and is not allowed"));
        }
        Ok(())
    }
);

checked_text!(
    /// A path relative to the application's directory: no `..`, no empty parts, not larder's own files.
    RelativePath,
    String,
    |text| {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if text.starts_with('/') || text.starts_with('~') {
            return Err(format!("{} is not relative to the application", shown(text)));
        }
        if text.len() > 512 || text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(format!("{} is too long or has control characters or backslashes", shown(text)));
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("{} has an empty, \".\" or \"..\" part", shown(text)));
        }
        if text.split('/').any(|part| part.len() > 255) {
            return Err(format!("{} has a part of more than 255 bytes", shown(text)));
        }
        if matches!(text.split('/').next(), Some(".git" | ".larder")) {
            return Err(format!("{} is reserved", shown(text)));
        }
        Ok(())
    }
);

impl RelativePath {
    /// Whether one of the two is, or lies inside, the other.
    pub fn overlaps(&self, other: &RelativePath) -> bool {
        let inside =
            |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        inside(&self.0, &other.0) || inside(&other.0, &self.0)
    }
}

checked_text!(
    /// A host name, in lower case.
    Domain,
    String,
    |text| {
        let label = |part: &str| {
            (1..=63).contains(&part.len())
                && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        if text.len() > 253 || !text.split('.').all(label) {
            return Err(format!("{} is not a host name in lower case", shown(text)));
        }
        if text.split('.').all(|part| part.bytes().all(|c| c.is_ascii_digit())) {
            return Err(format!("{} is an address, not a host name", shown(text)));
        }
        Ok(())
    }
);

impl Domain {
    /// `localhost`, of which every sub-domain is this machine too.
    pub fn localhost() -> Domain {
        Domain("localhost".to_owned())
    }
}

checked_text!(
    /// The path of a request, such as `/healthz`.
    HttpPath,
    String,
    |text| {
        if text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|c| c.is_ascii_graphic() && c != b'#') {
            Ok(())
        } else {
            Err(format!("{} is not the path of a request", shown(text)))
        }
    }
);

checked_text!(
    /// A shell command of the project, run inside its sandbox; one or more lines.
    CommandLine,
    String,
    |text| {
        if text.trim().is_empty() {
            return Err("the command is empty".to_owned());
        }
        if text.len() > 16 * 1024 {
            return Err(format!("the command has {} bytes; at most 16384 are allowed", text.len()));
        }
        if text.contains('\0') {
            return Err("the command has a NUL character".to_owned());
        }
        Ok(())
    }
);

/// The range of HTTP statuses that count as healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StatusRange {
    /// The lowest.
    pub from: u16,
    /// The highest.
    pub to: u16,
}

impl StatusRange {
    /// Whether `status` is in it.
    pub fn contains(self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| {
            let text = text.trim();
            (text.len() == 3).then(|| text.parse::<u16>().ok()).flatten().filter(|status| (100..=599).contains(status))
        };
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (status(from), status(to)) {
            (Some(from), Some(to)) if from <= to => Ok(StatusRange { from, to }),
            _ => Err(format!("{} is not a status or a range of them", shown(text))),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}-{}", self.from, self.to) }
    }
}

text_form!(StatusRange, String);

/// A buildpack that a project asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BuildpackRef {
    /// One that larder brings along or the operator installed.
    Named(String),
    /// A directory of the project itself, relative to its top.
    Directory(RelativePath),
    /// A repository in Heroku's buildpack format.
    Git {
        /// An `https://` or `http://` address.
        url: String,
        /// The commit after `#`; without one, the same push could be built by another program tomorrow.
        commit: CommitId,
    },
}

impl BuildpackRef {
    /// What is expected, for errors.
    pub(super) const EXPECTED: &'static str =
        "a name such as python, a directory such as ./tools/buildpack, or https://host/repository#commit";
}

impl FromStr for BuildpackRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("./") {
            return Ok(BuildpackRef::Directory(path.trim_end_matches('/').parse()?));
        }
        // Heroku's own short names mean the language.
        let name = text.strip_prefix("urn:buildpack:").unwrap_or(text);
        let name = match name.strip_prefix("heroku/").unwrap_or(name) {
            "nodejs" => "node",
            "jvm" | "gradle" => "java",
            "heroku-community/static" => "static",
            other => other,
        };
        let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 63 && name.bytes().all(word) {
            return Ok(BuildpackRef::Named(name.to_owned()));
        }
        let (url, commit) = text.split_once('#').unwrap_or((text, ""));
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let good = rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()) && rest.len() <= 1024)
            && url.bytes().all(|c| c.is_ascii_graphic() && !b"\"'`\\<>".contains(&c));
        if !good {
            return Err(format!("{} is not a buildpack", shown(text)));
        }
        if commit.is_empty() {
            return Err(format!("{} names no commit (`git ls-remote {url} HEAD` shows the newest)", shown(text)));
        }
        let commit = commit.parse().map_err(|_| format!("{} is not a commit of 40 hexadecimal digits", shown(commit)))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_round_trip() {
        for text in ["500ms", "90s", "15m", "1h", "2d", "0ms"] {
            assert_eq!(text.parse::<TimeSpan>().unwrap().to_string(), text);
        }
        for text in ["1", "512K", "64M", "2G", "1T", "0"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert_eq!("2 GiB".parse::<ByteSize>().unwrap().bytes(), 2 << 30);
        assert_eq!("60s".parse::<TimeSpan>().unwrap(), TimeSpan::minutes(1));
        for bad in ["", "s", "5", "5 weeks", "-5s", "99999999999999999999s", "40d", "1.5h", "5\u{20ac}"] {
            assert!(bad.parse::<TimeSpan>().is_err(), "{bad}");
        }
        for bad in ["", "M", "-1", "5X", "99999999999999999999", "2048T", "1.5G"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reserved_and_dangerous_variables_are_refused() {
        for good in ["A", "_x", "DATABASE_URL", "PATH"] {
            assert!(good.parse::<VariableName>().is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "PORT", "HOME", "LARDER_DATA", "LD_PRELOAD", "BASH_ENV", "A=B", "A\nB", "\u{e9}"] {
            assert!(bad.parse::<VariableName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_stay_inside_the_application() {
        for good in ["media", "var/uploads", "a.b/.c"] {
            assert!(good.parse::<RelativePath>().is_ok(), "{good}");
        }
        for bad in ["", "/etc", "../x", "a/../b", "a//b", "a/", "./a", "a\0b", "~/x", ".git/x", ".larder", "a\\b"] {
            assert!(bad.parse::<RelativePath>().is_err(), "{bad}");
        }
        let path = |text: &str| text.parse::<RelativePath>().unwrap();
        assert!(path("a").overlaps(&path("a/b")) && path("a/b").overlaps(&path("a")) && path("a").overlaps(&path("a")));
        assert!(!path("a").overlaps(&path("ab")));
    }

    #[test]
    fn buildpacks_are_names_or_pinned_addresses() {
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
        ] {
            assert!(bad.parse::<BuildpackRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses_and_hosts() {
        assert!("200-399".parse::<StatusRange>().unwrap().contains(302));
        for bad in ["", "20", "399-200", "200-", "600", "+20"] {
            assert!(bad.parse::<StatusRange>().is_err(), "{bad}");
        }
        for good in ["shop.example.com", "localhost", "a-b.c"] {
            assert!(good.parse::<Domain>().is_ok(), "{good}");
        }
        for bad in ["", "Shop.com", "a..b", "-a.b", "*.a.b", "a.b:80", "10.0.0.1", "a/b"] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
