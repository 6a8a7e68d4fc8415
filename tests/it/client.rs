//! larder on a developer's machine: the server for a command, and commands over the user's own ssh.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use crate::harness::{Laptop, Repo, World, cli::Output, in_one_mode, until};

in_one_mode!(
    command_from_a_laptop_passes_streams_and_status,
    server_is_found_by_flag_file_remote_and_configuration,
    ambiguous_or_missing_server_is_refused_with_what_was_found,
);

fn command_from_a_laptop_passes_streams_and_status(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    let larder = |words: &[&str]| laptop.larder("", words);
    larder(&["whoami"]).exits(0).says("alice");
    let calls = laptop.ssh_calls();
    let options = format!("-p {} -T -a -x -o ClearAllForwardings=yes -- larder@127.0.0.1 whoami", world.ssh_port());
    assert_eq!(calls, [options]);
    // JSON is that of the server, and the environment of the file is added.
    assert_eq!(larder(&["releases", "--json"]).json(), world.larder(&["releases", "shop", "--json"]).json());
    assert_eq!(
        larder(&["-r", "prod", "--json", "releases", "shop"]).json(),
        world.larder(&["releases", "shop", "--json"]).json()
    );
    larder(&["logs"]).exits(0);
    larder(&["db:list"]).exits(0);
    larder(&["ps", "--scale", "web=1"]).exits(0);
    // Words, both streams and the exit status pass unchanged.
    let words = larder(&["run", "--", "printf", "<%s>", "two  words", "-r", "it's", "$HOME", "--json"]);
    assert_eq!((words.status, words.stdout.as_str()), (0, "<two  words><-r><it's><$HOME><--json>"), "{words}");
    let both = larder(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 9"]);
    assert_eq!((both.status, both.stdout.as_str(), both.stderr.as_str()), (9, "out\n", "err\n"), "{both}");
    larder(&["releases", "nowhere"]).exits(4).says("no project nowhere");
    larder(&["deploy", "shop", "--retry"]).exits(3);
    larder(&["relases"]).exits(2).says("releases");
    // Bytes of every value pass in both directions.
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(70_000).collect();
    let mut cat = laptop.larder_command("");
    let mut cat = cat.args(["run", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, sent) = (cat.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = cat.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{} bytes came back", output.stdout.len());
    // A stream shows lines as they arrive.
    let mut logs = laptop.larder_command("");
    let mut logs = logs.args(["logs", "--follow", "-n", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    let visit = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until("a line of the log arrived", || {
                larder(&["restart"]).exits(0);
                !visit.load(std::sync::atomic::Ordering::Relaxed)
            });
        });
        assert!(lines.map_while(Result::ok).any(|line| line.contains("web.1")));
        visit.store(false, std::sync::atomic::Ordering::Relaxed);
    });
    logs.kill().unwrap();
    logs.wait().unwrap();
    // The client writes the file of an export.
    world.larder(&["backup", "take", "shop"]).ok();
    larder(&["backup", "export", "shop", "latest", "--output", "x.tar.zst"]).ok();
    let written = fs::read(laptop.directory("").join("x.tar.zst")).unwrap();
    assert!(written.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "a zstd frame");
    // A key file is read on this machine.
    world.key("bob");
    larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).exits(0);
    // A server that refuses the connection gives the status of ssh.
    let Some(stranger) = Laptop::new(world, "bob") else { return };
    stranger.servers(&format!("prod: {{url: {}}}\n", stranger.url("shop")));
    stranger.larder("", &["releases"]).exits(4).says("no project shop that you may see");
    world.larder(&["user", "remove", "bob"]).ok();
    stranger.larder("", &["releases"]).exits(255).says("Permission denied");
}

fn server_is_found_by_flag_file_remote_and_configuration(world: &World) {
    world.project("shop");
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.site("shop", "version one");
    // Each place names another login, which the server refuses or accepts, and which the recorded words show.
    let address = |login: &str| format!("ssh://{login}@127.0.0.1:{}", world.ssh_port());
    let used = |words: &[&str]| {
        let output = laptop.larder("shop", words);
        let calls = laptop.ssh_calls();
        let logins: Vec<_> = calls.iter().filter_map(|call| call.split(" -- ").nth(1)?.split('@').next()).collect();
        assert_eq!(logins.len(), 1, "{output} {calls:?}");
        (logins[0].to_owned(), output)
    };
    laptop.servers(&format!("prod: {{url: {}}}\n", address("user")));
    assert_eq!(used(&["whoami"]).0, "user");
    assert_eq!(used(&["-r", "prod", "whoami"]).0, "user");
    // `-r` counts before the directory of a server.
    assert_eq!(used(&["--root", "/nonexistent", "-r", "prod", "whoami"]).0, "user");
    // XDG_CONFIG_HOME takes the place of ~/.config.
    let other = laptop.home().join("other/larder");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("config.yml"), format!("prod: {{url: {}}}\n", address("xdg"))).unwrap();
    Output::of(laptop.larder_command("shop").env("XDG_CONFIG_HOME", laptop.home().join("other")).arg("whoami"));
    assert!(laptop.ssh_calls()[0].contains("xdg@"));
    // Git remotes that cannot be an address of larder are skipped.
    laptop.git("shop", &["remote", "add", "origin", "https://forge.example.com/shop"]).ok();
    laptop.git("shop", &["remote", "add", "forge", "ssh://git@forge.example.com/owner/shop.git"]).ok();
    assert_eq!(used(&["whoami"]).0, "user");
    laptop.git("shop", &["remote", "add", "prod", &format!("{}/shop", address("remote"))]).ok();
    assert_eq!(used(&["whoami"]).0, "remote");
    assert_eq!(used(&["-r", "prod", "whoami"]).0, "remote");
    // The address for pushes counts.
    laptop.git("shop", &["config", "remote.prod.pushurl", &format!("{}/shop", address("pushes"))]).ok();
    assert_eq!(used(&["-r", "prod", "whoami"]).0, "pushes");
    laptop.git("shop", &["config", "--unset", "remote.prod.pushurl"]).ok();
    let file =
        format!("{{\"environments\": {{\"prod\": {{\"id\": \"shop/production\", \"hosts\": [\"{}\"]}}}}}}", address("file"));
    fs::write(laptop.directory("shop").join("larder-environments.json"), &file).unwrap();
    let (login, first) = used(&["whoami"]);
    assert_eq!(login, "file");
    // The first use of a server that the repository names is said, and other servers of the same name are said every time.
    first.says("note: first use of the server 127.0.0.1:").says("larder-environments.json of this repository names");
    let (login, second) = used(&["--remote=prod", "whoami"]);
    assert_eq!(login, "file");
    second.keeps_quiet_about("first use").says("note: the git configuration names other servers for prod");
    used(&["--quiet", "-r", "prod", "whoami"]).1.keeps_quiet_about("note:");
    assert_eq!(used(&["-r", &format!("{}/shop", address("flag")), "whoami"]).0, "flag");
    // The file of the repository is found in its subdirectories.
    laptop.directory("shop/deep");
    laptop.larder("shop/deep", &["whoami"]);
    assert!(laptop.ssh_calls()[0].contains("file@"));
    // A command with a directory of a server never leaves the machine.
    let local = laptop.larder("shop", &["--root", "/nonexistent", "whoami"]);
    local.exits(4).says("no server runs in /nonexistent");
    Output::of(laptop.larder_command("shop").env("LARDER_ROOT", world.root()).arg("whoami"));
    assert!(laptop.ssh_calls().is_empty());
}

fn ambiguous_or_missing_server_is_refused_with_what_was_found(world: &World) {
    world.project("shop");
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop
        .larder("", &["whoami"])
        .exits(4)
        .says("no server runs in /srv/larder")
        .says("larder -r ssh://larder@HOST:PORT/PROJECT");
    laptop.site("shop", "version one");
    laptop.git("shop", &["remote", "add", "one", &laptop.url("shop")]).ok();
    laptop.git("shop", &["remote", "add", "two", "ssh://larder@two.example.com/shop"]).ok();
    laptop.git("shop", &["remote", "add", "elsewhere", "https://larder:hunter2@example.com/shop"]).ok();
    let refused = laptop.larder("shop", &["whoami"]);
    refused
        .exits(2)
        .says("cannot choose a server: the git configuration names several: one (127.0.0.1:")
        .says("two (two.example.com)");
    refused.says("hint: name one of them, as in `larder -r one ...`");
    laptop.larder("shop", &["-r", "one", "whoami"]).exits(0).says("alice");
    let unusable = laptop.larder("shop", &["-r", "elsewhere", "whoami"]);
    unusable.exits(5).says("cannot use the git remote elsewhere").says("is not an ssh address").keeps_quiet_about("hunter2");
    let missing = laptop.larder("shop", &["-r", "three", "whoami"]);
    missing.exits(4).says("names in the git configuration: one, two").says("git remote -v");
    laptop.servers("three: {url: https://example.com}\n");
    laptop.larder("shop", &["-r", "three", "whoami"]).exits(5).says("config.yml:1:").says("is not an ssh address");
    laptop.servers("three: {url: ssh://three, id: shop/production, key: x}\n");
    laptop.larder("shop", &["-r", "three", "whoami"]).exits(5).says("unknown key \"key\"");
    laptop.servers("three:\n  url: ssh://three.example.com\n");
    let several = "{\"environments\": {\"production\": {\"id\": \"shop\", \"hosts\": [\"ssh://a.example.com\", \"ssh://b.example.com:2222\"]}}}";
    fs::write(laptop.directory("shop").join("larder-environments.json"), several).unwrap();
    laptop.ssh_calls();
    let refused = laptop.larder("shop", &["whoami"]);
    refused.exits(2).says("production in larder-environments.json has 2 hosts: a.example.com, b.example.com:2222");
    refused.says("`larder -r production@a.example.com ...`");
    laptop.larder("shop", &["-r", "production@c.example.com", "whoami"]).exits(4).says("no host c.example.com of production");
    assert!(laptop.ssh_calls().is_empty());
}
