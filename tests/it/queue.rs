//! Simultaneous pushes: an environment runs one deployment at a time, and each push gets the verdict of its own commit.

use std::{fs, thread};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, processes, thorough, until};

in_each_mode!(consecutive_pushes_to_several_projects_go_live);
in_one_mode!(
    simultaneous_pushes_to_one_project_accept_one,
    simultaneous_pushes_to_ten_projects_get_their_own_verdicts,
    waiting_push_is_superseded_by_a_newer_push,
    cancel_while_a_deployment_waits_stops_the_running_deployment,
    restarts_and_deployments_exclude_each_other,
    time_in_the_build_queue_does_not_count_as_build_time,
    queued_push_into_frozen_environment_is_refused,
    queued_push_of_a_removed_user_is_refused,
    rollback_restart_and_removal_do_not_wait_for_another_project,
    failing_deployment_is_reverted_while_another_project_builds,
    queued_deployment_uses_scale_set_while_it_waits,
);

/// Asserts that no two deployments of an environment overlap: each deployment ends before the next deployment opens.
fn one_at_a_time(world: &World, project: &str) {
    let moment = |record: &serde_json::Value| record["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let journals = world.journals(project);
    let mut spans: Vec<_> = journals
        .iter()
        .filter(|journal| !journal.is_empty())
        .map(|journal| (moment(&journal[0]), moment(journal.iter().rfind(|record| record["event"] == "ended").unwrap())))
        .collect();
    spans.sort();
    for pair in spans.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two deployments overlap: {spans:?}");
    }
}

fn simultaneous_pushes_to_one_project_accept_one(world: &World) {
    world.project("shop");
    let base = Repo::site(world, "shop", "version zero");
    base.push().accepted();
    for round in 0..3 {
        let pages = [format!("round {round} left"), format!("round {round} right")];
        let repos: Vec<_> = pages
            .iter()
            .map(|page| {
                let repo = Repo::new(world, "shop");
                repo.git(&["pull", "--quiet", &repo.url(), "main"]).ok();
                let commit = repo.page(page);
                (repo, commit)
            })
            .collect();
        let pushes: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                repos.iter().map(|(repo, _)| scope.spawn(|| repo.push_as(&["--force", "HEAD:refs/heads/main"]))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let accepted: Vec<_> =
            pushes.iter().enumerate().filter(|(_, push)| push.0.status == 0).map(|(number, _)| number).collect();
        assert!(!accepted.is_empty(), "no push was accepted: {pushes:#?}");
        let live = repos[0].0.live().unwrap();
        let winner = repos.iter().position(|(_, commit)| *commit == live).expect("something else is live");
        assert!(accepted.contains(&winner), "{pushes:#?}");
        world.serves("shop", &pages[winner]);
        world.is_consistent("shop");
    }
    one_at_a_time(world, "shop");
}

fn simultaneous_pushes_to_ten_projects_get_their_own_verdicts(world: &World) {
    let names: Vec<_> = (0..10).map(|number| format!("shop{number}")).collect();
    let repos: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            world.project(name);
            let repo = Repo::site(world, name, &format!("page of {name}"));
            if number % 3 == 1 {
                repo.write("Procfile", "web: exit 5\n");
                repo.commit("broken");
            }
            repo
        })
        .collect();
    let pushes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = repos.iter().map(|repo| scope.spawn(|| repo.push())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (number, ((push, repo), name)) in pushes.iter().zip(&repos).zip(&names).enumerate() {
        if number % 3 == 1 {
            push.rejected_with("nothing is live yet");
            assert_eq!(repo.live(), None);
        } else {
            push.accepted();
            assert_eq!(repo.live(), Some(repo.head()));
            world.serves(name, &format!("page of {name}"));
            world.is_consistent(name);
        }
    }
}

fn waiting_push_is_superseded_by_a_newer_push(world: &World) {
    world.project("shop");
    let base = Repo::new(world, "shop");
    base.program(".larder/build", "#!/bin/sh\nwhile ! [ -e \"$LARDER_CACHE/gate\" ]; do sleep 0.05; done\n");
    base.page("version one");
    let clone = |page: &str| {
        let repo = Repo::new(world, "shop");
        repo.git(&["pull", "--quiet", base.path().to_str().unwrap(), "main"]).ok();
        repo.page(page);
        repo
    };
    let main = "HEAD:refs/heads/main";
    let (second, third, wrong) = (clone("version two"), clone("version three"), clone("no version"));
    let pushes = thread::scope(|scope| {
        let deployments = || crate::harness::state::names(&world.environment("shop").join("deployments")).len();
        let first = scope.spawn(|| base.push_as(&[main]));
        until("the first push is under way", || deployments() == 1);
        let waiting = scope.spawn(|| second.push_as(&["--force", main]));
        until("the second push waits", || deployments() == 2);
        // A push that is refused for its recipe neither waits nor replaces the waiting push.
        wrong.write("larder.yml", "helth: 1\n");
        wrong.commit("broken");
        wrong.push_as(&["--force", main]).rejected_with("larder.yml:1").rejected_with("nothing is live yet");
        assert_eq!(deployments(), 2);
        let newest = scope.spawn(|| third.push_as(&["--force", main]));
        // The superseded push ends at once, before the first push ends.
        let superseded = waiting.join().unwrap();
        std::fs::write(world.environment("shop").join("cache/gate"), "").unwrap();
        [first.join().unwrap(), superseded, newest.join().unwrap()]
    });
    pushes[0].accepted();
    pushes[1].rejected_with("superseded by the newer push");
    pushes[2].accepted().says("this deployment waits for its end");
    world.serves("shop", "version three");
    assert_eq!(third.live(), Some(third.head()));
    one_at_a_time(world, "shop");
}

fn cancel_while_a_deployment_waits_stops_the_running_deployment(world: &World) {
    world.project("shop");
    let hangs = Repo::new(world, "shop");
    hangs.program(".larder/build", "#!/bin/sh\nexec sleep 98762\n");
    hangs.page("never");
    let good = Repo::site(world, "shop", "version one");
    let (first, second) = thread::scope(|scope| {
        let deployments = || crate::harness::state::names(&world.environment("shop").join("deployments")).len();
        let first = scope.spawn(|| hangs.push());
        let sleeps =
            || processes::of(world.directory()).iter().any(|process| process.arguments.iter().any(|word| word == "98762"));
        until("the first push builds", sleeps);
        let second = scope.spawn(|| good.push_as(&["--force", "HEAD:refs/heads/main"]));
        until("the second push waits", || deployments() == 2);
        world.larder(&["deploy", "shop", "--cancel"]).exits(0);
        (first.join().unwrap(), second.join().unwrap())
    });
    first.rejected_with("cancelled");
    second.accepted();
    world.serves("shop", "version one");
}

/// Each push begins while the follow-ups of the previous push still run.
fn consecutive_pushes_to_several_projects_go_live(world: &World) {
    let rounds = if thorough() { 60 } else { 6 };
    let names: Vec<_> = (0..4).map(|number| format!("shop{number}")).collect();
    for name in &names {
        world.project(name);
    }
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || {
                let repo = Repo::new(world, name);
                for round in 1..=rounds {
                    let page = format!("{name} in round {round}.");
                    repo.page(&page);
                    repo.push().accepted();
                    world.serves(name, &page);
                }
            });
        }
    });
    for name in &names {
        world.is_consistent(name);
        one_at_a_time(world, name);
        until("the old releases have retired", || world.ports(name).len() == 1);
    }
}

fn restarts_and_deployments_exclude_each_other(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version 0");
    repo.push().accepted();
    let done = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::SeqCst;
    let restarts = thread::scope(|scope| {
        let restarts = ["one", "other"].map(|_| {
            scope.spawn(|| {
                let mut ends = Vec::new();
                while !done.load(order) {
                    ends.push(world.larder(&["restart", "shop"]));
                }
                ends
            })
        });
        for version in 1..=6 {
            let commit = repo.page(&format!("version {version}"));
            repo.push().accepted();
            assert_eq!(repo.live(), Some(commit));
        }
        done.store(true, order);
        restarts.map(|restarts| restarts.join().unwrap()).concat()
    });
    let refused = |end: &&crate::harness::cli::Output| {
        end.status == 3 && (end.stderr.contains("being deployed") || end.stderr.contains("in use by another operation"))
    };
    assert!(restarts.iter().all(|end| end.status == 0 || refused(&end)), "{restarts:#?}");
    assert!(restarts.iter().any(|end| end.status == 0) && restarts.iter().any(|end| refused(&end)), "{restarts:#?}");
    world.serves("shop", "version 6");
    world.is_consistent("shop");
    until("one release runs", || world.ports("shop").len() == 1);
    // A project that is destroyed during a restart does not come back.
    thread::scope(|scope| {
        let restart = scope.spawn(|| world.larder(&["restart", "shop"]));
        world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
        restart.join().unwrap();
    });
    world.larder(&["status"]).keeps_quiet_about("shop/production");
    until("no process of the project runs", || world.application("shop").is_empty());
}

/// A build that waited for another build still has its whole time limit.
fn time_in_the_build_queue_does_not_count_as_build_time(world: &World) {
    fs::write(world.root().join("larder.yml"), "builds: {parallel: 1}\n").unwrap();
    world.restart(&[]);
    let slow = |name: &str, seconds: u32| {
        world.project(name);
        let repo = Repo::new(world, name);
        repo.write("larder.yml", "buildpacks: [./pack]\nbuild: {timeout: 4s}\n");
        repo.program("pack/bin/detect", "#!/bin/sh\necho slow\n");
        repo.program("pack/bin/compile", &format!("#!/bin/sh\nsleep {seconds}\n"));
        repo.write("Procfile", "web: larder static-server --root .\n").page(name);
        repo
    };
    let repos = ["one", "two", "three"].map(|name| slow(name, 2));
    let pushes = thread::scope(|scope| repos.each_ref().map(|repo| scope.spawn(|| repo.push())).map(|push| push.join().unwrap()));
    for push in &pushes {
        push.accepted();
    }
    assert!(pushes.iter().any(|push| push.0.stderr.contains("waiting for another build")), "{pushes:#?}");
}

/// Makes the builds of `live` wait for a file, and returns a second clone with another page.
fn gated<'w>(world: &'w World, live: &Repo<'w>) -> Repo<'w> {
    live.program(".larder/build", "#!/bin/sh\nwhile ! [ -e \"$LARDER_CACHE/gate\" ]; do sleep 0.05; done\n");
    live.page("version two");
    let other = Repo::new(world, "shop");
    other.git(&["pull", "--quiet", live.path().to_str().unwrap(), "main"]).ok();
    other.page("version three");
    other
}

fn waits(world: &World) {
    until("a push waits", || world.larder(&["status"]).ok().contains("another deployment waits"));
}

fn open(world: &World) {
    fs::write(world.environment("shop").join("cache/gate"), "").unwrap();
}

fn queued_push_into_frozen_environment_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "step.post_deploy.smoke=1*return;undo.deploy.install=1*return")]);
    let other = gated(world, &repo);
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| repo.push());
        until("the first push is under way", || world.journals("shop").len() == 2);
        let second = scope.spawn(|| other.push_as(&["--force", "HEAD:refs/heads/main"]));
        waits(world);
        open(world);
        (first.join().unwrap(), second.join().unwrap())
    });
    first.rejected_with("the environment is frozen");
    second.rejected_with("is frozen since deployment");
    world.serves("shop", "version one");
    assert_eq!(world.journals("shop").len(), 2, "the second deployment was begun");
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(0);
    world.serves("shop", "version one");
    other.push_as(&["--force", "HEAD:refs/heads/main"]).accepted();
    world.serves("shop", "version three");
    world.is_consistent("shop");
}

fn queued_push_of_a_removed_user_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let other = gated(world, &repo);
    let main = "HEAD:refs/heads/main";
    let deployments = || crate::harness::state::names(&world.environment("shop").join("deployments")).len();
    other.push_as(&[main.replace("main", "topic").as_str()]).accepted();
    let topic = other.head();
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| world.larder(&["deploy", "shop", "--ref", &topic]));
        until("the first deployment is under way", || deployments() == 2);
        let second = scope.spawn(|| world.ssh("alice", &["deploy", "shop", "--ref", &topic]));
        waits(world);
        world.larder(&["user", "remove", "alice"]).ok();
        open(world);
        (first.join().unwrap(), second.join().unwrap())
    });
    first.exits(0);
    assert_ne!(second.status, 0, "{second}");
    until("the deployments have ended", || deployments() == 2);
    assert_eq!(world.journals("shop").len(), 2, "a deployment of a user who was removed was begun");
}

/// Calls `work` while the build of another project is under way.
fn while_another_builds(world: &World, work: impl FnOnce()) {
    world.project("slow");
    let slow = Repo::site(world, "slow", "slow one");
    slow.write("larder.yml", "buildpacks: [./pack]\n");
    slow.program("pack/bin/detect", "#!/bin/sh\necho slow\n");
    slow.program(
        "pack/bin/compile",
        "#!/bin/sh\ntouch \"$2/../../begun\"\nwhile ! [ -e \"$2/../../gate\" ]; do sleep 0.05; done\n",
    );
    slow.write("Procfile", "web: larder static-server --root .\n").page("slow one");
    let cache = world.environment("slow").join("cache");
    thread::scope(|scope| {
        let push = scope.spawn(|| slow.push());
        until("the slow project builds", || cache.join("begun").exists());
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        assert!(!push.is_finished(), "the slow build has ended too early");
        fs::write(cache.join("gate"), "").unwrap();
        push.join().unwrap().accepted();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    world.serves("slow", "slow one");
}

fn one_deployment_at_a_time(world: &World) {
    fs::write(world.root().join("larder.yml"), "deployments: {parallel: 1}\n").unwrap();
    world.restart(&[]);
}

fn rollback_restart_and_removal_do_not_wait_for_another_project(world: &World) {
    for name in ["shop", "old"] {
        world.project(name);
        let repo = Repo::site(world, name, "version one");
        repo.push().accepted();
        repo.page("version two");
        repo.push().accepted();
    }
    one_deployment_at_a_time(world);
    let next = Repo::new(world, "shop");
    next.git(&["pull", "--quiet", &next.url(), "main"]).ok();
    next.page("version three");
    thread::scope(|scope| {
        let mut waiting = None;
        while_another_builds(world, || {
            world.larder(&["rollback", "shop"]).ok();
            world.serves("shop", "version one");
            world.larder(&["restart", "shop"]).ok();
            world.larder(&["project", "destroy", "old", "--confirm", "old"]).ok();
            // The build of the next push waits, and the output of the push names the reason.
            waiting = Some(scope.spawn(|| next.push_as(&["--force", "HEAD:refs/heads/main"])));
            let log = || {
                let deployments = world.environment("shop").join("deployments");
                let logs = crate::harness::state::names(&deployments).into_iter();
                logs.filter_map(|name| fs::read_to_string(deployments.join(name).join("log")).ok()).collect::<String>()
            };
            until("the push says what it waits for", || log().contains("waiting for another build on this server"));
            assert_eq!(log().matches("waiting for").count(), 1, "{}", log());
        });
        waiting.unwrap().join().unwrap().accepted();
    });
    world.serves("shop", "version three");
    world.is_consistent("shop");
}

fn failing_deployment_is_reverted_while_another_project_builds(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    one_deployment_at_a_time(world);
    // The deployment fails before it needs the permit that the build of the other project holds.
    repo.program(".larder/configure", "#!/bin/sh\nexit 7\n").page("version two");
    while_another_builds(world, || {
        repo.push().rejected_with("configure");
    });
    world.serves("shop", "version one");
    world.is_consistent("shop");
}

/// A deployment uses the scale that is set when the deployment begins, not the scale at its submission.
fn queued_deployment_uses_scale_set_while_it_waits(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: larder static-server --root .\nclock: while :; do sleep 1; done\n").page("version one");
    repo.push().accepted();
    let other = gated(world, &repo);
    thread::scope(|scope| {
        let first = scope.spawn(|| repo.push());
        until("the first push is under way", || world.journals("shop").len() == 2);
        let second = scope.spawn(|| other.push_as(&["--force", "HEAD:refs/heads/main"]));
        waits(world);
        // The numbers are stored, but the processes cannot be restarted during a deployment.
        world.larder(&["ps", "shop", "--scale", "web=2", "--scale", "clock=1"]).exits(3).says("being deployed");
        open(world);
        first.join().unwrap().accepted();
        second.join().unwrap().accepted();
    });
    world.serves("shop", "version three");
    let running = || {
        let rows = world.larder(&["ps", "shop", "--json"]).json();
        let names = rows.as_array().unwrap().iter().map(|row| row["process"].as_str().unwrap().to_owned());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    until("the processes of version two are gone", || {
        world.larder(&["ps", "shop", "--json"]).json().as_array().unwrap().len() == running().len()
    });
    assert_eq!(running(), ["clock.1", "web.1", "web.2"]);
}
