//! Environments in the mode editable: a push updates a checkout in which people work, and loses nothing.

use std::{fs, path::PathBuf};

use crate::{
    dev,
    harness::{
        Repo, World,
        docs::Page,
        faults, in_each_mode, in_one_mode, installed,
        output::{golden, golden_lines},
        thorough, until,
    },
};

in_each_mode!(pushed_commit_runs_in_the_checkout_and_edits_stay, failed_push_checks_the_live_commit_out_again);
in_one_mode!(
    failure_at_any_step_in_a_checkout_leaves_nothing,
    deployment_in_a_checkout_with_every_step_run_twice_goes_live,
    checkout_survives_a_killed_server_and_a_restart,
    work_of_a_person_during_a_failing_push_is_kept,
    checkout_that_a_person_must_mend_first_is_refused_with_the_remedy,
    edits_are_shown_committed_and_dropped,
    every_command_of_the_page_runs
);

fn shop(world: &World) -> Repo<'_> {
    world.larder(&["project", "create", "shop", "--mode", "editable"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.serves("shop", "version one");
    repo
}

/// Returns the checkout as people see it.
fn checkout(world: &World) -> PathBuf {
    world.environment("shop").join("run")
}

/// Runs a command in the checkout, as the user to whom it belongs.
fn by_hand(world: &World, script: &str) -> String {
    let identity = "export GIT_AUTHOR_NAME=ann GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=ann GIT_COMMITTER_EMAIL=a@b;";
    world.larder(&["run", "shop", "--", "sh", "-ec", &format!("{identity} {script}")]).ok().to_owned()
}

fn pushed_commit_runs_in_the_checkout_and_edits_stay(world: &World) {
    let repo = shop(world);
    let run = |script: &str| by_hand(world, script);
    assert_eq!(
        run("pwd; git rev-parse HEAD; git status --porcelain; echo $LARDER_MODE"),
        format!("/app\n{}\neditable\n", repo.head())
    );
    assert_eq!(repo.live(), Some(repo.head()));
    run("echo 'changed by hand' > index.html; echo mine > notes.txt");
    world.serves("shop", "changed by hand");
    // Files that the push does not change stay.
    repo.write("about.html", "about us").commit("about");
    repo.push().accepted().says("kept 2 files with changes by hand");
    world.serves("shop", "changed by hand");
    assert_eq!(world.get("shop", "/about.html").body, "about us");
    // A file that both have changed is refused with its name, and nothing changes.
    let live = repo.live();
    repo.page("version two");
    let push = repo.push();
    push.rejected_with("index.html was changed by hand in the checkout, and this push changes it, too")
        .says("changed  index.html");
    world.serves("shop", "changed by hand");
    assert_eq!(repo.live(), live);
    assert_eq!(run("cat notes.txt"), "mine\n");
    // The pusher can ask for the stash.
    let push = repo.push_as(&["--push-option=stash", "HEAD:refs/heads/main"]);
    push.accepted().says("put 1 file with changes by hand into git's stash").says("changed  index.html");
    world.serves("shop", "version two");
    assert_eq!(run("git stash show -p | grep '^+changed'"), "+changed by hand\n");
    // The option counts for one push only.
    run("echo 'changed again' > index.html");
    repo.page("version three");
    repo.push().rejected_with("index.html was changed by hand").says("git push --push-option=stash");
    // The recipe can ask for the stash, too.
    repo.write("larder.yml", "edits: stash\n").commit("stash");
    repo.push().accepted().says("put 1 file with changes by hand into git's stash").says("changed  index.html");
    world.serves("shop", "version three");
    assert_eq!(run("git stash show -p | grep '^+changed'; git stash list | wc -l"), "+changed again\n2\n");
    assert_eq!(fs::read_to_string(checkout(world).join("about.html")).unwrap(), "about us");
    // A commit of a person is not lost either.
    run("git config user.name Ann; git config user.email ann@example.com; git commit --quiet --all --allow-empty -m mine");
    repo.write("about.html", "about us all").commit("about");
    repo.push().rejected_with("the checkout has the commit");
    assert_eq!(run("git log -1 --format=%s"), "mine\n");
}

fn failed_push_checks_the_live_commit_out_again(world: &World) {
    let repo = shop(world);
    let good = repo.head();
    by_hand(world, "echo mine > notes.txt");
    repo.program(".larder/build", "#!/bin/sh\necho broken on purpose\nexit 3\n").page("version two");
    repo.push().rejected_with("broken on purpose").rejected_with("v1 still live");
    world.serves("shop", "version one");
    assert_eq!(by_hand(world, "git rev-parse HEAD; git status --porcelain"), format!("{good}\n?? notes.txt\n"));
    // Processes that do not become healthy are replaced by the old processes.
    repo.remove(".larder/build").write("Procfile", "web: exit 4\n").commit("broken process");
    repo.push().rejected_with("web.1 exited 4");
    world.serves("shop", "version one");
    assert_eq!(by_hand(world, "git rev-parse HEAD"), format!("{good}\n"));
    repo.remove("Procfile").page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    assert_eq!(by_hand(world, "cat notes.txt"), "mine\n");
}

fn failure_at_any_step_in_a_checkout_leaves_nothing(world: &World) {
    let repo = shop(world);
    let good = repo.head();
    by_hand(world, "echo mine > notes.txt; echo mine > 404.html");
    let steps = world.steps("shop");
    // An odd distance takes failpoints before and after the work of a step in turn.
    let distance = if thorough() { 1 } else { 5 };
    let names: Vec<_> = faults::around(&steps).into_iter().step_by(distance).collect();
    world.restart(&[("FAILPOINTS", &faults::once(&names))]);
    world.serves("shop", "version one");
    let state =
        |world: &World| by_hand(world, "git rev-parse HEAD; git status --porcelain; git stash list; cat notes.txt 404.html");
    let before = state(world);
    repo.page("version two");
    let mut unwinds = String::new();
    for name in &names {
        let push = repo.push();
        let phase = name.trim_start_matches("step.").split('.').next().unwrap();
        push.rejected_with(&format!("{phase}: stopped by a failpoint")).rejected_with("v1 still live");
        assert_eq!(state(world), before, "{name} left something behind");
        assert_eq!(repo.live().as_ref(), Some(&good), "{name}");
        world.serves("shop", "version one");
        unwinds.push_str(&faults::unwind(world));
    }
    if thorough() {
        golden("unwinds of editable", &unwinds)
    } else {
        golden_lines("unwinds of editable", &unwinds)
    }
    repo.push().accepted();
    world.serves("shop", "version two");
    let outcomes = world.outcomes("shop");
    assert!(outcomes.iter().all(|outcome| outcome.as_deref() != Some("stuck")), "{outcomes:?}");
}

fn deployment_in_a_checkout_with_every_step_run_twice_goes_live(world: &World) {
    let repo = shop(world);
    by_hand(world, "echo mine > notes.txt");
    world.restart(&[("FAILPOINTS", "twice=return")]);
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    assert_eq!(by_hand(world, "cat notes.txt; git status --porcelain"), "mine\n?? notes.txt\n");
}

fn checkout_survives_a_killed_server_and_a_restart(world: &World) {
    let repo = shop(world);
    by_hand(world, "echo 'changed by hand' > index.html");
    world.kill9_everything();
    world.start(&[]);
    world.serves("shop", "changed by hand");
    world.larder(&["restart", "shop"]).ok();
    world.serves("shop", "changed by hand");
    world.larder(&["config", "set", "shop", "COLOUR=red"]).ok();
    assert_eq!(by_hand(world, "echo $COLOUR; cat index.html"), "red\nchanged by hand\n");
    repo.write("about.html", "about us").commit("about");
    repo.push().accepted();
    world.serves("shop", "changed by hand");
}

fn work_of_a_person_during_a_failing_push_is_kept(world: &World) {
    let repo = shop(world);
    let good = repo.head();
    repo.program(".larder/build", "#!/bin/sh\ntouch building; while [ ! -e go ]; do sleep 0.05; done; exit 7\n");
    repo.write(".gitignore", "building\ngo\n").page("version two");
    let push = std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the build runs", || checkout(world).join("building").exists());
        by_hand(
            world,
            "echo mine > about.html; git add about.html; git commit --quiet -m 'by hand'; echo mine > index.html; touch go",
        );
        push.join().unwrap()
    });
    push.rejected_with("build: ").says("changed  index.html");
    let words = push.remote().join(" ");
    let branch = words.split_whitespace().find(|word| word.starts_with("kept-")).unwrap_or_else(|| panic!("{words}")).to_owned();
    world.larder(&["edits", "shop"]).says(&format!("Commits that were made during a push are on {branch}.")).exits(0);
    let script = format!(
        "git rev-parse HEAD; git symbolic-ref --short HEAD; git show {branch}:about.html; git show stash@{{0}}:index.html"
    );
    assert_eq!(by_hand(world, &script), format!("{good}\nmain\nmine\nmine\n"));
    world.serves("shop", "version one");
}

fn checkout_that_a_person_must_mend_first_is_refused_with_the_remedy(world: &World) {
    let repo = shop(world);
    let by_hand = |script: &str| by_hand(world, script);
    let state = || by_hand("git rev-parse HEAD; git status --porcelain; cat index.html");
    by_hand("git checkout --quiet -b topic; echo topic > index.html; git commit --quiet -am topic; git checkout --quiet main");
    repo.page("version two");
    repo.push().accepted();
    by_hand("! git merge --quiet topic > merged 2>&1; rm merged");
    let before = state();
    repo.page("version three");
    repo.push().rejected_with("gather: a merge is in progress in the checkout").says("git merge --abort");
    world
        .larder(&["edits", "shop", "commit", "--message", "x"])
        .exits(3)
        .says("a merge is in progress")
        .says("git merge --abort");
    assert_eq!(state(), before);
    by_hand("git merge --abort; git checkout --quiet --detach; touch .git/index.lock");
    repo.push().rejected_with("another git command uses the checkout: .git/index.lock exists").says("run/.git/index.lock");
    by_hand("rm .git/index.lock");
    if rustix::process::geteuid().is_root() {
        let directory = checkout(world).join("sub");
        by_hand("mkdir sub; echo mine > sub/mine");
        std::os::unix::fs::chown(&directory, Some(0), Some(0)).unwrap();
        repo.write("sub/page.html", "theirs").commit("a page below");
        repo.push().rejected_with("sub in the checkout belongs to another user").says("chown -R --no-dereference");
        let reference = format!("--reference={}/", checkout(world).display());
        let chown = std::process::Command::new("chown")
            .args(["-R", "--no-dereference", &reference])
            .arg(checkout(world).join(""))
            .status();
        assert!(chown.unwrap().success());
    }
    // A commit with a submodule is refused before the checkout changes.
    let live = repo.head();
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{live},vendor")]).ok();
    repo.git(&["commit", "--quiet", "-m", "a submodule"]).ok();
    repo.push().rejected_with("vendor is a git submodule");
    repo.git(&["reset", "--quiet", "--hard", &live]).ok();
    repo.push().accepted();
    world.serves("shop", "version three");
    assert_eq!(by_hand("git symbolic-ref --short HEAD; git branch --list topic").trim(), "main\n  topic");
    // A repository inside of the checkout is not committed.
    by_hand("git init --quiet tool; echo x > tool/x");
    let refused = world.larder(&["edits", "shop", "commit", "--message", "x"]);
    refused.exits(3).says("tool in the checkout is a git repository of its own").says("run/tool/.git");
    by_hand("rm -r tool");
    // A deleted repository is created again, at the live commit.
    by_hand("rm -rf .git sub/mine; echo mine > index.html; echo mine > mine.txt");
    repo.write("other.html", "other").commit("another page");
    repo.push().accepted().says("kept 2 files with changes by hand");
    assert_eq!(by_hand("git status --porcelain"), " M index.html\n?? mine.txt\n");
    assert_eq!(by_hand("git rev-parse HEAD").trim(), repo.head());
    world.serves("shop", "mine");
}

fn edits_are_shown_committed_and_dropped(world: &World) {
    let repo = shop(world);
    world.larder(&["edits", "shop"]).says("Nothing was changed by hand in shop/production");
    world.larder(&["edits", "shop", "drop"]).says("nothing was changed by hand");
    by_hand(world, "echo 'changed by hand' > index.html; echo mine > notes.txt");
    let shown = world.larder(&["edits", "shop"]);
    shown.says("2 files changed by hand in shop/production").says("changed  index.html").says("added    notes.txt");
    let json = world.larder(&["edits", "shop", "show", "--json"]).json();
    assert_eq!(json["edits"][1], serde_json::json!({ "path": "notes.txt", "edit": "added" }));
    world.larder(&["edits", "shop", "commit"]).exits(2).says("the commit has no message");
    // The commit is deployed, and comes back with a fetch.
    world.ssh("alice", &["edits", "shop", "commit", "--message", "'by hand'"]).exits(0);
    world.serves("shop", "changed by hand");
    let live = repo.live().unwrap();
    repo.git(&["fetch", "--quiet", &repo.url(), "main"]).ok();
    assert_eq!(repo.git(&["rev-parse", "FETCH_HEAD"]).ok().trim(), live);
    assert_eq!(repo.git(&["log", "-1", "--format=%an %s", "FETCH_HEAD"]).ok().trim(), "alice by hand");
    assert_eq!(repo.git(&["show", "FETCH_HEAD:notes.txt"]).ok(), "mine\n");
    world.larder(&["edits", "shop"]).says("Nothing was changed by hand");
    // A commit that a person made in the checkout is deployed in the same way.
    by_hand(world, "echo more > notes.txt; git commit --quiet -am more");
    world.larder(&["edits", "shop"]).says("The checkout has the commit");
    world.larder(&["edits", "shop", "commit", "--message", "unused"]).ok();
    repo.git(&["pull", "--quiet", "--rebase", &repo.url(), "main"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%an %s"]).ok().trim(), "ann more");
    by_hand(world, "echo wrong > index.html");
    world.larder(&["edits", "shop", "drop"]).says("1 file of shop/production moved to git's stash");
    world.serves("shop", "changed by hand");
    world.larder(&["edits", "shop"]).says("git's stash has 1 entry");
    repo.page("version two");
    repo.push().accepted();
    world.project("other");
    world.larder(&["edits", "other"]).exits(3).says("other/production has no checkout: its mode is cooking");
    world.larder(&["drift", "shop"]).exits(3).says("larder edits shop");
}

fn every_command_of_the_page_runs(world: &World) {
    if installed("python3").is_none() {
        return;
    }
    let page = Page::read("docs/development.md");
    dev::run_commands_of_the_page(&page);
    let run = |line: &str| {
        page.ran(line);
        let words = shlex::split(line).unwrap();
        let words: Vec<_> = words.iter().skip(1).map(String::as_str).collect();
        world.larder(&words).ok().to_owned()
    };
    run("larder project create shop --mode editable");
    let repo = Repo::site(world, "shop", "version one");
    page.ran("git remote add dev ssh://larder@HOST:2222/shop");
    repo.git(&["remote", "add", "dev", &repo.url()]).ok();
    repo.git(&["branch", "--move", "--force", "main"]).ok();
    page.ran("git push dev main");
    repo.git(&["push", "dev", "main"]).ok();
    world.serves("shop", "version one");
    page.ran("larder run shop -- bash");
    world.larder(&["run", "shop", "--", "bash", "-c", "echo mine > notes.txt"]).ok();
    assert!(run("larder edits shop").contains("notes.txt"));
    run("larder edits shop commit --message \"Correct the address\"");
    page.ran("git fetch dev");
    repo.git(&["fetch", "dev"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "dev/main"]).ok(), "Correct the address\n");
    by_hand(world, "echo more > notes.txt");
    run("larder edits shop drop");
    page.ran("git stash pop");
    assert_eq!(by_hand(world, "git stash pop --quiet; cat notes.txt"), "more\n");
    repo.git(&["reset", "--quiet", "--hard", "dev/main"]).ok();
    repo.write("notes.txt", "pushed").commit("change the notes, too");
    page.ran("git push --push-option=stash");
    repo.git(&["push", "--push-option=stash", "dev", "main"]).ok();
    assert_eq!(by_hand(world, "cat notes.txt; git stash show -p | grep '^+more'"), "pushed+more\n");
    page.has_no_other_command();
}
