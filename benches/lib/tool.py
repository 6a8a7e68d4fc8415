"""larder's own bundling, unpacking and syncing without a server around them: the example `tool` of this package."""

import os
import subprocess
from pathlib import Path

from lib.world import Unavailable

ROOT = Path(__file__).resolve().parents[2]


def tool(args):
    """The tool's path. It is built here, from `benches/tool.rs`; its first argument names the function."""
    if args.without_larder:
        raise Unavailable("left out by --without-larder")
    if args.tool is not None:
        return args.tool.resolve()
    done = subprocess.run(
        ["cargo", "build", "--profile", "dist", "--locked", "--example", "tool"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Unavailable("the example `tool` does not build: " + " ".join(done.stderr.splitlines()[-2:]))
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "dist" / "examples" / "tool"
