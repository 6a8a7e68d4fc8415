//! What runs: processes, their logs, their data, and the front door before them.

use crate::harness::{Repo, World, http, in_each_mode, in_one_mode, until};

in_each_mode!(data_survives_releases_and_the_rest_does_not, processes_get_what_is_promised);
in_one_mode!(
    processes_are_scaled_and_restarted,
    logs_can_be_read_and_followed,
    a_crashed_process_starts_again,
    hosts_that_lead_nowhere
);

const SERVE: &str = "exec larder static-server --root .\n";

fn data_survives_releases_and_the_rest_does_not(world: &World) {
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

fn processes_get_what_is_promised(world: &World) {
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

fn processes_are_scaled_and_restarted(world: &World) {
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
    // The scale is the operator's: it outlives releases and servers.
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

fn logs_can_be_read_and_followed(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n")
        .write("serve.sh", format!("echo the first word; echo the second word >&2\n{SERVE}"));
    repo.page("version one");
    repo.push().accepted();
    until("the log has both", || {
        let logs = world.larder(&["logs", "shop"]).stdout;
        logs.contains("the first word") && logs.contains("the second word")
    });
    let one = world.larder(&["logs", "shop", "-n", "1"]);
    assert_eq!(one.ok().lines().count(), 1, "{one}");
    assert_eq!(world.larder(&["logs", "shop", "-p", "worker"]).ok(), "");
    let mut follow = world.larder_command();
    follow.args(["logs", "shop", "--follow", "-n", "0"]).stdout(std::process::Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    world.larder(&["restart", "shop"]).exits(0);
    let seen = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("the first word")));
    assert!(seen.is_some(), "the new line was never shown");
    follow.kill().unwrap();
    follow.wait().unwrap();
}

fn a_crashed_process_starts_again(world: &World) {
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

fn hosts_that_lead_nowhere(world: &World) {
    world.project("shop");
    let port = world.http_port();
    let unknown = http::get(port, "nowhere.localhost", "/").unwrap();
    assert_eq!(unknown.status, 404);
    unknown.holds("Nothing lives at this address");
    let empty = world.get("shop", "/");
    assert!(matches!(empty.status, 404 | 502 | 503), "{empty:?}");
    assert!(!empty.body.is_empty());
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    assert_eq!(http::request(port, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap().status, 400);
    let head = http::request(port, "HEAD / HTTP/1.1\r\nHost: SHOP.localhost:80\r\nConnection: close\r\n\r\n");
    assert!(head.is_err() || head.unwrap().status == 200, "host names know no case");
    assert_eq!(http::get(port, "shop.localhost", "/../../etc/passwd").unwrap().status / 100, 4);
}
