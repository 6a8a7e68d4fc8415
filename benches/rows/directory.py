"""Strict sync of a directory of an application to a release, as with the strategy in-place."""

import random
import shutil

from lib import modules, trees
from lib.table import OURS, Row, rounds
from lib.tool import WORKER, tool
from lib.world import Unavailable, need
from rows.archive import timed

HELP = "time of a strict sync of a directory of 50,000 files to a release in which 1 % of the files differ, compared with rsync"
MAKES_MANY_FILES = True
FILES = 50_000
CHANGED = 100  # One file of so many differs between the two releases.
RSYNC = "rsync -a --delete"
DURABLE = "rsync -a --delete, and a sync of the file system"


def options(parser):
    parser.add_argument("--directory-files", type=int, default=FILES, help=f"number of files (default: {FILES})")


def two_releases(world, args):
    """Creates the installed trees of two releases. Of each hundred files, one differs; a few more are only in one release."""
    old, new = world.path("old"), world.root / "new"
    trees.fill(old, args.directory_files, random.Random(1), ".txt")
    world.run(["cp", "-a", "--", old, new], timeout=900)
    files = sorted(path for path in new.rglob("*") if path.is_file())
    changed = random.Random(2).sample(files, len(files) // CHANGED)
    for number, path in enumerate(changed):
        if number % 20 == 0:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[::-1] + b"\n")
    for number in range(len(changed) // 20):
        (new / f"added-{number}.txt").write_text("added\n")
    return [old, new], len(changed)


def measure(world, args, progress):
    row = Row(f"directory, {args.directory_files:,} files, 1 % changed", reference=RSYNC, target="≤ 0.35x")
    rsync = need("rsync")
    progress(f"{row.title}: the trees are written")
    releases, changed = two_releases(world, args)
    row.notes.append(f"{changed:,} files differ; the releases alternate; the sync of larder includes a sync of the file system")
    targets = {name: world.root / place for name, place in ((RSYNC, "rsync"), (DURABLE, "durable"), (OURS, "ours"))}
    archives = [world.root / f"{release.name}.tar.zst" for release in releases]

    def by_rsync(name, at):
        world.run([rsync, "-a", "--delete", f"{releases[at]}/", f"{targets[name]}/"], timeout=900)

    def durably(at):
        by_rsync(DURABLE, at)
        world.run(["sync", "--file-system", targets[DURABLE]])

    ways = {RSYNC: lambda at: by_rsync(RSYNC, at), DURABLE: durably}
    try:
        ours = tool(args)
        for release, archive in zip(releases, archives):
            world.run([ours, "bundle", release, archive], timeout=900)
            world.run([ours, "accept", archive])
        ways[OURS] = lambda at: world.run(
            [ours, "directory", archives[at], releases[at], targets[OURS], world.root / "record"], env=WORKER, timeout=900
        )
    except Unavailable as why:
        row.absent[OURS] = str(why)
    for name, act in ways.items():
        targets[name].mkdir()
        act(0)
    for index, order in rounds(args.runs, ways):
        at = (index + 1) % 2
        for name in order:
            modules.settle(world)
            timed(world, row, name, lambda act=ways[name], at=at: act(at))
        progress(f"{row.title}: round {index + 1} of {args.runs}")
        for name in ways:
            same = world.run(["diff", "-rq", "--no-dereference", "--", releases[at], targets[name]], check=False, timeout=900)
            if same.returncode != 0 and name not in row.absent:
                row.notes.append(f"{name}: the directory is DIFFERENT after round {index + 1}")
    for target in targets.values():
        shutil.rmtree(target, ignore_errors=True)
    return [row]
