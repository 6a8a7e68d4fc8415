//! A repository and a server of a stranger, and a developer who uses larder there.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::harness::{Laptop, Repo, World, cli::Output, in_one_mode, installed};

in_one_mode!(file_of_a_stranger_starts_no_program_and_no_connection, server_of_a_stranger_cannot_control_the_terminal);

fn file_of_a_stranger_starts_no_program_and_no_connection(world: &World) {
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.site("shop", "version one");
    let file = laptop.directory("shop").join("larder-environments.json");
    let marker = laptop.home().join("marker");
    let touch = format!("touch${{IFS}}{}", marker.display());
    let hosts = [
        String::from("ssh://-oProxyCommand=id/shop"),
        format!("ssh://-oProxyCommand={touch}/shop"),
        String::from("ssh://-F/dev/null/shop"),
        format!("ssh://$({touch})/shop"),
        format!("ssh://`{touch}`@127.0.0.1/shop"),
        String::from("ssh://larder@127.0.0.1:22 -oProxyCommand=id/shop"),
        format!("ext::sh -c {touch}"),
        format!("file://{}", marker.display()),
        String::from("https://127.0.0.1/shop"),
        String::from("ssh://larder:hunter2@127.0.0.1/shop"),
        String::from("ssh://127.0.0.1/shop\\n-oProxyCommand=id"),
        String::from("ssh://127.0.0.1\\u001b]0;title\\u0007/shop"),
        String::from("ssh://%h.example.com/shop"),
    ];
    for host in hosts {
        fs::write(&file, format!("{{\"environments\": {{\"prod\": {{\"id\": \"shop\", \"hosts\": [\"{host}\"]}}}}}}")).unwrap();
        for words in [&["whoami"][..], &["-r", "prod", "whoami"]] {
            let refused = laptop.larder("shop", words);
            refused.exits(5).says("larder-environments.json:1:").keeps_quiet_about("hunter2").keeps_quiet_about("\u{1b}");
        }
    }
    // A name of the file is no option, too.
    fs::write(&file, "{\"environments\": {\"--upload-pack=x\": {\"id\": \"shop\", \"hosts\": [\"ssh://a\"]}}}").unwrap();
    laptop.larder("shop", &["whoami"]).exits(5).says("is not the name of an environment");
    // The file cannot stand for another file of the user, and cannot block the client.
    fs::remove_file(&file).unwrap();
    symlink(world.private_key("alice"), &file).unwrap();
    laptop.larder("shop", &["whoami"]).exits(5).keeps_quiet_about("PRIVATE KEY");
    fs::remove_file(&file).unwrap();
    Output::of(Command::new("mkfifo").arg(&file)).ok();
    laptop.larder("shop", &["whoami"]).exits(5);
    fs::remove_file(&file).unwrap();
    fs::write(&file, vec![b' '; 70_000]).unwrap();
    laptop.larder("shop", &["whoami"]).exits(5).says("larder-environments.json");
    fs::remove_file(&file).unwrap();
    // A git remote with options or a program is refused, too.
    for url in ["ssh://-oProxyCommand=id/shop", "ext::sh -c id"] {
        laptop.git("shop", &["config", "remote.bad.url", url]).ok();
        laptop.larder("shop", &["-r", "bad", "whoami"]).exits(5);
        laptop.larder("shop", &["whoami"]).exits(4);
    }
    for name in ["--upload-pack=id", "-oProxyCommand=id", "a@-oProxyCommand=id"] {
        let output = laptop.larder("shop", &[&format!("--remote={name}"), "whoami"]);
        output.exits(4).keeps_quiet_about("panicked");
    }
    for address in ["ssh://-oProxyCommand=id/shop", "ssh://larder@-oProxyCommand=id", "ext::sh://-c id"] {
        laptop.larder("shop", &["-r", address, "whoami"]).exits(2);
    }
    assert!(laptop.ssh_calls().is_empty());
    assert!(!marker.exists());
}

/// The server of a stranger is a script in the place of `ssh`, because larder's own server sends no escape sequences.
fn server_of_a_stranger_cannot_control_the_terminal(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}}}\n", laptop.url("shop")));
    let escapes =
        "printf '\\033]0;title\\007\\033[2J\\033[1Aplain \\033[31mred\\n'\nprintf '\\033]52;c;aWQ=\\007error\\n' >&2\nexit 7\n";
    // The fate of `ssh` is that of the command, and a file that is not complete gets no name.
    laptop.program("ssh", "printf 'a part'\nkill -KILL $$\n");
    laptop.larder("", &["backup", "export", "shop", "latest", "--output", "cut.tar.zst"]).exits(137);
    assert_eq!(crate::harness::state::names(&laptop.directory("")), Vec::<String>::new(), "a part of an export is left");
    // An answer without an end does not fill the memory.
    laptop.program("ssh", "head -c 9000000 /dev/zero\n");
    laptop.larder("", &["status"]).exits(1).says("has more than 8388608 bytes");
    laptop.program("ssh", escapes);
    // Into a pipe, every byte passes.
    let piped = laptop.larder("", &["releases"]);
    piped.exits(7).says("\u{1b}]0;title\u{7}\u{1b}[2J\u{1b}[1Aplain").says("\u{1b}]52;");
    if installed("script").is_some() {
        let line = format!("{} releases", env!("CARGO_BIN_EXE_larder"));
        let shown = Output::of(laptop.command("script", "").args(["-qec", &line, "/dev/null"]));
        shown.exits(7).says("plain \u{1b}[31mred").says("error");
        for sequence in ["\u{1b}]", "\u{1b}[2J", "\u{1b}[1A", "\u{7}"] {
            shown.keeps_quiet_about(sequence);
        }
    }
}
