//! Names from user input that become parts of directories, host names and refs.
//!
//! Each kind of name has a short list of allowed characters, because names become parts of paths. The rules reject paths, options, reserved
//! names of the file system, and letters that look like other letters.

use super::checked_text;

/// The maximum length of the name of a project, an environment or a remote, in bytes.
const MAX_LABEL: usize = 31;
/// The maximum length of a user name, in bytes.
const MAX_USER_NAME: usize = 31;
/// The maximum length of the name of a unit, in bytes.
const MAX_UNIT_NAME: usize = 200;
/// The maximum length of a process type, in bytes.
const MAX_PROCESS_TYPE: usize = 63;
/// The maximum length of a branch name, in bytes.
const MAX_BRANCH_NAME: usize = 200;
/// The maximum length of a rejected name in its error, in characters.
const MAX_SHOWN: usize = 80;

/// A rejected name. The message states the rule that the name breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a valid {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    given: String,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $check:expr) => {
        checked_text!($(#[$doc])* $type, NameError, |given| {
            let check: fn(&str) -> bool = $check;
            let refused = || NameError { what: $what, given: given.chars().take(MAX_SHOWN).collect(), rule: $rule };
            if check(given) { Ok(()) } else { Err(refused()) }
        });
    };
}

fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        // `--` separates the environment from the project in host names (`staging--shop`).
        && !text.contains("--")
}

name!(
    /// The name of a project. The name is a DNS label, so that it can be part of a host name.
    ProjectName,
    "project name",
    "use 1 to 31 lower-case letters, digits and single dashes, starting with a letter; \"git\", \"keeper\", \"preview\" and \"localhost\" are reserved",
    |text| is_label(text) && !matches!(text, "git" | "keeper" | "preview" | "localhost")
);

name!(
    /// The name of an environment, such as `production` or `staging`.
    EnvironmentName,
    "environment name",
    "use 1 to 31 lower-case letters, digits and single dashes, starting with a letter; \"git\" is reserved",
    // The directory `git/` of the repository is beside the directories of the environments.
    |text| is_label(text) && text != "git"
);

name!(
    /// The name of a remote.
    RemoteName,
    "name of a remote",
    "use 1 to 31 lower-case letters, digits and single dashes, starting with a letter",
    |text| is_label(text)
);

name!(
    /// The name of a database of an environment, such as `main`. The name is part of the file name of a dump.
    DatabaseName,
    "name of a database",
    "use 1 to 31 lower-case letters, digits and single dashes, starting with a letter",
    |text| is_label(text)
);

name!(
    /// The name of a unit of systemd, such as `shop-index.service`.
    UnitName,
    "unit name",
    "use up to 200 letters, digits and the characters :_.@- with a suffix .service, .socket, .timer, .path or .target, starting with a letter or a digit",
    |text| (1..=MAX_UNIT_NAME).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b":_.@-".contains(&c))
        && [".service", ".socket", ".timer", ".path", ".target"].iter().any(|suffix| text.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty()))
);

name!(
    /// The name of a user, who is a person or a machine with access rights.
    UserName,
    "user name",
    "use 1 to 31 lower-case letters, digits, dots, dashes and underscores, starting with a letter",
    |text| (1..=MAX_USER_NAME).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c))
);

name!(
    /// The name of a process type in a Procfile, such as `web`, `worker` or `release`.
    ProcessType,
    "process type",
    "use 1 to 63 letters, digits, dashes and underscores, starting with a letter",
    |text| (1..=MAX_PROCESS_TYPE).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
);

name!(
    /// The short name of a branch, without `refs/heads/`. The name follows the rules of `git check-ref-format` and contains only ASCII.
    BranchName,
    "branch name",
    "use a name that git allows for branches, with only ASCII letters, digits and the characters ./_+-#@",
    |text| (1..=MAX_BRANCH_NAME).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"./_+-#@".contains(&c))
        && !text.starts_with('-')
        && !text.ends_with('.')
        && text != "@"
        && text != "HEAD"
        && !text.contains("..")
        && !text.contains("@{")
        && text
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
);

impl BranchName {
    /// Returns the full ref, `refs/heads/<name>`.
    pub fn full_ref(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl UnitName {
    /// Returns the number of the unit in requests to the keeper, which contain no names. The keeper finds the unit in its own list.
    pub fn number(&self) -> u64 {
        let digest = blake3::hash(self.0.as_bytes());
        digest.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl UserName {
    /// Returns the name of the operator in records. The operator works on the server itself, and `larder user add` refuses this name.
    pub fn operator() -> UserName {
        UserName(String::from("operator"))
    }
}

impl ProcessType {
    /// Returns true for `web`, the type of the processes that receive HTTP requests.
    pub fn is_web(&self) -> bool {
        self.0 == "web"
    }

    /// Returns true for `release`, the type of the release command. This command runs once before the switch, and is not kept running.
    pub fn is_release(&self) -> bool {
        self.0 == "release"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_name_that_is_no_dns_label_is_rejected() {
        for good in ["shop", "a", "my-shop-2", "x1234567890123456789012345678901"[..31].into()] {
            assert!(good.parse::<ProjectName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "Shop",
            "-rf",
            "..",
            "a/b",
            "a--b",
            "1a",
            "a-",
            "sh op",
            "gr\u{fc}n",
            "git",
            "a\n",
            "a.b",
            "abcdefghijklmnopqrstuvwxyz0123456789",
        ] {
            assert!(bad.parse::<ProjectName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn branch_name_like_an_option_or_path_is_rejected() {
        for good in ["main", "feature/x", "release-1.2", "user@work"] {
            assert!(good.parse::<BranchName>().is_ok(), "{good}");
        }
        for bad in
            ["-o", "--upload-pack=x", "a..b", "a//b", "/a", "a/", ".a", "a.lock", "a b", "$(id)", "a;b", "@", "HEAD", "a@{1}"]
        {
            assert!(bad.parse::<BranchName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn error_of_rejected_name_states_the_rule() {
        let error = "My Shop".parse::<ProjectName>().unwrap_err().to_string();
        assert!(error.contains("\"My Shop\"") && error.contains("lower-case"), "{error}");
    }
}
