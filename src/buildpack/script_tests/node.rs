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
