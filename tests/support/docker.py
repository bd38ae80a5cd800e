"""A private Docker engine in network and mount namespaces of its own, and a base image from this machine's packages."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

from tests.support.cli import checked

PYTHON = "/usr/bin/python3"  # of the base image, as it is this machine's
NEEDED = ("dockerd", "docker", "docker-compose", "unshare", "iptables", "dpkg-query", "apt-cache", PYTHON)
PACKAGES = ("python3-venv", "libstdc++6", "dash", "coreutils")  # and what they depend on
NOT = ("perl", "debconf", "dpkg", "tar", "gcc-", "media-types", "mailcap")
UNREAD = tuple(
    f"/usr/share/{name}/" for name in ("doc", "man", "locale", "info", "lintian", "perl", "bug", "zoneinfo", "i18n")
)
MERGED = {f"/{name}/": f"/usr/{name}/" for name in ("bin", "sbin", "lib", "lib64")}
BASE = "peoplecounter-test-base"


class Docker:
    """An engine with nothing in it; everything it has lies in memory, in one folder."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pc-docker-", dir="/dev/shm"))
        self._log = (self.folder / "log").open("w+")
        f, engine = self.folder, "dockerd --storage-driver=overlay2"
        start = f"{engine} --data-root {f}/data --exec-root {f}/exec --pidfile {f}/pid -H unix://{f}/sock"
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "bash", "-c", f"ip link set lo up; exec {start}"],
            stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{f}/sock", "DOCKER_BUILDKIT": "0"}
        until_s = time.monotonic() + 20
        while subprocess.run(["docker", "info"], env=self.environment, capture_output=True).returncode:
            if time.monotonic() > until_s or self._process.poll() is not None:
                message = (self.folder / "log").read_text()[-2000:]
                self.close()
                raise RuntimeError(f"dockerd does not start: {message}")
            time.sleep(0.1)

    @property
    def root(self) -> Path:
        """The engine's file system, as seen from here: it has mounts of its own."""
        return Path(f"/proc/{self._process.pid}/root")

    def do(self, *command: object, check: bool = True, timeout: float = 120) -> str:
        """What a command printed that speaks to this engine; with `check`, an error is one here."""
        done = checked(*command, check=check, timeout=timeout, env=self.environment)
        return done.stdout + done.stderr

    def build(self, tree: Path, image: str, *extras: str, **arguments: str) -> None:
        """The project's image without a network: its base is this machine's packages, its wheels come with it.

        `extras`: instead of the Dockerfile's own; `arguments`: more of its ARGs.
        """
        write_base(self.folder / "base.tar")
        self.do("docker", "import", self.folder / "base.tar", BASE)
        project = tomllib.loads((tree / "pyproject.toml").read_text())
        listed = project["project"]["optional-dependencies"]
        extras = extras or ("history",)
        needs = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
        needs += [need for extra in extras for need in listed[extra]]
        version = checked(PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
        download = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        only = ["--only-binary", ":all:", "--python-version", version]
        checked(*download, *only, "-d", tree / "wheels", *needs)
        arguments |= {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/deps", "EXTRAS": " ".join(extras)}
        given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        file = tree / "deploy/compose/Dockerfile"
        self.do("docker", "build", "-q", "-f", file, "-t", image, *given, tree, timeout=600)

    def close(self) -> None:
        """Ends the engine, and all it runs, and takes its folder away."""
        if running := checked("docker", "ps", "-q", check=False, env=self.environment).stdout.split():
            self.do("docker", "rm", "-f", *running, check=False)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def write_base(file: Path) -> None:
    """Makes a tar of the installed Debian packages that Python needs, laid out as a root file system."""
    quiet = [f"--no-{what}" for what in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    listed = subprocess.check_output(["apt-cache", "depends", "--recurse", "--installed", *quiet, *PACKAGES], text=True)
    names = sorted({line.strip() for line in listed.splitlines() if line[:1].isalnum()})
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${binary:Package}\n", *names]
    rows = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")
    installed = [row.split()[1] for row in rows if row.startswith("installed ") and not row.split()[1].startswith(NOT)]
    paths = set()
    for path in subprocess.check_output(["dpkg", "-L", *installed], text=True).splitlines():
        first = next((old for old in MERGED if path.startswith(old)), None)
        path = path.replace(first, MERGED[first], 1) if first else path
        if path.startswith("/usr/") and not path.startswith(UNREAD) and "/gconv/" not in path:
            paths.add(path)
    with tarfile.open(file, "w") as tar:
        for name in ("tmp", "run", "etc", "proc", "sys", "dev", "usr", "opt"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(entry)
        for path in sorted(paths):
            if os.path.lexists(path):
                tar.add(path, path[1:], recursive=False, filter=_as_root)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
