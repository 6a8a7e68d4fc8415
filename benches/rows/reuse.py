"""Reuse of the files of the previous release: larder compares the digest of every file that it links; `cp -al` only links."""

import json
import shutil

from lib import modules, trees
from lib.table import OURS, Row, rounds
from lib.tool import tool
from lib.world import Unavailable
from rows.archive import timed
from rows.sync import release_id

HELP = "time to share all files of an installed tree of 50,000 files with the next release, which reads each of them once"
MAKES_MANY_FILES = True
FILES = 50_000
LINKS = "cp -al"
READS = "cp -al, and a read of every file"


def options(parser):
    parser.add_argument("--reuse-files", type=int, default=FILES, help=f"number of files of the tree (default: {FILES})")


def measure(world, args, progress):
    row = Row(f"reuse, {args.reuse_files:,} files", reference=LINKS)
    row.notes.append("larder's time is that of the spare tree, which is made after the verdict; files are in the page cache")
    tree = world.path("work", "reuse")
    trees.site(tree, args.reuse_files)
    copy = world.root / "copy"
    read = "cp -al -- \"$1\" \"$2\" && find \"$2\" -type f -print0 | xargs -0 cat > /dev/null"
    ways = {
        LINKS: lambda: world.run(["cp", "-al", "--", tree, copy], timeout=900),
        READS: lambda: world.run(["sh", "-c", read, "sh", tree, copy], timeout=900),
    }
    deploy, state = world.path("deploy"), {}

    def clear():
        shutil.rmtree(copy, ignore_errors=True)
        if "name" in state:
            shutil.rmtree(deploy / state["name"], ignore_errors=True)
        state["name"] = release_id()

    try:
        ours = tool(args)
        archive = deploy / "old.tar.zst"
        world.run([ours, "bundle", tree, archive], timeout=900)
        world.run([ours, "accept", archive])
        first = json.loads((deploy / "old.tar.zst.json").read_text())["release"]
        world.run([ours, "unpack", archive, deploy, first], timeout=900)
        ways[OURS] = lambda: world.run([ours, "unpack", archive, deploy, state["name"], archive, first], timeout=900)
    except Unavailable as why:
        row.absent[OURS] = str(why)
    for index, order in rounds(min(args.runs, 5), ways):
        for name in order:
            clear()
            modules.settle(world)
            timed(world, row, name, ways[name])
        progress(f"{row.title}: round {index + 1} of {min(args.runs, 5)}")
    clear()
    shutil.rmtree(deploy, ignore_errors=True)
    return [row]
