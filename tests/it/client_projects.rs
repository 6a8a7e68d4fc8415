//! The commands that connect a clone with its servers: `init`, `push`, `open`, and `status` over several servers.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use crate::harness::{Laptop, World, cli::Output, in_one_mode, installed, processes};

in_one_mode!(
    init_creates_what_is_missing_and_may_run_twice,
    push_deploys_to_every_host_of_an_environment,
    status_shows_all_environments_and_servers_that_do_not_answer,
    address_of_an_environment_is_printed_and_opened,
    commands_of_heroku_and_dokku_work_from_a_laptop,
    colours_and_progress_follow_the_terminal_and_the_variables,
    manual_pages_and_completions_cover_every_command,
);

fn init_creates_what_is_missing_and_may_run_twice(world: &World) {
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {0}, id: shop/production}}\nstaging: {{url: {0}}}\n", laptop.url("")));
    laptop.larder("empty", &["init", "shop", "--to", "prod"]).exits(4).says("git init");
    laptop.site("shop", "version one");
    let larder = |words: &[&str]| laptop.larder("shop", words);
    larder(&["init", "shop", "--to", "nowhere"]).exits(4).says("names in ~/.config/larder/config.yml: prod, staging");
    larder(&["init", "blog", "--to", "prod"]).exits(3).says("prod names the project shop, not blog");
    larder(&["init", "--to", "staging"]).exits(2).says("larder init shop --to staging");
    let first = larder(&["init", "shop", "--to", "prod", "--json"]).json();
    assert_eq!(
        (&first["created"], &first["remote_added"], &first["branch"]),
        (&true.into(), &true.into(), &"main".into()),
        "{first}"
    );
    let second = larder(&["init", "--to", "prod"]);
    second.exits(0).says("shop/production exists already").says("the git remote prod exists already");
    assert_eq!(laptop.git("shop", &["remote", "get-url", "prod"]).ok().trim(), laptop.url("shop"));
    // The second environment has a branch of its own. Its remote knows the environment.
    let staging = larder(&["init", "shop", "--to", "staging"]);
    staging.exits(0).says("shop/staging was created").says("deploys the branch staging").says("larder push staging");
    larder(&["push", "staging"]).exits(0).says("v1 is live");
    world.serves("staging--shop", "version one");
    assert_eq!(
        larder(&["-r", "staging", "releases", "--json"]).json(),
        world.larder(&["releases", "shop/staging", "--json"]).json()
    );
    larder(&["init", "shop", "--to", "staging", "--branch", "next"]).exits(3).says("deploys the branch staging, not next");
    // Another clone gets the remote only.
    laptop.site("other", "version two");
    let other = laptop.larder("other", &["init", "shop", "--to", "staging"]);
    other.exits(0).says("shop/staging exists already").says("the git remote staging was added");
    // A remote of the same name with another address stays.
    let elsewhere = "ssh://larder@elsewhere.example.com/shop";
    laptop.git("other", &["remote", "set-url", "staging", elsewhere]).ok();
    let refused = laptop.larder("other", &["init", "shop", "--to", "staging"]);
    refused.exits(3).says(&format!("the git remote staging has the address {elsewhere} (expected {}", laptop.url("shop")));
    refused.says("git remote set-url staging");
    assert_eq!(laptop.git("other", &["remote", "get-url", "staging"]).ok().trim(), elsewhere);
    // A user who may not create gets the server's sentence.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    let Some(bob) = Laptop::new(world, "bob") else { return };
    bob.site("blog", "version one");
    let address = bob.url("");
    bob.larder("blog", &["init", "blog", "--to", &address]).exits(3).says("bob is not an administrator");
    assert_eq!(bob.git("blog", &["remote"]).ok(), "");
    world.larder(&["project", "list"]).keeps_quiet_about("blog");
}

fn push_deploys_to_every_host_of_an_environment(world: &World) {
    world.project("shop");
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.site("shop", "version one");
    laptop.larder("shop", &["push"]).exits(4).says("larder init PROJECT");
    // Two names of one server stand for two hosts.
    let hosts = ["127.0.0.1", "localhost"].map(|host| format!("ssh://larder@{host}:{}", world.ssh_port()));
    let file = serde_json::json!({ "environments": { "production": { "id": "shop/production", "hosts": hosts } } });
    fs::write(laptop.directory("shop").join("larder-environments.json"), file.to_string()).unwrap();
    let pushed = laptop.larder("shop", &["push"]);
    pushed.exits(0).says("v1 is live").says("Everything up-to-date").says("first use of the server localhost:");
    world.serves("shop", "version one");
    // Another history replaces the live one with `--force` only.
    laptop.git("shop", &["commit", "--quiet", "--amend", "--message", "another history"]).ok();
    laptop.larder("shop", &["push", "production@localhost"]).exits(1).says("[rejected]");
    laptop.ssh_calls();
    laptop.larder("shop", &["push", "production@localhost", "--force"]).exits(0).says("v2 is live");
    let calls = laptop.ssh_calls();
    assert!(!calls.is_empty() && calls.iter().all(|call| call.contains("larder@localhost")), "one host is named: {calls:?}");
    let program = laptop.directory("shop/.larder").join("build");
    fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    laptop.page("shop", "does not build");
    let rejected = laptop.larder("shop", &["push", "production"]);
    rejected.exits(1).says("! [remote rejected]").says("note: not pushed to: localhost:");
    world.serves("shop", "version one");
    // One host, and an older commit.
    laptop.larder("shop", &["push", "production@localhost", "--ref", "HEAD~1"]).exits(0).says("Everything up-to-date");
    for reference in ["--all", "-d", "+HEAD", ":main", "a:b", ""] {
        let refused = laptop.larder("shop", &["push", "production", &format!("--ref={reference}")]);
        refused.exits(2).says("is not a commit, a branch or a tag");
    }
    world.serves("shop", "version one");
}

/// Accepts connections and passes them on to a port, each after a wait. The threads end with the test program.
fn slow_way_to(port: u16, wait: Duration) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let slow = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                std::thread::sleep(wait);
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
                for (mut from, mut to) in
                    [(&client, &server), (&server, &client)].map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            });
        }
    });
    slow
}

fn status_shows_all_environments_and_servers_that_do_not_answer(world: &World) {
    world.project("shop").project("blog");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.site("shop", "version one");
    laptop.git("shop", &["remote", "add", "prod", &laptop.url("shop")]).ok();
    laptop.git("shop", &["push", "--quiet", "prod", "HEAD:main"]).exits(0);
    let alone = laptop.larder("shop", &["status"]);
    alone.exits(0).says("shop/production").says("shop/staging").says("live by alice").keeps_quiet_about("blog");
    // Of the servers of the second environment, one accepts connections and never answers, one does not exist, one refuses the key because of
    // the login name, one is slow, one needs a program of `ssh` that ignores requests to end, and the
    // last one has an unknown host key.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let slow_port = slow_way_to(world.ssh_port(), Duration::from_secs(1));
    let config = laptop.home().join(".ssh/config");
    let way = "Host stuck.example.com\n\tProxyCommand sh -c 'trap \"\" HUP TERM; sleep 98765 </dev/null; true'\n";
    let strict = format!(
        "Host strict.example.com\n\tHostName 127.0.0.1\n\tPort {}\n\tHostKeyAlias strict\n\tStrictHostKeyChecking yes\n",
        world.ssh_port()
    );
    fs::write(&config, strict + way + &fs::read_to_string(&config).unwrap()).unwrap();
    let file = serde_json::json!({ "environments": {
        "production": { "id": "shop/production", "hosts": [laptop.url("")] },
        "far": { "id": "shop/far", "hosts": [
            format!("ssh://larder@127.0.0.1:{silent_port}"),
            format!("ssh://larder@127.0.0.1:{closed_port}"),
            format!("ssh://root@127.0.0.1:{}", world.ssh_port()),
            format!("ssh://larder@127.0.0.1:{slow_port}"),
            String::from("ssh://larder@stuck.example.com"),
            String::from("ssh://larder@strict.example.com"),
        ] },
    } });
    fs::write(laptop.directory("shop").join("larder-environments.json"), file.to_string()).unwrap();
    let shown = laptop.larder("shop", &["status", "--timeout", "6"]);
    shown.exits(1);
    let row = |text: &str| shown.stdout.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{shown}")).to_owned();
    let here = format!("127.0.0.1:{}", world.ssh_port());
    // The slow server is another name of the same server.
    let live = row(&format!("shop/production  {here}"));
    for part in [here.as_str(), "v1 (", "live by alice", "free", "blue"] {
        assert!(live.contains(part) || (part == "blue" && live.contains("green")), "{part}: {live}");
    }
    assert!(row("shop/staging").contains("empty"), "{shown}");
    assert!(
        row(&format!("127.0.0.1:{silent_port}")).contains("no answer within 6 seconds")
            || row(&silent_port.to_string()).contains("timed out"),
        "{shown}"
    );
    assert!(row(&closed_port.to_string()).contains("Connection refused"), "{shown}");
    assert!(row("Permission denied").contains(&here), "{shown}");
    let slow: Vec<_> = shown.stdout.lines().filter(|line| line.contains(&format!("127.0.0.1:{slow_port}"))).collect();
    assert!(slow.len() == 2 && slow[0].contains("shop/production") && slow[1].contains("shop/staging"), "{shown}");
    assert!(!row("stuck.example.com").contains("live"), "{shown}");
    let left: Vec<_> = processes::of(world.directory());
    let left = left.iter().filter(|process| process.arguments.iter().any(|word| word.contains("98765"))).count();
    assert_eq!(left, 0, "the program of ssh goes on");
    assert!(
        row("strict.example.com").contains("unknown host key: run `larder -r ssh://larder@strict.example.com whoami` once"),
        "{shown}"
    );
    assert_eq!(shown.stdout.lines().count(), 10, "{shown}");
    shown.says("note: first use of the server strict.example.com");
    let value = laptop.larder("shop", &["status", "--timeout", "6", "--json"]);
    let value = value.exits(1).any_json();
    let servers = value.as_array().unwrap();
    assert_eq!(servers.iter().filter(|server| server["error"].is_string()).count(), 5, "{value}");
    let own = servers.iter().find(|server| server["environments"].is_array()).unwrap();
    assert_eq!(own["environments"][0]["last"]["by"], "alice");
    // A failed push shows as the last deployment.
    fs::remove_file(laptop.directory("shop").join("larder-environments.json")).unwrap();
    let build = laptop.directory("shop/.larder").join("build");
    fs::write(&build, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&build, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    laptop.page("shop", "does not build");
    laptop.git("shop", &["push", "--quiet", "prod", "HEAD:main"]).exits(1);
    let failed = laptop.larder("shop", &["status"]);
    failed.exits(0).says("rolled back by alice").says("v1 (");
    // With a name, the status is that of the server.
    laptop.larder("shop", &["-r", "prod", "status"]).exits(0).says("host key").says("blog/production");
    drop(silent);
}

fn address_of_an_environment_is_printed_and_opened(world: &World) {
    world.project("shop");
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    let address = format!("http://shop.localhost:{}", world.http_port());
    assert_eq!(laptop.larder("", &["open"]).ok().trim(), address);
    assert_eq!(laptop.larder("", &["--json", "open", "shop"]).json()["url"], address.as_str());
    laptop.larder("", &["open", "shop/nowhere"]).exits(4).says("there is no environment shop/nowhere");
    laptop.program("xdg-open", "printf '%s\\n' \"$*\" >> \"$HOME/browser.log\"\n");
    let log = laptop.home().join("browser.log");
    if installed("script").is_some() {
        let line = format!("{} open", env!("CARGO_BIN_EXE_larder"));
        let run = |line: &str| Output::of(laptop.command("script", "").env("DISPLAY", ":0").args(["-qec", line, "/dev/null"]));
        run(&line).exits(0).says(&address);
        assert_eq!(fs::read_to_string(&log).unwrap().trim(), address);
        // An address that a hostile server gives starts no other program than a browser with a web page.
        fs::remove_file(&log).unwrap();
        for url in ["file:///etc/passwd", "--help", "javascript:1", "ssh://x"] {
            let answer = serde_json::json!([{ "project": { "environments": [
                { "name": "production", "branch": "main", "default": true },
            ] }, "urls": [[url]] }]);
            laptop.program("ssh", &format!("printf '%s' '{answer}'\n"));
            run(&line).exits(4);
        }
        assert!(!log.exists());
    }
}

fn commands_of_heroku_and_dokku_work_from_a_laptop(world: &World) {
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop}}\n", laptop.url("")));
    laptop.site("shop", "version one");
    laptop.larder("", &["apps:create", "shop"]).exits(0).says("shop/production is ready");
    laptop.larder("shop", &["init", "--to", "prod"]).exits(0);
    laptop.larder("shop", &["push"]).exits(0);
    laptop.larder("", &["ps:scale", "web=2"]).exits(0);
    laptop.larder("", &["ps:scale", "web=1", "-a", "shop"]).exits(0);
    laptop.larder("", &["git:report"]).exits(2);
    laptop.larder("", &["git:report", "shop"]).exits(0).says("shop/production");
    laptop.larder("", &["pg:psql"]).exits(4).says("database");
    laptop
        .larder("", &["domains:add", "x.example.com"])
        .exits(2)
        .says("larder has no command domains:add")
        .says("`domains:` of larder.yml");
    // The server gives the same answers to ssh alone.
    world.ssh("alice", &["apps"]).exits(0).says("shop/production");
    world.ssh("alice", &["domains:add", "shop", "x.example.com"]).exits(2).says("`domains:` of larder.yml");
}

fn colours_and_progress_follow_the_terminal_and_the_variables(world: &World) {
    world.project("shop");
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    laptop.servers(&format!("prod: {{url: {}, id: shop/production}}\n", laptop.url("")));
    laptop.site("shop", "version one");
    laptop.larder("shop", &["push", "prod"]).exits(0);
    let colour = |variables: &[(&str, &str)]| {
        let mut command = laptop.larder_command("shop");
        command.args(["-r", "nowhere", "whoami"]).envs(variables.iter().copied());
        Output::of(&mut command).exits(4).stderr.contains("\u{1b}[")
    };
    assert!(!colour(&[]), "a pipe gets plain lines");
    assert!(colour(&[("CLICOLOR_FORCE", "1")]));
    assert!(!colour(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    let status = laptop.larder("shop", &["status"]);
    status.exits(0).keeps_quiet_about("\u{1b}").keeps_quiet_about("servers that answered");
    if installed("script").is_some() {
        let line = format!("{} status", env!("CARGO_BIN_EXE_larder"));
        let on_terminal = |name: &str, value: &str| {
            let mut script = laptop.command("script", "shop");
            Output::of(script.env("TERM", "xterm").env(name, value).args(["-qec", &line, "/dev/null"]))
        };
        on_terminal("LC_ALL", "C.UTF-8").exits(0).says("servers that answered").says("shop/production");
    }
    // Quiet: a deployment prints only its failure.
    let quiet = laptop.larder("shop", &["deploy", "--quiet"]);
    assert_eq!((quiet.status, quiet.stdout.as_str()), (0, ""), "{quiet}");
    let build = laptop.directory("shop/.larder").join("build");
    fs::write(&build, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&build, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    laptop.page("shop", "does not build");
    laptop.larder("shop", &["push", "prod", "--quiet"]).exits(1);
    let retry = laptop.larder("shop", &["deploy", "--retry", "--quiet"]);
    retry.exits(1).says(" !     build").keeps_quiet_about("----->");
}

fn manual_pages_and_completions_cover_every_command(world: &World) {
    let Some(laptop) = Laptop::new(world, "alice") else { return };
    let pages = laptop.directory("").join("man/man1");
    laptop.larder("", &["man", pages.to_str().unwrap()]).exits(0);
    for page in ["larder.1", "larder-init.1", "larder-backup-take.1", "larder-db-shell.1"] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}: {text}");
    }
    laptop.larder("", &["man", "/dev/null/x"]).exits(3).says("cannot write the manual pages into /dev/null/x");
    for shell in ["bash", "zsh", "fish"] {
        let script = laptop.larder("", &["completions", shell]);
        script.exits(0).says("init").says("backup");
        let file = laptop.directory("").join(format!("completions.{shell}"));
        fs::write(&file, &script.stdout).unwrap();
        if installed(shell).is_some() {
            Output::of(laptop.command(shell, "").arg("-n").arg(&file)).exits(0);
        }
    }
}
