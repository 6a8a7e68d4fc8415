//! Values of the configuration: who may read them, where they are, and the page docs/configuration.md.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use data_encoding::BASE64;

use crate::{
    configuration::{config, of_bytes, set_bytes, shop},
    harness::{World, cli::Output, in_each_mode, in_one_mode, processes, source::top, until},
};

in_each_mode!(value_is_on_the_disk_only_in_encrypted_form);
in_one_mode!(
    printed_values_are_redacted,
    names_and_values_need_different_rights,
    every_layer_of_a_variable_is_explained,
    bad_input_is_refused_with_the_remedy,
    unusable_key_or_snapshot_keeps_the_release_live,
    commands_of_the_page_work,
);

/// A value with characters that base64 and URLs encode.
pub const MARKER: &str = "marker?/secret&value=+~\u{fc}%end";

/// Returns the forms in which a value could be stored: raw, URL-encoded, as JSON, in hexadecimal, and in base64 at each alignment.
pub fn forms() -> Vec<Vec<u8>> {
    let marker = MARKER.as_bytes();
    let url: String = marker
        .iter()
        .map(|byte| match byte {
            b'a'..=b'z' => char::from(*byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    let hex: String = marker.iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<_> = marker.iter().map(u8::to_string).collect();
    let mut forms = vec![marker.to_vec(), url.into_bytes(), hex.into_bytes(), list.join(",").into_bytes()];
    for skipped in 0..3 {
        let whole = &marker[skipped..];
        forms.push(BASE64.encode(&whole[..whole.len() / 3 * 3]).into_bytes());
    }
    forms
}

/// Returns the places where the marker is found: files below `directory`, also in compressed files.
pub fn found(directory: &Path) -> Vec<PathBuf> {
    let forms = forms();
    let has = |bytes: &[u8]| forms.iter().any(|form| processes::contains(bytes, form));
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(directory).into_iter().flatten().filter(|entry| entry.file_type().is_file()) {
        let Ok(bytes) = fs::read(entry.path()) else { continue };
        let unpacked = match bytes.get(..4) {
            Some([0x28, 0xb5, 0x2f, 0xfd]) => {
                Command::new("zstd").args(["-dcq"]).arg(entry.path()).output().map(|out| out.stdout)
            }
            Some([0x1f, 0x8b, ..]) => Command::new("gzip").args(["-dc"]).arg(entry.path()).output().map(|out| out.stdout),
            _ => Ok(Vec::new()),
        };
        if has(&bytes) || unpacked.is_ok_and(|unpacked| has(&unpacked)) {
            found.push(entry.path().to_owned());
        }
    }
    found
}

fn value_is_on_the_disk_only_in_encrypted_form(world: &World) {
    if crate::harness::installed("zstd").is_none() {
        return;
    }
    let repo = shop(world);
    repo.write("larder.yml", "data: [media/]\nhealth: {timeout: 20s}\ndrain: 1s\n");
    // The search finds the value in a file that the project itself writes.
    repo.program(".larder/post_deploy", "#!/bin/sh\n[ -z \"$LEAK\" ] || printf %s \"$TOKEN\" > media/leaked\n");
    repo.commit("with data");
    set_bytes(world, "TOKEN", MARKER.as_bytes(), &["--no-restart"]).ok();
    repo.push().accepted();
    world.get("shop", "/env/TOKEN").holds("hex:6d61726b6572");
    config(world, &["set", "shop", "PAGE=two"]).ok();
    config(world, &["set", "shop", "BROKEN=1"]).exits(1);
    world.larder(&["rollback", "shop"]).ok();
    world.larder(&["backup", "take", "shop"]).ok();
    world.larder(&["run", "shop", "--", "true"]).ok();
    let mut import = world.larder_command();
    of_bytes(import.args(["config", "import", "shop"]), format!("TOKEN='{MARKER}'\nPAGE=three\n").as_bytes()).ok();
    world.serves("shop", "page: three");
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    assert!(!processes::contains(&world.objects("project"), MARKER.as_bytes()));
    let lines = processes::command_lines();
    assert!(lines.len() > 3 && lines.iter().all(|line| forms().iter().all(|form| !processes::contains(line, form))));
    // The process has the value.
    let application = world.application("shop");
    let environment = fs::read(format!("/proc/{}/environ", application[0])).unwrap();
    assert!(processes::contains(&environment, MARKER.as_bytes()));
    for path in ["config/1.age", "config"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(world.environment("shop").join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
    }
    config(world, &["set", "shop", "LEAK=1"]).ok();
    assert!(found(world.root()).iter().all(|path| path.ends_with("data/media/leaked")));
    assert_eq!(found(world.root()).len(), 1);
}

/// A project that prints a value in its build, in a script, in its log and in the reason of its failure.
fn printed_values_are_redacted(world: &World) {
    let repo = shop(world);
    let print = "import base64, os, sys, urllib.parse\nvalue = os.environb[b'TOKEN']\n\
                 print('raw', value.decode(), 'base64', base64.b64encode(b'user:' + value).decode(), flush=True)\n\
                 print('url', urllib.parse.quote(value, safe=''), flush=True)\n";
    repo.write("print.py", print).program(".larder/build", "#!/bin/sh\nexec python3 print.py\n");
    repo.program(".larder/deploy", "#!/bin/sh\nexec python3 print.py\n");
    let web = "web: python3 print.py && if [ -n \"$FAIL\" ]; then echo \"error: cannot use $TOKEN\"; exit 1; fi; exec python3 app.py $PORT\n";
    repo.write("Procfile", web).commit("print the value");
    set_bytes(world, "TOKEN", MARKER.as_bytes(), &["--no-restart"]).ok();
    repo.push().accepted().says("raw [TOKEN]").says("url [TOKEN]");
    until("the log has the line", || world.larder(&["logs", "shop"]).stdout.contains("url [TOKEN]"));
    world.larder(&["logs", "shop"]).says("raw [TOKEN]").says("base64 ").exits(0);
    config(world, &["set", "shop", "FAIL=1"]).exits(1).says("error: cannot use [TOKEN]");
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
    // A restarted server, which takes over the processes and their output, does the same.
    world.kill9_server();
    world.serves("shop", "page: none");
    world.larder(&["restart", "shop"]).ok();
    assert_eq!(found(world.root()), Vec::<PathBuf>::new());
}

fn names_and_values_need_different_rights(world: &World) {
    let repo = shop(world);
    config(world, &["set", "shop", "TOKEN=hunter2", "PAGE=one"]).ok();
    repo.push().accepted();
    config(world, &["set", "shop", "PAGE=two"]).ok();
    for (user, right) in [("bob", "view"), ("carol", "operate")] {
        world.key(user);
        world.larder(&["user", "add", user, "--key-file", &world.public_key(user)]).ok();
        world.larder(&["user", "grant", user, "shop", right]).ok();
    }
    let bob = |words: &[&str]| world.ssh("bob", &[&["config"], words].concat());
    bob(&["show", "shop"]).says("TOKEN").says("values are hidden").keeps_quiet_about("hunter2").exits(0);
    bob(&["--json", "show", "shop"]).says("TOKEN").keeps_quiet_about("hunter2").exits(0);
    bob(&["history", "shop"]).says("PAGE, TOKEN").keeps_quiet_about("hunter2").exits(0);
    bob(&["diff", "shop", "1", "2"]).says("~ PAGE").keeps_quiet_about("two").exits(0);
    bob(&["explain", "shop", "TOKEN"]).says("configuration 2").keeps_quiet_about("hunter2").exits(0);
    for words in [
        &["show", "shop", "TOKEN"][..],
        &["export", "shop"],
        &["diff", "shop", "1", "2", "--values"],
        &["set", "shop", "A=1"],
        &["unset", "shop", "TOKEN"],
    ] {
        bob(words).exits(3).keeps_quiet_about("hunter2");
    }
    let carol = |words: &[&str]| world.ssh("carol", &[&["config"], words].concat());
    carol(&["show", "shop"]).says("hunter2").exits(0);
    assert_eq!(carol(&["show", "shop", "TOKEN"]).ok(), "hunter2");
    carol(&["diff", "shop", "1", "2", "--values"]).says("~ PAGE: one -> two").exits(0);
    assert_eq!(carol(&["export", "shop"]).ok(), "PAGE='two'\nTOKEN='hunter2'\n");
    carol(&["show", "shop", "TOKE"]).exits(4).says("did you mean TOKEN?");
    // The audit log has names, and no values.
    world.larder(&["audit"]).says("set PAGE, set TOKEN").keeps_quiet_about("hunter2").exits(0);
}

fn every_layer_of_a_variable_is_explained(world: &World) {
    world.add_settings("env:\n  LEVEL: server\n");
    world.restart(&[]);
    let repo = shop(world);
    repo.write("app.json", "{\n \"env\": {\n  \"LEVEL\": \"app\",\n  \"SECRET\": {\"generator\": \"secret\"}\n }\n}\n");
    repo.write(
        "larder.yml",
        "health: {timeout: 20s}\ndrain: 1s\nenv:\n  LEVEL: recipe\nprocesses:\n  web:\n    env: {LEVEL: web}\n",
    );
    repo.commit("layers");
    repo.push().accepted();
    world.get("shop", "/env/LEVEL").holds("hex:776562");
    let layers = |name: &str| {
        let explained = world.larder(&["--json", "config", "explain", "shop", name]).json();
        let row = |layer: &serde_json::Value| {
            let text = |key: &str| layer[key].as_str().unwrap_or_default().to_owned();
            (text("source"), layer["line"].as_u64().unwrap_or(0), text("value"), layer["wins"] == true)
        };
        explained["layers"].as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    let of = |all: &[(&str, u64, &str, bool)]| {
        all.iter()
            .map(|(source, line, value, wins)| ((*source).to_owned(), *line, (*value).to_owned(), *wins))
            .collect::<Vec<_>>()
    };
    let line = fs::read_to_string(world.root().join("larder.yml")).unwrap();
    let line = line.lines().position(|line| line.trim() == "LEVEL: server").unwrap() as u64 + 1;
    let files = [
        ("server file: env", line, "server", false),
        ("app.json: env", 3, "app", false),
        ("larder.yml: env", 4, "recipe", true),
        ("larder.yml: processes.web.env", 7, "web", true),
    ];
    assert_eq!(layers("LEVEL"), of(&files));
    config(world, &["set", "shop", "LEVEL=configuration"]).ok();
    world.get("shop", "/env/LEVEL").holds("hex:636f6e66696775726174696f6e");
    let mut all: Vec<_> = files.iter().map(|(source, line, value, _)| (*source, *line, *value, false)).collect();
    all.push(("configuration 1", 0, "configuration", true));
    assert_eq!(layers("LEVEL"), of(&all));
    config(world, &["explain", "shop", "LEVEL"]).says("larder.yml: env (line 4)").exits(0);
    assert!(layers("SECRET").iter().any(|layer| layer.0 == "generated by larder" && layer.3), "{:?}", layers("SECRET"));
    config(world, &["explain", "shop", "PORT"]).says("nothing sets PORT").says("listen on $PORT").exits(0);
}

fn bad_input_is_refused_with_the_remedy(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    for (word, said, remedy) in [
        ("PORT=80", "set by larder itself", "listen on $PORT"),
        ("HOME=/x", "set by larder itself", "HOME is /app"),
        ("LARDER_X=1", "set by larder itself", "does not begin with LARDER_"),
        ("SOURCE_VERSION=1", "set by larder itself", "the deployed commit"),
        ("LD_PRELOAD=/x.so", "changes how every program starts", "web: env LD_PRELOAD="),
        ("1A=x", "not the name of a variable", "another name"),
        ("A-B=x", "not the name of a variable", "another name"),
        ("NOVALUE", "has no value", "NAME=VALUE"),
    ] {
        config(world, &["set", "shop", word]).exits(2).says(said).says(remedy);
    }
    set_bytes(world, "A", b"x\0y", &[]).exits(2).says("NUL").says("base64");
    set_bytes(world, "A", &vec![b'x'; 64 * 1024 + 1], &[]).exits(2).says("limit 65536");
    set_bytes(world, "A", &vec![b'x'; 10 << 20], &[]).exits(2).says("limit 65536");
    set_bytes(world, "PORT", b"80", &[]).exits(2).says("listen on $PORT");
    let import = |text: &str| {
        let mut command = world.larder_command();
        of_bytes(command.args(["config", "import", "shop"]), text.as_bytes())
    };
    import("A=1\nB='open").exits(5).says("input:2: a single quote is not closed");
    import("A=1\nPORT=80\n").exits(5).says("input:2").says("listen on $PORT");
    let many: String = (0..1001).map(|number| format!("V{number}=1\n")).collect();
    import(&many).exits(2).says("1001 variables (limit 1000)");
    config(world, &["show", "shop"]).says("has no configuration").exits(0);
    config(world, &["diff", "shop", "1", "2"]).exits(4).says("there is no configuration 1");
    config(world, &["set", "none", "A=1"]).exits(4);
    // A variable that the project requires cannot be removed.
    repo.write("app.json", r#"{"env": {"NEEDED": {"description": "the key of the shop"}}}"#).commit("a required variable");
    repo.push().rejected_with("app.json requires a value for NEEDED").says("larder config set shop NEEDED=VALUE");
    config(world, &["set", "shop", "NEEDED=yes", "--no-restart"]).ok();
    repo.push().accepted();
    config(world, &["unset", "shop", "NEEDED"]).exits(1).says("app.json requires a value for NEEDED").says("v2 is still live");
    world.get("shop", "/env/NEEDED").holds("hex:796573");
}

fn unusable_key_or_snapshot_keeps_the_release_live(world: &World) {
    let repo = shop(world);
    config(world, &["set", "shop", "PAGE=one"]).ok();
    repo.push().accepted();
    let directory = world.environment("shop").join("config");
    let file = directory.join("1.age");
    let good = fs::read(&file).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&file, &changed).unwrap();
    repo.write("code", "two").commit("code two");
    repo.push().rejected_with("configuration 1").rejected_with("v1 still live");
    config(world, &["set", "shop", "PAGE=two"]).exits(70).says("configuration 1").says("restore the");
    world.serves("shop", "page: one, code one");
    fs::write(&file, &good).unwrap();
    // Another key: the processes that run keep running, and nothing starts without its configuration.
    let key = world.root().join("state/config_age_key");
    let saved = fs::read(&key).unwrap();
    world.stop();
    fs::remove_file(&key).unwrap();
    world.start(&[]);
    config(world, &["show", "shop"]).exits(70).says("cannot decrypt configuration 1").says("state/config_age_key");
    repo.push().rejected_with("cannot decrypt configuration 1");
    world.stop();
    let made = fs::metadata(&key).unwrap();
    fs::write(&key, &saved).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions(), made.permissions());
    world.start(&[]);
    world.serves("shop", "page: one, code one");
    repo.push().accepted();
    until("the new code serves", || world.get("shop", "/").body.contains("page: one, code two"));
    world.is_consistent("shop");
}

/// Returns the shell blocks of the page.
fn blocks() -> Vec<String> {
    let page = fs::read_to_string(top().join("docs/configuration.md")).unwrap();
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn commands_of_the_page_work(world: &World) {
    let repo = shop(world);
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    // The templates and the sample of the page.
    let page = crate::harness::docs::Page::read("docs/configuration.md");
    let [sample, templates] = page.blocks("yaml")[..] else { panic!("the page has two YAML files") };
    let language = page.blocks("").into_iter().find(|block| block.contains("{{ database.host }}")).unwrap();
    repo.write("larder.yml", format!("health:\n  timeout: 20s\ndrain: 1s\n{templates}"));
    repo.write("config/database.yml.j2", language).write("config/mail.conf.j2", "mail\n").commit("templates");
    let blocks = blocks();
    assert!(blocks.iter().flat_map(|block| block.lines()).count() >= 15, "{blocks:#?}");
    // The release needs the values of the pillar, which the page pushes later.
    repo.write(".larder/pillar.sample.yml", sample.replace("password:", "password: of-the-sample")).commit("a sample");
    repo.push().accepted();
    let ssh = world.ssh_options("alice").join(" ");
    let larder = world.larder_command();
    let words = std::iter::once(larder.get_program()).chain(larder.get_args()).map(|word| word.to_str().unwrap());
    let larder = shlex::try_join(words).unwrap();
    let directory = world.directory().join("home");
    fs::write(directory.join("key.pem"), "-----BEGIN KEY-----\nAA==\n-----END KEY-----\n").unwrap();
    for block in blocks {
        let block = block.replace("HOST:2222", &format!("127.0.0.1:{}", world.ssh_port()));
        let script = format!("set -eu\nTOKEN=x\nlarder() {{ {larder} \"$@\"; }}\n{block}\n");
        let mut shell = world.client("sh");
        shell.args(["-c", &script]).env("GIT_SSH_COMMAND", format!("ssh {ssh}")).env("GIT_SSH_VARIANT", "ssh");
        let output = Output::of(&mut shell);
        output.exits(0).keeps_quiet_about("panicked");
        if block.contains("config render") {
            output.says("host: db.internal").says("password: correct-horse").says("pool: 20").says("mail");
        }
        if block.contains("DATABASE_URL") {
            output.says("init.yml (line 5").says("postgres://shop:${database.password}@${database.host}/shop");
        }
    }
    assert_eq!(fs::read(directory.join("key.pem")).unwrap(), fs::read(directory.join("copy.pem")).unwrap());
    config(world, &["show", "shop", "CACHE_SIZE"]).says("64");
}
