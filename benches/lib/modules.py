"""The large tree of the archive and sync rows: real packages where a registry answers, else a made one."""

import random
import shutil

from lib import trees
from lib.world import find

# Frameworks and tools with many files, as a front-end project has them.
NODE = (
    "typescript", "webpack", "eslint", "react", "react-dom", "next", "vite", "lodash", "rxjs", "date-fns", "core-js", "express", "jest",
    "@babel/core", "@babel/preset-env", "@mui/material",
)
# Beside them what an application in Python has, a third of the bytes: with the above about 51,000 files and 750 MB.
PYTHON = ("django", "flask", "requests", "sqlalchemy", "numpy", "pandas", "matplotlib", "sympy")


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
    """Installs the packages without running any of their scripts; whether that worked. Without the Python ones if only they fail."""
    if find("npm") is None:
        return False
    progress("tree: npm install")
    target.mkdir()
    (target / "package.json").write_text('{"name": "tree", "version": "1.0.0", "private": true}\n')
    done = world.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--legacy-peer-deps", *NODE],
        cwd=target, check=False, timeout=900,
    )
    if done.returncode != 0:
        progress(f"tree: npm failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
        shutil.rmtree(target, ignore_errors=True)
        return False
    progress("tree: pip install")
    environment = target / "venv"
    made = world.run(["python3", "-m", "venv", "--copies", environment], check=False, timeout=300)
    if made.returncode == 0:
        pip = [environment / "bin/pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--only-binary=:all:"]
        made = world.run([*pip, *PYTHON], check=False, timeout=900)
    if made.returncode != 0:
        progress(f"tree: no Python packages: {(made.stderr.strip().splitlines() or ['?'])[-1][:200]}")
        shutil.rmtree(environment, ignore_errors=True)
    return True


def settle(world):
    """Writes out what is dirty, so that one contestant's writing is not another's waiting."""
    world.run(["sync"])
