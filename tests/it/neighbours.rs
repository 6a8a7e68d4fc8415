//! Projects share the machine's network: one that takes another's port gets none of its visitors.

use std::thread;

use crate::harness::{Repo, World, until};

/// Takes the ports that it finds the names of in `media/`, as soon as they are free.
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

/// Has the thief take `port`, and waits until it has.
fn steal(world: &World, port: u64) {
    world.larder(&["run", "thief", "--", "touch", &format!("media/{port}")]).exits(0);
    until("the thief has the port", || {
        world.larder(&["run", "thief", "--", "test", "-e", &format!("media/{port}.taken")]).status == 0
    });
}

#[test]
fn a_port_that_another_project_has_taken_is_not_the_applications() {
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

    // The application comes back without listening, and its port is taken.
    let port = world.ports("shop")[0];
    let before = world.application("shop");
    world.larder(&["run", "shop", "--", "touch", "media/pause"]).exits(0);
    for pid in &before {
        crate::harness::processes::signal(*pid, rustix::process::Signal::KILL);
    }
    steal(&world, port);
    let answer = world.get("shop", "/");
    assert!(answer.status == 502 && !answer.body.contains("stolen"), "{answer:#?}");

    // A release that does not listen is not healthy because another project does.
    repo.page("version two");
    thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the new release is booted", || world.ports("shop").len() == 2);
        let new = world.ports("shop").into_iter().find(|new| *new != port).unwrap();
        steal(&world, new);
        push.join().unwrap().rejected_with("did not listen on its port");
    });

    // As soon as it listens itself, it is reached.
    world.larder(&["run", "shop", "--", "rm", "media/pause"]).exits(0);
    repo.page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    world.end();
}
