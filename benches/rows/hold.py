"""Holds: the time for which requests wait during an upgrade, by the method of the restore point, beside larder's estimate."""

import json
import os
import shutil
import time

from lib.servers import Larder
from lib.table import OURS, Row
from lib.world import Unavailable, free_port
from rows.backup import FILE_SYSTEMS, mounted

HELP = "seconds of a hold with PostgreSQL (copy on the server, dump), SQLite and 20,000 files, with the estimate beside the measured time"
CASES = ("postgres-copy", "postgres-dump", "sqlite", "files")
NOBODY = 65534
FILES = 20_000
PUSHES = 3

# Fills the data as the user of the application. Random bytes cannot be compressed.
FILL = (
    "import os, sqlite3, sys\n"
    "kind, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
    "if kind == 'sqlite':\n"
    "    c = sqlite3.connect('store/app.sqlite3')\n"
    "    c.execute('pragma journal_mode=wal')\n"
    "    c.execute('create table t (id integer primary key, b blob)')\n"
    "    for n in range(count):\n"
    "        c.execute('insert into t(b) values (?)', (os.urandom(size),))\n"
    "    c.commit()\n"
    "else:\n"
    "    for n in range(count):\n"
    "        name = 'store/%03d/%06d.bin' % (n // 500, n)\n"
    "        os.makedirs(os.path.dirname(name), exist_ok=True)\n"
    "        open(name, 'wb').write(os.urandom(size))\n"
)


def options(parser):
    parser.add_argument("--hold-case", action="append", choices=CASES, help="case to measure; may be repeated (default: all)")
    parser.add_argument("--hold-mb", type=int, default=100, help="size of each database, in MB (default: 100)")
    parser.add_argument("--hold-files", type=int, default=FILES, help=f"number of files of 10 kB (default: {FILES})")
    parser.add_argument(
        "--hold-fs", action="append", choices=sorted(FILE_SYSTEMS),
        help="file system to measure, on a loop device (as root); may be repeated (default: the file system of --dir)",
    )


class Postgres:
    """A PostgreSQL server below a directory, with the role and the database `shop`."""

    def __init__(self, world, place):
        self.world, self.port = world, free_port()
        found = sorted((p for p in os.scandir("/usr/lib/postgresql") if p.name.isdigit()), key=lambda p: int(p.name)) \
            if os.path.isdir("/usr/lib/postgresql") else []
        if not found:
            raise Unavailable("postgres is missing (Debian: postgresql)")
        self.bin = f"{found[-1].path}/bin"
        self.data = data = place / f"pg-{self.port}"
        data.mkdir(mode=0o700)
        self.drop = []
        if os.geteuid() == 0:
            os.chown(data, NOBODY, NOBODY)
            self.drop = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]
        world.run([*self.drop, f"{self.bin}/initdb", "--username=postgres", "--auth=trust", "-D", data])
        (data / "pg_hba.conf").write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_wal_size=1GB", "-c", "wal_level=minimal", "-c", "max_wal_senders=0"]
        self.process = world.spawn([*self.drop, f"{self.bin}/postgres", "-D", data, "-p", self.port, *options], f"postgres-{self.port}")
        world.wait_for_port(self.port, self.process)
        end = time.monotonic() + 60
        while self.ask("select 1").returncode != 0:  # The server listens before it accepts sessions.
            if time.monotonic() > end:
                raise Unavailable("PostgreSQL does not accept sessions")
            time.sleep(0.05)
        self.sql("postgres", "create role shop login createdb password 'bench'")
        self.sql("postgres", "create database shop owner shop")
        self.url = f"postgres://shop:bench@127.0.0.1:{self.port}/shop"

    def ask(self, statement, database="postgres", check=False):
        command = [f"{self.bin}/psql", "-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-d", database]
        return self.world.run([*command, "-c", statement], check=check, timeout=3600)

    def sql(self, database, statement):
        return self.ask(statement, database, check=True).stdout.strip()

    def fill(self, megabytes):
        """Writes rows of 960 hexadecimal digits, which PostgreSQL neither compresses nor stores in a second table. The rows of databases of
        more than 1 GB are repetitions, so that their dumps need little disk space."""
        body = "repeat(md5(g::text), 30)" if megabytes > 1000 else "(select string_agg(md5(g::text || n::text), '') from generate_series(1, 30) n)"
        self.sql("shop", f"create table t as select g as id, {body} as body from generate_series(1, {megabytes * 1000}) g")
        self.sql("shop", "alter table t owner to shop")
        self.sql("shop", "checkpoint")

    def stop(self):
        self.world.stop(self.process)


class Case:
    """A project with data, and pushes whose upgrade changes nothing."""

    def __init__(self, world, server, name, recipe):
        self.world, self.server, self.name, self.recipe = world, server, name, recipe
        self.url = server.create(name)
        self.work = world.path("work", f"{server.root.parent.name}-{name}")
        self.world.git("init", "--quiet", cwd=self.work)
        (self.work / "Procfile").write_text("web: python3 -m http.server --bind 127.0.0.1 $PORT\n")
        self.count = 0
        self.push("")

    def push(self, upgrade):
        self.count += 1
        (self.work / "larder.yml").write_text(f"{self.recipe}hold: 5m\n{upgrade}")
        (self.work / "index.html").write_text(f"version {self.count}\n")
        self.world.git("add", "--all", cwd=self.work)
        self.world.git("commit", "--quiet", "-m", f"version {self.count}", cwd=self.work)
        return self.world.git("push", "--quiet", self.url, "HEAD:main", cwd=self.work, timeout=3600)

    def fill(self, *words):
        binary, root = self.server.binary, self.server.root
        self.world.run([binary, "--root", root, "run", self.name, "--", "python3", "-c", FILL, *words], timeout=1800)

    def hold(self):
        """Pushes an upgrade with a hold, and returns the record of the hold."""
        self.push("upgrade: {run: \"true\", safety: hold}\n")
        record = self.server.environment(self.name) / "durations.json"
        return json.loads(record.read_text())["holds"][-1]


def measure(world, args, progress):
    rows = []
    for kind in args.hold_fs or [None]:
        try:
            place = mounted(world, kind) if kind else world.path("hold")
            name = f"{kind or 'hold'}/larder"
            world.path("logs", kind or "hold")
            server = Larder(world, args.larder, name)
        except Unavailable as why:
            rows.append(Row(f"hold, {kind}", absent={"all": str(why)}))
            continue
        for case in args.hold_case or CASES:
            try:
                rows += one(world, args, progress, kind, place, server, case)
            except Unavailable as why:
                progress(str(why))
                rows.append(Row(f"hold, {case}" + (f", {kind}" if kind else ""), absent={"all": str(why)}))
        world.stop(server.process)
        if kind:
            world.run(["umount", "--lazy", place])
            (world.root / f"{kind}.img").unlink()
    return rows


def one(world, args, progress, kind, place, server, case):
    postgres, recipe = None, "data: [store/]\n"
    size = f"{args.hold_files:,} files" if case == "files" else f"{args.hold_mb:,} MB"
    title = f"hold, {case}, {size}" + (f", {kind}" if kind else "")
    progress(f"{title}: the data is written")
    if case.startswith("postgres"):
        postgres = Postgres(world, place)
        postgres.fill(args.hold_mb)
        if case == "postgres-dump":
            postgres.sql("postgres", "alter role shop nocreatedb")
        recipe = f"env: {{DATABASE_URL: \"{postgres.url}\"}}\n"
    elif case == "sqlite":
        recipe = "data: [store/]\ndatabases: {main: {path: store/app.sqlite3}}\n"
    project = case.replace("-", "")
    shop = Case(world, server, project, "data: [store/]\n" if case == "sqlite" else recipe)
    if case == "files":
        shop.fill("files", args.hold_files, 10_000)
    elif case == "sqlite":
        shop.fill("sqlite", args.hold_mb, 1_000_000)
        shop.recipe = recipe
        shop.push("")
    held, part = Row(f"{title}: requests wait", reference="estimate"), Row(f"{title}: restore point", reference="estimate")
    for index in range(min(args.runs, PUSHES)):
        record = shop.hold()
        held.add(f"{OURS}, measured", record["held_ms"])
        held.add("estimate", record["estimate_ms"])
        wanted = "files" if case == "files" else "main"
        method = next(method for method in record["methods"] if method["what"] == wanted)
        part.add(f"{OURS}, {method['method']}", method["took_ms"])
        part.add("estimate", method["estimate_ms"])
        source = f"measured on {method['measured']}" if "measured" in method else "assumed rate"
        part.notes.append(f"push {index + 1}: {method['method']} of {method['bytes']:,} bytes took {method['took_ms']} ms, "
                          f"estimate {method['estimate_ms']} ms ({source}); requests waited for {record['held_ms']} ms, "
                          f"estimate {record['estimate_ms']} ms")
        progress(f"{title}: push {index + 1} of {min(args.runs, PUSHES)}")
    if postgres:
        postgres.stop()
        shutil.rmtree(postgres.data, ignore_errors=True)
    return [held, part]
