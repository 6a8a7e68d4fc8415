//! Running releases: processes, logs, data, and the proxy in front of them.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use crate::harness::{Repo, World, cli::Output, http, in_each_mode, in_one_mode, processes, until};

in_each_mode!(data_survives_releases_and_other_files_do_not, processes_get_documented_environment);
in_one_mode!(
    scale_and_restart_apply_to_processes,
    scaling_web_to_zero_shows_stopped_page,
    failed_start_is_shown_again_after_undo,
    requests_are_spread_over_instances,
    run_executes_command_in_live_release,
    open_command_ends_when_its_slot_is_needed,
    failing_release_command_fails_deployment,
    phase_script_passes_variables_on,
    logs_are_read_and_followed,
    followed_logs_are_json_values_of_one_line_each,
    domain_of_recipe_is_answered_through_restarts_and_drains,
    crashed_process_is_restarted,
    stop_grace_applies_per_process,
    web_process_that_exits_early_is_reported,
    unknown_host_gets_404,
    domain_is_routed_while_live_recipe_names_it
);

const SERVE: &str = "exec larder static-server --root .\n";

fn data_survives_releases_and_other_files_do_not(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "data:\n  - media\n").write("Procfile", "web: sh serve.sh\n").write("serve.sh", SERVE);
    repo.page("version one");
    repo.push().accepted();
    world
        .larder(&["run", "shop", "--", "sh", "-c", "echo kept > media/file && echo lost > other && cat media/file"])
        .exits(0)
        .says("kept");
    let kept = |path: &str| world.larder(&["run", "shop", "--", "cat", path]);
    kept("media/file").exits(0).says("kept");
    world.get("shop", "/other").holds("lost");
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    kept("media/file").exits(0).says("kept");
    assert_eq!(world.get("shop", "/other").status, 404);
    world.restart(&[]);
    kept("media/file").exits(0).says("kept");
}

fn processes_get_documented_environment(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "env:\n  COLOUR: deep blue\n").write("Procfile", "web: sh serve.sh\n");
    repo.write("serve.sh", format!("env > environment.txt; pwd > pwd.txt; id -u > id.txt; ls -A / > root.txt\n{SERVE}"));
    let commit = repo.page("version one");
    repo.push().accepted();
    let environment = world.get("shop", "/environment.txt").body;
    let port = world.ports("shop")[0];
    for line in [
        &format!("PORT={port}"),
        "LARDER_PROJECT=shop",
        "LARDER_ENVIRONMENT=production",
        "LARDER_MODE=cooking",
        "LARDER_RELEASE=v1",
        "LARDER_SLOT=blue",
        "COLOUR=deep blue",
        &format!("SOURCE_VERSION={commit}"),
    ] {
        assert!(environment.lines().any(|given| given == line), "{line} is not in\n{environment}");
    }
    assert!(environment.contains("HOME=") && environment.contains("LARDER_DATA="), "{environment}");
    for secret in ["LARDER_LISTENERS", "LARDER_PUSH_TOKEN", "LARDER_HOOK_SOCKET", "FAILPOINTS"] {
        assert!(!environment.contains(secret), "{secret} leaks");
    }
    let separated = world.larder(&["status"]).stdout.contains("in namespaces");
    if separated {
        assert_eq!(world.get("shop", "/pwd.txt").body.trim(), "/app");
        assert!(environment.lines().any(|line| line == "HOME=/app"), "{environment}");
        assert_eq!(
            world.larder(&["run", "shop", "--", "cat", &format!("{}/state/registry.json", world.root().display())]).status,
            1
        );
    }
    assert_ne!(world.get("shop", "/id.txt").body.trim(), "0", "an application runs as root");
}

fn scale_and_restart_apply_to_processes(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\nclock: while :; do sleep 1; done\n").write("serve.sh", SERVE);
    repo.page("version one");
    repo.push().accepted();
    let processes = || {
        let listed = world.larder(&["ps", "shop", "--json"]).json();
        let mut names: Vec<_> =
            listed.as_array().unwrap().iter().map(|row| row["process"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(processes(), ["web.1"], "only web runs by itself");
    world.larder(&["ps", "shop", "--scale", "web=3", "--scale", "clock=1"]).exits(0);
    assert_eq!(processes(), ["clock.1", "web.1", "web.2", "web.3"]);
    world.serves("shop", "version one");
    world.larder(&["ps", "shop", "--scale", "wbe=3"]).exits(4).says("web, clock");
    world.larder(&["ps", "shop", "--scale", "web=100000"]).exits(2).says("at most");
    // The scale is set by the operator and outlives releases and restarts.
    repo.page("version two");
    repo.push().accepted();
    until("the old release has retired", || processes() == ["clock.1", "web.1", "web.2", "web.3"]);
    world.restart(&[]);
    assert_eq!(processes(), ["clock.1", "web.1", "web.2", "web.3"]);
    let before = world.application("shop");
    world.larder(&["restart", "shop"]).exits(0);
    world.serves("shop", "version two");
    let after = world.application("shop");
    assert!(!after.is_empty() && before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    world.larder(&["ps", "shop", "--scale", "web=1", "--scale", "clock=0"]).exits(0);
    assert_eq!(processes(), ["web.1"]);
    world.serves("shop", "version two");
}

/// Without a web process, visitors see the page of a stopped application, and no request reaches a retired instance.
fn scaling_web_to_zero_shows_stopped_page(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\nclock: while :; do sleep 1; done\n").write("serve.sh", SERVE);
    repo.write("larder.yml", "scale: {clock: 1}\n").page("version one");
    repo.push().accepted();
    let stopped = || {
        let page = world.get("shop", "/");
        assert_eq!(page.status, 503, "{page:?}");
        page.holds("The application is stopped");
    };
    world.larder(&["ps", "shop", "--scale", "web=0"]).exits(0);
    stopped();
    world.larder(&["ps", "shop"]).says("clock.1").keeps_quiet_about("web.1");
    repo.page("version two");
    repo.push().accepted();
    stopped();
    world.restart(&[]);
    stopped();
    repo.write("larder.yml", "scale: {clock: 1}\nsmoke: [/]\n").page("version three");
    repo.push().rejected_with("smoke check / answered 503").says("--scale web=1");
    stopped();
    world.larder(&["ps", "shop", "--scale", "web=1"]).exits(0);
    world.serves("shop", "version two");
    // A release without a web process replaces a release with a web process.
    repo.write("Procfile", "clock: while :; do sleep 1; done\n").write("larder.yml", "buildpack: procfile\nscale: {clock: 1}\n");
    repo.commit("no web");
    repo.push().accepted();
    stopped();
    world.larder(&["rollback", "shop"]).exits(0);
    world.serves("shop", "version two");
}

/// The live release cannot start because its installed tree is missing, and the next deployment fails, too.
fn failed_start_is_shown_again_after_undo(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let deploy = world.environment("shop").join("deploy");
    let live = std::fs::canonicalize(deploy.join("current")).unwrap();
    let lost = world.directory().join("lost");
    std::fs::rename(&live, &lost).unwrap();
    let failed = || {
        let page = world.get("shop", "/");
        assert_eq!(page.status, 503, "{page:?}");
        page.holds("The application failed to start");
    };
    assert_ne!(world.larder(&["restart", "shop"]).status, 0);
    failed();
    repo.program(".larder/post_deploy", "#!/bin/sh\necho no good\nexit 1\n").page("version two");
    repo.push().rejected_with("post_deploy: ");
    failed();
    std::fs::rename(&lost, &live).unwrap();
    world.larder(&["restart", "shop"]).exits(0);
    world.serves("shop", "version one");
}

fn requests_are_spread_over_instances(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let serve =
        "mkdir -p pages/$PORT && echo this is $PORT > pages/$PORT/index.html && exec larder static-server --root pages/$PORT\n";
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", serve);
    repo.commit("one page for each instance");
    repo.push().accepted();
    world.larder(&["ps", "shop", "--scale", "web=2"]).exits(0);
    let ports = world.ports("shop");
    assert_eq!(ports.len(), 2, "{ports:?}");
    for port in ports {
        until("each instance answers", || world.get("shop", "/").body.contains(&format!("this is {port}")));
    }
    world.larder(&["ps", "shop"]).says("web.1").says("web.2");
}

/// A command that still runs is stopped when its slot is needed.
fn open_command_ends_when_its_slot_is_needed(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version 1");
    repo.push().accepted();
    let open = || {
        let mut run = world.larder_command();
        run.args(["run", "shop", "--", "sleep", "98761"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let run = run.spawn().unwrap();
        until("the command runs", || runs(world, "98761"));
        run
    };
    let mut run = open();
    world.larder(&["restart", "shop"]).exits(0);
    world.serves("shop", "version 1");
    until("the command has ended", || run.try_wait().unwrap().is_some());
    // The first deployment uses the other slot. The second deployment empties the slot of the command.
    let mut run = open();
    for version in 2..=3 {
        repo.page(&format!("version {version}"));
        repo.push().accepted();
        world.serves("shop", &format!("version {version}"));
    }
    until("the command has ended", || run.try_wait().unwrap().is_some());
    world.is_consistent("shop");
}

fn runs(world: &World, word: &str) -> bool {
    let mut all = processes::of(world.directory()).into_iter();
    all.any(|process| {
        process.arguments.first().is_some_and(|program| program == "sleep") && process.arguments.contains(&word.to_owned())
    })
}

fn run_executes_command_in_live_release(world: &World) {
    world.project("shop");
    world.larder(&["run", "shop", "--", "true"]).exits(4).says("nothing is live");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "env:\n  COLOUR: blue\n").write("words.sh", "for word; do echo \"<$word>\"; done\nexit 42\n");
    repo.page("version one");
    repo.push().accepted();
    // Arguments arrive unchanged, whatever a shell would do with them.
    let words = ["two  words", "$HOME", "'quoted'", "--help", "a\"b", "*", ""];
    let run = world.larder(&[&["run", "shop", "--", "sh", "words.sh"][..], &words].concat());
    let expected: String = words.iter().map(|word| format!("<{word}>\n")).collect();
    assert_eq!((run.status, run.stdout.as_str()), (42, expected.as_str()), "{run}");
    world.ssh("alice", &["run", "shop", "--", "sh", "words.sh", "'over  ssh'"]).exits(42).says("<over  ssh>");
    world.larder(&["run", "shop", "sh", "-c", "echo $COLOUR; echo wrong >&2; kill -9 $$"]).exits(137).says("blue").says("wrong");
    world.larder(&["run", "shop", "--", "no-such-program"]).exits(127).says("no-such-program");
    // The command reads its standard input.
    let mut run = world.larder_command();
    let mut run = run.args(["run", "shop", "--", "sha256sum"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = run.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 1_000_000]).unwrap();
    drop(stdin);
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success());
    let digest = String::from_utf8(output.stdout).unwrap();
    // The expected digest is the digest of a file with the same bytes.
    assert!(digest.starts_with(&sha256_of_a_million_x(world)), "{digest}");
}

fn sha256_of_a_million_x(world: &World) -> String {
    let file = world.directory().join("million");
    std::fs::write(&file, vec![b'x'; 1_000_000]).unwrap();
    let sum = Output::of(world.client("sha256sum").arg(&file));
    sum.ok().split(' ').next().unwrap().to_owned()
}

fn failing_release_command_fails_deployment(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "data: [db]\n");
    repo.write("Procfile", "web: exec larder static-server --root .\nrelease: sh migrate.sh\n");
    repo.write("migrate.sh", "echo migrating to one; echo one > db/schema\n");
    repo.page("version one");
    repo.push().accepted().says("migrating to one");
    world.get("shop", "/db/schema").holds("one");
    let before = world.snapshot("shop").without_processes();
    repo.write("migrate.sh", "echo migrating to two; echo it does not fit >&2; exit 3\n");
    repo.page("version two");
    let push = repo.push();
    push.says("migrating to two").says("it does not fit").rejected_with("deploy: ").rejected_with("v1 still live");
    assert_eq!(world.snapshot("shop").without_processes(), before);
    world.get("shop", "/db/schema").holds("one");
    world.serves("shop", "version one");
}

fn phase_script_passes_variables_on(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let phases = ["gather", "pre_install", "configure", "build", "post_build", "bundle", "deploy", "post_deploy", "post_install"];
    for phase in phases {
        // Each script adds its name to the value that the previous script has left.
        let script = format!(
            "#!/bin/sh\nset -e\nseen=$(sed -n 's/.*\"seen\": *\"\\([^\"]*\\)\".*/\\1/p' \"$LARDER_VARIABLES\")\n\
             echo \"{phase} sees <$seen>\"\nprintf '{{\"seen\": \"%s {phase}\"}}' \"$seen\" > \"$LARDER_VARIABLES\"\n"
        );
        repo.program(&format!(".larder/{phase}"), &script);
    }
    repo.commit("scripts");
    let push = repo.push();
    push.accepted();
    let mut before = String::new();
    for phase in phases {
        push.says(&format!("{phase} sees <{before}>"));
        let titles = push.remote().iter().filter(|line| **line == format!("-----> Running .larder/{phase}")).count();
        assert_eq!(titles, 1, "{phase}: {}", push.0);
        before = format!("{before} {phase}");
    }
    // Invalid variables fail the phase that wrote them.
    repo.program(".larder/configure", "#!/bin/sh\necho nonsense > \"$LARDER_VARIABLES\"\n");
    repo.commit("nonsense");
    repo.push().rejected_with("configure: .larder/configure wrote invalid variables").rejected_with("v1 still live");
    repo.program(".larder/configure", "#!/bin/sh\nexit 5\n");
    repo.commit("failure");
    repo.push().rejected_with("configure: .larder/configure").rejected_with("5");
    // A script that is not executable is not run, and the output of the push has a hint.
    repo.write(".larder/configure", "#!/bin/sh\nexit 6\n");
    std::fs::set_permissions(repo.path().join(".larder/configure"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    repo.commit("no program");
    repo.push().accepted().says("git update-index --chmod=+x .larder/configure");
}

fn stop_grace_applies_per_process(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    // The script sleeps in small steps, because the signal also ends the current sleep.
    let work = "n=0; while [ $n -lt 60 ]; do sleep 0.05; n=$((n+1)); done";
    let busy = |name: &str| format!("trap '{work}; touch media/{name}; exit 0' TERM\nwhile :; do sleep 0.05; done\n");
    repo.write("larder.yml", "data:\n  - media\nstop:\n  grace: 1s\nprocesses:\n  hasty:\n    scale: 1\n  patient:\n    scale: 1\n    stop:\n      grace: 20s\n")
        .write("Procfile", "web: sh serve.sh\npatient: sh patient.sh\nhasty: sh hasty.sh\n")
        .write("patient.sh", busy("patient"))
        .write("hasty.sh", busy("hasty"))
        .write("serve.sh", SERVE);
    repo.page("version one");
    repo.push().accepted();
    repo.page("version two");
    repo.push().accepted();
    let media = world.environment("shop").join("data/media");
    until("the process `patient` has done its work", || media.join("patient").exists());
    until("the old release has retired", || world.ports("shop").len() == 3);
    // A restart gives processes the same grace.
    std::fs::remove_file(media.join("patient")).unwrap();
    world.larder(&["restart", "shop"]).exits(0);
    assert!(media.join("patient").exists() && !media.join("hasty").exists());
    assert!(!media.join("hasty").exists(), "the process `hasty` had only one second");
}

fn logs_are_read_and_followed(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n")
        .write("serve.sh", format!("echo the first word; echo the second word >&2\n{SERVE}"));
    repo.page("version one");
    repo.push().accepted();
    until("the log has both lines", || {
        let logs = world.larder(&["logs", "shop"]).stdout;
        logs.contains("the first word") && logs.contains("the second word")
    });
    let one = world.larder(&["logs", "shop", "-n", "1"]);
    assert_eq!(one.ok().lines().count(), 1, "{one}");
    assert_eq!(world.larder(&["logs", "shop", "-p", "worker"]).ok(), "");
    let mut follow = world.larder_command();
    follow.args(["logs", "shop", "--follow", "-n", "0"]).stdout(std::process::Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    world.larder(&["restart", "shop"]).exits(0);
    let seen = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("the first word")));
    assert!(seen.is_some(), "the new line was not shown");
    follow.kill().unwrap();
    follow.wait().unwrap();
}

/// With `--json`, each line that is followed is one JSON value, equal to the value in the list without `--follow`.
fn followed_logs_are_json_values_of_one_line_each(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", format!("printf 'a \"quoted\" \\\\ word\\n'\n{SERVE}"));
    repo.page("version one");
    repo.push().accepted();
    until("the log has the line", || world.larder(&["logs", "shop"]).stdout.contains("a \"quoted\" \\ word"));
    let list = world.larder(&["logs", "shop", "--json"]).json();
    let mut follow = world.larder_command();
    follow.args(["logs", "shop", "--follow", "--json"]).stdout(std::process::Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    world.larder(&["restart", "shop"]).exits(0);
    let mut seen = Vec::new();
    for line in lines {
        let line = line.unwrap();
        seen.push(serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|error| panic!("{line:?}: {error}")));
        if seen.iter().filter(|value| value.as_str().unwrap().contains("a \"quoted\" \\ word")).count() == 2 {
            break;
        }
    }
    assert_eq!(seen.first(), list.as_array().unwrap().first());
    follow.kill().unwrap();
    follow.wait().unwrap();
}

fn crashed_process_is_restarted(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let before = world.application("shop");
    for pid in &before {
        crate::harness::processes::signal(*pid, rustix::process::Signal::KILL);
    }
    until("the application answers again", || {
        let after = world.application("shop");
        !after.is_empty() && before.iter().all(|pid| !after.contains(pid)) && world.get("shop", "/").status == 200
    });
    let listed = world.larder(&["ps", "shop", "--json"]).json();
    assert!(listed[0]["restarts"].as_u64().unwrap() >= 1, "{listed}");
    assert!(listed[0]["last_exit"].as_str().is_some_and(|exit| exit.contains("KILL") || exit.contains('9')), "{listed}");
}

fn unknown_host_gets_404(world: &World) {
    world.project("shop");
    let port = world.http_port();
    let unknown = http::get(port, "nowhere.localhost", "/").unwrap();
    assert_eq!(unknown.status, 404);
    unknown.holds("There is no application at this address");
    let empty = world.get("shop", "/");
    assert!(matches!(empty.status, 404 | 502 | 503), "{empty:?}");
    assert!(!empty.body.is_empty());
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    assert_eq!(http::request(port, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap().status, 400);
    let upper = http::request(port, "GET / HTTP/1.1\r\nHost: SHOP.localhost:80\r\nConnection: close\r\n\r\n");
    assert_eq!(upper.unwrap().status, 200, "host names are case-insensitive");
    assert_eq!(http::get(port, "shop.localhost", "/../../etc/passwd").unwrap().status / 100, 4);
}

fn domain_is_routed_while_live_recipe_names_it(world: &World) {
    world.project("shop");
    let status = || http::get(world.http_port(), "www.example.org", "/").unwrap().status;
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "domains: [www.example.org]\n").page("version one");
    repo.push().accepted();
    assert_eq!(status(), 200);
    // The undo of a deployment restores the domains of the previous release.
    repo.write("larder.yml", "domains: [other.example.org]\n");
    repo.program(".larder/post_install", "#!/bin/sh\nexit 1\n").commit("broken");
    repo.push().rejected();
    assert_eq!((status(), http::get(world.http_port(), "other.example.org", "/").unwrap().status), (200, 404));
    repo.remove(".larder/post_install").remove("larder.yml").page("version two");
    repo.push().accepted();
    assert_eq!(status(), 404, "the recipe no longer names the domain");
    repo.write("larder.yml", "domains: [www.example.org]\n").page("version three");
    repo.push().accepted();
    world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    assert_eq!(status(), 404);
    world.project("shop");
    repo.push().accepted();
    assert_eq!(status(), 200);
}

/// A web process that exits before the verdict fails the push. A web process that exits afterwards is reported.
fn web_process_that_exits_early_is_reported(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.write("Procfile", "web: timeout 1 larder static-server --root .\n");
    repo.program(".larder/post_install", "#!/bin/sh\nsleep 2\n").page("version two");
    repo.push().rejected_with("web.1 exited 124 soon after it had answered").rejected_with("v1 still live");
    world.serves("shop", "version one");
    repo.write("Procfile", "web: timeout 4 larder static-server --root .\n").remove(".larder/post_install").page("version three");
    repo.push().accepted();
    until("the log of the deployment has the exit", || {
        world.larder(&["deploy", "shop", "--follow"]).stdout.contains("after v2 went live, and is restarted")
    });
    assert!(world.larder(&["status"]).ok().contains("web.1 exited"), "status does not report the exit");
}

/// The live release answers requests to a domain of its recipe after the server was killed, while an old release drains, and after a
/// graceful stop.
fn domain_of_recipe_is_answered_through_restarts_and_drains(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    // Requests for /slow take two seconds, so that the old release drains for two seconds.
    repo.write("server.py", SLOW_SERVER).write("Procfile", "web: exec python3 server.py\n");
    repo.write("larder.yml", "domains: [www.shop.test]\n").page("version one");
    repo.push().accepted();
    let (port, host) = (world.http_port(), "www.shop.test");
    let visitor = world.visitor_of("www.shop.test");
    // The server is killed, and the keeper starts a new server.
    world.kill9_server();
    until("the server is back", || http::get(port, host, "/").is_ok_and(|answer| answer.status == 200));
    // The release is switched while a request is in flight.
    repo.page("version two");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| http::get(port, host, "/slow").unwrap());
        std::thread::sleep(std::time::Duration::from_millis(300));
        repo.push().accepted();
        http::get(port, host, "/").unwrap().holds("version two");
        slow.join().unwrap().holds("version one");
    });
    // The server is killed while the old release drains.
    repo.page("version three");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| http::get(port, host, "/slow"));
        std::thread::sleep(std::time::Duration::from_millis(300));
        repo.push().accepted();
        world.kill9_server();
        let _ = slow.join().unwrap();
    });
    until("the server is back", || http::get(port, host, "/").is_ok_and(|answer| answer.status == 200));
    http::get(port, host, "/").unwrap().holds("version three");
    let seen = visitor.seen();
    // A killed server cuts the requests in flight, but no request is answered with 404.
    assert!(seen.answers > 0 && !seen.failures.iter().any(|failure| failure.starts_with("404")), "{:?}", seen.failures);
    // Keeper and server are stopped gracefully and started again.
    world.stop();
    world.start(&[]);
    http::get(world.http_port(), host, "/").unwrap().holds("version three");
}

const SLOW_SERVER: &str = "\
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/slow':
            time.sleep(2)
        body = open('index.html', 'rb').read()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";
