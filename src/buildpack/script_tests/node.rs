//! Tests of Node and static sites: the order of scripts, the choice and the options of package managers, and warnings.

use super::Project;

/// A fake node of version 18.19.0.
const NODE: &str = "[ \"$1\" != --version ] || echo v18.19.0";
const PACKAGE: &str =
    r#"{"scripts":{"heroku-prebuild":"a","heroku-postbuild":"b","heroku-cleanup":"c"},"dependencies":{"x":"1"}}"#;

fn verbs(project: &Project, program: &str) -> Vec<String> {
    let calls = project.calls().into_iter().filter_map(|call| Some(call.strip_prefix(program)?.trim().to_owned()));
    calls.filter(|call| !call.starts_with("--version")).collect()
}

#[test]
fn prebuild_script_runs_before_installation() {
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
fn variable_ci_is_set_only_for_installations_of_pnpm_and_yarn() {
    let say = "echo \"$* CI=${CI-none}\"";
    let package = r#"{"scripts":{"build":"a"},"dependencies":{"x":"1"}}"#;
    for (lock, program, install) in [
        ("package-lock.json", "npm", "ci --include=dev --no-audit --no-fund --ignore-scripts CI=none"),
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
fn yarn_from_2_on_installs_into_node_modules() {
    let say = "[ \"$1\" != --version ] || { echo 4.1.0; exit; }\necho \"linker=${YARN_NODE_LINKER-none} cache=${YARN_CACHE_FOLDER-none}\"";
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
fn development_packages_stay_if_project_asks_for_them() {
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
fn missing_node_version_is_warned_about() {
    let Some(real) = crate::buildpack::script_tests::installed("node") else { return };
    let fits = |wanted: &str| {
        let project = Project::new(&[("package.json", &format!(r#"{{"engines":{{"node":{wanted}}}}}"#))]);
        let real = real.display();
        project.program("node", &format!("[ \"$1\" != --version ] || {{ echo v18.19.1; exit; }}\nexec '{real}' \"$@\""));
        project.program("npm", "");
        let output = project.compiled("node", &[]);
        let warning = output.lines().any(|line| line.contains("requests node ") && line.ends_with("this server has v18.19.1."));
        assert!(warning || !output.contains("requests node"), "{output}");
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
fn corepack_uses_the_registry_of_npm() {
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
    // With npm's public registry, corepack keeps its own choice, such as yarn's registry for yarn.
    assert_eq!(asked("echo https://registry.npmjs.org/", &[]), "nowhere");
    assert_eq!(asked("echo undefined", &[]), "nowhere");
    assert_eq!(asked("exit 1", &[]), "nowhere");
}

/// Compiles a project with fake package managers of these versions. Returns the output, and the calls that install packages, without
/// the options of these calls.
fn managed(files: &[(&str, &str)], programs: &[(&str, &str)]) -> (String, Vec<String>) {
    let project = Project::new(files);
    project.program("node", NODE);
    // Fake programs hide the package managers of the machine.
    for name in ["npm", "pnpm", "yarn", "corepack"] {
        let version = programs.iter().find(|(program, _)| *program == name).map(|(_, version)| *version);
        let version = version.unwrap_or("0.0.0");
        project.program(name, &format!("[ \"$1\" != --version ] || echo {version}"));
    }
    let output = project.compiled("node", &[]);
    let calls = project.calls().into_iter().filter(|call| call.contains(" install") || call.contains(" ci "));
    (output, calls.map(|call| call.split(" -").next().unwrap().to_owned()).collect())
}

#[test]
fn several_lock_files_are_named_with_the_used_file() {
    let package = r#"{"dependencies":{"x":"1"}}"#;
    let locks = [("package-lock.json", "{}"), ("yarn.lock", "")];
    let (output, calls) = managed(&[&[("package.json", package)][..], &locks].concat(), &[]);
    assert!(output.contains(" !     The project has yarn.lock and package-lock.json; yarn.lock is used."), "{output}");
    assert_eq!(calls, ["yarn install"]);

    let package = r#"{"dependencies":{"x":"1"},"packageManager":"npm@10.2.0"}"#;
    let (output, calls) = managed(&[&[("package.json", package)][..], &locks].concat(), &[("npm", "10.2.0")]);
    assert!(output.contains("package-lock.json is used"), "{output}");
    assert_eq!(calls, ["npm ci"]);
}

#[test]
fn package_manager_of_package_json_is_used_or_warned_about() {
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        // The lock file belongs to another package manager.
        (
            "pnpm@9.1.0",
            "package-lock.json",
            &[],
            "npm ci",
            "names pnpm@9.1.0 in packageManager, but the project has no lock file of pnpm@9.1.0: npm",
        ),
        ("pnpm@9", "package-lock.json", &[], "npm ci", "names pnpm@9 in packageManager"),
        // The server's program has the requested version, or corepack installs this version.
        ("pnpm@9.1.0+sha512.ab", "pnpm-lock.yaml", &[("pnpm", "9.1.0")], "pnpm install", ""),
        ("pnpm@9", "pnpm-lock.yaml", &[("pnpm", "9.1.0")], "pnpm install", ""),
        ("pnpm@9.1.0", "pnpm-lock.yaml", &[("pnpm", "8.15.1")], "corepack pnpm install", ""),
        ("yarn@4.1.0", "yarn.lock", &[("yarn", "1.22.22")], "corepack yarn install", ""),
        // corepack does not support version ranges, and npm is part of node. In both cases, the server's program is used with a warning.
        (
            "pnpm@9",
            "pnpm-lock.yaml",
            &[("pnpm", "8.15.1")],
            "pnpm install",
            "names pnpm 9 in packageManager, but this server has pnpm 8.15.1.",
        ),
        (
            "npm@10.2.0",
            "package-lock.json",
            &[("npm", "9.2.0")],
            "npm ci",
            "names npm 10.2.0 in packageManager, but this server has npm 9.2.0.",
        ),
    ];
    for (manager, lock, programs, call, warning) in cases {
        let package = format!(r#"{{"dependencies":{{"x":"1"}},"packageManager":"{manager}"}}"#);
        let (output, calls) = managed(&[("package.json", &package), (lock, "{}")], programs);
        assert_eq!(calls, [*call], "{manager} {lock}: {output}");
        assert!(
            output.contains(warning) && (!warning.is_empty() || !output.contains("packageManager")),
            "{manager} {lock}: {output}"
        );
    }
}

#[test]
fn lock_file_of_unsupported_tool_is_named() {
    let (output, _) = managed(&[("package.json", r#"{"dependencies":{"x":"1"}}"#), ("bun.lock", "")], &[]);
    assert!(output.contains("bun.lock is not used"), "{output}");
}

#[test]
fn npm_packages_are_restored_and_their_install_scripts_run_again() {
    let package = r#"{"dependencies":{"x":"1"}}"#;
    for (lock, scripts) in
        [(r#"{"lockfileVersion":3}"#, false), (r#"{"lockfileVersion":3,"x":{"hasInstallScript": true}}"#, true)]
    {
        let project = Project::new(&[("package.json", package), ("package-lock.json", lock)]);
        project.program("node", NODE).program("npm", "[ \"$1\" != ci ] || mkdir -p node_modules/x");
        project.compiled("node", &[]);
        std::fs::remove_dir_all(project.app("node_modules")).unwrap();
        let output = project.compiled("node", &[]);
        assert!(output.contains("node_modules restored") && project.app("node_modules/x").is_dir(), "{output}");
        let verbs: Vec<String> = verbs(&project, "npm").iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(verbs, if scripts { vec!["ci", "rebuild", "rebuild"] } else { vec!["ci"] });
    }
}

#[test]
fn npm_packages_with_failing_optional_scripts_are_installed_as_a_whole() {
    let lock = r#"{"lockfileVersion":3,"x":{"hasInstallScript":true}}"#;
    let project = Project::new(&[("package.json", r#"{"dependencies":{"x":"1"}}"#), ("package-lock.json", lock)]);
    project.program("node", NODE).program("npm", "mkdir -p node_modules; [ \"$1\" != rebuild ]");
    project.compiled("node", &[]);
    let calls = verbs(&project, "npm");
    assert_eq!(calls.last().unwrap(), "ci --include=dev --no-audit --no-fund");
    assert!(!project.temp.path().join("cache/node_modules/key").exists());
}

#[test]
fn single_page_site_gets_hint_for_deep_links() {
    let package = r#"{"scripts":{"build":"vite build"}}"#;
    let site = |files: &[(&str, &str)]| {
        let project = Project::new(&[&[("package.json", package)][..], files].concat());
        project.program("node", NODE).program("npm", "");
        project.compiled("static", &[])
    };
    let line = r#"{"root": "dist", "routes": {"/**": "index.html"}}"#;
    assert!(site(&[("dist/index.html", "")]).contains(line));
    assert!(!site(&[("dist/index.html", ""), ("dist/about.html", "")]).contains("static.json"));
    assert!(!site(&[("dist/index.html", ""), ("static.json", line)]).contains(line));
}

#[test]
fn files_of_other_hosting_services_are_warned_about() {
    let project = Project::new(&[("index.html", ""), ("_redirects", "/* /index.html 200\n"), ("_headers", "")]);
    let output = project.compiled("static", &[]);
    for warning in ["_redirects has no effect here: use \"routes\"", "_headers has no effect here: use \"headers\""] {
        assert!(output.contains(warning), "{output}");
    }
}

#[test]
fn development_packages_of_npm_are_removed_by_the_lock_file() {
    let Some(node) = crate::buildpack::script_tests::installed("node") else { return };
    let lock = r#"{"lockfileVersion":3,"packages":{"":{},"node_modules/a":{},"node_modules/b":{"dev":true},
        "node_modules/@s/c":{"dev":true},"node_modules/a/node_modules/d":{"dev":true},"node_modules/e":{"devOptional":true},
        "../cache/node_modules/x":{"dev":true},"libs/f":{"dev":true},"node_modules/f":{"dev":true,"link":true}}}"#;
    let package = r#"{"devDependencies":{"b":"1"}}"#;
    let project = Project::new(&[
        ("package.json", package),
        ("package-lock.json", lock),
        ("libs/f/x", ""),
        ("../cache/node_modules/x/y", ""),
    ]);
    project.program("node", &format!("[ \"$1\" != --version ] || {{ echo v18.19.0; exit; }}\nexec '{}' \"$@\"", node.display()));
    let install = "[ \"$1\" = ci ] || exit 0\nmkdir -p node_modules/a/node_modules/d node_modules/b node_modules/@s/c node_modules/e node_modules/.bin\n\
                   ln -s ../libs/f node_modules/f; ln -s ../b node_modules/.bin/b; ln -s ../a node_modules/.bin/a";
    project.program("npm", install);
    project.compiled("node", &[]);
    let mut names: Vec<String> = walkdir::WalkDir::new(project.app("node_modules"))
        .into_iter()
        .map(|entry| entry.unwrap().path().strip_prefix(project.app("node_modules")).unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["", ".bin", ".bin/a", "a", "a/node_modules", "e"]);
    assert!(project.app("libs/f/x").is_file() && project.temp.path().join("cache/node_modules/x/y").is_file());
}
