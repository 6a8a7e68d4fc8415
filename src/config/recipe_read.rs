//! Reading a recipe's keys. What may be written where, and what it must look like, is here and nowhere else.

use indexmap::IndexMap;

use super::{
    age::Age,
    promote,
    reader::{Reader, Section},
    recipe::{HealthKind, HealthOverrides, Overrides, ProcessOverrides, StopOverrides},
    settings::{DriftPolicy, Settings, Smoke, Strategy},
    value::{BuildpackRef, ByteSize, CommandLine, Domain, HttpPath, RelativePath, StatusRange, TimeSpan, VariableName},
    yaml::{Node, Value},
};
use crate::model::{EnvironmentName, Phase, ProcessType, StopSignal};

/// The keys of the file itself; an environment takes the same but for `environments`.
pub(super) const TOP: [&str; 19] = [
    "buildpacks",
    "buildpack",
    "build",
    "processes",
    "release",
    "data",
    "env",
    "health",
    "timeouts",
    "strategy",
    "scale",
    "domains",
    "stop",
    "drain",
    "drift",
    "keep",
    "smoke",
    "promote",
    "environments",
];
pub(super) const BUILD: [&str; 4] = ["env", "timeout", "memory", "cache"];
pub(super) const PROCESS: [&str; 5] = ["command", "scale", "memory", "env", "stop"];
pub(super) const HEALTH: [&str; 6] = ["type", "path", "status", "command", "timeout", "interval"];
pub(super) const STOP: [&str; 2] = ["grace", "signal"];
pub(super) const KEEP: [&str; 3] = ["releases", "age", "bytes"];
pub(super) const DRIFT: [&str; 2] = ["policy", "ignore"];
pub(super) const SMOKE: [&str; 3] = ["path", "status", "contains"];

/// How many items a list or mapping may have.
const MOST_ITEMS: usize = 256;
/// How many instances of one process may run.
pub(super) const MOST_INSTANCES: u64 = 100;

/// Reads one level: the file itself, or an environment of that name.
pub(super) fn read_overrides(reader: &mut Reader, node: &Node, environment: Option<&str>) -> Overrides {
    let mut known = TOP.to_vec();
    let mut place = "the file".to_owned();
    if let Some(name) = environment {
        known.retain(|key| *key != "environments");
        place = format!("environments.{name}");
    }
    let top = reader.section(node, &place, &known, "{env: {KEY: value}}");
    let mut overrides = Overrides {
        buildpacks: buildpacks(reader, &top),
        release: top.get("release").and_then(|node| command(reader, node, "release")),
        data: top.get("data").map(|node| data(reader, node)),
        env: top.get("env").map(|node| env(reader, node, "env")).unwrap_or_default(),
        health: top.get("health").map(|node| health(reader, node)).unwrap_or_default(),
        strategy: top.get("strategy").and_then(|node| reader.choice(node, "strategy", &Strategy::WORDS)),
        stop: top.get("stop").map(|node| stop(reader, node, "stop")).unwrap_or_default(),
        drain: top.get("drain").and_then(|node| time(reader, node, "drain")),
        domains: top.get("domains").map(|node| {
            let example = "[shop.example.com, www.example.com]";
            items(reader, node, "domains", example, |reader, node| {
                reader.value(node, "domains", "a host name such as shop.example.com", str::parse::<Domain>)
            })
        }),
        smoke: top.get("smoke").map(|node| items(reader, node, "smoke", "[/, /login]", smoke)),
        promote: top.get("promote").map(|node| promote::read(reader, node)).unwrap_or_default(),
        ..Overrides::default()
    };
    if let Some(node) = top.get("keep") {
        let keep = reader.section(node, "keep", &KEEP, "{releases: 10}");
        let releases = keep.get("releases").and_then(|node| reader.number(node, "keep.releases", 2, 1000));
        overrides.keep_releases = releases.and_then(|number| u16::try_from(number).ok());
        overrides.keep_age = keep.get("age").and_then(|node| age(reader, node, "keep.age"));
        overrides.keep_bytes = keep.get("bytes").and_then(|node| size(reader, node, "keep.bytes"));
    }
    drift(reader, &top, &mut overrides);
    timeouts(reader, &top, &mut overrides);
    build(reader, &top, &mut overrides);
    processes(reader, &top, &mut overrides);
    overrides
}

fn drift(reader: &mut Reader, top: &Section, overrides: &mut Overrides) {
    let Some(node) = top.get("drift") else { return };
    if node.text().is_some() {
        overrides.drift = reader.choice(node, "drift", &DriftPolicy::WORDS);
        return;
    }
    let section = reader.section(node, "drift", &DRIFT, "{policy: reapply, ignore: [\"/uploads/\"]}");
    overrides.drift = section.get("policy").and_then(|node| reader.choice(node, "drift.policy", &DriftPolicy::WORDS));
    overrides.drift_ignore = section.get("ignore").map(|node| {
        let expected = "a pattern as in .gitignore, such as \"*.tmp\" or \"/uploads/\"";
        items(reader, node, "drift.ignore", "[\"*.tmp\", \"/uploads/\"]", |reader, node| {
            reader.value(node, "drift.ignore", expected, |text| {
                let fits = !text.trim().is_empty() && text.len() <= 250 && !text.chars().any(char::is_control);
                if fits {
                    Ok(text.to_owned())
                } else {
                    Err(String::from("it is empty, longer than 250 bytes, or has control characters"))
                }
            })
        })
    });
}

/// Reads the environments of the file.
pub(super) fn read_environments(reader: &mut Reader, root: &Node) -> IndexMap<EnvironmentName, Overrides> {
    let mut environments = IndexMap::new();
    let Value::Map(top) = &root.value else { return environments };
    let Some((_, node)) = top.iter().find(|(key, _)| key.text() == Some("environments")) else { return environments };
    for (name, key, node) in reader.pairs(node, "environments", "a mapping, such as {staging: {scale: {web: 1}}}") {
        match name.parse::<EnvironmentName>() {
            Ok(environment) => {
                environments.insert(environment, read_overrides(reader, node, Some(name)));
            }
            Err(error) => {
                reader.problem(key, error.to_string());
            }
        }
    }
    environments
}

fn buildpacks(reader: &mut Reader, top: &Section) -> Option<Vec<BuildpackRef>> {
    let one = |reader: &mut Reader, node: &Node| reader.value(node, "buildpack", BuildpackRef::EXPECTED, str::parse);
    match (top.get("buildpacks"), top.get("buildpack")) {
        (Some(_), Some(node)) => {
            reader.problem(node, "both buildpack and buildpacks are given").hint = Some("keep one of them".to_owned());
            None
        }
        (Some(node), None) => Some(items(reader, node, "buildpacks", "[node, python]", one)),
        (None, Some(node)) => one(reader, node).map(|buildpack| vec![buildpack]),
        (None, None) => None,
    }
}

fn build(reader: &mut Reader, top: &Section, overrides: &mut Overrides) {
    let Some(node) = top.get("build") else { return };
    let build = reader.section(node, "build", &BUILD, "{timeout: 20m, memory: 2G}");
    overrides.build_env = build.get("env").map(|node| env(reader, node, "build.env")).unwrap_or_default();
    overrides.build_memory = build.get("memory").and_then(|node| size(reader, node, "build.memory"));
    overrides.build_cache = build.get("cache").and_then(|node| reader.boolean(node, "build.cache"));
    if let Some(node) = build.get("timeout") {
        if overrides.timeouts.contains_key(&Phase::Build) {
            reader.problem(node, "both build.timeout and timeouts.build are given").hint = Some("keep one of them".to_owned());
        }
        overrides.timeouts.extend(time(reader, node, "build.timeout").map(|time| (Phase::Build, time)));
    }
}

fn timeouts(reader: &mut Reader, top: &Section, overrides: &mut Overrides) {
    let Some(node) = top.get("timeouts") else { return };
    let section = reader.section(node, "timeouts", &Phase::ALL.map(Phase::as_str), "{build: 20m, deploy: 5m}");
    for phase in Phase::ALL {
        let key = format!("timeouts.{phase}");
        let given = section.get(phase.as_str()).and_then(|node| time(reader, node, &key));
        overrides.timeouts.extend(given.map(|time| (phase, time)));
    }
}

fn processes(reader: &mut Reader, top: &Section, overrides: &mut Overrides) {
    if let Some(node) = top.get("processes") {
        for (name, key, node) in reader.pairs(node, "processes", "a mapping, such as {web: \"python app.py\"}") {
            let Some(process) = process_type(reader, key, name) else { continue };
            overrides.processes.insert(process, process_overrides(reader, node, &format!("processes.{name}")));
        }
    }
    let Some(node) = top.get("scale") else { return };
    for (name, key, node) in reader.pairs(node, "scale", "a mapping, such as {web: 2, worker: 1}") {
        let Some(process) = process_type(reader, key, name) else { continue };
        let scale = instances(reader, node, &format!("scale.{name}"));
        let entry = overrides.processes.entry(process).or_default();
        if entry.scale.is_some() {
            reader.problem(node, format!("both scale.{name} and processes.{name}.scale are given")).hint =
                Some("keep one of them".to_owned());
        }
        entry.scale = scale;
    }
}

fn process_type(reader: &mut Reader, key: &Node, name: &str) -> Option<ProcessType> {
    match name.parse::<ProcessType>() {
        Ok(process) if process.is_release() => {
            reader.problem(key, "release is not a process that keeps running").hint =
                Some("write it as `release: command` at the top of the file".to_owned());
            None
        }
        Ok(process) => Some(process),
        Err(error) => {
            reader.problem(key, error.to_string());
            None
        }
    }
}

fn process_overrides(reader: &mut Reader, node: &Node, key: &str) -> ProcessOverrides {
    if node.text().is_some() {
        return ProcessOverrides { command: command(reader, node, key), ..ProcessOverrides::default() };
    }
    let section = reader.section(node, key, &PROCESS, "{command: \"python app.py\", scale: 2}");
    ProcessOverrides {
        command: section.get("command").and_then(|node| command(reader, node, &format!("{key}.command"))),
        scale: section.get("scale").and_then(|node| instances(reader, node, &format!("{key}.scale"))),
        memory: section.get("memory").and_then(|node| size(reader, node, &format!("{key}.memory"))),
        env: section.get("env").map(|node| env(reader, node, &format!("{key}.env"))).unwrap_or_default(),
        stop: section.get("stop").map(|node| stop(reader, node, &format!("{key}.stop"))).unwrap_or_default(),
    }
}

fn data(reader: &mut Reader, node: &Node) -> Vec<RelativePath> {
    let mut paths: Vec<RelativePath> = Vec::new();
    for node in bounded(reader, node, "data", "[media, var/uploads]") {
        let expected = "a path inside the application, such as media";
        let Some(path) = reader.value(node, "data", expected, str::parse::<RelativePath>) else { continue };
        match paths.iter().find(|other| other.overlaps(&path)) {
            Some(other) => {
                let problem = format!("data: \"{path}\" and \"{other}\" overlap");
                reader.problem(node, problem).hint = Some("keep the outer one".to_owned());
            }
            None => paths.push(path),
        }
    }
    paths
}

/// Environment variables. Values are text; numbers and booleans mean the text that they are written as.
pub(super) fn env(reader: &mut Reader, node: &Node, key: &str) -> IndexMap<VariableName, String> {
    let mut variables = IndexMap::new();
    for (name, at, value) in reader.pairs(node, key, "a mapping, such as {LOG_LEVEL: debug}") {
        let name = match name.parse::<VariableName>() {
            Ok(name) => name,
            Err(why) => {
                reader.problem(at, format!("{key}: {why}")).hint = Some("choose another name".to_owned());
                continue;
            }
        };
        let key = format!("{key}.{name}");
        if value.value == Value::Null {
            reader.problem(at, format!("{key} has no value")).hint = Some("write \"\" for an empty value".to_owned());
            continue;
        }
        let checked = reader.value(value, &key, "text, such as debug or \"on\"", |text| {
            if text.contains('\0') {
                return Err("the value has a NUL character".to_owned());
            }
            if text.len() > 32 * 1024 {
                return Err(format!("the value has {} bytes; at most 32768 are allowed", text.len()));
            }
            Ok(text.to_owned())
        });
        variables.extend(checked.map(|value| (name, value)));
    }
    variables
}

fn health(reader: &mut Reader, node: &Node) -> HealthOverrides {
    const KINDS: [(&str, HealthKind); 4] =
        [("http", HealthKind::Http), ("tcp", HealthKind::Tcp), ("command", HealthKind::Command), ("none", HealthKind::None)];
    let section = reader.section(node, "health", &HEALTH, "{path: /healthz, timeout: 60s}");
    let health = HealthOverrides {
        kind: section.get("type").and_then(|node| reader.choice(node, "health.type", &KINDS)),
        path: section.get("path").and_then(|node| path(reader, node, "health.path")),
        status: section.get("status").and_then(|node| status(reader, node, "health.status")),
        command: section.get("command").and_then(|node| command(reader, node, "health.command")),
        timeout: section.get("timeout").and_then(|node| time(reader, node, "health.timeout")),
        interval: section.get("interval").and_then(|node| time(reader, node, "health.interval")),
    };
    let kind = health.implied();
    // A misspelt type has been reported; what it would have wanted is unknown.
    if health.kind.is_none() && section.get("type").is_some() {
        return health;
    }
    for (key, belongs_to) in [("path", HealthKind::Http), ("status", HealthKind::Http), ("command", HealthKind::Command)] {
        if let Some(node) = section.get(key).filter(|_| kind != Some(belongs_to)) {
            let hint = if belongs_to == HealthKind::Http { "http" } else { "command" };
            reader.problem(node, format!("health.{key} does not belong to this type of check")).hint =
                Some(format!("remove it, or write `type: {hint}`, and not both a path and a command"));
        }
    }
    if let Some(node) = section.get("type").filter(|_| kind == Some(HealthKind::Command) && section.get("command").is_none()) {
        reader.problem(node, "health.type is \"command\" but there is no health.command").hint =
            Some("add one, such as `command: bin/check`".to_owned());
    }
    if let Some(node) = section.get("interval").filter(|_| health.interval == Some(TimeSpan::seconds(0))) {
        reader.mismatch(node, "health.interval", "more than nothing, such as 1s");
    }
    health
}

fn stop(reader: &mut Reader, node: &Node, key: &str) -> StopOverrides {
    let section = reader.section(node, key, &STOP, "{grace: 10s, signal: TERM}");
    StopOverrides {
        signal: section.get("signal").and_then(|node| reader.choice(node, &format!("{key}.signal"), &StopSignal::WORDS)),
        grace: section.get("grace").and_then(|node| time(reader, node, &format!("{key}.grace"))),
    }
}

fn smoke(reader: &mut Reader, node: &Node) -> Option<Smoke> {
    if node.text().is_some() {
        return path(reader, node, "smoke").map(|path| Smoke { path, status: Settings::GOOD, contains: None });
    }
    let section = reader.section(node, "smoke", &SMOKE, "{path: /, status: 200, contains: Welcome}");
    let status = section.get("status").and_then(|node| status(reader, node, "smoke.status"));
    let contains = section.get("contains").and_then(|node| {
        reader.value(node, "smoke.contains", "text of the answer", |text| {
            if text.is_empty() || text.len() > 1024 {
                Err("the text is empty or too long".to_owned())
            } else {
                Ok(text.to_owned())
            }
        })
    });
    let Some(node) = section.get("path") else {
        if !matches!(node.value, Value::List(_)) {
            reader.problem(node, "smoke: a check has no path").expected = Some("{path: /, status: 200}".to_owned());
        }
        return None;
    };
    path(reader, node, "smoke.path").map(|path| Smoke { path, status: status.unwrap_or(Settings::GOOD), contains })
}

fn bounded<'n>(reader: &mut Reader, node: &'n Node, key: &str, example: &str) -> &'n [Node] {
    let list = reader.list(node, key, example);
    if list.len() > MOST_ITEMS {
        reader.problem(node, format!("{key} has {} items", list.len())).expected = Some(format!("at most {MOST_ITEMS}"));
    }
    list
}

fn items<T>(
    reader: &mut Reader,
    node: &Node,
    key: &str,
    example: &str,
    read: impl Fn(&mut Reader, &Node) -> Option<T>,
) -> Vec<T> {
    bounded(reader, node, key, example).iter().filter_map(|node| read(reader, node)).collect()
}

fn instances(reader: &mut Reader, node: &Node, key: &str) -> Option<u16> {
    reader.number(node, key, 0, MOST_INSTANCES).and_then(|number| u16::try_from(number).ok())
}

fn command(reader: &mut Reader, node: &Node, key: &str) -> Option<CommandLine> {
    reader.value(node, key, "a command such as \"python app.py\"", str::parse)
}

pub(super) fn time(reader: &mut Reader, node: &Node, key: &str) -> Option<TimeSpan> {
    reader.value(node, key, TimeSpan::EXPECTED, str::parse)
}

pub(super) fn age(reader: &mut Reader, node: &Node, key: &str) -> Option<Age> {
    reader.value(node, key, Age::EXPECTED, str::parse)
}

pub(super) fn size(reader: &mut Reader, node: &Node, key: &str) -> Option<ByteSize> {
    reader.value(node, key, ByteSize::EXPECTED, str::parse)
}

fn path(reader: &mut Reader, node: &Node, key: &str) -> Option<HttpPath> {
    reader.value(node, key, "a path such as /healthz", str::parse)
}

fn status(reader: &mut Reader, node: &Node, key: &str) -> Option<StatusRange> {
    reader.value(node, key, "a status such as 200, or a range such as 200-399", str::parse)
}
