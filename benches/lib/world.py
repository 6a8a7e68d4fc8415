"""An isolated environment for measurements: its own HOME, keys, ports and processes, which are removed at the end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Unavailable(Exception):
    """A contestant or row that cannot run on this machine. The table shows the message."""


def find(program):
    """Returns the path of a program, also of a daemon in sbin, or None."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def need(program, package=None):
    """Returns the path of a program; raises Unavailable if it is missing."""
    path = find(program)
    if path is None:
        raise Unavailable(f"{program} is missing (Debian: {package or program})")
    return path


def free_port():
    """Returns a loopback port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forgets_slowly(path):
    """Returns true for ext4 without a journal, which creates files up to ten times slower for minutes after others were removed."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, rest = line.partition(" - ")
        if head.split()[2] == wanted and rest.split()[0] == "ext4":
            name = Path(rest.split()[1]).name
            return not any(Path("/proc/fs/jbd2").glob(f"{name}-*"))
    return False


def tail(path, lines=5):
    """Returns the last lines of a log, for an error message."""
    try:
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class World:
    """A temporary directory with a HOME and keys, and the processes that were started in it."""

    def __init__(self, parent=None, keep=False):
        self.root = Path(tempfile.mkdtemp(prefix="larder-bench-", dir=parent))
        # Servers that drop their privileges must be able to enter.
        self.root.chmod(0o755)
        self.keep = keep
        self.processes = []
        self.home = self.path("home")
        (self.home / ".ssh").mkdir(mode=0o700)
        (self.home / ".gitconfig").write_text(
            "[user]\n\tname = Bench\n\temail = bench@localhost\n"
            "[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n"
            "[advice]\n\tdetachedHead = false\n[safe]\n\tdirectory = *\n"
        )
        self.key = self.home / ".ssh" / "id_ed25519"
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.run([need("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", self.key])
        self.public_key = self.key.with_suffix(".pub").read_text().strip()

    def path(self, *parts):
        """Creates a directory in this world."""
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def env(self):
        """Returns the complete environment of the processes of this world."""
        return {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin",
            "HOME": str(self.root / "home"),
            "USER": os.environ.get("USER", "root"),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.path("tmp")),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": self.ssh_command,
        }

    @property
    def ssh_options(self):
        """Returns the options of ssh clients, which ignore the user's configuration and agent."""
        return [
            "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "GlobalKnownHostsFile=none",
            "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
        ]

    @property
    def ssh_command(self):
        """Returns the ssh command for git."""
        return " ".join(["ssh", *self.ssh_options])

    def run(self, argv, check=True, env=None, **options):
        """Runs a command to its end and returns the result with its output."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        try:
            done = subprocess.run(
                [str(part) for part in argv], env={**self.env, **(env or {})}, text=True, errors="replace", check=False, **options
            )
        except (FileNotFoundError, PermissionError) as why:
            raise Unavailable(f"cannot run {argv[0]}: {why.strerror}") from None
        if check and done.returncode != 0:
            said = "\n".join(((done.stdout or "") + (done.stderr or "")).splitlines()[-8:])
            raise Unavailable(f"`{' '.join(str(part) for part in argv[:6])}` exited {done.returncode}: {said}")
        return done

    def git(self, *arguments, cwd=None, **options):
        """Runs git."""
        return self.run(["git", *arguments], cwd=cwd, **options)

    def spawn(self, argv, name, env=None, **options):
        """Starts a server in its own process group. Its output goes to a log; it is stopped with the world."""
        log = self.path("logs") / f"{name}.log"
        with open(log, "ab") as out:
            options.setdefault("stdout", out)
            options.setdefault("stderr", out)
            process = subprocess.Popen(
                [str(part) for part in argv], env={**self.env, **(env or {})},
                stdin=subprocess.DEVNULL, start_new_session=True, **options,
            )
        process.log = log
        self.processes.append(process)
        return process

    def wait_for_port(self, port, process, seconds=20):
        """Waits until a process listens on a loopback port."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if process.poll() is not None:
                raise Unavailable(f"{process.args[0]} exited {process.returncode}: {tail(process.log)}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise Unavailable(f"{process.args[0]} does not listen on port {port}: {tail(process.log)}")

    def stop(self, process, seconds=15):
        """Stops a server and its children, by its process group only."""
        if process in self.processes:
            self.processes.remove(process)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                try:
                    os.killpg(process.pid, number)
                    process.wait(seconds)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def close(self):
        """Stops all processes and removes the directory."""
        for process in list(reversed(self.processes)):
            self.stop(process)
        if self.keep:
            print(f"kept: {self.root}", file=sys.stderr)
            return
        self._unmount()
        shutil.rmtree(self.root, ignore_errors=True)
        if self.root.exists():
            print(f"could not be removed completely: {self.root}", file=sys.stderr)

    def _unmount(self):
        """Unmounts the mounts that a killed server left behind, so that the removal does not enter them."""
        try:
            mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        except OSError:
            return
        for mount in sorted(mounts, reverse=True):
            if mount.startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", "--", mount], check=False, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
