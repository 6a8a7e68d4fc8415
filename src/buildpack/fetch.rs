//! Buildpacks from git: kept in the cache as bare repositories, checked out afresh for each build.
//!
//! Real git does the work, with nobody's configuration: the address is the project's own, and the user is the build's.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    child::{self, Capture, Script},
    place::Place,
};

/// Why a buildpack could not be fetched; one line.
pub(super) type Refusal = String;

/// A fetched buildpack.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Its commit.
    pub commit: String,
    /// Whether the recipe named that commit.
    pub pinned: bool,
}

/// What a configuration may say of the way to other machines, where git listens to it; proxies in small letters too.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"];
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "GIT_SSL_CAINFO"];

/// Checks the buildpack `url` out into `to`, which is empty. Of the `configuration` only what leads to other machines counts.
pub(super) fn fetch<W: Write + Send + 'static>(
    place: &Place,
    url: &str,
    reference: Option<&str>,
    local: bool,
    configuration: &[(String, String)],
    to: &Path,
    output: &Arc<Mutex<W>>,
) -> Result<Fetched, Refusal> {
    allowed(url, reference.is_some_and(is_commit), local)?;
    let name = blake3::hash(url.as_bytes()).to_hex();
    let store = place.cache.join("buildpacks").join(name.get(..32).unwrap_or(&name));
    let git = Git { place, store: &store, local, network: network(configuration), output };
    if !store.join("HEAD").exists() {
        std::fs::create_dir_all(&store).map_err(|error| format!("the cache cannot be written: {error}"))?;
        git.run(&["init", "--quiet", "--bare"])?;
    }
    let pinned = reference.filter(|name| is_commit(name));
    let commit = match pinned {
        Some(commit) if git.run(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_ok() => commit.to_owned(),
        _ => {
            let wanted = reference.unwrap_or("HEAD");
            match git.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--end-of-options", url, wanted]) {
                Ok(_) => {}
                // Not every server hands out a commit by its id: then everything it has is asked for.
                Err(_) if pinned.is_some() => {
                    git.run(&[
                        "fetch",
                        "--quiet",
                        "--end-of-options",
                        url,
                        "+refs/heads/*:refs/heads/*",
                        "+refs/tags/*:refs/tags/*",
                    ])?;
                }
                Err(error) => return Err(error),
            }
            let found = match pinned {
                Some(commit) => format!("{commit}^{{commit}}"),
                None => String::from("FETCH_HEAD^{commit}"),
            };
            git.run(&["rev-parse", "--verify", "--quiet", &found])
                .map_err(|_| format!("{url} has no {}", reference.unwrap_or("commit")))?
        }
    };
    let tree = format!("--work-tree={}", to.display());
    git.run(&[&tree, "checkout", "--quiet", "--force", &commit, "--", "."])?;
    // The index belongs to a work tree that goes away.
    drop(std::fs::remove_file(store.join("index")));
    Ok(Fetched { commit, pinned: pinned.is_some() })
}

fn network(configuration: &[(String, String)]) -> Vec<(OsString, OsString)> {
    let proxy = |name: &str| PROXIES.iter().any(|known| name == *known || name == known.to_ascii_lowercase());
    let known = configuration.iter().filter(|(name, _)| proxy(name) || CERTIFICATES.contains(&name.as_str()));
    let mut all: Vec<(OsString, OsString)> = known.map(|(name, value)| (name.into(), value.into())).collect();
    // curl, which git uses, takes the proxy in small letters alone, because a web server could set the other; and the certificates of
    // other programs only where it was built with OpenSSL.
    for (given, understood) in [("HTTP_PROXY", "http_proxy"), ("SSL_CERT_FILE", "GIT_SSL_CAINFO")] {
        let find = |wanted: &str| configuration.iter().find(|(name, _)| name == wanted);
        if let (Some((_, value)), None) = (find(given), find(understood)) {
            all.push((understood.into(), value.into()));
        }
    }
    all
}

fn is_commit(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// Which addresses a project may name; git itself is told the same.
fn allowed(url: &str, pinned: bool, local: bool) -> Result<(), Refusal> {
    let remote = match url.split_once("://") {
        // A commit's id is also its digest: nobody on the way can put another in its place.
        Some((scheme, _)) => matches!(scheme, "https" | "ssh" | "git") || (pinned && scheme == "http"),
        // user@host:path; `ext::` and other remote helpers have two colons.
        None => url.contains('@') && url.contains(':') && !url.contains("::"),
    };
    if remote || (local && url.starts_with("file:///")) {
        Ok(())
    } else {
        Err(format!("{url} is not an https, ssh or git address"))
    }
}

struct Git<'a, W> {
    place: &'a Place,
    store: &'a PathBuf,
    local: bool,
    network: Vec<(OsString, OsString)>,
    output: &'a Arc<Mutex<W>>,
}

impl<W: Write + Send + 'static> Git<'_, W> {
    /// Runs git on the store; gives the first line that it prints.
    fn run(&self, arguments: &[&str]) -> Result<String, Refusal> {
        let mut git_dir = std::ffi::OsString::from("--git-dir=");
        git_dir.push(self.store);
        let fixed = ["-c", "core.hooksPath=/dev/null", "-c", "protocol.version=2", "-c", "gc.auto=0"];
        let mut all: Vec<&OsStr> = vec![&git_dir];
        all.extend(fixed.iter().map(OsStr::new));
        all.extend(arguments.iter().map(OsStr::new));
        let protocols = if self.local { "https:http:ssh:git:file" } else { "https:http:ssh:git" };
        let mut environment = self.network.clone();
        environment.extend([
            ("PATH".into(), self.place.path.clone()),
            ("HOME".into(), self.place.cache.clone().into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
            ("GIT_ALLOW_PROTOCOL".into(), protocols.into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_ASKPASS".into(), "/bin/false".into()),
            ("GIT_SSH_COMMAND".into(), "ssh -o BatchMode=yes -o ConnectTimeout=30".into()),
        ]);
        let script = Script {
            program: Path::new("git"),
            arguments: all,
            environment,
            directory: self.store,
            exports: &[],
            capture: Capture::Quietly,
        };
        let ended = child::run(&script, self.output).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => String::from("git is not installed on this server: apt-get install git"),
            _ => format!("git does not start: {error}"),
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
    fn the_way_to_other_machines_comes_from_the_configuration_and_nothing_else_does() {
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
        let found = network(&given.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let found: Vec<(&str, &str)> =
            found.iter().map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap())).collect();
        assert_eq!(found, [&given[..6], &[("http_proxy", "a")]].concat());
        let certificates = network(&[("SSL_CERT_FILE".to_owned(), "e".to_owned())]);
        assert_eq!(certificates, [("SSL_CERT_FILE".into(), "e".into()), ("GIT_SSL_CAINFO".into(), "e".into())]);
    }

    #[test]
    fn addresses() {
        for good in ["https://h/p.git", "ssh://git@h/p", "git://h/p", "git@h:p.git"] {
            assert!(allowed(good, false, false).is_ok(), "{good}");
        }
        for bad in ["http://h/p", "file:///etc", "ext::sh -c x", "/etc", "u@ext::x:y", "ftp://h/p"] {
            assert!(allowed(bad, false, false).is_err(), "{bad}");
        }
        assert!(allowed("file:///srv/p", false, true).is_ok());
        assert!(allowed("http://h/p", true, false).is_ok(), "what is pinned cannot be exchanged on the way");
    }
}
