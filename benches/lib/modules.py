"""The large tree of the archive and sync rows: real packages where a registry answers, else a made one."""

import random
import shutil

from lib import trees
from lib.world import find

# Frameworks and tools with many files, as a front-end project has them.
PACKAGES = (
    "typescript", "webpack", "eslint", "react", "react-dom", "next", "vite", "lodash", "rxjs", "date-fns", "core-js", "express", "jest",
    "@babel/core", "@babel/preset-env", "@mui/material",
)


def options(parser):
    parser.add_argument("--tree", metavar="npm|synthetic|DIR", default="npm", help="what the tree is (default: npm, synthetic if that fails)")
    parser.add_argument("--tree-files", type=int, default=20_000, help="files of a synthetic tree (default: 20,000)")


def large_tree(args, progress):
    """A directory of its own with the tree in it, and a line that says what it is. Made once for all rows; nobody writes to it."""
    world = args.store()
    if hasattr(world, "large_tree"):
        return world.large_tree
    target = world.root / "tree"
    kind = args.tree
    if kind not in ("npm", "synthetic"):
        shutil.copytree(kind, target, symlinks=True)
    elif kind == "npm" and not packages(world, target, progress):
        kind = "synthetic (npm gave nothing)"
    if not target.exists():
        target.mkdir()
        trees.fill(target, args.tree_files, random.Random(1), ".txt")
    files = sum(1 for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    kilobytes = int(world.run(["du", "-sk", "--apparent-size", "--", target]).stdout.split()[0])
    world.large_tree = target, f"{kind}: {files:,} files, {kilobytes / 1024:,.0f} MB"
    progress(f"tree: {world.large_tree[1]}")
    return world.large_tree


def packages(world, target, progress):
    """Installs the packages without running any of their scripts; whether that worked."""
    if find("npm") is None:
        return False
    progress("tree: npm install")
    target.mkdir()
    (target / "package.json").write_text('{"name": "tree", "version": "1.0.0", "private": true}\n')
    done = world.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--legacy-peer-deps", *PACKAGES],
        cwd=target, check=False, timeout=900,
    )
    if done.returncode != 0:
        progress(f"tree: npm failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
        shutil.rmtree(target, ignore_errors=True)
        return False
    return True


def settle(world):
    """Writes out what is dirty, so that one contestant's writing is not another's waiting."""
    world.run(["sync"])
