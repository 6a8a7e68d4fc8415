//! Pushes that want to hurt: refused soon, with a line, and without much of the machine.

use std::time::{Duration, Instant};

use crate::harness::{Repo, World, cli::Output, in_one_mode};

in_one_mode!(
    a_git_bomb_is_refused_soon,
    trees_that_are_not_plain_files,
    a_build_cannot_reach_beyond_its_sandbox,
    a_build_cannot_leave_processes_behind
);

fn a_git_bomb_is_refused_soon(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    // Ten levels of ten entries that are all the same: a handful of objects, ten thousand million files.
    let hash = |kind: &str, text: &str| {
        let mut command = repo.command();
        command.args(if kind == "tree" { &["mktree"][..] } else { &["hash-object", "-w", "--stdin"] });
        piped(&mut command, text)
    };
    let mut id = hash("blob", "boom\n");
    let mut mode = ("100644", "blob");
    for _ in 0..10 {
        let entries: String = (0..10).map(|number| format!("{} {} {id}\tf{number}\n", mode.0, mode.1)).collect();
        id = hash("tree", &entries);
        mode = ("040000", "tree");
    }
    let commit = repo.git(&["commit-tree", "-m", "boom", &id]).ok().trim().to_owned();
    let start = Instant::now();
    let push = repo.push_as(&[&format!("{commit}:refs/heads/main")]);
    push.rejected_with("gather: ").rejected_with("nothing is live yet");
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    // The next push is as welcome as ever.
    repo.page("version one");
    repo.push().accepted();
    world.serves("shop", "version one");
}

fn piped(command: &mut std::process::Command, text: &str) -> String {
    use std::{io::Write, process::Stdio};
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Output::from(String::from("git"), child.wait_with_output().unwrap()).ok().trim().to_owned()
}

fn trees_that_are_not_plain_files(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let good = repo.head();
    // A submodule whose commit is not in the push.
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{good},vendor/lib")]).ok();
    repo.git(&["commit", "-m", "submodule"]).ok();
    let push = repo.push();
    push.says("vendor/lib").says("submodule");
    repo.git(&["reset", "--quiet", "--hard", &good]).ok();
    // A pointer of git-lfs instead of the file.
    repo.write("video.mp4", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n");
    repo.commit("lfs");
    repo.push_as(&["--force", "HEAD:refs/heads/main"]).says("video.mp4").says("LFS");
    repo.git(&["reset", "--quiet", "--hard", &good]).ok();
    // A link out of the tree is kept as a link, and leads nowhere for the one who asks through the front door.
    std::os::unix::fs::symlink("/etc/passwd", repo.path().join("passwd")).unwrap();
    repo.commit("link");
    let push = repo.push_as(&["--force", "HEAD:refs/heads/main"]);
    if push.0.status == 0 {
        let answer = world.get("shop", "/passwd");
        assert_ne!(answer.status, 200, "{answer:?}");
    } else {
        push.rejected_with("passwd");
    }
}

fn a_build_cannot_reach_beyond_its_sandbox(world: &World) {
    world.project("shop").project("other");
    if !world.larder(&["status"]).stdout.contains("in namespaces") {
        eprintln!("SKIPPED: there are no namespaces here");
        return;
    }
    let repo = Repo::new(world, "shop");
    let root = world.root().display();
    repo.program(
        ".larder/build",
        &format!(
            "#!/bin/sh\nid -u > id.txt\nfor path in {root}/state/registry.json {root}/state/ssh_host_ed25519_key {root}/state/control.sock {root}/hooks/hook.sock \
             {root}/keeper/lock {root}/projects/other /etc/shadow; do\n  if ls -ld \"$path\"/. >/dev/null 2>&1 || cat \"$path\" >/dev/null 2>&1; then echo \"$path\" >> reached.txt; fi\ndone\n\
             for path in / /etc /usr /bin /proc/sys /sys; do if touch \"$path/larder-was-here\" 2>/dev/null; then echo \"wrote $path\" >> reached.txt; fi; done\n\
             ls /proc/*/fd -l 2>/dev/null | grep -c sock > sockets.txt; touch reached.txt\n"
        ),
    );
    repo.page("version one");
    repo.push().accepted();
    assert_eq!(world.get("shop", "/reached.txt").body, "", "a build reached what it should not");
    assert_ne!(world.get("shop", "/id.txt").body.trim(), "0");
}

fn a_build_cannot_leave_processes_behind(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.program(
        ".larder/build",
        "#!/bin/sh\n(trap '' TERM HUP INT; setsid sh -c 'trap \"\" TERM; exec sleep 98765' &) &\nexec 3>&1\nsleep 98765 &\necho done\n",
    );
    repo.page("version one");
    let start = Instant::now();
    repo.push().accepted();
    assert!(start.elapsed() < Duration::from_secs(30), "the build's output was held open: {:?}", start.elapsed());
    let left: Vec<_> = crate::harness::processes::of(world.directory())
        .into_iter()
        .filter(|process| process.arguments.iter().any(|argument| argument == "98765"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    world.serves("shop", "version one");
}
