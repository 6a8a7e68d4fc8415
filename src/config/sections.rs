//! The sections of the server file as values of [`ServerConfig`](super::ServerConfig). `server.rs` has the keys and defaults of these
//! sections.

use std::net::{IpAddr, SocketAddr};

use super::quantity::{Age, ByteSize, TimeSpan};

/// Settings of the SSH service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConfig {
    /// The address to listen on; port 0 selects a free port.
    pub listen: SocketAddr,
    /// The algorithms that the service offers.
    pub profile: SshProfile,
}

/// A set of SSH algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshProfile {
    /// Algorithms that all maintained clients support.
    Default,
    /// Only key exchanges that also resist attacks by quantum computers. Clients from before 2024 cannot connect.
    Strict,
}

/// Settings of the HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// The address to listen on; port 0 selects a free port.
    pub listen: SocketAddr,
    /// The addresses of TLS proxies whose forwarding headers are trusted.
    pub trusted: Vec<IpAddr>,
    /// The scheme of the addresses that visitors open.
    pub scheme: HttpScheme,
}

/// The scheme of the addresses that visitors open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpScheme {
    /// Plain HTTP to larder's own proxy.
    Http,
    /// HTTPS on the default port. A TLS proxy in front of larder decrypts the requests.
    Https,
}

impl HttpConfig {
    /// Returns the URL of `host` for visitors. `port` is the port of larder's own proxy.
    pub fn url(&self, host: &str, port: u16) -> String {
        match (self.scheme, port) {
            (HttpScheme::Https, _) => format!("https://{host}"),
            (HttpScheme::Http, 80) => format!("http://{host}"),
            (HttpScheme::Http, port) => format!("http://{host}:{port}"),
        }
    }
}

/// Limits of builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildsConfig {
    /// The maximum number of concurrent builds.
    pub parallel: u16,
    /// The memory limit of one build; `None` for half of the machine's memory, at most 2 GiB.
    pub memory: Option<ByteSize>,
    /// The maximum number of processes and threads of one build.
    pub pids: u32,
    /// The time limit of one build. A recipe can only lower this limit.
    pub timeout: TimeSpan,
}

/// Limits of a push and a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushLimits {
    /// The maximum compressed size of one push.
    pub push_bytes: ByteSize,
    /// The maximum number of files and directories of one tree.
    pub tree_entries: u64,
    /// The maximum total size of the files of one tree.
    pub tree_bytes: ByteSize,
    /// The maximum size of one file.
    pub file_bytes: ByteSize,
    /// The maximum number of refs that one push may change.
    pub refs_per_push: u32,
    /// The maximum size of one release archive.
    pub archive_bytes: ByteSize,
    /// The disk space that must stay free. With less free space, pushes and deployments are refused.
    pub disk_reserve: ByteSize,
}

/// Retention limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepConfig {
    /// The number of releases that are kept in each environment, for recipes that do not set a number.
    pub releases: u16,
    /// The age at which releases are pruned, for recipes that do not set an age.
    pub age: Option<Age>,
    /// The maximum disk space of the archives of one environment. A recipe can only lower this limit.
    pub bytes: Option<ByteSize>,
    /// The number of deployments of each environment whose records and logs are kept.
    pub deployments: u32,
}

/// Limits of process logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The size in bytes at which a log is rotated.
    pub max_bytes: ByteSize,
    /// The number of rotated logs that are kept.
    pub keep: u16,
}
