//! The server role is renewed, as with a new binary, while things are under way.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{Repo, World, in_one_mode, processes, state::names, until};

in_one_mode!(a_deployment_under_way_sees_its_pages, an_open_tunnel_does_not_hold_a_renewal_up);

fn renew(world: &World) {
    world.with(|server| processes::signal(server.keeper(), Signal::HUP));
}

fn a_deployment_under_way_sees_its_pages(world: &World) {
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
        renew(world);
        push.join().unwrap().accepted().says("v2 is live");
    });
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    world.serves("shop", "version two");
    visitor.satisfied();
}

/// Answers with another protocol, and then says nothing.
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

fn an_open_tunnel_does_not_hold_a_renewal_up(world: &World) {
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
    renew(world);
    until("the next server is ready", || world.with(|server| server.ready()) > ready);
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    assert_eq!(world.get("shop", "/").status, 204);
}
