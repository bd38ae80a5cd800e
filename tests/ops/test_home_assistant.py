"""Home Assistant shows what is true in the end, whoever dies and comes back in which order: a real group and broker.

Of Home Assistant there is what its MQTT integration does with sensors: discovery, templates, availability, expiry.
"""

import json
import re
import signal
import subprocess
import time

import av
import numpy as np
import paho.mqtt.client as mqtt
import pytest

from tests.support import squares
from tests.support.cli import ROOT, argv, command, missing
from tests.support.rtsp import free_port

BIRTH = "homeassistant/status"
UNAVAILABLE, UNKNOWN = "unavailable", "unknown"
PEOPLE, ZONE = "peoplecounter_source_cam.people", "peoplecounter_source_cam.zone_hall_people"
PROBLEM, INS = "peoplecounter_source_cam.problem", "peoplecounter_source_cam.line_front-door_in"
OCCUPANCY = "peoplecounter_area_shop.occupancy"
CAM = "peoplecounter/state/source/cam"
LINE = {"points": [[0.1, 0.5], [0.9, 0.5]], "inside": [0.5, 0.9]}
ZONE_POINTS = [[0, 0], [1, 0], [1, 1], [0, 1]]


class HomeAssistantLike:
    """What Home Assistant would show. It starts anew with each instance: it knows what the broker tells it."""

    def __init__(self, port: int):
        self.configs: dict[str, dict] = {}  # topic -> configuration
        self.heard: dict[str, tuple[str, float]] = {}  # topic -> last payload, when
        self.live: list[tuple[str, str]] = []  # topic and payload of messages that were not retained ones
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.on_connect, self.client.on_message = self._on_connect, self._on_message
        self.client.will_set(BIRTH, "offline")
        self.client.reconnect_delay_set(1, 1)
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()

    def start(self) -> None:
        self.client.publish(BIRTH, "online")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def shows(self, unique_id: str) -> str:
        config = next((one for one in list(self.configs.values()) if one["unique_id"] == unique_id), None)
        if config is None:
            return "none"
        payload, at_s = self.heard.get(config["state_topic"], ("", 0.0))
        online = self.heard.get(config["availability_topic"], ("", 0.0))[0] == "online"
        expired = not payload or time.monotonic() - at_s > config["expire_after"]
        if not (online and self.client.is_connected()) or expired:
            return UNAVAILABLE
        key = re.fullmatch(r"\{\{ value_json\['([\w-]+)'\] \}\}", config["value_template"])[1]
        value = json.loads(payload)[key]
        return UNKNOWN if value is None else str(value)

    def bridges(self) -> list[str]:
        """What bridges say of themselves."""
        return [text for topic, (text, _) in list(self.heard.items()) if topic.startswith("peoplecounter/bridge/")]

    def _on_connect(self, client, data, flags, reason, properties) -> None:
        client.subscribe("homeassistant/#")
        for config in self.configs.values():
            self._follow(config)
        self.start()

    def _follow(self, config: dict) -> None:
        self.client.subscribe([(config["state_topic"], 0), (config["availability_topic"], 0)])

    def _on_message(self, client, data, message) -> None:
        text = message.payload.decode()
        if not message.retain:
            self.live.append((message.topic, text))
        if not message.topic.endswith("/config"):
            self.heard[message.topic] = (text, time.monotonic())
        elif text:
            self.configs[message.topic] = json.loads(text)
            self._follow(self.configs[message.topic])
        else:
            self.configs.pop(message.topic, None)


class Home:
    """A broker, a bridge and Home Assistant, which a test may stop and start."""

    def __init__(self, running, folder):
        self.running, self.folder, self.port = running, folder, free_port()
        self.processes: dict[str, subprocess.Popen] = {}
        self.log = (folder / "log").open("w+")
        self.shown = HomeAssistantLike(self.port)
        (folder / "broker.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"persistence true\npersistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n"
        )

    def start(self, *names: str) -> None:
        words = {
            "broker": ["mosquitto", "-c", self.folder / "broker.conf"],
            "bridge": argv("bridge", "mqtt", f"mqtt://127.0.0.1:{self.port}", "--home-assistant"),
        }
        for name in names:
            self.processes[name] = subprocess.Popen(
                words[name], cwd=ROOT, env=self.running.environment, stdout=self.log, stderr=self.log
            )

    def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        self.processes[name].send_signal(number)
        return self.processes[name].wait(10)

    def waits(self, **shown: str) -> None:
        """Until this is what it shows."""

        def now() -> dict[str, str]:
            return {name: self.shown.shows(globals()[name]) for name in shown}

        try:
            self.running.wait_for(lambda: now() == shown, f"it shows {shown}")
        except AssertionError:
            raise AssertionError(f"{now()} instead of {shown}\n{(self.folder / 'log').read_text()[-2000:]}") from None

    def close(self) -> None:
        self.shown.close()
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.log.close()


def make_still(path, rgb: np.ndarray) -> None:
    """A clip of 2 s that shows one picture. It replaces another one at once."""
    new = path.with_suffix(".new.mp4")
    with av.open(str(new), "w") as container:
        stream = container.add_stream("libx264", rate=squares.FPS, options=squares.ENCODERS["libx264"])
        stream.width, stream.height, stream.pix_fmt = squares.WIDTH, squares.HEIGHT, "yuv420p"
        for _ in range(2 * squares.FPS):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(stream.encode())
    new.rename(path)


@pytest.fixture
def home(group, tmp_path):
    if missing("mosquitto"):
        pytest.skip("this machine lacks mosquitto")
    clip = tmp_path / "clip.mp4"
    assert squares.expected(10) == 2
    make_still(clip, squares.picture(10))
    source = {"url": str(clip), "realtime": True, "loop": True}
    shapes = {"lines": {"front-door": LINE}, "zones": {"hall": {"points": ZONE_POINTS}}}
    areas, alerts = {"shop": {"lines": ["cam.front-door"]}}, {"busy": {"zone": "cam.hall", "above": 1}}
    home = Home(group({"cam": source | shapes}, areas=json.dumps(areas), alerts=json.dumps(alerts)), tmp_path)
    yield home
    home.close()


def test_it_shows_what_is_true_in_the_end(home):
    running = home.running
    running.start()
    home.start("broker", "bridge")
    home.waits(PEOPLE="2", ZONE="2", PROBLEM="OFF", INS="0", OCCUPANCY="0")

    home.shown.client.subscribe("peoplecounter/zones/+")
    running.signal("decoder.cam", signal.SIGKILL)
    home.waits(PEOPLE=UNKNOWN, ZONE=UNKNOWN, PROBLEM="ON", INS="0", OCCUPANCY="0")
    running.start("decoder.cam")
    home.waits(PEOPLE="2", ZONE="2", PROBLEM="OFF")
    home.shown.client.subscribe("peoplecounter/alerts/+")  # which is retained
    events = {"peoplecounter/zones/cam", "peoplecounter/alerts/busy"}
    running.wait_for(lambda: home.shown.heard.keys() >= events, "visits and alerts of everybody's topics")

    home.stop("broker", signal.SIGTERM)
    home.waits(PEOPLE=UNAVAILABLE)
    home.start("broker")
    home.waits(PEOPLE="2", ZONE="2", PROBLEM="OFF")

    home.stop("bridge")
    home.waits(PEOPLE=UNAVAILABLE, PROBLEM=UNAVAILABLE, OCCUPANCY=UNAVAILABLE)
    home.start("bridge")
    home.waits(PEOPLE="2", ZONE="2", PROBLEM="OFF", OCCUPANCY="0")

    home.shown.live.clear()
    home.shown.start()
    everything = {*home.shown.configs, CAM, "peoplecounter/state/area/shop"}
    running.wait_for(lambda: everything <= {topic for topic, _ in home.shown.live}, "everything again")

    everybody_leaves(home)
    home.waits(PEOPLE="0", ZONE="0", PROBLEM="OFF", INS="0", OCCUPANCY="0")
    running.wait_counts(30)
    assert home.shown.shows(PEOPLE) == "0"
    states = [json.loads(text) for topic, text in home.shown.live if topic == CAM]
    assert {state[key] for state in states for key in ("people", "zone_hall_people")} <= {None, 0}
    assert home.stop("bridge", signal.SIGTERM) == 0
    home.waits(PEOPLE=UNAVAILABLE, OCCUPANCY=UNAVAILABLE)


def everybody_leaves(home) -> None:
    """All ends at once while 2 people are there, and a bridge that is online; then nobody is there any more."""
    home.stop("broker")
    home.stop("bridge")
    home.shown.close()
    for name in home.running.processes:
        home.running.signal(name, signal.SIGTERM)
        home.running.wait_exit(name)
    make_still(home.folder / "clip.mp4", np.zeros_like(squares.picture(0)))
    home.shown = HomeAssistantLike(home.port)
    home.start("broker")
    home.running.wait_for(home.shown.bridges, "what was retained")
    assert home.shown.bridges() == ["online"]
    assert home.shown.shows(PEOPLE) == home.shown.shows(PROBLEM) == UNAVAILABLE
    home.running.start()
    home.start("bridge")


def test_nats_has_no_home_assistant(run_dir):
    words, environment = command(run_dir, "bridge", "nats", "nats://127.0.0.1", "--home-assistant")
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=20)
    message = "--home-assistant needs mqtt: Home Assistant does not read nats."
    assert (done.returncode, done.stderr) == (78, f"peoplecounter: {message}\n")
