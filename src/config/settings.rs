//! [`Settings`], the merged settings of one environment, and [`KEYS`], the table of the recipe's keys.
//!
//! To add a key, add a field of [`Settings`] with its default, a row of [`KEYS`], and the code that uses the field. Then
//! `LARDER_BLESS=1 cargo test --lib config` renders the reference in `docs/recipe.md` from the table.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    build::{self, BuildSettings, RequiredVariable, default_timeout},
    database::{self, DatabaseSpec},
    health::{self, Health, HealthCheck, HealthOverrides, Smoke},
    keys::{
        self,
        Fallback::{self, Is, Says, Unstated},
        KeyRow,
    },
    mail::{NOTIFY_KEYS, NotifySettings},
    policy::{self, DRIFT_KEYS, DriftPolicy, EditPolicy, PROMOTE_KEYS, PromotionPolicy},
    process::{self, ProcessOverrides, ProcessSpec, ProcessTuning, STOP_KEYS, Stop, StopOverrides},
    quantity::{Age, ByteSize, TimeSpan},
    secret_file::{self, SecretFileSpec},
    services,
    template::{self, TemplateSpec},
    upgrade::{self, UPGRADE_KEYS, UpgradeSettings},
    value::{BuildpackRef, CommandLine, DataPath, Domain, VariableName},
};
use crate::model::{DatabaseName, Phase, ProcessType, StopSignal, Strategy, UnitName};

/// The settings of one environment. Journals store the settings, so a new field must have a serde default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The buildpacks, in the order in which they run. If the list is empty, the buildpack is detected.
    pub buildpacks: Vec<BuildpackRef>,
    /// Settings of the build, except the time limit, which is in [`Settings::timeouts`].
    pub build: BuildSettings,
    /// The processes that have a command, in the order in which the files name the processes.
    pub processes: IndexMap<ProcessType, ProcessSpec>,
    /// Settings of processes that have no command in any file. [`Settings::with_defaults`] may add the command of a buildpack.
    pub unnamed: IndexMap<ProcessType, ProcessTuning>,
    /// The command of the key `release` or of the Procfile. A deployment runs [`Settings::upgrade_command`], which is this command unless
    /// the key `upgrade` has a command.
    pub release: Option<CommandLine>,
    /// The upgrade step.
    #[serde(default)]
    pub upgrade: UpgradeSettings,
    /// The paths of the application that persist between releases. No path is inside another path.
    pub data: Vec<DataPath>,
    /// The databases whose dumps belong to a restore point; `None` if the recipe has no key `databases`. larder then recognises the
    /// databases by the application's variables and by the files of `data`.
    #[serde(default)]
    pub databases: Option<IndexMap<DatabaseName, DatabaseSpec>>,
    /// The files that are rendered before the processes start.
    #[serde(default)]
    pub templates: Vec<TemplateSpec>,
    /// The values of the pillar that processes get as files.
    #[serde(default)]
    pub secrets: Vec<SecretFileSpec>,
    /// Configuration variables.
    pub env: IndexMap<VariableName, String>,
    /// Variables of `app.json` that must have a value, and to which no file gives a value.
    pub required: Vec<RequiredVariable>,
    /// The check that a new release must pass before the switch.
    pub health: Health,
    /// The time limit of each phase.
    pub timeouts: IndexMap<Phase, TimeSpan>,
    /// The strategy of the recipe, which takes precedence over the environment's strategy; `None` if the recipe sets no strategy.
    pub strategy: Option<Strategy>,
    /// The units of systemd that a deployment in place stops and starts.
    #[serde(default)]
    pub services: Vec<UnitName>,
    /// Further host names of the environment.
    pub domains: Vec<Domain>,
    /// The way to stop processes that do not set `stop` themselves.
    pub stop: Stop,
    /// The time limit for requests in flight to this release after a switch to the next release.
    pub drain: TimeSpan,
    /// The recipe's limit for the number of releases; see [`Settings::retention`].
    pub keep_releases: Option<u16>,
    /// The recipe's policy on drift; see [`Settings::drift_policy`].
    #[serde(default)]
    pub drift: Option<DriftPolicy>,
    /// The recipe's policy on files that a person changed in the checkout of an editable environment.
    #[serde(default)]
    pub edits: EditPolicy,
    /// Patterns, as in `.gitignore`, of files that the application changes itself.
    #[serde(default)]
    pub drift_ignore: Vec<String>,
    /// The recipe's limit for the age of releases; see [`Settings::retention`].
    #[serde(default)]
    pub keep_age: Option<Age>,
    /// The recipe's limit for the disk space of archives; see [`Settings::retention`].
    #[serde(default)]
    pub keep_bytes: Option<ByteSize>,
    /// Requests that must succeed after the switch.
    pub smoke: Vec<Smoke>,
    /// True if a drill runs the script `.larder/restore`.
    #[serde(default)]
    pub drill_restore: bool,
    /// The conditions for a release that another environment or server built.
    #[serde(default)]
    pub promote: PromotionPolicy,
    /// The recipients of notifications.
    #[serde(default)]
    pub notify: NotifySettings,
    /// The command of `app.json` that runs once, after the first switch to a release of the environment. The next deployment repeats a
    /// failed command.
    pub postdeploy: Option<CommandLine>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            buildpacks: Vec::new(),
            build: BuildSettings::default(),
            processes: IndexMap::new(),
            unnamed: IndexMap::new(),
            release: None,
            upgrade: UpgradeSettings::default(),
            data: Vec::new(),
            databases: None,
            templates: Vec::new(),
            secrets: Vec::new(),
            env: IndexMap::new(),
            required: Vec::new(),
            health: Health { check: HealthCheck::Tcp, timeout: TimeSpan::seconds(60), interval: TimeSpan::seconds(1) },
            timeouts: Phase::ALL.into_iter().map(|phase| (phase, default_timeout(phase))).collect(),
            strategy: None,
            services: Vec::new(),
            domains: Vec::new(),
            stop: Stop { signal: StopSignal::Term, grace: TimeSpan::seconds(10) },
            drain: TimeSpan::seconds(30),
            keep_releases: None,
            drift: None,
            edits: EditPolicy::Refuse,
            drift_ignore: Vec::new(),
            keep_age: None,
            keep_bytes: None,
            smoke: Vec::new(),
            drill_restore: false,
            promote: PromotionPolicy::default(),
            notify: NotifySettings::default(),
            postdeploy: None,
        }
    }
}

/// Unfinished settings, into which the levels of a recipe are merged. Keys whose parts depend on each other are collected from all
/// levels, and applied by [`Draft::finish`].
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

    /// Applies the collected keys after the last level, and returns the settings.
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

/// The keys of the recipe. A list or a single value replaces the value of the earlier level; mappings are merged key by key.
pub(super) const KEYS: &[KeyRow<Draft>] = &[
    KeyRow::value(
        "buildpacks",
        "The buildpacks, in the order in which they run: names, directories of the project (./tools/buildpack), or repositories \
         pinned to a commit. Without this key, the list comes from the file .buildpacks, or else from app.json. Without any list, the \
         first buildpack that recognises the code is used. A single buildpack can be written as `buildpack: python`.",
        Unstated,
        "\n- node\n- https://example.com/buildpacks/fonts.git#0123456789abcdef0123456789abcdef01234567",
        |reader, node, key, draft| {
            let nodes = reader.list_up_to(node, key, "[node, python]", BuildpackRef::MAX);
            draft.settings.buildpacks = nodes.iter().filter_map(|node| reader.buildpack(node)).collect();
        },
    ),
    KeyRow::<Draft>::value("buildpack", "", Unstated, "python", |reader, node, _, draft| {
        draft.settings.buildpacks = reader.buildpack(node).into_iter().collect();
    })
    .commented(),
    KeyRow::section("build", "", "{timeout: 20m, memory: 2G}", BUILD_KEYS),
    KeyRow::custom(
        "processes",
        "Processes. A command here replaces the command of the same process in the Procfile. Only `web` receives requests, on $PORT.",
        Unstated,
        process::processes_example,
        |reader, node, key, draft| process::read_processes(reader, node, key, &mut draft.processes),
    ),
    KeyRow::custom(
        "scale",
        "The number of instances of each process. This key is the same as processes.*.scale.",
        Unstated,
        || "web: 2".to_owned(),
        |reader, node, key, draft| process::read_scale(reader, node, key, &mut draft.processes),
    ),
    KeyRow::value(
        "release",
        "A command that runs once before the switch. If the command fails, the deployment fails and the old release stays live.",
        Says("the Procfile's `release`"),
        "bin/migrate",
        |reader, node, key, draft| {
            let command = reader.command(node, key);
            draft.settings.release = command.or_else(|| draft.settings.release.take());
        },
    ),
    KeyRow::custom(
        "upgrade",
        "The command that changes the data for a new release, and the protection of the data. \
         `upgrade: bin/migrate` is short for `upgrade: {run: bin/migrate}`. A `release` command is an upgrade with these defaults.",
        Unstated,
        || keys::render(UPGRADE_KEYS),
        |reader, node, key, draft| upgrade::read(reader, node, key, &mut draft.settings.upgrade),
    ),
    KeyRow::value(
        "hold",
        "The time for which requests wait during an upgrade with a hold, at most 5m. Afterwards, visitors get the maintenance page with status 503 and Retry-After.",
        Is("30s"),
        "30s",
        |reader, node, key, draft| upgrade::read_hold(reader, node, key, &mut draft.settings.upgrade),
    ),
    KeyRow::value(
        "data",
        "Paths that persist between releases, relative to the application. No path may be inside another path.\nA path with a slash at its end is a directory. Any other path is a file if the release has a file there, or if its name has an extension, such as db.sqlite3; otherwise it is a directory.",
        Unstated,
        "\n- media\n- var/uploads\n- db.sqlite3",
        |reader, node, key, draft| draft.settings.data = reader.data_paths(node, key),
    ),
    KeyRow::custom(
        "databases",
        "Databases whose content belongs to each restore point (`larder backup`), with a name of your choice. A restore brings files \
         and databases back together.\nWithout this key, larder recognises databases by the variables DATABASE_URL and REDIS_URL, and by \
         SQLite files that `data:` names. `databases: {}` turns the recognition off.",
        Unstated,
        database::example,
        |reader, node, key, draft| {
            database::read_all(reader, node, key, draft.settings.databases.get_or_insert_default());
        },
    ),
    KeyRow::value(
        "drill_restore",
        "true if a drill runs .larder/restore with LARDER_DRILL=1. The script must then restore into a scratch place, because a drill must not change live systems.",
        Is("false"),
        "true",
        |reader, node, key, draft| {
            draft.settings.drill_restore = reader.boolean(node, key).unwrap_or(draft.settings.drill_restore);
        },
    ),
    KeyRow::custom(
        "env",
        "Configuration variables. Do not put secrets here: this file is in the repository.\nlarder sets PORT, HOME and LARDER_* itself.",
        Unstated,
        || "LOG_LEVEL: info".to_owned(),
        |reader, node, key, draft| {
            draft.settings.env.extend(reader.env(node, key));
            let Settings { env, required, .. } = &mut draft.settings;
            required.retain(|required| !env.contains_key(&required.name));
        },
    ),
    KeyRow::custom(
        "templates",
        "Files of the repository that are rendered with the values of the pillar and the configuration (docs/configuration.md) before the processes \
         start. The rendered files are not part of the release. A path alone is short for a template whose name ends with .j2.",
        Unstated,
        template::templates_example,
        |reader, node, key, draft| draft.settings.templates = template::read_templates(reader, node, key),
    ),
    KeyRow::custom(
        "secrets",
        "Values of the pillar that processes get as files in the directory $LARDER_SECRETS, which is in memory and private to each process \
         (docs/secrets.md).",
        Unstated,
        secret_file::secrets_example,
        |reader, node, key, draft| draft.settings.secrets = secret_file::read_secrets(reader, node, key),
    ),
    KeyRow::custom(
        "health",
        "The check that a new release must pass before it receives requests. Without this key, the release must accept connections on its port.",
        Unstated,
        || keys::render(health::HEALTH_KEYS),
        |reader, node, key, draft| health::read_health(reader, node, key, &mut draft.health),
    ),
    KeyRow::custom(
        "timeouts",
        "The time limit of each phase, at most 1d. The time limit of the phase build is build.timeout, which can also be written as timeouts.build.",
        Says("build 15m; post_build, bundle, deploy and post_deploy 10m; all other phases 5m"),
        || {
            let phases = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Build);
            phases.map(|phase| format!("{phase}: {}\n", default_timeout(phase))).collect()
        },
        |reader, node, key, draft| {
            let section = reader.section(node, key, &Phase::ALL.map(Phase::as_str), "{build: 20m, deploy: 5m}");
            for phase in Phase::ALL {
                let time = section
                    .get(phase.as_str())
                    .and_then(|node| reader.time_within(node, &format!("{key}.{phase}"), TimeSpan::MAX_PHASE));
                draft.settings.timeouts.extend(time.map(|time| (phase, time)));
            }
        },
    ),
    KeyRow::value(
        "strategy",
        "blue-green: the new release boots beside the old release, then requests are switched to the new release.\n\
         in-place: the old release stops, its directory is synced with the new release, and the new release starts there. Visitors get the maintenance page meanwhile.",
        Says("the strategy with which the environment was created"),
        "blue-green",
        |reader, node, key, draft| {
            const STRATEGIES: [(&str, Strategy); 2] = [("blue-green", Strategy::BlueGreen), ("in-place", Strategy::InPlace)];
            draft.settings.strategy = reader.choice(node, key, &STRATEGIES).or(draft.settings.strategy);
        },
    ),
    KeyRow::value(
        "services",
        "The units of systemd that a deployment in place stops before it changes anything, and starts with the new release. The server file must allow each unit. The processes of the project always stop.",
        Says("none"),
        "\n- shop-index.service",
        |reader, node, key, draft| draft.settings.services = services::read_services(reader, node, key),
    ),
    KeyRow::value("domains", "Further host names.", Unstated, "\n- shop.example.com", |reader, node, key, draft| {
        draft.settings.domains = reader.items(node, key, "[shop.example.com, www.example.com]", |reader, node| {
            reader.value(node, key, "a host name such as shop.example.com", str::parse::<Domain>)
        });
    }),
    KeyRow::custom(
        "stop",
        "The signal that asks processes to exit (TERM, INT, QUIT, HUP, USR1, USR2 or WINCH), and the time until they are killed, at most 15m.",
        Says("TERM, 10s"),
        || keys::render(STOP_KEYS),
        |reader, node, key, draft| process::read_stop(reader, node, key, &mut draft.stop),
    ),
    KeyRow::value(
        "drain",
        "The time limit for requests in flight to this release after a switch to the next release, at most 15m.",
        Is("30s"),
        "30s",
        |reader, node, key, draft| {
            draft.settings.drain = reader.time_within(node, key, TimeSpan::MAX_DRAIN).unwrap_or(draft.settings.drain)
        },
    ),
    KeyRow::custom(
        "drift",
        "The reaction to files of the live release that were changed by hand (`larder drift` shows them). \
         keep: warn, save the changes as a patch, and continue without them. \
         refuse: fail until the changes are saved with `larder drift --save`. \
         reapply: apply the changes to the new release, and fail if they do not apply. \
         `drift: refuse` is short for `drift: {policy: refuse}`.",
        Says("as in the server file, or else keep"),
        || keys::render(DRIFT_KEYS),
        |reader, node, key, draft| {
            let Settings { drift, drift_ignore, .. } = &mut draft.settings;
            policy::read_drift(reader, node, key, drift, drift_ignore);
        },
    ),
    KeyRow::value(
        "edits",
        "The reaction of a push to an editable environment to files that were changed by hand in the checkout, and that the push changes, too. \
         refuse: fail with a list of the files. stash: put the files into git's stash.",
        Is("refuse"),
        "stash",
        |reader, node, key, draft| {
            draft.settings.edits = reader.choice(node, key, &EditPolicy::WORDS).unwrap_or(draft.settings.edits);
        },
    ),
    KeyRow::section("keep", "", "{releases: 10}", KEEP_KEYS),
    KeyRow::custom(
        "smoke",
        "Requests that must succeed after the switch. If a request fails, the deployment is reverted.",
        Unstated,
        health::smoke_example,
        |reader, node, key, draft| {
            draft.settings.smoke = reader.items(node, key, "[/, /login]", |reader, node| health::read_smoke(reader, node, key));
        },
    ),
    KeyRow::custom(
        "promote",
        "The conditions that a release of another environment or server must have met before an environment with the mode final \
         accepts the release. The conditions of the server file apply as well.",
        Says("none"),
        || keys::render(PROMOTE_KEYS),
        |reader, node, key, draft| policy::read_promote(reader, node, key, &mut draft.settings.promote),
    ),
    KeyRow::custom(
        "notify",
        "The recipients of mails and webhooks about this project.",
        Says("none"),
        || keys::render(NOTIFY_KEYS),
        |reader, node, key, draft| {
            keys::read_section(reader, node, key, "{mail: [team@example.com]}", NOTIFY_KEYS, &mut draft.settings.notify)
        },
    ),
    KeyRow::custom(
        ENVIRONMENTS,
        "Settings for single environments, with the keys above. A list or a single value replaces the value above. A mapping, such as \
         env, processes or scale, is merged with the mapping above, key by key.",
        Unstated,
        || "staging:\n  env:\n    LOG_LEVEL: debug\n  scale:\n    web: 1".to_owned(),
        // `recipe.rs` reads this key, because each level must be read after the level above it.
        |_, _, _, _| {},
    ),
];

/// The key whose values are the recipe's levels for single environments. The key is allowed only at the top level of the file.
pub(super) const ENVIRONMENTS: &str = "environments";

const BUILD_KEYS: &[KeyRow<Draft>] = &[
    KeyRow::custom(
        "env",
        "Variables that are set only for the build.",
        Unstated,
        || "NODE_ENV: production".to_owned(),
        |reader, node, key, draft| draft.settings.build.env.extend(reader.env(node, key)),
    ),
    KeyRow::value(
        "timeout",
        "The time limit of the build; the same as timeouts.build. The server file can lower this limit.",
        Is("15m"),
        "20m",
        |reader, node, key, draft| {
            draft.settings.timeouts.extend(reader.time_within(node, key, TimeSpan::MAX_PHASE).map(|time| (Phase::Build, time)));
        },
    ),
    KeyRow::value(
        "memory",
        "The memory limit of the build. The server file can lower this limit.",
        Says("as in the server file"),
        "2G",
        |reader, node, key, draft| draft.settings.build.memory = reader.size(node, key).or(draft.settings.build.memory),
    ),
    KeyRow::value(
        "cache",
        "With false, every build starts with an empty cache.",
        Is("true"),
        "true",
        |reader, node, key, draft| {
            draft.settings.build.cache = reader.boolean(node, key).unwrap_or(draft.settings.build.cache);
        },
    ),
    KeyRow::value("secrets", build::ABOUT_SECRETS, Unstated, "[NPM_TOKEN]", |reader, node, key, draft| {
        draft.settings.build.secrets = build::read_secrets(reader, node, key);
    }),
    KeyRow::value("allow_leaks", build::ABOUT_ALLOWED_LEAKS, Unstated, "[maps.public_key]", |reader, node, key, draft| {
        draft.settings.build.allow_leaks = build::read_allowed_leaks(reader, node, key);
    }),
];

const AS_SERVER: Fallback = Says("as in the server file");

const KEEP_KEYS: &[KeyRow<Draft>] = &[
    KeyRow::value("releases", "The number of releases to keep; at least 2.", AS_SERVER, "10", |reader, node, key, draft| {
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
        "The maximum disk space of the archives. The oldest releases are pruned first. The server file can lower this limit.",
        AS_SERVER,
        "2G",
        |reader, node, key, draft| draft.settings.keep_bytes = reader.size(node, key).or(draft.settings.keep_bytes),
    ),
];
