import os
import signal
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server


def application(environ, start_response):
    if environ["PATH_INFO"] != "/":
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Not found\n"]
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    release = os.environ.get("LARDER_RELEASE", "unknown")
    return [f"Hello from Python\nrelease {release}\n".encode()]


class Quiet(WSGIRequestHandler):
    def address_string(self):
        # No name lookup for each request.
        return self.client_address[0]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = int(os.environ.get("PORT", "8000"))
    with make_server("127.0.0.1", port, application, handler_class=Quiet) as server:
        print(f"listening on {port}", flush=True)
        server.serve_forever()
