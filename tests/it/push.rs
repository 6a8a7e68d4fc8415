//! Successful pushes and their output.

use crate::harness::{Repo, World, cli::Output, in_each_mode, in_one_mode, output::normalised};

in_each_mode!(first_push_goes_live_and_second_switches, clone_gets_live_commit);
in_one_mode!(output_of_push_shows_each_phase, clone_works_with_every_protocol_and_depth);

fn first_push_goes_live_and_second_switches(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let first = repo.head();
    repo.push().accepted();
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(first));
    world.is_consistent("shop");
    let visitor = world.visitor("shop");
    let second = repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(second));
    let seen = visitor.satisfied();
    assert!(seen.pages.len() <= 2, "the page flickered: {:?}", seen.pages);
    world.is_consistent("shop");
    assert_eq!(world.outcomes("shop"), [Some("live".into()), Some("live".into())]);
}

fn clone_gets_live_commit(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let copy = world.directory().join("clones/copy");
    repo.git(&["clone", "--quiet", &repo.url(), copy.to_str().unwrap()]).ok();
    assert!(std::fs::read_to_string(copy.join("index.html")).unwrap().contains("version one"));
    let second = repo.page("version two");
    repo.push().accepted();
    let fetched = Output::of(repo.command().current_dir(&copy).args(["pull", "--quiet"]));
    fetched.ok();
    assert_eq!(Output::of(repo.command().current_dir(&copy).args(["rev-parse", "HEAD"])).ok().trim(), second);
}

fn output_of_push_shows_each_phase(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let push = repo.push();
    push.accepted();
    let said = normalised(&push.remote().join("\n"));
    let expected = [
        "-----> Deploying SHORT of main to shop/production",
        "-----> gather: TIME",
        "-----> build: TIME",
        "-----> bundle: TIME",
        "-----> deploy: TIME",
        "-----> v1 is live: http://shop.localhost:PORT",
    ];
    let mut lines = said.lines();
    for line in expected {
        assert!(lines.any(|said| said == line), "{line:?} is missing, or in another place, in\n{said}");
    }
    for line in said.lines() {
        assert!(line.starts_with("-----> ") || line.starts_with("       ") || line.starts_with(" !     "), "{line:?} in\n{said}");
    }
    repo.page("version two");
    let push = repo.push();
    push.accepted().says("v2 is live").says("to go back to v1: larder rollback");
}

fn clone_works_with_every_protocol_and_depth(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("photo", vec![b'x'; 100_000]);
    repo.commit("a second commit");
    repo.push().accepted();
    for (number, options) in [
        &["-c", "protocol.version=0", "clone"][..],
        &["-c", "protocol.version=1", "clone"],
        &["-c", "protocol.version=2", "clone"],
        &["clone", "--depth", "1"],
        &["clone", "--filter=blob:none"],
    ]
    .iter()
    .enumerate()
    {
        let copy = world.directory().join(format!("clones/copy-{number}"));
        let mut clone = repo.command();
        clone.args(*options).args(["--quiet", &repo.url(), copy.to_str().unwrap()]);
        Output::of(&mut clone).ok();
        assert_eq!(std::fs::read(copy.join("photo")).unwrap().len(), 100_000, "{options:?}");
        let commits = Output::of(repo.command().current_dir(&copy).args(["rev-list", "--count", "HEAD"]));
        let expected = if options.contains(&"--depth") { "1" } else { "2" };
        assert_eq!(commits.ok().trim(), expected, "{options:?}");
    }
}
