"""The servers that are measured: larder and the tools that it is compared with."""

import getpass
import json
import os
import pwd
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path

from lib.world import Unavailable, find, free_port, need, tail


class Sshd:
    """Debian's sshd on a loopback port with its own keys; clients log in as the user who runs the benchmarks."""

    def __init__(self, world, name="sshd", home=None, authorized_keys=None, python=None):
        sshd = need("sshd", "openssh-server")
        base = world.path(name)
        self.world, self.port = world, free_port()
        self.user = pwd.getpwuid(os.getuid()).pw_name
        host_key = base / "host_key"
        world.run([need("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", host_key])
        if authorized_keys is None:
            authorized_keys = base / "authorized_keys"
            authorized_keys.write_text(world.public_key + "\n")
        # Without this, the login shell and git would read the files of the user.
        home = home or world.path(name, "home")
        (home / ".gitconfig").write_text("[gc]\n\tauto = 0\n[receive]\n\tautogc = false\n[safe]\n\tdirectory = *\n")
        environment = f"HOME={home} GIT_CONFIG_NOSYSTEM=1"
        if python:
            environment += f" PATH={python}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
        (base / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {host_key}\nPidFile none\n"
            f"AuthorizedKeysFile {authorized_keys}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nPermitUserRC no\n"
            f"UseDNS no\nMaxStartups 100\nMaxSessions 500\nSetEnv {environment}\n"
        )
        if os.getuid() == 0:
            # The directory for the unprivileged process of sshd; on Debian, its service creates it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = world.spawn([sshd, "-D", "-e", "-f", base / "config"], name)
        world.wait_for_port(self.port, self.process)

    def url(self, path):
        """Returns the address of a repository."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"

    @property
    def pid(self):
        """Returns the listening process."""
        return self.process.pid


def serve_directory(world, root, name):
    """A static file server on a loopback port: nginx if installed, else Python's. Follows links."""
    port = free_port()
    nginx = find("nginx")
    if nginx is None:
        process = world.spawn(["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", root, port], f"http-{name}")
    else:
        config = nginx_config(world, name, f"server {{ listen 127.0.0.1:{port}; root {root}; }}")
        process = world.spawn([nginx, "-c", config, "-e", "stderr"], f"nginx-{name}")
    world.wait_for_port(port, process)
    return port


def nginx_config(world, name, body, workers=1):
    """Writes a configuration for an nginx that uses only files of the world."""
    base = world.path("nginx", name)
    temporary = "".join(
        f"{kind}_temp_path {base}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root root;\n" if os.getuid() == 0 else ""
    config = base / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\nworker_processes {workers};\npid {base}/pid;\n"
        "events { worker_connections 2048; }\n"
        f"http {{\naccess_log off;\n{temporary}types {{ text/html html; text/css css; }}\ndefault_type text/plain;\n{body}\n}}\n"
    )
    return config


class Larder:
    """larder, used through its commands and addresses only."""

    def __init__(self, world, binary, name="larder"):
        binary = Path(binary)
        if not binary.exists():
            raise Unavailable(f"{binary} does not exist")
        self.world, self.binary, self.root = world, binary, world.path(name)
        self.root.chmod(0o755)
        self.process = world.spawn(
            [binary, "serve", "--root", self.root, "--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            name, stdout=subprocess.PIPE,
        )
        self.ssh, self.http = self._ready(60)
        self._world_ask("user", "add", "alice", "--admin", "--key-file", world.key.with_suffix(".pub"))

    def _ready(self, seconds):
        """Returns the addresses in the line `ready ssh=... http=...`."""
        found, lines = {}, []

        def read():
            for raw in self.process.stdout:
                line = raw.decode(errors="replace").strip()
                if not found:
                    lines.append(line)
                if line.startswith("ready ") and not found:
                    found.update(word.split("=", 1) for word in line.split()[1:] if "=" in word)

        threading.Thread(target=read, daemon=True).start()
        end = time.monotonic() + seconds
        while not found and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if "ssh" not in found or "http" not in found:
            state = "is not ready after a minute" if self.process.poll() is None else f"exited {self.process.returncode}"
            raise Unavailable(f"`larder serve` {state} without its ready line: {' '.join(lines[-3:])} {tail(self.process.log, 3)}")
        return found["ssh"], found["http"]

    def _world_ask(self, *words):
        return self.world.run([self.binary, "--root", self.root, *words], timeout=60)

    def create(self, project):
        """Creates a project in mode cooking and returns the address to push to."""
        self._world_ask("project", "create", project, "--mode", "cooking")
        return f"ssh://larder@{self.ssh}/{project}"

    def web(self, project):
        """Returns host, port and Host header of a project."""
        host, port = self.http.rsplit(":", 1)
        return host.strip("[]"), int(port), f"{project}.localhost"

    def environment(self, project):
        """Returns the directory of a project's only environment after its first deployment."""
        for journal in self.root.glob(f"projects/{project}/*/deployments"):
            return journal.parent
        raise Unavailable(f"{project} has no deployments/ below {self.root}/projects")

    def steps(self, project):
        """Returns the steps of the newest deployment from its journal, in order: name -> milliseconds."""
        journals = list(self.environment(project).glob("deployments/*/journal.jsonl"))
        records = [[json.loads(line) for line in journal.read_text().splitlines() if line.strip()] for journal in journals]
        records = [record for record in records if record]
        if not records:
            raise Unavailable(f"{project} has no journal")
        newest = max(records, key=lambda record: moment(record[0]["at"]))
        return steps_of(newest)


def moment(text):
    """Converts an RFC 3339 time to seconds since the epoch, with nanoseconds."""
    text = text.split("[")[0].replace("Z", "+00:00")
    fraction = 0.0
    if "." in text:
        head, rest = text.split(".", 1)
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        fraction, text = float(f"0.{digits}"), head + rest[len(digits):]
    return datetime.fromisoformat(text).timestamp() + fraction


def steps_of(records):
    """Returns step -> milliseconds from the records of one journal; `(between)` is the time between steps."""
    took, started, last, between = {}, {}, None, 0.0
    for record in records:
        at, event, step = moment(record["at"]), record.get("event"), record.get("step")
        if event == "started":
            started[step] = at
            between += at - last if last is not None else 0.0
        elif event in ("succeeded", "failed") and step in started:
            took[step] = took.get(step, 0.0) + (at - started.pop(step)) * 1000
        elif event == "ended" and last is not None:
            between += at - last
        last = at
    if len(records) > 1:
        took["(between steps)"] = between * 1000
    return took


def starts_application(step):
    """Returns true if a step mostly waits for the start of the application, which is not larder's own time."""
    return any(word in step for word in ("boot", "health", "await", "wait", "start"))


class Piku:
    """piku, from the piku.py that --piku names, with its own HOME and its own sshd."""

    def __init__(self, world, script):
        if script is None:
            raise Unavailable("piku is not in any package index; name its file with --piku PATH-TO-piku.py")
        uwsgi = need("uwsgi", "uwsgi-core")
        self.world = world
        home = world.path("piku")
        environment = home / "venv"
        world.run(["/usr/bin/python3" if Path("/usr/bin/python3").exists() else "python3", "-m", "venv", environment])
        world.run([environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "click", "virtualenv", "setuptools"], timeout=300)
        self.script = home / "piku.py"
        body = Path(script).read_text()
        first, rest = body.split("\n", 1)
        self.script.write_text(f"#!{environment}/bin/python3\n{rest if first.startswith('#!') else body}")
        self.script.chmod(0o755)
        self.env = {"HOME": str(home), "PATH": f"{environment}/bin:" + world.env["PATH"], "USER": getpass.getuser()}
        public = home / "alice.pub"
        public.write_text(world.public_key + "\n")
        world.run([self.script, "setup"], env=self.env)
        world.run([self.script, "setup:ssh", public], env=self.env)
        self.home = home
        self.sshd = Sshd(world, "piku-sshd", home=home, authorized_keys=home / ".ssh" / "authorized_keys", python=f"{environment}/bin")
        self.emperor = world.spawn([uwsgi, "--ini", home / ".piku" / "uwsgi" / "uwsgi.ini"], "piku-uwsgi", env=self.env)

    def url(self, app):
        """Returns the address to push an application to. The first push creates the application."""
        return f"ssh://{self.sshd.user}@127.0.0.1:{self.sshd.port}/{app}"

    def checkout(self, app):
        """Returns the directory of an application's files."""
        return self.home / ".piku" / "apps" / app
