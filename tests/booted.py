"""A real systemd, started as process 1 of namespaces of its own, over this machine's files: nothing it does lasts.

It needs root and a writable cgroup hierarchy of version 2. `missing` says what is not there.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from running import wait_for

ROOT = Path(__file__).resolve().parents[1]
SYSTEMD = Path("/lib/systemd/systemd")
TARGETS = ("sysinit", "basic", "multi-user", "shutdown", "umount", "sockets", "paths", "timers", "network")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PREFIX = "/opt/edge-agent/.venv"
"""Where this Python is in there."""
SOURCE = "/opt/edge-agent/src"
"""Where this checkout is in there."""

SCRIPT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
cd "$1"
mkdir upper work root empty
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs etc/systemd
rm -rf var/lib/edge-agent var/lib/private/edge-agent etc/edge-agent  # of an agent that this machine has
mkdir -p etc/systemd/system run/systemd/system opt/edge-agent/.venv opt/edge-agent/src opt/models opt/python
mount --rbind /dev dev
touch run/console
mount --bind run/console dev/console
mount --bind "$2" opt/edge-agent/.venv
mount --bind "$3" opt/edge-agent/.venv/lib
mount --bind "$4" opt/python
mount --bind "$5" opt/edge-agent/src
shift 5
for name in TARGETS; do
  printf '[Unit]\nDefaultDependencies=no\n' > run/systemd/system/$name.target
done
for folder in "$@"; do
  mkdir -p opt/models/"$(basename "$folder")"
  mount --bind "$folder" opt/models/"$(basename "$folder")"
done
export container=tests SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system SYSTEMD_LOG_TARGET=console
pivot_root . mnt  # not chroot: from inside of one nobody can make a user namespace, as PrivateUsers=yes does
umount -l mnt
mount --make-rshared /  # as a machine's systemd does, and one in a container does not; credentials come through it
exec SYSTEMD --system --unit=basic.target
"""


def cgroups():
    """Return where the cgroup hierarchy of version 2 is mounted, if it is and we may write to it."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    found = (Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
    return next((folder for folder in found if os.access(folder, os.W_OK)), None)


def missing():
    """Return why no systemd can be started here; None when one can."""
    if not SYSTEMD.exists() or shutil.which("systemd-analyze") is None:
        return "systemd is not installed; install it with: make systemd"
    if os.geteuid() != 0:
        return "starting a systemd of the tests' own needs root"
    if cgroups() is None:
        return "starting a systemd of the tests' own needs a writable cgroup2 hierarchy"
    return None


def _copy_venv(folder):
    """Write a virtual environment that is this one, but for where it and its Python lie: both may be in a home."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    (folder / "bin/python").symlink_to(f"/opt/python/bin/python3.{sys.version_info.minor}")
    source = f"import sys\nsys.path.insert(0, '{SOURCE}')\nfrom edge_agent.__main__ import main\nmain()\n"
    (folder / "bin/edge-agent").write_text(f"#!{PREFIX}/bin/python\n{source}")
    (folder / "bin/edge-agent").chmod(0o755)


class Booted:
    """A running systemd; `folder` is on the disk of the tests, `models` are seen in /opt/models by their names."""

    def __init__(self, folder, *models):
        self._cgroup = cgroups() / f"edge-agent-tests-{os.getpid()}"
        binds = folder / "venv", Path(sys.prefix) / "lib", sys.base_prefix, ROOT
        self._command = [folder / "machine", *binds, *models]
        (folder / "machine").mkdir(parents=True)
        _copy_venv(folder / "venv")
        self._outer = None

    def __enter__(self):
        self._cgroup.mkdir()
        script = SCRIPT.replace("TARGETS", " ".join(TARGETS)).replace("SYSTEMD --", f"{SYSTEMD} --")
        namespaces = ("--mount", "--pid", "--cgroup", "--ipc", "--uts", "--fork", "--kill-child")
        enter = f'echo $$ > {self._cgroup}/cgroup.procs; exec "$@"'
        command = ["bash", "-c", enter, "-", "setpriv", "--pdeathsig", "KILL", "unshare", *namespaces]
        self._outer = subprocess.Popen(
            [*command, "bash", "-c", script, "-", *self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": PATH},
        )
        wait_for(lambda: self._pid() and self.try_("systemctl", "is-active", "basic.target").returncode == 0, "systemd")
        return self

    def __exit__(self, *_exception):
        self._outer.send_signal(signal.SIGKILL)  # its child, process 1 in there, takes all others with it
        self._outer.wait(30)
        wait_for(lambda: not self._populated(), "the end of all processes of the tests' systemd")
        for folder in sorted(self._cgroup.glob("**/"), key=lambda each: -len(each.parts)):
            folder.rmdir()

    def _populated(self):
        return "populated 1" in (self._cgroup / "cgroup.events").read_text()

    def _pid(self):
        assert self._outer.poll() is None, "the tests' systemd did not start"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def path(self, inside):
        """Return how a file of the machine is reached from here."""
        return Path(f"/proc/{self._pid()}/root") / str(inside).lstrip("/")

    def try_(self, *command):
        """Run a command in there; return what became of it."""
        inside = ["nsenter", "--target", str(self._pid()), "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--root"]
        return subprocess.run(
            [*inside, "--wd=/", *command], capture_output=True, text=True, timeout=60, check=False, env={"PATH": PATH}
        )

    def do(self, *command):
        """Run a command that must go well; return what it printed."""
        done = self.try_(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.path('/run/console').read_text()}"
        return done.stdout

    def write(self, inside, text):
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def show(self, unit, *properties):
        """Return properties of a unit, by name."""
        lines = self.do("systemctl", "show", unit, *(f"--property={name}" for name in properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)
