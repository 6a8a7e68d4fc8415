//! Projects share the machine's ports. A project that takes the port of another project gets no requests for the other project.

use std::thread;

use crate::harness::{Repo, World, until};

/// An application that takes each port that a file in `media/` names, as soon as the port is free.
const THIEF: &str = r#"
import http.server, os, socket, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"stolen\n")
own = int(os.environ["PORT"])
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address
def steal():
    taken = {}
    while True:
        for name in os.listdir("media"):
            if not name.isdigit() or int(name) in taken:
                continue
            port = int(name)
            try:
                taken[port] = Server(("127.0.0.1", port), Handler)
                threading.Thread(target=taken[port].serve_forever, daemon=True).start()
                open("media/%d.taken" % port, "w").close()
            except OSError:
                pass
        time.sleep(0.02)
threading.Thread(target=steal, daemon=True).start()
Server(("127.0.0.1", own), Handler).serve_forever()
"#;

/// Makes the thief take `port`, and waits until the thief has the port.
fn steal(world: &World, port: u64) {
    world.larder(&["run", "thief", "--", "touch", &format!("media/{port}")]).exits(0);
    until("the thief has the port", || {
        world.larder(&["run", "thief", "--", "test", "-e", &format!("media/{port}.taken")]).status == 0
    });
}

#[test]
fn stolen_port_gets_no_requests_and_fails_the_health_check() {
    let Some(world) = World::system() else { return };
    if crate::harness::installed("python3").is_none() {
        return;
    }
    world.project("thief").project("shop");
    let thief = Repo::new(&world, "thief");
    thief.write("Procfile", "web: exec python3 thief.py\n").write("thief.py", THIEF);
    thief.write("larder.yml", "buildpack: procfile\ndata: [media]\n");
    thief.commit("a thief");
    thief.push().accepted();
    world.get("thief", "/").holds("stolen");
    let repo = Repo::new(&world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("larder.yml", "data: [media]\nhealth: {timeout: 6s}\n");
    repo.write("serve.sh", "[ ! -e media/pause ] || exec sleep 1000\nexec larder static-server --root .\n");
    repo.page("version one");
    repo.push().accepted();
    world.serves("shop", "version one");

    // The application restarts without listening, and the thief takes its port.
    let port = world.ports("shop")[0];
    let before = world.application("shop");
    world.larder(&["run", "shop", "--", "touch", "media/pause"]).exits(0);
    for pid in &before {
        crate::harness::processes::signal(*pid, rustix::process::Signal::KILL);
    }
    steal(&world, port);
    let answer = world.get("shop", "/");
    assert!(answer.status == 502 && !answer.body.contains("stolen"), "{answer:#?}");

    // A listener of another project does not make a release healthy.
    repo.page("version two");
    thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the new release is booted", || world.ports("shop").len() == 2);
        let new = world.ports("shop").into_iter().find(|new| *new != port).unwrap();
        steal(&world, new);
        push.join().unwrap().rejected_with("did not listen on its port");
    });

    // A listener of the application itself is reached.
    world.larder(&["run", "shop", "--", "rm", "media/pause"]).exits(0);
    repo.page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    world.end();
}
