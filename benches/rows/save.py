"""Time from a saved file until the running application has it: an editable environment, `larder dev`, and the application's start alone."""

import http.client
import os
import shutil
import subprocess
import time

from lib import trees
from lib.servers import Larder
from lib.table import OURS, Row, rounds
from lib.world import Unavailable
from rows.archive import timed
from rows.push import shared

HELP = "time from a saved file until the new page is served, in a checkout on a server, compared with larder dev"
ALONE = "start of the application alone"
DEV = "larder dev"
PYTHON = """import http.server, os
TEXT = b"@"
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()
"""
NODE = """const text = "@";
require("http").createServer((request, response) => response.end(text)).listen(process.env.PORT, "127.0.0.1");
"""
APPLICATIONS = {
    "Python": ("app.py", PYTHON, "python3", {"requirements.txt": "# none\n"}),
    "Node": ("app.js", NODE, "node", {"package.json": '{"name":"shop"}\n'}),
}


def options(parser):
    parser.add_argument("--saves", type=int, default=20, help="number of saves (default: 20)")


def page(host, port, header):
    """Returns the page, or nothing if no process answers, or if it stops while it answers."""
    try:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("GET", "/", headers={"Host": header})
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def until(host, port, header, text, seconds=30):
    end = time.monotonic() + seconds
    while page(host, port, header) != text:
        if time.monotonic() > end:
            raise Unavailable(f"the page does not become {text!r} within {seconds} s")
        time.sleep(0.002)


def save(path, text):
    """Saves a file as editors do: the new file gets the name of the old file."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text)
    os.replace(draft, path)


def measure(world, args, progress):
    return [of(world, args, progress, *one) for one in APPLICATIONS.items()]


def of(world, args, progress, language, application):
    name, source, program, files = application
    row = Row(f"save, {language}", reference=ALONE, target="≤ 1000 ms")
    if shutil.which(program) is None:
        row.absent[OURS] = f"{program} is not installed"
        return row
    project = f"save{language.lower()}"
    original = world.path("work", project)
    for file, text in {**files, name: source.replace("@", "start"), "Procfile": f"web: {program} {name}\n"}.items():
        (original / file).write_text(text)
    trees.commit(world, original)
    ways, port = {}, 41000 + os.getpid() % 1000

    def alone(number):
        save(original / name, source.replace("@", f"alone {number}"))
        process = subprocess.Popen([program, name], cwd=original, env={**os.environ, "PORT": str(port)})
        try:
            until("127.0.0.1", port, "localhost", f"alone {number}")
        finally:
            process.kill()
            process.wait()

    ways[ALONE] = alone
    try:
        server = shared(world, "larder", lambda: Larder(world, args.larder))
        server._world_ask("project", "create", project, "--mode", "editable")
        world.run(["git", "push", "--quiet", f"ssh://larder@{server.ssh}/{project}", "HEAD:refs/heads/main"], cwd=original, timeout=300)
        address = server.web(project)
        until(*address, "start")
        checkout = server.environment(project) / "run" / name
        time.sleep(2)  # The watch begins after the first push.

        def larder(number):
            save(checkout, source.replace("@", f"larder {number}"))
            until(*address, f"larder {number}")

        ways[OURS] = larder
    except Unavailable as why:
        row.absent[OURS] = str(why)
    local = world.path("work", f"{project}-dev")
    shutil.copytree(original, local, dirs_exist_ok=True)
    session = world.spawn([args.larder, "dev", "--port", str(port + 1)], f"dev-{project}", cwd=local, stdout=subprocess.DEVNULL)
    try:
        until("127.0.0.1", port + 1, "localhost", "start", 60)

        def dev(number):
            save(local / name, source.replace("@", f"dev {number}"))
            until("127.0.0.1", port + 1, "localhost", f"dev {number}")

        ways[DEV] = dev
    except Unavailable as why:
        row.absent[DEV] = str(why)
    for index, order in rounds(args.saves, ways):
        for way in order:
            timed(world, row, way, lambda: ways[way](index))
            time.sleep(1)  # Too many restarts within a short time wait.
        progress(f"{row.title}: save {index + 1} of {args.saves}")
    session.terminate()
    session.wait()
    return row
