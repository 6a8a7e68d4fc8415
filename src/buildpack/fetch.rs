//! Fetches buildpacks from git. The cache has a bare repository for each address, and each build checks out the commit again.
//!
//! The system's git runs as the build user and reads no configuration files, because the project chooses the address.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    child::{self, Capture, ScriptCommand},
    context::BuildPaths,
};

/// The cause of a failed fetch; one line.
pub(super) type FetchError = String;

/// The proxy variables of the configuration that are passed to git, also in lower case.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"];
/// The certificate variables of the configuration that are passed to git.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "GIT_SSL_CAINFO"];

/// Checks out `commit` of the buildpack at `url` into the empty directory `to`. Git gets only the variables for proxies and
/// certificates from `configuration`.
pub(super) fn fetch<W: Write + Send + 'static>(
    paths: &BuildPaths,
    url: &str,
    commit: &str,
    configuration: &[(String, OsString)],
    to: &Path,
    output: &Arc<Mutex<W>>,
) -> Result<(), FetchError> {
    let name = blake3::hash(url.as_bytes()).to_hex();
    let store = paths.cache.join("buildpacks").join(name.get(..32).unwrap_or(&name));
    let git = Git { paths, store: &store, network: network(configuration), output };
    if !store.join("HEAD").exists() {
        std::fs::create_dir_all(&store).map_err(|error| format!("cannot write the cache: {error}"))?;
        git.run(&["init", "--quiet", "--bare"])?;
    }
    let found = format!("{commit}^{{commit}}");
    if git.run(&["cat-file", "-e", &found]).is_err() {
        if git.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--end-of-options", url, commit]).is_err() {
            // Some servers do not send a commit by its id. From such a server, all branches and tags are fetched.
            let all = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
            git.run(&[&["fetch", "--quiet", "--end-of-options", url], &all[..]].concat())?;
        }
        git.run(&["rev-parse", "--verify", "--quiet", &found]).map_err(|_| format!("{url} has no commit {commit}"))?;
    }
    let tree = format!("--work-tree={}", to.display());
    git.run(&[&tree, "checkout", "--quiet", "--force", commit, "--", "."])?;
    // Git's index describes a work tree that this build removes, so the next build must not use the index.
    drop(std::fs::remove_file(store.join("index")));
    Ok(())
}

/// Returns the variables for git: the proxies and certificates of `configuration`.
fn network(configuration: &[(String, OsString)]) -> Vec<(OsString, OsString)> {
    let proxy = |name: &str| PROXIES.iter().any(|known| name == *known || name == known.to_ascii_lowercase());
    let known = configuration.iter().filter(|(name, _)| proxy(name) || CERTIFICATES.contains(&name.as_str()));
    let mut all: Vec<(OsString, OsString)> = known.map(|(name, value)| (name.into(), value.into())).collect();
    // Git uses curl. For http:// addresses, curl ignores HTTP_PROXY in upper case, because a client of a CGI program can set this variable
    // with a header. SSL_CERT_FILE works only if curl was built with OpenSSL.
    for (given, understood) in [("HTTP_PROXY", "http_proxy"), ("SSL_CERT_FILE", "GIT_SSL_CAINFO")] {
        let find = |wanted: &str| configuration.iter().find(|(name, _)| name == wanted);
        if let (Some((_, value)), None) = (find(given), find(understood)) {
            all.push((understood.into(), value.into()));
        }
    }
    all
}

struct Git<'a, W> {
    paths: &'a BuildPaths,
    store: &'a PathBuf,
    network: Vec<(OsString, OsString)>,
    output: &'a Arc<Mutex<W>>,
}

impl<W: Write + Send + 'static> Git<'_, W> {
    /// Runs git on the store and returns the first line of its output.
    fn run(&self, arguments: &[&str]) -> Result<String, FetchError> {
        let mut git_dir = std::ffi::OsString::from("--git-dir=");
        git_dir.push(self.store);
        let fixed = ["-c", "core.hooksPath=/dev/null", "-c", "protocol.version=2", "-c", "gc.auto=0"];
        let mut all: Vec<&OsStr> = vec![&git_dir];
        all.extend(fixed.iter().map(OsStr::new));
        all.extend(arguments.iter().map(OsStr::new));
        let mut environment = self.network.clone();
        environment.extend([
            ("PATH".into(), self.paths.path.clone()),
            ("HOME".into(), self.paths.cache.clone().into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
            ("GIT_ALLOW_PROTOCOL".into(), "https:http".into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_ASKPASS".into(), "/bin/false".into()),
        ]);
        let script = ScriptCommand {
            program: Path::new("git"),
            arguments: all,
            environment,
            directory: self.store,
            exports: &[],
            capture: Capture::Quietly,
        };
        let ended = child::run(&script, self.output).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => String::from("git is not installed on this server: apt-get install git"),
            _ => format!("cannot start git: {error}"),
        })?;
        if ended.success() {
            Ok(String::from_utf8_lossy(&ended.stdout).lines().next().unwrap_or_default().trim().to_owned())
        } else {
            let why = ended.tail.iter().find_map(|line| line.strip_prefix("fatal: ")).map(str::to_owned);
            Err(why.or_else(|| ended.last_line()).unwrap_or_else(|| format!("git {}", ended.how())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_gets_only_proxies_and_certificates_of_configuration() {
        let given = [
            ("HTTP_PROXY", "a"),
            ("https_proxy", "b"),
            ("NO_PROXY", "c"),
            ("all_proxy", "d"),
            ("SSL_CERT_FILE", "e"),
            ("GIT_SSL_CAINFO", "f"),
            ("GIT_SSL_NO_VERIFY", "1"),
            ("GIT_CONFIG_GLOBAL", "/x"),
            ("Https_Proxy", "x"),
            ("ssl_cert_file", "x"),
        ];
        let found = network(&given.map(|(name, value)| (name.to_owned(), value.into())));
        let found: Vec<(&str, &str)> =
            found.iter().map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap())).collect();
        assert_eq!(found, [&given[..6], &[("http_proxy", "a")]].concat());
        let certificates = network(&[("SSL_CERT_FILE".to_owned(), "e".into())]);
        assert_eq!(certificates, [("SSL_CERT_FILE".into(), "e".into()), ("GIT_SSL_CAINFO".into(), "e".into())]);
    }
}
