//! `<root>/larder.yml`: what the operator says about this server. Every key is optional, and so is the file.

use std::{net::SocketAddr, path::Path, path::PathBuf};

use indexmap::IndexMap;

use super::{
    age::Age,
    error::{ConfigError, shown},
    http::{self, HttpConfig, HttpScheme},
    promote::{self, Promote},
    reader::{Reader, Section},
    recipe_read,
    settings::DriftPolicy,
    value::{ByteSize, Domain, TimeSpan, VariableName},
    yaml::{self, Limits, Node},
};

/// How the file is called in errors that have no path.
const FILE: &str = "larder.yml";

pub(super) const TOP: [&str; 13] =
    ["domain", "ssh", "http", "builds", "limits", "deployments", "ports", "paths", "keep", "promote", "drift", "log", "env"];
pub(super) const SSH: [&str; 2] = ["listen", "profile"];
pub(super) const BUILDS: [&str; 4] = ["parallel", "memory", "pids", "timeout"];
pub(super) const LIMITS: [&str; 7] =
    ["push_bytes", "tree_entries", "tree_bytes", "file_bytes", "refs_per_push", "archive_bytes", "disk_reserve"];
pub(super) const DEPLOYMENTS: [&str; 1] = ["parallel"];
pub(super) const PORTS: [&str; 2] = ["from", "to"];
pub(super) const KEEP: [&str; 4] = ["releases", "age", "bytes", "deployments"];
pub(super) const LOG: [&str; 2] = ["max_bytes", "keep"];

/// The settings of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The domain below which projects appear.
    pub domain: Domain,
    /// The SSH service.
    pub ssh: SshConfig,
    /// The HTTP front door.
    pub http: HttpConfig,
    /// Builds.
    pub builds: BuildsConfig,
    /// What a push and a release may hold.
    pub limits: PushLimits,
    /// How many deployments run at the same time, each of another environment.
    pub deployments_parallel: u16,
    /// The ports that applications get, from and to, both included.
    pub ports: (u16, u16),
    /// Further directories of the host that sandboxes see, read-only.
    pub paths: Vec<PathBuf>,
    /// How much is kept.
    pub keep: KeepConfig,
    /// What a release must have gone through elsewhere before any environment of this server takes it.
    pub promote: Promote,
    /// What deployments do about files that were changed by hand, where the recipe does not say.
    pub drift: Option<DriftPolicy>,
    /// Process logs.
    pub log: LogConfig,
    /// Configuration variables that every project gets, unless it sets them itself.
    pub env: IndexMap<VariableName, String>,
}

/// The SSH service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The algorithms that it offers.
    pub profile: SshProfile,
}

/// Which algorithms SSH offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshProfile {
    /// What every maintained client has.
    Default,
    /// Only key exchanges that also resist quantum computers; shuts out clients older than 2024.
    Strict,
}

/// Builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildsConfig {
    /// How many run at the same time.
    pub parallel: u16,
    /// The memory of one.
    pub memory: ByteSize,
    /// How many processes and threads one may have.
    pub pids: u32,
    /// How long one may take at most, whatever its recipe says.
    pub timeout: TimeSpan,
}

/// What a push and a release may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushLimits {
    /// The compressed size of one push.
    pub push_bytes: ByteSize,
    /// The files and directories of one tree.
    pub tree_entries: u64,
    /// The sum of the sizes of the files of one tree.
    pub tree_bytes: ByteSize,
    /// The size of one file.
    pub file_bytes: ByteSize,
    /// The refs that one push may change.
    pub refs_per_push: u32,
    /// The size of one release archive.
    pub archive_bytes: ByteSize,
    /// The free disk space below which nothing is accepted.
    pub disk_reserve: ByteSize,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepConfig {
    /// Releases per environment, where the recipe does not say.
    pub releases: u16,
    /// The age beyond which releases go, where the recipe does not say; nothing: none goes for its age.
    pub age: Option<Age>,
    /// How much disk the archives of an environment may take, whatever its recipe says; nothing: any.
    pub bytes: Option<ByteSize>,
    /// Records of deployments per environment.
    pub deployments: u32,
}

/// Process logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The size at which a log is rotated.
    pub max_bytes: ByteSize,
    /// How many rotated logs are kept.
    pub keep: u16,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        ServerConfig {
            domain: Domain::localhost(),
            ssh: SshConfig { listen: any(2222), profile: SshProfile::Default },
            http: HttpConfig { listen: any(8080), trusted: Vec::new(), scheme: HttpScheme::Http },
            builds: BuildsConfig { parallel: 1, memory: ByteSize::mebibytes(2048), pids: 2048, timeout: TimeSpan::minutes(60) },
            limits: PushLimits {
                push_bytes: ByteSize::mebibytes(512),
                tree_entries: 200_000,
                tree_bytes: ByteSize::mebibytes(2048),
                file_bytes: ByteSize::mebibytes(512),
                refs_per_push: 100,
                archive_bytes: ByteSize::mebibytes(4096),
                disk_reserve: ByteSize::mebibytes(512),
            },
            deployments_parallel: 4,
            ports: (20_000, 29_999),
            paths: Vec::new(),
            keep: KeepConfig { releases: 10, age: None, bytes: None, deployments: 200 },
            promote: Promote::default(),
            drift: None,
            log: LogConfig { max_bytes: ByteSize::mebibytes(10), keep: 5 },
            env: IndexMap::new(),
        }
    }
}

impl ServerConfig {
    /// Reads the server file; one that is not there means the defaults.
    pub fn load(path: &Path) -> Result<ServerConfig, Vec<ConfigError>> {
        use std::io::Read;
        let name = path.display().to_string();
        let unreadable = |error: std::io::Error| vec![ConfigError::new(&name, format!("the file cannot be read: {error}"))];
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ServerConfig::default()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut bytes = Vec::new();
        // One byte more than allowed, so that the parser sees that there is too much.
        let most = u64::try_from(Limits::SERVER.bytes).unwrap_or(u64::MAX).saturating_add(1);
        file.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
        ServerConfig::parse(&name, &bytes)
    }

    /// Reads the text of a server file; all its problems are reported together.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<ServerConfig, Vec<ConfigError>> {
        let file = if file.is_empty() { FILE } else { file };
        let root = yaml::parse_tree(file, bytes, Limits::SERVER).map_err(|error| vec![error])?;
        let mut reader = Reader::new(file);
        let config = read(&mut reader, &root);
        reader.finish(config)
    }
}

fn read(reader: &mut Reader, root: &Node) -> ServerConfig {
    let mut config = ServerConfig::default();
    let top = reader.section(root, "the file", &TOP, "{domain: example.com}");
    if let Some(node) = top.get("domain") {
        let expected = "a host name such as example.com";
        set(&mut config.domain, reader.value(node, "domain", expected, str::parse));
    }
    if let Some(ssh) = sub(reader, &top, "ssh", &SSH, "{listen: \"0.0.0.0:2222\"}") {
        let profiles = [("default", SshProfile::Default), ("strict", SshProfile::Strict)];
        set(&mut config.ssh.profile, ssh.get("profile").and_then(|node| reader.choice(node, "ssh.profile", &profiles)));
        set(&mut config.ssh.listen, address(reader, &ssh, "ssh.listen"));
    }
    if let Some(node) = top.get("http") {
        http::read(reader, node, &mut config.http);
    }
    if let Some(builds) = sub(reader, &top, "builds", &BUILDS, "{parallel: 1, memory: 2G}") {
        number(reader, &builds, "builds.parallel", 1..=64, &mut config.builds.parallel);
        bytes(reader, &builds, "builds.memory", &mut config.builds.memory);
        number(reader, &builds, "builds.pids", 16..=1_000_000, &mut config.builds.pids);
        time(reader, &builds, "builds.timeout", &mut config.builds.timeout);
    }
    if let Some(limits) = sub(reader, &top, "limits", &LIMITS, "{push_bytes: 512M}") {
        let to = &mut config.limits;
        bytes(reader, &limits, "limits.push_bytes", &mut to.push_bytes);
        number(reader, &limits, "limits.tree_entries", 1..=10_000_000, &mut to.tree_entries);
        bytes(reader, &limits, "limits.tree_bytes", &mut to.tree_bytes);
        bytes(reader, &limits, "limits.file_bytes", &mut to.file_bytes);
        // git's hooks hand on 2000 at most.
        number(reader, &limits, "limits.refs_per_push", 1..=2_000, &mut to.refs_per_push);
        bytes(reader, &limits, "limits.archive_bytes", &mut to.archive_bytes);
        bytes(reader, &limits, "limits.disk_reserve", &mut to.disk_reserve);
    }
    if let Some(deployments) = sub(reader, &top, "deployments", &DEPLOYMENTS, "{parallel: 4}") {
        number(reader, &deployments, "deployments.parallel", 1..=64, &mut config.deployments_parallel);
    }
    if let Some(ports) = sub(reader, &top, "ports", &PORTS, "{from: 20000, to: 29999}") {
        number(reader, &ports, "ports.from", 1024..=65_535, &mut config.ports.0);
        number(reader, &ports, "ports.to", 1024..=65_535, &mut config.ports.1);
        let (from, to) = config.ports;
        if let Some(node) = top.get("ports").filter(|_| to < from.saturating_add(9)) {
            reader.problem(node, format!("ports: there are fewer than ten from {from} to {to}")).expected =
                Some("a larger range, such as {from: 20000, to: 29999}".to_owned());
        }
    }
    if let Some(node) = top.get("paths") {
        for node in reader.list(node, "paths", "[/opt/node]") {
            config.paths.extend(reader.value(node, "paths", "an absolute directory such as /opt/node", host_path));
        }
    }
    if let Some(keep) = sub(reader, &top, "keep", &KEEP, "{releases: 10}") {
        // The live release and the one before it are never pruned.
        number(reader, &keep, "keep.releases", 2..=1000, &mut config.keep.releases);
        config.keep.age = keep.get("age").and_then(|node| recipe_read::age(reader, node, "keep.age"));
        config.keep.bytes = keep.get("bytes").and_then(|node| recipe_read::size(reader, node, "keep.bytes"));
        number(reader, &keep, "keep.deployments", 10..=100_000, &mut config.keep.deployments);
    }
    if let Some(node) = top.get("promote") {
        promote::read(reader, node).apply(&mut config.promote);
    }
    config.drift = top.get("drift").and_then(|node| reader.choice(node, "drift", &DriftPolicy::WORDS));
    if let Some(log) = sub(reader, &top, "log", &LOG, "{max_bytes: 10M, keep: 5}") {
        bytes(reader, &log, "log.max_bytes", &mut config.log.max_bytes);
        number(reader, &log, "log.keep", 0..=100, &mut config.log.keep);
    }
    if let Some(node) = top.get("env") {
        config.env = recipe_read::env(reader, node, "env");
    }
    config
}

fn sub<'n>(reader: &mut Reader, top: &Section<'n>, key: &str, known: &[&str], example: &str) -> Option<Section<'n>> {
    top.get(key).map(|node| reader.section(node, key, known, example))
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// The last part of a key such as `ssh.listen`.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

pub(super) fn address(reader: &mut Reader, section: &Section, key: &str) -> Option<SocketAddr> {
    let node = section.get(last(key))?;
    reader.value(node, key, "an address and a port such as \"0.0.0.0:2222\" or \"[::]:2222\"", |text| {
        text.parse().map_err(|_| format!("{} is not an address with a port", shown(text)))
    })
}

fn number<T: TryFrom<u64>>(
    reader: &mut Reader,
    section: &Section,
    key: &str,
    range: std::ops::RangeInclusive<u64>,
    target: &mut T,
) {
    if let Some(node) = section.get(last(key)) {
        let number = reader.number(node, key, *range.start(), *range.end());
        set(target, number.and_then(|number| T::try_from(number).ok()));
    }
}

fn bytes(reader: &mut Reader, section: &Section, key: &str, target: &mut ByteSize) {
    if let Some(node) = section.get(last(key)) {
        let size = recipe_read::size(reader, node, key);
        if size.is_some_and(|size| size.bytes() < 1024) {
            reader.mismatch(node, key, "at least 1K");
        }
        set(target, size);
    }
}

fn time(reader: &mut Reader, section: &Section, key: &str, target: &mut TimeSpan) {
    if let Some(node) = section.get(last(key)) {
        set(target, recipe_read::time(reader, node, key));
    }
}

/// A directory of the host. The system's own places are either visible anyway or never meant to be.
fn host_path(text: &str) -> Result<PathBuf, String> {
    let parts: Vec<&str> = text.split('/').skip(1).collect();
    let clean = text.starts_with('/')
        && text.len() <= 1024
        && !text.chars().any(char::is_control)
        && parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
    if !clean {
        return Err(format!("{} is not an absolute path without \".\", \"..\" and empty parts", shown(text)));
    }
    // Below /root may be the languages of an operator who installed them as root.
    if matches!(parts.as_slice(), ["proc" | "sys" | "dev" | "run" | "boot", ..] | ["root"]) {
        return Err(format!("{} must not be visible in sandboxes", shown(text)));
    }
    // What a sandbox has of its own would lie over it.
    const OWN: [&str; 13] =
        ["app", "area", "buildpacks", "cache", "data", "deploy", "hooks", "larder", "lower", "repo", "source", "tmp", "upper"];
    if parts.first().is_some_and(|first| OWN.contains(first)) || parts.starts_with(&["var", "tmp"]) {
        return Err(format!("{} would be hidden: every sandbox has a directory of its own there", shown(text)));
    }
    Ok(PathBuf::from(text))
}
