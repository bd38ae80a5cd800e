"""Real RTSP cameras: GStreamer's server, run by the system's Python, played by a process that a test may kill.

`/usr/bin/python3 rtsp.py PORT TRANSPORT FILE…` (tcp or udp) plays FILE number i at /cam<i>, and the first one at /cam,
for clients that know the password. A camera does not wait for its viewers: a late one starts at a later frame, mostly
between keyframes.
"""

import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "/usr/bin/python3"  # the one that Debian's python3-gi is for
USER, PASSWORD = "user", "s3cr3t-of-this-camera"
PORTS = 20_000, 30_000  # below those that the kernel gives to clients: no client takes a dead camera's port
ELEMENTS = "parsebin", "qtdemux", "tsdemux", "h264parse", "h265parse", "rtph264pay", "rtph265pay", "appsrc"


def missing() -> str:
    """What the cameras need and this machine does not have, in words; empty: nothing."""
    if not Path(PYTHON).exists():
        return PYTHON
    return subprocess.run([PYTHON, __file__], capture_output=True, text=True).stderr.strip()


def free_port() -> int:
    """A port of 127.0.0.1 where no process listens."""
    while True:
        try:
            with socket.create_server(("127.0.0.1", port := random.randrange(*PORTS))):
                return port
        except OSError:
            continue


class RtspCamera:
    """A server process with one camera for each file."""

    def __init__(self, *files: Path, port: int = 0, transport: str = "tcp"):
        self.files, self.port, self.transport = files, port or free_port(), transport
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return self.url_of("cam")

    def url_of(self, mount: str) -> str:
        return f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{mount}"

    def start(self, *files: Path) -> "RtspCamera":
        """Returns when it listens; with `files`, it plays these from now on."""
        self.files = files or self.files
        command = [PYTHON, __file__, str(self.port), self.transport, *map(str, self.files)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "listening\n":
            raise RuntimeError(f"the camera ended with {self.process.wait()}")
        return self

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def restart(self, *files: Path) -> None:
        self.kill()
        self.start(*files)

    def stop(self) -> None:
        """Freezes it: the kernel still accepts connections for it."""
        self.process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def gstreamer():
    """The modules that `serve` needs; exits, naming it, when one is not there."""
    try:
        import gi

        for name in ("Gst", "GstRtsp", "GstRtspServer"):
            gi.require_version(name, "1.0")
        from gi.repository import GLib, Gst, GstRtsp, GstRtspServer
    except (ImportError, ValueError) as error:
        sys.exit(f"GStreamer's RTSP server for Python: {error}")
    Gst.init(None)
    for name in ELEMENTS:
        if not Gst.ElementFactory.find(name):
            sys.exit(f"GStreamer's element {name}")
    return GLib, Gst, GstRtsp, GstRtspServer


def serve(port: str, transport: str, files: list[str]) -> None:
    GLib, Gst, GstRtsp, GstRtspServer = gstreamer()

    def clip(path: str) -> list:
        """A file's access units: samples with their caps."""
        pipeline = Gst.parse_launch(f"filesrc location={path} ! parsebin ! appsink name=sink sync=false")
        pipeline.set_state(Gst.State.PLAYING)
        sink, samples = pipeline.get_by_name("sink"), []
        while (sample := sink.emit("pull-sample")) is not None:
            samples.append(sample)
        pipeline.set_state(Gst.State.NULL)
        return samples or sys.exit(f"no video in {path}")

    class Factory(GstRtspServer.RTSPMediaFactory):
        """Plays a clip round and round, from where a clock that runs since the server's start says it is."""

        def __init__(self, path: str):
            super().__init__()
            self.samples = clip(path)
            self.caps = self.samples[0].get_caps()
            (_, numerator, denominator) = self.caps.get_structure(0).get_fraction("framerate")
            self.frame_ns = Gst.SECOND * denominator // numerator
            self.began_ns = time.monotonic_ns()
            self.set_protocols(getattr(GstRtsp.RTSPLowerTrans, transport.upper()))
            self.add_role_from_structure(Gst.Structure.from_string(f"{USER}, {ALLOWED}")[0])

        def do_create_element(self, url):
            kind = self.caps.get_structure(0).get_name().removeprefix("video/x-")
            source = "appsrc name=source is-live=true format=time max-buffers=2"
            payloader = f"{kind}parse config-interval=-1 ! rtp{kind}pay name=pay0"
            return Gst.parse_launch(f"( {source} ! identity sync=true ! {payloader} )")

        def play(self, media):
            source = media.get_element().get_by_name("source")
            source.set_property("caps", self.caps)
            now = (time.monotonic_ns() - self.began_ns) // self.frame_ns
            numbers = iter(range(1 << 62))
            source.connect("need-data", lambda source, _: self.push(source, now, next(numbers)))

        def push(self, source, first: int, number: int) -> None:
            sample = self.samples[(first + number) % len(self.samples)]
            buffer = sample.get_buffer().copy()
            buffer.pts, buffer.dts, buffer.duration = number * self.frame_ns, Gst.CLOCK_TIME_NONE, self.frame_ns
            source.emit("push-buffer", buffer)

    server, auth = GstRtspServer.RTSPServer(), GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", USER)
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(USER, PASSWORD), token)
    server.set_auth(auth)
    server.set_address("127.0.0.1")
    server.set_service(port)
    for i, path in enumerate(files):
        for mount in [f"/cam{i}"] + ["/cam"] * (i == 0):
            factory = Factory(path)
            factory.connect("media-configure", lambda factory, media: factory.play(media))
            server.get_mount_points().add_factory(mount, factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    print("listening", flush=True)
    GLib.MainLoop().run()


ALLOWED = "media.factory.access=(boolean)true, media.factory.construct=(boolean)true"

if __name__ == "__main__":
    serve(*sys.argv[1:3], sys.argv[3:]) if sys.argv[1:] else gstreamer()
