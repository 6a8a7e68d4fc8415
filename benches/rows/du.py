"""Disk usage of many releases of one tree that differ in one file."""

from lib import trees
from lib.servers import Sshd
from lib.table import OURS, Row
from lib.world import Unavailable
from rows.push import FRESH, RELEASES, behind_hook, larder_site, shared

HELP = "disk usage of --releases releases of a tree of --du-files files that differ in one file"


def options(parser):
    parser.add_argument("--releases", type=int, default=20, help="number of releases (default: 20)")
    parser.add_argument("--du-files", type=int, default=5000, help="number of files in the tree (default: 5000)")


def used(world, *paths):
    """Returns the disk usage of several directories together, in KiB; a file with many links counts once."""
    there = [path for path in paths if path.exists()]
    out = world.run(["du", "-sk", "--", *there]).stdout
    return sum(int(line.split()[0]) for line in out.splitlines())


def measure(world, args, progress):
    row = Row(f"disk, {args.releases} releases of {args.du_files:,} files: per further release", unit="kB", reference=RELEASES)
    original = world.path("work", "site")
    trees.site(original, args.du_files)
    trees.commit(world, original)
    tree = used(world, original) - used(world, original / ".git")
    row.notes.append(f"the tree itself takes {tree:,} kB; the changed file takes 4 kB, the lower limit")

    def run(label, build, places, count):
        try:
            one = build()
            one.push(patience=600)
            first = used(world, *places(one))
            for index in range(1, args.releases):
                one.push()
                if index % 5 == 0:
                    progress(f"{label}: release {index + 1} of {args.releases}")
            last, kept = used(world, *places(one)), count(one)
            if kept < 2:
                raise Unavailable(f"only {kept} release was kept")
            row.add(label, (last - first) / (kept - 1))
            row.notes.append(f"{label}: {kept} releases kept, {first:,} kB after the first, {last:,} kB at the end")
        except Unavailable as why:
            row.absent[label] = str(why)

    def sshd():
        return shared(world, "sshd", lambda: Sshd(world))

    run(
        OURS,
        lambda: larder_site(world, args, original, "du"),
        lambda one: [one.server.environment(one.project) / name for name in ("deploy", "releases")],
        lambda one: len([entry for entry in (one.server.environment(one.project) / "deploy").iterdir() if entry.is_dir() and not entry.is_symlink()]),
    )
    # The directory of the initial empty state is not a release.
    fresh = world.root / "fresh" / "releases"
    run(
        RELEASES,
        lambda: behind_hook(world, sshd(), "fresh", original, FRESH, RELEASES),
        lambda one: [fresh],
        lambda one: len(list(fresh.iterdir())) - 1,
    )
    return [row]
