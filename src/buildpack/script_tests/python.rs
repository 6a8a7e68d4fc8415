//! Python: what is installed from where, and the project's own hooks.

use std::{fs, os::unix::fs::PermissionsExt};

use super::Project;

/// A python that has the version 3.11.2, makes environments whose own python is the machine's, and installs nothing.
const PYTHON: &str = r#"case "$*" in
  *version_info*) echo 3.11.2 ;;
  "-m venv "*) for last; do :; done; mkdir -p "$last/bin" "$last/lib"; ln -s /usr/bin/true "$last/bin/python" ;;
  "-m pip --version") echo "pip 23.0.1 from x" ;;
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
