//! Everything else that one can push, and what becomes of it.

use crate::harness::{Repo, World, in_one_mode, processes, until};

in_one_mode!(
    other_refs_are_stored_and_say_so,
    a_deploy_branch_cannot_be_deleted,
    an_older_commit_is_a_deployment,
    several_refs_have_their_own_fates,
    an_atomic_push_is_all_or_nothing,
    odd_refs_are_refused,
    a_pusher_who_goes_away_stops_nothing,
    a_deployment_can_be_cancelled_and_retried,
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
    repo.push_as(&["--delete", "main"]).rejected_with("deploys this branch");
    assert_eq!(repo.live(), Some(one));
    world.serves("shop", "version one");
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
fn slow_site(repo: &Repo<'_>) {
    repo.program(
        ".larder/build",
        "#!/bin/sh\necho waiting for the gate\nwhile ! [ -e \"$LARDER_CACHE/gate\" ]; do sleep 0.05; done\n",
    );
    repo.commit("slow");
}

fn gate(world: &World, project: &str) {
    std::fs::write(world.environment(project).join("cache/gate"), "").unwrap();
}

fn says(world: &World, project: &str, text: &str) -> bool {
    let directory = world.environment(project).join("deployments");
    let last = crate::harness::state::names(&directory).pop();
    last.is_some_and(|last| std::fs::read_to_string(directory.join(last).join("log")).is_ok_and(|log| log.contains(text)))
}

fn a_pusher_who_goes_away_stops_nothing(world: &World) {
    let (repo, _) = live_site(world);
    repo.page("version two");
    slow_site(&repo);
    let two = repo.head();
    let mut push = repo.command().args(["push", &repo.url(), "HEAD:refs/heads/main"]).spawn().unwrap();
    until("the build waits", || says(world, "shop", "waiting for the gate"));
    // Ctrl-C reaches git and the ssh that it started.
    let children: Vec<_> = processes::of(world.directory())
        .into_iter()
        .filter(|process| processes::parent(process.pid) == Some(push.id() as i32))
        .collect();
    assert!(!children.is_empty(), "git has started no ssh");
    processes::signal(push.id() as i32, rustix::process::Signal::INT);
    children.iter().for_each(|child| processes::signal(child.pid, rustix::process::Signal::INT));
    assert!(!push.wait().unwrap().success());
    world.larder(&["status"]).says("deploying");
    gate(world, "shop");
    let follow = world.larder(&["deploy", "shop", "--follow"]);
    follow.exits(0).says("waiting for the gate").says("v2 is live");
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(two));
    // Who asks later sees the same.
    world.ssh("alice", &["deploy", "shop", "--follow"]).exits(0).says("v2 is live");
}

fn a_deployment_can_be_cancelled_and_retried(world: &World) {
    let (repo, one) = live_site(world);
    let before = world.snapshot("shop");
    world.larder(&["deploy", "shop", "--cancel"]).exits(4).says("nothing is being deployed");
    world.larder(&["deploy", "shop", "--retry"]).exits(3).says("did not fail");
    repo.page("version two");
    slow_site(&repo);
    let two = repo.head();
    let push = std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the build waits", || says(world, "shop", "waiting for the gate"));
        world.larder(&["deploy", "shop", "--cancel"]);
        push.join().unwrap()
    });
    push.rejected_with("build: cancelled; v1 still live");
    assert_eq!(world.snapshot("shop"), before);
    assert_eq!(repo.live(), Some(one));
    gate(world, "shop");
    world.larder(&["deploy", "shop", "--retry"]).exits(0).says("v2 is live");
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(two));
    world.larder(&["deploy", "shop", "--ref", "main~2"]).exits(4);
    let refs = repo.push_as(&["HEAD~2:refs/heads/old"]);
    refs.accepted();
    world.larder(&["deploy", "shop", "--ref", "old"]).exits(0);
    world.serves("shop", "version one");
}
