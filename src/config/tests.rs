//! Tests of all configuration files together: references, precedence, expected errors of the fixtures, and arbitrary input.

use std::{fs, path::PathBuf};

use proptest::prelude::{Strategy as Generator, *};

use super::{
    keys::{self, Fallback},
    project::{ProjectFiles, load},
    server, settings, *,
};
use crate::model::{EnvironmentName, Phase};

const RECIPE_INTRODUCTION: &str = "\
# larder.yml: a project's description of its own deployment, at the top of the repository.
# The file and all of its keys are optional. Write only the keys whose values differ from the defaults.
# Durations: 500ms, 90s, 15m, 1h, 2d.  Sizes: 512K, 512M, 2G (powers of 1024).
";
const SERVER_INTRODUCTION: &str = "\
# larder.yml in the server's root directory: the operator's settings of this server.
# The file and all of its keys are optional. The values below are the defaults. The values of `paths`, `keep.age`,
# `keep.bytes`, `promote`, `backup.drill`,
# `backup.keep.bytes`, `databases` and `env` are examples: by default, these keys are not set.
# Durations: 500ms, 90s, 15m, 1h, 2d.  Sizes: 512K, 512M, 2G (powers of 1024).
";

fn recipe_reference() -> String {
    format!("{RECIPE_INTRODUCTION}{}", keys::render_file(settings::KEYS))
}

fn server_reference() -> String {
    format!("{SERVER_INTRODUCTION}{}", keys::render_file(server::KEYS))
}

fn environment(name: &str) -> EnvironmentName {
    name.parse().unwrap()
}

fn settings(recipe: &str, procfile: &str) -> Settings {
    let files = ProjectFiles {
        recipe: Some(recipe.as_bytes().to_vec()),
        procfile: Some(procfile.as_bytes().to_vec()),
        ..ProjectFiles::default()
    };
    load(&files).unwrap().settings(&environment("production"))
}

/// Returns a YAML document that sets one key, such as `build.cache`, to `value`.
fn document(key: &str, value: &str) -> String {
    let levels = key.split('.').enumerate().map(|(depth, name)| format!("{}{name}:", "  ".repeat(depth)));
    format!("{} {value}\n", levels.collect::<Vec<_>>().join("\n"))
}

#[test]
fn recipe_reference_is_a_valid_recipe() {
    let recipe = Recipe::parse(recipe_reference().as_bytes()).unwrap();
    let staging = recipe.for_environment(&environment("staging"));
    assert_eq!(staging.env.get("LOG_LEVEL").unwrap(), "debug");
    assert_eq!(staging.processes.get("worker").unwrap().stop.unwrap().grace, TimeSpan::minutes(5));
    assert_eq!(staging.processes.get("web").unwrap().scale, 1);
    assert_eq!(recipe.for_environment(&environment("production")).processes.get("web").unwrap().scale, 2);
}

#[test]
fn server_reference_shows_the_defaults() {
    let mut config = ServerConfig::parse("larder.yml", server_reference().as_bytes()).unwrap();
    assert_eq!((config.paths.len(), config.env.len(), config.drift), (1, 1, Some(DriftPolicy::Keep)));
    config.paths.clear();
    config.env.clear();
    (config.keep.age, config.keep.bytes, config.drift, config.builds.memory) = (None, None, None, None);
    (config.backup.keep.bytes, config.backup.drill) = (None, None);
    config.promote = PromotionPolicy::default();
    config.space = SpaceConfig::default();
    assert_eq!(std::mem::take(&mut config.services).units.len(), 1);
    let stores: Vec<_> = config.backup.offsite.drain(..).collect();
    assert_eq!((stores.len(), stores[0].keep), (1, Some(BackupKeep { daily: 30, yearly: 5, ..BackupKeep::default() })));
    assert_eq!(config.mail.take().unwrap().admins.len(), 1);
    assert_eq!((config.webhooks.allow.drain(..).count(), config.forges.drain(..).count()), (2, 1));
    assert!(config.databases.postgres.take().is_some() && config.databases.mariadb.take().is_some());
    assert_eq!(config, ServerConfig::default());
}

/// `Settings::default()` and `ServerConfig::default()` must have the values that the tables state.
#[test]
fn defaults_in_tables_equal_the_defaults_in_code() {
    let health = keys::rows(super::health::HEALTH_KEYS, "health.");
    let mut seen = 0;
    for (key, fallback) in keys::rows(settings::KEYS, "").into_iter().chain(health) {
        let Fallback::Is(value) = fallback else { continue };
        let recipe = Recipe::parse(document(&key, value).as_bytes()).unwrap();
        assert_eq!(recipe.for_environment(&environment("production")), Settings::default(), "{key}: {value}");
        seen += 1;
    }
    let backup = keys::rows(super::backup::BACKUP_KEYS, "backup.");
    let keep = keys::rows(super::keep::KEEP_KEYS, "backup.keep.");
    for (key, fallback) in keys::rows(server::KEYS, "").into_iter().chain(backup).chain(keep) {
        let Fallback::Is(value) = fallback else { continue };
        assert_eq!(ServerConfig::parse("", document(&key, value).as_bytes()).unwrap(), ServerConfig::default(), "{key}: {value}");
        seen += 1;
    }
    assert!(seen >= 7, "only {seen} defaults were found");
}

/// The pages in `docs/` must contain the rendered references. With `LARDER_BLESS=1`, the test writes the references into the pages.
#[test]
fn documentation_contains_the_rendered_references() {
    for (page, reference) in [("recipe.md", recipe_reference()), ("server-file.md", server_reference())] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
        let text = fs::read_to_string(&path).unwrap();
        let start = text.find("```yaml\n").unwrap() + "```yaml\n".len();
        let end = start + text[start..].find("```").unwrap();
        if std::env::var_os("LARDER_BLESS").is_some() {
            fs::write(&path, format!("{}{reference}{}", &text[..start], &text[end..])).unwrap();
        } else {
            assert!(text[start..end] == reference, "docs/{page} is outdated: LARDER_BLESS=1 cargo test --lib config");
        }
    }
}

#[test]
fn missing_server_file_gives_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("larder.yml");
    assert_eq!(ServerConfig::load(&path).unwrap(), ServerConfig::default());
    fs::write(&path, vec![b'#'; 256 * 1024 + 1]).unwrap();
    assert!(ServerConfig::load(&path).unwrap_err()[0].problem.contains("bytes"));
}

#[test]
fn recipe_takes_precedence_over_procfile_and_app_json() {
    let files = ProjectFiles {
        recipe: Some(b"processes: {web: a}\nscale: {clock: 3, other: 2}\nenv: {A: 1.10}\n".to_vec()),
        procfile: Some(b"web: b\nworker: c\nrelease: d\n".to_vec()),
        app_json: Some(
            br#"{"env": {"A": "x", "B": {}}, "formation": {"worker": {"quantity": 4}}, "buildpacks": [{"url": "a"}]}"#.to_vec(),
        ),
        buildpacks: Some(b"go\n".to_vec()),
        ..ProjectFiles::default()
    };
    let settings = load(&files).unwrap().settings(&environment("production"));
    let command = |text: &str| text.parse::<CommandLine>().unwrap();
    let settings = settings.with_defaults(vec![
        ("web".parse().unwrap(), command("never")),
        ("clock".parse().unwrap(), command("tick")),
        ("release".parse().unwrap(), command("never")),
    ]);
    let found: Vec<_> =
        settings.processes.iter().map(|(name, spec)| (name.as_str(), spec.command.as_str(), spec.scale)).collect();
    assert_eq!(found, [("web", "a", 1), ("worker", "c", 4), ("clock", "tick", 3)]);
    assert_eq!(settings.release.unwrap().as_str(), "d");
    assert_eq!(settings.env.get("A").unwrap(), "1.10");
    assert_eq!(settings.required[0].name.as_str(), "B");
    assert_eq!(settings.buildpacks, [BuildpackRef::Named("go".to_owned())]);
    assert_eq!(settings.unnamed.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["other"]);
}

#[test]
fn environment_replaces_lists_and_merges_mappings() {
    let recipe = Recipe::parse(
        b"data: [a]\nenv: {A: 1, B: 2}\nhealth: {command: check}\nenvironments: {staging: {data: [b], env: {B: 3}, health: {path: /up}}}",
    )
    .unwrap();
    let staging = recipe.for_environment(&environment("staging"));
    assert_eq!(staging.data[0].as_str(), "b");
    assert_eq!(staging.env.values().collect::<Vec<_>>(), ["1", "3"]);
    assert!(matches!(staging.health.check, HealthCheck::Http { .. }));
    let production = recipe.for_environment(&environment("production"));
    assert!(matches!(production.health.check, HealthCheck::Command(_)));
}

#[test]
fn empty_recipe_gives_the_defaults() {
    let settings = settings("", "web: a\nworker: b");
    assert_eq!(settings.processes.values().map(|spec| spec.scale).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(settings.health.check, HealthCheck::Tcp);
    assert_eq!(settings.timeout(Phase::Build), TimeSpan::minutes(15));
    assert_eq!(settings, postcard::from_bytes(&postcard::to_stdvec(&settings).unwrap()).unwrap());
}

#[test]
fn stored_times_above_the_maximum_are_lowered() {
    // An earlier version stored these times.
    let mut stored = settings("", "web: a\nworker: b");
    let day = TimeSpan::minutes(24 * 60);
    stored.drain = day;
    stored.stop.grace = day;
    stored.health.timeout = day;
    stored.timeouts.insert(Phase::Deploy, TimeSpan::minutes(29 * 24 * 60));
    let worker = "worker".parse().unwrap();
    stored.processes.get_mut(&worker).unwrap().stop = Some(stored.stop);
    let stored: Settings = serde_json::from_slice(&serde_json::to_vec(&stored).unwrap()).unwrap();
    assert_eq!((stored.drain(), stored.health_timeout()), (TimeSpan::MAX_DRAIN, TimeSpan::MAX_HEALTH));
    assert_eq!((stored.stop_of(&worker).grace, stored.timeout(Phase::Deploy)), (TimeSpan::MAX_GRACE, TimeSpan::MAX_PHASE));
}

#[test]
fn server_file_limits_builds_and_completes_the_recipe() {
    let server = b"builds: {memory: 1G, timeout: 10m}\nkeep: {releases: 7, age: 12w, bytes: 2G}\nenv: {A: server, B: server}\n";
    let server = ServerConfig::parse("larder.yml", server).unwrap();
    let settings = settings("build: {memory: 4G, timeout: 2h}\nenv: {A: project}\nkeep: {bytes: 1G}\n", "").on_server(&server);
    assert_eq!(settings.build.memory, Some("1G".parse().unwrap()));
    assert_eq!(settings.timeout(Phase::Build), TimeSpan::minutes(10));
    let keep = settings.retention(&server);
    assert_eq!((keep.releases, keep.age), (7, Some("84d".parse().unwrap())));
    assert_eq!(keep.bytes, Some("1G".parse().unwrap()), "the project's limit is lower than the server's limit");
    assert_eq!(settings.env.values().collect::<Vec<_>>(), ["project", "server"]);
}

#[test]
fn command_with_crlf_is_read_with_lf_line_endings() {
    let settings = settings("release: |\r\n  one\r\n  two\r\n", "web: a\r\n");
    assert_eq!(settings.release.unwrap().as_str(), "one\ntwo\n");
    assert_eq!(settings.processes.get("web").unwrap().command.as_str(), "a");
}

#[test]
fn recipe_with_byte_order_mark_and_crlf_is_read() {
    let settings = settings("\u{feff}env:\r\n  A: x\r\n  B: \"y\"\r\n", "");
    assert_eq!(settings.env.values().collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn typed_parsing_error_names_the_line_and_a_similar_key() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Entry {
        owner: String,
        mode: u32,
    }
    let parse = |text: &str| yaml::parse::<Entry>("layout.yaml", text.as_bytes(), yaml::FileLimits::SERVER);
    assert_eq!(parse("owner: x\nmode: 7\n").unwrap().mode, 7);
    assert_eq!(
        parse("owner: x\nmod: 7\n").unwrap_err().to_string(),
        "layout.yaml:2: unknown key \"mod\"; did you mean \"mode\"?"
    );
    for bad in [
        "owner: x\nmode: many\n",
        "owner: x\n",
        "owner: &a x\nmode: *a\n",
        "owner: x\nowner: y\nmode: 1\n",
        "<<: {owner: x}\nmode: 1\n",
    ] {
        let error = parse(bad).unwrap_err();
        assert!(error.line.is_some() && !error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn number_of_buildpacks_in_a_recipe_is_limited() {
    let list = |count: usize| format!("buildpacks: [{}]\n", vec!["node"; count].join(", "));
    assert_eq!(settings(&list(32), "").buildpacks.len(), 32);
    let problems = Recipe::parse(list(33).as_bytes()).unwrap_err();
    let problem = problems[0].to_string();
    assert!(problem.contains("33 items") && problem.contains("at most 32"), "{problem}");
}

#[test]
fn hostile_yaml_is_refused() {
    let deep_flow = "[".repeat(60_000);
    let deep_block: String = (0..300).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let bomb = format!("a: &a [x,x]\n{}", "b: [*a,*a]\n".repeat(20));
    for text in
        [deep_flow.as_str(), deep_block.as_str(), &bomb, &"a: ".repeat(20_000), &"? ".repeat(30_000), &"- ".repeat(30_000)]
    {
        assert!(Recipe::parse(text.as_bytes()).is_err());
    }
    assert!(Recipe::parse(&vec![b'a'; 100 << 20]).is_err());
}

/// The expected errors of each file in `tests/fixtures/invalid` are in `<file>.errors`. With `LARDER_BLESS=1`, the test writes the errors
/// into these files.
#[test]
fn invalid_fixture_gives_its_golden_errors() {
    let mut seen = 0;
    for path in fixtures("invalid") {
        let errors = problems_of(&path).expect_err(&format!("{} is accepted", path.display()));
        let found: String = errors.iter().map(|error| format!("{error}\n")).collect();
        let golden = PathBuf::from(format!("{}.errors", path.display()));
        if std::env::var_os("LARDER_BLESS").is_some() {
            fs::write(&golden, &found).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(found, expected, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 40, "only {seen} fixtures were found");
}

#[test]
fn valid_fixture_is_accepted() {
    let mut seen = 0;
    for path in fixtures("valid") {
        if let Err(errors) = problems_of(&path) {
            panic!("{}: {errors:?}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} fixtures were found");
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_none_or(|extension| extension != "errors"));
    paths.sort();
    paths
}

/// Parses a fixture with the parser of its kind. The kind is the first word of the fixture's name.
fn problems_of(path: &std::path::Path) -> Result<(), Vec<ConfigError>> {
    let bytes = fs::read(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut files = ProjectFiles::default();
    match name.split(['-', '.']).next().unwrap() {
        "recipe" => files.recipe = Some(bytes),
        "procfile" => files.procfile = Some(bytes),
        "app" => files.app_json = Some(bytes),
        "buildpacks" => files.buildpacks = Some(bytes),
        "server" => return ServerConfig::parse("larder.yml", &bytes).map(drop),
        other => panic!("{other} is not a kind of fixture"),
    }
    load(&files).map(drop)
}

/// Generates text that passes the first checks of a parser more often than random characters do.
fn almost_yaml() -> impl Generator<Value = String> {
    let mut words: Vec<String> = {
        let recipe = settings::KEYS.iter().map(|key| key.name);
        recipe.chain(server::KEYS.iter().map(|key| key.name)).map(str::to_owned).collect()
    };
    words.extend(
        [
            ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "\"", "'", "|\n", "&a ", "*a", "!t ", "1", "90s", "web",
            "\u{e9}", "\t", "\r\n", "#", "---\n", "? ",
        ]
        .map(str::to_owned),
    );
    proptest::collection::vec(proptest::sample::select(words), 0..40).prop_map(|words| words.concat())
}

fn all_are_one_line<T>(result: Result<T, Vec<ConfigError>>) {
    if let Err(errors) = result {
        assert!(!errors.is_empty());
        for error in errors {
            let line = error.to_string();
            assert!(!line.chars().any(char::is_control) && line.len() < 2000, "{line:?}");
        }
    }
}

fn survive(bytes: &[u8]) {
    all_are_one_line(ServerConfig::parse("larder.yml", bytes));
    let some = || Some(bytes.to_vec());
    let files = ProjectFiles { recipe: some(), procfile: some(), app_json: some(), buildpacks: some(), pillar_sample: None };
    match load(&files) {
        Ok(config) => drop(config.settings(&environment("staging"))),
        errors => all_are_one_line(errors),
    }
    if let Ok(recipe) = Recipe::parse(bytes) {
        drop(recipe.for_environment(&environment("staging")));
    }
    let typed = yaml::parse::<std::collections::BTreeMap<String, String>>("x", bytes, yaml::FileLimits::RECIPE);
    all_are_one_line(typed.map_err(|error| vec![error]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
    }

    #[test]
    fn no_text_causes_a_panic(text in any::<String>()) {
        survive(text.as_bytes());
    }

    #[test]
    fn no_almost_valid_yaml_causes_a_panic(text in almost_yaml()) {
        survive(text.as_bytes());
    }
}

#[test]
fn promotion_policy_is_the_stricter_of_recipe_and_server_file() {
    let text = "promote: {min_healthy: 10m, checks: [smoke, tests]}\nenvironments: {production: {promote: {checks: [smoke], max_restarts: 3}}}\n";
    let own = settings(text, "").promote;
    assert_eq!((own.min_healthy, own.max_restarts), (Some(TimeSpan::minutes(10)), Some(3)));
    assert_eq!(own.checks, [PromoteCheck::Smoke], "the environment's list replaces the list above it");
    let server = ServerConfig::parse("larder.yml", b"promote: {min_healthy: 1h, checks: [health], max_restarts: 5}").unwrap();
    let both = settings(text, "").on_server(&server).promote;
    assert_eq!((both.min_healthy, both.max_restarts), (Some(TimeSpan::minutes(60)), Some(3)));
    assert_eq!(both.checks, [PromoteCheck::Smoke, PromoteCheck::Health]);
    assert!(settings("", "").on_server(&ServerConfig::default()).promote.is_empty());

    for (bad, hint) in [
        ("promote: {min_helthy: 10m}", "min_healthy"),
        ("promote: {checks: [smok]}", "smoke"),
        ("promote: {checks: smoke}", "[smoke, tests]"),
        ("promote: {min_healthy: 10}", "no unit"),
        ("promote: {max_restarts: -1}", "0"),
        ("promote: yes", "min_healthy: 10m"),
    ] {
        for problems in
            [Recipe::parse(bad.as_bytes()).unwrap_err(), ServerConfig::parse("larder.yml", bad.as_bytes()).unwrap_err()]
        {
            let text = problems.iter().map(ToString::to_string).collect::<String>();
            assert!(text.contains("larder.yml:1") && text.contains(hint), "{bad}: {text}");
        }
    }
}

fn with_app_json(recipe: &str, app_json: &str) -> Settings {
    let files = ProjectFiles {
        recipe: Some(recipe.as_bytes().to_vec()),
        procfile: Some(b"worker: b\n".to_vec()),
        app_json: Some(app_json.as_bytes().to_vec()),
        ..ProjectFiles::default()
    };
    load(&files).unwrap().settings(&environment("production"))
}

#[test]
fn health_status_alone_keeps_the_path_of_app_json() {
    let app_json = r#"{"healthchecks": {"web": [{"path": "/up"}]}}"#;
    let check = |recipe: &str| with_app_json(recipe, app_json).health.check;
    let http = |path: &str, status: &str| HealthCheck::Http { path: path.parse().unwrap(), status: status.parse().unwrap() };
    assert_eq!(check(""), http("/up", "200-399"));
    assert_eq!(check("health: {status: 204}"), http("/up", "204"));
    assert_eq!(check("health: {type: http, timeout: 5s}"), http("/up", "200-399"));
    assert_eq!(check("health: {status: 204}\nenvironments: {production: {health: {path: /b}}}"), http("/b", "204"));
    assert_eq!(check("health: {type: tcp}"), HealthCheck::Tcp);
    assert_eq!(check("health: {type: none}"), HealthCheck::None);
    assert_eq!(check("health: {command: x}"), HealthCheck::Command("x".parse().unwrap()));
}

/// In every mapping, a level of the recipe changes only the keys that it sets.
#[test]
fn partial_mapping_keeps_the_keys_of_earlier_levels() {
    let recipe = "stop: {grace: 1m, signal: INT}\nkeep: {releases: 5, age: 3d}\ndrift: {policy: refuse, ignore: [a]}\n\
        build: {memory: 1G, cache: false, env: {A: x}}\npromote: {min_healthy: 1m, checks: [smoke]}\n\
        processes: {worker: {command: w, memory: 64M, stop: {signal: HUP}}}\nhealth: {path: /a, timeout: 9s}\n\
        environments: {production: {stop: {grace: 2m}, keep: {age: 4d}, drift: {ignore: [b]}, build: {timeout: 1m, env: {B: y}},\
        promote: {max_restarts: 1}, processes: {worker: {scale: 3, stop: {grace: 5s}}}, health: {interval: 2s}}}\n";
    let s = settings(recipe, "");
    assert_eq!((s.stop.signal, s.stop.grace), (StopSignal::Int, TimeSpan::minutes(2)));
    assert_eq!((s.keep_releases, s.keep_age), (Some(5), Some("4d".parse().unwrap())));
    assert_eq!((s.drift, s.drift_ignore.as_slice()), (Some(DriftPolicy::Refuse), ["b".to_owned()].as_slice()));
    assert_eq!((s.build.memory, s.build.cache, s.build.env.len()), (Some("1G".parse().unwrap()), false, 2));
    assert_eq!((s.promote.min_healthy, s.promote.max_restarts), (Some(TimeSpan::minutes(1)), Some(1)));
    assert_eq!(s.promote.checks, [PromoteCheck::Smoke]);
    let worker = s.processes.get("worker").unwrap();
    assert_eq!((worker.command.as_str(), worker.scale, worker.memory), ("w", 3, Some("64M".parse().unwrap())));
    assert_eq!(worker.stop.map(|stop| (stop.signal, stop.grace)), Some((StopSignal::Hup, TimeSpan::seconds(5))));
    assert_eq!((s.health.timeout, s.health.interval), (TimeSpan::seconds(9), TimeSpan::seconds(2)));
    assert!(matches!(s.health.check, HealthCheck::Http { .. }));
}

/// Journals store the settings of a deployment. The stored settings must not contain the server file's values for retention and drift,
/// because new values also apply to old deployments.
#[test]
fn stored_settings_use_new_values_of_the_server_file() {
    let server = |text: &str| ServerConfig::parse("larder.yml", text.as_bytes()).unwrap();
    let before = server("keep: {releases: 3, age: 1d, bytes: 1G}\ndrift: refuse\n");
    let now = server("keep: {releases: 20, age: 2y, bytes: 5G}\ndrift: reapply\n");
    let stored = serde_json::to_string(&settings("", "").on_server(&before)).unwrap();
    let stored: Settings = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored.retention(&now), settings("", "").retention(&now));
    assert_eq!(stored.drift_policy(&now), DriftPolicy::Reapply);
    assert_eq!(settings("drift: keep\nkeep: {releases: 4}", "").on_server(&before).retention(&now).releases, 4);
}

#[test]
fn process_scaled_to_zero_needs_no_command() {
    let without = |recipe: &str, app_json: &str| with_app_json(recipe, app_json).without_command().map(ToString::to_string);
    assert_eq!(without("", r#"{"formation": {"web": {"quantity": 0}}}"#), None);
    assert_eq!(without("scale: {web: 0}", "{}"), None);
    assert_eq!(without("", r#"{"formation": {"web": {"quantity": 1}}}"#), Some("web".to_owned()));
    assert_eq!(without("scale: {web: 1}", r#"{"formation": {"web": {"quantity": 0}}}"#), Some("web".to_owned()));
    assert_eq!(without("processes: {clock: {memory: 64M}}", "{}"), Some("clock".to_owned()));
}

/// No `.errors` file contains this hint, because the hint names all known keys and each new key would change the file.
#[test]
fn unknown_key_without_a_similar_key_is_reported_with_the_known_keys() {
    let known: Vec<_> = settings::KEYS.iter().map(|key| key.name).collect();
    let error = |text: &str| Recipe::parse(text.as_bytes()).unwrap_err()[0].to_string();
    let all = format!("larder.yml:1: unknown key \"kubernetes\"; expected one of {}", known.join(", "));
    assert_eq!(error("kubernetes: yes"), all);
    let nested = error("environments: {staging: {environments: {}}}");
    let levels = known[..known.len() - 1].join(", ");
    assert_eq!(nested, format!("larder.yml:1: unknown key \"environments\" in environments.staging; expected one of {levels}"));
}

#[test]
fn upgrade_replaces_the_release_command_and_merges_key_by_key() {
    let procfile = "web: x\nrelease: bin/release\n";
    let plain = settings("", procfile);
    assert_eq!((plain.upgrade_command().unwrap().to_string(), plain.upgrade.safety), ("bin/release".to_owned(), Safety::Auto));
    assert_eq!(settings("upgrade: bin/migrate", procfile).upgrade_command().unwrap().to_string(), "bin/migrate");
    let recipe = "hold: 5s\nupgrade: {paths: [\"migrations/**\"], safety: online}\n\
                  environments: {production: {upgrade: {safety: hold}}}\n";
    let merged = settings(recipe, procfile);
    assert_eq!(merged.upgrade_command().unwrap().to_string(), "bin/release");
    assert_eq!((merged.upgrade.paths.as_slice(), merged.upgrade.safety), (&["migrations/**".to_owned()][..], Safety::Hold));
    assert_eq!(merged.hold(), TimeSpan::seconds(5));
}

#[test]
fn file_systems_of_projects_need_a_size() {
    for kind in ["ext4", "xfs"] {
        let problems = ServerConfig::parse("", format!("space: {{storage: {kind}}}\n").as_bytes()).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(problem.to_string().contains("space.storage is set, but space.limit is not"), "{problem}");
        assert!(ServerConfig::parse("", format!("space: {{storage: {kind}, limit: 400M}}\n").as_bytes()).is_ok());
    }
    assert!(ServerConfig::parse("", b"space: {storage: shared}\n").is_ok());
}
