//! Deploy keys: builds clone private repositories over ssh, with one key for each project that neither a release nor an output contains.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use crate::harness::{Repo, World, cli::Output, in_each_mode, in_one_mode, installed, processes, sshd::Sshd, until};

in_each_mode!(build_clones_a_private_repository_with_the_deploy_key);
in_one_mode!(
    host_that_is_not_recorded_and_key_that_is_refused_name_the_remedy,
    release_with_the_deploy_key_is_refused_and_output_is_redacted,
    deploy_key_of_one_project_is_of_no_use_to_another,
    host_key_of_openssh_is_recorded_with_its_fingerprint,
);

fn deploy_key(world: &World, words: &[&str]) -> Output {
    world.ssh("alice", &[&["key", "deploy"], words].concat())
}

/// Returns the public key of a project, as the command prints it.
fn public(world: &World, project: &str) -> String {
    deploy_key(world, &[project]).ok().lines().next().unwrap().to_owned()
}

/// Creates the private project `library` on the same server, which serves as the other git server, and the project `shop`, whose build
/// clones the library. Returns the repository of the shop.
fn shop(world: &World) -> Repo<'_> {
    world.project("library").project("shop");
    let library = Repo::site(world, "library", "a private page");
    library.push().accepted();
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root public\n").write("larder.yml", "drain: 1s\n");
    let script = format!(
        "#!/bin/sh\nset -e\nmkdir -p public\ngit clone --quiet --depth 1 {} /tmp/library\ncp /tmp/library/index.html public/\n\
         [ ! -e more ] || . ./more\n",
        library.url()
    );
    repo.program(".larder/build", &script).commit("a build that clones");
    repo
}

/// Lets the deploy key of a project read the library.
fn admit(world: &World, project: &str) {
    let line = public(world, project);
    world.larder(&["user", "add", "builder", "--key", &line]).ok();
    world.larder(&["user", "grant", "builder", "library", "view"]).ok();
}

fn own_host(world: &World) -> String {
    format!("127.0.0.1:{}", world.ssh_port())
}

/// Returns the texts by which the private half of a key could be found: the lines of its body without the first, which is the same in each key.
fn private_lines(body: &str) -> Vec<Vec<u8>> {
    let lines = body.lines().filter(|line| !line.starts_with("-----") && line.len() >= 8).skip(1);
    lines.map(|line| line.as_bytes().to_vec()).collect()
}

/// Returns the files below a directory that contain one of the texts.
fn files_with(directory: &std::path::Path, texts: &[Vec<u8>]) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(directory).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    let has =
        |path: &std::path::Path| fs::read(path).is_ok_and(|bytes| texts.iter().any(|text| processes::contains(&bytes, text)));
    files.map(|entry| entry.into_path()).filter(|path| has(path)).collect()
}

fn build_clones_a_private_repository_with_the_deploy_key(world: &World) {
    let repo = shop(world);
    repo.push().rejected();
    let made = deploy_key(world, &["shop"]);
    made.says("The key is new").says(" larder-shop\n").says("hosts        none").ok();
    deploy_key(world, &["shop"]).keeps_quiet_about("The key is new").says(&public(world, "shop")).ok();
    admit(world, "shop");
    let recorded = deploy_key(world, &["shop", "--host", &own_host(world)]);
    let own = world.larder(&["--json", "key", "show"]).json();
    recorded.says("Compare this fingerprint").says(own["fingerprint"].as_str().unwrap()).ok();
    // The build sees the key as a file of its user, and nobody else sees it.
    repo.write("more", "ls -ln /dev/shm/deploy-key\nid -u\necho \"$GIT_SSH_COMMAND\"\n").commit("with a look");
    repo.program(
        ".larder/post_deploy",
        "#!/bin/sh\necho \"after: ${GIT_SSH_COMMAND:-no command}\"; ls /dev/shm/deploy-key 2>&1 || true\n",
    );
    repo.commit("with a look after the build");
    let push = repo.push();
    push.accepted().says("-r-------- 1 ").says("StrictHostKeyChecking=yes").says("after: no command");
    world.serves("shop", "a private page");
    assert!(!PathBuf::from("/dev/shm/deploy-key").exists(), "the machine has the directory");
    world.larder(&["run", "shop", "--", "sh", "-c", "ls /dev/shm"]).ok();
    world.larder(&["run", "shop", "--", "ls", "/dev/shm/deploy-key"]).exits(2);
    // On the disk, the private half is encrypted.
    let directory = world.root().join("state/deploy_keys");
    let files: Vec<_> = fs::read_dir(&directory).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(files.len(), 1);
    let mode = fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    let record = fs::read_to_string(&files[0]).unwrap();
    assert!(record.contains("\"private\": \"age:") && !record.contains("PRIVATE KEY"), "{record}");
    // A new key is used by the next build, and is not admitted yet.
    let before = public(world, "shop");
    deploy_key(world, &["shop", "--rotate"]).says("The key is new").keeps_quiet_about(&before).ok();
    repo.commit("again");
    repo.push().rejected_with("Permission denied").says("`larder key deploy shop`");
    world.larder(&["key", "add", "builder", "--key", &public(world, "shop")]).ok();
    repo.push().accepted();
    // The server that starts anew has the same key.
    let key = public(world, "shop");
    world.restart(&[]);
    assert_eq!(public(world, "shop"), key);
    deploy_key(world, &["shop", "--remove"]).says("no deploy key any more").ok();
    deploy_key(world, &["shop", "--remove"]).exits(4).says("shop has no deploy key");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    let audit = world.larder(&["audit"]);
    audit.says("key deploy").says("rotate").says("remove");
    deploy_key(world, &["shop"]).ok();
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "the key of a removed project stays");
    world.is_consistent("library");
}

fn host_that_is_not_recorded_and_key_that_is_refused_name_the_remedy(world: &World) {
    let repo = shop(world);
    public(world, "shop");
    let host = own_host(world);
    let push = repo.push();
    push.rejected_with(&format!("ssh: no host key is recorded for {host}"));
    push.says(&format!("record the host key: larder key deploy shop --host {host}"));
    // Another key is recorded: a machine in between, or a new key of the host.
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    deploy_key(world, &["shop", "--host", &host, "--host-key", &format!("'{other}'")]).ok();
    repo.push().rejected_with("is not the recorded one").says("--forget-host");
    let refused = deploy_key(world, &["shop", "--host", &host]);
    refused.exits(3).says("cannot record the host key SHA256:").says(&format!("--forget-host {host}"));
    deploy_key(world, &["shop", "--forget-host", &host]).says("hosts        none").ok();
    deploy_key(world, &["shop", "--forget-host", &host]).exits(4).says("no host key is recorded");
    deploy_key(world, &["shop", "--host", &host]).ok();
    repo.push().rejected_with("Permission denied").says("as a deploy key that may read");
    admit(world, "shop");
    repo.push().accepted();
    // Bad input.
    deploy_key(world, &["shop", "--host", "'*'"]).exits(2).says("expected HOST or HOST:PORT");
    deploy_key(world, &["shop", "--host", "-oProxyCommand=x"]).exits(2);
    deploy_key(world, &["shop", "--host", "127.0.0.1:1"])
        .exits(3)
        .says("cannot read the host key of 127.0.0.1:1")
        .says("--host-key");
    deploy_key(world, &["shop", "--host", "a.example", "--host-key", "x"]).exits(2).says("not a public key");
    deploy_key(world, &["nowhere"]).exits(4);
    // The right on the pillar is needed.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    world.ssh("bob", &["key", "deploy", "shop"]).exits(3).says("user grant bob shop pillar");
    // Without the key of the server, builds are refused, and the remedy works.
    let file = world.root().join("state/config_age_key");
    let saved = fs::read(&file).unwrap();
    world.stop();
    fs::remove_file(&file).unwrap();
    world.start(&[]);
    repo.commit("again");
    repo.push().rejected_with("cannot use the deploy key").says("larder key deploy shop --rotate");
    world.stop();
    fs::write(&file, saved).unwrap();
    world.start(&[]);
    repo.write(".larder/build", "#!/bin/sh\nmkdir -p public; echo plain > public/index.html\n").commit("without the library");
    repo.push().accepted();
}

fn release_with_the_deploy_key_is_refused_and_output_is_redacted(world: &World) {
    let repo = shop(world);
    admit(world, "shop");
    deploy_key(world, &["shop", "--host", &own_host(world)]).ok();
    repo.push().accepted();
    // An application may print or pack the key: its lines are replaced, and the release is refused.
    repo.write("more", "tail -n +3 /dev/shm/deploy-key/key\n").commit("prints the key");
    let push = repo.push();
    push.accepted().says("[deploy key]");
    repo.write("more", "echo \"copy \"; sed 's/^/| /' /dev/shm/deploy-key/key > /cache/copy; sed -n '3,4p' /dev/shm/deploy-key/key | head -c 90; echo\n");
    repo.commit("keeps the key in its own cache");
    repo.push().accepted();
    let copy = fs::read_to_string(world.environment("shop").join("cache/copy")).unwrap();
    let lines = private_lines(&copy.replace("| ", ""));
    assert!(lines.len() >= 3, "{}", lines.len());
    for (way, file) in [
        ("cp /dev/shm/deploy-key/key id_ed25519", "id_ed25519"),
        ("mkdir -p dist; sed -n 4p /dev/shm/deploy-key/key > dist/line", "dist/line"),
        ("mkdir -p dist; base64 -w0 /dev/shm/deploy-key/key > dist/encoded", "dist/encoded"),
        ("mkdir -p dist; gzip < /dev/shm/deploy-key/key > dist/key.gz", "dist/key.gz"),
    ] {
        repo.write("more", way).commit("a leak");
        let push = repo.push();
        push.rejected_with(&format!("\"{file}\" of the built tree contains the value of deploy key")).says("still live");
        let texts: Vec<_> = lines.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect();
        for line in &texts {
            push.0.keeps_quiet_about(line);
        }
    }
    // Another private key of ssh, such as one of a test, is no leak.
    let mut keygen = world.client("ssh-keygen");
    let other = world.directory().join("other-key");
    Output::of(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&other)).ok();
    repo.remove("more").write("tests/key", fs::read(&other).unwrap()).commit("a key of the project's own tests");
    repo.push().accepted();
    // The key is in the cache, where the build itself has put it, and nowhere else.
    let found = || files_with(world.root(), &lines);
    until("the layers of the refused builds are deleted", || {
        found().iter().all(|path| path.ends_with("shop/production/cache/copy"))
    });
    assert_eq!(found().len(), 1);
}

fn deploy_key_of_one_project_is_of_no_use_to_another(world: &World) {
    let repo = shop(world);
    admit(world, "shop");
    deploy_key(world, &["shop", "--host", &own_host(world)]).ok();
    repo.push().accepted();
    // The thief has the record of the shop under its own number, as after a copy on the disk.
    world.project("thief");
    let line = public(world, "thief");
    deploy_key(world, &["thief", "--host", &own_host(world)]).ok();
    let thief = Repo::new(world, "thief");
    thief.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", "drain: 1s\n");
    let url = Repo::new(world, "library").url();
    thief.program(".larder/build", &format!("#!/bin/sh\nset -e\ngit clone --quiet {url} library\n")).commit("a clone");
    thief.push().rejected_with("Permission denied");
    assert_ne!(line, public(world, "shop"));
    let directory = world.root().join("state/deploy_keys");
    let mut files: Vec<_> = fs::read_dir(&directory).unwrap().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let [first, second] = &files[..] else { panic!("{files:?}") };
    let of_thief = if fs::read_to_string(first).unwrap().contains(&line.replace(" larder-thief", "")) { first } else { second };
    let of_shop = if of_thief == first { second } else { first };
    fs::write(of_thief, fs::read(of_shop).unwrap()).unwrap();
    thief.push().rejected_with("encrypted for other recipients");
}

fn host_key_of_openssh_is_recorded_with_its_fingerprint(world: &World) {
    world.project("shop");
    let (Some(sshd), Some(_)) = (Sshd::start(world), installed("ssh-keygen")) else { return };
    let host = format!("127.0.0.1:{}", sshd.port);
    let mut keygen = world.client("ssh-keygen");
    let printed = Output::of(keygen.args(["-l", "-f"]).arg(world.directory().join("sshd/host.pub")));
    let fingerprint = printed.ok().split_whitespace().nth(1).unwrap().to_owned();
    deploy_key(world, &["shop", "--host", &host]).says(&fingerprint).ok();
    // A key of another kind of the same host, as a line of known_hosts.
    let line = sshd.known_hosts();
    deploy_key(world, &["shop", "--host", &host, "--host-key", &format!("'{}'", line.trim())]).says(&fingerprint).ok();
    let view = world.ssh("alice", &["key", "deploy", "shop", "--json"]).json();
    assert_eq!(view["hosts"].as_array().unwrap().len(), 2, "{view}");
}
