//! The deploy key of a project in a build: files on the private tmpfs of the build, and the variable with which git uses them.

use std::{
    ffi::OsString,
    fmt,
    fs::{DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::child::ScriptExit;
use crate::host::is_sandboxed;

/// The variable with the command that git runs for ssh (git(1)).
pub(super) const GIT_SSH: &str = "GIT_SSH_COMMAND";

/// The directory of the files in the sandbox, on a tmpfs of the build.
const DIRECTORY: &str = "/dev/shm/deploy-key";

/// The deploy key of a project, and the host keys that its builds accept. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildKey {
    private: String,
    known_hosts: String,
}

impl BuildKey {
    /// Creates the key from its private half in OpenSSH's format and lines of `known_hosts`.
    pub fn new(private: String, known_hosts: String) -> BuildKey {
        BuildKey { private, known_hosts }
    }

    /// Writes the files as the user of the build. Returns the command for [`GIT_SSH`].
    ///
    /// # Errors
    /// The machine has no sandbox, so that other processes could read the files.
    pub(super) fn write(&self) -> io::Result<OsString> {
        if !is_sandboxed() {
            return Err(io::Error::other("this machine allows no namespaces, and without them there is no private tmpfs"));
        }
        self.write_to(Path::new(DIRECTORY)).map(|directory| command(&directory))
    }

    fn write_to(&self, directory: &Path) -> io::Result<PathBuf> {
        DirBuilder::new().mode(0o700).create(directory)?;
        for (name, content) in [("key", &self.private), ("known_hosts", &self.known_hosts)] {
            let path = directory.join(name);
            OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?.write_all(content.as_bytes())?;
        }
        Ok(directory.to_owned())
    }
}

/// Returns the command for git. Neither a configuration file nor a key or a host key from elsewhere has an effect, and ssh asks nothing.
fn command(directory: &Path) -> OsString {
    let shown = directory.display();
    format!(
        "ssh -F none -i {shown}/key -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o StrictHostKeyChecking=yes \
         -o UserKnownHostsFile={shown}/known_hosts -o GlobalKnownHostsFile=none -o UpdateHostKeys=no"
    )
    .into()
}

impl Drop for BuildKey {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl fmt::Debug for BuildKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BuildKey")
    }
}

/// Returns the cause and the remedy if a script failed because ssh refused a host or a host refused the deploy key. git ends its own output
/// with general advice, so the last line is no cause. The texts are those of OpenSSH.
pub(super) fn ssh_reason(exit: &ScriptExit, project: &str) -> Option<(String, String)> {
    let find = |text: &str| exit.tail.iter().rev().find(|line| line.contains(text));
    if find("REMOTE HOST IDENTIFICATION HAS CHANGED").is_some() {
        let host = find("ost key for ").and_then(|line| between(line, "ost key for ", " has changed"));
        let host = host.unwrap_or_else(|| String::from("HOST"));
        return Some((
            format!("ssh: the host key of {host} is not the recorded one"),
            format!(
                "ask the operator of the host if its key has changed, then run `larder key deploy {project} --forget-host {host}` and `larder key deploy {project} --host {host}`"
            ),
        ));
    }
    if find("Host key verification failed").is_some() {
        let host = find("host key is known for ").and_then(|line| between(line, "host key is known for ", " and you have"));
        let host = host.unwrap_or_else(|| String::from("HOST"));
        return Some((
            format!("ssh: no host key is recorded for {host}"),
            format!("record the host key: larder key deploy {project} --host {host}"),
        ));
    }
    let refused = find("Permission denied (publickey")?;
    Some((
        format!("ssh: {}", refused.trim()),
        format!("add the public key that `larder key deploy {project}` prints to the repository, as a deploy key that may read"),
    ))
}

/// Returns the host between two texts of a line, as `HOST` or `HOST:PORT`.
fn between(line: &str, before: &str, after: &str) -> Option<String> {
    let host = line.split_once(before)?.1.split_once(after)?.0;
    let is_host = |host: &str| !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_:[]".contains(&c));
    if !is_host(host) {
        return None;
    }
    match host.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((name, port)) if !name.contains(':') => Some(format!("{name}:{port}")),
        _ => Some(host.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn files_can_be_read_by_the_user_of_the_build_only() {
        let temporary = tempfile::tempdir().unwrap();
        let key = BuildKey::new(String::from("private"), String::from("host key\n"));
        let directory = key.write_to(&temporary.path().join("deploy-key")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("key")), mode(&directory.join("known_hosts"))), (0o700, 0o400, 0o400));
        assert_eq!(fs::read_to_string(directory.join("key")).unwrap(), "private");
        assert!(!format!("{key:?}").contains("private"));
        // A job does not replace the files of an earlier job in the same directory.
        assert!(key.write_to(&directory).is_err());
    }

    #[test]
    fn refusals_of_ssh_have_a_remedy() {
        let tail = |lines: &[&str]| ScriptExit {
            code: Some(128),
            signal: None,
            stdout: Vec::new(),
            tail: lines.iter().map(|line| (*line).to_owned()).collect(),
        };
        let advice = "and the repository exists.";
        let (why, hint) = ssh_reason(
            &tail(&[
                "No ED25519 host key is known for [127.0.0.1]:4022 and you have requested strict checking.",
                "Host key verification failed.",
                advice,
            ]),
            "shop",
        )
        .unwrap();
        assert_eq!(why, "ssh: no host key is recorded for 127.0.0.1:4022");
        assert_eq!(hint, "record the host key: larder key deploy shop --host 127.0.0.1:4022");
        let changed = [
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
            "Host key for git.example.com has changed and you have requested strict checking.",
            "Host key verification failed.",
        ];
        let (why, hint) = ssh_reason(&tail(&changed), "shop").unwrap();
        assert!(
            why.contains("git.example.com is not the recorded one") && hint.contains("--forget-host git.example.com"),
            "{hint}"
        );
        let (why, hint) = ssh_reason(&tail(&["git@git.example.com: Permission denied (publickey).", advice]), "shop").unwrap();
        assert!(why.contains("Permission denied") && hint.contains("`larder key deploy shop`"), "{why} {hint}");
        assert!(ssh_reason(&tail(&["npm exited 1"]), "shop").is_none());
        // A host in the output of a script never becomes an option or a command.
        let odd = ["host key is known for $(x) and you have", "Host key verification failed."];
        assert!(ssh_reason(&tail(&odd), "shop").unwrap().1.ends_with("--host HOST"));
    }
}
