"""Restore points: a second copy of a large directory in which few files changed, and a restore of the copy."""

import os
import random
import shutil

from lib import modules
from lib.table import OURS, Row, rounds
from lib.tool import WORKER, tool
from lib.world import Unavailable, need
from rows.archive import timed

HELP = "time and bytes of a restore point of 20,000 files (2 GB) with 1 % changed, and of a restore, compared with rsync, restic and borg"
FILES = 20_000
MEGABYTES = 2048
CHANGED = 100  # One file of so many changes between two rounds.
RSYNC = "rsync --link-dest"
RESTIC = "restic"
BORG = "borg"
FILE_SYSTEMS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}
CLONING = ("xfs", "btrfs")  # File systems with reflinks.
PASSWORD = "bench"


def options(parser):
    parser.add_argument("--backup-files", type=int, default=FILES, help=f"number of files (default: {FILES})")
    parser.add_argument("--backup-mb", type=int, default=MEGABYTES, help=f"size of all files together, in MB (default: {MEGABYTES})")
    parser.add_argument(
        "--backup-fs", action="append", choices=sorted(FILE_SYSTEMS),
        help="file system to measure, on a loop device (as root); may be repeated (default: the file system of --dir)",
    )


class Larder:
    """The functions of larder's dump and restore workers."""

    def __init__(self, world, args, place):
        self.world, self.program, self.store = world, tool(args), place / "points"
        self.last, self.bytes = None, lambda: occupied(self.store)
        self.store.mkdir(mode=0o700)

    def take(self, data, name):
        self.world.run([self.program, "capture", self.store, name, data.parent, *([self.last] if self.last else [])], env=WORKER, timeout=900)
        self.last = name

    def restore(self, parent):
        self.world.run([self.program, "restore", self.store, self.last, parent, "copy"], env=WORKER, timeout=900)
        return parent / "copy" / "data"


class Rsync:
    """A directory for each copy; unchanged files are hard links to the previous copy."""

    def __init__(self, world, _args, place):
        self.world, self.store, self.last = world, place / "rsync", None
        self.bytes = lambda: occupied(self.store)
        self.store.mkdir()

    def take(self, data, name):
        link = [f"--link-dest={self.store / self.last}"] if self.last else []
        self.world.run(["rsync", "-a", "-H", "-A", "-X", *link, f"{data}/", self.store / name], timeout=900)
        # larder syncs before it returns, so rsync has to, too.
        self.world.run(["sync", "--file-system", self.store])
        self.last = name

    def restore(self, parent):
        self.world.run(["rsync", "-a", "-H", "-A", "-X", f"{self.store / self.last}/", parent / "copy"], timeout=900)
        self.world.run(["sync", "--file-system", parent])
        return parent / "copy"


class Restic:
    """A repository of restic, without compression: the content is random."""

    def __init__(self, world, _args, place):
        self.world, self.store = world, place / "restic"
        self.bytes = lambda: occupied(self.store)
        self.env = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": str(self.store), "RESTIC_CACHE_DIR": str(place / "restic-cache")}
        world.run([need("restic"), "init", "--quiet"], env=self.env)

    def take(self, data, _name):
        self.world.run(["restic", "backup", "--quiet", data], env=self.env, timeout=900)
        self.world.run(["sync", "--file-system", self.store])

    def restore(self, parent):
        self.world.run(["restic", "restore", "latest", "--quiet", "--target", parent / "copy"], env=self.env, timeout=900)
        self.world.run(["sync", "--file-system", parent])
        return next(path for path in (parent / "copy").rglob("data") if path.is_dir())


class Borg:
    """An unencrypted repository of borg, without compression."""

    def __init__(self, world, _args, place):
        self.world, self.store, self.last = world, place / "borg", None
        self.bytes = lambda: occupied(self.store)
        self.env = {
            "BORG_REPO": str(self.store), "BORG_BASE_DIR": str(place / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        world.run([need("borg", "borgbackup"), "init", "--encryption=none"], env=self.env)

    def take(self, data, name):
        self.world.run(["borg", "create", "--compression=none", f"::{name}", "data"], env=self.env, cwd=data.parent, timeout=900)
        self.world.run(["sync", "--file-system", self.store])
        self.last = name

    def restore(self, parent):
        (parent / "copy").mkdir()
        self.world.run(["borg", "extract", f"::{self.last}"], env=self.env, cwd=parent / "copy", timeout=900)
        self.world.run(["sync", "--file-system", parent])
        return parent / "copy" / "data"


CONTESTANTS = {OURS: Larder, RSYNC: Rsync, RESTIC: Restic, BORG: Borg}


def occupied(directory):
    """Returns the allocated size of a directory in kB. Files with several names count once."""
    seen, total = set(), 0
    for place, directories, names in os.walk(directory):
        for name in directories + names:
            found = os.lstat(os.path.join(place, name))
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks
    return total / 2


def content(rng, index, args):
    """Returns the content of a file; the sizes differ by a factor of up to ten around their mean."""
    mean = (args.backup_mb << 20) // args.backup_files
    return rng.randbytes(max(1, mean * (2 + index % 17) // 10))


def name_of(data, index):
    return data / f"{index // 500:03d}" / f"{index:06d}.bin"


def create(data, args, rng):
    for index in range(args.backup_files):
        path = name_of(data, index)
        if index % 500 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(content(rng, index, args))


def change(data, args, rng, index):
    """Writes new content to one of a hundred files. Returns the number of kB that were written."""
    written = 0
    for one in range(index % CHANGED, args.backup_files, CHANGED):
        fresh = content(rng, one, args)
        name_of(data, one).write_bytes(fresh)
        written += len(fresh)
    return written / 1024


def mounted(world, kind):
    """Creates a file system on a loop device and mounts it. Returns its directory."""
    if os.geteuid() != 0:
        raise Unavailable("a loop device needs root")
    command, *flags = FILE_SYSTEMS[kind]
    image, place = world.root / f"{kind}.img", world.path(kind)
    with open(image, "wb") as file:
        file.truncate(40 << 30)
    world.run([need(command, "xfsprogs, btrfs-progs or e2fsprogs"), *flags, image])
    world.run(["mount", "-o", "loop", image, place])
    return place


def measure(world, args, progress):
    rows = []
    for kind in args.backup_fs or [None]:
        title = f"backup, {args.backup_files:,} files" + (f", {kind}" if kind else "")
        try:
            place = mounted(world, kind) if kind else world.path("backup")
        except Unavailable as why:
            rows.append(Row(title, absent={"all": str(why)}))
            continue
        rows += one_place(world, args, progress, title, place, "≤ 0.10x" if kind in CLONING else "≤ 1.00x")
        if kind:
            world.run(["umount", place])
            (world.root / f"{kind}.img").unlink()
    return rows


def one_place(world, args, progress, title, place, target):
    taken = Row(f"{title}: take", reference=RSYNC, target=target)
    stored = Row(f"{title}: bytes stored", unit="kB", reference="changed bytes", target="≤ 1.05x")
    back = Row(f"{title}: restore", reference=RSYNC, target="≤ 1.00x")
    data, rng = place / "live" / "data", random.Random(1)
    progress(f"{title}: {args.backup_mb} MB are written")
    create(data, args, rng)
    contestants = {}
    for name, make in CONTESTANTS.items():
        try:
            contestants[name] = make(world, args, place)
            contestants[name].take(data, "first")
        except Unavailable as why:
            for row in (taken, stored, back):
                row.absent[name] = str(why)
            contestants.pop(name, None)
    for index, order in rounds(args.runs, contestants):
        changed = change(data, args, rng, index)
        stored.add("changed bytes", changed)
        for name in order:
            one = contestants[name]
            before = one.bytes()
            modules.settle(world)
            timed(world, taken, name, lambda one=one, index=index: one.take(data, f"round{index}"))
            stored.add(name, one.bytes() - before)
        progress(f"{taken.title}: round {index + 1} of {args.runs}")
    for index, order in rounds(min(args.runs, 3), contestants):
        for name in order:
            out, one, where = place / "out", contestants[name], {}
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            modules.settle(world)
            timed(world, back, name, lambda one=one, out=out, where=where: where.update(copy=one.restore(out)))
            if "copy" in where and index == 0:
                same = world.run(["diff", "-rq", "--no-dereference", "--", data, where["copy"]], check=False).returncode == 0
                back.notes.append(f"{name}: the restored files are " + ("equal" if same else "DIFFERENT"))
        progress(f"{back.title}: round {index + 1} of {min(args.runs, 3)}")
    shutil.rmtree(place / "out", ignore_errors=True)
    taken.notes.append("page cache warm; the times include a sync of the file system")
    return [taken, stored, back]
