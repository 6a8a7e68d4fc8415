//! Attacks on the secrets of another project and of the own one: a hostile pusher with all rights on the project `shop` wants the secrets of
//! the project `bank`, and values of the shop that only builds get.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    configuration::{config, of_bytes, shop},
    configuration_secrecy::{MARKER, forms, found},
    harness::{Repo, World, cli::Output, in_each_mode, in_one_mode, mail::MailServer, processes, receiver::Receiver, until},
    notifications::QUICK,
    pillar::pillar,
};

in_each_mode!(secret_of_a_crash_and_of_a_failure_is_in_no_core_file_mail_or_webhook);
in_one_mode!(
    secret_of_another_project_cannot_be_had_by_the_pillar,
    secret_of_another_project_cannot_be_read_from_its_processes,
    build_secret_is_in_no_template,
    commands_show_no_value_without_the_right,
    common_word_as_a_secret_refuses_no_release,
);

fn set(world: &World, words: &[&str], value: &[u8]) -> Output {
    let mut command = world.client("ssh");
    command.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "secret", "set"]).args(words);
    of_bytes(&mut command, value)
}

fn has_marker(bytes: &[u8]) -> bool {
    forms().iter().any(|form| processes::contains(bytes, form))
}

/// Creates the project `bank` with a secret and a running process. The application is that of the shop.
fn bank(world: &World) -> Repo<'_> {
    world.larder(&["project", "create", "bank", "--mode", "cooking"]).ok();
    set(world, &["bank", "TOKEN"], MARKER.as_bytes()).ok();
    set(world, &["bank", "tls.key"], format!("key {MARKER}").as_bytes()).ok();
    let repo = Repo::new(world, "bank");
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("index.html", "the bank\n");
    repo.write("larder.yml", "secrets: [tls.key]\ndrain: 1s\n").commit("the bank");
    repo.push().accepted();
    repo
}

/// Returns the encrypted text of the secret `TOKEN` of the bank, as a person with an old clone may have it.
fn stolen(world: &World) -> String {
    let path = world.directory().join("clones/bank-pillar");
    fs::create_dir_all(&path).unwrap();
    let clone = Repo::at(world, "bank/pillar", &path);
    clone.git(&["pull", "--quiet", &clone.url(), "main"]).ok();
    let text = fs::read_to_string(path.join("init.secrets.yml")).unwrap();
    text.lines().find_map(|line| line.trim().strip_prefix("TOKEN: ")).unwrap().to_owned()
}

fn variable(world: &World, name: &str) -> Option<Vec<u8>> {
    let body = world.get("shop", &format!("/env/{name}")).body;
    data_encoding::HEXLOWER.decode(body.trim().strip_prefix("hex:")?.as_bytes()).ok()
}

fn secret_of_another_project_cannot_be_had_by_the_pillar(world: &World) {
    bank(world);
    let stolen = stolen(world);
    let repo = shop(world);
    repo.push().accepted();
    set(world, &["shop", "OWN"], b"own-value-of-the-shop").ok();
    let clone = pillar(world);
    clone.git(&["pull", "--quiet", &clone.url(), "main"]).ok();
    let good = clone.head();
    let block = stolen.strip_prefix("age:").unwrap();
    let armored =
        block.as_bytes().chunks(64).map(|line| format!("    {}\n", std::str::from_utf8(line).unwrap())).collect::<String>();
    let armored = format!("a: |\n    -----BEGIN AGE ENCRYPTED FILE-----\n{armored}    -----END AGE ENCRYPTED FILE-----\n");
    let other = "for other recipients than this project";
    for (file, text, reason) in [
        // A reference leads into another project neither by its name nor by a path.
        ("init.yml", String::from("env: {A: \"${bank.env.TOKEN}\"}\n"), "bank.env.TOKEN"),
        ("init.yml", String::from("env: {A: \"${../../bank/pillar/init.secrets.yml}\"}\n"), ""),
        ("init.yml", String::from("env: {A: \"${env.TOKEN}\"}\n"), "env.TOKEN"),
        // The encrypted value itself, in each place where a value is read.
        ("init.yml", format!("env: {{A: \"{stolen}\"}}\n"), other),
        ("init.yml", format!("a: [{stolen}]\n"), other),
        ("init.yml", armored, other),
        ("init.secrets.yml", format!("env:\n  A: {stolen}\n"), other),
        ("production.secrets.yml", format!("env:\n  A: {stolen}\n"), other),
    ] {
        clone.write(file, text).commit("an attempt");
        let push = clone.push();
        push.rejected_with(reason).says("Nothing was changed.");
        assert!(!has_marker(push.0.stderr.as_bytes()) && !has_marker(push.0.stdout.as_bytes()), "{}", push.0);
        clone.git(&["reset", "--quiet", "--hard", &good]).ok();
    }
    clone.write("A.age", data_encoding::BASE64.decode(block.as_bytes()).unwrap()).commit("a whole file");
    clone.push().rejected_with("A.age line 1: the value is encrypted for other recipients");
    clone.git(&["reset", "--quiet", "--hard", &good]).ok();
    // A link to the files of the bank is not followed.
    std::os::unix::fs::symlink(world.root().join("projects/bank"), clone.path().join("production.yml")).unwrap();
    clone.commit("a link");
    clone.push().rejected_with("production.yml is a symbolic link");
    clone.git(&["reset", "--quiet", "--hard", &good]).ok();
    // Where a text is no value of the pillar, it stays the text that it is. A secret is not decrypted twice.
    config(world, &["set", "shop", &format!("CONFIGURED={stolen}")]).ok();
    repo.write(".larder/pillar.sample.yml", format!("env: {{SAMPLED: \"{stolen}\"}}\n")).commit("a sample");
    repo.push().rejected_with(other);
    set(world, &["shop", "TWICE"], stolen.as_bytes()).ok();
    for name in ["CONFIGURED", "TWICE"] {
        assert_eq!(variable(world, name).as_deref(), Some(stolen.as_bytes()), "{name}");
    }
    // A template and a script see the values of the shop only.
    repo.write(".larder/pillar.sample.yml", "env: {}\n");
    repo.write("page.j2", "{{ bank }}{{ env.TOKEN }}")
        .write("larder.yml", "templates: [{from: page.j2, to: page}]\n")
        .commit("a template");
    let push = repo.push();
    push.rejected();
    assert!(!has_marker(push.0.stderr.as_bytes()));
}

fn secret_of_another_project_cannot_be_read_from_its_processes(world: &World) {
    if world.is_second_mode() || !world.larder(&["status"]).stdout.contains("in namespaces") {
        eprintln!("SKIPPED: without users of their own, projects are not isolated");
        return;
    }
    bank(world);
    shop(world).push().accepted();
    let victim = world.application("bank")[0];
    let path = |name: &str| PathBuf::from(format!("/proc/{victim}/{name}"));
    // As root, both are there.
    assert!(has_marker(&fs::read(path("environ")).unwrap()));
    assert!(has_marker(&fs::read(path("root/dev/shm/secrets/tls.key")).unwrap()));
    // From a command of the shop: no process of the bank is visible.
    let script = "for p in /proc/[0-9]*; do cat $p/environ $p/root/dev/shm/secrets/* $p/cwd/index.html $p/cmdline 2>/dev/null; done; \
                  find / -xdev \\( -name 'tls.k*' -o -name '*.age' -o -name 'init.secrets.y*' \\) 2>/dev/null; ls -a /dev/shm /run";
    let output = world.larder(&["run", "shop", "--", "sh", "-c", script]);
    assert!(!has_marker(output.stdout.as_bytes()), "{output}");
    output.keeps_quiet_about("the bank").keeps_quiet_about("tls.key").keeps_quiet_about("init.secrets.yml").exits(0);
    // From outside of every sandbox with the user of the shop: the kernel refuses.
    let shop = world.application("shop")[0];
    let status = fs::read_to_string(format!("/proc/{shop}/status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().split_whitespace().next().unwrap().to_owned();
    let as_shop = |words: &[&str]| {
        let mut command = world.client("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]).args(words).current_dir("/");
        Output::of(&mut command)
    };
    as_shop(&["cat", &format!("/proc/{shop}/environ")]).exits(0);
    for name in ["environ", "root/dev/shm/secrets/tls.key", "cwd/index.html", "mem", "maps", "fd"] {
        let read = if name == "fd" { "ls" } else { "head" };
        let output = as_shop(&[read, path(name).to_str().unwrap()]);
        assert!(output.status != 0 && output.stdout.is_empty(), "{name}: {output}");
    }
    // The server and the keeper have the values and the keys.
    let files =
        [world.root().join("state/config_age_key"), world.root().join("state"), world.environment("bank").join("config/1.age")];
    for file in &files {
        let output = as_shop(&["cat", file.to_str().unwrap()]);
        assert!(output.status != 0 && output.stdout.is_empty(), "{output}");
    }
    let own =
        processes::of(world.directory()).into_iter().filter(|process| process.arguments.iter().any(|word| word == "server"));
    let servers: Vec<_> = own.map(|process| process.pid).collect();
    assert!(!servers.is_empty());
    for server in servers {
        for name in ["environ", "mem", "maps"] {
            let output = as_shop(&["head", "-c", "100", &format!("/proc/{server}/{name}")]);
            assert!(output.status != 0 && output.stdout.is_empty(), "{name}: {output}");
        }
    }
}

fn build_secret_is_in_no_template(world: &World) {
    let repo = shop(world);
    let recipe = "build: {secrets: [NPM_TOKEN]}\nhealth: {timeout: 20s}\ndrain: 1s\n";
    repo.write("larder.yml", format!("{recipe}templates: [{{from: t.j2, to: rendered}}]\n"));
    repo.write("t.j2", "{{ env.NPM_TOKEN | default('nothing') }} {{ env.OTHER }}").commit("a template");
    set(world, &["shop", "NPM_TOKEN"], MARKER.as_bytes()).ok();
    set(world, &["shop", "OTHER"], b"other-value").ok();
    repo.push().accepted();
    let rendered = world.larder(&["run", "shop", "--", "cat", "rendered"]).ok().to_owned();
    assert!(!has_marker(rendered.as_bytes()) && rendered.contains("nothing other-value"), "{rendered}");
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    world.larder(&["config", "render", "shop"]).says("nothing").keeps_quiet_about("marker");
    repo.write("t.j2", "{{ env.NPM_TOKEN }}").commit("a template that needs the value");
    let push = repo.push();
    push.rejected_with("t.j2");
    assert!(!has_marker(push.0.stderr.as_bytes()), "{}", push.0);
}

fn commands_show_no_value_without_the_right(world: &World) {
    let repo = shop(world);
    set(world, &["shop", "TOKEN"], MARKER.as_bytes()).ok();
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=two"]).ok();
    set(world, &["shop", "TOKEN"], format!("{MARKER}second").as_bytes()).ok();
    bank(world);
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "deploy"]).ok();
    for words in [
        "config show shop",
        "config show shop TOKEN",
        "config diff shop 1 2",
        "config diff shop 1 2 --values",
        "config history shop",
        "config explain shop TOKEN",
        "config export shop",
        "config render shop",
        "secret show shop",
        "secret show shop TOKEN",
        "secret edit shop --print",
        "key deploy shop",
        "run shop -- env",
        "logs shop",
        "releases shop",
        "release show shop",
        "status",
        "project info shop",
        "plan shop",
        "deploy shop --follow",
        "audit",
        "notify log shop",
        "drift shop",
        "doctor",
        "secret show bank",
        "secret show bank TOKEN",
        "config show bank",
        "config explain bank TOKEN",
        "key deploy bank",
        "logs bank",
    ] {
        let words: Vec<_> = words.split(' ').collect();
        for json in [&[][..], &["--json"]] {
            let output = world.ssh("bob", &[words.as_slice(), json].concat());
            assert!(!has_marker(output.stdout.as_bytes()) && !has_marker(output.stderr.as_bytes()), "{words:?}: {output}");
            if words.contains(&"bank") {
                assert!(output.status != 0, "{words:?}: {output}");
            }
        }
    }
    let clone = |project: &str| {
        let path = world.directory().join("clones").join(project.replace('/', "-")).join("bob");
        fs::create_dir_all(&path).unwrap();
        let repo = Repo::at(world, project, &path).by("bob");
        repo.git(&["fetch", "--quiet", &repo.url()])
    };
    for project in ["shop/pillar", "bank/pillar", "bank"] {
        let output = clone(project);
        assert_ne!(output.status, 0, "{project}: {output}");
    }
}

fn secret_of_a_crash_and_of_a_failure_is_in_no_core_file_mail_or_webhook(world: &World) {
    let (mails, hooks) = (MailServer::start(), Receiver::start());
    let file = world.root().join("larder.yml");
    let text = fs::read_to_string(&file).unwrap();
    let port = mails.port;
    let more = format!("webhooks:\n  allow: [127.0.0.0/8]\nmail:\n  smtp: smtp://127.0.0.1:{port}\n  from: larder@example.com\n");
    fs::write(&file, format!("{text}{more}")).unwrap();
    world.restart(&[QUICK]);
    let repo = shop(world);
    let notify = format!("notify:\n  mail: [team@example.com]\n  webhooks: [{{url: 'http://127.0.0.1:{}/hook'}}]\n", hooks.port);
    repo.write("larder.yml", format!("health: {{timeout: 20s}}\ndrain: 1s\n{notify}")).commit("with notifications");
    set(world, &["shop", "TOKEN"], MARKER.as_bytes()).ok();
    repo.push().accepted();
    // A process with the value in its memory and in its environment aborts in a directory where it may write.
    let crash = "ulimit -c unlimited 2>/dev/null; ulimit -Hc; cd data 2>/dev/null || cd /tmp; python3 -c 'import os; os.abort()'; ls -a . /tmp /app";
    let output = world.larder(&["run", "shop", "--", "sh", "-c", crash]);
    let limit = output.stdout.lines().next().unwrap_or_default().to_owned();
    assert_eq!(limit, "0", "core files are allowed: {output}");
    output.keeps_quiet_about("core");
    for phase in ["build", "post_deploy"] {
        repo.program(
            &format!(".larder/{phase}"),
            "#!/bin/sh\necho \"limit $(ulimit -Hc)\"; python3 -c 'import os; os.abort()'; ls\n",
        )
        .commit(phase);
        let push = repo.push();
        push.accepted().says("limit 0");
        push.0.keeps_quiet_about("core.");
        fs::remove_file(repo.path().join(format!(".larder/{phase}"))).unwrap();
    }
    // The reason of a failure, its output and the title of the commit have the value.
    for (phase, text) in [
        ("build", "echo \"token $TOKEN\"; echo \"! the token $TOKEN is wrong\"; exit 3"),
        ("post_deploy", "printf %s \"$TOKEN\" | base64 -w0; echo; exit 3"),
        ("post_install", "python3 -c 'import os, urllib.parse; print(urllib.parse.quote(os.environ[\"TOKEN\"]))'; exit 3"),
    ] {
        let path = format!(".larder/{phase}");
        repo.program(&path, &format!("#!/bin/sh\n{text}\n")).commit(&format!("a failure of {phase}"));
        let push = repo.push();
        push.rejected();
        assert!(!has_marker(push.0.stderr.as_bytes()), "{}", push.0);
        fs::remove_file(repo.path().join(path)).unwrap();
    }
    repo.commit("good again");
    repo.push().accepted();
    until("mails and webhooks have arrived", || mails.mails().len() >= 5 && hooks.requests().len() >= 5);
    for mail in mails.mails() {
        let texts = [mail.source.clone(), mail.subject(), mail.part("text/plain"), mail.part("text/html")];
        assert!(texts.iter().all(|text| !has_marker(text.as_bytes())), "{}", mail.source);
    }
    assert!(mails.mails().iter().any(|mail| mail.part("text/plain").contains("[TOKEN]")), "no mail has the replaced value");
    for request in hooks.requests() {
        assert!(!has_marker(request.body.as_bytes()) && !has_marker(request.line.as_bytes()), "{request:?}");
    }
    let journal = world.directory().join("journal");
    assert!(!journal.exists() || found(&journal).is_empty());
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    assert_eq!(cores(world.root()), Vec::<PathBuf>::new());
}

/// Returns the core files below a directory: ELF files of the type CORE (elf(5), `e_type` 4).
fn cores(directory: &Path) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(directory).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    let is_core = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF") && bytes.get(16) == Some(&4));
    files.map(|entry| entry.into_path()).filter(|path| is_core(path)).collect()
}

fn common_word_as_a_secret_refuses_no_release(world: &World) {
    let repo = shop(world);
    set(world, &["shop", "database.name"], b"database").ok();
    set(world, &["shop", "maps.public_key"], b"pk.aB3dE5gH7jK9").ok();
    repo.write("notes.txt", "the database of the shop\n").write("more.txt", "a database\n").commit("words");
    let push = repo.push();
    push.accepted().says(" and 1 more file contain the value of ").says("which is a common word");
    repo.write("map.js", "key('pk.aB3dE5gH7jK9')\n").commit("a public key");
    repo.push().rejected_with("\"map.js\" of the built tree contains the value of maps.public_key");
    repo.write("larder.yml", "build: {allow_leaks: [maps.public_key]}\nhealth: {timeout: 20s}\ndrain: 1s\n")
        .commit("an allowed value");
    repo.push().accepted();
    // The word at the beginning of a secret hides no secret.
    set(world, &["shop", "database.password"], b"database-8f3kQ2x").ok();
    repo.write("dump.sql", "database database-8f3kQ2x\n").commit("a dump");
    repo.push().rejected_with("\"dump.sql\" of the built tree contains the value of [database.name].password");
}
