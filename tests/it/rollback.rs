//! Rollbacks: deployments of an older release, without a build and without a copy.

use crate::harness::{
    Repo, World,
    cli::Output,
    faults::{self, Attempt},
    in_each_mode, in_one_mode,
    state::names,
    thorough,
};

in_each_mode!(rollback_goes_back_and_forward_without_building, failure_at_any_step_of_rollback_leaves_nothing);
in_one_mode!(
    rollback_to_unusable_release_is_refused,
    rollback_survives_restart,
    browser_gets_the_page_of_the_older_release_after_rollback,
    killed_rollback_is_finished_or_undone,
    rollback_with_every_step_run_twice_goes_live
);

/// Deploys the releases v1, v2 and v3.
fn three<'w>(world: &'w World, files: &[(&str, &str)]) -> (Repo<'w>, Vec<String>) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    for (path, contents) in files {
        repo.write(path, contents);
    }
    let commits = ["version one", "version two", "version three"].map(|page| {
        let commit = repo.page(page);
        repo.push().accepted();
        commit
    });
    world.serves("shop", "version three");
    (repo, commits.into())
}

/// Python's server answers 304 if its file is not newer than the copy of the browser. The tree of the older release was installed first, but
/// its page must replace the browser's copy of the newer page.
fn browser_gets_the_page_of_the_older_release_after_rollback(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 -m http.server --bind 127.0.0.1 $PORT\n").write("same.txt", "same");
    repo.page("good page");
    repo.push().accepted();
    repo.page("bad page");
    repo.push().accepted();
    // Like a browser, `revisit` sends the date of the copy that `dated` has received.
    let dated = |path: &str| {
        let answer = world.get("shop", path);
        let field = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("last-modified").then(|| value.to_owned())
        };
        let date = answer.head.lines().find_map(field);
        (date.expect("no date"), answer.body)
    };
    let revisit = |path: &str, date: &str| {
        let text =
            format!("GET {path} HTTP/1.1\r\nHost: shop.localhost\r\nIf-Modified-Since: {date}\r\nConnection: close\r\n\r\n");
        crate::harness::http::request(world.http_port(), &text).unwrap()
    };
    let ((bad, page), (same, _)) = (dated("/"), dated("/same.txt"));
    assert!(page.contains("bad page"));
    assert_eq!(revisit("/", &bad).status, 304, "the page did not change");
    for (back, expected) in [(&["rollback", "shop"][..], "good page"), (&["rollback", "shop", "v2"], "bad page")] {
        let (date, _) = dated("/");
        world.larder(back).ok();
        let answer = revisit("/", &date);
        assert_eq!(answer.status, 200, "the browser would keep the page that was left, of {date}: {answer:?} {:?}", dated("/"));
        answer.holds(expected);
    }
    assert_eq!(revisit("/same.txt", &same).status, 304, "what did not change is not sent again");
}

fn rollback(world: &World, words: &[&str]) -> Output {
    world.larder(&[&["rollback", "shop"], words].concat())
}

fn rollback_goes_back_and_forward_without_building(world: &World) {
    let (repo, commits) = three(world, &[]);
    let before = (names(&world.environment("shop").join("deploy")), names(&world.environment("shop").join("releases")));
    let visitor = world.visitor("shop");
    rollback(world, &[]).ok();
    world.serves("shop", "version two");
    assert_eq!(repo.live().as_ref(), Some(&commits[1]), "the branch names what is live");
    // A second rollback goes further back, not to the release that was just left.
    let said = rollback(world, &[]);
    said.says("v5 is live").says("to go back to v4: larder rollback shop v4");
    world.serves("shop", "version one");
    assert_eq!(repo.live().as_ref(), Some(&commits[0]));
    rollback(world, &["v3"]).ok();
    world.serves("shop", "version three");
    // The release is named by the first digits of its commit, over ssh.
    world.ssh("alice", &["rollback", "shop", &commits[1][..8]]).ok();
    world.serves("shop", "version two");
    // The release is named by a tag that was pushed after the release.
    repo.git(&["tag", "v1.0.0", &commits[0]]).ok();
    repo.push_as(&["refs/tags/v1.0.0"]).accepted();
    rollback(world, &["v1.0.0"]).ok();
    world.serves("shop", "version one");
    rollback(world, &["v2"]).ok();
    world.serves("shop", "version two");
    visitor.satisfied();
    let listed = world.larder(&["releases", "shop"]);
    let starred: Vec<_> = listed.ok().lines().filter(|line| line.contains(" *")).collect();
    assert!(starred.len() == 1 && starred[0].starts_with("v9 *"), "{listed}");
    let after = (names(&world.environment("shop").join("deploy")), names(&world.environment("shop").join("releases")));
    assert_eq!(after, before, "a rollback makes no release");
    assert!(world.last_plan("shop").iter().all(|step| !step.starts_with("build") && !step.starts_with("bundle")));
    world.is_consistent("shop");
    // A push after rollbacks deploys a new release.
    repo.page("version four");
    repo.push().accepted();
    world.serves("shop", "version four");
    let listed = world.larder(&["releases", "shop", "--json"]).json();
    let numbers: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
}

fn rollback_to_unusable_release_is_refused(world: &World) {
    world.project("shop");
    rollback(world, &[]).exits(3).says("nothing is live in shop/production yet");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    rollback(world, &[]).exits(3).says("no release older than v1");
    rollback(world, &["v1"]).exits(3).says("v1 is live already");
    rollback(world, &["v7"]).exits(4).says("no release v7 that was ever live").says("larder releases");
    // A release that failed cannot be rolled back to.
    repo.write("Procfile", "web: false\n").write("larder.yml", "health:\n  timeout: 5s\n");
    let failed = repo.commit("a version that does not start");
    repo.push().rejected();
    rollback(world, &[&failed[..10]]).exits(4).says("that was ever live");
    // A release that retention has removed cannot be rolled back to, either.
    repo.remove("Procfile").write("larder.yml", "keep:\n  releases: 2\n");
    for page in ["version two", "version three", "version four"] {
        repo.page(page);
        repo.push().accepted();
    }
    let top = world.environment("shop");
    // Two releases are left, each with an archive, a manifest and the index of the manifest.
    crate::harness::until("old releases are gone", || names(&top.join("releases")).len() == 6);
    rollback(world, &["v1"]).exits(3).says("v1 was removed by retention");
    world.serves("shop", "version four");
    rollback(world, &["v3"]).ok();
    world.serves("shop", "version three");
}

fn rollback_survives_restart(world: &World) {
    three(world, &[]);
    rollback(world, &["v1"]).ok();
    world.serves("shop", "version one");
    crate::harness::until("the old release has retired", || world.ports("shop").len() == 1);
    let application = world.application("shop");
    world.kill9_server();
    world.serves("shop", "version one");
    assert_eq!(world.application("shop"), application, "a process was started again");
    world.kill9_all();
    world.start(&[]);
    world.serves("shop", "version one");
    world.is_consistent("shop");
    rollback(world, &["v3"]).ok();
    world.serves("shop", "version three");
}

fn failure_at_any_step_of_rollback_leaves_nothing(world: &World) {
    let (repo, commits) = three(world, &[]);
    rollback(world, &["v1"]).ok();
    let ask = || rollback(world, &["v2"]);
    let attempt = Attempt { world, repo: &repo, ask: &ask, old: "version one", new: "version two", stays: &|_| false };
    faults::compare(world, "unwinds of rollback", &attempt.fails_once_at_each(&world.last_plan("shop")));
    assert_eq!(repo.live().as_ref(), Some(&commits[1]));
}

fn rollback_with_every_step_run_twice_goes_live(world: &World) {
    three(world, &[("larder.yml", "data:\n  - media\nsmoke:\n  - /\n")]);
    world.restart(&[("FAILPOINTS", "twice=return")]);
    rollback(world, &["v2"]).ok();
    world.serves("shop", "version two");
    crate::harness::until("the old release has retired", || world.ports("shop").len() == 1);
    world.is_consistent("shop");
}

fn killed_rollback_is_finished_or_undone(world: &World) {
    let (repo, commits) = three(world, &[]);
    rollback(world, &["v1"]).ok();
    let steps = world.last_plan("shop");
    rollback(world, &["v3"]).ok();
    for (number, step) in steps.iter().enumerate() {
        // By default, every second step is interrupted once, in turn at its start and at its end.
        let events = ["started", "succeeded"].into_iter().enumerate();
        for (_, event) in events.filter(|(turn, _)| thorough() || number % 4 == 2 * *turn) {
            world.restart(&[("FAILPOINTS", &format!("journal.{event}.{step}=1*sleep(60000)"))]);
            world.serves("shop", "version three");
            let before = world.journals("shop").len();
            let mut asking = world.larder_command();
            let mut asking = asking.args(["rollback", "shop", "v1"]).stdout(std::process::Stdio::null()).spawn().unwrap();
            crate::harness::until("the rollback has begun", || {
                world.journals("shop").len() > before
                    && world.journals("shop").last().unwrap().iter().any(|line| line["step"] == step.as_str())
            });
            world.kill9_all();
            let _ = asking.wait();
            world.start(&[]);
            let live = repo.live().unwrap();
            assert!(live == commits[0] || live == commits[2], "{live} after {event} {step}");
            world.serves("shop", if live == commits[0] { "version one" } else { "version three" });
            world.is_consistent("shop");
            if live == commits[0] {
                rollback(world, &["v3"]).ok();
                world.serves("shop", "version three");
            }
        }
    }
}
