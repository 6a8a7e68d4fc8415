//! Pushes of refs other than deploy branches, and the commands that follow, cancel and retry deployments.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::{Repo, World, in_each_mode, in_one_mode, processes, state, until, within};

in_each_mode!(refused_push_changes_nothing, deployment_can_be_cancelled_and_retried);
in_one_mode!(
    branch_without_environment_is_stored_with_a_note,
    deploy_branch_cannot_be_deleted,
    push_of_an_older_commit_is_deployed,
    refs_of_one_push_are_decided_separately,
    atomic_push_is_all_or_nothing,
    atomic_push_of_two_deploy_branches_is_refused,
    refs_other_than_branches_and_tags_are_refused,
    deployment_continues_after_its_pusher_is_interrupted,
    failure_is_recorded_after_its_pusher_is_killed,
    pushed_commit_can_be_deployed_by_name,
    queued_push_is_superseded_by_a_newer_push,
    cancel_does_not_interrupt_the_switch,
);

fn live_site<'w>(world: &'w World) -> (Repo<'w>, String) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let commit = repo.head();
    (repo, commit)
}

fn branch_without_environment_is_stored_with_a_note(world: &World) {
    let (repo, one) = live_site(world);
    let push = repo.push_as(&["HEAD:refs/heads/topic"]);
    push.accepted().says("topic is stored and not deployed; main deploys to production");
    repo.git(&["tag", "-a", "-m", "first", "v1.0"]).ok();
    repo.push_as(&["v1.0"]).accepted();
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/topic"), Some(&one));
    assert!(refs.contains_key("refs/tags/v1.0") && refs.keys().all(|name| !name.starts_with("refs/larder")), "{refs:?}");
    assert_eq!(world.journals("shop").len(), 1, "a stored branch must not deploy");
    // A push without changes does nothing.
    repo.push().accepted().says("Everything up-to-date");
    assert_eq!(world.journals("shop").len(), 1);
    repo.push_as(&["--delete", "topic"]).accepted();
    repo.push_as(&["--delete", "v1.0"]).accepted();
    assert_eq!(repo.ls_remote().len(), 2, "HEAD and main: {:?}", repo.ls_remote());
}

fn deploy_branch_cannot_be_deleted(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    repo.push_as(&["--delete", "main"]).rejected_with("deploys this branch").says("project destroy shop");
    repo.push_as(&["--force", ":refs/heads/main"]).rejected_with("deploys this branch");
    // Other branches of the same push are deleted.
    repo.push_as(&["HEAD:refs/heads/topic"]).accepted();
    repo.push_as(&["--delete", "main", "topic"]).rejected_with("deploys this branch");
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/topic"), None, "{refs:?}");
    assert_eq!(repo.live(), Some(one));
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(world.journals("shop").len(), 1);
    world.serves("shop", "version one");
}

fn refused_push_changes_nothing(world: &World) {
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
    // A repeated push of the commit is not "Everything up-to-date": the commit is deployed again, and refused again.
    repo.push().rejected_with("v1 still live");
    assert_eq!(world.journals("shop").len(), 3);
    assert_eq!(repo.head(), broken);
}

fn push_of_an_older_commit_is_deployed(world: &World) {
    let (repo, one) = live_site(world);
    repo.page("version two");
    repo.push().accepted();
    // The push is not a fast-forward, so git requires --force.
    let refused = repo.push_as(&[&format!("{one}:refs/heads/main")]);
    assert_eq!(refused.0.status, 1, "{}", refused.0);
    repo.push_as(&["--force", &format!("{one}:refs/heads/main")]).accepted().says("v3 is live");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(one));
}

fn refs_of_one_push_are_decided_separately(world: &World) {
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

fn atomic_push_is_all_or_nothing(world: &World) {
    let (repo, one) = live_site(world);
    repo.write("Procfile", "web: exit 1\n");
    repo.commit("broken");
    let push = repo.push_as(&["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/topic"]);
    assert_eq!(push.0.status, 1, "{}", push.0);
    let refs = repo.ls_remote();
    assert_eq!(refs.get("refs/heads/main"), Some(&one));
    assert_eq!(refs.get("refs/heads/topic"), None, "a ref of a failed atomic push was stored: {}", push.0);
    repo.remove("Procfile");
    let two = repo.page("version two");
    repo.push_as(&["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/topic"]).accepted();
    let refs = repo.ls_remote();
    assert_eq!((refs.get("refs/heads/main"), refs.get("refs/heads/topic")), (Some(&two), Some(&two)));
    world.serves("shop", "version two");
    // If git cannot store a ref, because a branch has the name of the ref's directory, the deployment of the atomic push is refused, too.
    repo.page("version three");
    let push = repo.push_as(&["--atomic", "HEAD:refs/heads/main", "HEAD:refs/heads/topic/sub"]);
    assert_eq!(push.0.status, 1, "{}", push.0);
    push.says("refs/heads/topic exists");
    assert_eq!(repo.live(), Some(two), "half of an atomic push went live: {}", push.0);
    world.serves("shop", "version two");
}

fn atomic_push_of_two_deploy_branches_is_refused(world: &World) {
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

fn refs_other_than_branches_and_tags_are_refused(world: &World) {
    let (repo, one) = live_site(world);
    for name in ["refs/for/main", "refs/larder/keep/x", "refs/notes/commits", "refs/heads/-x", "refs/heads/gr\u{fc}n"] {
        let push = repo.push_as(&[&format!("HEAD:{name}")]);
        assert_eq!(push.0.status, 1, "{name}: {}", push.0);
    }
    repo.push_as(&["HEAD:refs/for/main"]).rejected_with("only branches and tags");
    let refs = repo.ls_remote();
    assert_eq!(refs.into_iter().collect::<Vec<_>>(), [("HEAD".into(), one.clone()), ("refs/heads/main".into(), one)]);
}

/// Commits a build that waits until the test creates a file in its cache, and then runs `then`. Returns the commit.
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

/// Returns true if the output of a deployment contains `text`.
fn said(world: &World, project: &str, text: &str) -> bool {
    let directory = world.environment(project).join("deployments");
    let logs = state::names(&directory).into_iter().map(|name| fs::read_to_string(directory.join(name).join("log")));
    logs.into_iter().any(|log| log.is_ok_and(|log| log.contains(text)))
}

fn waits(world: &World) {
    until("the build waits", || said(world, "shop", "waiting for the gate"));
}

/// Starts a push, and sends a signal to its process group as soon as the build runs, as Ctrl-C does.
fn interrupted(repo: &Repo<'_>, world: &World, signal: Signal) {
    let git = repo.command();
    // If the tests run in the background, they ignore interrupts. `--default-signal` prevents that the push ignores them as well.
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
    until("the ssh of the push has ended", || members().count() == 0);
}

fn deployment_continues_after_its_pusher_is_interrupted(world: &World) {
    let (repo, one) = live_site(world);
    repo.page("version two");
    let two = slow_site(&repo, "echo through the gate");
    interrupted(&repo, world, Signal::INT);
    world.larder(&["status"]).says("deploying");
    assert_eq!(repo.live(), Some(one), "the branch moved before the release was live");
    // A follower sees the output from the beginning to the end.
    thread::scope(|scope| {
        let follow = scope.spawn(|| world.ssh("alice", &["deploy", "shop", "--follow"]));
        let late = !within(Duration::from_millis(300), || follow.is_finished());
        assert!(late, "the follower did not wait for the end: {}", follow.join().unwrap());
        open_the_gate(world, "shop");
        let follow = follow.join().unwrap();
        follow.exits(0).says("Deploying").says("waiting for the gate").says("through the gate").says("v2 is live");
    });
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(two));
    // A later follower sees the same output.
    world.larder(&["deploy", "shop", "--follow"]).exits(0).says("waiting for the gate").says("v2 is live");
    repo.push().accepted().says("Everything up-to-date");
}

fn failure_is_recorded_after_its_pusher_is_killed(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    slow_site(&repo, "exit 9");
    interrupted(&repo, world, Signal::KILL);
    open_the_gate(world, "shop");
    world.larder(&["deploy", "shop", "--follow"]).exits(1).says("9").says("v1 is still live");
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(repo.live(), Some(one));
    assert!(world.larder(&["status"]).ok().contains("the last deployment"), "status must show the failure");
}

fn deployment_can_be_cancelled_and_retried(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    world.larder(&["deploy", "shop", "--cancel"]).exits(4).says("nothing is being deployed");
    world.larder(&["deploy", "shop", "--retry"]).exits(3).says("did not fail");
    repo.page("version two");
    let two = slow_site(&repo, "");
    let push = thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        waits(world);
        // The command succeeds, after everything was reverted.
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
    // The exit status depends on the outcome, also with --json.
    world.larder(&["deploy", "shop", "--follow"]).exits(1);
    world.larder(&["deploy", "shop", "--follow", "--json"]).exits(1).says("cancelled");
    open_the_gate(world, "shop");
    world.larder(&["deploy", "shop", "--retry"]).exits(0).says("v2 is live");
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(two));
}

fn pushed_commit_can_be_deployed_by_name(world: &World) {
    let (repo, one) = live_site(world);
    repo.git(&["tag", "v1.0"]).ok();
    repo.page("version two");
    repo.push_as(&["HEAD:refs/heads/main", "v1.0"]).accepted();
    world.larder(&["deploy", "shop", "--ref", &one]).exits(0).says("v3 is live");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(one.clone()));
    repo.push_as(&["--force", "HEAD:refs/heads/main"]).accepted();
    // The names are a tag, a branch without an environment, and an abbreviated commit id.
    let two = repo.head();
    repo.push_as(&["HEAD:refs/heads/topic"]).accepted();
    for (name, page, commit) in [("v1.0", "version one", &one), ("topic", "version two", &two), (&one[..10], "version one", &one)]
    {
        world.ssh("alice", &["deploy", "shop", "--ref", name]).exits(0);
        world.serves("shop", page);
        assert_eq!(repo.live().as_ref(), Some(commit));
    }
    // Without a name, the live commit is deployed again.
    world.larder(&["deploy", "shop"]).exits(0).says("v8 is live");
    assert_eq!(repo.live(), Some(one));
    for unknown in ["nowhere", "0123456789012345678901234567890123456789", "main~1", "--help-me", "refs/larder/x", ""] {
        let refused = world.larder(&["deploy", "shop", &format!("--ref={unknown}")]);
        assert!(matches!(refused.status, 2 | 4), "{refused}");
    }
    world.serves("shop", "version one");
}

fn queued_push_is_superseded_by_a_newer_push(world: &World) {
    let (repo, _) = live_site(world);
    repo.page("version two");
    slow_site(&repo, "");
    // Each push has its own clone, because a push sends the HEAD of its clone. The parent of both commits is the commit of the first push.
    let clones: Vec<_> = ["version three", "version four"]
        .iter()
        .map(|page| {
            let clone = Repo::new(world, "shop");
            clone.git(&["pull", "--quiet", repo.path().to_str().unwrap(), "main"]).ok();
            let commit = clone.page(page);
            (clone, commit)
        })
        .collect();
    let waiting = || world.larder(&["status"]).ok().contains("another deployment waits");
    let pushes = thread::scope(|scope| {
        let first = scope.spawn(|| repo.push());
        waits(world);
        let second = scope.spawn(|| clones[0].0.push_as(&["--force", "HEAD:refs/heads/main"]));
        until("the second push waits", waiting);
        let third = scope.spawn(|| clones[1].0.push_as(&["--force", "HEAD:refs/heads/main"]));
        // The superseded push ends at once, while the first push still builds.
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

/// A cancel request during the switch must not kill git: a killed git process would leave its lock, and the switch could not be undone.
fn cancel_does_not_interrupt_the_switch(world: &World) {
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
