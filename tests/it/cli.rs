//! Commands that do not concern a single deployment, locally and over ssh.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::{Repo, World, cli::Output, http, in_each_mode, in_one_mode, processes, source::top, until};

in_each_mode!(disk_matches_the_layout);
in_one_mode!(
    project_is_created_deployed_and_destroyed,
    listings_print_json,
    every_command_has_help,
    page_of_commands_matches_the_help,
    second_environment_deploys_its_own_branch,
    branch_stored_before_its_environment_is_deployed_again,
    failed_project_creation_frees_the_name,
    remote_option_uses_the_server_of_a_git_remote,
    missing_or_second_server_is_reported,
    closed_output_is_no_error,
    excess_local_commands_are_refused,
    local_command_above_64_kib_is_carried_out,
    logs_of_two_processes_merged_by_time_keep_the_order_of_each_process,
    quickstart_serves_a_page,
);

fn project_is_created_deployed_and_destroyed(world: &World) {
    let created = world.larder(&["project", "create", "shop", "--mode", "cooking", "--domain", "www.example.com"]);
    created.exits(0).says(&format!("ssh://larder@HOST:{}/shop", world.ssh_port())).says("shop.localhost");
    world.larder(&["project", "create", "shop"]).exits(3).says("exists already");
    world.larder(&["project:create", "blog"]).exits(0);
    world.larder(&["project", "list"]).says("shop/production").says("blog/production");
    world.larder(&["releases", "shop"]).exits(0);
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.larder(&["project", "info", "shop"]).says("v1").says("www.example.com");
    let answer = http::get(world.http_port(), "www.example.com", "/").unwrap();
    answer.holds("version one");
    world.larder(&["project", "destroy", "shop"]).exits(2).says("--confirm shop");
    world.larder(&["project", "destroy", "shop", "--confirm", "blog"]).exits(2);
    world.serves("shop", "version one");
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).exits(0);
    assert_eq!(world.application("shop"), Vec::<i32>::new());
    assert!(!world.root().join("projects/shop/production").exists(), "the directory of the environment still exists");
    world.larder(&["project", "info", "shop"]).exits(4);
    assert_eq!(world.get("shop", "/").status, 404);
    // The name is free again, and the new project shares nothing with the destroyed project.
    world.project("shop");
    assert_eq!(repo.live(), None);
    repo.push().accepted().says("v1 is live");
    world.serves("shop", "version one");
}

fn listings_print_json(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let commit = repo.head();
    let json = |words: &[&str]| world.ssh("alice", words).json();
    let releases = json(&["releases", "shop", "--json"]);
    assert_eq!(
        (&releases[0]["commit"], &releases[0]["live"], &releases[0]["by"]),
        (&commit.into(), &true.into(), &"alice".into())
    );
    let processes = json(&["ps", "shop", "--json"]);
    assert_eq!((&processes[0]["process"], &processes[0]["active"]), (&"web.1".into(), &true.into()));
    assert_eq!(json(&["status", "--json"])["environments"][0]["state"], "live");
    assert_eq!(json(&["project", "list", "--json"])[0]["project"]["name"], "shop");
    assert_eq!(json(&["user", "list", "--json"])[0]["name"], "alice");
    assert_eq!(json(&["whoami", "--json"])["name"], "alice");
    assert!(json(&["doctor", "--json"]).as_array().unwrap().len() > 5);
    // The output is the same with an option for the project, and for a command on the server itself.
    assert_eq!(json(&["releases", "-a", "shop", "--json"]), releases);
    assert_eq!(world.larder(&["--json", "releases", "--app", "shop"]).json(), releases);
    assert_eq!(world.larder(&["releases", "shop", "--json"]).json(), releases);
}

fn every_command_has_help(world: &World) {
    let help = world.larder(&["--help"]);
    let commands = help.ok().split_once("\nUsage:").unwrap().1.split("\nEverywhere:").next().unwrap();
    let verbs: Vec<_> = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(' ')).collect();
    let verbs: Vec<_> = verbs.into_iter().map(|(verb, _)| verb).filter(|verb| !["", "help"].contains(verb)).collect();
    assert!(verbs.len() > 20, "{verbs:?}");
    for verb in &verbs {
        let help = world.larder(&[verb, "--help"]);
        assert!(help.ok().len() > 80, "{help}");
    }
    for hidden in ["worker", "server", "hook", "static-server"] {
        assert!(!verbs.contains(&hidden), "{hidden} is in the help");
    }
    for shell in ["bash", "zsh", "fish"] {
        let completions = world.larder(&["completions", shell]);
        assert!(verbs.iter().all(|verb| completions.ok().contains(verb)), "{shell}");
    }
    world.larder(&["relases", "shop"]).exits(2).says("releases");
    world.larder(&["--version"]).says(env!("CARGO_PKG_VERSION"));
}

fn page_of_commands_matches_the_help(world: &World) {
    let rendered = world.directory().join("cli.md");
    let script = top().join("docs/generate-cli");
    let status = Command::new(script).args([env!("CARGO_BIN_EXE_larder").as_ref(), rendered.as_os_str()]).status().unwrap();
    assert!(status.success());
    let page = fs::read_to_string(top().join("docs/cli.md")).unwrap();
    assert!(fs::read_to_string(rendered).unwrap() == page, "docs/cli.md is outdated; run docs/generate-cli");
}

fn second_environment_deploys_its_own_branch(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging"]).exits(3).says("--branch");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "stable");
    repo.push().accepted();
    let stable = repo.head();
    let next = repo.page("unstable");
    repo.push_as(&["HEAD:refs/heads/next"]).accepted().says("staging--shop.localhost");
    world.serves("shop", "stable");
    world.serves("staging--shop", "unstable");
    assert_eq!(repo.live(), Some(stable));
    assert_eq!(repo.ls_remote().get("refs/heads/next"), Some(&next));
    repo.git(&["ls-remote", "--symref", &repo.url(), "HEAD"]).says("ref: refs/heads/main");
    world.larder(&["releases", "shop/staging"]).says("v1");
    // The hint names the environment staging, not the default environment.
    repo.program(".larder/build", "#!/bin/sh\nexit 1\n");
    repo.commit("does not build");
    repo.push_as(&["HEAD:refs/heads/next"]).says("`larder deploy shop/staging --retry`").rejected();
    world.larder(&["ps", "shop/nowhere"]).exits(4).says("shop/production, shop/staging");
}

fn excess_local_commands_are_refused(world: &World) {
    world.project("shop");
    let follow = || {
        let mut logs = world.larder_command();
        logs.args(["logs", "shop", "--follow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // The command below also counts as a client, and may be served before some of the clients. Therefore more clients are started than the
    // limit allows.
    let mut all: Vec<_> = (0..68).map(|_| follow()).collect();
    until("there are too many commands", || {
        // A client may be refused while all clients connect at the same time. Such a client is started again.
        for one in &mut all {
            if one.try_wait().unwrap().is_some() {
                *one = follow();
            }
        }
        let more = world.larder(&["whoami"]);
        more.status == 3 && more.stderr.contains("runs 64 commands already")
    });
    for one in &mut all {
        one.kill().unwrap();
        one.wait().unwrap();
    }
    until("commands are accepted again", || world.larder(&["whoami"]).status == 0);
}

fn branch_stored_before_its_environment_is_deployed_again(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "stable");
    repo.push().accepted();
    let next = repo.page("unstable");
    repo.push_as(&["HEAD:refs/heads/next"]).accepted();
    let created = world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]);
    created.exits(0).says(&next[..7]).says("Push next again to deploy it");
    assert_eq!(repo.ls_remote().get("refs/heads/next"), None, "a deploy branch names what is live");
    repo.push_as(&["HEAD:refs/heads/next"]).accepted().says("v1 is live");
    world.serves("staging--shop", "unstable");
    assert_eq!(repo.ls_remote().get("refs/heads/next"), Some(&next));
}

fn failed_project_creation_frees_the_name(world: &World) {
    world.restart(&[("FAILPOINTS", "attach-fails=1*return")]);
    world.larder(&["project", "create", "shop"]).exits(70);
    world.larder(&["project", "list"]).keeps_quiet_about("shop");
    assert!(!world.root().join("projects/shop").exists());
    world.project("shop");
    // If the creation of an environment of an existing project fails, the project stays as it is.
    world.restart(&[("FAILPOINTS", "attach-fails=1*off->1*return")]);
    let staging = ["project", "create", "shop", "--env", "staging", "--branch", "next"];
    world.larder(&staging).exits(70);
    world.larder(&["project", "list"]).keeps_quiet_about("staging").says("shop/production");
    world.larder(&staging).ok();
    Repo::site(world, "shop", "version one").push().accepted();
    // An existing directory is not deleted.
    let found = world.root().join("projects/blog/data");
    fs::create_dir_all(&found).unwrap();
    world.larder(&["project", "create", "blog"]).exits(3).says("projects/blog exists already");
    assert!(found.is_dir());
    fs::remove_dir_all(world.root().join("projects/blog")).unwrap();
    world.project("blog");
}

fn remote_option_uses_the_server_of_a_git_remote(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.git(&["remote", "add", "prod", &repo.url()]).ok();
    repo.git(&["remote", "add", "elsewhere", "https://example.com/shop"]).ok();
    // OpenSSH reads its files from the home of the account, so a wrapper named `ssh` adds the options of this world.
    let options = world.ssh_options("alice").join("' '");
    let bin = world.directory().join("home/bin");
    repo.program("../../home/bin/ssh", &format!("#!/bin/sh\nexec /usr/bin/ssh '{options}' \"$@\"\n"));
    let larder = |words: &[&str]| {
        let mut command = world.client(env!("CARGO_BIN_EXE_larder"));
        command.env("PATH", format!("{}:{}", bin.display(), crate::harness::server::PATH)).current_dir(repo.path()).args(words);
        Output::of(&mut command)
    };
    larder(&["-r", "prod", "whoami"]).exits(0).says("alice");
    let there = larder(&["-r", "prod", "releases", "shop", "--json"]).json();
    assert_eq!(there, world.larder(&["releases", "shop", "--json"]).json());
    larder(&["releases", "shop", "--remote=prod"]).exits(0).says("v1");
    let words = larder(&["-r", "prod", "run", "shop", "--", "printf", "<%s>", "two  words", "-r", "it's", "$HOME", "--key-file"]);
    assert_eq!((words.status, words.stdout.as_str()), (0, "<two  words><-r><it's><$HOME><--key-file>"), "{words}");
    larder(&["-r", "prod", "run", "shop", "--", "sh", "-c", "exit 9"]).exits(9);
    larder(&["-r", "prod", "releases", "nowhere"]).exits(4).says("no project nowhere");
    larder(&["-r", "nowhere", "whoami"]).exits(4).says("git remote -v");
    larder(&["-r", "elsewhere", "whoami"]).exits(5).says("is not an ssh address");
    // The local program writes the file of an export.
    world.larder(&["backup", "take", "shop"]).ok();
    larder(&["-r", "prod", "backup", "export", "shop", "latest", "--output", "x.tar.zst"]).ok();
    assert!(std::fs::read(repo.path().join("x.tar.zst")).unwrap().starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "a zstd frame");
    larder(&["-r", "--upload-pack=x", "whoami"]).keeps_quiet_about("panicked");
}

fn missing_or_second_server_is_reported(world: &World) {
    let nowhere = world.directory().join("nowhere");
    let mut command = world.client(env!("CARGO_BIN_EXE_larder"));
    command.arg("--root").arg(&nowhere).args(["releases", "shop"]);
    Output::of(&mut command).exits(4).says("no server runs in").says("larder serve --root");
    assert!(!nowhere.exists(), "the command created a directory");
    // A second server on the same root does not disturb the first server.
    let mut second = world.larder_command();
    second.args(["serve", "--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let second = Output::of(&mut second);
    second.exits(3).says("another larder is running there");
    world.larder(&["status"]).exits(0);
}

/// A closed pipe is no error, and causes no panic.
fn closed_output_is_no_error(world: &World) {
    for words in [&["--help"][..], &["doctor"], &["completions", "bash"]] {
        let mut command = world.larder_command();
        let mut child = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{words:?}: {stderr}");
    }
    world.larder(&["status"]).exits(0);
}

/// One command serves a page; Ctrl-C leaves nothing but a directory.
fn quickstart_serves_a_page(world: &World) {
    let root = world.directory().join("q");
    fs::create_dir(&root).unwrap();
    // This server has application ports below 10000, because other worlds use the ports from 10000 on.
    let first = 9000 + std::process::id() % 15 * 50;
    fs::write(root.join("larder.yml"), format!("ports:\n  from: {first}\n  to: {}\n", first + 49)).unwrap();
    let mut command = world.client(world.directory().join("larder").to_str().unwrap());
    command.arg("quickstart").arg("--root").arg(&root).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut quickstart = command.process_group(0).spawn().unwrap();
    let mut lines = BufReader::new(quickstart.stdout.take().unwrap()).lines().map_while(Result::ok);
    let live = lines.find_map(|line| line.strip_prefix("The example is live: http://").map(str::to_owned));
    let live = live.unwrap_or_else(|| panic!("the quickstart ended before the example was live: {:?}", quickstart.wait()));
    let (host, port) = live.rsplit_once(':').unwrap();
    let page = http::get(port.parse().unwrap(), host, "/").unwrap();
    assert_eq!((host, page.status), ("hello.localhost", 200), "{page:?}");
    // The printed commands work.
    let site = root.join("client/hello");
    fs::write(site.join("index.html"), "my first change\n").unwrap();
    let git = |words: &[&str]| Output::of(world.client("git").arg("-C").arg(&site).args(words));
    git(&["commit", "--quiet", "-a", "-m", "My first change"]).ok();
    git(&["push", "prod", "main"]).exits(0).says("v2 is live");
    http::get(port.parse().unwrap(), host, "/").unwrap().holds("my first change");
    // A second quickstart does not use the directory of the first quickstart.
    let mut again = world.client(world.directory().join("larder").to_str().unwrap());
    Output::of(again.arg("quickstart").arg("--root").arg(&root)).exits(3).says("the directory contains a server already");
    kill_process_group(Pid::from_child(&quickstart), Signal::INT).unwrap();
    until("the quickstart has ended", || quickstart.try_wait().unwrap().is_some());
    assert!(quickstart.wait().unwrap().success());
    let left: Vec<_> = processes::of(&root);
    assert!(left.is_empty(), "processes are left behind: {left:#?}");
}

/// Compares what the keeper creates, and what a deployment adds, with the layout file.
fn disk_matches_the_layout(world: &World) {
    world.project("shop");
    let findings = || {
        let checks = world.larder(&["doctor", "--json"]).json();
        let layout = checks.as_array().unwrap().iter().filter(|check| check["what"] == "layout");
        layout.map(|check| format!("{} {}", check["grade"], check["finding"])).collect::<Vec<_>>()
    };
    assert_eq!(findings(), ["\"good\" \"all directories match the layout standard\""]);
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.page("version two");
    repo.push().accepted();
    assert_eq!(findings(), ["\"good\" \"all directories match the layout standard\""]);
    let releases = world.environment("shop").join("releases");
    fs::set_permissions(&releases, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(findings()[0].contains("production/releases has the mode 0777 (expected 0750); run: chmod 0750"), "{:?}", findings());
}

/// A command line longer than one packet of the socket reaches the server whole.
fn local_command_above_64_kib_is_carried_out(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    for length in [40_000, 120_000] {
        let word = "x".repeat(length);
        let counted = world.larder(&["run", "shop", "--", "sh", "-c", "printf %s \"$1$1\" | wc -c", "sh", &word]);
        assert_eq!(counted.ok().trim(), (2 * length).to_string());
    }
    // If the command is longer than the limit, the error names the limit.
    let word = "x".repeat(120_000);
    let words: Vec<&str> = ["run", "shop", "--", "true"].into_iter().chain(std::iter::repeat_n(word.as_str(), 9)).collect();
    world.larder(&words).exits(2).says("at most 1048576 are accepted").keeps_quiet_about("reset");
}

fn logs_of_two_processes_merged_by_time_keep_the_order_of_each_process(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let directory = world.environment("shop").join("log");
    let write = |process: &str, lines: &[(u32, &str)]| {
        let line = |(millisecond, text): &(u32, &str)| format!("2099-01-01T00:00:00.{millisecond:03}Z {process} {text}\n");
        fs::write(directory.join(format!("{process}.log")), lines.iter().map(line).collect::<String>()).unwrap();
    };
    write("trace.1", &[(1, "Traceback"), (1, "  in main"), (1, "  in call"), (1, "Error: it broke"), (3, "over")]);
    write("queue.1", &[(1, "zeta"), (1, "alpha"), (2, "between")]);
    let shown = world.larder(&["logs", "shop", "-n", "8"]);
    let shown: Vec<&str> = shown.ok().lines().collect();
    let of = |process: &str| -> Vec<&str> {
        shown.iter().filter_map(|line| line.split_once(process).map(|(_, text)| text.trim_start_matches(".1 "))).collect()
    };
    assert_eq!(of("trace"), ["Traceback", "  in main", "  in call", "Error: it broke", "over"]);
    assert_eq!(of("queue"), ["zeta", "alpha", "between"]);
    let moments: Vec<&str> = shown.iter().filter_map(|line| line.split(' ').next()).collect();
    assert!(moments.is_sorted(), "{shown:#?}");
}
