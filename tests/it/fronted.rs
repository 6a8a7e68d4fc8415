//! larder's proxy behind another proxy, which terminates TLS and states the addresses of its visitors.

use crate::harness::{Repo, World, http, installed};

/// An application that returns the headers of a request, one per line.
const MIRROR: &str = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        lines = "".join("%s=%s\n" % (name.lower(), value) for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(lines)))
        self.end_headers()
        self.wfile.write(lines)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Deploys the application. Returns the output of the push and of `larder project info`, and the headers that the application receives in a
/// request with `headers`.
fn mirrored(server_file: &str, headers: &str) -> Option<(String, Vec<String>)> {
    installed("python3")?;
    let world = World::configured(server_file)?;
    world.project("shop");
    let repo = Repo::new(&world, "shop");
    repo.write("Procfile", "web: exec python3 server.py\n").write("server.py", MIRROR);
    repo.write("larder.yml", "buildpack: procfile\nsmoke: [/]\n");
    repo.commit("a mirror");
    let push = repo.push();
    push.accepted();
    let shown = format!("{}\n{}", push.0.stderr, world.larder(&["project", "info", "shop"]).ok());
    let request = format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\n{headers}Connection: close\r\n\r\n");
    let answer = http::request(world.http_port(), &request).unwrap();
    assert_eq!(answer.status, 200, "{answer:#?}");
    let lines = answer.body.lines().map(str::to_owned).collect();
    world.end();
    Some((shown, lines))
}

const FROM_A_PROXY: &str = "X-Forwarded-For: 8.8.8.8, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 8.8.8.8\r\n";

#[track_caller]
fn holds(lines: &[String], wanted: &[&str]) {
    for line in wanted {
        assert!(lines.iter().any(|given| given == line), "{line} is not in {lines:#?}");
    }
}

#[test]
fn trusted_proxy_states_address_and_scheme_of_its_visitors() {
    let server_file = "http:\n  trusted: [127.0.0.1, \"::1\"]\n  scheme: https\n";
    let Some((shown, lines)) = mirrored(server_file, FROM_A_PROXY) else { return };
    assert!(shown.contains("v1 is live: https://shop.localhost "), "{shown}");
    assert!(!shown.contains("http://shop.localhost") && !shown.contains("shop.localhost:"), "{shown}");
    holds(&lines, &["x-forwarded-for=8.8.8.8, 192.0.2.7, 127.0.0.1", "x-real-ip=192.0.2.7"]);
    holds(&lines, &["x-forwarded-proto=https", "x-forwarded-host=shop.localhost", "x-forwarded-port=443"]);
}

#[test]
fn untrusted_peer_cannot_state_address_or_scheme() {
    let Some((shown, lines)) = mirrored("", FROM_A_PROXY) else { return };
    assert!(shown.contains("v1 is live: http://shop.localhost:"), "{shown}");
    holds(&lines, &["x-forwarded-for=127.0.0.1", "x-real-ip=127.0.0.1", "x-forwarded-proto=http"]);
}
