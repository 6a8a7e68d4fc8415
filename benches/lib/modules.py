"""The large tree of the rows archive and sync: real packages if a registry answers, else synthetic files."""

import random
import shutil

from lib import trees
from lib.world import find

# Frameworks and tools of front-end projects, which have many files.
NODE = (
    "typescript", "webpack", "eslint", "react", "react-dom", "next", "vite", "lodash", "rxjs", "date-fns", "core-js", "express", "jest",
    "@babel/core", "@babel/preset-env", "@mui/material",
)
# Packages of a Python application, a third of the bytes. All packages have about 51,000 files with 750 MB.
PYTHON = ("django", "flask", "requests", "sqlalchemy", "numpy", "pandas", "matplotlib", "sympy")


def options(parser):
    parser.add_argument("--tree", metavar="npm|synthetic|DIR", default="npm", help="content of the tree (default: npm, or synthetic if that fails)")
    parser.add_argument("--tree-files", type=int, default=20_000, help="number of files of a synthetic tree (default: 20,000)")


def large_tree(args, progress):
    """Returns the directory of the tree and a description. The tree is created once for all rows, which must not write to it."""
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
    """Installs the packages without their scripts. Returns true on success, also if only the Python packages fail."""
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
        progress(f"tree: pip failed: {(made.stderr.strip().splitlines() or ['?'])[-1][:200]}")
        shutil.rmtree(environment, ignore_errors=True)
    return True


def settle(world):
    """Writes dirty pages to the disk, so that the writes of one contestant do not delay the next."""
    world.run(["sync"])
