"""Trees to deploy: generated from a seed, and the same for every contestant."""

import random

WORDS = (
    "cellar shelf jar plate kettle ladle whisk oven flour butter thyme basil stock broth simmer roast knead fold rest serve "
    "bowl spoon table cloth apron recipe season salt pepper olive onion garlic carrot leek celery barley rice bean lentil"
).split()


def text(rng, size):
    """Returns about `size` bytes of lines that compress like prose or code."""
    lines, length = [], 0
    while length < size:
        line = " ".join(rng.choices(WORDS, k=rng.randint(4, 12))) + f" {rng.randrange(1 << 32):08x}"
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines) + "\n"


def size_of_file(rng):
    """Returns a file size as in source trees: most are small, a few are large."""
    return int(min(rng.lognormvariate(7.3, 1.3), 400_000))


def page(marker):
    """Returns the page that names the served version. One line differs between versions."""
    return f"<!doctype html>\n<title>bench</title>\n<h1>A page</h1>\n<p>version {marker}</p>\n<p>end</p>\n"


def site(directory, files, seed=1):
    """Creates a static site with `files` files, including `index.html`."""
    rng = random.Random(seed)
    small = {
        "style.css": "body { font: 1em/1.5 serif }\n",
        "script.js": "document.title += '!'\n",
        "about.html": "<!doctype html>\n<title>about</title>\n<p>About.</p>\n",
        "robots.txt": "User-agent: *\n",
    }
    (directory / "index.html").write_text(page("first"))
    for name, content in list(small.items())[: max(0, files - 1)]:
        (directory / name).write_text(content)
    fill(directory / "pages", files - 5, rng, ".html")


def fill(directory, files, rng, suffix):
    """Creates `files` files, fifty per directory, two levels deep."""
    for index in range(files):
        place = directory / f"{index // 1000:02d}" / f"{index % 1000 // 50:02d}"
        if index % 50 == 0:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:05d}{suffix}").write_text(text(rng, size_of_file(rng)))


def wsgi(directory):
    """Creates a WSGI application of five files without dependencies."""
    (directory / "version.txt").write_text("version first\n")
    (directory / "requirements.txt").write_text("# none\n")
    (directory / "wsgi.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from wsgiref.simple_server import WSGIRequestHandler, make_server\n\n"
        "VERSION = Path(__file__).with_name('version.txt').read_bytes()\n\n\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(VERSION)))])\n"
        "    return [VERSION]\n\n\n"
        "class Quiet(WSGIRequestHandler):\n"
        "    def log_message(self, *arguments):\n"
        "        pass\n\n\n"
        "if __name__ == '__main__':\n"
        "    make_server('127.0.0.1', int(os.environ['PORT']), application, handler_class=Quiet).serve_forever()\n"
    )
    (directory / "README").write_text("Says its version.\n")


def commit(world, directory, message="first"):
    """Commits the tree; creates the repository if necessary."""
    if not (directory / ".git").exists():
        world.git("init", "--quiet", cwd=directory)
    world.git("add", "--all", cwd=directory)
    world.git("commit", "--quiet", "--message", message, cwd=directory)
