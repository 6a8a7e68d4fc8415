"""Bundling and unpacking of a large tree: larder, tar with zstd, bsdtar."""

import os
import shutil
import time

from lib import modules
from lib.table import OURS, Row, rounds
from lib.tool import tool
from lib.world import Unavailable, find

HELP = "time to bundle and unpack a large tree (--tree), compared with tar and zstd, and with bsdtar"
TAR = "tar | zstd -T0 -3"
UNTAR = "tar --zstd -x"
MAKES_MANY_FILES = True


def options(parser):
    modules.options(parser)


def measure(world, args, progress):
    tree, what = modules.large_tree(args, progress)
    bundle = Row("bundle", reference=TAR, target="≤ 0.80x")
    size = Row("bundle: size", unit="kB", reference=TAR, target="≤ 1.02x")
    unpack = Row("unpack (larder checks every digest and syncs to the disk)", reference=UNTAR, target="≤ 0.50x")
    bundle.notes.append(f"tree: {what}; page cache warm")
    archives = world.path("archives")
    out = world.path("out")

    def shell(script):
        # The paths need no quoting. With pipefail, a failing part of a pipeline is no result.
        return lambda: world.run(["bash", "-c", f"set -o pipefail; {script}"], timeout=900)

    bundlers = {
        TAR: (archives / "tar.zst", shell(f"tar -C {tree} -cf - . | zstd -q -T0 -3 -f -o {archives}/tar.zst")),
        "tar | zstd -T0 -1": (archives / "one.zst", shell(f"tar -C {tree} -cf - . | zstd -q -T0 -1 -f -o {archives}/one.zst")),
        "read every file (limit)": (None, lambda: read_all(tree)),
    }
    unpackers = {
        UNTAR: shell(f"tar --zstd -xf {archives}/tar.zst -C {out}"),
        "zstd decompression alone (limit)": shell(f"zstd -q -d -c {archives}/tar.zst >/dev/null"),
    }
    if find("bsdtar"):
        bundlers["bsdtar --zstd"] = (archives / "bsd.zst", shell(f"bsdtar -C {tree} --zstd -cf {archives}/bsd.zst ."))
        unpackers["bsdtar -x"] = shell(f"bsdtar -xf {archives}/tar.zst -C {out}")
    else:
        bundle.absent["bsdtar"] = unpack.absent["bsdtar"] = "bsdtar is missing (Debian: libarchive-tools)"
    try:
        ours = tool(args)
        bundlers[OURS] = (archives / "ours.zst", lambda: world.run([ours, "bundle", tree, archives / "ours.zst"], timeout=900))
        unpackers[OURS] = lambda: world.run([ours, "unpack", archives / "ours.zst", out, "tree"], timeout=900)
    except Unavailable as why:
        for row in (bundle, size, unpack):
            row.absent[OURS] = str(why)
    read_all(tree)
    for index, order in rounds(args.runs, bundlers):
        for name in order:
            archive, act = bundlers[name]
            # An archive is a new file: freeing the pages of an old one would take time that belongs to no contestant.
            if archive is not None:
                archive.unlink(missing_ok=True)
            timed(world, bundle, name, act)
            if archive is not None and archive.exists():
                size.add(name, archive.stat().st_size / 1024)
        progress(f"bundle: round {index + 1} of {args.runs}")
    if OURS in bundle.samples:
        # Plain tar must open the archive of larder and give the same tree.
        shell(f"tar --zstd -xf {archives}/ours.zst -C {out}")()
        check = world.run(["diff", "-rq", "--no-dereference", "--", tree, out], check=False)
        bundle.notes.append("larder's archive, opened by plain tar: " + ("the same tree" if check.returncode == 0 else f"DIFFERS: {check.stdout[:300]}"))
        empty(out)
    for index, order in rounds(args.runs, unpackers):
        for name in order:
            empty(out)
            modules.settle(world)
            timed(world, unpack, name, unpackers[name])
        progress(f"unpack: round {index + 1} of {args.runs}")
    return [bundle, size, unpack]


def timed(world, row, name, act):
    """Measures one contestant once. A contestant that fails is excluded from further rounds."""
    if name in row.absent:
        return
    start = time.monotonic()
    try:
        act()
    except Unavailable as why:
        row.samples.pop(name, None)
        row.absent[name] = str(why)
        return
    row.add(name, (time.monotonic() - start) * 1000)


def empty(directory):
    """Removes the content of a directory."""
    shutil.rmtree(directory)
    directory.mkdir()


def read_all(tree):
    """Reads every file once in one thread: the lower limit for bundling with one thread."""
    for place, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 20):
                        pass
