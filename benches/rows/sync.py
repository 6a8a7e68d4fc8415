"""Bringing a new version of a large tree to where it runs: rsync, copies, links; ours by a known list of changes."""

import random
import shutil

from lib import modules
from lib.table import OURS, Row, rounds
from lib.tool import tool
from lib.world import Unavailable, need
from rows.archive import timed

HELP = "sync of a large tree (--tree) with 0 %, 1 % and 100 % changed into a run tree"
RSYNC = "rsync -a --delete"
TARGETS = {0: "≤ 0.35x", 1: "≤ 0.35x", 100: "≤ 0.30x"}


def options(parser):
    """The tree's options are those of the archive row."""


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
        if percent in (0, 1):
            row.notes.append(f"tree: {what}; {len(changed):,} files of the run tree outdated before each run")
        live = world.root / "live"
        ways = {RSYNC: lambda: world.run([rsync, "-a", "--delete", f"{tree}/", f"{live}/"], timeout=900)}
        if percent != 100:
            ways["cp -al + rsync"] = lambda: link_and_sync(world, rsync, tree, live)
        else:
            ways["cp -a"] = lambda: world.run(["cp", "-a", "--", tree, live], timeout=900)
        ways["cp -al"] = lambda: world.run(["cp", "-al", "--", tree, world.root / "links"], timeout=900)
        if ours:
            ways[OURS] = lambda: world.run([ours, "sync", tree, live], timeout=900)
        else:
            row.absent[OURS] = missing
        for index, order in rounds(min(args.runs, 5), ways):
            for name in order:
                prepare(world, tree, live, [] if percent == 100 else changed, percent == 100)
                modules.settle(world)
                timed(world, row, name, ways[name])
            progress(f"{row.title}: round {index + 1} of {min(args.runs, 5)}")
        out.append(row)
    for place in ("live", "links", "previous"):
        shutil.rmtree(world.root / place, ignore_errors=True)
    return out


def prepare(world, tree, live, outdated, afresh):
    """A run tree as the previous release left it: equal to the new one but for the outdated files; or none at all."""
    for place in (world.root / "links", world.root / "previous", *([live] if afresh else [])):
        shutil.rmtree(place, ignore_errors=True)
    if afresh:
        return
    if not live.exists():
        world.run(["cp", "-a", "--", tree, live], timeout=900)
    for path in outdated:
        file = live / path.relative_to(tree)
        content = file.read_bytes()
        # A file of its own: the run tree may share its files with others.
        file.unlink()
        file.write_bytes(content + b"\n")


def link_and_sync(world, rsync, tree, live):
    """The new tree from links to the old one, then only what differs is written: the old tree stays whole."""
    live.rename(world.root / "previous")
    world.run(["cp", "-al", "--", world.root / "previous", live], timeout=900)
    world.run([rsync, "-a", "--delete", f"{tree}/", f"{live}/"], timeout=900)
