//! Malformed files: file, line, what was expected, and a hint, in git's own line, before anything has changed.

use crate::harness::{Repo, World, in_one_mode};

in_one_mode!(malformed_files_are_named_with_their_line, wrong_names_are_refused_with_the_rule, no_application_at_all);

fn malformed_files_are_named_with_their_line(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let good = repo.head();
    repo.push().accepted();
    let before = world.snapshot("shop");
    let cases: [(&str, &str, &[&str]); 8] = [
        ("larder.yml", "env:\n  A: 1\nhelth:\n  path: /\n", &["gather: larder.yml:3", "helth"]),
        ("larder.yml", "scale:\n  web: many\n", &["larder.yml:2", "many"]),
        ("larder.yml", "env: [1\n", &["larder.yml:"]),
        ("larder.yml", "env:\n  A: 1\nenv:\n  B: 2\n", &["larder.yml:3", "env"]),
        ("larder.yml", "a: &x 1\nb: *x\n", &["larder.yml:"]),
        ("Procfile", "web: ./run\nthis is no process\n", &["Procfile:2"]),
        ("Procfile", "web: ./run\nweb: ./other\n", &["Procfile:2", "web"]),
        ("app.json", "{\"buildpacks\": 3}", &["app.json"]),
    ];
    for (file, text, expected) in cases {
        repo.write(file, text);
        repo.commit("broken");
        let push = repo.push();
        for words in expected {
            push.rejected_with(words);
        }
        push.rejected_with("v1 still live");
        repo.remove(file);
        assert_eq!(world.snapshot("shop"), before, "{file} {text:?}");
    }
    assert_eq!(repo.live(), Some(good));
    // All problems of a file are shown, not only the first.
    repo.write("larder.yml", "helth: 1\nscal: 2\n");
    repo.commit("two mistakes");
    repo.push().rejected_with("and 1 more").says("larder.yml:2");
}

fn wrong_names_are_refused_with_the_rule(world: &World) {
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
        (&["releases"], "which project"),
    ] {
        let output = world.larder(words);
        assert!(matches!(output.status, 2 | 4 | 5), "{output}");
        output.says(says);
    }
    assert_eq!(world.larder(&["project", "list", "--json"]).json(), serde_json::json!([]));
    world.larder(&["releases", "shop"]).exits(4).says("no project shop");
}

fn no_application_at_all(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("README", "nothing to run\n");
    repo.commit("no application");
    repo.push().rejected_with("build: ").rejected_with("nothing is live yet");
}
