//! Tests of layouts: parsing, the search for the entry of a path, and the differences on the disk.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::{
    host::root::Root,
    model::{ReleaseId, Slot},
};

#[test]
fn standard_layout_names_the_paths_of_the_code() {
    let layout = Layout::standard().unwrap();
    let paths = Root::new("/r").environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
    let used = [
        ("source", paths.source()),
        ("build", paths.build()),
        ("cache", paths.cache()),
        ("releases", paths.releases()),
        ("deploy", paths.deploy()),
        ("current", paths.current()),
        ("run", paths.run()),
        ("blue", paths.slot(Slot::Blue)),
        ("green", paths.slot(Slot::Green)),
        ("data", paths.data()),
        ("archives", paths.archives()),
        ("points", paths.points()),
        ("restored", paths.restored()),
        ("restoring", paths.restoring()),
        ("custom", paths.custom()),
        ("editing", paths.editing()),
        ("data_copy", paths.data_copy()),
        ("data_copy_note", paths.data_copy_note()),
        ("copies", paths.copies()),
        ("deployments", paths.deployments()),
        ("log", paths.log()),
        ("metadata", paths.metadata()),
        ("generated", paths.secrets()),
    ];
    for (role, path) in used {
        let place = layout.entries.iter().find(|place| place.role == role).unwrap_or_else(|| panic!("no entry {role}"));
        assert_eq!(paths.path().join(&place.path), path, "{role}");
    }
    // The layout names the directories of release files, not the files themselves.
    let release = ReleaseId::new(jiff::Timestamp::UNIX_EPOCH);
    for path in [paths.archive(release), paths.manifest(release), paths.tree(release)] {
        let parent = path.parent().unwrap().strip_prefix(paths.path()).unwrap();
        assert!(layout.entries.iter().any(|place| Path::new(&place.path) == parent), "{}", path.display());
    }
}

#[test]
fn entry_of_a_path_is_found_by_pattern_and_tree() {
    let layout = Layout::standard().unwrap();
    for (path, role, inside) in [
        ("", "root", false),
        ("state/pull_ed25519_key", "keys", false),
        ("lib/0.1.0/hooks/pre-receive", "lib", true),
        ("projects", "projects", false),
        ("projects/shop", "project", false),
        ("projects/shop/git/project.git/config", "repositories", true),
        ("projects/shop/production", "environment", false),
        ("projects/shop/production/deployments/x/journal.jsonl", "journal", false),
        ("projects/shop/production/deploy/current", "current", false),
        ("projects/shop/production/deploy/x/bin", "installed", true),
        ("projects/shop/production/generated.json", "generated", false),
        ("projects/shop/production/pins.json", "records", false),
    ] {
        let found = layout.entry(Path::new(path)).map(|(entry, inside)| (entry.role.as_str(), inside));
        assert_eq!(found, Some((role, inside)), "{path}");
    }
    for path in ["other", "state/other", "projects/shop/production/deployments/x/other", "projects/shop/production/releases/x"] {
        assert_eq!(layout.entry(Path::new(path)), None, "{path}");
    }
}

#[test]
fn difference_from_the_layout_is_reported() {
    let text = "layout: x\nplaces:\n\
                - {role: a, path: a, kind: directory, owner: server, mode: \"0755\", made: environment}\n\
                - {role: b, path: a/b, kind: link, owner: server, made: deployment}\n\
                - {role: c, path: c, kind: file, owner: run, mode: \"0600\", made: environment}\n";
    let layout = Layout::parse("x.yaml", text.as_bytes()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let viewer = Viewer { uid: rustix::process::geteuid().as_raw(), system: false };
    let find = || layout.findings(directory.path(), viewer).join("\n");
    let at = |name: &str| directory.path().join(name);
    assert_eq!(find().lines().count(), 2, "a link that a deployment creates may be missing: {}", find());
    fs::create_dir(at("a")).unwrap();
    fs::write(at("c"), "").unwrap();
    for (path, mode) in [("a", 0o755), ("c", 0o600)] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(find(), "");
    fs::set_permissions(at("c"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(find().contains("c has the mode 0644 (expected 0600); run: chmod 0600 "), "{}", find());
    fs::remove_file(at("c")).unwrap();
    symlink("/etc/passwd", at("c")).unwrap();
    assert!(find().contains("c is not a file"), "{}", find());
    fs::create_dir(at("a/b")).unwrap();
    assert!(find().contains("a/b is not a link"), "{}", find());
    let stranger = Viewer { uid: viewer.uid + 1, system: true };
    assert!(layout.findings(directory.path(), stranger).iter().any(|line| line.contains("(expected the server user)")));
}

#[test]
fn invalid_layout_is_refused() {
    let place = |text: &str| format!("layout: x\nplaces:\n- {{role: a, owner: run, made: environment, {text}}}\n");
    for (text, says) in [
        (place("path: ../a, kind: directory, mode: \"0755\""), "not below the environment's directory"),
        (place("path: /a, kind: directory, mode: \"0755\""), "not below the environment's directory"),
        (place("path: ../a, kind: link").replace("places:", "places: []\nproject:"), "not below the project's directory"),
        (place("path: ../a, kind: link").replace("places:", "places: []\nroot:"), "not below the root directory"),
        (place("path: a, kind: directory"), "has no valid mode"),
        (place("path: a, kind: directory, mode: \"0999\""), "has no valid mode"),
        (place("path: a, kind: link, mode: \"0755\""), "links have no mode"),
        (place("path: a, kind: link, colour: red"), "colour"),
        (place("path: a, kind: link") + "- {role: a, path: b, kind: link, owner: run, made: environment}\n", "is defined twice"),
    ] {
        let error = Layout::parse("x.yaml", text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("x.yaml"), "{text}: {error}");
    }
}
