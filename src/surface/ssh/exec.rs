//! The parser of exec requests. The grammar is closed: a request that does not match the grammar is refused.
//!
//! A request that looks like git must be exactly one of git's two services with exactly one project path. Every other request consists of
//! the words of a larder command. No shell parses a request.

use super::keys;
use crate::model::{NameError, ProjectName};

/// The maximum length of an exec request in bytes. A command with the longest accepted key fits.
pub const MAX_EXEC: usize = 2 * keys::MAX_LINE;
const MAX_WORDS: usize = 1024;

/// One of git's two services. The needed right depends only on the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitService {
    /// `git push`.
    ReceivePack,
    /// `git fetch`, `git clone`, `git ls-remote`.
    UploadPack,
}

/// The repository that a client names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoPath {
    /// The project of the repository.
    pub project: ProjectName,
    /// True for the pillar of the project, its repository of configuration and secrets; false for the repository of the code.
    pub pillar: bool,
}

/// A request that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecRequest {
    /// One of git's services.
    Git {
        /// The service: push or fetch.
        service: GitService,
        /// The repository.
        path: RepoPath,
    },
    /// One of larder's own commands with its arguments, at least one word.
    Verb(Vec<String>),
    /// No command: plain `ssh host`.
    Shell,
}

/// The reason why a request is refused, in one line for the client.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request has more than [`MAX_EXEC`] bytes.
    #[error("cannot run the command: it has {given} bytes (expected at most {MAX_EXEC})")]
    TooLong {
        /// The length of the request, in bytes.
        given: usize,
    },
    /// The request is not UTF-8, or has a control character other than a tab or a newline.
    #[error("cannot run the command: it contains bytes that are not printable text")]
    NotText,
    /// The git program is neither `git-receive-pack` nor `git-upload-pack`.
    #[error("cannot run {given:?}: only git push, git fetch and git clone are served here")]
    Service {
        /// The program.
        given: String,
    },
    /// A request of git-lfs. A clone that uses git-lfs sends such a request before each push.
    #[error("cannot serve git-lfs: larder keeps all files in git itself")]
    Lfs,
    /// The argument of a git service is not exactly one project path.
    #[error("cannot serve git: the path is {given:?} (expected exactly one path such as '/shop')")]
    GitArgument {
        /// The text after the service's name.
        given: String,
    },
    /// The path does not name a project.
    #[error("cannot serve git: {given:?} is not the path of a project (expected a path as in ssh://HOST/PROJECT)")]
    Path {
        /// The path as given.
        given: String,
        /// The reason why the path does not name a project.
        #[source]
        source: NameError,
    },
    /// A quote is not closed.
    #[error("cannot run the command {given:?}: a quote is not closed")]
    Quotes {
        /// The command as given.
        given: String,
    },
    /// The command has more than [`MAX_WORDS`] words.
    #[error("cannot run the command: it has more than {MAX_WORDS} words")]
    TooManyWords,
}

impl ExecError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ExecError::Lfs => Some("run: git lfs migrate export --everything --include='*'"),
            _ => None,
        }
    }
}

/// Parses an exec request.
pub fn parse(command: &[u8]) -> Result<ExecRequest, ExecError> {
    if command.len() > MAX_EXEC {
        return Err(ExecError::TooLong { given: command.len() });
    }
    let text = std::str::from_utf8(command).map_err(|_| ExecError::NotText)?;
    // A quoted argument of a command may contain tabs and newlines, but no other control characters.
    if text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n')) {
        return Err(ExecError::NotText);
    }
    let looks_like_git = text.trim_start().get(..4).is_some_and(|head| {
        head.eq_ignore_ascii_case("git-") || head.eq_ignore_ascii_case("git ") || head.eq_ignore_ascii_case("git\t")
    });
    if looks_like_git || text.trim().eq_ignore_ascii_case("git") {
        return parse_git(text);
    }
    let words = shlex::split(text).ok_or_else(|| ExecError::Quotes { given: clip(text) })?;
    match words.len() {
        0 => Ok(ExecRequest::Shell),
        1..=MAX_WORDS => Ok(ExecRequest::Verb(words)),
        _ => Err(ExecError::TooManyWords),
    }
}

fn parse_git(text: &str) -> Result<ExecRequest, ExecError> {
    let rest = text.strip_prefix("git-").or_else(|| text.strip_prefix("git "));
    let (service, argument) = rest.and_then(|rest| rest.split_once(' ')).unwrap_or((rest.unwrap_or(text), ""));
    let service = match (rest.is_some(), service) {
        (true, "receive-pack") => GitService::ReceivePack,
        (true, "upload-pack") => GitService::UploadPack,
        (true, "lfs-authenticate" | "lfs-transfer") => return Err(ExecError::Lfs),
        _ => return Err(ExecError::Service { given: clip(text.split('\'').next().unwrap_or(text).trim()) }),
    };
    let path = argument_of(argument).ok_or_else(|| ExecError::GitArgument { given: clip(argument) })?;
    Ok(ExecRequest::Git { service, path: parse_path(path)? })
}

/// Returns the argument without its quotes. The whole argument must be in single quotes, as git writes it, or have no quotes.
fn argument_of(argument: &str) -> Option<&str> {
    let plain = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || b"/._-".contains(&c));
    let inner = match argument.strip_prefix('\'') {
        Some(quoted) => quoted.strip_suffix('\'')?,
        None => argument,
    };
    (!inner.is_empty() && !inner.starts_with('-') && plain(inner)).then_some(inner)
}

fn parse_path(given: &str) -> Result<RepoPath, ExecError> {
    let path = given.strip_prefix('/').unwrap_or(given);
    let path = path.strip_suffix('/').unwrap_or(path);
    let path = path.strip_suffix(".git").unwrap_or(path);
    let (project, pillar) = match path.strip_suffix("/pillar") {
        Some(project) => (project, true),
        None => (path, false),
    };
    match project.parse() {
        Ok(project) => Ok(RepoPath { project, pillar }),
        Err(source) => Err(ExecError::Path { given: clip(given), source }),
    }
}

/// Returns the beginning of a text, for messages.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Returns true for values of `GIT_PROTOCOL` that git itself writes: `version=N`, then options.
pub(super) fn is_git_protocol(value: &str) -> bool {
    let mut parts = value.split(':');
    let option = |part: &str| {
        !part.is_empty() && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'=' | b'-'))
    };
    value.len() <= 64 && matches!(parts.next(), Some("version=0" | "version=1" | "version=2")) && parts.all(option)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn git(service: GitService, project: &str, pillar: bool) -> ExecRequest {
        ExecRequest::Git { service, path: RepoPath { project: project.parse().unwrap(), pillar } }
    }

    #[test]
    fn every_form_that_git_clients_use_is_accepted() {
        use GitService::*;
        for (text, expected) in [
            ("git-receive-pack '/shop.git'", git(ReceivePack, "shop", false)),
            ("git-receive-pack '/shop'", git(ReceivePack, "shop", false)),
            ("git receive-pack 'shop'", git(ReceivePack, "shop", false)),
            ("git-receive-pack shop.git", git(ReceivePack, "shop", false)),
            ("git-upload-pack 'shop/'", git(UploadPack, "shop", false)),
            ("git-upload-pack '/shop/pillar'", git(UploadPack, "shop", true)),
            ("git upload-pack /my-shop/pillar.git", git(UploadPack, "my-shop", true)),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn hostile_git_requests_are_refused() {
        for text in [
            "git-receive-pack --help",
            "git-receive-pack '--help'",
            "git-receive-pack -x",
            "git-receive-pack",
            "git",
            "git ",
            "git-receive-pack ''",
            "git-receive-pack '/'",
            "git-receive-pack '../../etc'",
            "git-receive-pack '/etc/passwd'",
            "git-receive-pack '//shop'",
            "git-receive-pack '~root'",
            "git-receive-pack '/~/shop'",
            "git-receive-pack 'a.git/../b'",
            "git-receive-pack '%2e%2e'",
            "git-receive-pack 'shop' 'other'",
            "git-receive-pack shop other",
            "git-receive-pack  'shop'",
            "git-receive-pack 'shop' ",
            "git-receive-pack 'shop",
            "git-receive-pack shop'",
            "git-receive-pack \"shop\"",
            "git-receive-pack 'sh'\\''op'",
            "git-receive-pack 'shop';id",
            "git-receive-pack $(id)",
            "git-receive-pack 'Shop'",
            "git-receive-pack 'shop/pillar/pillar'",
            "git-receive-pack 'shop.git.git'",
            "git-receive-pack\t'shop'",
            "git-receive-pack\n'shop'",
            "git-upload-archive 'shop'",
            "git upload-archive 'shop'",
            "git-shell",
            "GIT-RECEIVE-PACK 'shop'",
            "Git receive-pack 'shop'",
            " git-receive-pack 'shop'",
            "git -c core.x=y receive-pack 'shop'",
            "git --exec-path=/tmp receive-pack 'shop'",
            "git-upload-pack --strict 'shop'",
            "git-receive-pack 'shop\u{202e}'",
        ] {
            let error = parse(text.as_bytes()).expect_err(text).to_string();
            assert!(!error.contains('\n') && error.len() < 300, "{error}");
        }
        for text in ["git-lfs-authenticate '/shop' upload", "git-lfs-transfer shop.git upload"] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(matches!(error, ExecError::Lfs) && error.hint().unwrap().contains("git lfs migrate export"), "{error}");
        }
        assert!(matches!(parse(b"git-receive-pack 'a\0b'"), Err(ExecError::NotText)));
        assert!(matches!(parse(b"git-receive-pack '\xff'"), Err(ExecError::NotText)));
        assert!(matches!(parse(&vec![b'a'; 2 << 20]), Err(ExecError::TooLong { .. })));
    }

    #[test]
    fn request_not_for_git_is_split_into_words() {
        let verb = |words: &[&str]| ExecRequest::Verb(words.iter().map(|w| w.to_string()).collect());
        assert_eq!(parse(b"config set shop 'A=b c'").unwrap(), verb(&["config", "set", "shop", "A=b c"]));
        assert_eq!(parse(b"run shop -- ls -l").unwrap(), verb(&["run", "shop", "--", "ls", "-l"]));
        assert_eq!(parse(b"gitea").unwrap(), verb(&["gitea"]));
        assert_eq!(parse(b"echo $(id) `id` ;id").unwrap(), verb(&["echo", "$(id)", "`id`", ";id"]));
        assert_eq!(parse(b"  ").unwrap(), ExecRequest::Shell);
        assert!(matches!(parse(b"config set 'A=b"), Err(ExecError::Quotes { .. })));
        assert!(matches!(parse(b"log \x1b[2J"), Err(ExecError::NotText)));
        assert!(matches!(parse("a ".repeat(MAX_WORDS + 1).as_bytes()), Err(ExecError::TooManyWords)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn accepted_argument_of_a_service_names_a_project(tail in "[ -~]{0,40}") {
            if let Ok(request) = parse(format!("git-receive-pack {tail}").as_bytes()) {
                let ExecRequest::Git { path, .. } = request else { panic!("{request:?}") };
                prop_assert!(tail.contains(path.project.as_str()));
                prop_assert!(!tail.contains("..") && !tail.contains('-') || path.project.as_str().contains('-'));
            }
        }
    }

    #[test]
    fn only_values_that_git_writes_are_accepted() {
        for good in ["version=2", "version=0", "version=1:agent=x-1"] {
            assert!(is_git_protocol(good), "{good}");
        }
        for bad in ["", "version=3", "version=2:", "version=2\n", "version=2:A", "x:version=2", "version=2 ", "version=2:$(id)"] {
            assert!(!is_git_protocol(bad), "{bad}");
        }
        assert!(!is_git_protocol(&format!("version=2:{}", "a".repeat(60))));
    }
}
