//! The server file, `<root>/larder.yml`, which contains the operator's settings. The file and all of its keys are optional.
//!
//! To add a key, add a field of [`ServerConfig`] with its default, a row of [`KEYS`], and the code that uses the field. Then
//! `LARDER_BLESS=1 cargo test --lib config` renders the reference in `docs/server-file.md` from the table.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use indexmap::IndexMap;

use super::{
    backup::{BACKUP_KEYS, BackupConfig},
    database_servers::{DATABASE_SERVER_KEYS, DatabaseServers},
    error::{ConfigError, shown},
    forge::{self, ForgeConfig},
    keys::{
        self,
        Fallback::{Is, Says, Unstated},
        KeyRow, Mapping,
    },
    mail::{self, MAIL_KEYS, MailConfig},
    policy::{self, DriftPolicy, PROMOTE_KEYS, PromotionPolicy},
    quantity::{ByteSize, TimeSpan},
    reader::ConfigReader,
    sections::{BuildsConfig, HttpConfig, HttpScheme, KeepConfig, LogConfig, PushLimits, SshConfig, SshProfile},
    services::{SERVICES_KEYS, ServicesConfig},
    space::{SPACE_KEYS, SpaceConfig},
    value::{Domain, VariableName, host_path},
    webhook::{WEBHOOK_POLICY_KEYS, WebhookPolicy},
    yaml::{self, FileLimits, Node},
};

/// The name of the file in errors, if its path is not given.
const FILE: &str = "larder.yml";

/// The settings of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The domain of the projects' host names, `<project>.<domain>`.
    pub domain: Domain,
    /// Settings of the SSH service.
    pub ssh: SshConfig,
    /// Settings of the HTTP proxy.
    pub http: HttpConfig,
    /// Limits of builds.
    pub builds: BuildsConfig,
    /// Limits of a push and a release.
    pub limits: PushLimits,
    /// The maximum number of deployments that do the same kind of heavy work at the same time; see `pipeline::permits`.
    pub deployments_parallel: u16,
    /// The first and the last port for applications.
    pub ports: (u16, u16),
    /// Further directories of the host that are visible read-only in sandboxes.
    pub paths: Vec<PathBuf>,
    /// Retention limits.
    pub keep: KeepConfig,
    /// The conditions under which any environment of this server accepts a release from another environment or server.
    pub promote: PromotionPolicy,
    /// The policy on drift, for recipes that do not set a policy.
    pub drift: Option<DriftPolicy>,
    /// Limits of process logs.
    pub log: LogConfig,
    /// Scheduled restore points.
    pub backup: BackupConfig,
    /// Limits of the disk space of projects.
    pub space: SpaceConfig,
    /// The units of systemd that deployments in place may stop and start.
    pub services: ServicesConfig,
    /// The database servers on which `larder db create` creates databases.
    pub databases: DatabaseServers,
    /// The way in which this server sends mail; `None` if the server sends no mail.
    pub mail: Option<MailConfig>,
    /// The operator's limits for webhooks.
    pub webhooks: WebhookPolicy,
    /// The repositories that get the status of deployments.
    pub forges: Vec<ForgeConfig>,
    /// Configuration variables for all projects. A project's own value takes precedence.
    pub env: IndexMap<VariableName, String>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        ServerConfig {
            domain: Domain::localhost(),
            ssh: SshConfig { listen: any(2222), profile: SshProfile::Default },
            http: HttpConfig { listen: any(8080), trusted: Vec::new(), scheme: HttpScheme::Http },
            builds: BuildsConfig { parallel: 1, memory: None, pids: 2048, timeout: TimeSpan::minutes(60) },
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
            promote: PromotionPolicy::default(),
            drift: None,
            log: LogConfig { max_bytes: ByteSize::mebibytes(10), keep: 5 },
            backup: BackupConfig::default(),
            space: SpaceConfig::default(),
            services: ServicesConfig::default(),
            databases: DatabaseServers::default(),
            mail: None,
            webhooks: WebhookPolicy::default(),
            forges: Vec::new(),
            env: IndexMap::new(),
        }
    }
}

impl ServerConfig {
    /// Reads the server file. Returns the defaults if the file does not exist.
    pub fn load(path: &Path) -> Result<ServerConfig, Vec<ConfigError>> {
        use std::io::Read;
        let name = path.display().to_string();
        let unreadable = |error: std::io::Error| vec![ConfigError::new(&name, format!("cannot read the file: {error}"))];
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ServerConfig::default()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut bytes = Vec::new();
        // One byte more than the limit is read, so that the parser reports a file that is too large.
        let limit = u64::try_from(FileLimits::SERVER.bytes).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
        ServerConfig::parse(&name, &bytes)
    }

    /// Parses the text of a server file. The first 20 problems of the text are reported together. `file` is the file's name in errors.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<ServerConfig, Vec<ConfigError>> {
        let file = if file.is_empty() { FILE } else { file };
        let root = yaml::parse_tree(file, bytes, FileLimits::SERVER).map_err(|error| vec![error])?;
        let mut reader = ConfigReader::new(file);
        let mut config = ServerConfig::default();
        let mapping = Mapping { name: "the file", prefix: "", example: "{domain: example.com}" };
        keys::read(&mut reader, &root, &mapping, KEYS, &mut config);
        check_ports(&mut reader, &root, config.ports);
        reader.finish(config)
    }
}

/// The keys of the server file.
pub(super) const KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value(
        "domain",
        "Projects get the host names <project>.<domain>. Point the DNS entry *.<domain> to this server.",
        Unstated,
        "localhost",
        |reader, node, key, config| {
            set(&mut config.domain, reader.value(node, key, "a host name such as example.com", str::parse))
        },
    ),
    KeyRow::section("ssh", "", "{listen: \"0.0.0.0:2222\"}", SSH_KEYS),
    KeyRow::section("http", "", "{listen: \"0.0.0.0:8080\"}", HTTP_KEYS),
    KeyRow::section("builds", "", "{parallel: 1, memory: 2G}", BUILDS_KEYS),
    KeyRow::section(
        "limits",
        "Limits of a push and a release. A push that exceeds a limit is refused.",
        "{push_bytes: 512M}",
        LIMITS_KEYS,
    ),
    KeyRow::section("deployments", "", "{parallel: 4}", DEPLOYMENTS_KEYS),
    KeyRow::section("ports", "The first and the last local port for applications.", "{from: 20000, to: 29999}", PORTS_KEYS),
    KeyRow::value(
        "paths",
        "Further directories of the host that are visible read-only in sandboxes, such as language runtimes. PATH contains the directory `bin` of each of these directories.",
        Unstated,
        "\n- /opt/node",
        |reader, node, key, config| {
            for node in reader.list(node, key, "[/opt/node]") {
                config.paths.extend(reader.value(node, key, "an absolute directory such as /opt/node", host_path));
            }
        },
    ),
    KeyRow::section(
        "keep",
        "Retention limits of each environment. Releases beyond any of these limits are pruned. The live release, its predecessor and pinned releases are always kept.",
        "{releases: 10}",
        KEEP_KEYS,
    ),
    KeyRow::custom(
        "promote",
        "The conditions that a release of another environment or server must have met before an environment of this server accepts the release. A recipe can add conditions.",
        Says("none"),
        || keys::render(PROMOTE_KEYS),
        |reader, node, key, config| policy::read_promote(reader, node, key, &mut config.promote),
    ),
    KeyRow::value(
        "drift",
        "The reaction to files that were changed by hand, for recipes that do not set `drift`: keep, refuse or reapply.",
        Says("keep"),
        "keep",
        |reader, node, key, config| config.drift = reader.choice(node, key, &DriftPolicy::WORDS),
    ),
    KeyRow::section(
        "log",
        "Process logs: the size at which a log is rotated, and the number of rotated logs that are kept.",
        "{max_bytes: 10M, keep: 5}",
        LOG_KEYS,
    ),
    KeyRow::custom(
        "backup",
        "Scheduled restore points of the data of all environments, their verification and their retention.",
        Unstated,
        || keys::render(BACKUP_KEYS),
        |reader, node, key, config| {
            keys::read_section(reader, node, key, "{schedule: \"0 2 * * *\"}", BACKUP_KEYS, &mut config.backup)
        },
    ),
    KeyRow::custom(
        "space",
        "The disk space that a project may use. A deployment that needs more is refused before it writes a file.",
        Says("no limit"),
        || keys::render(SPACE_KEYS),
        |reader, node, key, config| {
            keys::read_section(reader, node, key, "{limit: 20G, enlarge: auto, ceiling: 50G}", SPACE_KEYS, &mut config.space);
            if config.space.storage.is_some() && config.space.limit.is_none() {
                let problem = format!("{key}.storage is set, but {key}.limit is not");
                reader.problem(node, problem).hint =
                    Some(format!("set {key}.limit, the size of the file system of each new project"));
            }
        },
    ),
    KeyRow::custom(
        "services",
        "Units of systemd that deployments with `strategy: in-place` may stop and start.",
        Says("none"),
        || keys::render(SERVICES_KEYS),
        |reader, node, key, config| {
            keys::read_section(reader, node, key, "{units: {shop: [shop-index.service]}}", SERVICES_KEYS, &mut config.services)
        },
    ),
    KeyRow::custom(
        "databases",
        "The database servers on which `larder db create` creates databases. Each value is the path of a file that contains the URL of an administrator. Only the user of larder may read the file.",
        Says("none"),
        || keys::render(DATABASE_SERVER_KEYS),
        |reader, node, key, config| {
            let example = "{postgres: /etc/larder/postgres.url}";
            keys::read_section(reader, node, key, example, DATABASE_SERVER_KEYS, &mut config.databases)
        },
    ),
    KeyRow::custom(
        "mail",
        "The mail server. The recipe of a project names the recipients (`notify:`).",
        Says("no mail is sent"),
        || keys::render(MAIL_KEYS),
        |reader, node, key, config| config.mail = mail::read_mail(reader, node, key),
    ),
    KeyRow::custom(
        "webhooks",
        "Limits for the webhooks of projects (`notify.webhooks` of the recipe).",
        Unstated,
        || keys::render(WEBHOOK_POLICY_KEYS),
        |reader, node, key, config| {
            keys::read_section(reader, node, key, "{allow: [10.0.0.0/8]}", WEBHOOK_POLICY_KEYS, &mut config.webhooks)
        },
    ),
    KeyRow::custom(
        "forges",
        "The repository of each project at GitHub, GitLab, Gitea or Forgejo that gets the status of deployments.",
        Says("none"),
        forge::example,
        |reader, node, key, config| config.forges = forge::read_forges(reader, node, key),
    ),
    KeyRow::custom(
        "env",
        "Variables for all projects. A value in a project's own files takes precedence.",
        Unstated,
        || "HTTPS_PROXY: http://proxy.example.com:3128".to_owned(),
        |reader, node, key, config| config.env = reader.env(node, key),
    ),
];

const SSH_KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value(
        "listen",
        "The address and port to listen on; port 0 selects a free port. `larder serve --ssh` takes precedence.",
        Unstated,
        "0.0.0.0:2222",
        |reader, node, key, config| set(&mut config.ssh.listen, reader.address(node, key)),
    ),
    KeyRow::value(
        "profile",
        "default: algorithms that all maintained clients support. \
         strict: only key exchanges that also resist attacks by quantum computers.",
        Unstated,
        "default",
        |reader, node, key, config| {
            const PROFILES: [(&str, SshProfile); 2] = [("default", SshProfile::Default), ("strict", SshProfile::Strict)];
            set(&mut config.ssh.profile, reader.choice(node, key, &PROFILES));
        },
    ),
];

const HTTP_KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value(
        "listen",
        "The address and port to listen on; port 0 selects a free port. `larder serve --http` takes precedence.",
        Unstated,
        "0.0.0.0:8080",
        |reader, node, key, config| set(&mut config.http.listen, reader.address(node, key)),
    ),
    KeyRow::value(
        "trusted",
        "The addresses of TLS proxies in front of larder, such as [127.0.0.1, \"::1\"], whose forwarding headers are trusted.",
        Unstated,
        "[]",
        |reader, node, key, config| {
            let expected = "the address of a proxy, such as 127.0.0.1 or \"::1\"";
            for node in reader.list(node, key, "[127.0.0.1, \"::1\"]") {
                // The proxy compares canonical addresses.
                config.http.trusted.extend(reader.value(node, key, expected, |text| {
                    let ip = text.parse::<IpAddr>().map_err(|_| format!("{} is not an address", shown(text)))?;
                    Ok(ip.to_canonical())
                }));
            }
        },
    ),
    KeyRow::value(
        "scheme",
        "The scheme of the addresses that visitors open: http, or https behind a TLS proxy.",
        Unstated,
        "http",
        |reader, node, key, config| {
            const SCHEMES: [(&str, HttpScheme); 2] = [("http", HttpScheme::Http), ("https", HttpScheme::Https)];
            set(&mut config.http.scheme, reader.choice(node, key, &SCHEMES));
        },
    ),
];

const BUILDS_KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value(
        "parallel",
        "The maximum number of concurrent builds. Further builds wait. A value above deployments.parallel has no effect.",
        Unstated,
        "1",
        |reader, node, key, config| set(&mut config.builds.parallel, number(reader, node, key, 1..=64)),
    ),
    KeyRow::value(
        "memory",
        "The memory limit of one build. A recipe can only lower this limit.",
        Says("half of the machine's memory, at most 2G"),
        "2G",
        |reader, node, key, config| set(&mut config.builds.memory, reader.bytes(node, key).map(Some)),
    ),
    KeyRow::value(
        "pids",
        "The maximum number of processes and threads of one build.",
        Unstated,
        "2048",
        |reader, node, key, config| {
            set(&mut config.builds.pids, number(reader, node, key, 16..=1_000_000));
        },
    ),
    KeyRow::value(
        "timeout",
        "The time limit of one build. A recipe can only lower this limit.",
        Unstated,
        "1h",
        |reader, node, key, config| set(&mut config.builds.timeout, reader.time(node, key)),
    ),
];

const LIMITS_KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value("push_bytes", "The maximum compressed size of one push.", Unstated, "512M", |reader, node, key, config| {
        set(&mut config.limits.push_bytes, reader.bytes(node, key));
    }),
    KeyRow::value(
        "tree_entries",
        "The maximum number of files and directories of one tree.",
        Unstated,
        "200000",
        |reader, node, key, config| set(&mut config.limits.tree_entries, number(reader, node, key, 1..=10_000_000)),
    ),
    KeyRow::value(
        "tree_bytes",
        "The maximum total size of the files in one tree.",
        Unstated,
        "2G",
        |reader, node, key, config| set(&mut config.limits.tree_bytes, reader.bytes(node, key)),
    ),
    KeyRow::value("file_bytes", "", Unstated, "512M", |reader, node, key, config| {
        set(&mut config.limits.file_bytes, reader.bytes(node, key));
    }),
    // The hooks refuse a push of more than 2000 refs (`MAX_REFS` of `git/hook`).
    KeyRow::value("refs_per_push", "", Unstated, "100", |reader, node, key, config| {
        set(&mut config.limits.refs_per_push, number(reader, node, key, 1..=2_000));
    }),
    KeyRow::value("archive_bytes", "The maximum size of one release archive.", Unstated, "4G", |reader, node, key, config| {
        set(&mut config.limits.archive_bytes, reader.bytes(node, key));
    }),
    KeyRow::value(
        "disk_reserve",
        "The disk space that must stay free. With less free space, pushes and deployments are refused.",
        Unstated,
        "512M",
        |reader, node, key, config| set(&mut config.limits.disk_reserve, reader.bytes(node, key)),
    ),
];

const DEPLOYMENTS_KEYS: &[KeyRow<ServerConfig>] = &[KeyRow::value(
    "parallel",
    "The maximum number of deployments that do the same kind of work at the same time: build, install, run a script or start \
     processes. Further deployments wait before such a step; a rollback does not wait. An environment never runs more than one \
     deployment at a time.",
    Unstated,
    "4",
    |reader, node, key, config| set(&mut config.deployments_parallel, number(reader, node, key, 1..=64)),
)];

const PORTS_KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value("from", "", Unstated, "20000", |reader, node, key, config| {
        set(&mut config.ports.0, number(reader, node, key, 1024..=65_535));
    }),
    KeyRow::value("to", "", Unstated, "29999", |reader, node, key, config| {
        set(&mut config.ports.1, number(reader, node, key, 1024..=65_535));
    }),
];

const KEEP_KEYS: &[KeyRow<ServerConfig>] = &[
    // The minimum is 2, because the live release and its predecessor are always kept.
    KeyRow::value(
        "releases",
        "The number of releases that are kept, for recipes that do not set a number.",
        Unstated,
        "10",
        |reader, node, key, config| set(&mut config.keep.releases, number(reader, node, key, 2..=1000)),
    ),
    KeyRow::value(
        "age",
        "The age at which releases are pruned, for recipes that do not set an age.",
        Says("no limit"),
        "1y",
        |reader, node, key, config| {
            config.keep.age = reader.age(node, key);
        },
    ),
    KeyRow::value(
        "bytes",
        "The maximum disk space of the archives. The oldest releases are pruned first. A recipe can only lower this limit.",
        Says("no limit"),
        "20G",
        |reader, node, key, config| config.keep.bytes = reader.size(node, key),
    ),
    KeyRow::value(
        "deployments",
        "The number of deployments whose records and logs are kept.",
        Is("200"),
        "200",
        |reader, node, key, config| set(&mut config.keep.deployments, number(reader, node, key, 10..=100_000)),
    ),
];

const LOG_KEYS: &[KeyRow<ServerConfig>] = &[
    KeyRow::value("max_bytes", "", Unstated, "10M", |reader, node, key, config| {
        set(&mut config.log.max_bytes, reader.bytes(node, key));
    }),
    KeyRow::value("keep", "", Unstated, "5", |reader, node, key, config| {
        set(&mut config.log.keep, number(reader, node, key, 0..=100));
    }),
];

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn number<T: TryFrom<u64>>(reader: &mut ConfigReader, node: &Node, key: &str, range: RangeInclusive<u64>) -> Option<T> {
    reader.number(node, key, *range.start(), *range.end()).and_then(|number| T::try_from(number).ok())
}

fn check_ports(reader: &mut ConfigReader, root: &Node, (from, to): (u16, u16)) {
    const MIN_PORTS: u16 = 10;
    if let Some(node) = root.child("ports").filter(|_| to < from.saturating_add(MIN_PORTS - 1)) {
        reader.problem(node, format!("ports: the range from {from} to {to} has fewer than {MIN_PORTS} ports")).expected =
            Some("a larger range, such as {from: 20000, to: 29999}".to_owned());
    }
}
