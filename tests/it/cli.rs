//! The verbs that are not about a single deployment, locally and over ssh.

use crate::harness::{Repo, World, in_one_mode};

in_one_mode!(a_project_from_creation_to_destruction, listings_speak_json, every_command_has_help, further_environments);

fn a_project_from_creation_to_destruction(world: &World) {
    let created = world.larder(&["project", "create", "shop", "--mode", "cooking", "--domain", "www.example.com"]);
    created.exits(0).says(&format!("ssh://larder@HOST:{}/shop", world.ssh_port())).says("shop.localhost");
    world.larder(&["project", "create", "shop"]).exits(3).says("exists already");
    world.larder(&["project:create", "blog"]).exits(0);
    world.larder(&["project", "list"]).says("shop/production").says("blog/production");
    world.larder(&["releases", "shop"]).exits(0);
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.larder(&["project", "info", "shop"]).says("v1").says("www.example.com");
    let answer = crate::harness::http::get(world.http_port(), "www.example.com", "/").unwrap();
    answer.holds("version one");
    world.larder(&["project", "destroy", "shop"]).exits(2).says("--confirm shop");
    world.larder(&["project", "destroy", "shop", "--confirm", "blog"]).exits(2);
    world.serves("shop", "version one");
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).exits(0);
    assert_eq!(world.application("shop"), Vec::<i32>::new());
    assert!(!world.root().join("projects/shop/production").exists(), "its directory is still there");
    world.larder(&["project", "info", "shop"]).exits(4);
    assert_eq!(world.get("shop", "/").status, 404);
    // The name is free again, and nothing of the old project is in the new one.
    world.project("shop");
    assert_eq!(repo.live(), None);
    repo.push().accepted().says("v1 is live");
    world.serves("shop", "version one");
}

fn listings_speak_json(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let commit = repo.head();
    let json = |words: &[&str]| world.ssh("alice", words).json();
    let releases = json(&["releases", "shop", "--json"]);
    assert_eq!(
        (&releases[0]["commit"], &releases[0]["live"], &releases[0]["by"]),
        (&commit.into(), &true.into(), &"alice".into())
    );
    let processes = json(&["ps", "shop", "--json"]);
    assert_eq!((&processes[0]["process"], &processes[0]["active"]), (&"web.1".into(), &true.into()));
    assert_eq!(json(&["status", "--json"])["environments"][0]["state"], "live");
    assert_eq!(json(&["project", "list", "--json"])[0]["project"]["name"], "shop");
    assert_eq!(json(&["user", "list", "--json"])[0]["name"], "alice");
    assert_eq!(json(&["whoami", "--json"])["name"], "alice");
    assert!(json(&["doctor", "--json"]).as_array().unwrap().len() > 5);
    // The same words by option, with a colon, and on the server itself.
    assert_eq!(json(&["releases", "-a", "shop", "--json"]), releases);
    assert_eq!(world.larder(&["--json", "releases", "--app", "shop"]).json(), releases);
    assert_eq!(world.larder(&["releases", "shop", "--json"]).json(), releases);
}

fn every_command_has_help(world: &World) {
    let help = world.larder(&["--help"]);
    let verbs: Vec<_> = help.ok().lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    for verb in [
        "serve",
        "quickstart",
        "project",
        "user",
        "key",
        "deploy",
        "plan",
        "releases",
        "ps",
        "logs",
        "run",
        "restart",
        "status",
        "doctor",
        "completions",
    ] {
        assert!(verbs.contains(&verb), "{verb} is not in {verbs:?}");
        let help = world.larder(&[verb, "--help"]);
        assert!(help.ok().len() > 80, "{help}");
    }
    for hidden in ["worker", "server", "hook", "static-server"] {
        assert!(!verbs.contains(&hidden), "{hidden} is nothing to type");
    }
    world.larder(&["completions", "bash"]).says("larder");
    world.larder(&["relases", "shop"]).exits(2).says("releases");
    world.larder(&["--version"]).says(env!("CARGO_PKG_VERSION"));
}

fn further_environments(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging"]).exits(3).says("--branch");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "stable");
    repo.push().accepted();
    let stable = repo.head();
    let next = repo.page("unstable");
    repo.push_as(&["HEAD:refs/heads/next"]).accepted().says("staging--shop.localhost");
    world.serves("shop", "stable");
    world.serves("staging--shop", "unstable");
    assert_eq!(repo.live(), Some(stable));
    assert_eq!(repo.ls_remote().get("refs/heads/next"), Some(&next));
    world.larder(&["releases", "shop/staging"]).says("v1");
    world.larder(&["ps", "shop/nowhere"]).exits(4).says("production, staging");
}
