//! Reloads, kills and stops of the server role during deployments and while processes run or stop.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{Repo, World, in_one_mode, processes, server::log_tail, state::names, until};

in_one_mode!(
    deployment_in_progress_during_reload_sees_its_pages,
    open_tunnel_does_not_delay_reload,
    push_after_reload_waits_for_stopping_processes,
    push_after_server_kill_waits_for_stopping_processes,
    reload_with_invalid_server_file_keeps_service,
    reload_with_broken_binary_keeps_service_until_good_binary_is_reloaded,
    server_killed_beside_broken_binary_is_replaced_by_the_keepers_own_binary,
    stop_ends_before_a_longer_grace_of_the_recipe,
);

fn reload(world: &World) {
    world.with(|server| processes::signal(server.keeper(), Signal::HUP));
}

fn deployment_in_progress_during_reload_sees_its_pages(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.write("larder.yml", "smoke: [/]\n").program(".larder/post_build", "#!/bin/sh\necho rehearsing\nsleep 2\n");
    repo.page("version two");
    let (visitor, ready) = (world.visitor("shop"), world.with(|server| server.ready()));
    thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the deployment is under way", || {
            let records = world.environment("shop").join("deployments");
            let logs = names(&records).into_iter().map(|name| records.join(name).join("log"));
            logs.filter_map(|log| fs::read_to_string(log).ok()).any(|log| log.contains("rehearsing"))
        });
        reload(world);
        push.join().unwrap().accepted().says("v2 is live");
    });
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    world.serves("shop", "version two");
    visitor.satisfied();
}

/// An application that switches the protocol, and then sends nothing.
const UPGRADE: &str = r#"
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(101 if self.headers.get("Upgrade") else 204)
        if self.headers.get("Upgrade"):
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "silence")
        self.end_headers()
        while self.headers.get("Upgrade"):
            time.sleep(1)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

fn open_tunnel_does_not_delay_reload(world: &World) {
    if crate::harness::installed("python3").is_none() {
        return;
    }
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec python3 server.py\n").write("server.py", UPGRADE);
    repo.write("larder.yml", "buildpack: procfile\nhealth: {path: /, status: 204}\n");
    repo.commit("a tunnel");
    repo.push().accepted();
    let mut tunnel = TcpStream::connect(("127.0.0.1", world.http_port())).unwrap();
    let head = "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: silence\r\n\r\n";
    tunnel.write_all(head.as_bytes()).unwrap();
    tunnel.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut byte = [0];
    tunnel.read_exact(&mut byte).unwrap();
    let (begun, ready) = (Instant::now(), world.with(|server| server.ready()));
    reload(world);
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    assert_eq!(world.get("shop", "/").status, 204);
}

/// A web process that serves its directory, and that leaves a mark instead of exiting when it receives SIGTERM.
const STUBBORN: &str =
    "trap 'touch \"$LARDER_DATA/asked\"' TERM\nlarder static-server --root . &\nwhile :; do wait; sleep 0.2; done\n";

/// Deploys two versions of a project. Returns while the first version is being stopped and most of its `grace` is left.
fn with_stopping_processes<'w>(world: &'w World, grace: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", STUBBORN);
    repo.write("larder.yml", format!("stop: {{grace: {grace}}}\ndrain: 100ms\n"));
    repo.page("version one");
    repo.push().accepted();
    repo.page("version two");
    repo.push().accepted();
    let asked = world.environment("shop").join("data/asked");
    until("the first version is asked to stop", || asked.exists());
    repo
}

fn pushes_a_third_version(world: &World, repo: &Repo<'_>) {
    repo.page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    world.is_consistent("shop");
}

fn push_after_reload_waits_for_stopping_processes(world: &World) {
    let repo = with_stopping_processes(world, "12s");
    let ready = world.with(|server| server.ready());
    reload(world);
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    pushes_a_third_version(world, &repo);
}

fn push_after_server_kill_waits_for_stopping_processes(world: &World) {
    let repo = with_stopping_processes(world, "12s");
    world.kill9_server();
    pushes_a_third_version(world, &repo);
}

/// Puts a copy of `program` in the place of the world's binary, as an update does: by renaming.
fn install(world: &World, program: &Path) {
    let (place, fresh) = (world.directory().join("larder"), world.directory().join("larder.new"));
    fs::copy(program, &fresh).unwrap();
    fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(fresh, place).unwrap();
}

/// Returns the inode of the program that the server role runs.
fn program_of_role(world: &World) -> Option<u64> {
    let role = world.with(|server| server.role())?;
    fs::metadata(format!("/proc/{role}/exe")).ok().map(|found| found.ino())
}

fn log_says(world: &World, text: &str) {
    until(&format!("the log says {text:?}"), || log_tail(world.directory()).contains(text));
}

fn reload_with_invalid_server_file_keeps_service(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let file = world.root().join("larder.yml");
    let good = fs::read_to_string(&file).unwrap();
    let (role, ready) = world.with(|server| (server.role(), server.ready()));
    for (attempt, wrong) in ["lisen: 1\n", "domain: [\n"].into_iter().enumerate() {
        fs::write(&file, format!("{good}{wrong}")).unwrap();
        reload(world);
        until("the reload is refused", || log_tail(world.directory()).matches("reload refused").count() > attempt);
        world.serves("shop", "version one");
        assert_eq!(world.with(|server| (server.role(), server.ready())), (role, ready), "the server was replaced");
    }
    log_says(world, "lisen");
    assert!(!log_tail(world.directory()).contains("falling back"), "the binary is not to blame");
    fs::write(&file, &good).unwrap();
    reload(world);
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    assert_ne!(world.with(|server| server.role()), role);
}

fn reload_with_broken_binary_keeps_service_until_good_binary_is_reloaded(world: &World) {
    world.project("shop");
    Repo::site(world, "shop", "version one").push().accepted();
    let (role, ready, original) = world.with(|server| (server.role(), server.ready(), server.binary()));
    let good = world.directory().join("larder.good");
    fs::copy(&original, &good).unwrap();
    install(world, Path::new("/bin/false"));
    for attempt in 0..2 {
        reload(world);
        until("the reload is refused", || log_tail(world.directory()).matches("reload refused").count() > attempt);
        world.serves("shop", "version one");
        assert_eq!(world.with(|server| (server.role(), server.ready())), (role, ready), "the server was replaced");
    }
    install(world, &good);
    let installed = fs::metadata(world.directory().join("larder")).unwrap().ino();
    reload(world);
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    assert_eq!(program_of_role(world), Some(installed));
}

fn server_killed_beside_broken_binary_is_replaced_by_the_keepers_own_binary(world: &World) {
    let (ready, original) = world.with(|server| (server.ready(), server.binary()));
    let (good, own) = (world.directory().join("larder.good"), fs::metadata(&original).unwrap().ino());
    fs::copy(&original, &good).unwrap();
    install(world, Path::new("/bin/false"));
    world.with(|server| server.shoot_role());
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    log_says(world, "falling back to the keeper's own binary");
    assert_eq!(program_of_role(world), Some(own));
    install(world, &good);
    let installed = fs::metadata(world.directory().join("larder")).unwrap().ino();
    reload(world);
    until("the next server is ready", || world.with(|server| server.ready()) > ready + 1);
    assert_eq!(program_of_role(world), Some(installed));
}

/// systemd kills larder if a stop takes longer than 60 seconds (`TimeoutStopSec=60`).
fn stop_ends_before_a_longer_grace_of_the_recipe(world: &World) {
    with_stopping_processes(world, "4m");
    let begun = Instant::now();
    world.stop_within(Duration::from_secs(100));
    assert!(begun.elapsed() < Duration::from_secs(58), "it took {:?}", begun.elapsed());
    world.start(&[]);
}
