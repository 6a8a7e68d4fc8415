//! Secrets of the pillar: commands, recipients, the search for a marker, rotation, bad input, and the page docs/secrets.md.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    configuration::{config, of_bytes, shop},
    configuration_secrecy::{MARKER, forms, found},
    harness::{Repo, World, cli::Output, docs::Page, in_each_mode, in_one_mode, processes, until},
    pillar::pillar,
};

in_each_mode!(
    secret_is_found_only_in_its_processes,
    secret_files_are_private_to_their_processes,
    build_secrets_are_in_builds_only_and_never_in_a_release,
);
in_one_mode!(
    secret_is_a_commit_of_the_pillar,
    removed_recipient_cannot_read_new_values_and_is_listed_with_the_old_ones,
    rotation_under_load_fails_no_request,
    bad_secret_is_refused_with_the_remedy,
    secret_that_two_people_set_at_once_is_refused_once,
    commands_of_the_page_work,
);

fn secret(world: &World, words: &[&str]) -> Output {
    world.ssh("alice", &[&["secret"], words].concat())
}

/// Runs `larder secret` with a value on the standard input.
fn secret_of(world: &World, user: &str, words: &[&str], value: &[u8]) -> Output {
    let mut command = world.client("ssh");
    command.args(world.ssh_options(user)).arg("larder@127.0.0.1").arg("secret").args(words);
    of_bytes(&mut command, value)
}

fn value(world: &World, name: &str) -> Option<String> {
    let hex = world.get("shop", &format!("/env/{name}")).body;
    let hex = hex.trim().strip_prefix("hex:")?.to_owned();
    let bytes = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    Some(String::from_utf8(bytes).unwrap())
}

fn secret_is_found_only_in_its_processes(world: &World) {
    if crate::harness::installed("zstd").is_none() {
        return;
    }
    let repo = shop(world);
    repo.write("larder.yml", "data: [media/]\nhealth: {timeout: 20s}\ndrain: 1s\n");
    // The search finds the value in a file that the project itself writes.
    repo.program(
        ".larder/post_deploy",
        "#!/bin/sh\n[ -z \"$LEAK\" ] || printf %s \"$TOKEN\" | gzip > media/leaked\necho \"printed $TOKEN\"\n",
    );
    repo.commit("with data");
    secret_of(world, "alice", &["set", "shop", "TOKEN"], MARKER.as_bytes()).exits(0).keeps_quiet_about(MARKER);
    repo.push().accepted().says("printed [TOKEN]");
    assert_eq!(value(world, "TOKEN").as_deref(), Some(MARKER));
    config(world, &["set", "shop", "PAGE=two"]).ok();
    config(world, &["set", "shop", "BROKEN=1"]).exits(1);
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["run", "shop", "--", "true"]).ok();
    secret(world, &["rotate", "shop"]).ok();
    secret(world, &["show", "shop"]).says("env.TOKEN").keeps_quiet_about(MARKER).exits(0);
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    for repository in ["project", "pillar"] {
        let objects = world.objects(repository);
        assert!(forms().iter().all(|form| !processes::contains(&objects, form)), "{repository} has the value");
    }
    let lines = processes::command_lines();
    assert!(lines.len() > 3 && lines.iter().all(|line| forms().iter().all(|form| !processes::contains(line, form))));
    let application = world.application("shop");
    let environment = fs::read(format!("/proc/{}/environ", application[0])).unwrap();
    assert!(processes::contains(&environment, MARKER.as_bytes()));
    config(world, &["set", "shop", "LEAK=1"]).ok();
    let leaked = found(world.root());
    assert!(leaked.len() == 1 && leaked[0].ends_with("data/media/leaked"), "{leaked:?}");
    // A restarted server reads the secret again.
    world.kill9_all();
    world.start(&[]);
    until("the application serves", || value(world, "TOKEN").as_deref() == Some(MARKER));
    world.is_consistent("shop");
}

fn secret_is_a_commit_of_the_pillar(world: &World) {
    let repo = shop(world);
    let output = secret_of(world, "alice", &["set", "shop", "API_TOKEN"], b"first-value");
    output.says("nothing is live in shop/production").says("Set the secret env.API_TOKEN in init.secrets.yml").ok();
    secret_of(world, "alice", &["set", "shop", "database.password"], b"correct-horse").ok();
    let pillar = pillar(world);
    pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
    pillar.write("production.yml", "env:\n  URL: postgres://shop:${database.password}@db/shop\n").commit("the address");
    pillar.push().accepted();
    repo.push().accepted();
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("first-value"));
    assert_eq!(value(world, "URL").as_deref(), Some("postgres://shop:correct-horse@db/shop"));
    // A value of one environment takes precedence. The commit names the author.
    let set = secret_of(world, "alice", &["set", "shop/production", "API_TOKEN"], b"of-production\n");
    set.says("v2 is live").keeps_quiet_about("of-production").ok();
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("of-production\n"));
    pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
    pillar.git(&["log", "-1", "--format=%an %s"]).says("alice Set the secret env.API_TOKEN in production.secrets.yml").ok();
    let file = fs::read_to_string(pillar.path().join("production.secrets.yml")).unwrap();
    assert!(file.contains("\nenv:\n  API_TOKEN: age:") && !file.contains("of-production"), "{file}");
    assert_eq!(secret(world, &["show", "shop/production", "API_TOKEN"]).ok(), "of-production\n");
    assert_eq!(secret(world, &["show", "shop", "API_TOKEN"]).ok(), "first-value");
    let listed = secret(world, &["show", "shop/production"]);
    listed.says("database.password").says("production.secrets.yml:3").keeps_quiet_about("horse").ok();
    secret_of(world, "alice", &["set", "shop/production", "API_TOKEN"], b"of-production\n").says("nothing to change").ok();
    // New encryption of the same values starts nothing.
    secret(world, &["rotate", "shop"]).says("the values of shop/production are unchanged").ok();
    // A rollback brings the earlier value back, and the next command replaces it.
    world.larder(&["rollback", "shop"]).ok();
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("first-value"));
    secret(world, &["rotate", "shop/production", "API_TOKEN", "--generate"]).ok();
    assert_eq!(value(world, "API_TOKEN").map(|value| value.len()), Some(43));
    secret(world, &["unset", "shop/production", "API_TOKEN"]).ok();
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("first-value"));
    secret_of(world, "alice", &["set", "shop", "API_TOKEN", "--no-restart"], b"later-value").says("the next deployment").ok();
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("first-value"));
    repo.write("code", "two").commit("code two");
    repo.push().accepted();
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("later-value"));
    // Values that were encrypted with the program age are read as well.
    let recipients = secret(world, &["recipients", "shop", "--json"]).json();
    let server = recipients["recipients"][0]["key"].as_str().unwrap().to_owned();
    let armored = age::encrypt_and_armor(&server.parse::<age::x25519::Recipient>().unwrap(), b"by-hand").unwrap();
    let block: String = armored.lines().map(|line| format!("    {line}\n")).collect();
    pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
    pillar.write("init.yml", format!("env:\n  HAND: |\n{block}")).commit("by hand");
    pillar.push().accepted();
    assert_eq!(value(world, "HAND").as_deref(), Some("by-hand"));
    // The right on the pillar is needed, and the audit log has names only.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    secret_of(world, "bob", &["set", "shop", "API_TOKEN"], b"bobs-value").exits(3).says("user grant bob shop pillar");
    world.ssh("bob", &["secret", "show", "shop", "API_TOKEN"]).exits(3).keeps_quiet_about("later-value");
    let audit = world.larder(&["audit"]);
    audit.says("Set the secret env.API_TOKEN").says("secret show").keeps_quiet_about("first-value").keeps_quiet_about("horse");
    world.is_consistent("shop");
}

/// Decrypts the first value of a file with a private key of ssh.
fn decrypt(world: &World, user: &str, file: &str) -> Option<String> {
    let encoded = file.lines().find_map(|line| line.split_once(": age:")).unwrap().1;
    let bytes = data_encoding::BASE64.decode(encoded.as_bytes()).unwrap();
    let key = fs::read(world.private_key(user)).unwrap();
    let identity = age::ssh::Identity::from_buffer(key.as_slice(), None).unwrap();
    age::decrypt(&identity, &bytes).ok().map(|value| String::from_utf8(value).unwrap())
}

fn removed_recipient_cannot_read_new_values_and_is_listed_with_the_old_ones(world: &World) {
    shop(world).push().accepted();
    for user in ["bob", "carol"] {
        world.key(user);
        world.larder(&["user", "add", user, "--key-file", &world.public_key(user)]).ok();
    }
    secret_of(world, "alice", &["set", "shop", "API_TOKEN"], b"first-value").ok();
    secret(world, &["recipients", "add", "shop", "bob"]).says("the values of shop/production are unchanged").ok();
    secret(world, &["recipients", "add", "shop", "carol"]).ok();
    secret(world, &["recipients", "shop"]).says("larder").says("age1").says("bob").says("ssh-").ok();
    let pillar = pillar(world);
    let file = || {
        pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
        fs::read_to_string(pillar.path().join("init.secrets.yml")).unwrap()
    };
    let with_bob = file();
    for user in ["bob", "carol"] {
        assert_eq!(decrypt(world, user, &with_bob).as_deref(), Some("first-value"), "{user}");
    }
    assert!(fs::read_to_string(pillar.path().join("recipients")).unwrap().contains("# bob\nssh-"));
    secret_of(world, "alice", &["set", "shop", "OTHER"], b"unchanged-value").ok();
    secret_of(world, "alice", &["rotate", "shop", "API_TOKEN"], b"second-value").ok();
    secret_of(world, "alice", &["rotate", "shop", "API_TOKEN"], b"third-value").ok();
    let removed = secret(world, &["recipients", "remove", "shop", "bob"]);
    removed.says("bob could read these secrets").says("env.OTHER in init.secrets.yml (the present value: rotate it)").ok();
    removed.says("env.API_TOKEN in init.secrets.yml (the present value: rotate it)");
    let without_bob = file();
    assert_eq!(decrypt(world, "bob", &without_bob), None);
    assert_eq!(decrypt(world, "carol", &without_bob).as_deref(), Some("third-value"));
    secret_of(world, "alice", &["rotate", "shop", "API_TOKEN"], b"fourth-value").ok();
    secret(world, &["recipients", "remove", "shop", "bob"]).exits(4).says("bob is no recipient of shop").says("carol");
    let removed = secret(world, &["recipients", "remove", "shop", "carol"]);
    removed.says("env.API_TOKEN").says("env.OTHER").ok();
    secret(world, &["recipients", "add", "shop", "ghost"]).exits(2).says("there is no user ghost");
    secret(world, &["recipients", "add", "shop", "x", "--key", "age1nonsense"]).exits(2).says("neither an age key");
    assert_eq!(value(world, "API_TOKEN").as_deref(), Some("fourth-value"));
}

fn rotation_under_load_fails_no_request(world: &World) {
    let repo = shop(world);
    repo.write("Procfile", "web: exec python3 app.py $PORT\nworker: exec sleep 1000\n").commit("a worker");
    secret_of(world, "alice", &["set", "shop", "TOKEN"], b"old-old-old-old-value").ok();
    repo.push().accepted();
    world.larder(&["ps", "shop", "--scale", "worker=1"]).ok();
    let visitor = world.visitor("shop");
    let has = |wanted: &str| {
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("environ")).ok());
        all.filter(|environment| processes::contains(environment, wanted.as_bytes())).count()
    };
    assert!(has("old-old-old-old-value") >= 2);
    let begun = Instant::now();
    let rotated = secret_of(world, "alice", &["rotate", "shop", "TOKEN"], b"new-new-new-new-value");
    let answered = begun.elapsed();
    rotated.ok();
    until("no process has the old value", || has("old-old-old-old-value") == 0);
    let gone = begun.elapsed();
    assert_eq!(value(world, "TOKEN").as_deref(), Some("new-new-new-new-value"));
    assert!(has("new-new-new-new-value") >= 2);
    visitor.satisfied();
    eprintln!("rotation: answered after {answered:?}, the last process with the old value ended after {gone:?}");
    assert!(gone < Duration::from_secs(60), "{gone:?}");
}

fn bad_secret_is_refused_with_the_remedy(world: &World) {
    let repo = shop(world);
    secret_of(world, "alice", &["set", "shop", "TOKEN"], b"good-value").ok();
    repo.push().accepted();
    let set = |name: &str, value: &[u8]| secret_of(world, "alice", &["set", "shop", name], value);
    set("A", b"hunter2\0hunter2").exits(2).says("NUL").says("base64").keeps_quiet_about("hunter2");
    set("A", &vec![b'x'; 10 << 20]).exits(2).says("limit 65536");
    set("A", b"\xff\xfe").exits(2).says("not UTF-8");
    set("A", b"").exits(2).says("the value is empty");
    set("PORT", b"80").exits(2).says("listen on $PORT");
    set("a..b", b"x").exits(2).says("not the name of a secret");
    set("larder.x", b"x").exits(3).says("the key larder is reserved");
    secret(world, &["set", "shop", "A=hunter2"]).exits(2).says("visible to other users");
    secret(world, &["set", "shop/none", "A"]).exits(4);
    secret(world, &["show", "shop", "NONE"]).exits(4).says("larder secret show shop");
    secret(world, &["rotate", "shop", "NONE", "--generate"]).exits(4);
    // A value that was copied from the pillar of another project cannot be read here.
    world.larder(&["project", "create", "bank", "--mode", "cooking"]).ok();
    secret_of(world, "alice", &["set", "bank", "TOKEN"], b"money-of-the-bank").ok();
    let path = world.directory().join("clones/bank-pillar");
    fs::create_dir_all(&path).unwrap();
    let bank = Repo::at(world, "bank/pillar", &path);
    bank.git(&["pull", "--quiet", &bank.url(), "main"]).ok();
    let stolen = fs::read_to_string(path.join("init.secrets.yml")).unwrap();
    let pillar = pillar(world);
    pillar.git(&["pull", "--quiet", &pillar.url(), "main"]).ok();
    let good = pillar.head();
    let stolen_line = stolen.lines().find(|line| line.contains("age:")).unwrap().trim().to_owned();
    let damaged = stolen_line.replace("age:Y", "age:Z");
    for (file, text, reason, remedy) in [
        (
            "production.yml",
            format!("env:\n  {stolen_line}\n"),
            "production.yml line 2: env.TOKEN: the value is encrypted for other recipients than this project (expected the recipient age1",
            "set the value again",
        ),
        (
            "init.yml",
            format!("a: 1\nb:\n  {damaged}\n"),
            "init.yml line 3: b.TOKEN: the encrypted value cannot be read",
            "set the value again",
        ),
        (
            "init.yml",
            String::from("a: age:!!\n"),
            "init.yml line 1: a: the encrypted value cannot be read",
            "set the value again",
        ),
        (
            "init.secrets.yml",
            String::from("env:\n  TOKEN: hunter2\n"),
            "init.secrets.yml line 2: env.TOKEN is not encrypted",
            "larder secret set",
        ),
        ("recipients", String::from("# bob\nssh-dss AAAA\n"), "recipients line 2: ", "ssh-ed25519"),
        ("recipients", String::from("AGE-SECRET-KEY-1HUNTER2\n"), "recipients line 1: this is a private key", "ssh-ed25519"),
    ] {
        pillar.write(file, text).commit("bad values");
        let push = pillar.push();
        push.rejected_with(reason).says(remedy).says("Nothing was changed.");
        push.0.keeps_quiet_about("hunter2").keeps_quiet_about("HUNTER2").keeps_quiet_about("money");
        pillar.git(&["reset", "--quiet", "--hard", &good]).ok();
    }
    assert_eq!(value(world, "TOKEN").as_deref(), Some("good-value"));
    // With another key, the server names the value that it cannot read, and the processes keep running.
    let key = world.root().join("state/config_age_key");
    let saved = fs::read(&key).unwrap();
    world.stop();
    fs::remove_file(&key).unwrap();
    world.start(&[]);
    secret(world, &["show", "shop"]).says("encrypted for other recipients").exits(0);
    secret(world, &["show", "shop", "TOKEN"]).exits(5).says("expected the recipient age1");
    world.stop();
    fs::write(&key, &saved).unwrap();
    world.start(&[]);
    assert_eq!(secret(world, &["show", "shop", "TOKEN"]).ok(), "good-value");
}

fn secret_that_two_people_set_at_once_is_refused_once(world: &World) {
    let repo = shop(world);
    secret_of(world, "alice", &["set", "shop", "TOKEN"], b"first-value").ok();
    repo.push().accepted();
    let mut command = world.client("ssh");
    command.args(world.ssh_options("alice")).arg("larder@127.0.0.1").args(["secret", "set", "shop", "TOKEN"]);
    let mut slow = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = slow.stdin.take().unwrap();
    input.write_all(b"slow-").unwrap();
    // The request of the slow command has arrived when its process waits for the input; a second is ample for that.
    std::thread::sleep(Duration::from_secs(2));
    secret_of(world, "alice", &["set", "shop", "TOKEN"], b"quick-value").ok();
    secret_of(world, "alice", &["set", "shop", "OTHER"], b"other-value").ok();
    input.write_all(b"value").unwrap();
    drop(input);
    let output = Output::from(String::from("secret set"), slow.wait_with_output().unwrap());
    output.exits(3).says("env.TOKEN was changed meanwhile").says("larder secret show shop").keeps_quiet_about("slow-value");
    assert_eq!(value(world, "TOKEN").as_deref(), Some("quick-value"));
    assert_eq!(value(world, "OTHER").as_deref(), Some("other-value"));
}

fn commands_of_the_page_work(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    let page = Page::read("docs/secrets.md");
    let ssh = world.ssh_options("alice").join(" ");
    let larder = world.larder_command();
    let words = std::iter::once(larder.get_program()).chain(larder.get_args()).map(|word| word.to_str().unwrap());
    let larder = shlex::try_join(words).unwrap();
    for block in page.blocks("sh") {
        let block = block.replace("HOST:2222", &format!("127.0.0.1:{}", world.ssh_port()));
        let script = format!("set -eu\nTOKEN=x\nNEW=y\nlarder() {{ {larder} \"$@\"; }}\n{block}\n");
        let mut shell = world.client("sh");
        shell.args(["-c", &script]).env("GIT_SSH_COMMAND", format!("ssh {ssh}")).env("GIT_SSH_VARIANT", "ssh");
        Output::of(&mut shell).exits(0).keeps_quiet_about("panicked");
    }
    assert!(page.blocks("sh").len() >= 3);
}

/// Returns the content of a file in the directory of secrets, as a command of the project reads it.
fn secret_file(world: &World, name: &str) -> String {
    let read = format!("cat $LARDER_SECRETS/{name}");
    world.larder(&["run", "shop", "--", "sh", "-c", &read]).ok().to_owned()
}

fn secret_files_are_private_to_their_processes(world: &World) {
    let repo = shop(world);
    let recipe = "health: {timeout: 20s}\ndrain: 1s\nsecrets:\n- tls.key\n- {key: tls.key, file: group.key, mode: \"0440\"}\n";
    repo.write("larder.yml", recipe).program(".larder/post_deploy", "#!/bin/sh\nls -ln $LARDER_SECRETS\n").commit("secret files");
    repo.push().rejected_with("secrets: the pillar has no text for the key tls.key").says("larder secret set");
    let key = format!("-----BEGIN KEY-----\n{MARKER}\n-----END KEY-----\n");
    secret_of(world, "alice", &["set", "shop", "tls.key"], key.as_bytes()).ok();
    let push = repo.push();
    push.accepted().says("-r-------- 1 ").says("-r--r----- 1 ");
    assert_eq!(secret_file(world, "tls.key"), key);
    let application = world.application("shop");
    let path = PathBuf::from(format!("/proc/{}/root/dev/shm/secrets", application[0]));
    assert_eq!(fs::read_to_string(path.join("tls.key")).unwrap(), key);
    assert!(!PathBuf::from("/dev/shm/secrets").exists(), "the host has the directory");
    let environment = fs::read(format!("/proc/{}/environ", application[0])).unwrap();
    assert!(!processes::contains(&environment, MARKER.as_bytes()), "a key outside of env is a variable");
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    // After a rotation, the old processes have ended, and the old value with them.
    secret_of(world, "alice", &["rotate", "shop", "tls.key"], b"second key\n").ok();
    assert_eq!(secret_file(world, "tls.key"), "second key\n");
    until("the old process ended", || !path.exists());
    let again = world.application("shop");
    assert_eq!(fs::read_to_string(format!("/proc/{}/root/dev/shm/secrets/group.key", again[0])).unwrap(), "second key\n");
    world.is_consistent("shop");
}

fn build_secrets_are_in_builds_only_and_never_in_a_release(world: &World) {
    let repo = shop(world);
    repo.write("larder.yml", "build: {secrets: [NPM_TOKEN]}\nhealth: {timeout: 20s}\ndrain: 1s\n");
    repo.program(".larder/build", "#!/bin/sh\necho \"built with ${NPM_TOKEN:-nothing}\"\n[ ! -e leak ] || sh ./leak\n");
    repo.program(".larder/post_deploy", "#!/bin/sh\necho \"deployed with ${NPM_TOKEN:-nothing}\"\n").commit("a build secret");
    secret_of(world, "alice", &["set", "shop", "NPM_TOKEN"], MARKER.as_bytes()).ok();
    repo.push().accepted().says("built with [NPM_TOKEN]").says("deployed with nothing");
    assert_eq!(value(world, "NPM_TOKEN"), None);
    world.larder(&["run", "shop", "--", "printenv", "NPM_TOKEN"]).exits(1).keeps_quiet_about(MARKER);
    for (way, file) in [
        ("printf %s \"$NPM_TOKEN\" > .npmrc", ".npmrc"),
        ("mkdir -p dist; printf 'user:%s' \"$NPM_TOKEN\" | base64 -w0 > dist/auth", "dist/auth"),
        ("mkdir -p dist; { cat app.py; printf %s \"$NPM_TOKEN\"; } | gzip > dist/page.gz", "dist/page.gz"),
    ] {
        repo.write("leak", way).commit("a leak");
        let push = repo.push();
        push.rejected_with(&format!("\"{file}\" of the built tree contains the value of ")).says("v1 still live");
        push.0.keeps_quiet_about(MARKER);
        assert_eq!(found(&world.environment("shop").join("releases")), Vec::<PathBuf>::new(), "{way}");
    }
    repo.write("leak", "printf %s \"$NPM_TOKEN\" > .npmrc; rm .npmrc\n").commit("a file that the build deletes");
    repo.push().accepted();
    // The layers of refused builds are deleted in the background.
    until("the layers of the refused builds are deleted", || found(world.root()).is_empty());
    world.is_consistent("shop");
}
