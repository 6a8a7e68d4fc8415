"""Transfer of release N+1 to a machine that has release N: larder's delta, rsync, patches of whole tars, chunks, a full copy."""

import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

from lib import trees
from lib.table import OURS, Row, rounds
from lib.tool import tool
from lib.world import Unavailable, find, free_port, need
from rows.archive import timed

HELP = "bytes and time of a transfer of release N+1 to a machine that has N, compared with rsync -z, zstd, xdelta3, casync, a full copy"
MAKES_MANY_FILES = True
RSYNC = "rsync -z"
FILES = "zstd -3 --patch-from, file by file"
TAR = "zstd -3 --patch-from, whole tar"
XDELTA = "xdelta3 -1, whole tar"
CASYNC = "casync"
FULL = "full archive"

# The packages of the release that the machine has, and the changes of other versions of them.
HELD = (
    "typescript@5.6.2 webpack@5.95.0 eslint@9.11.0 react@18.3.1 react-dom@18.3.1 next@14.2.14 vite@5.4.8 lodash@4.17.21 rxjs@7.8.1 "
    "date-fns@3.6.0 core-js@3.38.0 express@4.21.0 jest@29.7.0 @babel/core@7.25.2 @babel/preset-env@7.25.4 @mui/material@6.1.1 "
    "@swc/core@1.7.26 @esbuild/linux-x64@0.21.5 @angular/core@18.2.6 antd@5.21.0 aws-sdk@2.1691.0"
).split()
NEWER = ["@mui/material@6.1.2", "date-fns@4.1.0", "core-js@3.38.1", "@angular/core@18.2.7", "eslint@9.12.0"]
NEWER_BINARIES = ["next@14.2.15", "@swc/core@1.7.28", "@esbuild/linux-x64@0.23.1"]
BINARIES = ["@next/swc-linux-x64-gnu", "@swc/core-linux-x64-gnu", "@esbuild/linux-x64"]


def options(parser):
    parser.add_argument("--deliver", metavar="npm|synthetic", default="npm", help="content of the tree (default: npm, or synthetic if that fails)")
    parser.add_argument("--deliver-trees", metavar="DIR", type=Path, help="directory that keeps the trees for the next run")


def measure(world, args, progress):
    need("rsync")
    need("zstd")
    deploy = world.path("deploy")
    held = deploy / release_id()
    sets = kept(args.deliver_trees, held)
    if not sets:
        sets = releases(world, args, held, progress)
        keep(world, args.deliver_trees, held, sets)
    out = []
    for title, tree in sets.items():
        out += one(world, args, held, tree, title, progress)
        shutil.rmtree(tree, ignore_errors=True)
    return out


def one(world, args, held, new, title, progress):
    """Measures the two rows of one set of changes."""
    size = Row(f"deliver {title}: bytes", unit="kB", reference=FILES, target="≤ 1.10x")
    row = Row(f"deliver {title}: make, transfer, apply", reference=RSYNC, target="≤ 0.30x")
    row.notes.append(
        "rsync uses an rsync daemon, all others use HTTP, both on loopback; larder checks every digest and installs into a spare tree"
    )
    work, deploy = world.path("work"), held.parent
    port, web = daemon(world, new), web_server(world, work)
    live = world.root / "live"
    changed = [path for path in files(new) if differs(new / path, held / path)]
    content = sum((new / path).stat().st_size for path in changed)
    row.notes.append(f"{len(changed):,} files are new or differ, {content / 1e6:,.1f} MB")
    size.add(FILES, file_by_file(held, new, changed) / 1024)
    ways = {}

    def fetch(name):
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/{name}", timeout=60) as answer, open(work / f"got-{name}", "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
        return (work / f"got-{name}").stat().st_size

    def shell(script):
        world.run(["bash", "-c", f"set -o pipefail; cd {work}; {script}"], timeout=900)

    def by_rsync():
        done = world.run(["rsync", "-az", "--delete", "--stats", f"rsync://127.0.0.1:{port}/new/", f"{live}/"], timeout=900)
        counts = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
        return sum(int(counts[f"Total bytes {way}"].replace(",", "")) for way in ("sent", "received"))

    ways[RSYNC] = (lambda: copy(world, held, live), by_rsync)

    def fresh():
        shutil.rmtree(work / "tree", ignore_errors=True)
        (work / "tree").mkdir()

    shell(f"tar -C {held} -cf old.tar .")
    sized = "tar -C {new} -cf new.tar . && "

    def by_tar():
        shell(f"{sized.format(new=new)} zstd -3 -q -f --long=31 --patch-from=old.tar new.tar -o tar.patch")
        bytes_ = fetch("tar.patch")
        shell("zstd -d -q -f --long=31 --memory=2048MB --patch-from=old.tar got-tar.patch -o got.tar && tar -xf got.tar -C tree")
        return bytes_

    ways[TAR] = (fresh, by_tar)
    if find("xdelta3"):

        def by_xdelta():
            window = (work / "old.tar").stat().st_size
            shell(f"{sized.format(new=new)} xdelta3 -e -1 -f -B {window} -s old.tar new.tar tar.xdelta")
            bytes_ = fetch("tar.xdelta")
            shell(f"xdelta3 -d -f -B {window} -s old.tar got-tar.xdelta got.tar && tar -xf got.tar -C tree")
            return bytes_

        ways[XDELTA] = (fresh, by_xdelta)
    else:
        row.absent[XDELTA] = size.absent[XDELTA] = "xdelta3 is missing (Debian: xdelta3)"
    if find("casync"):

        def by_casync():
            shell(f"casync make --without=all --with=symlinks --with=permissions new.caidx {new} >/dev/null")
            before = {chunk.name for chunk in (work / "held.castr").rglob("*.cacnk")}
            bytes_ = sum(chunk.stat().st_size for chunk in (work / "default.castr").rglob("*.cacnk") if chunk.name not in before)
            shell(f"casync extract --seed={held} --seed-output=no new.caidx tree/casync")
            return bytes_ + (work / "new.caidx").stat().st_size

        shell(f"casync make --without=all --with=symlinks --with=permissions --store=held.castr held.caidx {held} >/dev/null")

        def chunks():
            fresh()
            shutil.rmtree(work / "default.castr", ignore_errors=True)
            shell("cp -al held.castr default.castr")

        ways[CASYNC] = (chunks, by_casync)
    else:
        row.absent[CASYNC] = size.absent[CASYNC] = "casync is missing (Debian: casync)"
    try:
        ours = tool(args)
        state = {}
        older, newer = work / "old.tar.zst", work / "new.tar.zst"
        world.run([ours, "bundle", held, older], timeout=900)
        world.run([ours, "bundle", new, newer, older], timeout=900)
        for archive in (older, newer):
            world.run([ours, "accept", archive])

        def spare():
            shutil.rmtree(deploy / state.get("name", "none"), ignore_errors=True)
            state["name"] = release_id()
            world.run([ours, "unpack", older, deploy, state["name"], older, held.name], timeout=900)

        def by_delta():
            world.run([ours, "delta", older, held, newer, new, work / "delta"], timeout=900)
            bytes_ = fetch("delta")
            world.run([ours, "patch", work / "got-delta", deploy, state["name"], older, held.name], timeout=900)
            return bytes_

        def whole():
            bytes_ = fetch("new.tar.zst")
            shutil.copy(work / "new.tar.zst.json", work / "got-new.tar.zst.json")
            world.run([ours, "unpack", work / "got-new.tar.zst", work / "tree", "full"], timeout=900)
            return bytes_

        ways[OURS] = (spare, by_delta)
        ways[FULL] = (fresh, whole)
    except Unavailable as why:
        row.absent[OURS] = size.absent[OURS] = str(why)
    runs = min(args.runs, 5)
    for index, order in rounds(runs, ways):
        for name in order:
            before, act = ways[name]
            if name in row.absent:
                continue
            before()
            found = []
            timed(world, row, name, lambda act=act, found=found: found.append(act()))
            if found:
                size.samples[name] = [found[0] / 1024]
        progress(f"{row.title}: round {index + 1} of {runs}")
    if OURS in row.samples:
        check = world.run(["diff", "-rq", "--no-dereference", "--", deploy / state["name"], new], check=False)
        row.notes.append("larder's result, compared with the new tree: " + ("identical" if check.returncode == 0 else f"DIFFERS: {check.stdout[:300]}"))
        shutil.rmtree(deploy / state["name"], ignore_errors=True)
    for place in (work, live):
        shutil.rmtree(place, ignore_errors=True)
    return [size, row]


def releases(world, args, held, progress):
    """Returns the old tree, and for each set of changes a new tree that shares the unchanged files."""
    kind = args.deliver
    if kind == "npm" and not install(world, held, HELD, progress):
        kind = "synthetic (npm gave nothing)"
    if not held.exists():
        held.mkdir()
        trees.fill(held, 20_000, random.Random(1), ".txt")
    progress(f"tree to deliver: {kind}")
    sets = {"B1, small edits": linked(world, held)}
    edit(held, sets["B1, small edits"], 557)
    if kind == "npm":
        for title, packages, names in (
            ("B2, newer packages", NEWER, [name.rsplit("@", 1)[0] for name in NEWER]),
            ("B3, new binaries", NEWER_BINARIES, BINARIES),
        ):
            other = world.root / "newer"
            if install(world, other, packages, progress):
                sets[title] = linked(world, held)
                for name in names:
                    source, target = (base / "node_modules" / name for base in (other, sets[title]))
                    world.run(["rsync", "-a", "--checksum", "--no-times", "--delete", f"{source}/", f"{target}/"])
            shutil.rmtree(other, ignore_errors=True)
    return sets


def keep(world, directory, held, sets):
    """Keeps hard links to the trees, one directory for each, if --deliver-trees is given."""
    if directory is None:
        return
    directory.mkdir(parents=True)
    for name, tree in {"held": held, **sets}.items():
        world.run(["cp", "-al", "--", tree, directory / name])


def kept(directory, held):
    """Returns the trees that an earlier run has kept, linked into this world; None if there are none."""
    if directory is None or not directory.is_dir():
        return {}
    sets = {path.name: held.parent / release_id() for path in sorted(directory.iterdir()) if path.name != "held"}
    for name, tree in {"held": held, **sets}.items():
        subprocess.run(["cp", "-al", "--", directory / name, tree], check=True)
    return sets


def install(world, target, packages, progress):
    """Installs exact versions without their scripts. Returns true on success."""
    if find("npm") is None:
        return False
    progress(f"npm install: {len(packages)} packages")
    target.mkdir()
    (target / "package.json").write_text('{"name": "tree", "version": "1.0.0", "private": true}\n')
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--legacy-peer-deps"]
    try:
        done = world.run(["npm", "install", *quiet, *packages], cwd=target, check=False, timeout=900)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        return False
    return True


def linked(world, held):
    """Returns a copy by hard links. Changed files must be replaced, not written in place."""
    tree = held.parent / release_id()
    world.run(["cp", "-al", "--", held, tree])
    return tree


def edit(held, tree, count):
    """Changes, adds or removes one to three lines in some text files."""
    rng = random.Random(1)
    text = (".js", ".ts", ".mjs", ".css", ".json", ".md", ".txt")
    fitting = [path for path in files(held) if path.endswith(text) and 200 < (held / path).stat().st_size < 400_000]
    for path in rng.sample(fitting, count):
        lines = (tree / path).read_bytes().split(b"\n")
        for _ in range(rng.randint(1, 3)):
            at, how = rng.randrange(len(lines)), rng.random()
            line = b"const value%d = compute(%d);" % (rng.randrange(1000), rng.randrange(10**6))
            lines[at : at + (how < 0.5 or how > 0.85)] = [line] if how < 0.85 else []
            lines = lines or [b""]
        (tree / path).unlink()
        (tree / path).write_bytes(b"\n".join(lines))


def files(tree):
    """Returns the relative paths of a tree's regular files, sorted."""
    found = []
    for place, _, names in os.walk(tree):
        paths = (os.path.join(place, name) for name in names)
        found += [os.path.relpath(path, tree) for path in paths if not os.path.islink(path)]
    return sorted(found)


def differs(new, old):
    """Returns true if a file is new or has other content."""
    if not old.exists() or old.is_symlink():
        return True
    return not os.path.samefile(new, old) and new.read_bytes() != old.read_bytes()


def file_by_file(held, new, changed):
    """Returns the total size of one patch for each changed file, the reference for the size of a delta. Its time is not measured."""
    total = 0
    for path in changed:
        base = [f"--patch-from={held / path}"] if (held / path).exists() else []
        done = subprocess.run(["zstd", "-3", "-q", "-c", *base, new / path], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        total += len(done.stdout)
    return total


def copy(world, held, live):
    """Restores the live tree to the old release."""
    live.mkdir(exist_ok=True)
    world.run(["rsync", "-a", "--delete", f"{held}/", f"{live}/"], timeout=900)


def web_server(world, work):
    """Starts a web server of plain files on loopback. An rsync daemon would pause for a tenth of a second per file."""
    port = free_port()
    process = world.spawn([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", work, str(port)], f"http-{port}")
    world.wait_for_port(port, process)
    return port


def daemon(world, new):
    """Starts an rsync daemon on loopback with the new tree."""
    port = free_port()
    config = world.root / "rsyncd.conf"
    owner = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
    config.write_text(
        f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\nlog file = /dev/null\n{owner}[new]\npath = {new}\n"
    )
    process = world.spawn(["rsync", "--daemon", "--no-detach", f"--config={config}"], f"rsyncd-{port}")
    world.wait_for_port(port, process)
    return port


def release_id():
    """Returns a name in the form of a release id."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4()}"
