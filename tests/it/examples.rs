//! Pushes every application in `examples/` whose runtime is installed.

use std::path::{Path, PathBuf};

use crate::{
    harness::{Push, Repo, World, installed},
    mirrors::Mirror,
};

macro_rules! examples {
    ($($test:ident: $name:literal needs $($program:literal),*;)+) => {
        $(#[test]
        fn $test() {
            let programs: &[&str] = &[$($program),*];
            if programs.iter().all(|program| installed(program).is_some()) {
                is_live_twice($name);
            }
        })+

        #[test]
        fn every_example_has_a_test() {
            // The suite `django` has the tests of the example with databases.
            let known = [$($name),+, "django-postgres"];
            for name in crate::harness::state::names(&directory("")) {
                assert!(known.contains(&name.as_str()), "examples/{name} has no test");
            }
        }
    };
}

examples! {
    go: "go" needs "go";
    java: "java" needs "java", "mvn";
    node: "node" needs "node", "npm";
    php: "php" needs "php";
    procfile: "procfile" needs "python3";
    python: "python" needs "python3";
    python_plain: "python-plain" needs "python3";
    ruby: "ruby" needs "ruby", "bundle";
    rust: "rust" needs "cargo";
    static_site: "static" needs "git";
}

fn is_live_twice(name: &str) {
    let Some(world) = World::any() else { return };
    world.project("shop");
    let repo = Repo::new(&world, "shop");
    copy(&directory(name), repo.path());
    repo.commit(name);
    let mut pushed = repo.push();
    // If a package registry cannot be reached, the build says so. Then the operator names a mirror, as in a closed network, and the same
    // commit is pushed again.
    let mut mirror = None;
    if is_unreachable(&pushed) {
        mirror = Mirror::of(name, &world);
        let Some(mirror) = &mirror else {
            eprintln!("SKIPPED: examples/{name} needs a package registry that cannot be reached, and there is no mirror of it");
            return world.end();
        };
        world.add_settings(&format!("env:\n  {}: {}\n", mirror.variable, mirror.address()));
        pushed = repo.push();
    }
    pushed.accepted();
    let answer = world.get("shop", "/");
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert!(!answer.body.is_empty());
    // The second build uses the caches of the first build.
    repo.write("a-new-file", "x");
    repo.commit("a new file");
    repo.push().accepted().says("v2 is live");
    assert_eq!(world.get("shop", "/").status, 200);
    if let Some(mirror) = mirror {
        assert!(mirror.was_asked(), "the build did not use the mirror");
    }
    world.end();
}

fn is_unreachable(pushed: &Push) -> bool {
    pushed.0.status != 0 && pushed.0.stderr.contains("cannot be reached from this server")
}

/// Returns the directory of an example.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

pub(crate) fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
