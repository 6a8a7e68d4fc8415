//! Python: what is installed from where, and the project's own hooks.

use std::{fs, os::unix::fs::PermissionsExt};

use super::Project;

/// A python that has the version 3.11.2, makes environments whose own python is the machine's, and installs nothing.
const PYTHON: &str = r#"case "$*" in
  *version_info*) echo 3.11.2 ;;
  "-m venv "*) for last; do :; done; mkdir -p "$last/bin" "$last/lib"; ln -s /usr/bin/true "$last/bin/python" ;;
  "-m pip --version") echo "pip 23.0.1 from x" ;;
  "-") exec /usr/bin/python3 - ;;
esac"#;

fn project(files: &[(&str, &str)]) -> Project {
    let project = Project::new(files);
    project.program("python3", PYTHON);
    project
}

#[test]
fn the_projects_hooks_run_around_the_installation() {
    let project = project(&[
        ("requirements.txt", "x\n"),
        ("bin/pre_compile", "#!/bin/sh\necho first\n"),
        ("bin/post_compile", "#!/bin/sh\necho the end >made\necho the end\n"),
    ]);
    let output = project.compiled("python", &[]);
    assert!(!output.contains("first") && !project.app("made").exists(), "they are not executable: {output}");
    for hook in ["bin/pre_compile", "bin/post_compile"] {
        fs::set_permissions(project.app(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = project.compiled("python", &[]);
    let at = |text: &str| output.find(text).unwrap_or_else(|| panic!("{text} is not in {output}"));
    assert!(at("first") < at("packages restored") && at("packages restored") < at("the end"), "{output}");
    assert!(project.app("made").is_file());
}

#[test]
fn an_application_that_is_no_package_gets_what_it_depends_on() {
    if super::installed("python3").is_none() {
        return;
    }
    let pip = |pyproject: &str| {
        let project = project(&[("pyproject.toml", pyproject), ("one/a.py", ""), ("two/b.py", "")]);
        // What pip gets to read.
        project.program("python3", &PYTHON.replace("esac", "  *\" -r \"*) for last; do :; done; cat \"$last\" ;;\nesac"));
        let output = project.compiled("python", &[]);
        (project.calls().into_iter().filter(|call| call.contains(" install ")).collect::<Vec<_>>(), output)
    };
    let (calls, output) = pip("[project]\nname = \"a\"\ndependencies = [\n  \"flask>=2\", 'x[y]; python_version > \"3\"',\n]\n");
    assert!(calls.len() == 1 && calls[0].contains(" -r /"), "{calls:?}");
    assert!(output.contains("       flask>=2\n       x[y]; python_version > \"3\"\n"), "{output}");
    let (calls, output) = pip("[tool.black]\nline-length = 100\n");
    assert!(calls.is_empty() && output.contains("names no packages"), "{calls:?} {output}");
    let (calls, _) = pip("[build-system]\nrequires = [\"hatchling\"]\n[project]\nname = \"a\"\n");
    assert!(calls.len() == 1 && calls[0].ends_with(" ."), "{calls:?}");
}

#[test]
fn what_an_installation_leaves_behind_goes_and_the_projects_own_stays() {
    let setup = &[("setup.py", ""), ("build/own.py", ""), ("requirements.in", "")];
    let project = project(setup);
    project.program("python3", &PYTHON.replace("esac", "  *\" install \"*) mkdir -p build/lib a.egg-info ;;\nesac"));
    project.compiled("python", &[]);
    assert!(project.app("build/own.py").is_file() && !project.app("a.egg-info").exists());
    fs::remove_dir_all(project.app("build")).unwrap();
    project.compiled("python", &[]);
    assert!(!project.app("build").exists());
}

#[test]
fn poetry_installs_the_project_too_if_it_is_a_package() {
    for (status, said) in [(0, false), (1, true)] {
        let project = project(&[("poetry.lock", ""), ("pyproject.toml", "")]);
        project.program("poetry", &format!("case $* in *--only-root*) exit {status} ;; esac"));
        let output = project.compiled("python", &[]);
        let calls: Vec<String> = project.calls().into_iter().filter(|call| call.starts_with("poetry ")).collect();
        assert_eq!(calls, ["poetry install --only main --no-root", "poetry install --only-root"]);
        assert_eq!(output.contains("is no package"), said, "{output}");
    }
}
