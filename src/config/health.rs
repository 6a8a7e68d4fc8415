//! Checks of a release: the health check before the switch and the smoke requests after it, with the keys of the recipe that set
//! them.

use serde::{Deserialize, Serialize};

use super::{
    keys::{self, Fallback, KeyRow},
    quantity::{StatusRange, TimeSpan},
    reader::ConfigReader,
    value::{CommandLine, HttpPath},
    yaml::{Node, Value},
};

/// The statuses that count as success by default.
pub(super) const GOOD: StatusRange = StatusRange { from: 200, to: 399 };

/// The check that a new release must pass before the switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The kind of check.
    pub check: HealthCheck,
    /// The time until the first success.
    pub timeout: TimeSpan,
    /// The longest pause between two attempts.
    pub interval: TimeSpan,
}

/// The kind of a health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthCheck {
    /// A GET request.
    Http {
        /// The path of the request.
        path: HttpPath,
        /// The statuses that count as success.
        status: StatusRange,
    },
    /// A TCP connection to the port.
    Tcp,
    /// A command in the sandbox that exits with 0.
    Command(CommandLine),
    /// No check: the process only has to run.
    None,
}

/// A request that must succeed after the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smoke {
    /// The path of the request.
    pub path: HttpPath,
    /// The statuses that count as success.
    pub status: StatusRange,
    /// Text that the response must contain.
    pub contains: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthKind {
    Http,
    Tcp,
    Command,
    None,
}

/// The keys of `health:` that the levels of a recipe set, merged.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct HealthOverrides {
    kind: Option<HealthKind>,
    path: Option<HttpPath>,
    status: Option<StatusRange>,
    command: Option<CommandLine>,
    timeout: Option<TimeSpan>,
    interval: Option<TimeSpan>,
}

impl HealthOverrides {
    /// Creates the overrides from a check that another file set. A level of the recipe that sets only `status` then keeps the path.
    pub fn from_check(check: &HealthCheck) -> HealthOverrides {
        match check {
            HealthCheck::Http { path, status } => {
                HealthOverrides { path: Some(path.clone()), status: Some(*status), ..HealthOverrides::default() }
            }
            HealthCheck::Command(command) => HealthOverrides { command: Some(command.clone()), ..HealthOverrides::default() },
            HealthCheck::Tcp | HealthCheck::None => HealthOverrides::default(),
        }
    }

    /// Merges another level, key by key.
    pub fn merge(&mut self, more: &HealthOverrides) {
        // A level with another kind of check discards the keys of the earlier kind.
        if more.kind.is_some() || more.implied().is_some_and(|kind| Some(kind) != self.implied()) {
            self.kind = None;
        }
        if more.implied() == Some(HealthKind::Http) {
            self.command = None;
        }
        if more.implied() == Some(HealthKind::Command) {
            (self.path, self.status) = (None, None);
        }
        self.kind = more.kind.or(self.kind);
        self.path = more.path.clone().or_else(|| self.path.take());
        self.status = more.status.or(self.status);
        self.command = more.command.clone().or_else(|| self.command.take());
        self.timeout = more.timeout.or(self.timeout);
        self.interval = more.interval.or(self.interval);
    }

    /// Writes the merged keys into `health`.
    pub fn apply(self, health: &mut Health) {
        health.timeout = self.timeout.unwrap_or(health.timeout);
        health.interval = self.interval.unwrap_or(health.interval);
        if let Some(check) = self.check() {
            health.check = check;
        }
    }

    /// Returns the kind of check that the keys imply.
    fn implied(&self) -> Option<HealthKind> {
        let by_keys = match (&self.command, &self.path, self.status) {
            (Some(_), ..) => Some(HealthKind::Command),
            (None, None, None) => None,
            _ => Some(HealthKind::Http),
        };
        self.kind.or(by_keys)
    }

    fn check(self) -> Option<HealthCheck> {
        Some(match self.implied()? {
            HealthKind::None => HealthCheck::None,
            HealthKind::Tcp => HealthCheck::Tcp,
            HealthKind::Command => HealthCheck::Command(self.command?),
            HealthKind::Http => {
                HealthCheck::Http { path: self.path.or_else(|| "/".parse().ok())?, status: self.status.unwrap_or(GOOD) }
            }
        })
    }
}

pub(super) const HEALTH_KEYS: &[KeyRow<HealthOverrides>] = &[
    KeyRow::value(
        "type",
        "http, tcp, command or none. May be left out beside a path (http) or a command (command).",
        Fallback::Is("tcp"),
        "http",
        |reader, node, key, health| {
            const KINDS: [(&str, HealthKind); 4] = [
                ("http", HealthKind::Http),
                ("tcp", HealthKind::Tcp),
                ("command", HealthKind::Command),
                ("none", HealthKind::None),
            ];
            health.kind = reader.choice(node, key, &KINDS);
        },
    ),
    KeyRow::value("path", "", Fallback::Unstated, "/healthz", |reader, node, key, health| health.path = reader.path(node, key)),
    KeyRow::value("status", "A status or a range.", Fallback::Says("200-399"), "200-299", |reader, node, key, health| {
        health.status = reader.status(node, key)
    }),
    KeyRow::<HealthOverrides>::value(
        "command",
        "With type command instead: exits with 0 when the application is healthy.",
        Fallback::Unstated,
        "bin/check",
        |reader, node, key, health| health.command = reader.command(node, key),
    )
    .commented(),
    KeyRow::value("timeout", "The time until the first success.", Fallback::Is("60s"), "60s", |reader, node, key, health| {
        health.timeout = reader.time(node, key)
    }),
    KeyRow::value(
        "interval",
        "The longest pause between two attempts.",
        Fallback::Is("1s"),
        "1s",
        |reader, node, key, health| {
            health.interval = reader.time(node, key);
            if health.interval == Some(TimeSpan::seconds(0)) {
                reader.mismatch(node, key, "a duration above zero, such as 1s");
            }
        },
    ),
];

/// Reads `health:` of one level and merges it into `merged`. A key that does not belong to the resulting kind of check is a problem.
pub(super) fn read_health(reader: &mut ConfigReader, node: &Node, key: &str, merged: &mut HealthOverrides) {
    let mut health = HealthOverrides::default();
    keys::read_section(reader, node, key, "{path: /healthz, timeout: 60s}", HEALTH_KEYS, &mut health);
    merged.merge(&health);
    let kind = health.implied();
    // The misspelt type has been reported. The keys of the intended type are unknown.
    if health.kind.is_none() && node.child("type").is_some() {
        return;
    }
    for (name, belongs_to) in [("path", HealthKind::Http), ("status", HealthKind::Http), ("command", HealthKind::Command)] {
        if let Some(node) = node.child(name).filter(|_| kind != Some(belongs_to)) {
            let hint = if belongs_to == HealthKind::Http { "http" } else { "command" };
            reader.problem(node, format!("{key}.{name} does not belong to this type of check")).hint =
                Some(format!("remove it, or write `type: {hint}`, and not both a path and a command"));
        }
    }
    if let Some(node) = node.child("type").filter(|_| kind == Some(HealthKind::Command) && node.child("command").is_none()) {
        reader.problem(node, format!("{key}.type is \"command\" but there is no {key}.command")).hint =
            Some("add one, such as `command: bin/check`".to_owned());
    }
}

#[derive(Default)]
struct SmokeKeys {
    path: Option<HttpPath>,
    status: Option<StatusRange>,
    contains: Option<String>,
}

const SMOKE_KEYS: &[KeyRow<SmokeKeys>] = &[
    KeyRow::value("path", "", Fallback::Unstated, "/login", |reader, node, key, smoke| smoke.path = reader.path(node, key)),
    KeyRow::value("status", "", Fallback::Says("200-399"), "200", |reader, node, key, smoke| {
        smoke.status = reader.status(node, key);
    }),
    KeyRow::value(
        "contains",
        "Text that the response must contain.",
        Fallback::Unstated,
        "Sign in",
        |reader, node, key, smoke| {
            smoke.contains = reader.value(node, key, "1 to 1024 bytes of text", |text| {
                if text.is_empty() || text.len() > 1024 {
                    Err("the text is empty or longer than 1024 bytes".to_owned())
                } else {
                    Ok(text.to_owned())
                }
            });
        },
    ),
];

/// Renders the example of `smoke:` in the reference.
pub(super) fn smoke_example() -> String {
    let request = keys::render(SMOKE_KEYS);
    let lines = request.lines().enumerate().map(|(at, line)| format!("{} {line}\n", if at == 0 { "-" } else { " " }));
    format!("- /\n{}", lines.collect::<String>())
}

/// Reads one request of `smoke:`: a path, or a mapping of its keys.
pub(super) fn read_smoke(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<Smoke> {
    let mut smoke = SmokeKeys::default();
    if node.text().is_some() {
        smoke.path = reader.path(node, key);
    } else {
        keys::read_section(reader, node, key, "{path: /, status: 200, contains: Welcome}", SMOKE_KEYS, &mut smoke);
        if node.child("path").is_none() && !matches!(node.value, Value::List(_)) {
            reader.problem(node, format!("{key}: a check has no path")).expected = Some("{path: /, status: 200}".to_owned());
        }
    }
    Some(Smoke { path: smoke.path?, status: smoke.status.unwrap_or(GOOD), contains: smoke.contains })
}
