//! Everything else that one can push, and what becomes of it.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, processes, state, until, within};

in_each_mode!(a_refused_push_leaves_everything, a_deployment_can_be_cancelled_and_retried);
in_one_mode!(
    other_refs_are_stored_and_say_so,
    a_deploy_branch_cannot_be_deleted,
    an_older_commit_is_a_deployment,
    several_refs_have_their_own_fates,
    an_atomic_push_is_all_or_nothing,
    an_atomic_push_deploys_one_branch_only,
    odd_refs_are_refused,
    a_pusher_who_goes_away_stops_nothing,
    a_killed_pusher_does_not_stop_a_failure,
    what_was_pushed_can_be_deployed_by_name,
    a_waiting_push_gives_way_to_a_newer_one,
    a_switch_is_not_cut_in_the_middle,
);

fn live_site<'w>(world: &'w World) -> (Repo<'w>, String) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let commit = repo.head();
    (repo, commit)
}

fn other_refs_are_stored_and_say_so(world: &World) {
    let (repo, one) = live_site(world);
    let push = repo.push_as(&["HEAD:refs/heads/topic"]);
    push.accepted().says("topic is stored and not deployed; main deploys to production");
    repo.git(&["tag", "-a", "-m", "first", "v1.0"]).ok();
    repo.push_as(&["v1.0"]).accepted();
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/topic"), Some(&one));
    assert!(refs.contains_key("refs/tags/v1.0") && refs.keys().all(|name| !name.starts_with("refs/larder")), "{refs:?}");
    assert_eq!(world.journals("shop").len(), 1, "a stored branch must not deploy");
    // Nothing to push is nothing to do.
    repo.push().accepted().says("Everything up-to-date");
    assert_eq!(world.journals("shop").len(), 1);
    repo.push_as(&["--delete", "topic"]).accepted();
    repo.push_as(&["--delete", "v1.0"]).accepted();
    assert_eq!(repo.ls_remote().len(), 2, "HEAD and main: {:?}", repo.ls_remote());
}

fn a_deploy_branch_cannot_be_deleted(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    repo.push_as(&["--delete", "main"]).rejected_with("deploys this branch").says("project destroy shop");
    repo.push_as(&["--force", ":refs/heads/main"]).rejected_with("deploys this branch");
    // The others of the same push are deleted.
    repo.push_as(&["HEAD:refs/heads/topic"]).accepted();
    repo.push_as(&["--delete", "main", "topic"]).rejected_with("deploys this branch");
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/topic"), None, "{refs:?}");
    assert_eq!(repo.live(), Some(one));
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(world.journals("shop").len(), 1);
    world.serves("shop", "version one");
}

fn a_refused_push_leaves_everything(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    repo.write("Procfile", "web: exit 7\n");
    let broken = repo.commit("broken");
    let push = repo.push();
    push.rejected_with("v1 still live").rejected_with("7");
    assert_eq!(push.0.status, 1);
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(repo.live(), Some(one));
    world.serves("shop", "version one");
    // The same commit is no "Everything up-to-date": it is tried again, and gets the same answer.
    repo.push().rejected_with("v1 still live");
    assert_eq!(world.journals("shop").len(), 3);
    assert_eq!(repo.head(), broken);
}

fn an_older_commit_is_a_deployment(world: &World) {
    let (repo, one) = live_site(world);
    repo.page("version two");
    repo.push().accepted();
    // Not a fast-forward: git asks for --force, as everywhere.
    let refused = repo.push_as(&[&format!("{one}:refs/heads/main")]);
    assert_eq!(refused.0.status, 1, "{}", refused.0);
    repo.push_as(&["--force", &format!("{one}:refs/heads/main")]).accepted().says("v3 is live");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(one));
}

fn several_refs_have_their_own_fates(world: &World) {
    let (repo, one) = live_site(world);
    repo.write("Procfile", "web: exit 1\n");
    let broken = repo.commit("broken");
    let push = repo.push_as(&["HEAD:refs/heads/main", "HEAD:refs/heads/topic", "HEAD:refs/tags/t"]);
    push.rejected_with("v1 still live").says("topic");
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/main"), Some(&one));
    assert_eq!(refs.get("refs/heads/topic"), Some(&broken));
    assert_eq!(refs.get("refs/tags/t"), Some(&broken));
}

fn an_atomic_push_is_all_or_nothing(world: &World) {
    let (repo, one) = live_site(world);
    repo.write("Procfile", "web: exit 1\n");
    repo.commit("broken");
    let push = repo.push_as(&["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/topic"]);
    assert_eq!(push.0.status, 1, "{}", push.0);
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/main"), Some(&one));
    assert_eq!(refs.get("refs/heads/topic"), None, "the rest of a failed atomic push was stored: {}", push.0);
    repo.remove("Procfile");
    let two = repo.page("version two");
    repo.push_as(&["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/topic"]).accepted();
    let refs = repo.ls_remote();
    assert_eq!((refs.get("refs/heads/main"), refs.get("refs/heads/topic")), (Some(&two), Some(&two)));
    world.serves("shop", "version two");
    // A ref that git itself cannot store, because a branch has the name of its directory, stops the deployment too.
    repo.page("version three");
    let push = repo.push_as(&["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/topic/sub"]);
    assert_eq!(push.0.status, 1, "{}", push.0);
    push.says("refs/heads/topic exists");
    assert_eq!(repo.live(), Some(two), "half of an atomic push went live: {}", push.0);
    world.serves("shop", "version two");
}

fn an_atomic_push_deploys_one_branch_only(world: &World) {
    let (repo, one) = live_site(world);
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let two = repo.page("version two");
    let both = ["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/next"];
    repo.push_as(&both).rejected_with("an atomic push can deploy one branch only").says("without --atomic");
    let refs = repo.ls_remote();
    assert_eq!((refs.get("refs/heads/main"), refs.get("refs/heads/next")), (Some(&one), None));
    assert_eq!(world.journals("shop").len(), 1, "something ran before the refusal");
    repo.push_as(&both[1..]).accepted();
    let refs = repo.ls_remote();
    assert_eq!((refs.get("refs/heads/main"), refs.get("refs/heads/next")), (Some(&two), Some(&two)));
    world.serves("shop", "version two");
    world.serves("staging--shop", "version two");
}

fn odd_refs_are_refused(world: &World) {
    let (repo, one) = live_site(world);
    for name in ["refs/for/main", "refs/larder/keep/x", "refs/notes/commits", "refs/heads/-x", "refs/heads/gr\u{fc}n"] {
        let push = repo.push_as(&[&format!("HEAD:{name}")]);
        assert_eq!(push.0.status, 1, "{name}: {}", push.0);
    }
    repo.push_as(&["HEAD:refs/for/main"]).rejected_with("only branches and tags");
    let refs = repo.ls_remote();
    assert_eq!(refs.into_iter().collect::<Vec<_>>(), [("HEAD".into(), one.clone()), ("refs/heads/main".into(), one)]);
}

/// A site whose build waits until a file appears in its cache: a test decides when it goes on.
fn slow_site(repo: &Repo<'_>, then: &str) -> String {
    repo.program(
        ".larder/build",
        &format!("#!/bin/sh\necho waiting for the gate\nwhile ! [ -e \"$LARDER_CACHE/gate\" ]; do sleep 0.05; done\n{then}\n"),
    );
    repo.commit("slow")
}

fn open_the_gate(world: &World, project: &str) {
    fs::write(world.environment(project).join("cache/gate"), "").unwrap();
}

/// Whether a deployment has said `text`.
fn said(world: &World, project: &str, text: &str) -> bool {
    let directory = world.environment(project).join("deployments");
    let logs = state::names(&directory).into_iter().map(|name| fs::read_to_string(directory.join(name).join("log")));
    logs.into_iter().any(|log| log.is_ok_and(|log| log.contains(text)))
}

fn waits(world: &World) {
    until("the build waits", || said(world, "shop", "waiting for the gate"));
}

/// Starts a push, and gives it a signal as soon as the build runs: to git, its ssh and whatever is between, as Ctrl-C does.
fn interrupted(repo: &Repo<'_>, world: &World, signal: Signal) {
    let git = repo.command();
    // Whoever runs the tests in the background lets them, and all that they start, ignore interrupts.
    let mut push = Command::new("env");
    push.env_clear().envs(git.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(repo.path());
    push.arg("--default-signal").arg(git.get_program()).args(["push", &repo.url(), "HEAD:refs/heads/main"]);
    push.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
    let mut push = push.spawn().unwrap();
    waits(world);
    let members = || {
        processes::of(world.directory())
            .into_iter()
            .filter(|process| process.arguments.iter().any(|word| word.contains("git-receive-pack '/shop'")))
    };
    assert!(members().count() > 0, "git has started no ssh");
    kill_process_group(Pid::from_child(&push), signal).unwrap();
    assert!(!push.wait().unwrap().success());
    until("its ssh has ended", || members().count() == 0);
}

fn a_pusher_who_goes_away_stops_nothing(world: &World) {
    let (repo, one) = live_site(world);
    repo.page("version two");
    let two = slow_site(&repo, "echo through the gate");
    interrupted(&repo, world, Signal::INT);
    world.larder(&["status"]).says("deploying");
    assert_eq!(repo.live(), Some(one), "the branch moved before the release was live");
    // Who asks now sees it from its beginning and to its end.
    thread::scope(|scope| {
        let follow = scope.spawn(|| world.ssh("alice", &["deploy", "shop", "--follow"]));
        let late = !within(Duration::from_millis(300), || follow.is_finished());
        assert!(late, "it did not wait for the end: {}", follow.join().unwrap());
        open_the_gate(world, "shop");
        let follow = follow.join().unwrap();
        follow.exits(0).says("Deploying").says("waiting for the gate").says("through the gate").says("v2 is live");
    });
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(two));
    // Who asks later sees the same.
    world.larder(&["deploy", "shop", "--follow"]).exits(0).says("waiting for the gate").says("v2 is live");
    repo.push().accepted().says("Everything up-to-date");
}

fn a_killed_pusher_does_not_stop_a_failure(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    slow_site(&repo, "exit 9");
    interrupted(&repo, world, Signal::KILL);
    open_the_gate(world, "shop");
    world.larder(&["deploy", "shop", "--follow"]).exits(1).says("9").says("v1 is still live");
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(repo.live(), Some(one));
    assert!(world.larder(&["status"]).ok().contains("the last deployment"), "nobody would ever hear of it");
}

fn a_deployment_can_be_cancelled_and_retried(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    world.larder(&["deploy", "shop", "--cancel"]).exits(4).says("nothing is being deployed");
    world.larder(&["deploy", "shop", "--retry"]).exits(3).says("did not fail");
    repo.page("version two");
    let two = slow_site(&repo, "");
    let push = thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        waits(world);
        // The one who cancels gets what was asked for, and only when everything is as it was.
        world.larder(&["deploy", "shop", "--cancel"]).exits(0).says("cancelled");
        push.join().unwrap()
    });
    push.rejected_with("build: cancelled").rejected_with("v1 still live");
    assert_eq!(push.0.status, 1);
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(repo.live(), Some(one));
    world.serves("shop", "version one");
    let left: Vec<_> = processes::of(world.directory()).into_iter().filter(|process| process.arguments[0] == "sleep").collect();
    assert!(left.is_empty(), "the cancelled build goes on: {left:?}");
    // How it went is said by the exit status, whatever the form of the answer.
    world.larder(&["deploy", "shop", "--follow"]).exits(1);
    world.larder(&["deploy", "shop", "--follow", "--json"]).exits(1).says("cancelled");
    open_the_gate(world, "shop");
    world.larder(&["deploy", "shop", "--retry"]).exits(0).says("v2 is live");
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(two));
}

fn what_was_pushed_can_be_deployed_by_name(world: &World) {
    let (repo, one) = live_site(world);
    repo.git(&["tag", "v1.0"]).ok();
    repo.page("version two");
    repo.push_as(&["HEAD:refs/heads/main", "v1.0"]).accepted();
    world.larder(&["deploy", "shop", "--ref", &one]).exits(0).says("v3 is live");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(one.clone()));
    repo.push_as(&["--force", "HEAD:refs/heads/main"]).accepted();
    // A tag, a branch that is stored only, a short name of a commit.
    let two = repo.head();
    repo.push_as(&["HEAD:refs/heads/topic"]).accepted();
    for (name, page, commit) in [("v1.0", "version one", &one), ("topic", "version two", &two), (&one[..10], "version one", &one)]
    {
        world.ssh("alice", &["deploy", "shop", "--ref", name]).exits(0);
        world.serves("shop", page);
        assert_eq!(repo.live().as_ref(), Some(commit));
    }
    // Without a name, what is live is deployed again.
    world.larder(&["deploy", "shop"]).exits(0).says("v8 is live");
    assert_eq!(repo.live(), Some(one));
    for unknown in ["nowhere", "0123456789012345678901234567890123456789", "main~1", "--help-me", "refs/larder/x", ""] {
        let refused = world.larder(&["deploy", "shop", &format!("--ref={unknown}")]);
        assert!(matches!(refused.status, 2 | 4), "{refused}");
    }
    world.serves("shop", "version one");
}

fn a_waiting_push_gives_way_to_a_newer_one(world: &World) {
    let (repo, _) = live_site(world);
    repo.page("version two");
    slow_site(&repo, "");
    // Further clones, because one clone can only push what it has checked out. They build on what will be live by then.
    let clones: Vec<_> = ["version three", "version four"]
        .iter()
        .map(|page| {
            let clone = Repo::new(world, "shop");
            clone.git(&["pull", "--quiet", repo.path().to_str().unwrap(), "main"]).ok();
            let commit = clone.page(page);
            (clone, commit)
        })
        .collect();
    let waiting = || world.larder(&["status"]).ok().contains("another waits");
    let pushes = thread::scope(|scope| {
        let first = scope.spawn(|| repo.push());
        waits(world);
        let second = scope.spawn(|| clones[0].0.push_as(&["--force", "HEAD:refs/heads/main"]));
        until("the second push waits", waiting);
        let third = scope.spawn(|| clones[1].0.push_as(&["--force", "HEAD:refs/heads/main"]));
        // The superseded one is told at once, while the first still builds.
        let second = second.join().unwrap();
        assert!(!first.is_finished() && !third.is_finished());
        open_the_gate(world, "shop");
        [first.join().unwrap(), second, third.join().unwrap()]
    });
    pushes[0].accepted().says("v2 is live");
    pushes[1].rejected_with("superseded by the newer push").rejected_with(&clones[1].1[..7]);
    pushes[2].accepted().says("v3 is live");
    world.serves("shop", "version four");
    assert_eq!(repo.live().as_ref(), Some(&clones[1].1));
}

/// Somebody cancels in the middle of the switch. A git that is killed there would leave its lock, and nothing could be put back.
fn a_switch_is_not_cut_in_the_middle(world: &World) {
    let (repo, one) = live_site(world);
    world.restart(&[("FAILPOINTS", "deploy.switch=1*sleep(5000)")]);
    repo.page("version two");
    let happened = |word: &str| {
        let is_it = |event: &serde_json::Value| event["step"] == "deploy.switch" && event["event"] == word;
        world.journals("shop").get(1).is_some_and(|journal| journal.iter().any(is_it))
    };
    let push = thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the switch has begun", || happened("started"));
        world.larder(&["deploy", "shop", "--cancel"]).exits(0).says("cancelled");
        push.join().unwrap()
    });
    push.rejected_with("cancelled").rejected_with("v1 still live");
    assert!(happened("succeeded") && happened("undo_finished"));
    assert_eq!(repo.live(), Some(one));
    world.serves("shop", "version one");
    world.is_consistent("shop");
}
