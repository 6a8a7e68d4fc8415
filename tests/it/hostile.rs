//! Hostile pushes: larder bounds their use of time, disk and output, and refuses them with a reason.

use std::time::{Duration, Instant};

use crate::harness::{Repo, World, cli::Output, in_one_mode};

in_one_mode!(
    git_bomb_is_refused_quickly,
    submodule_lfs_pointer_and_symlink_are_handled,
    build_cannot_reach_beyond_its_sandbox,
    build_leaves_no_processes,
    endless_build_output_is_bounded,
    names_like_options_are_treated_as_names,
    push_of_too_many_refs_is_refused,
    tree_with_escaping_paths_is_refused,
    old_history_with_harmless_faults_is_deployed,
);

fn git_bomb_is_refused_quickly(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let hash = |kind: &str, text: &str| {
        let mut command = repo.command();
        command.args(if kind == "tree" { &["mktree"][..] } else { &["hash-object", "-w", "--stdin"] });
        piped(&mut command, text)
    };
    // Each tree names the tree below it 200 times, so ten small objects describe more files than any disk can hold.
    let (mut id, mut mode) = (hash("blob", "boom\n"), ("100644", "blob"));
    for _ in 0..10 {
        let entries: String = (0..200).map(|number| format!("{} {} {id}\tf{number:03}\n", mode.0, mode.1)).collect();
        id = hash("tree", &entries);
        mode = ("040000", "tree");
    }
    let commit = repo.git(&["commit-tree", "-m", "boom", &id]).ok().trim().to_owned();
    let start = Instant::now();
    let push = repo.push_as(&[&format!("{commit}:refs/heads/main")]);
    push.rejected_with("gather: ").rejected_with("nothing is live yet");
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    let used = Output::of(world.client("du").args(["-sk"]).arg(world.root()));
    let used: u64 = used.ok().split('\t').next().unwrap().parse().unwrap();
    assert!(used < 64 * 1024, "the bomb takes {used} KiB of the disk");
    // The next push is accepted.
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

fn submodule_lfs_pointer_and_symlink_are_handled(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let good = repo.head();
    // The first tree has a submodule.
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{good},vendor/lib")]).ok();
    repo.git(&["commit", "-m", "submodule"]).ok();
    let push = repo.push();
    push.says("vendor/lib").says("submodule");
    repo.git(&["reset", "--quiet", "--hard", &good]).ok();
    // The second tree has a pointer of git-lfs instead of the file.
    repo.write(".gitattributes", "*.mp4 filter=lfs diff=lfs merge=lfs -text\n");
    repo.write("video.mp4", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n");
    repo.commit("lfs");
    repo.push_as(&["--force", "HEAD:refs/heads/main"]).says("video.mp4").says("LFS");
    repo.git(&["reset", "--quiet", "--hard", &good]).ok();
    // The third tree has a symlink out of the tree. If the push is accepted, the static server does not follow the symlink.
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

fn build_cannot_reach_beyond_its_sandbox(world: &World) {
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
    assert_eq!(world.get("shop", "/reached.txt").body, "", "the build reached a path outside its sandbox");
    assert_ne!(world.get("shop", "/id.txt").body.trim(), "0");
}

fn build_leaves_no_processes(world: &World) {
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

/// The output of a build is bounded: the output fills neither the disk nor the client's terminal, and does not stop the deployment.
fn endless_build_output_is_bounded(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.program(
        ".larder/build",
        "#!/bin/sh\nyes 'a line that says nothing' | head -c 60000000\nhead -c 3000000 /dev/zero | tr '\\0' x\necho\nprintf 'bell \\007 and \\033[2Jclear\\n'\n",
    );
    repo.page("version one");
    let push = repo.push();
    push.accepted();
    assert!(!push.0.stderr.contains('\u{7}') && !push.0.stderr.contains("\u{1b}[2J"), "control characters reach the terminal");
    let shown = push.0.stderr.len();
    assert!(shown < 20_000_000, "{shown} bytes were shown");
    let deployments = world.environment("shop").join("deployments");
    for name in crate::harness::state::names(&deployments) {
        let size = std::fs::metadata(deployments.join(&name).join("log")).unwrap().len();
        assert!(size < 20_000_000, "the log has {size} bytes");
    }
    world.serves("shop", "version one");
}

fn names_like_options_are_treated_as_names(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let one = repo.head();
    let before = world.snapshot("shop");
    // Git's porcelain does not create some of these names; its plumbing does.
    for name in ["refs/heads/--upload-pack=id", "refs/heads/-rf", "refs/heads/$(id)", "refs/heads/a;id", "refs/heads/`id`"] {
        let push = repo.push_as(&[&format!("{one}:{name}")]);
        assert_eq!(push.0.status, 1, "{name}: {}", push.0);
        push.0.keeps_quiet_about("uid=");
    }
    for name in ["refs/tags/--help", "refs/tags/-d"] {
        // A tag is only stored; its name must not become an option.
        repo.push_as(&[&format!("{one}:{name}")]).0.keeps_quiet_about("uid=").keeps_quiet_about("usage:");
    }
    for name in ["--help", "-d", "--upload-pack=id", "$(id)", "refs/heads/main", "HEAD", "main^{tree}", "@{-1}", ":/version"] {
        let deploy = world.larder(&["deploy", "shop", &format!("--ref={name}")]);
        assert!(matches!(deploy.status, 0 | 2 | 4), "{name}: {deploy}");
        deploy.keeps_quiet_about("usage: git").keeps_quiet_about("uid=");
    }
    // The last commit has control characters and shell syntax in its message and its author.
    repo.git(&["-c", "user.name=$(id)\u{1b}[2J", "commit", "--allow-empty", "-m", "\u{1b}]0;title\u{7} --help `id`"]).ok();
    let push = repo.push();
    push.accepted();
    assert!(!push.0.stderr.contains('\u{1b}'), "{}", push.0);
    for words in [&["releases", "shop"][..], &["status"], &["project", "info", "shop"]] {
        let said = world.larder(words);
        assert!(!said.stdout.contains('\u{1b}') && !said.stdout.contains("uid="), "{said}");
    }
    assert!(before.files.len() <= world.snapshot("shop").files.len());
    world.serves("shop", "version one");
}

fn push_of_too_many_refs_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let one = repo.head();
    let updates: String = (0..3000).map(|number| format!("create refs/heads/topic/{number} {one}\n")).collect();
    piped(repo.command().args(["update-ref", "--stdin"]), &updates);
    let start = Instant::now();
    let push = repo.push_as(&["refs/heads/topic/*:refs/heads/topic/*"]);
    assert_eq!(push.0.status, 1, "{}", push.0.stderr.chars().take(2000).collect::<String>());
    push.says("the push changes more than 2000 refs").says("smaller groups");
    assert!(start.elapsed() < Duration::from_secs(30), "it took {:?}", start.elapsed());
    // The next push exceeds the default limit of the server file.
    let push = repo.push_as(&["refs/heads/topic/1*:refs/heads/topic/1*"]);
    assert_eq!(push.0.status, 1);
    push.says("this push changes 1111 refs; at most 100 are allowed");
    assert_eq!(repo.ls_remote().len(), 2, "some refs were stored");
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
}

/// Git's own programs do not create these trees. The names of their entries lead out of the tree, or are otherwise invalid.
fn tree_with_escaping_paths_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let before = world.snapshot("shop");
    let blob = raw(&repo, "blob", b"out\n");
    let link = raw(&repo, "blob", b"/etc");
    let file = tree_entry("100644", "passwd", &blob);
    let inner = raw(&repo, "tree", &file);
    let trees = [
        tree_entry("100644", "../out", &blob),
        tree_entry("100644", "/etc/out", &blob),
        tree_entry("40000", "..", &inner),
        tree_entry("40000", ".", &inner),
        tree_entry("40000", ".git", &inner),
        tree_entry("40000", ".GIT", &inner),
        tree_entry("100644", "", &blob),
        [tree_entry("120000", "etc", &link), tree_entry("40000", "etc", &inner)].concat(),
        [tree_entry("100644", "twice", &blob), tree_entry("100644", "twice", &blob)].concat(),
        tree_entry("100644", &"x".repeat(5000), &blob),
    ];
    for (number, tree) in trees.iter().enumerate() {
        let tree = raw(&repo, "tree", tree);
        let text = format!("tree {tree}\nauthor a <a@b> 1700000000 +0000\ncommitter a <a@b> 1700000000 +0000\n\nout\n");
        let commit = raw(&repo, "commit", text.as_bytes());
        let push = repo.push_as(&["--force", &format!("{commit}:refs/heads/main")]);
        assert_eq!(push.0.status, 1, "tree {number}: {}", push.0);
        assert_eq!(world.snapshot("shop"), before, "tree {number}");
    }
    for path in [world.environment("shop").join("project/out"), "/etc/out".into(), world.environment("shop").join("out")] {
        assert!(!path.exists(), "{}", path.display());
    }
    world.serves("shop", "version one");
}

/// The history below a valid commit has commits and trees with harmless faults, as old programs wrote them.
fn old_history_with_harmless_faults_is_deployed(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let blob = raw(&repo, "blob", b"version one\n");
    let inner = raw(&repo, "tree", &tree_entry("100644", "index.html", &blob));
    let padded = raw(&repo, "tree", &[tree_entry("100644", "index.html", &blob), tree_entry("040000", "old", &inner)].concat());
    let mut parent = String::new();
    for who in [
        "a <a@b> 1700000000 +051800",
        "a 1700000000 +0000",
        "a<a@b> 1700000000 +0000",
        "a <a@b>1700000000 +0000",
        "<a@b> 1700000000 +0000",
        "a <a@b> 01700000000 +0000",
    ] {
        let text = format!("tree {padded}\n{parent}author {who}\ncommitter a <a@b> 1700000000 +0000\n\nold\n");
        parent = format!("parent {}\n", raw(&repo, "commit", text.as_bytes()));
    }
    let text = format!("tree {padded}\n{parent}author a <a@b> 1700000000 +0000\ncommitter a <a@b> 1700000000 +0000\n\ntoday\n");
    let commit = raw(&repo, "commit", text.as_bytes());
    repo.push_as(&[&format!("{commit}:refs/heads/main")]).accepted();
    world.serves("shop", "version one");
    // Faults that can mislead a program are still refused.
    let dotgit = raw(&repo, "tree", &tree_entry("40000", ".git", &inner));
    let text = format!("tree {dotgit}\nauthor a <a@b> 1700000000 +0000\ncommitter a <a@b> 1700000000 +0000\n\nbad\n");
    let commit = raw(&repo, "commit", text.as_bytes());
    assert_eq!(repo.push_as(&["--force", &format!("{commit}:refs/heads/main")]).0.status, 1);
}

fn tree_entry(mode: &str, name: &str, id: &str) -> Vec<u8> {
    let bytes = (0..20).map(|at| u8::from_str_radix(&id[at * 2..at * 2 + 2], 16).unwrap());
    [format!("{mode} {name}\0").into_bytes(), bytes.collect()].concat()
}

/// Writes an object without any check.
fn raw(repo: &Repo<'_>, kind: &str, bytes: &[u8]) -> String {
    let file = repo.path().join(".git/raw");
    std::fs::write(&file, bytes).unwrap();
    repo.git(&["hash-object", "-t", kind, "--literally", "-w", ".git/raw"]).ok().trim().to_owned()
}
