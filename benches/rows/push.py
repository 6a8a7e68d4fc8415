"""Push to live: the time from `git push` of a one-line change until it returns, and until the new content is served."""

import http.client
import shutil
import statistics
import subprocess
import threading
import time

from lib import trees
from lib.servers import Larder, Piku, Sshd, serve_directory, starts_application
from lib.table import OURS, Row, rounds
from lib.world import Unavailable, free_port

HELP = "time from git push to live, for a static site of --files files and a small WSGI application"
FLOOR = "sshd + git checkout -f"
RELEASES = "sshd + fresh release + symlink"
PIKU = "piku"
WITHOUT_START = f"{OURS}, start of the application excluded"
BRANCH = "main"

CHECKOUT = """#!/bin/sh
while read -r old new ref; do
    GIT_WORK_TREE={live} git checkout -q -f "$new"
done
"""

FRESH = """#!/bin/sh
set -e
while read -r old new ref; do
    release={releases}/$(date -u +%Y%m%d%H%M%S%N)
    mkdir "$release"
    GIT_WORK_TREE="$release" GIT_INDEX_FILE="$release.index" git checkout -q -f "$new" -- .
    rm "$release.index"
    ln -s "$release" {live}.new
    mv -T {live}.new {live}
done
"""


def options(parser):
    parser.add_argument("--files", type=int, action="append", help="number of files of the site; may be repeated (default: 5 and 5000)")
    parser.add_argument("--curve", action="store_true", help="also measure 10, 1,000 and 50,000 files")
    parser.add_argument("--piku", metavar="PIKU.PY", help="path of piku.py, for the rows that compare with piku")
    parser.add_argument("--no-wsgi", action="store_true", help="skip the WSGI row")


class Contestant:
    """A server to push to: a working copy, the address to push to, and the address where the content is served."""

    def __init__(self, world, name, work, url, host, port, host_header, page, path="/"):
        self.world, self.name, self.work = world, name, work
        self.host, self.port, self.host_header = host, port, host_header
        self.page, self.path, self.count = page, path, 0
        world.git("remote", "add", "live", url, cwd=work)

    def change(self):
        """Commits a change of one line; this is not measured."""
        self.count += 1
        marker = f"{self.name.split()[0]}-{self.count}-{time.monotonic_ns()}"
        self.page(marker)
        trees.commit(self.world, self.work, marker)
        return marker.encode()

    def push(self, patience=30, trace=None):
        """Pushes a change. Returns the milliseconds until `git push` returned and until the content was served, and the output of git."""
        marker, seen, stop = self.change(), [], threading.Event()
        watcher = threading.Thread(target=self._watch, args=(marker, seen, stop), daemon=True)
        watcher.start()
        env = {"GIT_TRACE_PACKET": str(trace)} if trace else None
        self.began, start = time.time(), time.monotonic()
        try:
            done = self.world.git("push", "live", f"HEAD:refs/heads/{BRANCH}", cwd=self.work, check=False, env=env, timeout=patience)
        except subprocess.TimeoutExpired:
            stop.set()
            raise Unavailable(f"git push did not end within {patience} s") from None
        returned = (time.monotonic() - start) * 1000
        if done.returncode != 0:
            stop.set()
            raise Unavailable("git push was rejected: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
        watcher.join(patience)
        stop.set()
        if not seen:
            raise Unavailable(f"the new content was not served within {patience} s after git push had succeeded")
        return returned, (seen[0] - start) * 1000, done.stderr

    def _watch(self, marker, seen, stop):
        """Requests the page on a new connection each time, until it has the new content."""
        while not stop.is_set():
            try:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
                connection.request("GET", self.path, headers={"Host": self.host_header, "Connection": "close"})
                body = connection.getresponse().read()
                connection.close()
                if marker in body:
                    seen.append(time.monotonic())
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.002)


def copy_of(world, original, name):
    """Returns a separate working copy with the same history."""
    work = world.root / "work" / name
    shutil.copytree(original, work, symlinks=True)
    return work


def behind_hook(world, sshd, name, original, hook, label):
    """Returns a bare repository behind sshd whose post-receive hook checks the content out for a static server."""
    base = world.path(name)
    live, releases = base / "live", world.path(name, "releases")
    if "{releases}" not in hook:
        live.mkdir()
    else:
        first = world.path(name, "releases", "none")
        live.symlink_to(first)
    repository = base / "site.git"
    world.git("init", "--quiet", "--bare", repository)
    script = repository / "hooks" / "post-receive"
    script.write_text(hook.format(live=live, releases=releases))
    script.chmod(0o755)
    port = serve_directory(world, live, name)
    work = copy_of(world, original, name)
    index = work / "index.html"
    return Contestant(
        world, label, work, sshd.url(repository), "127.0.0.1", port, "localhost",
        lambda marker: index.write_text(trees.page(marker)),
    )


def larder_site(world, args, original, project):
    """Returns the same site, pushed to and served by larder."""
    server = shared(world, "larder", lambda: Larder(world, args.larder))
    url = server.create(project)
    work = copy_of(world, original, f"larder-{project}")
    host, port, header = server.web(project)
    one = Contestant(world, OURS, work, url, host, port, header, lambda marker: (work / "index.html").write_text(trees.page(marker)))
    one.server, one.project = server, project
    return one


def static_contestants(world, args, files, row_pair):
    """Returns the contestants of the static row; those that cannot run are noted as absent."""
    original = world.path("work", f"site-{files}")
    trees.site(original, files)
    trees.commit(world, original)
    contestants = []

    def attempt(label, build):
        try:
            contestants.append(build())
        except Unavailable as why:
            for row in row_pair:
                row.absent[label] = str(why)

    def piku():
        server = shared(world, "piku", lambda: Piku(world, args.piku))
        app = f"site{files}"
        work = copy_of(world, original, f"piku-{files}")
        (work / "Procfile").write_text("static: .\n")
        trees.commit(world, work, "Procfile")
        server.checkout(app).parent.mkdir(parents=True, exist_ok=True)
        port = serve_directory(world, server.checkout(app), f"piku-{files}")
        return Contestant(
            world, PIKU, work, server.url(app), "127.0.0.1", port, "localhost",
            lambda marker: (work / "index.html").write_text(trees.page(marker)),
        )

    def sshd():
        return shared(world, "sshd", lambda: Sshd(world))

    attempt(OURS, lambda: larder_site(world, args, original, f"site{files}"))
    attempt(FLOOR, lambda: behind_hook(world, sshd(), f"floor-{files}", original, CHECKOUT, FLOOR))
    attempt(RELEASES, lambda: behind_hook(world, sshd(), f"fresh-{files}", original, FRESH, RELEASES))
    attempt(PIKU, piku)
    return contestants


def shared(world, key, build):
    """Starts one server of each kind per world; a failed start is not repeated."""
    known = world.__dict__.setdefault("shared", {})
    if key not in known:
        try:
            known[key] = build()
        except Unavailable as why:
            known[key] = why
    if isinstance(known[key], Unavailable):
        raise known[key]
    return known[key]


def wsgi_contestants(world, args, rows):
    """Returns the contestants of the row with a WSGI application of five files: larder and piku."""
    original = world.path("work", "wsgi")
    trees.wsgi(original)
    contestants = []

    def attempt(label, build):
        try:
            contestants.append(build())
        except Unavailable as why:
            for row in rows:
                row.absent[label] = str(why)

    def prepared(name, procfile, extra=None):
        work = copy_of(world, original, f"wsgi-{name}")
        (work / "Procfile").write_text(procfile)
        for file, content in (extra or {}).items():
            (work / file).write_text(content)
        trees.commit(world, work)
        return work, lambda marker: (work / "version.txt").write_text(f"version {marker}\n")

    def larder():
        server = shared(world, "larder", lambda: Larder(world, args.larder))
        work, page = prepared("larder", "web: python3 wsgi.py\n")
        host, port, header = server.web("wsgi")
        one = Contestant(world, OURS, work, server.create("wsgi"), host, port, header, page)
        one.server, one.project = server, "wsgi"
        return one

    def piku():
        server = shared(world, "piku", lambda: Piku(world, args.piku))
        port = free_port()
        work, page = prepared("piku", "wsgi: wsgi:application\n", {"ENV": f"PORT={port}\n"})
        return Contestant(world, PIKU, work, server.url("wsgi"), "127.0.0.1", port, "localhost", page)

    attempt(OURS, larder)
    attempt(PIKU, piku)
    return contestants


def compete(contestants, runs, returns, serves, progress):
    """Measures `runs` rounds after a first push that is not counted. A contestant that fails is excluded, with the reason in the table."""
    alive = []
    for one in contestants:
        try:
            one.push(patience=600)
            alive.append(one)
        except Unavailable as why:
            returns.absent[one.name] = serves.absent[one.name] = str(why)
    for index, order in rounds(runs, alive):
        for one in list(order):
            if one not in alive:
                continue
            try:
                returned, served, _ = one.push()
            except Unavailable as why:
                alive.remove(one)
                for row in (returns, serves):
                    row.samples.pop(one.name, None)
                    row.absent[one.name] = str(why)
                continue
            returns.add(one.name, returned)
            serves.add(one.name, served)
            if hasattr(one, "server"):
                start = sum(took for step, took in one.server.steps(one.project).items() if starts_application(step))
                returns.add(WITHOUT_START, returned - start)
                serves.add(WITHOUT_START, served - start)
        progress(f"{returns.title}: round {index + 1} of {runs}")
    return alive


def where_the_time_goes(world, contestants, row, runs):
    """Adds notes on the parts of a push as the client sees them, and on larder's steps, from extra pushes that are not counted."""
    for one in contestants:
        parts, steps = [], []
        for index in range(min(runs, 5)):
            trace = world.path("traces") / f"{one.work.name}-{index}"
            try:
                returned, _, _ = one.push(trace=trace)
            except Unavailable as why:
                row.notes.append(f"{one.name}: no breakdown: {why}")
                break
            parts.append(client_parts(trace, one.began, returned))
            if hasattr(one, "server"):
                steps.append(one.server.steps(one.project))
        parts = [part for part in parts if part]
        if parts:
            row.notes.append(f"{one.name}: " + ", ".join(
                f"{name} {statistics.median(part[name] for part in parts):.0f} ms" for name in parts[0]
            ))
        if steps:
            row.notes.append(f"{one.name}, steps from the journal: " + ", ".join(
                f"{name} {statistics.median(step.get(name, 0.0) for step in steps):.1f} ms" for name in steps[0]
            ))


def client_parts(trace, began, returned):
    """Splits a push into set-up, sending, verdict and end by git's packet trace, which has the local time of day."""
    first = sent = last = None
    clock = time.localtime(began)
    began = clock.tm_hour * 3600 + clock.tm_min * 60 + clock.tm_sec + began % 1
    for line in trace.read_text(errors="replace").splitlines():
        try:
            hours, minutes, seconds = line.split(" ", 1)[0].split(":")
            at = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            continue
        if " packet: " not in line:
            continue
        what = line.split(" packet: ", 1)[1].strip()
        if what.startswith("push<"):
            first = first if first is not None else at
        if what.startswith("push>"):
            sent = at
        last = at
    if None in (first, sent, last):
        return None
    return {
        "ssh until the first packet": (first - began) * 1000,
        "until the commands are sent": (sent - first) * 1000,
        "until the verdict": (last - sent) * 1000,
        "until git push returns": returned - (last - began) * 1000,
    }


def measure(world, args, progress):
    sizes = list(args.files or [5, 5000])
    if args.curve:
        sizes = sorted({*sizes, 10, 1000, 50_000})
    out = []
    for files in sizes:
        target = "≤ 0.60x" if files <= 10 else "≤ 1.00x"
        title = f"push, {files:,} files"
        returns = Row(f"{title}: git push returns", reference=FLOOR, target=target)
        serves = Row(f"{title}: new content served", reference=FLOOR, target=target)
        progress(f"{title}: preparing")
        contestants = static_contestants(world, args, files, (returns, serves))
        alive = compete(contestants, args.runs, returns, serves, progress)
        where_the_time_goes(world, alive, returns, args.runs)
        out += [returns, serves]
    if not args.no_wsgi:
        returns = Row("push, WSGI application: git push returns", reference=PIKU)
        serves = Row("push, WSGI application: live", reference=PIKU, target="≤ 0.10x")
        progress("push, WSGI application: preparing")
        alive = compete(wsgi_contestants(world, args, (returns, serves)), args.runs, returns, serves, progress)
        where_the_time_goes(world, alive, serves, args.runs)
        out += [returns, serves]
    return out
