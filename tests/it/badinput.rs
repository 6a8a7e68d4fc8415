//! Refusals of malformed files. The reason names the file, the line, the expected value and a hint. A refusal changes nothing.

use std::{fs, path::Path};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, state::names};

in_each_mode!(malformed_file_is_refused_with_its_line, wrong_recipe_is_refused_before_objects_are_kept);
in_one_mode!(
    every_malformed_fixture_is_refused_by_a_push,
    wrong_name_is_refused_with_the_rule,
    push_without_application_is_refused
);

fn malformed_file_is_refused_with_its_line(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let good = repo.head();
    repo.push().accepted();
    let before = world.snapshot("shop");
    // Each case has a file, its text, the reason in git's line for the ref, and further output for the client.
    let cases: [(&str, &str, &str, &str); 9] = [
        (
            "larder.yml",
            "env:\n  A: 1\nhelth:\n  path: /\n",
            "gather: larder.yml:3: unknown key \"helth\"",
            "did you mean \"health\"?",
        ),
        ("larder.yml", "scale:\n  web: many\n", "gather: larder.yml:2: ", "expected"),
        ("larder.yml", "env: [1\n", "gather: larder.yml:1: this is not YAML", "check the indentation"),
        (
            "larder.yml",
            "env:\n  A: 1\nenv:\n  B: 2\n",
            "gather: larder.yml:3: the key \"env\" is repeated",
            "remove this key or the same key on line 1",
        ),
        ("larder.yml", "env:\n  A: &x 1\n", "gather: larder.yml:2: ", "aliases are not supported"),
        ("Procfile", "web: ./run\nthis is no process\n", "gather: Procfile:2: ", "expected a line such as `web: python app.py`"),
        (
            "Procfile",
            "web: ./run\nweb: ./other\n",
            "gather: Procfile:2: the process \"web\" is defined twice",
            "remove or rename this process, or the process on line 1",
        ),
        ("app.json", "{\n  \"env\": {\n}", "gather: app.json:3: this is not JSON", "double quotes"),
        ("app.json", "{\"buildpacks\": 3}", "gather: app.json: /buildpacks", "expected"),
    ];
    for (file, text, short, screen) in cases {
        repo.write(file, text);
        repo.commit("broken");
        let push = repo.push();
        push.rejected_with(short).rejected_with("; v1 still live").says(screen).says("Nothing was changed");
        repo.remove(file);
        assert_eq!(world.snapshot("shop"), before, "{file} {text:?}");
    }
    assert_eq!(repo.live(), Some(good));
    world.serves("shop", "version one");
    assert_eq!(world.outcomes("shop").len(), 1, "a deployment was started for a malformed recipe");
    // All problems of a file are shown, not only the first problem.
    repo.write("larder.yml", "helth: 1\nscal: 2\n");
    repo.commit("two mistakes");
    repo.push().rejected_with("and 1 more").says("larder.yml:2");
    // Without the mistake, the next push is accepted.
    repo.remove("larder.yml");
    repo.page("version two");
    repo.push().accepted().says("v2 is live");
}

/// Returns the number of files in the repository's object directory.
fn objects(world: &World) -> usize {
    let directory = world.root().join("projects/shop/git/project.git/objects");
    fs::read_dir(directory).unwrap().map(|entry| fs::read_dir(entry.unwrap().path()).unwrap().count()).sum()
}

fn wrong_recipe_is_refused_before_objects_are_kept(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let (good, before, kept) = (repo.head(), world.snapshot("shop"), objects(world));
    repo.write("larder.yml", "helth: 1\n");
    repo.write("new", "not seen before");
    let bad = repo.commit("broken");
    let wrong = "gather: larder.yml:1: unknown key \"helth\"; v1 still live";
    repo.push().rejected_with(wrong).says("did you mean \"health\"?").says("Nothing was changed. v1 is still live.");
    assert_eq!(objects(world), kept, "objects of a refused push are kept");
    assert_eq!(world.snapshot("shop"), before);
    // Refs that are refused leave no objects either.
    repo.push_as(&["HEAD:refs/notes/x"]).rejected_with("only branches and tags");
    assert_eq!(objects(world), kept);
    // If one ref of an atomic push is refused, the other ref is refused, too.
    let both = ["HEAD:refs/heads/main", "HEAD:refs/heads/feature"];
    let push = repo.push_as(&["--atomic", both[0], both[1]]);
    push.rejected_with("").says(wrong).says("another ref of this atomic push was refused");
    // In a push that is not atomic, each ref is decided separately. The stored branch is complete.
    repo.push_as(&both).rejected_with("helth").says("feature is stored and not deployed");
    assert_eq!(repo.ls_remote()["refs/heads/feature"], bad);
    let copy = world.directory().join("clones/copy");
    repo.git(&["clone", "--quiet", "--branch", "feature", &repo.url(), copy.to_str().unwrap()]).ok();
    assert_eq!(world.outcomes("shop").len(), 1);
    // A stored branch gets the same error when it is deployed.
    world.larder(&["deploy", "shop", "--ref", "feature"]).exits(1).says("gather: larder.yml:1: unknown key \"helth\"");
    assert_eq!(repo.live(), Some(good));
    repo.remove("larder.yml");
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
}

/// For each fixture, a push reports the errors that the parser reports.
fn every_malformed_fixture_is_refused_by_a_push(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let good = repo.head();
    repo.push().accepted();
    let before = world.snapshot("shop");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/invalid");
    let mut pushed = 0;
    for name in names(&fixtures) {
        let file = match name.split(['-', '.']).next().unwrap() {
            _ if name.ends_with(".errors") => continue,
            "recipe" => "larder.yml",
            "procfile" => "Procfile",
            "app" => "app.json",
            _ => continue,
        };
        repo.write(file, fs::read(fixtures.join(&name)).unwrap());
        repo.commit(&name);
        let push = repo.push_as(&["--force", "HEAD:refs/heads/main"]);
        let errors = fs::read_to_string(fixtures.join(format!("{name}.errors"))).unwrap();
        for error in errors.lines().take(5) {
            // Only file, line and the beginning of the message are compared, because a long line may be cut.
            let start: String = error.chars().take(60).collect();
            assert!(push.remote().iter().any(|line| line.contains(&start)), "{name}: {start:?} is not in {}", push.0);
        }
        let place = errors.split(' ').next().unwrap();
        push.rejected_with(&format!("gather: {place}"));
        assert!(push.rejected().len() < 300, "{name}: git's line is too long: {}", push.0);
        repo.git(&["reset", "--quiet", "--hard", &good]).ok();
        pushed += 1;
    }
    assert!(pushed > 50, "only {pushed} fixtures");
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(repo.live(), Some(good));
}

fn wrong_name_is_refused_with_the_rule(world: &World) {
    for (words, says) in [
        (&["project", "create", "My_Shop"][..], "lower-case"),
        (&["project", "create", "-rf"], "--remote"),
        (&["project", "create", "../x"], "lower-case"),
        (&["project", "create", "shop", "--branch", "a..b"], "branch"),
        (&["project", "create", "shop", "--mode", "cook"], "cooking"),
        (&["project", "create", "shop", "--domain", "no domain"], "domain"),
        (&["user", "add", "Bob!"], "user name"),
        (&["user", "add", "bob", "--key", "ssh-rsa nonsense"], "public key"),
        (&["user", "add", "bob", "--key-file", "/nowhere"], "/nowhere"),
        (&["ps", "shop", "--scale", "web"], "TYPE=NUMBER"),
        (&["projekt", "list"], "project"),
        (&["releases"], "no project is named"),
    ] {
        let output = world.larder(words);
        assert!(matches!(output.status, 2 | 4 | 5), "{output}");
        output.says(says);
    }
    assert_eq!(world.larder(&["project", "list", "--json"]).json(), serde_json::json!([]));
    world.larder(&["releases", "shop"]).exits(4).says("no project shop");
}

fn push_without_application_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("README", "nothing to run\n");
    repo.commit("no application");
    repo.push().rejected_with("build: ").rejected_with("nothing is live yet");
}
