//! Node: the order of things, and what each program is told.

use super::Project;

/// A node that has the version 18.19.0, and otherwise is the real one.
const NODE: &str = "[ \"$1\" != --version ] || echo v18.19.0";
const PACKAGE: &str =
    r#"{"scripts":{"heroku-prebuild":"a","heroku-postbuild":"b","heroku-cleanup":"c"},"dependencies":{"x":"1"}}"#;

fn verbs(project: &Project, program: &str) -> Vec<String> {
    let calls = project.calls().into_iter().filter_map(|call| Some(call.strip_prefix(program)?.trim().to_owned()));
    calls.filter(|call| !call.starts_with("--version")).collect()
}

#[test]
fn the_prebuild_script_runs_before_packages_are_installed() {
    for pack in ["node", "static"] {
        let project = Project::new(&[("package.json", PACKAGE), ("package-lock.json", "{}"), ("dist/index.html", "")]);
        project.program("node", NODE).program("npm", "");
        project.compiled(pack, &[]);
        let did: Vec<String> = verbs(&project, "npm").iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
        let last = verbs(&project, "npm")
            .iter()
            .filter_map(|call| Some(call.strip_prefix("run --silent ")?.to_owned()))
            .collect::<Vec<_>>();
        assert_eq!(did[..3], ["run", "ci", "run"], "{pack}");
        assert_eq!(last[..2], ["heroku-prebuild", "heroku-postbuild"], "{pack}");
    }
}

#[test]
fn only_an_installation_that_would_ask_is_told_that_nobody_is_there() {
    let say = "echo \"$* CI=${CI-none}\"";
    let package = r#"{"scripts":{"build":"a"},"dependencies":{"x":"1"}}"#;
    for (lock, program, install) in [
        ("package-lock.json", "npm", "ci --include=dev --no-audit --no-fund CI=none"),
        ("pnpm-lock.yaml", "pnpm", " CI=true"),
        ("yarn.lock", "yarn", "install --immutable CI=true"),
    ] {
        let project = Project::new(&[("package.json", package), (lock, ""), (".yarnrc.yml", "")]);
        project.program("node", NODE).program(program, say);
        let output = project.compiled("node", &[]);
        assert!(output.contains(install), "{program}: {output}");
        assert!(output.contains("build CI=none\n"), "{program}: {output}");
        assert!(project.compiled("node", &[("CI", "1")]).contains("build CI=1\n"), "{program}");
    }
}

#[test]
fn a_newer_yarn_installs_into_node_modules_and_keeps_its_cache_to_itself() {
    let say = "echo \"linker=${YARN_NODE_LINKER-none} cache=${YARN_CACHE_FOLDER-none}\"";
    for (files, linker, cache) in [
        (&[("package.json", r#"{"packageManager":"yarn@4.1.0"}"#), ("yarn.lock", "")][..], "node-modules", "none"),
        (&[("package.json", "{}"), ("yarn.lock", ""), (".yarnrc.yml", "nodeLinker: pnp")], "node-modules", "none"),
        (&[("package.json", "{}"), ("yarn.lock", "")], "none", "yarn"),
    ] {
        let project = Project::new(files);
        project.program("node", NODE).program("yarn", say);
        let output = project.compiled("node", &[]);
        let line = output.lines().find(|line| line.contains("linker=")).unwrap();
        assert!(line.contains(&format!("linker={linker} ")) && line.ends_with(cache), "{files:?}: {output}");
    }
}

#[test]
fn development_packages_stay_where_the_project_says_so() {
    let package = r#"{"devDependencies":{"x":"1"}}"#;
    for (variables, pruned) in
        [(&[][..], true), (&[("NPM_CONFIG_PRODUCTION", "false")], false), (&[("YARN_PRODUCTION", "false")], false)]
    {
        let project = Project::new(&[("package.json", package), ("package-lock.json", "{}")]);
        project.program("node", NODE).program("npm", "mkdir -p node_modules");
        project.compiled("node", variables);
        assert_eq!(verbs(&project, "npm").iter().any(|call| call.starts_with("prune")), pruned, "{variables:?}");
    }
}

#[test]
fn another_version_of_node_than_the_project_asks_for_is_named() {
    let Some(real) = crate::buildpack::script_tests::installed("node") else { return };
    let fits = |wanted: &str| {
        let project = Project::new(&[("package.json", &format!(r#"{{"engines":{{"node":{wanted}}}}}"#))]);
        let real = real.display();
        project.program("node", &format!("[ \"$1\" != --version ] || {{ echo v18.19.1; exit; }}\nexec '{real}' \"$@\""));
        project.program("npm", "");
        let output = project.compiled("node", &[]);
        let warning = output.lines().any(|line| line.contains("asks for node ") && line.ends_with("this server has v18.19.1."));
        assert!(warning || !output.contains("asks for"), "{output}");
        !warning
    };
    let fitting = [
        "18",
        "18.x",
        "v18.19.1",
        "^18.2",
        "~18.19",
        ">=16",
        ">= 14 <20",
        "16 || 18",
        "14 - 18",
        "*",
        "",
        ">=18.19.1",
        "<=18",
        "^18.19.1",
        "lts/hydrogen",
        "=18.19",
        "<19.0.0-0",
    ];
    for wanted in fitting {
        assert!(fits(&format!("\"{wanted}\"")), "{wanted}");
    }
    for wanted in
        ["20", ">=20", "^16.0.0", "~18.18", "18.19.2", "<18", ">18", "16 || 20", "14 - 17", ">=16 <18", "^0.1", "20.x", "18.20"]
    {
        assert!(!fits(&format!("\"{wanted}\"")), "{wanted}");
    }
    assert!(fits("null") && fits("{}"));
}

#[test]
fn corepack_asks_the_registry_that_npm_is_configured_with() {
    let package = r#"{"dependencies":{"x":"1"},"packageManager":"pnpm@9.1.0"}"#;
    let asked = |npm: &str, variables: &[(&str, &str)]| {
        let project = Project::new(&[("package.json", package), ("pnpm-lock.yaml", "")]);
        project.program("node", NODE).program("npm", npm).program("corepack", "echo \"from ${COREPACK_NPM_REGISTRY-nowhere}\"");
        let output = project.compiled("node", variables);
        output.lines().find_map(|line| line.trim().strip_prefix("from ")).unwrap().to_owned()
    };
    let mirror = "echo https://npm.example/mirror/";
    assert_eq!(asked(mirror, &[]), "https://npm.example/mirror");
    assert_eq!(asked(mirror, &[("COREPACK_NPM_REGISTRY", "https://other.example")]), "https://other.example");
    // The public one: what corepack itself does then is best, such as taking yarn from where yarn is published.
    assert_eq!(asked("echo https://registry.npmjs.org/", &[]), "nowhere");
    assert_eq!(asked("echo undefined", &[]), "nowhere");
    assert_eq!(asked("exit 1", &[]), "nowhere");
}
