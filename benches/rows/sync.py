"""Update of an installed tree to a new version: rsync, copies, links, and larder, which knows the list of changes."""

import json
import random
import shutil
import time
import uuid

from lib import modules
from lib.table import OURS, Row, rounds
from lib.tool import tool
from lib.world import Unavailable, need
from rows.archive import timed

HELP = "time to update an installed large tree (--tree) of which 0 %, 1 % and 100 % changed, compared with rsync and copies"
MAKES_MANY_FILES = True
RSYNC = "rsync -a --delete"
CHECKOUT = "git checkout -f"
EXPORT = f"{OURS}, export of the commit"
INSTALL = f"{OURS}, install from the archive, unchanged files shared"
SPARE = f"{OURS}, install from the archive on a spare tree"
DELTA = f"{OURS}, install from a delta on a spare tree"
TARGETS = {0: "≤ 0.35x", 1: "≤ 0.35x", 100: "≤ 0.30x"}


def options(parser):
    """Adds no options: those of the tree belong to the row archive."""


def measure(world, args, progress):
    rsync = need("rsync")
    tree, what = modules.large_tree(args, progress)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    ours, missing = None, None
    try:
        ours = tool(args)
    except Unavailable as why:
        missing = str(why)
    out = []
    for percent in (0, 1, 100):
        row = Row(f"sync, {percent} % changed", reference=RSYNC, target=TARGETS[percent])
        changed = files if percent == 100 else random.Random(percent).sample(files, len(files) * percent // 100)
        row.notes.append(f"tree: {what}; {len(changed):,} files differ")
        live = world.root / "live"
        # Method -> (preparation, measured work).
        ways = {
            RSYNC: (None, lambda: world.run([rsync, "-a", "--delete", f"{tree}/", f"{live}/"], timeout=900)),
            "cp -al + rsync": (None, lambda: link_and_sync(world, rsync, tree, live)),
            "cp -al (limit without overlays)": (None, lambda: world.run(["cp", "-al", "--", tree, world.root / "links"], timeout=900)),
        }
        if percent == 100:
            del ways["cp -al + rsync"]
            ways["cp -a"] = (None, lambda: world.run(["cp", "-a", "--", tree, live], timeout=900))
        progress(f"{row.title}: preparing")
        prepare(world, tree, live, changed, percent == 100)
        if percent != 100:
            git_ways(world, tree, live, ours, ways)
        if ours is None:
            row.absent[OURS] = missing
        elif percent != 100:
            try:
                install_ways(world, tree, live, ours, ways)
            except Unavailable as why:
                row.absent[INSTALL] = str(why)
        runs = min(args.runs, 5)
        for index, order in rounds(runs, ways):
            for name in order:
                before, act = ways[name]
                if before is None:
                    prepare(world, tree, live, changed, percent == 100)
                else:
                    before()
                modules.settle(world)
                timed(world, row, name, act)
            progress(f"{row.title}: round {index + 1} of {runs}")
        out.append(row)
        for place in ("live", "links", "previous", "repositories", "checkout", "project", "deploy"):
            shutil.rmtree(world.root / place, ignore_errors=True)
    return out


def git_ways(world, tree, live, ours, ways):
    """Adds the methods between two commits: `git checkout -f`, and larder's export, which knows the previously exported files."""
    repositories = world.path("repositories")
    git = repositories / "project.git"
    world.git("init", "--quiet", "--bare", git)
    # The .gitattributes of packages must not change any byte.
    (git / "info").mkdir(exist_ok=True)
    (git / "info" / "attributes").write_text("* -text -filter -ident\n")
    commits = []
    for version in (live, tree):
        world.git(f"--git-dir={git}", f"--work-tree={version}", "add", "--all", "--force", cwd=version, timeout=900)
        written = world.git(f"--git-dir={git}", "write-tree").stdout.strip()
        commits.append(world.git(f"--git-dir={git}", "commit-tree", "-m", "a version", written).stdout.strip())
    old, new = commits
    checkout, project = world.path("checkout"), world.path("project")

    def checked_out(commit):
        world.git(f"--git-dir={git}", f"--work-tree={checkout}", "checkout", "--quiet", "--force", "--detach", commit, cwd=checkout, timeout=900)

    ways[CHECKOUT] = (lambda: checked_out(old), lambda: checked_out(new))
    if ours:
        ways[EXPORT] = (
            lambda: world.run([ours, "export", repositories, project, old], timeout=900),
            lambda: world.run([ours, "export", repositories, project, new], timeout=900),
        )


def install_ways(world, tree, live, ours, ways):
    """Adds the methods between two archives: the second release is installed beside the first, into a spare tree, or from a delta."""
    deploy = world.path("deploy")
    older, newer = deploy / "old.tar.zst", deploy / "new.tar.zst"
    world.run([ours, "bundle", live, older], timeout=900)
    first = json.loads((deploy / "old.tar.zst.json").read_text())["release"]
    world.run([ours, "bundle", tree, newer, older], timeout=900)
    for archive in (older, newer):
        world.run([ours, "accept", archive])
    second = json.loads((deploy / "new.tar.zst.json").read_text())["release"]
    world.run([ours, "unpack", older, deploy, first], timeout=900)
    world.run([ours, "unpack", newer, deploy, second, older, first], timeout=900)
    world.run([ours, "delta", older, deploy / first, newer, deploy / second, deploy / "delta"], timeout=900)
    shutil.rmtree(deploy / second)
    state = {}

    def clear():
        if "name" in state:
            shutil.rmtree(deploy / state["name"], ignore_errors=True)
        state["name"] = release_id()

    def spare():
        clear()
        world.run([ours, "unpack", older, deploy, state["name"], older, first], timeout=900)

    def install():
        world.run([ours, "unpack", newer, deploy, state["name"], older, first], timeout=900)

    ways[INSTALL] = (clear, install)
    ways[SPARE] = (spare, install)
    ways[DELTA] = (spare, lambda: world.run([ours, "patch", deploy / "delta", deploy, state["name"], older, first], timeout=900))


def release_id():
    """Returns a name in the form of a release id."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4()}"


def prepare(world, tree, live, outdated, afresh):
    """Restores the installed tree of the previous release: the new tree with some outdated files, or an empty directory."""
    for place in (world.root / "links", world.root / "previous", *([live] if afresh else [])):
        shutil.rmtree(place, ignore_errors=True)
    if afresh:
        return
    if not live.exists():
        world.run(["cp", "-a", "--", tree, live], timeout=900)
    for path in outdated:
        file = live / path.relative_to(tree)
        content = file.read_bytes()
        # The file is replaced, because the installed tree may share it with others.
        file.unlink()
        file.write_bytes(content + b"\n")


def link_and_sync(world, rsync, tree, live):
    """Links the old tree, then replaces the files that differ; the old tree stays unchanged."""
    live.rename(world.root / "previous")
    world.run(["cp", "-al", "--", world.root / "previous", live], timeout=900)
    world.run([rsync, "-a", "--delete", f"{tree}/", f"{live}/"], timeout=900)
