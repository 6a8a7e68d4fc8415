//! Every application in `examples/` is pushed and answers, where its runtime is installed.

use std::path::Path;

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
                answers($name);
            }
        })+

        #[test]
        fn no_example_is_forgotten() {
            let known = [$($name),+];
            for name in crate::harness::state::names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")) {
                assert!(known.contains(&name.as_str()), "examples/{name} is pushed by no test");
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

fn answers(name: &str) {
    let Some(world) = World::any() else { return };
    world.project("shop");
    let repo = Repo::new(&world, "shop");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name), repo.path());
    repo.commit(name);
    let mut pushed = repo.push();
    // The build itself says so when a package registry is out of reach: that is this machine's network, not the example. Then the
    // operator names a mirror, as one does behind a company's walls, and the same commit is pushed again.
    let mut mirror = None;
    if out_of_reach(&pushed) {
        mirror = Mirror::of(name, &world);
        let Some(mirror) = &mirror else {
            eprintln!("SKIPPED: examples/{name} needs a package registry that this machine does not reach, nor has a mirror of");
            return world.end();
        };
        world.add_settings(&format!("env:\n  {}: {}\n", mirror.variable, mirror.address()));
        pushed = repo.push();
    }
    pushed.accepted();
    let answer = world.get("shop", "/");
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert!(!answer.body.is_empty());
    // Again, with the caches of the first build.
    repo.write("a-new-file", "x");
    repo.commit("a new file");
    repo.push().accepted().says("v2 is live");
    assert_eq!(world.get("shop", "/").status, 200);
    if let Some(mirror) = mirror {
        assert!(mirror.was_asked(), "what was built came from elsewhere");
    }
    world.end();
}

fn out_of_reach(pushed: &Push) -> bool {
    pushed.0.status != 0 && pushed.0.stderr.contains("cannot be reached from this server")
}

fn copy(from: &Path, to: &Path) {
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
