//! The settings of the static server, from its options, from `static.json`, and from environment variables.

use std::{ffi::OsString, fs, io, io::Read, net::SocketAddr, path::PathBuf};

use hyper::header::{HeaderName, HeaderValue};
use indexmap::IndexMap;
use serde::Deserialize;

const USAGE: &str = "usage: larder static-server [--root DIRECTORY] [--fallback FILE] [--port PORT]\n\
    The default port is the value of the environment variable PORT.";
/// The maximum size of `static.json`, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// An error that prevents the start of the server.
#[derive(Debug, thiserror::Error)]
pub(super) enum StaticError {
    /// The options are invalid.
    #[error("{0}")]
    Usage(String),
    /// `static.json` or the directory cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The address cannot be bound.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The asynchronous runtime cannot be started.
    #[error("cannot start the server")]
    Start(#[source] io::Error),
}

/// The settings of the server.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StaticSettings {
    /// The directory that is served.
    pub root: PathBuf,
    /// The port on the loopback address.
    pub port: u16,
    /// True to redirect `/about.html` to `/about`.
    pub clean_urls: bool,
    /// Pairs of a pattern and a file. The file is sent with status 200 for matching paths that have no file of their own.
    pub routes: Vec<(String, String)>,
    /// The file that is sent with status 404 if no other file matches a path.
    pub error_page: Option<String>,
    /// Pairs of a pattern and headers. The headers are set in the responses to matching paths.
    pub headers: Vec<(String, Vec<(HeaderName, HeaderValue)>)>,
    /// The value of the response header `Larder-Release`; `None` to send no such header.
    pub release: Option<HeaderValue>,
}

/// The keys of Heroku's `static.json` that larder accepts. Routes keep their order in the file, because the first matching route is used.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    root: Option<String>,
    #[serde(default)]
    clean_urls: bool,
    #[serde(default)]
    routes: IndexMap<String, serde_json::Value>,
    error_page: Option<String>,
    #[serde(default)]
    headers: IndexMap<String, IndexMap<String, String>>,
    /// This key is ignored, because the TLS proxy in front of larder redirects to https. The key is accepted, so that a `static.json` for
    /// another static server needs no change.
    #[serde(default, rename = "https_only")]
    _https_only: bool,
}

impl StaticSettings {
    /// Combines the options, `static.json` in the working directory, and the values of `PORT` and `LARDER_RELEASE`. An option takes
    /// precedence over the file.
    pub fn new(
        arguments: impl IntoIterator<Item = OsString>,
        port: Option<OsString>,
        release: Option<OsString>,
    ) -> Result<StaticSettings, StaticError> {
        let usage = |what: String| StaticError::Usage(format!("{what}\n{USAGE}"));
        let (mut root, mut fallback, mut port) = (None, None, port);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let text = argument.to_string_lossy().into_owned();
            let (name, value) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(OsString::from(value))),
                _ => (text, None),
            };
            let option = match name.as_str() {
                "--root" => &mut root,
                "--fallback" => &mut fallback,
                "--port" => &mut port,
                other => return Err(usage(format!("unknown option {other:?} (expected --root, --fallback or --port)"))),
            };
            *option = Some(value.or_else(|| arguments.next()).ok_or_else(|| usage(format!("the option {name} has no value")))?);
        }
        let port =
            port.ok_or_else(|| usage(String::from("no port is given (expected --port, or the environment variable PORT)")))?;
        let port = port
            .to_str()
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| usage(format!("invalid port {port:?} (expected 0-65535)")))?;

        let file = File::read()?;
        let wrong = |why: String| StaticError::Settings(format!("static.json: {why}"));
        let mut headers = Vec::new();
        for (pattern, pairs) in file.headers {
            let mut parsed = Vec::new();
            for (name, value) in pairs {
                let header = HeaderName::try_from(&name).map_err(|_| wrong(format!("headers: invalid header name {name:?}")))?;
                if ["content-length", "transfer-encoding", "connection", "content-range"].contains(&header.as_str()) {
                    return Err(wrong(format!("headers: the header {name} is not allowed, because the server sets this header")));
                }
                let value = HeaderValue::try_from(value)
                    .map_err(|_| wrong(format!("headers: invalid value of {name} (expected printable characters)")))?;
                parsed.push((header, value));
            }
            headers.push((pattern, parsed));
        }
        let mut routes = Vec::new();
        for (pattern, target) in file.routes {
            let target = target
                .as_str()
                .ok_or_else(|| wrong(format!("routes: invalid target of {pattern:?} (expected the name of a file)")))?;
            routes.push((pattern, target.trim_start_matches('/').to_owned()));
        }
        if let Some(fallback) = fallback {
            let fallback =
                fallback.into_string().map_err(|name| usage(format!("invalid file name {name:?} (expected UTF-8)")))?;
            routes.push((String::from("/**"), fallback.trim_start_matches('/').to_owned()));
        }
        let root = root.map(PathBuf::from).or_else(|| file.root.map(PathBuf::from)).unwrap_or_else(|| PathBuf::from("."));
        let error_page = file.error_page.map(|page| page.trim_start_matches('/').to_owned());
        let release = release.and_then(|release| HeaderValue::try_from(release.to_str()?).ok());
        Ok(StaticSettings { root, port, clean_urls: file.clean_urls, routes, error_page, headers, release })
    }
}

impl File {
    /// Reads `static.json` in the working directory. Returns the defaults if the file does not exist.
    fn read() -> Result<File, StaticError> {
        let wrong = |why: String| StaticError::Settings(format!("static.json: {why}"));
        let file = match fs::File::open("static.json") {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(wrong(format!("the file is too large (limit {} KiB)", MAX_BYTES / 1024)));
        }
        File::parse(&text).map_err(|error| wrong(error.to_string()))
    }

    fn parse(text: &str) -> Result<File, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Returns true if `path` matches `pattern`. In a pattern, `*` stands for any text without a slash, and `**` stands for any text.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    // `reachable[i]` is true if the processed part of the pattern matches the first `i` bytes of the path. The running time is at most
    // proportional to the product of both lengths.
    let bytes = path.as_bytes();
    let mut reachable = vec![false; bytes.len() + 1];
    if let Some(first) = reachable.first_mut() {
        *first = true;
    }
    let mut pattern = pattern.as_bytes();
    while let Some((&wanted, rest)) = pattern.split_first() {
        let mut next = vec![false; bytes.len() + 1];
        if wanted == b'*' {
            let any = rest.first() == Some(&b'*');
            let mut inside = false;
            for (index, slot) in next.iter_mut().enumerate() {
                let before = index.checked_sub(1).and_then(|index| bytes.get(index));
                inside = (inside && (any || before != Some(&b'/'))) || reachable.get(index) == Some(&true);
                *slot = inside;
            }
            pattern = if any { rest.get(1..).unwrap_or_default() } else { rest };
        } else {
            for (index, slot) in next.iter_mut().enumerate().skip(1) {
                *slot = reachable.get(index - 1) == Some(&true) && bytes.get(index - 1) == Some(&wanted);
            }
            pattern = rest;
        }
        reachable = next;
    }
    reachable.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str], port: Option<&str>) -> Result<StaticSettings, StaticError> {
        StaticSettings::new(arguments.iter().map(OsString::from), port.map(OsString::from), Some("v7".into()))
    }

    #[test]
    fn wrong_option_is_refused_with_the_usage() {
        let found = settings(&["--root", "dist", "--fallback=/index.html"], Some("80")).unwrap();
        assert_eq!((found.root, found.port), (PathBuf::from("dist"), 80));
        assert_eq!(found.routes, [("/**".into(), "index.html".into())]);
        assert_eq!(found.release.unwrap(), "v7");
        for bad in [&["--rot", "x"][..], &["--root"], &["x"], &["--port", "x"], &["--port", "70000"]] {
            assert!(matches!(settings(bad, Some("1")), Err(StaticError::Usage(_))), "{bad:?}");
        }
        assert!(matches!(settings(&[], None), Err(StaticError::Usage(_))));
    }

    #[test]
    fn static_json_with_an_unknown_key_is_refused() {
        let file = File::parse(
            r#"{"root": "dist", "clean_urls": true, "https_only": true, "routes": {"/api/*": "api.html", "/**": "index.html"},
                "error_page": "404.html", "headers": {"/assets/**": {"Cache-Control": "public, max-age=31536000"}}}"#,
        )
        .unwrap();
        assert!(file.clean_urls && file.routes.len() == 2 && file.headers.len() == 1);
        let order = |file: File| file.routes.into_keys().chain(file.headers.into_keys()).collect::<Vec<_>>();
        let file = r#"{"routes": {"/b/*": "b.html", "/a/*": "a.html", "/**": "i.html"}, "headers": {"/z": {}, "/**": {}}}"#;
        assert_eq!(order(File::parse(file).unwrap()), ["/b/*", "/a/*", "/**", "/z", "/**"]);
        assert!(File::parse(r#"{"rot": "dist"}"#).unwrap_err().to_string().contains("rot"));
        assert!(File::parse("[").is_err());
    }

    #[test]
    fn pattern_matches_within_or_across_directories() {
        for (pattern, path, expected) in [
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/*", "/a", true),
            ("/*", "/a/b", false),
            ("/*.html", "/a.html", true),
            ("/*.html", "/a.htm", false),
            ("/a/**/z", "/a/b/c/z", true),
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("", "/", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        // A backtracking matcher would take exponential time for this pattern.
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
    }
}
