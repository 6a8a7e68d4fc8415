//! Tests of the Python buildpack: the sources of packages, Poetry, restored packages, the removal of build files, and the project's hooks.

use std::{fs, os::unix::fs::PermissionsExt};

use super::Project;

/// A fake python of version 3.11.2 that creates environments and installs nothing.
const PYTHON: &str = r#"case "$*" in
  *version_info*) echo 3.11.2 23.0.1 ;;
  "-m venv "*) for last; do :; done; mkdir -p "$last/bin" "$last/lib"; ln -s /usr/bin/true "$last/bin/python" ;;
  "-") exec /usr/bin/python3 - ;;
esac"#;

fn project(files: &[(&str, &str)]) -> Project {
    let project = Project::new(files);
    project.program("python3", PYTHON);
    project
}

#[test]
fn project_hooks_run_around_installation() {
    let project = project(&[
        ("requirements.txt", "x\n"),
        ("bin/pre_compile", "#!/bin/sh\necho first\n"),
        ("bin/post_compile", "#!/bin/sh\necho the end >made\necho the end\n"),
    ]);
    let output = project.compiled("python", &[]);
    assert!(!output.contains("first") && !project.app("made").exists(), "the hooks are not executable: {output}");
    for hook in ["bin/pre_compile", "bin/post_compile"] {
        fs::set_permissions(project.app(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = project.compiled("python", &[]);
    let at = |text: &str| output.find(text).unwrap_or_else(|| panic!("{text} is not in {output}"));
    assert!(at("first") < at("packages restored") && at("packages restored") < at("the end"), "{output}");
    assert!(project.app("made").is_file());
}

#[test]
fn application_without_build_system_gets_its_dependencies() {
    if super::installed("python3").is_none() {
        return;
    }
    let pip = |pyproject: &str| {
        let project = project(&[("pyproject.toml", pyproject), ("one/a.py", ""), ("two/b.py", "")]);
        // The fake pip prints the file with its requirements.
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
fn installation_litter_is_removed_and_project_files_stay() {
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
fn poetry_project_that_is_a_package_is_installed() {
    for (status, said) in [(0, false), (1, true)] {
        let project = project(&[("poetry.lock", ""), ("pyproject.toml", "")]);
        project.program("poetry", &format!("case $* in *--only-root*) exit {status} ;; esac"));
        let output = project.compiled("python", &[]);
        let calls: Vec<String> = project.calls().into_iter().filter(|call| call.starts_with("poetry ")).collect();
        assert_eq!(calls, ["poetry install --only main --no-root", "poetry install --only-root"]);
        assert_eq!(output.contains("is not a package"), said, "{output}");
    }
}

#[test]
fn packages_are_restored_only_if_all_come_from_an_index() {
    for (requirements, restored) in [
        (
            "flask>=2\n# a comment\n--index-url https://pypi.example/simple\nx[y]==1 ; python_version > '3' --hash=sha256:ab\n",
            true,
        ),
        ("flask==2 \\\n    --hash=sha256:ab\n", true),
        ("libs/mylib\n", false),
        (".\n", false),
        ("-e .\n", false),
        ("-r base.txt\n", false),
        ("--find-links wheels\nx\n", false),
        ("mylib-1.0.tar.gz\n", false),
        ("x @ https://example.com/x.zip\n", false),
        ("git+https://example.com/x@main\n", false),
    ] {
        let project = project(&[("requirements.txt", requirements)]);
        project.compiled("python", &[]);
        let output = project.compiled("python", &[]);
        assert_eq!(output.contains("packages restored"), restored, "{requirements}: {output}");
    }
}

#[test]
fn changed_setting_of_pip_installs_again() {
    let project = project(&[("requirements.txt", "flask\n")]);
    project.compiled("python", &[]);
    assert!(project.compiled("python", &[]).contains("packages restored"));
    assert!(!project.compiled("python", &[("PIP_INDEX_URL", "https://pypi.example/simple")]).contains("packages restored"));
}

#[test]
fn several_lock_files_are_named_with_the_used_file() {
    let project = project(&[("requirements.txt", "flask\n"), ("Pipfile.lock", "{}"), ("Pipfile", "")]);
    let output = project.compiled("python", &[]);
    assert!(output.contains(" !     The project has requirements.txt and Pipfile.lock; requirements.txt is used."), "{output}");
}
