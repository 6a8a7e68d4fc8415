//! The web server of test applications in Python.

/// The beginning of each test application: the class `Base` of request handlers, and `serve`, which serves a subclass at the port in the first
/// argument.
const SERVER: &str = r#"
import http.server, sys

class Base(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"])).decode()

    def log_message(self, *arguments):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

def serve(handler):
    Server(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"#;

/// Returns the source of an application whose part after [`SERVER`] is `text`.
pub fn application(text: &str) -> String {
    format!("{SERVER}{text}")
}
