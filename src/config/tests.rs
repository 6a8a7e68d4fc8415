//! The references are files that parse and hold every key; the fixtures are golden; nothing panics.

use std::{collections::BTreeSet, fs, path::PathBuf};

use proptest::prelude::{Strategy as Generator, *};

use super::{
    http,
    project::{ProjectFiles, load},
    promote, recipe_read, server, *,
};
use crate::model::{EnvironmentName, Phase};

const RECIPE: &str = include_str!("reference/recipe.yml");
const SERVER: &str = include_str!("reference/server.yml");

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

/// All words in front of a colon, commented ones included.
fn keys(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.trim_start_matches([' ', '#', '-']).split_once(':').map(|(key, _)| key.trim())).collect()
}

#[test]
fn the_reference_recipe_parses_and_names_every_key() {
    let recipe = Recipe::parse(RECIPE.as_bytes()).unwrap();
    let found = keys(RECIPE);
    let all = [&recipe_read::TOP[..], &recipe_read::BUILD, &recipe_read::PROCESS, &recipe_read::HEALTH, &recipe_read::STOP]
        .concat()
        .into_iter()
        .chain(recipe_read::KEEP)
        .chain(recipe_read::DRIFT)
        .chain(recipe_read::SMOKE)
        .chain(promote::PROMOTE)
        .chain(Phase::ALL.map(Phase::as_str));
    for key in all {
        // The short form is shown inside a sentence.
        assert!(found.contains(key) || (key == "buildpack" && RECIPE.contains("`buildpack: python`")), "{key} is missing");
    }
    let staging = recipe.for_environment(&environment("staging"));
    assert_eq!(staging.env.get("LOG_LEVEL").unwrap(), "debug");
    assert_eq!(staging.processes.get("worker").unwrap().stop.unwrap().grace, TimeSpan::minutes(5));
    assert_eq!(staging.processes.get("web").unwrap().scale, 1);
    assert_eq!(recipe.for_environment(&environment("production")).processes.get("web").unwrap().scale, 2);
}

#[test]
fn the_reference_server_file_parses_names_every_key_and_shows_the_defaults() {
    let mut config = ServerConfig::parse("larder.yml", SERVER.as_bytes()).unwrap();
    let found = keys(SERVER);
    let all = [&server::TOP[..], &server::SSH, &http::HTTP, &server::BUILDS, &server::LIMITS, &server::DEPLOYMENTS]
        .concat()
        .into_iter()
        .chain(server::PORTS)
        .chain(server::KEEP)
        .chain(promote::PROMOTE)
        .chain(server::LOG);
    for key in all {
        assert!(found.contains(key), "{key} is missing");
    }
    config.paths.clear();
    config.env.clear();
    (config.keep.age, config.keep.bytes, config.drift) = (None, None, None);
    config.promote = Promote::default();
    assert_eq!(config, ServerConfig::default());
}

#[test]
fn the_documentation_shows_the_references_as_they_are() {
    assert!(include_str!("../../docs/recipe.md").contains(&format!("```yaml\n{RECIPE}```")));
    assert!(include_str!("../../docs/server-file.md").contains(&format!("```yaml\n{SERVER}```")));
}

#[test]
fn a_missing_server_file_means_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("larder.yml");
    assert_eq!(ServerConfig::load(&path).unwrap(), ServerConfig::default());
    fs::write(&path, vec![b'#'; 256 * 1024 + 1]).unwrap();
    assert!(ServerConfig::load(&path).unwrap_err()[0].problem.contains("bytes"));
}

#[test]
fn the_recipe_counts_before_the_procfile_and_that_before_app_json_and_buildpacks() {
    let files = ProjectFiles {
        recipe: Some(b"processes: {web: a}\nscale: {clock: 3, other: 2}\nenv: {A: 1.10}\n".to_vec()),
        procfile: Some(b"web: b\nworker: c\nrelease: d\n".to_vec()),
        app_json: Some(
            br#"{"env": {"A": "x", "B": {}}, "formation": {"worker": {"quantity": 4}}, "buildpacks": [{"url": "a"}]}"#.to_vec(),
        ),
        buildpacks: Some(b"go\n".to_vec()),
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
fn an_environment_replaces_lists_and_merges_mappings() {
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
fn defaults_are_filled_in() {
    let settings = settings("", "web: a\nworker: b");
    assert_eq!(settings.processes.values().map(|spec| spec.scale).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(settings.health.check, HealthCheck::Tcp);
    assert_eq!(settings.timeout(Phase::Build), TimeSpan::minutes(15));
    assert_eq!(settings, postcard::from_bytes(&postcard::to_stdvec(&settings).unwrap()).unwrap());
}

#[test]
fn a_server_caps_builds_and_fills_in_what_the_project_leaves_open() {
    let server = b"builds: {memory: 1G, timeout: 10m}\nkeep: {releases: 7, age: 12w, bytes: 2G}\nenv: {A: server, B: server}\n";
    let server = ServerConfig::parse("larder.yml", server).unwrap();
    let settings = settings("build: {memory: 4G, timeout: 2h}\nenv: {A: project}\nkeep: {bytes: 1G}\n", "").on_server(&server);
    assert_eq!(settings.build.memory, Some("1G".parse().unwrap()));
    assert_eq!(settings.timeout(Phase::Build), TimeSpan::minutes(10));
    assert_eq!(settings.keep_releases, Some(7));
    assert_eq!(settings.keep_age, Some("84d".parse().unwrap()));
    assert_eq!(settings.keep_bytes, Some("1G".parse().unwrap()), "less than the server gives, because the project asks for less");
    assert_eq!(settings.env.values().collect::<Vec<_>>(), ["project", "server"]);
}

#[test]
fn windows_line_ends_do_not_get_into_commands() {
    let settings = settings("release: |\r\n  one\r\n  two\r\n", "web: a\r\n");
    assert_eq!(settings.release.unwrap().as_str(), "one\ntwo\n");
    assert_eq!(settings.processes.get("web").unwrap().command.as_str(), "a");
}

#[test]
fn byte_order_marks_and_windows_line_ends_are_fine() {
    let settings = settings("\u{feff}env:\r\n  A: x\r\n  B: \"y\"\r\n", "");
    assert_eq!(settings.env.values().collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn typed_parsing_has_lines_and_suggestions() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Entry {
        owner: String,
        mode: u32,
    }
    let parse = |text: &str| yaml::parse::<Entry>("layout.yaml", text.as_bytes(), yaml::Limits::SERVER);
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
fn hostile_yaml_is_refused_quickly() {
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

/// Each file of `tests/fixtures/invalid` has its errors beside it, in `<file>.errors`. `LARDER_BLESS=1` writes them.
#[test]
fn invalid_fixtures_give_their_golden_errors() {
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
fn valid_fixtures_are_accepted() {
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

/// The kind of a fixture is the start of its name.
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
        other => panic!("{other} is no kind of fixture"),
    }
    load(&files).map(drop)
}

/// Text that gets past the first few checks more often than noise does.
fn almost_yaml() -> impl Generator<Value = String> {
    let mut words: Vec<String> = recipe_read::TOP.iter().chain(&server::TOP).map(|word| (*word).to_owned()).collect();
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
    let files = ProjectFiles { recipe: some(), procfile: some(), app_json: some(), buildpacks: some() };
    match load(&files) {
        Ok(config) => drop(config.settings(&environment("staging"))),
        errors => all_are_one_line(errors),
    }
    if let Ok(recipe) = Recipe::parse(bytes) {
        drop(recipe.for_environment(&environment("staging")));
    }
    let typed = yaml::parse::<std::collections::BTreeMap<String, String>>("x", bytes, yaml::Limits::RECIPE);
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
    fn no_near_miss_causes_a_panic(text in almost_yaml()) {
        survive(text.as_bytes());
    }
}

#[test]
fn a_promotion_policy_is_the_stricter_of_project_and_server() {
    let text = "promote: {min_healthy: 10m, checks: [smoke, tests]}\nenvironments: {production: {promote: {checks: [smoke], max_restarts: 3}}}\n";
    let own = settings(text, "").promote;
    assert_eq!((own.min_healthy, own.max_restarts), (Some(TimeSpan::minutes(10)), Some(3)));
    assert_eq!(own.checks, [PromoteCheck::Smoke], "the environment's list takes the place of the other");
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
