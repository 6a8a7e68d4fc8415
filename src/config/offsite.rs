//! The list `backup.offsite` of the server file: the stores outside of this machine to which restore points are copied.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    keep::{self, BackupKeep},
    keys::{
        self,
        Fallback::{Is, Says, Unstated},
        KeyRow, Mapping,
    },
    quantity::ByteSize,
    reader::ConfigReader,
    yaml::Node,
};
use crate::model::{ServerAddress, bucket_and_prefix, has_dots};

/// The maximum number of stores.
const MAX_STORES: usize = 8;

/// The maximum length of an address, in bytes.
const MAX_ADDRESS: usize = 1000;

/// A store of copies of restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsiteConfig {
    /// The address of the store.
    pub url: OffsiteAddress,
    /// The file with the password that encrypts the copies.
    pub password_file: PathBuf,
    /// The file with the settings of a bucket, or the private key of an sftp server.
    pub credentials_file: Option<PathBuf>,
    /// The bytes of older copies that are read back within 24 hours, for each environment.
    pub verify: ByteSize,
    /// The rules by which copies are removed; `None` for the rules of `backup.keep`, with which the store also has each restore point of this
    /// machine.
    pub keep: Option<BackupKeep>,
}

/// The address of a store of copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffsiteAddress {
    /// The absolute path of a directory on this machine, such as a mounted disk.
    Directory(String),
    /// A directory on a server, over sftp.
    Sftp {
        /// The user name.
        login: String,
        /// The host name or IP address; an IPv6 address has no brackets.
        host: String,
        /// The port.
        port: u16,
        /// The path of the directory: absolute, or relative to the user's home directory.
        path: String,
    },
    /// A prefix in a bucket.
    Bucket {
        /// The URL of a server that speaks S3; `None` for Amazon's own.
        endpoint: Option<String>,
        /// The name of the bucket.
        bucket: String,
        /// The prefix, without leading and trailing slashes. An empty prefix means the whole bucket.
        prefix: String,
    },
}

impl FromStr for OffsiteAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<OffsiteAddress, String> {
        if text.len() > MAX_ADDRESS || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(String::from("the address has white space or control characters, or is too long"));
        }
        // Messages do not repeat the address, because the address may have a password by mistake.
        let Some((scheme, rest)) = text.split_once("://") else { return directory(text) };
        match scheme {
            "file" => directory(rest),
            "sftp" => sftp(rest),
            "s3" => bucket(None, rest),
            "s3+http" | "s3+https" => {
                let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let is_host = |c: u8| c.is_ascii_alphanumeric() || b".-:[]".contains(&c);
                if host.is_empty() || !host.bytes().all(is_host) {
                    return Err(String::from(
                        "the endpoint is not a host, or a host and a port; it has no user name or password",
                    ));
                }
                bucket(Some(format!("{}://{host}", scheme.trim_start_matches("s3+"))), rest)
            }
            _ => Err(String::from("the address has an unknown scheme")),
        }
    }
}

fn directory(path: &str) -> Result<OffsiteAddress, String> {
    let path = path.trim_end_matches('/');
    if !path.starts_with('/') || has_dots(path) {
        return Err(String::from("the path of the directory is not absolute, or contains . or .."));
    }
    Ok(OffsiteAddress::Directory(path.to_owned()))
}

fn sftp(rest: &str) -> Result<OffsiteAddress, String> {
    let (authority, path) = rest.split_once('/').ok_or("the address has no path")?;
    let ServerAddress { login, host, port } = ServerAddress::parse(authority)?;
    let login = login.ok_or("the address has no user name")?;
    let path = path.trim_end_matches('/');
    if path.is_empty() || has_dots(path) {
        return Err(String::from("the path is empty, or contains . or .."));
    }
    // As in other programs, `sftp://HOST//srv` names the absolute path /srv, and `sftp://HOST/srv` is relative to the home directory.
    Ok(OffsiteAddress::Sftp { login, host, port, path: path.to_owned() })
}

fn bucket(endpoint: Option<String>, rest: &str) -> Result<OffsiteAddress, String> {
    let (bucket, prefix) = bucket_and_prefix(rest)?;
    if !prefix.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-/".contains(&c)) {
        return Err(String::from("the parts of the prefix have other characters than A-Z a-z 0-9 . _ -"));
    }
    Ok(OffsiteAddress::Bucket { endpoint, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for OffsiteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OffsiteAddress::Directory(path) => f.write_str(path),
            OffsiteAddress::Sftp { login, host, port, path } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "sftp://{login}@{open}{host}{close}:{port}/{path}")
            }
            OffsiteAddress::Bucket { endpoint, bucket, prefix } => {
                match endpoint {
                    Some(endpoint) => write!(f, "s3+{endpoint}/{bucket}")?,
                    None => write!(f, "s3://{bucket}")?,
                }
                if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
            }
        }
    }
}

/// The values of one item of the list that were read.
struct Draft {
    url: Option<OffsiteAddress>,
    password_file: Option<PathBuf>,
    credentials_file: Option<PathBuf>,
    verify: ByteSize,
    keep: Option<BackupKeep>,
}

const STORE_KEYS: &[KeyRow<Draft>] = &[
    KeyRow::value(
        "url",
        "A directory (/mnt/backup), an sftp server (sftp://USER@HOST:PORT/PATH) or a bucket (s3://BUCKET/PREFIX, or s3+https://HOST/BUCKET/PREFIX for servers other than Amazon's).",
        Unstated,
        "sftp://backup@example.com/larder",
        |reader, node, key, draft| {
            let expected = "/DIRECTORY, sftp://USER@HOST:PORT/PATH, s3://BUCKET/PREFIX or s3+https://HOST/BUCKET/PREFIX";
            draft.url = reader.value(node, key, expected, str::parse);
        },
    ),
    KeyRow::value(
        "password_file",
        "The file whose first line is the password that encrypts the copies. Only the user of larder may read the file. Without this password, no copy can be restored: keep the password outside of this machine, too.",
        Unstated,
        "/etc/larder/offsite.password",
        |reader, node, key, draft| draft.password_file = file(reader, node, key),
    ),
    KeyRow::value(
        "credentials_file",
        "For a bucket, a file with lines such as AWS_ACCESS_KEY_ID=KEY and AWS_SECRET_ACCESS_KEY=SECRET; these lines take precedence over the variables of `larder serve`. For sftp, the private key, which is required; FILE.known_hosts beside it has the host key. Only the user of larder may read the file.",
        Says("the variables AWS_* of `larder serve`; required for sftp"),
        "/etc/larder/offsite.credentials",
        |reader, node, key, draft| draft.credentials_file = file(reader, node, key),
    ),
    KeyRow::value(
        "verify",
        "The bytes of older copies of one environment that are read back within 24 hours, in turn. New copies are always read back.",
        Is("1G"),
        "1G",
        |reader, node, key, draft| {
            if let Some(size) = reader.size(node, key) {
                draft.verify = size;
            }
        },
    ),
    KeyRow::value(
        "keep",
        "The restore points of which the store has a copy, by the rules of backup.keep without bytes. A restore point that no rule selects is not copied, and its copy is removed. The newest restore point is always copied.",
        Says("the rules of backup.keep, and each restore point that is kept on this machine"),
        "{daily: 30, yearly: 5}",
        |reader, node, key, draft| draft.keep = Some(keep::read_copies(reader, node, key)),
    ),
];

fn file(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<PathBuf> {
    // The value may be a password by mistake, so the message does not repeat the value.
    let parse = |text: &str| {
        let is_path = text.starts_with('/') && !has_dots(text) && !text.chars().any(char::is_control);
        if is_path { Ok(PathBuf::from(text)) } else { Err(String::from("the value is not an absolute path")) }
    };
    reader.value(node, key, "the absolute path of a file, such as /etc/larder/offsite.password", parse)
}

/// Renders the reference of one item of the list.
pub(super) fn render_store() -> String {
    let rows = keys::render(STORE_KEYS);
    let lines = rows.lines().map(|line| format!("  {line}\n"));
    let item = |line: String| line.replacen("  url:", "- url:", 1);
    // The comment of the first key precedes the dash.
    lines.map(item).collect()
}

/// Reads the list of stores.
pub(super) fn read_stores(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<OffsiteConfig> {
    const EXAMPLE: &str = "{url: /mnt/backup, password_file: /etc/larder/offsite.password}";
    let mut stores: Vec<OffsiteConfig> = Vec::new();
    for item in reader.list_up_to(node, key, &format!("[{EXAMPLE}]"), MAX_STORES) {
        let mut draft =
            Draft { url: None, password_file: None, credentials_file: None, verify: ByteSize::mebibytes(1 << 10), keep: None };
        let mapping = Mapping { name: key, prefix: key, example: EXAMPLE };
        keys::read(reader, item, &mapping, STORE_KEYS, &mut draft);
        let named = |name: &str| reader_has(item, name);
        for name in ["url", "password_file"] {
            if !named(name) {
                reader.problem(item, format!("{key} has no {name}")).expected = Some(format!("a mapping, such as {EXAMPLE}"));
            }
        }
        let (Some(url), Some(password_file)) = (draft.url, draft.password_file) else { continue };
        if matches!(url, OffsiteAddress::Sftp { .. }) && draft.credentials_file.is_none() {
            let expected = "the absolute path of an unencrypted private key in OpenSSH's format";
            reader.problem(item, format!("{key} has an sftp server without credentials_file")).expected =
                Some(String::from(expected));
            continue;
        }
        if stores.iter().any(|other| other.url == url) {
            reader.problem(item, format!("{key} has two stores with the same url"));
            continue;
        }
        let Draft { credentials_file, verify, keep, .. } = draft;
        stores.push(OffsiteConfig { url, password_file, credentials_file, verify, keep });
    }
    stores
}

fn reader_has(node: &Node, name: &str) -> bool {
    match &node.value {
        super::yaml::Value::Map(pairs) => pairs.iter().any(|(key, _)| key.text() == Some(name)),
        // A value of another kind is reported already.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerConfig;

    #[test]
    fn address_is_read_and_displayed() {
        for (text, shown) in [
            ("/mnt/backup/", "/mnt/backup"),
            ("file:///mnt/backup", "/mnt/backup"),
            ("sftp://me@example.com/larder", "sftp://me@example.com:22/larder"),
            ("sftp://me@[::1]:2222//srv/larder", "sftp://me@[::1]:2222//srv/larder"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("s3+http://127.0.0.1:9000/bucket/a", "s3+http://127.0.0.1:9000/bucket/a"),
        ] {
            let address: OffsiteAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<OffsiteAddress>().unwrap(), address);
        }
    }

    #[test]
    fn bad_store_is_reported_without_its_secret() {
        for bad in [
            "[{url: backup, password_file: /p}]",
            "[{url: /a/../b, password_file: /p}]",
            "[{url: 'sftp://me:hunter2@example.com/a', password_file: /p}]",
            "[{url: 'sftp://example.com/a', password_file: /p}]",
            "[{url: 's3+http://me:hunter2@host/bucket', password_file: /p}]",
            "[{url: 's3://B/a', password_file: /p}]",
            "[{url: 'ftp://host/a', password_file: /p}]",
            "[{url: /a, password_file: hunter2}]",
            "[{url: 'sftp://me@example.com/a', password_file: /p}]",
            "[{url: /a}]",
            "[{password_file: /p}]",
            "[{url: /a, password_file: /p, verify: much}]",
            "[{url: /a, password_file: /p, keep: {bytes: 5G}}]",
            "[{url: /a, password_file: /p, keep: 3}]",
            "[{url: /a, password_file: /p, password: hunter2}]",
            "[{url: /a, password_file: /p}, {url: 'file:///a', password_file: /q}]",
            "{url: /a, password_file: /p}",
        ] {
            let problems = ServerConfig::parse("", format!("backup: {{offsite: {bad}}}").as_bytes()).unwrap_err();
            let text: String = problems.iter().map(ToString::to_string).collect();
            assert!(text.starts_with("larder.yml:1: ") && !text.contains("hunter2"), "{bad}: {text}");
        }
        let good = "backup: {offsite: [{url: /a, password_file: /p}, {url: s3://bucket, password_file: /p, verify: 5G}]}";
        let stores = ServerConfig::parse("", good.as_bytes()).unwrap().backup.offsite;
        assert_eq!((stores.len(), stores[0].verify, stores[1].verify.bytes()), (2, ByteSize::mebibytes(1024), 5 << 30));
    }
}
