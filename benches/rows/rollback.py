"""Rollback: the time from the command until the old code answers, by the size of the tree."""

import http.client
import random
import subprocess
import time

from lib import trees
from lib.servers import Larder, starts_application
from lib.table import OURS, Row, rounds
from lib.world import Unavailable, free_port

HELP = "time of larder rollback until the old code answers, for 10 and 40,000 files, compared with a link switch and with a push"
SIZES = (10, 40_000)
LINK = "link switch + restart"
PUSH = f"{OURS}, push of the old code"
PATIENCE = 60
BRANCH = "main"


def options(parser):
    parser.add_argument("--rollback-files", type=int, action="append", help="number of files of the tree; may be repeated (default: 10 and 40000)")


def answer(host, port, header):
    """Requests the page on a new connection; returns None without an answer."""
    try:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        connection.request("GET", "/", headers={"Host": header, "Connection": "close"})
        body = connection.getresponse().read().decode(errors="replace")
        connection.close()
        return body
    except (OSError, http.client.HTTPException):
        return ""


def until_answer(act, where, marker):
    """Returns the milliseconds from the start of `act` until `marker` is served. `act` returns a running process, or None."""
    start = time.monotonic()
    process = act()
    try:
        while marker not in answer(*where):
            if process and process.poll() not in (None, 0):
                raise Unavailable(f"`{' '.join(map(str, process.args[-3:]))}` exited {process.returncode}")
            if time.monotonic() - start > PATIENCE:
                raise Unavailable(f"{marker} was not served within {PATIENCE} s")
            time.sleep(0.002)
        took = (time.monotonic() - start) * 1000
        # Work after the verdict is not measured, but must end before the next measurement.
        if process and process.wait(PATIENCE) != 0:
            raise Unavailable(f"`{' '.join(map(str, process.args[-3:]))}` exited {process.returncode}")
        return took
    finally:
        if process and process.poll() is None:
            process.kill()
            process.wait()


def processor_seconds():
    """Returns the seconds that all processors together have worked and have been idle since the machine was started."""
    with open("/proc/stat") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:]]
    idle = ticks[3] + ticks[4]
    return sum(ticks[:8]) - idle, idle


def until_idle():
    """Waits until the processors were at least 90 % idle for 0.2 s, for at most a minute.

    larder unpacks a spare tree after a verdict. Without the wait, the work for one contestant is measured with the next one.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        busy, idle = processor_seconds()
        time.sleep(0.2)
        busy, idle = (after - before for after, before in zip(processor_seconds(), (busy, idle)))
        if busy <= 0.1 * (busy + idle):
            return


def application(directory, files):
    """Creates the small WSGI application, with further files up to `files` in all."""
    trees.wsgi(directory)
    (directory / "Procfile").write_text("web: python3 wsgi.py\n")
    trees.fill(directory / "pages", files - 6, random.Random(1), ".html")


class Toggle:
    """A contestant with two versions, one of which is served. Each measurement switches to the other version."""

    def __init__(self):
        self.old, self.live = "one", "two"

    def measure(self):
        took = until_answer(self.act(self.old), self.where, f"version {self.old}")
        self.old, self.live = self.live, self.old
        return took


class ByLink(Toggle):
    """Two release directories, a link and a restart of the process, as Capistrano does it."""

    def __init__(self, world, files):
        super().__init__()
        self.world, self.base = world, world.path("work", f"link-{files}")
        for version in (self.old, self.live):
            release = self.base / version
            release.mkdir()
            application(release, files)
            (release / "version.txt").write_text(f"version {version}\n")
        self.link, self.port, self.process = self.base / "current", free_port(), None
        self.where = ("127.0.0.1", self.port, "localhost")
        until_answer(self.act(self.live), self.where, f"version {self.live}")

    def act(self, version):
        def switch():
            fresh = self.base / "current.new"
            self.world.run(["ln", "-s", self.base / version, fresh])
            self.world.run(["mv", "-T", fresh, self.link])
            if self.process:
                self.world.stop(self.process)
            script = "cd -P -- \"$1\" && exec python3 wsgi.py"
            self.process = self.world.spawn(["sh", "-c", script, "sh", self.link], self.base.name, env={"PORT": str(self.port)})

        return switch


class ByLarder(Toggle):
    """The application in larder with two pushed versions; the switch is `rollback`, or a push of the old code as a new commit."""

    def __init__(self, world, server, files, pushes):
        super().__init__()
        self.world, self.server, self.pushes = world, server, pushes
        self.project = f"{'push' if pushes else 'back'}{files}"
        self.work = world.path("work", self.project)
        application(self.work, files)
        self.where = server.web(self.project)
        url = server.create(self.project)
        trees.commit(world, self.work)
        world.git("remote", "add", "live", url, cwd=self.work)
        for version in (self.old, self.live):
            until_answer(self._push(version), self.where, f"version {version}")

    def act(self, version):
        if self.pushes:
            return self._push(version)
        # The release is named: otherwise the second rollback would go to an even older release.
        name = {"one": "v1", "two": "v2"}[version]
        words = [self.server.binary, "--root", self.server.root, "rollback", self.project, name]
        return lambda: self._start(words)

    def _push(self, version):
        (self.work / "version.txt").write_text(f"version {version}\n")
        trees.commit(self.world, self.work, version)
        return lambda: self._start(["git", "-C", self.work, "push", "--quiet", "live", f"HEAD:refs/heads/{BRANCH}"])

    def _start(self, words):
        log = open(self.world.path("logs") / f"{self.project}.log", "ab")
        with log:
            return subprocess.Popen([str(word) for word in words], env=self.world.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def measure(world, args, progress):
    sizes = args.rollback_files or list(SIZES)
    rows = {files: Row(f"rollback, {files:,} files", reference=LINK) for files in sizes}
    server, contestants = None, {}
    try:
        server = Larder(world, args.larder, "rollback")
    except Unavailable as why:
        for row in rows.values():
            row.absent[OURS] = row.absent[PUSH] = str(why)
    for files, row in rows.items():
        progress(f"{row.title}: preparing")
        makers = {LINK: lambda: ByLink(world, files)}
        if server:
            makers[OURS] = lambda: ByLarder(world, server, files, pushes=False)
            makers[PUSH] = lambda: ByLarder(world, server, files, pushes=True)
        for name, make in makers.items():
            try:
                contestants[files, name] = make()
            except Unavailable as why:
                row.absent[name] = str(why)
    # All times include the start of the application. The notes show its share in larder's time.
    steps = {files: [] for files in sizes}
    alive = dict(contestants)
    for index, order in rounds(args.runs, contestants):
        for files, name in order:
            one, row = alive.get((files, name)), rows[files]
            if one is None:
                continue
            until_idle()
            try:
                row.add(name, one.measure())
            except Unavailable as why:
                del alive[files, name]
                row.samples.pop(name, None)
                row.absent[name] = str(why)
                continue
            if name == OURS:
                steps[files].append(server.steps(one.project))
        progress(f"rollback: round {index + 1} of {args.runs}")
    for files, row in rows.items():
        if row.samples.get(OURS):
            row.notes.append(breakdown(steps[files]))
    return [*rows.values(), *by_size(rows, sizes)]


def breakdown(steps):
    """Describes larder's steps from the journal: the start of the application, and the five longest others."""
    mean = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in {name for step in steps for name in step}}
    start = sum(took for name, took in mean.items() if starts_application(name))
    rest = sorted(((took, name) for name, took in mean.items() if not starts_application(name)), reverse=True)
    return f"by the journal, mean: start of the application {start:.1f} ms, " + ", ".join(f"{name} {took:.1f} ms" for took, name in rest[:5])


def by_size(rows, sizes):
    """Compares the samples of every size with those of the smallest size."""
    small = min(sizes)
    row = Row("rollback: cost of the tree", reference=f"{OURS}, {small:,} files", target="≤ 1.10x")
    for files in sorted(sizes):
        for value in rows[files].samples.get(OURS, []):
            row.add(f"{OURS}, {files:,} files", value)
    return [row] if len(row.samples) > 1 else []
