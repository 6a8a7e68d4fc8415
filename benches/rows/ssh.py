"""The SSH server without deployments: consecutive connections, many idle sessions, a large push, a large clone."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from lib import trees
from lib.servers import Larder, Sshd
from lib.table import OURS, Row, rounds
from lib.world import Unavailable

HELP = "consecutive connections, memory of idle sessions, push and clone of --mb megabytes, compared with sshd"
SSHD = "sshd"
LIMIT = "git alone, no ssh (limit)"


def options(parser):
    parser.add_argument("--mb", type=int, default=300, help="size of the repository in MB (default: 300)")
    parser.add_argument("--connections", type=int, default=20, help="number of consecutive connections (default: 20)")
    parser.add_argument("--idle", type=int, default=50, help="number of idle sessions (default: 50)")


class Side:
    """A server with one bare repository."""

    def __init__(self, name, url, host, port, user, repository, pid):
        self.name, self.url, self.host, self.port, self.user, self.repository, self.pid = name, url, host, port, user, repository, pid


def sides(world, args, rows):
    """Returns the contestants: larder, sshd, and git without a server."""
    out = []
    try:
        larder = Larder(world, args.larder)
        host, port = larder.ssh.rsplit(":", 1)
        out.append(Side(OURS, larder.create("bulk"), host.strip("[]"), port, "larder", "/bulk", larder.process.pid))
    except Unavailable as why:
        for row in rows:
            row.absent[OURS] = str(why)
    try:
        sshd = Sshd(world)
        repository = world.path("bulk.git")
        world.git("init", "--quiet", "--bare", repository)
        out.append(Side(SSHD, sshd.url(repository), "127.0.0.1", str(sshd.port), sshd.user, str(repository), sshd.pid))
    except Unavailable as why:
        for row in rows:
            row.absent[SSHD] = str(why)
    local = world.path("local.git")
    world.git("init", "--quiet", "--bare", local)
    out.append(Side(LIMIT, str(local), None, None, None, str(local), None))
    return out


def advertisement(world, side):
    """Connects, reads the advertised refs and disconnects: the same work on every server."""
    return [
        "ssh", *world.ssh_options, "-p", side.port, f"{side.user}@{side.host}", f"git-upload-pack '{side.repository}'",
    ]


def connect_in_turn(world, side, count):
    """Returns the milliseconds for `count` consecutive connections."""
    start = time.monotonic()
    for _ in range(count):
        done = world.run(advertisement(world, side), check=False, timeout=60)
        if "refs/heads/" not in done.stdout:
            raise Unavailable(f"no refs advertised: {done.stderr.strip()[-200:]}")
    return (time.monotonic() - start) * 1000


def tree_of(pid):
    """Returns a process and its descendants."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def memory(pid):
    """Returns the proportional set size of a process tree in kB; shared pages count once."""
    total = 0
    for one in tree_of(pid):
        try:
            for line in (Path("/proc") / str(one) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            continue
    return total


def idle_memory(world, side, count):
    """Returns the kB that `count` idle sessions add, including the git processes of both contestants."""
    before, clients = memory(side.pid), []
    try:
        for _ in range(count):
            client = subprocess.Popen(
                advertisement(world, side), env=world.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            clients.append(client)
            if not client.stdout.read(4):
                raise Unavailable(f"session {len(clients)} of {count} was not opened")
        time.sleep(0.5)
        return memory(side.pid) - before
    finally:
        for client in clients:
            client.kill()
            client.wait()
            client.stdin.close()
            client.stdout.close()


def incompressible(world, work, megabytes, name):
    """Creates a commit of incompressible content, one file per megabyte, so that the server keeps the pack."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for index in range(megabytes):
        (work / f"{index}.bin").write_bytes(os.urandom(1 << 20))
    world.git("init", "--quiet", cwd=work)
    world.git("config", "core.compression", "0", cwd=work)
    # No contestant searches for deltas in random bytes.
    world.git("config", "pack.window", "0", cwd=work)
    trees.commit(world, work, name)
    # The pack is created here, so that the client only reads it during the push.
    world.git("repack", "-adq", cwd=work)


def measure(world, args, progress):
    turn = Row(f"ssh, {args.connections} consecutive connections", reference=SSHD, target="≤ 0.20x")
    idle = Row(f"ssh, memory of {args.idle} idle sessions", unit="kB", reference=SSHD, target="≤ 0.20x")
    push = Row(f"ssh, push of {args.mb} MB", unit="MB/s", reference=SSHD, rate=True, target="≥ 1.20x")
    clone = Row(f"ssh, clone of {args.mb} MB", unit="MB/s", reference=SSHD, rate=True, target="≥ 1.10x")
    every = (turn, idle, push, clone)
    contestants = sides(world, args, every)
    small = world.path("work", "small")
    (small / "README").write_text("small\n")
    trees.commit(world, small)
    alive = []
    for side in contestants:
        try:
            # No environment deploys this branch, because the row measures the transport only.
            world.git("push", "--quiet", side.url, "HEAD:refs/heads/side", cwd=small, timeout=60)
            alive.append(side)
        except Unavailable as why:
            for row in every:
                row.absent[side.name] = str(why)

    def attempt(row, side, act):
        if side.name in row.absent:
            return
        try:
            row.add(side.name, act())
        except (Unavailable, subprocess.TimeoutExpired) as why:
            row.samples.pop(side.name, None)
            row.absent[side.name] = str(why)

    remote = [side for side in alive if side.pid is not None]
    for index, order in rounds(args.runs, remote):
        for side in order:
            attempt(turn, side, lambda side=side: connect_in_turn(world, side, args.connections))
        progress(f"{turn.title}: round {index + 1} of {args.runs}")
    for side in remote:
        attempt(idle, side, lambda side=side: idle_memory(world, side, args.idle))
    bulk = min(args.runs, 5)
    for index, order in rounds(bulk, alive):
        work, branch = world.root / "work" / "bulk", f"bulk{index}"
        incompressible(world, work, args.mb, branch)

        def pushed(side):
            start = time.monotonic()
            world.git("push", "--quiet", side.url, f"HEAD:refs/heads/{branch}", cwd=work, timeout=600)
            return args.mb / (time.monotonic() - start)

        def cloned(side):
            target = world.root / "work" / "clone"
            start = time.monotonic()
            # With --no-local, git copies the objects instead of linking them.
            world.git("clone", "--quiet", "--bare", "--no-local", "--single-branch", "--branch", branch, side.url, target, timeout=600)
            took = time.monotonic() - start
            shutil.rmtree(target)
            return args.mb / took

        for side in order:
            attempt(push, side, lambda side=side: pushed(side))
        for side in order:
            if side.name in push.samples:
                attempt(clone, side, lambda side=side: cloned(side))
        progress(f"{push.title} and clone: round {index + 1} of {bulk}")
    push.notes.append("larder checks every object (transfer.fsckObjects); the repository behind sshd has the defaults of `git init --bare` and does not")
    return list(every)
