//! The settings of one environment, merged and complete, and [`KEYS`], the table of the recipe's keys.
//!
//! To add a key: a field of [`Settings`] with its default, a row of [`KEYS`], and the code that uses the field. The reference in
//! `docs/recipe.md` is rendered from the table (`LARDER_BLESS=1 cargo test --lib config`).

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    health::{self, Health, HealthCheck, HealthOverrides, Smoke},
    keys::{
        self,
        Fallback::{self, Is, Says, Unstated},
        KeyRow,
    },
    policy::{self, DriftPolicy, PROMOTE_KEYS, PromotionPolicy},
    process::{self, ProcessOverrides, ProcessSpec, ProcessTuning, STOP_KEYS, Stop, StopOverrides},
    quantity::{Age, ByteSize, TimeSpan},
    reader::ConfigReader,
    value::{BuildpackRef, CommandLine, DataPath, Domain, VariableName},
    yaml::Node,
};
use crate::model::{Phase, ProcessType, StopSignal, Strategy};

/// The settings of one environment. Journals keep them, so fields are only added with a serde default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The buildpacks, in order. If the list is empty, they are detected.
    pub buildpacks: Vec<BuildpackRef>,
    /// Settings of the build; its time limit is in [`Settings::timeouts`].
    pub build: BuildSettings,
    /// The processes with a command, in the order of the files.
    pub processes: IndexMap<ProcessType, ProcessSpec>,
    /// Settings of processes that have no command in any file. [`Settings::with_defaults`] may add the command of a buildpack.
    pub unnamed: IndexMap<ProcessType, ProcessTuning>,
    /// The command that runs once before the switch.
    pub release: Option<CommandLine>,
    /// Paths of the application that persist. None is inside another.
    pub data: Vec<DataPath>,
    /// Configuration variables.
    pub env: IndexMap<VariableName, String>,
    /// Variables that must have a value; from `app.json`.
    pub required: Vec<RequiredVariable>,
    /// The check before the switch.
    pub health: Health,
    /// The time limit of each phase.
    pub timeouts: IndexMap<Phase, TimeSpan>,
    /// The strategy of the recipe, if it has one. It replaces the environment's own.
    pub strategy: Option<Strategy>,
    /// Further host names.
    pub domains: Vec<Domain>,
    /// The way to stop processes.
    pub stop: Stop,
    /// The time that requests have to finish in the old release after a switch.
    pub drain: TimeSpan,
    /// The recipe's own retention limit; see [`Settings::retention`].
    pub keep_releases: Option<u16>,
    /// The recipe's own policy on drift; see [`Settings::drift_policy`].
    #[serde(default)]
    pub drift: Option<DriftPolicy>,
    /// Patterns, as in `.gitignore`, of files that the application changes itself.
    #[serde(default)]
    pub drift_ignore: Vec<String>,
    /// The recipe's own retention limit; see [`Settings::retention`].
    #[serde(default)]
    pub keep_age: Option<Age>,
    /// The recipe's own retention limit; see [`Settings::retention`].
    #[serde(default)]
    pub keep_bytes: Option<ByteSize>,
    /// Requests that must succeed after the switch.
    pub smoke: Vec<Smoke>,
    /// The conditions for a release that another environment or server built.
    #[serde(default)]
    pub promote: PromotionPolicy,
    /// The command that runs once, after the first deployment; from `app.json`.
    pub postdeploy: Option<CommandLine>,
}

/// Settings of the build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildSettings {
    /// Variables that only the build sees.
    pub env: IndexMap<VariableName, String>,
    /// The memory limit, completed and capped by [`Settings::on_server`].
    pub memory: Option<ByteSize>,
    /// True if buildpacks keep their cache between builds.
    pub cache: bool,
}

/// A variable that must have a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredVariable {
    /// The name of the variable.
    pub name: VariableName,
    /// True if larder generates a random value when there is none.
    pub generate: bool,
    /// The project's description of the variable.
    pub description: Option<String>,
}

impl Settings {
    /// Returns the time limit of a phase.
    pub fn timeout(&self, phase: Phase) -> TimeSpan {
        self.timeouts.get(&phase).copied().unwrap_or_else(|| default_timeout(phase))
    }

    /// Returns the way to stop a process: its own setting, or else the setting for all processes.
    pub fn stop_of(&self, process: &ProcessType) -> Stop {
        self.processes.get(process).and_then(|spec| spec.stop).unwrap_or(self.stop)
    }

    /// Adds the processes and the release command of buildpacks, unless a file has its own.
    pub fn with_defaults(mut self, defaults: Vec<(ProcessType, CommandLine)>) -> Settings {
        for (process, command) in defaults {
            if process.is_release() {
                self.release.get_or_insert(command);
            } else if !self.processes.contains_key(&process) {
                let mut spec = ProcessSpec::new(&process, command);
                spec.tune(self.unnamed.shift_remove(&process).unwrap_or_default());
                self.processes.insert(process, spec);
            }
        }
        self
    }

    /// Returns a process that should run and has no command. Call it after [`Settings::with_defaults`], which adds the commands of
    /// buildpacks. A process that is scaled to zero needs no command: an application with only workers sets `web: 0`.
    pub fn without_command(&self) -> Option<&ProcessType> {
        self.unnamed.iter().find(|(_, tuning)| tuning.scale != Some(0)).map(|(process, _)| process)
    }
}

fn default_timeout(phase: Phase) -> TimeSpan {
    match phase {
        Phase::Gather | Phase::PreInstall | Phase::Configure | Phase::PostInstall => TimeSpan::minutes(5),
        Phase::Build => TimeSpan::minutes(15),
        Phase::PostBuild | Phase::Bundle | Phase::Deploy | Phase::PostDeploy => TimeSpan::minutes(10),
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            buildpacks: Vec::new(),
            build: BuildSettings { env: IndexMap::new(), memory: None, cache: true },
            processes: IndexMap::new(),
            unnamed: IndexMap::new(),
            release: None,
            data: Vec::new(),
            env: IndexMap::new(),
            required: Vec::new(),
            health: Health { check: HealthCheck::Tcp, timeout: TimeSpan::seconds(60), interval: TimeSpan::seconds(1) },
            timeouts: Phase::ALL.into_iter().map(|phase| (phase, default_timeout(phase))).collect(),
            strategy: None,
            domains: Vec::new(),
            stop: Stop { signal: StopSignal::Term, grace: TimeSpan::seconds(10) },
            drain: TimeSpan::seconds(30),
            keep_releases: None,
            drift: None,
            drift_ignore: Vec::new(),
            keep_age: None,
            keep_bytes: None,
            smoke: Vec::new(),
            promote: PromotionPolicy::default(),
            postdeploy: None,
        }
    }
}

/// Settings into which the levels of a recipe are being merged. Keys whose parts depend on each other are collected until the end.
pub(super) struct Draft {
    settings: Settings,
    health: HealthOverrides,
    processes: IndexMap<ProcessType, ProcessOverrides>,
    stop: StopOverrides,
}

impl Draft {
    /// Creates a draft from the settings of other files.
    pub fn new(settings: Settings) -> Draft {
        let health = HealthOverrides::from_check(&settings.health.check);
        Draft { settings, health, processes: IndexMap::new(), stop: StopOverrides::default() }
    }

    /// Completes the settings after the last level.
    pub fn finish(self) -> Settings {
        let mut settings = self.settings;
        self.health.apply(&mut settings.health);
        settings.stop = self.stop.over(settings.stop);
        for (process, overrides) in self.processes {
            let (command, tuning) = overrides.split(settings.stop);
            match (settings.processes.get_mut(&process), command) {
                (Some(spec), command) => {
                    if let Some(command) = command {
                        spec.command = command;
                    }
                    spec.tune(tuning);
                }
                (None, Some(command)) => {
                    let mut spec = ProcessSpec::new(&process, command);
                    spec.tune(settings.unnamed.shift_remove(&process).unwrap_or_default());
                    spec.tune(tuning);
                    settings.processes.insert(process, spec);
                }
                (None, None) => settings.unnamed.entry(process).or_default().tune(tuning),
            }
        }
        settings
    }
}

/// The keys of the recipe. Lists and single values replace those of the level before; mappings are merged key by key.
pub(super) const KEYS: &[KeyRow<Draft>] = &[
    KeyRow::value(
        "buildpacks",
        "The buildpacks, in the order in which they run: names, directories of the project (./tools/buildpack), or repositories \
         pinned to a commit. Without this key, the file .buildpacks counts, then app.json, then the first buildpack that recognises the \
         code. A single one may be written as `buildpack: python`.",
        Unstated,
        "\n- node\n- https://example.com/buildpacks/fonts.git#0123456789abcdef0123456789abcdef01234567",
        |reader, node, key, draft| {
            draft.settings.buildpacks = reader.items(node, key, "[node, python]", buildpack);
        },
    ),
    KeyRow::<Draft>::value("buildpack", "", Unstated, "python", |reader, node, _, draft| {
        draft.settings.buildpacks = buildpack(reader, node).into_iter().collect();
    })
    .commented(),
    KeyRow::section("build", "", "{timeout: 20m, memory: 2G}", BUILD_KEYS),
    KeyRow::custom(
        "processes",
        "Processes. A command here replaces the Procfile's; other processes of the Procfile stay. Only `web` receives requests, on $PORT.",
        Unstated,
        process::processes_example,
        |reader, node, key, draft| {
            for (name, at, node) in reader.pairs(node, key, "a mapping, such as {web: \"python app.py\"}") {
                let Some(process) = process::process_type(reader, at, name) else { continue };
                process::read_process(reader, node, &format!("{key}.{name}"), draft.processes.entry(process).or_default());
            }
        },
    ),
    KeyRow::custom(
        "scale",
        "The same as processes.*.scale, for processes that the Procfile names.",
        Unstated,
        || "web: 2".to_owned(),
        |reader, node, key, draft| {
            for (name, at, node) in reader.pairs(node, key, "a mapping, such as {web: 2, worker: 1}") {
                let Some(process) = process::process_type(reader, at, name) else { continue };
                let overrides = draft.processes.entry(process).or_default();
                overrides.scale = process::instances(reader, node, &format!("{key}.{name}")).or(overrides.scale);
            }
        },
    ),
    KeyRow::value(
        "release",
        "A command that runs once before the switch. If it fails, the deployment fails and the old release stays live.",
        Says("the Procfile's `release`"),
        "bin/migrate",
        |reader, node, key, draft| {
            let command = reader.command(node, key);
            draft.settings.release = command.or_else(|| draft.settings.release.take());
        },
    ),
    KeyRow::value(
        "data",
        "Paths that persist between releases, relative to the application. None may be inside another.\nA path is a file if the release has a file there, or if its name has an extension, such as\ndb.sqlite3; else, and always with a slash at its end, a directory.",
        Unstated,
        "\n- media\n- var/uploads\n- db.sqlite3",
        |reader, node, key, draft| draft.settings.data = data(reader, node, key),
    ),
    KeyRow::custom(
        "env",
        "Configuration variables. Do not put secrets here: this file is in the repository.\nPORT, HOME and LARDER_* are set by larder.",
        Unstated,
        || "LOG_LEVEL: info".to_owned(),
        |reader, node, key, draft| {
            draft.settings.env.extend(reader.env(node, key));
            let Settings { env, required, .. } = &mut draft.settings;
            required.retain(|required| !env.contains_key(&required.name));
        },
    ),
    KeyRow::custom(
        "health",
        "The check that a new release must pass before it receives requests. Without this key, its port must accept connections.",
        Unstated,
        || keys::render(health::HEALTH_KEYS),
        |reader, node, key, draft| health::read_health(reader, node, key, &mut draft.health),
    ),
    KeyRow::custom(
        "timeouts",
        "The time limit of each phase. `build` is the same as build.timeout, which is set above.",
        Says("build 15m; post_build, bundle, deploy and post_deploy 10m; the others 5m"),
        || {
            let phases = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Build);
            phases.map(|phase| format!("{phase}: {}\n", default_timeout(phase))).collect()
        },
        |reader, node, key, draft| {
            let section = reader.section(node, key, &Phase::ALL.map(Phase::as_str), "{build: 20m, deploy: 5m}");
            for phase in Phase::ALL {
                let time = section.get(phase.as_str()).and_then(|node| reader.time(node, &format!("{key}.{phase}")));
                draft.settings.timeouts.extend(time.map(|time| (phase, time)));
            }
        },
    ),
    KeyRow::value(
        "strategy",
        "blue-green: the new release boots beside the old one, then requests are switched to it.\n\
         in-place: the old release stops first.",
        Says("the strategy with which the environment was created"),
        "blue-green",
        |reader, node, key, draft| {
            const STRATEGIES: [(&str, Strategy); 2] = [("blue-green", Strategy::BlueGreen), ("in-place", Strategy::InPlace)];
            draft.settings.strategy = reader.choice(node, key, &STRATEGIES).or(draft.settings.strategy);
        },
    ),
    KeyRow::value("domains", "Further host names.", Unstated, "\n- shop.example.com", |reader, node, key, draft| {
        draft.settings.domains = reader.items(node, key, "[shop.example.com, www.example.com]", |reader, node| {
            reader.value(node, key, "a host name such as shop.example.com", str::parse::<Domain>)
        });
    }),
    KeyRow::custom(
        "stop",
        "The signal that asks processes to exit (TERM, INT, QUIT, HUP, USR1, USR2 or WINCH), and the time until they are killed.",
        Says("TERM, 10s"),
        || keys::render(STOP_KEYS),
        |reader, node, key, draft| process::read_stop(reader, node, key, &mut draft.stop),
    ),
    KeyRow::value(
        "drain",
        "The time that requests have to finish in the old release after a switch.",
        Is("30s"),
        "30s",
        |reader, node, key, draft| draft.settings.drain = reader.time(node, key).unwrap_or(draft.settings.drain),
    ),
    KeyRow::custom(
        "drift",
        "The reaction to files of the live release that were changed by hand (`larder drift` shows them). \
         keep: warn, keep the changes as a patch, and continue without them. \
         refuse: fail until the changes are saved with `larder drift --save`. \
         reapply: apply them to the new release, and fail if they do not apply. \
         `drift: refuse` is short for `drift: {policy: refuse}`.",
        Says("as in the server file, else keep"),
        || keys::render(DRIFT_KEYS),
        |reader, node, key, draft| match node.text() {
            Some(_) => draft.settings.drift = reader.choice(node, key, &DriftPolicy::WORDS).or(draft.settings.drift),
            None => {
                let example = "{policy: reapply, ignore: [\"/uploads/\"]}";
                keys::read_section(reader, node, key, example, DRIFT_KEYS, draft);
            }
        },
    ),
    KeyRow::section("keep", "", "{releases: 10}", KEEP_KEYS),
    KeyRow::custom(
        "smoke",
        "Requests that must succeed after the switch. If one fails, the deployment is reverted.",
        Unstated,
        health::smoke_example,
        |reader, node, key, draft| {
            draft.settings.smoke = reader.items(node, key, "[/, /login]", |reader, node| health::read_smoke(reader, node, key));
        },
    ),
    KeyRow::custom(
        "promote",
        "The conditions that a release must have met where it ran before, so that an environment that pulls (`--mode final`) accepts it. \
         The conditions of the server file apply as well.",
        Says("none"),
        || keys::render(PROMOTE_KEYS),
        |reader, node, key, draft| policy::read_promote(reader, node, key, &mut draft.settings.promote),
    ),
    KeyRow::custom(
        ENVIRONMENTS,
        "The same keys for single environments, merged over the ones above: lists and single values replace, mappings (env, processes, \
         scale, timeouts) are merged key by key.",
        Unstated,
        || "staging:\n  env:\n    LOG_LEVEL: debug\n  scale:\n    web: 1".to_owned(),
        // `recipe.rs` reads this key, because the levels must be read in their order.
        |_, _, _, _| {},
    ),
];

/// The key that holds levels of the recipe. It is only allowed at the top.
pub(super) const ENVIRONMENTS: &str = "environments";

const BUILD_KEYS: &[KeyRow<Draft>] = &[
    KeyRow::custom(
        "env",
        "Variables that only the build sees.",
        Unstated,
        || "NODE_ENV: production".to_owned(),
        |reader, node, key, draft| draft.settings.build.env.extend(reader.env(node, key)),
    ),
    KeyRow::value(
        "timeout",
        "The time limit of the build; the same as timeouts.build. The server file may allow less.",
        Is("15m"),
        "20m",
        |reader, node, key, draft| {
            draft.settings.timeouts.extend(reader.time(node, key).map(|time| (Phase::Build, time)));
        },
    ),
    KeyRow::value(
        "memory",
        "The memory limit of the build. The server file may allow less.",
        Says("as in the server file"),
        "2G",
        |reader, node, key, draft| draft.settings.build.memory = reader.size(node, key).or(draft.settings.build.memory),
    ),
    KeyRow::value(
        "cache",
        "false: buildpacks start every build with an empty cache.",
        Is("true"),
        "true",
        |reader, node, key, draft| {
            draft.settings.build.cache = reader.boolean(node, key).unwrap_or(draft.settings.build.cache);
        },
    ),
];

const DRIFT_KEYS: &[KeyRow<Draft>] = &[
    KeyRow::value("policy", "", Unstated, "keep", |reader, node, key, draft| {
        draft.settings.drift = reader.choice(node, key, &DriftPolicy::WORDS).or(draft.settings.drift);
    }),
    KeyRow::value(
        "ignore",
        "Patterns, as in .gitignore, of files that the application itself writes into its own directory.",
        Unstated,
        "\n- /uploads/\n- \"*.sqlite3\"",
        |reader, node, key, draft| {
            let expected = "a pattern as in .gitignore, such as \"*.tmp\" or \"/uploads/\"";
            draft.settings.drift_ignore = reader.items(node, key, "[\"*.tmp\", \"/uploads/\"]", |reader, node| {
                reader.value(node, key, expected, |text| {
                    let fits = !text.trim().is_empty() && text.len() <= 250 && !text.chars().any(char::is_control);
                    let problem = "it is empty, longer than 250 bytes, or has control characters";
                    if fits { Ok(text.to_owned()) } else { Err(problem.to_owned()) }
                })
            });
        },
    ),
];

const AS_SERVER: Fallback = Says("as in the server file");

const KEEP_KEYS: &[KeyRow<Draft>] = &[
    KeyRow::value("releases", "The number of releases that stay; at least 2.", AS_SERVER, "10", |reader, node, key, draft| {
        let releases = reader.number(node, key, 2, 1000).and_then(|number| u16::try_from(number).ok());
        draft.settings.keep_releases = releases.or(draft.settings.keep_releases);
    }),
    KeyRow::value(
        "age",
        "The age at which releases are pruned, such as 12h, 90d, 12w or 2y.",
        AS_SERVER,
        "90d",
        |reader, node, key, draft| {
            draft.settings.keep_age = reader.age(node, key).or(draft.settings.keep_age);
        },
    ),
    KeyRow::value(
        "bytes",
        "The maximum disk space of their archives. The oldest are pruned first. The limit of the server file applies as well.",
        AS_SERVER,
        "2G",
        |reader, node, key, draft| draft.settings.keep_bytes = reader.size(node, key).or(draft.settings.keep_bytes),
    ),
];

fn buildpack(reader: &mut ConfigReader, node: &Node) -> Option<BuildpackRef> {
    reader.value(node, "buildpack", BuildpackRef::EXPECTED, str::parse)
}

fn data(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<DataPath> {
    let mut paths: Vec<DataPath> = Vec::new();
    for node in reader.bounded(node, key, "[media, var/uploads]") {
        let expected = "a path inside the application, such as media";
        let Some(path) = reader.value(node, key, expected, str::parse::<DataPath>) else { continue };
        match paths.iter().find(|other| other.overlaps(&path)) {
            Some(other) => {
                let problem = format!("{key}: \"{path}\" and \"{other}\" overlap");
                reader.problem(node, problem).hint = Some("keep the outer one".to_owned());
            }
            None => paths.push(path),
        }
    }
    paths
}
