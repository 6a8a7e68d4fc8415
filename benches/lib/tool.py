"""larder's bundling, unpacking and exporting without a server: the example `tool` of this package."""

import os
import subprocess
from pathlib import Path

from lib.world import Unavailable

# The variable that the keeper gives to workers. Without it, the program starts itself again with the variable, which takes about 2 ms of the processor.
WORKER = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

ROOT = Path(__file__).resolve().parents[2]


def tool(args):
    """Builds `benches/tool.rs` and returns the path of the program, whose first argument names a function."""
    if args.without_larder:
        raise Unavailable("excluded by --without-larder")
    if args.tool is not None:
        return args.tool.resolve()
    done = subprocess.run(
        ["cargo", "build", "--profile", "dist", "--locked", "--example", "tool"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Unavailable("cannot build the example `tool`: " + " ".join(done.stderr.splitlines()[-2:]))
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "dist" / "examples" / "tool"
