"""The manifests are valid, and a pod of them counts: podman runs what kustomize builds, as far as podman can."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from peoplecounter.common import topology
from tests.ops.conftest import ENOUGH, FPS, IMAGE, check_started_again
from tests.support.cli import ROOT, checked, missing_as_root
from tests.support.docker import NEEDED
from tests.support.published import Published

MANIFESTS = ROOT / "deploy/kubernetes"
SERVICES = [service.name.replace("_", "-") for service in topology.SERVICES if not service.optional]
SETTINGS = "[engine]\nthreads = 1\n"
CAMERAS = f'[plaza]\nurl = "/media/plaza.mp4"\nrealtime = true\nloop = true\nfps = {FPS}\n'

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="this machine lacks kubectl")
lacking = missing_as_root(*NEEDED, "podman", "runc", "catatonit", "kubectl")
needs_podman = pytest.mark.skipif(bool(lacking), reason=f"this machine lacks {lacking}")


def built(folder: Path) -> list[dict]:
    text = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


def overlay(folder: Path, name: str, *components: str) -> Path:
    """An overlay with components, as a user's own would be."""
    there = {part: os.path.relpath(MANIFESTS / part, folder) for part in (name, *components)}
    lines = {"resources": [there[name]], "components": [there[part] for part in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization", **lines}))
    return folder


@needs_kubectl
@pytest.mark.parametrize("components", [(), ("mqtt", "autoscale", "history", "dashboard")])
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_kubernetes_would_take_every_manifest(name, components, tmp_path):
    of_gpu = {"dashboard": "dashboard-gpu"} if name == "gpu" else {}
    resources = built(overlay(tmp_path, name, *(of_gpu.get(part, part) for part in components)))
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(resources))
    command = [shutil.which("kubernetes-validate", path=str(Path(sys.executable).parent)), "--strict"]
    done = subprocess.run([*command, tmp_path / "all.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {resource["kind"] for resource in resources}
    assert kinds >= {"StatefulSet", "Service", "PodDisruptionBudget", "Secret"}
    assert ("HorizontalPodAutoscaler" in kinds) == bool(components)
    assert ("ResourceClaimTemplate" in kinds) == (name == "gpu")
    for resource in resources:
        if resource["kind"] == "StatefulSet":
            for container in resource["spec"]["template"]["spec"]["containers"]:
                check_container(container, name)


def check_container(container: dict, overlay: str) -> None:
    closed = container["securityContext"]
    assert closed["readOnlyRootFilesystem"] and closed["capabilities"] == {"drop": ["ALL"]}, container["name"]
    assert not closed["allowPrivilegeEscalation"] and "memory" in container["resources"]["limits"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    if container.get("args", [""])[0] in {row.module for row in topology.SERVICES}:
        for probe in ("startupProbe", "livenessProbe"):
            command = container[probe]["exec"]["command"]
            assert command == ["healthy", variables["PEOPLECOUNTER_HEARTBEAT"], "5"], container["name"]
        assert variables["PEOPLECOUNTER_HEARTBEAT"] == f"/tmp/{container['name']}"  # they share /tmp
        needs_gpu = overlay == "gpu" and container["name"] != "history"
        assert ("claims" in container["resources"]) == needs_gpu


class Pod:
    """The pod of the CPU overlay, in a podman of its own."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pc-podman-", dir="/dev/shm"))
        f = self.folder
        (f / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
        )
        self.environment = {**os.environ, "CONTAINERS_CONF": str(f / "containers.conf")}
        places = ["--root", f / "root", "--runroot", f / "run", "--tmpdir", f / "tmp", "--storage-driver", "overlay"]
        self.podman = ["podman", *places]  # the rest is in containers.conf
        self.seen: Published | None = None

    def start(self, docker, plaza, folder: Path) -> None:
        """From the engine's image; `folder` gets what the pod reads."""
        f = self.folder
        docker.do("docker", "save", "-o", f / "image.tar", IMAGE)
        self.do("load", "-q", "-i", f / "image.tar")
        (f / "image.tar").unlink()
        media = folder / "media"
        media.mkdir(mode=0o755)
        shutil.copyfile(plaza.clip, media / plaza.clip.name)
        for name in ("run", "tmp"):  # what the kubelet makes of an emptyDir for fsGroup
            self.do("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=gid=10001,mode=2777", name)
        (folder / "pod.yaml").write_text(yaml.safe_dump_all(self.as_podman_can(media)))
        self.do("kube", "play", "--network", "none", folder / "pod.yaml")
        self.seen = Published(f"ipc:///proc/{self.pids()['share']}/root/run/peoplecounter/group/counts.sock")
        self.seen.tail = lambda: self.do("pod", "logs", "--tail", "5", "peoplecounter-0", check=False)

    @staticmethod
    def as_podman_can(media: Path) -> list[dict]:
        """podman has no StatefulSet, and fails at a Secret or an emptyDir for a group: a Pod, folders, two volumes."""
        resources = {resource["kind"]: resource for resource in built(MANIFESTS / "cpu")}
        secret, pod = resources["Secret"], resources["StatefulSet"]["spec"]["template"]
        files = {"peoplecounter.toml": SETTINGS, "cameras.toml": CAMERAS}
        assert secret["data"].keys() == files.keys()
        settings = media.parent / "settings"
        settings.mkdir(mode=0o755)
        for name, text in files.items():
            (settings / name).write_text(text)
        pod |= {"apiVersion": "v1", "kind": "Pod"}
        pod["metadata"] |= {"name": "peoplecounter-0"}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for name in ("run", "tmp"):
            assert volumes[name].pop("emptyDir")["medium"] == "Memory"
            volumes[name]["persistentVolumeClaim"] = {"claimName": name}
        del volumes["settings"]["secret"]
        volumes["settings"]["hostPath"] = {"path": str(settings)}
        pod["spec"]["volumes"].append({"name": "media", "hostPath": {"path": str(media)}})
        for container in pod["spec"]["containers"]:
            container["image"] = f"localhost/{IMAGE}:latest"
            container["volumeMounts"].append({"name": "media", "mountPath": "/media", "readOnly": True})
            for variable in container["env"]:
                if "valueFrom" in variable:
                    variable.pop("valueFrom")
                    variable["value"] = "0"
        return [pod]

    def do(self, *arguments: object, check: bool = True) -> str:
        return checked(*self.podman, *arguments, check=check, env=self.environment).stdout

    def pids(self) -> dict[str, int]:
        """Container -> pid, of all that run."""
        rows = json.loads(self.do("ps", "--format", "json"))
        return {r["Names"][0].removeprefix("peoplecounter-0-"): r["Pid"] for r in rows if not r["IsInfra"]}

    def close(self) -> None:
        if self.seen:
            self.seen.close()
        self.do("pod", "rm", "-f", "-t", "3", "-a", check=False)
        self.do("volume", "rm", "-f", "run", "tmp", check=False)
        subprocess.run(["umount", "-l", self.folder / "root/overlay"], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pod(docker, plaza, tmp_path_factory):
    one = Pod()
    try:
        one.start(docker, plaza, tmp_path_factory.mktemp("pod"))
        yield one
    finally:
        one.close()


@needs_podman
def test_one_pod_counts_its_share_of_the_cameras(pod, plaza):
    """The settings name no source: `share` found that the camera is this group's."""
    pod.seen.wait_counts(2 * ENOUGH, 60)
    plaza.check_counts(pod.seen, "plaza")
    rows = json.loads(pod.do("exec", "peoplecounter-0-fusion", "peoplecounter", "ps", "--json"))
    assert {row["supervisor"] for row in rows} == {"kubernetes"} and len(rows) == 5
    for name in SERVICES:  # podman asks no probe
        pod.do("exec", f"peoplecounter-0-{name}", "healthy", f"/tmp/{name}", "5")


@needs_podman
@pytest.mark.parametrize("service", SERVICES)
def test_one_container_of_the_pod_is_started_again_and_the_others_go_on(pod, service):
    check_started_again(pod.seen, pod.pids, service, lambda pid: os.kill(pid, signal.SIGKILL))
