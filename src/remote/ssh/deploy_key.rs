//! The deploy keys of projects, with which builds read private repositories over ssh. A project has at most one key.
//!
//! A record is a file in `state/deploy_keys/`. The private half in the record is encrypted for the key of the project, so it cannot be used
//! without `state/config_age_key`. The record also has the host keys that builds accept.

use std::{path::PathBuf, str::FromStr};

use parking_lot::Mutex;
use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::keys::{fingerprint, line_of};
use crate::{
    host::{
        files::{self, FileError, PrivateError, read_private},
        random,
    },
    model::{ConfigVariables, ProjectId, ProjectName},
    secret::{EncryptedText, ProjectKey, RecipientList, SecretError, encrypted},
};

/// The version of the format of a record.
const FORMAT: u32 = 1;
/// The maximum size of a record in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// The maximum number of host keys of a project.
const MAX_HOSTS: usize = 64;
/// The maximum length of a host name in bytes (RFC 1035, section 2.3.4: 253 characters of text).
const MAX_NAME: usize = 253;
/// The port of ssh (RFC 4253, section 4.1).
const SSH_PORT: u16 = 22;

/// The reason why a deploy key cannot be used or changed. No error contains a private key.
#[derive(Debug, thiserror::Error)]
pub enum DeployKeyError {
    /// The record cannot be read.
    #[error("cannot use the deploy key")]
    Read(#[source] PrivateError),
    /// The record cannot be written or removed.
    #[error("cannot change the deploy key")]
    Write(#[source] FileError),
    /// The record is not in a format that this version reads.
    #[error("cannot use the deploy key: {} {why}", path.display())]
    Format {
        /// The path of the record.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The private half cannot be decrypted or encrypted.
    #[error("cannot use the deploy key: its private half: {0}")]
    Private(SecretError),
    /// A key pair cannot be made.
    #[error("cannot make a deploy key: {0}")]
    Generate(String),
    /// The project has no deploy key.
    #[error("{0} has no deploy key")]
    None(ProjectName),
    /// Another key is recorded for the host.
    #[error("cannot record the host key {} of {host}: {} is recorded", fingerprint(given), fingerprint(known))]
    OtherHostKey {
        /// The host.
        host: HostPort,
        /// The recorded key.
        known: String,
        /// The key that should be recorded.
        given: String,
    },
    /// No key is recorded for the host.
    #[error("no host key is recorded for {0}")]
    NoHost(HostPort),
    /// The project has too many host keys.
    #[error("cannot record another host key: {MAX_HOSTS} are recorded (expected at most {MAX_HOSTS})")]
    TooManyHosts,
}

impl DeployKeyError {
    /// Returns the remedy for the project `project`, as an imperative.
    pub fn hint(&self, project: &ProjectName) -> Option<String> {
        match self {
            DeployKeyError::Read(error) => error.hint(),
            DeployKeyError::Format { .. } => {
                Some(format!("restore the file from a backup, or make a new key with `larder key deploy {project} --rotate`"))
            }
            DeployKeyError::Private(_) => Some(format!(
                "restore state/config_age_key from a backup, or make a new key with `larder key deploy {project} --rotate`"
            )),
            DeployKeyError::None(_) => Some(format!("make a key with `larder key deploy {project}`")),
            DeployKeyError::OtherHostKey { host, .. } => Some(format!(
                "ask the operator of the host if its key has changed, then remove the recorded key with `larder key deploy {project} \
                 --forget-host {host}`, and repeat the command"
            )),
            DeployKeyError::NoHost(_) => Some(format!("list the host keys with `larder key deploy {project}`")),
            DeployKeyError::TooManyHosts => {
                Some(format!("remove a host key with `larder key deploy {project} --forget-host HOST`"))
            }
            DeployKeyError::Write(_) | DeployKeyError::Generate(_) => None,
        }
    }
}

/// A host of an ssh server with its port, written as `HOST` or `HOST:PORT`; an IPv6 address is in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The name or the address, in lower case and without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Returns the form of `known_hosts` (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
    fn known(&self) -> String {
        match self.port {
            SSH_PORT => self.host.clone(),
            port => format!("[{}]:{port}", self.host),
        }
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            SSH_PORT => f.write_str(&host),
            port => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        let wrong = || String::from("expected HOST or HOST:PORT, such as git.example.com or git.example.com:2222");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
                (host, after.strip_prefix(':').or_else(|| after.is_empty().then_some("")).ok_or_else(wrong)?)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let port = match port {
            "" => SSH_PORT,
            port => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
        };
        // These characters are neither a pattern nor a list nor a marker of `known_hosts`. A host never begins with an option of ssh.
        let is_address = host.parse::<std::net::Ipv6Addr>().is_ok();
        let is_name = (1..=MAX_NAME).contains(&host.len())
            && host.starts_with(|c: char| c.is_ascii_alphanumeric())
            && host.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c));
        if !is_address && !is_name {
            return Err(wrong());
        }
        Ok(HostPort { host: host.to_ascii_lowercase(), port })
    }
}

/// A host with its key, as `larder key deploy` records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KnownHost {
    /// The host in the form of `known_hosts`.
    host: String,
    /// The key, such as `ssh-ed25519 AAAA...`.
    key: String,
}

/// The record of a project.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The public half, such as `ssh-ed25519 AAAA...`.
    public: String,
    /// The private half in OpenSSH's format, encrypted for the key of the project.
    private: String,
    #[serde(default)]
    hosts: Vec<KnownHost>,
}

/// The public parts of a project's deploy key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployKeyInfo {
    /// The public half as a line of an `authorized_keys` file, with the comment `larder-PROJECT`.
    pub line: String,
    /// The fingerprint `SHA256:...`.
    pub fingerprint: String,
    /// The hosts whose keys are recorded, with the fingerprints of their keys.
    pub hosts: Vec<(String, String)>,
}

/// The deploy key of a project as builds get it. `Debug` shows the public half only.
#[derive(Clone)]
pub struct DeployKey {
    /// The private half in OpenSSH's format.
    pub private: Zeroizing<String>,
    /// The seed of the private half (RFC 8032, section 5.1.5).
    seed: Zeroizing<Vec<u8>>,
    /// The lines of `known_hosts`.
    pub known_hosts: String,
    public: String,
}

impl DeployKey {
    /// Returns the secret parts of the key with their names, for the search of releases and the removal from outputs. The first line of the
    /// encoded key is the same in each unencrypted ed25519 key, and is left out with the marks of begin and end.
    pub fn parts(&self) -> ConfigVariables {
        let body: Vec<&str> = self.private.lines().filter(|line| !line.starts_with("-----")).skip(1).collect();
        [(String::from("deploy key"), body.join("\n").into_bytes()), (String::from("deploy key (raw)"), self.seed.to_vec())]
            .into_iter()
            .collect()
    }
}

impl std::fmt::Debug for DeployKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeployKey({})", fingerprint(&self.public))
    }
}

/// The deploy keys of this server. Each method blocks on the disk.
#[derive(Debug)]
pub struct DeployKeyStore {
    directory: PathBuf,
    /// The lock of changes, from the read to the completed write.
    changing: Mutex<()>,
}

impl DeployKeyStore {
    /// Returns the store in a directory, which the first key creates.
    pub fn new(directory: PathBuf) -> DeployKeyStore {
        DeployKeyStore { directory, changing: Mutex::default() }
    }

    fn path(&self, project: ProjectId) -> PathBuf {
        self.directory.join(format!("{}.json", project.0))
    }

    fn read(&self, project: ProjectId) -> Result<Option<Record>, DeployKeyError> {
        let path = self.path(project);
        let Some(bytes) = read_private(&path, MAX_FILE).map_err(DeployKeyError::Read)? else { return Ok(None) };
        let wrong = |why: String| DeployKeyError::Format { path: path.clone(), why };
        let format: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| wrong(String::from("is not JSON")))?;
        match format.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(wrong(format!("has the format {format} (expected {FORMAT})"))),
            None => return Err(wrong(format!("has no format (expected {FORMAT})"))),
        }
        serde_json::from_value(format).map(Some).map_err(|error| wrong(format!("cannot be read: {error}")))
    }

    fn write(&self, project: ProjectId, record: &Record) -> Result<(), DeployKeyError> {
        let error = |source| FileError::io("create", &self.directory, source);
        files::ensure_dir(&self.directory, 0o700).map_err(|source| DeployKeyError::Write(error(source)))?;
        let text = serde_json::to_vec_pretty(record).map_err(|error| DeployKeyError::Generate(error.to_string()))?;
        files::write_atomic(&self.path(project), &text, 0o600).map_err(DeployKeyError::Write)
    }

    /// Returns the public parts of a project's key; `None` without a key.
    pub fn info(&self, project: ProjectId, name: &ProjectName) -> Result<Option<DeployKeyInfo>, DeployKeyError> {
        Ok(self.read(project)?.map(|record| record.info(name)))
    }

    /// Returns the key for a build; `None` without a key.
    pub fn load(&self, project: ProjectId, own: &ProjectKey) -> Result<Option<DeployKey>, DeployKeyError> {
        let Some(record) = self.read(project)? else { return Ok(None) };
        let wrong = |why: &str| DeployKeyError::Format { path: self.path(project), why: why.to_owned() };
        let text = EncryptedText::parse(&record.private).map_err(DeployKeyError::Private)?;
        let private = text.ok_or_else(|| wrong("has a private half that is not encrypted"))?.decrypt(own);
        let private = private.map_err(DeployKeyError::Private)?;
        let key = PrivateKey::from_openssh(private.as_bytes()).map_err(|_| wrong("has no key in OpenSSH's format"))?;
        let pair = key.key_data().ed25519().ok_or_else(|| wrong("has no ed25519 key"))?;
        let seed = Zeroizing::new(pair.private.to_bytes().to_vec());
        let known_hosts = record.hosts.iter().map(|known| format!("{} {}\n", known.host, known.key)).collect();
        Ok(Some(DeployKey { private, seed, known_hosts, public: record.public }))
    }

    /// Makes the key of a project if there is none. Returns its public parts, and true if the key is new.
    pub fn make(
        &self,
        project: ProjectId,
        name: &ProjectName,
        own: &ProjectKey,
    ) -> Result<(DeployKeyInfo, bool), DeployKeyError> {
        let _changing = self.changing.lock();
        if let Some(record) = self.read(project)? {
            return Ok((record.info(name), false));
        }
        let record = Record::new(name, own, Vec::new())?;
        self.write(project, &record)?;
        Ok((record.info(name), true))
    }

    /// Replaces the key of a project. A record that cannot be read is replaced as well; its host keys are lost.
    pub fn rotate(&self, project: ProjectId, name: &ProjectName, own: &ProjectKey) -> Result<DeployKeyInfo, DeployKeyError> {
        let _changing = self.changing.lock();
        let hosts = match self.read(project) {
            Ok(Some(record)) => record.hosts,
            Ok(None) => return Err(DeployKeyError::None(name.clone())),
            Err(DeployKeyError::Format { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let record = Record::new(name, own, hosts)?;
        self.write(project, &record)?;
        Ok(record.info(name))
    }

    /// Removes the key of a project. Returns false if the project has none.
    pub fn remove(&self, project: ProjectId) -> Result<bool, DeployKeyError> {
        let _changing = self.changing.lock();
        let path = self.path(project);
        let is_there = std::fs::symlink_metadata(&path).is_ok();
        files::remove_if_present(&path).map_err(DeployKeyError::Write)?;
        Ok(is_there)
    }

    /// Records the key of a host. Returns the public parts of the project's key, and false if the host key was recorded already.
    ///
    /// # Errors
    /// Another key of the same kind is recorded for the host.
    pub fn add_host(
        &self,
        project: ProjectId,
        name: &ProjectName,
        host: &HostPort,
        key: &str,
    ) -> Result<(DeployKeyInfo, bool), DeployKeyError> {
        let _changing = self.changing.lock();
        let mut record = self.read(project)?.ok_or_else(|| DeployKeyError::None(name.clone()))?;
        let kind = |key: &str| key.split(' ').next().map(str::to_owned);
        let of_host = record.hosts.iter().filter(|known| known.host == host.known());
        if let Some(known) = of_host.clone().find(|known| kind(&known.key) == kind(key)) {
            return match known.key == key {
                true => Ok((record.info(name), false)),
                false => {
                    let (known, given) = (known.key.clone(), key.to_owned());
                    Err(DeployKeyError::OtherHostKey { host: host.clone(), known, given })
                }
            };
        }
        if record.hosts.len() >= MAX_HOSTS {
            return Err(DeployKeyError::TooManyHosts);
        }
        record.hosts.push(KnownHost { host: host.known(), key: key.to_owned() });
        self.write(project, &record)?;
        Ok((record.info(name), true))
    }

    /// Removes the recorded keys of a host.
    pub fn forget_host(&self, project: ProjectId, name: &ProjectName, host: &HostPort) -> Result<DeployKeyInfo, DeployKeyError> {
        let _changing = self.changing.lock();
        let mut record = self.read(project)?.ok_or_else(|| DeployKeyError::None(name.clone()))?;
        let before = record.hosts.len();
        record.hosts.retain(|known| known.host != host.known());
        if record.hosts.len() == before {
            return Err(DeployKeyError::NoHost(host.clone()));
        }
        self.write(project, &record)?;
        Ok(record.info(name))
    }
}

impl Record {
    fn new(project: &ProjectName, own: &ProjectKey, hosts: Vec<KnownHost>) -> Result<Record, DeployKeyError> {
        let wrong = |why: String| DeployKeyError::Generate(why);
        let seed = Zeroizing::new(random().map_err(|error| wrong(error.to_string()))?);
        let comment = format!("larder-{project}");
        let key = PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), comment).map_err(|error| wrong(error.to_string()))?;
        let text = key.to_openssh(LineEnding::LF).map_err(|error| wrong(error.to_string()))?;
        let private = encrypted(text.as_bytes(), own, &RecipientList::default()).map_err(DeployKeyError::Private)?;
        Ok(Record { format: FORMAT, public: line_of(key.public_key()), private, hosts })
    }

    fn info(&self, project: &ProjectName) -> DeployKeyInfo {
        DeployKeyInfo {
            line: format!("{} larder-{project}", self.public),
            fingerprint: fingerprint(&self.public),
            hosts: self.hosts.iter().map(|known| (known.host.clone(), fingerprint(&known.key))).collect(),
        }
    }
}

/// Parses the key of a host: a line such as `ssh-ed25519 AAAA...`, or a line of `known_hosts` that begins with the host. Returns the normal
/// form.
pub fn given_host_key(text: &str, host: &HostPort) -> Result<String, String> {
    let text = text.trim();
    let key = match text.split_once(char::is_whitespace) {
        Some((first, rest)) if first == host.known() || first == host.host => rest,
        _ => text,
    };
    let key = PublicKey::from_openssh(key.trim()).map_err(|error| format!("it is not a public key: {error}"))?;
    Ok(line_of(&key))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    fn project_key(number: u32) -> ProjectKey {
        ProjectKey::derive(b"AGE-SECRET-KEY-1TEST", ProjectId(number)).unwrap()
    }

    #[test]
    fn key_is_encrypted_on_the_disk_and_kept_until_it_is_rotated() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("deploy_keys");
        let store = DeployKeyStore::new(directory.clone());
        let (id, name, own) = (ProjectId(3), "shop".parse().unwrap(), project_key(3));
        assert_eq!(store.info(id, &name).unwrap(), None);
        assert!(store.load(id, &own).unwrap().is_none() && !directory.exists());
        assert!(matches!(store.rotate(id, &name, &own), Err(DeployKeyError::None(_))));
        let (first, is_new) = store.make(id, &name, &own).unwrap();
        assert!(is_new && first.line.starts_with("ssh-ed25519 AAAA") && first.line.ends_with(" larder-shop"), "{}", first.line);
        assert_eq!(store.make(id, &name, &own).unwrap(), (first.clone(), false));
        let file = directory.join("3.json");
        assert_eq!(
            (fs::metadata(&file).unwrap().mode() & 0o777, fs::metadata(&directory).unwrap().mode() & 0o777),
            (0o600, 0o700)
        );
        let key = store.load(id, &own).unwrap().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(key.private.contains("BEGIN OPENSSH PRIVATE KEY"));
        let parts = key.parts();
        assert_eq!(parts.get("deploy key (raw)").unwrap().len(), 32);
        for (_, part) in parts.iter() {
            for form in crate::model::encoded_forms(part) {
                assert!(!text.as_bytes().windows(form.len()).any(|window| window == form), "the record has a private part");
            }
        }
        assert!(!format!("{key:?}").contains("PRIVATE"));
        // The key of another project does not open it.
        let error = store.load(id, &project_key(4)).unwrap_err();
        assert!(matches!(&error, DeployKeyError::Private(SecretError::OtherRecipient { .. })), "{error}");
        assert!(error.hint(&name).unwrap().contains("larder key deploy shop --rotate"));
        let rotated = store.rotate(id, &name, &own).unwrap();
        assert_ne!(rotated.line, first.line);
        assert_eq!(store.info(id, &name).unwrap(), Some(rotated));
        assert!(store.remove(id).unwrap() && !store.remove(id).unwrap());
    }

    #[test]
    fn parts_of_a_key_are_in_no_other_key() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DeployKeyStore::new(temporary.path().join("keys"));
        let name: ProjectName = "shop".parse().unwrap();
        let made = |number| {
            store.make(ProjectId(number), &name, &project_key(number)).unwrap();
            store.load(ProjectId(number), &project_key(number)).unwrap().unwrap()
        };
        let (one, other) = (made(1), made(2));
        let parts = one.parts();
        let lines = parts.get("deploy key").unwrap().split(|byte| *byte == b'\n');
        for line in lines {
            let line = std::str::from_utf8(line).unwrap();
            assert!(one.private.contains(line) && (line.len() < 8 || !other.private.contains(line)), "{}", line.len());
        }
    }

    #[test]
    fn changed_host_key_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DeployKeyStore::new(temporary.path().join("keys"));
        let (id, name, own) = (ProjectId(1), "shop".parse().unwrap(), project_key(1));
        let host: HostPort = "Git.example.com:2222".parse().unwrap();
        let line = |seed: u8| line_of(PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32])).public_key());
        assert!(matches!(store.add_host(id, &name, &host, &line(1)), Err(DeployKeyError::None(_))));
        store.make(id, &name, &own).unwrap();
        let (info, is_new) = store.add_host(id, &name, &host, &line(1)).unwrap();
        assert!(is_new && info.hosts[0].0 == "[git.example.com]:2222" && info.hosts[0].1.starts_with("SHA256:"));
        assert!(!store.add_host(id, &name, &host, &line(1)).unwrap().1);
        let error = store.add_host(id, &name, &host, &line(2)).unwrap_err();
        let hint = error.hint(&name).unwrap();
        assert!(hint.contains("--forget-host git.example.com:2222"), "{error}: {hint}");
        let known = store.load(id, &own).unwrap().unwrap().known_hosts;
        assert_eq!(known, format!("[git.example.com]:2222 {}\n", line(1)));
        store.rotate(id, &name, &own).unwrap();
        assert_eq!(store.forget_host(id, &name, &host).unwrap().hosts, []);
        assert!(matches!(store.forget_host(id, &name, &host), Err(DeployKeyError::NoHost(_))));
        assert_eq!(given_host_key(&format!("[git.example.com]:2222 {} x", line(1)), &host).unwrap(), line(1));
        assert!(given_host_key("SHA256:abc", &host).is_err());
    }

    #[test]
    fn record_of_another_format_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("keys");
        let store = DeployKeyStore::new(directory.clone());
        let (id, name, own) = (ProjectId(1), "shop".parse().unwrap(), project_key(1));
        store.make(id, &name, &own).unwrap();
        let text = fs::read_to_string(directory.join("1.json")).unwrap();
        for (text, why) in [
            (text.replace("\"format\": 1", "\"format\": 2"), "has the format 2 (expected 1)"),
            (String::from("{}"), "has no format"),
            (String::from("x"), "is not JSON"),
        ] {
            files::write_atomic(&directory.join("1.json"), text.as_bytes(), 0o600).unwrap();
            let error = store.load(id, &own).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.hint(&name).unwrap().contains("--rotate"));
        }
        assert!(store.rotate(id, &name, &own).is_ok(), "the remedy works");
    }

    #[test]
    fn host_that_known_hosts_would_read_as_a_pattern_is_refused() {
        for (text, shown, known) in [
            ("git.example.com", "git.example.com", "git.example.com"),
            ("GIT.example.com:22", "git.example.com", "git.example.com"),
            ("192.0.2.1:2222", "192.0.2.1:2222", "[192.0.2.1]:2222"),
            ("[2001:db8::1]:2222", "[2001:db8::1]:2222", "[2001:db8::1]:2222"),
            ("[2001:db8::1]", "[2001:db8::1]", "2001:db8::1"),
        ] {
            let host: HostPort = text.parse().unwrap();
            assert_eq!((host.to_string().as_str(), host.known().as_str()), (shown, known));
        }
        for wrong in [
            "",
            "*",
            "*.example.com",
            "a,b",
            "-oProxyCommand=x",
            "@cert-authority",
            "a b",
            "a:0",
            "a:x",
            "a:70000",
            "[a",
            "a\nb",
            "!a",
        ] {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
        }
    }
}
