//! Checks of a release: the health check before the switch and the smoke requests after the switch, with the keys of the recipe.

use serde::{Deserialize, Serialize};

use super::{
    keys::{self, Fallback, KeyRow},
    quantity::{StatusRange, TimeSpan},
    reader::ConfigReader,
    value::{CommandLine, HttpPath},
    yaml::{Node, Value},
};

/// The range of successful statuses, unless the recipe sets a range.
pub(super) const GOOD: StatusRange = StatusRange { from: 200, to: 399 };

/// The check that a new release must pass before the switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The kind of check.
    pub check: HealthCheck,
    /// The time that a new process has until an attempt succeeds.
    pub timeout: TimeSpan,
    /// The maximum pause between two attempts.
    pub interval: TimeSpan,
}

/// The kind of a health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthCheck {
    /// A GET request to the port of the process.
    Http {
        /// The path of the request.
        path: HttpPath,
        /// The statuses that count as success.
        status: StatusRange,
    },
    /// A TCP connection to the port of the process.
    Tcp,
    /// A command that runs in the application's sandbox and must exit with 0.
    Command(CommandLine),
    /// No check. The process must only keep running.
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

/// The merged keys of `health:` from the levels of a recipe. A key that no level sets is `None`.
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
    /// Creates the overrides from the check in `app.json`. A level of the recipe that sets only `status` then keeps the path in `app.json`.
    pub fn from_check(check: &HealthCheck) -> HealthOverrides {
        match check {
            HealthCheck::Http { path, status } => {
                HealthOverrides { path: Some(path.clone()), status: Some(*status), ..HealthOverrides::default() }
            }
            HealthCheck::Command(command) => HealthOverrides { command: Some(command.clone()), ..HealthOverrides::default() },
            HealthCheck::Tcp | HealthCheck::None => HealthOverrides::default(),
        }
    }

    /// Merges the keys of a later level of the recipe over the keys of the earlier levels.
    pub fn merge(&mut self, more: &HealthOverrides) {
        // If a later level sets a different kind of check, the keys of the earlier kind are discarded.
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

    /// Returns the kind of check: the key `type`, or else the kind that `command`, `path` or `status` implies.
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
        "The kind of check: http, tcp, command or none. The keys path and status imply http, and the key command implies command.",
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
    KeyRow::value(
        "status",
        "The successful status, or a range of statuses.",
        Fallback::Says("200-399"),
        "200-299",
        |reader, node, key, health| health.status = reader.status(node, key),
    ),
    KeyRow::<HealthOverrides>::value(
        "command",
        "For the type command: a command that exits with 0 if the application is healthy.",
        Fallback::Unstated,
        "bin/check",
        |reader, node, key, health| health.command = reader.command(node, key),
    )
    .commented(),
    KeyRow::value(
        "timeout",
        "The time that a new process has until an attempt succeeds, at most 1h.",
        Fallback::Is("60s"),
        "60s",
        |reader, node, key, health| health.timeout = reader.time_within(node, key, TimeSpan::MAX_HEALTH),
    ),
    KeyRow::value(
        "interval",
        "The maximum pause between two attempts, at most 1m.",
        Fallback::Is("1s"),
        "1s",
        |reader, node, key, health| {
            health.interval = reader.time_within(node, key, TimeSpan::MAX_INTERVAL);
            if health.interval == Some(TimeSpan::seconds(0)) {
                reader.mismatch(node, key, "a duration above zero, such as 1s");
            }
        },
    ),
];

/// Reads `health:` of one level and merges its keys into `merged`. Reports keys that do not belong to the level's kind of check.
pub(super) fn read_health(reader: &mut ConfigReader, node: &Node, key: &str, merged: &mut HealthOverrides) {
    let mut health = HealthOverrides::default();
    keys::read_section(reader, node, key, "{path: /healthz, timeout: 60s}", HEALTH_KEYS, &mut health);
    merged.merge(&health);
    let kind = health.implied();
    // An invalid type has already been reported. Without the intended type, `path`, `status` and `command` cannot be checked.
    if health.kind.is_none() && node.child("type").is_some() {
        return;
    }
    for (name, belongs_to) in [("path", HealthKind::Http), ("status", HealthKind::Http), ("command", HealthKind::Command)] {
        if let Some(node) = node.child(name).filter(|_| kind != Some(belongs_to)) {
            let hint = if belongs_to == HealthKind::Http { "http" } else { "command" };
            reader.problem(node, format!("{key}.{name} does not belong to this type of check")).hint =
                Some(format!("remove the key, or write `type: {hint}` with only the keys of that type"));
        }
    }
    if let Some(node) = node.child("type").filter(|_| kind == Some(HealthKind::Command) && node.child("command").is_none()) {
        reader.problem(node, format!("{key}.type is \"command\" but there is no {key}.command")).hint =
            Some("add a command, such as `command: bin/check`".to_owned());
    }
}

/// The maximum length of the text in `contains`, in bytes.
const MAX_CONTAINS: usize = 1024;

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
            smoke.contains = reader.value(node, key, &format!("1 to {MAX_CONTAINS} bytes of text"), |text| {
                if text.is_empty() || text.len() > MAX_CONTAINS {
                    Err(format!("the text is empty or longer than {MAX_CONTAINS} bytes"))
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

/// Reads one request of `smoke:`. The value is a path, or a mapping with the keys [`SMOKE_KEYS`].
pub(super) fn read_smoke(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<Smoke> {
    let mut smoke = SmokeKeys::default();
    if node.text().is_some() {
        smoke.path = reader.path(node, key);
    } else {
        keys::read_section(reader, node, key, "{path: /, status: 200, contains: Welcome}", SMOKE_KEYS, &mut smoke);
        if node.child("path").is_none() && !matches!(node.value, Value::List(_)) {
            reader.problem(node, format!("{key}: this request has no path")).expected = Some("{path: /, status: 200}".to_owned());
        }
    }
    Some(Smoke { path: smoke.path?, status: smoke.status.unwrap_or(GOOD), contains: smoke.contains })
}
