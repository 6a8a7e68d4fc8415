//! `larder secret edit` with real editors, from the server and from a laptop.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    configuration::{of_bytes, shop},
    harness::{Laptop, World, cli::Output, in_one_mode, processes, until},
    pillar::pillar,
};

in_one_mode!(
    edited_text_is_committed_and_leaves_no_file,
    invalid_text_opens_the_editor_again_with_the_error,
    secret_that_was_changed_meanwhile_is_not_overwritten,
    signal_ends_the_edit_and_leaves_no_file,
);

fn set(world: &World, words: &[&str], value: &str) -> Output {
    let mut command = world.client("ssh");
    command.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "secret", "set"]).args(words);
    of_bytes(&mut command, value.as_bytes())
}

fn shown(world: &World, name: &str) -> String {
    world.ssh("alice", &["secret", "show", "shop", name]).ok().to_owned()
}

/// Writes an editor: a shell script that gets the file as `$1`.
fn editor(world: &World, name: &str, script: &str) -> PathBuf {
    let path = world.directory().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn edit(world: &World, editor: &Path) -> Command {
    let mut command = world.larder_command();
    command.args(["secret", "edit", "shop"]).env("EDITOR", editor).stdin(Stdio::null());
    command
}

/// Returns the file that an editor has named in the file `path` of the world's directory.
fn named(world: &World) -> PathBuf {
    PathBuf::from(fs::read_to_string(world.directory().join("path")).unwrap().trim())
}

fn edited_text_is_committed_and_leaves_no_file(world: &World) {
    let repo = shop(world);
    set(world, &["shop", "API_TOKEN"], "first-value").ok();
    set(world, &["shop", "tls.key"], "-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n").ok();
    repo.push().accepted();
    let directory = world.directory().display();
    let look = format!(
        "echo \"$1\" > {directory}/path; cp \"$1\" {directory}/look; stat -c '%a %n' \"$1\" \"$(dirname \"$1\")\"; stat -f -c %T \"$1\"\n"
    );
    let change =
        editor(world, "change", &format!("{look}sed -i 's/first-value/second-value/; $a\\\nnew: {{pin: 1234567}}' \"$1\"\n"));
    let output = Output::of(&mut edit(world, &change));
    output.says("600 /").says("700 /").says("tmpfs").says("Edit the secrets env.API_TOKEN, new.pin in init.secrets.yml").ok();
    output.keeps_quiet_about("second-value");
    let look = fs::read_to_string(world.directory().join("look")).unwrap();
    assert!(look.contains("  API_TOKEN: \"first-value\"\n") && look.contains("    -----BEGIN KEY-----\n"), "{look}");
    assert!(!named(world).exists() && !named(world).parent().unwrap().exists());
    assert_eq!((shown(world, "API_TOKEN").as_str(), shown(world, "new.pin").as_str()), ("second-value", "1234567"));
    world.get("shop", "/env/API_TOKEN").holds("hex:7365636f6e64");
    // The other value is unchanged, also in its encrypted form.
    let clone = pillar(world);
    clone.git(&["pull", "--quiet", &clone.url(), "main"]).ok();
    let changed = clone.git(&["diff", "HEAD~1", "--", "init.secrets.yml"]).ok().to_owned();
    assert!(changed.contains("API_TOKEN") && !changed.contains("-    key:") && !changed.contains("+  key:"), "{changed}");
    let head = clone.head();
    // An editor that changes nothing, or fails.
    Output::of(&mut edit(world, Path::new("true"))).exits(0).says("nothing was changed");
    Output::of(&mut edit(world, Path::new("false"))).exits(3).says("the editor false failed");
    Output::of(&mut edit(world, Path::new("/nonexistent/editor"))).exits(3).says("cannot start the editor");
    // The name of the editor is no command for a shell.
    let injected = format!("true; touch {directory}/injected");
    Output::of(&mut edit(world, Path::new(&injected)));
    assert!(!world.directory().join("injected").exists());
    // A removed line removes the secret.
    let remove = editor(world, "remove", "sed -i '/pin/d; /new:/d' \"$1\"\n");
    Output::of(&mut edit(world, &remove)).says("Edit the secret new.pin").ok();
    world.ssh("alice", &["secret", "show", "shop", "new.pin"]).exits(4);
    clone.git(&["pull", "--quiet", &clone.url(), "main"]).ok();
    assert_ne!(clone.head(), head);
    // Over plain ssh, no editor opens; the text and the change pass through the standard descriptors.
    world.ssh("alice", &["secret", "edit", "shop"]).exits(2).says("larder -r REMOTE secret edit");
    world.ssh("alice", &["secret", "edit", "shop", "--print"]).says("API_TOKEN: \"second-value\"").ok();
    let mut apply = world.client("ssh");
    apply.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "secret", "edit", "shop", "--apply"]);
    let change = serde_json::json!({"base": "env: {API_TOKEN: second-value}", "text": "env: {API_TOKEN: third-value}"});
    of_bytes(&mut apply, change.to_string().as_bytes()).says("Edit the secret env.API_TOKEN").ok();
    assert_eq!(shown(world, "API_TOKEN"), "third-value");
    let audit = world.larder(&["audit"]);
    audit.says("look at init.secrets.yml").says("Edit the secret env.API_TOKEN").keeps_quiet_about("third-value");
    // From a laptop, the editor runs there.
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    let change = editor(world, "laptop", "sed -i 's/third-value/value-of-the-laptop/' \"$1\"\n");
    let mut command = laptop.larder_command("x");
    Output::of(command.args(["-r", "prod", "secret", "edit", "shop"]).env("VISUAL", &change).env("EDITOR", "false")).ok();
    assert_eq!(shown(world, "API_TOKEN"), "value-of-the-laptop");
}

fn invalid_text_opens_the_editor_again_with_the_error(world: &World) {
    shop(world);
    set(world, &["shop", "API_TOKEN"], "first-value").ok();
    let directory = world.directory().display();
    let script = format!(
        "echo \"$1\" > {directory}/path\nif grep -q '^# error: ' \"$1\"; then grep '^# error: ' \"$1\" >> {directory}/errors; n=$(cat {directory}/round); else n=1; fi\n\
         echo $((n + 1)) > {directory}/round\ncase $n in\n1) echo 'broken: [' >> \"$1\";;\n2) sed -i 's/broken: \\[/PORT: {{a: [b]}}/' \"$1\";;\n\
         3) sed -i 's/^PORT: .*/good: value-of-round-three/' \"$1\";;\nesac\n"
    );
    let output = Output::of(&mut edit(world, &editor(world, "rounds", &script)));
    output.says("Edit the secret good in init.secrets.yml").ok();
    let errors = fs::read_to_string(world.directory().join("errors")).unwrap();
    assert!(errors.contains("not YAML") && errors.contains("PORT.a is a list"), "{errors}");
    assert!(!named(world).exists());
    assert_eq!(shown(world, "API_TOKEN"), "first-value");
    let show = world.ssh("alice", &["secret", "edit", "shop", "--print"]);
    show.says("good: \"value-of-round-three\"").keeps_quiet_about("# error").ok();
    // A person who leaves the editor without a correction has changed nothing.
    let script = format!("echo \"$1\" > {directory}/path; grep -q '^# error: ' \"$1\" || echo '- x' >> \"$1\"\n");
    Output::of(&mut edit(world, &editor(world, "gives-up", &script))).exits(0).says("nothing was changed");
    assert!(!named(world).exists());
}

fn secret_that_was_changed_meanwhile_is_not_overwritten(world: &World) {
    shop(world);
    set(world, &["shop", "API_TOKEN"], "first-value").ok();
    set(world, &["shop", "OTHER"], "other-value").ok();
    let ssh = world.ssh_options("alice").join(" ");
    let meanwhile =
        |name: &str, value: &str| format!("printf %s {value} | ssh {ssh} larder@127.0.0.1 secret set shop {name} >&2\n");
    let mine = "sed -i 's/first-value/my-value/' \"$1\"\n";
    let script = format!("{}{mine}", meanwhile("API_TOKEN", "their-value"));
    let output = Output::of(&mut edit(world, &editor(world, "conflict", &script)));
    output.exits(3).says("env.API_TOKEN was changed meanwhile; nothing was changed").keeps_quiet_about("my-value");
    assert_eq!(shown(world, "API_TOKEN"), "their-value");
    // Another secret that was changed meanwhile keeps its new value.
    let mine = "sed -i 's/their-value/my-value/' \"$1\"\n";
    let script = format!("{}{mine}", meanwhile("OTHER", "their-other-value"));
    Output::of(&mut edit(world, &editor(world, "merge", &script))).says("Edit the secret env.API_TOKEN").ok();
    assert_eq!((shown(world, "API_TOKEN").as_str(), shown(world, "OTHER").as_str()), ("my-value", "their-other-value"));
    // New encryption of the same values is no change.
    let mine = "sed -i 's/my-value/last-value/' \"$1\"\n";
    let script = format!("ssh {ssh} larder@127.0.0.1 secret rotate shop >&2\n{mine}");
    Output::of(&mut edit(world, &editor(world, "rotated", &script))).ok();
    assert_eq!(shown(world, "API_TOKEN"), "last-value");
}

fn signal_ends_the_edit_and_leaves_no_file(world: &World) {
    use rustix::process::Signal;
    shop(world);
    set(world, &["shop", "API_TOKEN"], "first-value").ok();
    let directory = world.directory().display();
    let script = format!(
        "sed -i s/first-value/my-value/ \"$1\"; echo \"$1\" > {directory}/path.new; mv {directory}/path.new {directory}/path; exec sleep 600\n"
    );
    let waits = editor(world, "waits", &script);
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let _ = fs::remove_file(world.directory().join("path"));
        let mut child = edit(world, &waits).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the editor has the file", || world.directory().join("path").exists());
        let file = named(world);
        assert!(file.exists());
        let pid = i32::try_from(child.id()).unwrap();
        // An interrupt from the terminal belongs to the editor.
        processes::signal(pid, Signal::INT);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none() && file.exists());
        processes::signal(pid, signal);
        let output = Output::from(String::from("secret edit"), child.wait_with_output().unwrap());
        output.exits(status).says("nothing was changed");
        assert!(!file.exists() && !file.parent().unwrap().exists());
    }
    assert_eq!(shown(world, "API_TOKEN"), "first-value");
}
