"""Creation of a slot from a release, by the size of the tree: times from larder's journal, compared with copies of the tree."""

import shutil

from lib import trees
from lib.table import OURS, Row, rounds
from lib.world import Unavailable
from rows.archive import timed
from rows.push import larder_site

HELP = "time to create a slot for trees of 10, 1,000 and 10,000 files, compared with cp -al and cp -a"
SIZES = (10, 1000, 10_000)
COPY = "cp -a"


def options(parser):
    parser.add_argument("--slot-files", type=int, action="append", help="number of files of the tree; may be repeated (default: 10, 1000 and 10000)")


def makes_slot(step):
    """Returns true if a step of the journal creates the slot, rather than starting the application in it."""
    return "slot" in step and not any(word in step for word in ("boot", "start", "health", "retire", "drain"))


def measure(world, args, progress):
    out = []
    for files in args.slot_files or SIZES:
        row = Row(f"slot, {files:,} files", reference=COPY, target="≤ 10 ms")
        original = world.path("work", f"slot-{files}")
        trees.site(original, files)
        slot = world.root / "slot"
        ways = {
            COPY: lambda: world.run(["cp", "-a", "--", original, slot]),
            "cp -al": lambda: world.run(["cp", "-al", "--", original, slot]),
        }
        one = None
        try:
            repository = world.root / "work" / f"slot-{files}-repository"
            shutil.copytree(original, repository)
            trees.commit(world, repository)
            one = larder_site(world, args, repository, f"slot{files}")
            one.push(patience=600)
        except Unavailable as why:
            one, row.absent[OURS] = None, str(why)
        for index, order in rounds(args.runs, ways):
            for name in order:
                shutil.rmtree(slot, ignore_errors=True)
                timed(world, row, name, ways[name])
            if one:
                try:
                    one.push()
                    steps = one.server.steps(one.project)
                    own = [took for step, took in steps.items() if makes_slot(step)]
                    if not own:
                        raise Unavailable(f"no step of the journal makes a slot: {', '.join(steps)}")
                    row.add(OURS, sum(own))
                except Unavailable as why:
                    one, row.absent[OURS] = None, str(why)
                    row.samples.pop(OURS, None)
            progress(f"{row.title}: round {index + 1} of {args.runs}")
        shutil.rmtree(slot, ignore_errors=True)
        out.append(row)
    return out
