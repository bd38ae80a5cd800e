"""Every setting. Environment variables PEOPLECOUNTER_SECTION__KEY take precedence over one TOML file."""

import ast
import difflib
import importlib.util
import inspect
import os
import re
import tomllib
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from peoplecounter.common import views
from peoplecounter.common.counting import (
    AlertSettings,
    AreaSettings,
    HistorySettings,
    LineSettings,
    Name,
    Section,
    ZoneSettings,
)
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.logs import Level

PREFIX = "PEOPLECOUNTER_"
ALL_GPUS = "all"
CONFIG_VARIABLE = PREFIX + "CONFIG"  # path of the TOML file
ENDPOINT = r"tcp://[^/\s]+:\d+\Z"
LOOPBACK = r"tcp://(127\.\d+\.\d+\.\d+|\[::1\]|localhost):(\d+|\*)\Z"
GPU = r"\d{1,2}|(GPU|MIG)-[0-9a-fA-F-]{8,60}"  # its number or UUID
GPUS = f"^({GPU}|{ALL_GPUS})$"
PATHS = {  # settings with a path
    "run_dir", "data_dir", "sources_dir", "lines_dir", "heartbeat", "url", "model", "key", "subscribers", "file",
    "token_file", "tls_certificate", "tls_key",
}  # fmt: skip
DATA = "data"  # in the run directory, where data_dir is not set
DESCRIBED = ("string_pattern_mismatch", "too_short", "less_than_equal", "greater_than_equal")  # errors that say little
SECRET = ("url", "webhook", "database")  # settings that may contain a password: their values are never shown
TABLES = ("sources.", "areas.", "alerts.")  # settings of which there is one table for each name


class ViewSettings(Section):
    smallest_person_px: float | None = Field(None, ge=8, le=10_000)
    """Height of the smallest people to count, px of the frame; unset: as small as the model finds without scaling"""
    overlap: float | None = Field(None, ge=0, le=0.5)
    """Overlap of neighbouring views, as a share of the model's longer side; unset: 0.2, and at least 128 px"""
    levels: tuple[Annotated[float, Field(gt=0, le=4)], ...] | None = None
    """Scales of the frame that are cut into views, e.g. [0.25, 0.5], beside the whole; auto: by smallest_person_px"""

    @field_validator("levels", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _one_way(self) -> "ViewSettings":
        if self.levels is not None and self.smallest_person_px:
            raise ValueError("levels and smallest_person_px are two ways to say the same: set one of them")
        return self

    def within(self, group: "ViewSettings") -> "ViewSettings":
        """These settings of a source, with those of its group for what they leave open."""
        chosen = group if self.levels is None and self.smallest_person_px is None else self
        overlap = group.overlap if self.overlap is None else self.overlap
        return chosen.model_copy(update={"overlap": overlap})

    def table(self, width: int, height: int, size: tuple[int, int], corner: bool = False) -> tuple[views.View, ...]:
        """The views of a frame of width x height px for images of `size`, see views.table()."""
        return views.table(width, height, size, self.overlap, self.smallest_person_px, self.levels, corner)


class SourceSettings(Section):
    url: str
    """File, folder of images, sequence (%03d), USB camera (/dev/video0) or URL; streams are reconnected"""
    realtime: bool = False
    """Play a file at its own rate and drop late frames, as a camera does"""
    fps: float = Field(0, ge=0, le=1000)
    """Frame rate of a file played in real time, frames/s; 0: the file's own"""
    loop: bool = False
    """Restart a file when it ends"""
    stream: int = Field(-1, ge=-1)
    """Index of the video stream, as ffprobe shows it; -1: the default stream, among several the largest"""
    rotate: Literal["auto", "0", "90", "180", "270"] = "auto"
    """Clockwise turn that makes the pictures upright, degrees; auto: what the source says"""
    mirror: bool = False
    """Mirror the pictures left to right, after the turn"""
    pixel_aspect: str = Field("auto", pattern=r"^(auto|[1-9]\d{0,4}:[1-9]\d{0,4})$")
    """Width of a stored pixel to its height, e.g. 2:1 for a DVR's 1080N (960x1080); auto: what the source says"""
    transport: Literal["auto", "tcp", "udp", "http"] = "auto"
    """How RTSP video travels; auto: TCP, or UDP if the camera does not offer TCP"""
    start_time: str = ""
    """When a file begins, e.g. 2026-11-26T08:00:00 (in `timezone`) or with +01:00; empty: when it is counted"""
    views: ViewSettings = ViewSettings()
    """Instead of the group's"""
    lines: dict[Name, LineSettings] = Field(default_factory=dict)
    """[sources.NAME.lines.NAME] tables: where crossings are counted"""
    zones: dict[Name, ZoneSettings] = Field(default_factory=dict)
    """[sources.NAME.zones.NAME] tables: where people and their visits are counted"""

    @field_validator("start_time")
    @classmethod
    def _a_time(cls, value: str) -> str:
        try:
            sensible = not value or 1970 < datetime.fromisoformat(value).year < 2200
        except ValueError:
            sensible = False
        if not sensible:
            raise ValueError("expected a date and time, e.g. 2026-11-26T08:00:00")
        return value

    @model_validator(mode="after")
    def _of_a_file(self) -> "SourceSettings":
        if self.start_time and self.network:
            raise ValueError("start_time is for files: a camera has this machine's time")
        return self

    @model_validator(mode="after")
    def _one_name(self) -> "SourceSettings":
        if both := self.lines.keys() & self.zones.keys():
            raise ValueError(f"{sorted(both)[0]!r} is a line and a zone: choose another name for one of them")
        return self

    @field_validator("rotate", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> str:
        return str(value)

    @field_validator("url")
    @classmethod
    def _is_percent_encoded(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        host = re.split("[/?#]", rest)[0]
        if "@" in rest and "@" not in host and re.search(r":(?!\d+\Z)", re.sub(r"\[.*?\]", "", host)):
            raise ValueError("percent-encode the password: / is %2F, ? is %3F, # is %23")
        return scheme.lower() + separator + rest if separator else url

    @property
    def live(self) -> bool:
        """True for sources that cannot be paused: network streams, and files played in real time."""
        return self.realtime or self.network

    @property
    def network(self) -> bool:
        """True for cameras and streams that are reconnected when they break; for http(s), only their answer tells."""
        return bool(re.match(r"(rtsp[st]?|rtmps?|udp|rtp|srt|tcp)://|/dev/video", self.url))


class LinkSettings(Section):
    beat_ms: int = Field(250, ge=10, le=10_000)
    """Interval of the beats between the two ends of a link, ms"""
    silent_ms: int = Field(2_000, ge=100, le=60_000)
    """A peer without a beat for this long is silent and gets no more work, ms"""
    credits: int = Field(2, ge=1, le=64)
    """Offers that a consumer accepts before it has released the first"""
    poll: Literal["auto", "on", "off"] = "auto"
    """Poll, not sleep, while the GPU infers: saves 0.5 ms a frame, costs cores; auto: if each process can have one"""

    @model_validator(mode="after")
    def _several_beats(self) -> "LinkSettings":
        if self.silent_ms < 4 * self.beat_ms:
            raise ValueError(f"silent_ms must be at least four beats, {4 * self.beat_ms} ms")
        return self


class DecoderSettings(Section):
    slots: int = Field(4, ge=3, le=64)
    """Slots of a surfaces ring"""
    open_timeout_s: float = Field(5, gt=0, le=120)
    """Timeout for opening a network source, s"""
    read_timeout_s: float = Field(2, gt=0, le=120)
    """Reconnect when a network source sends nothing for this long, s; by HTTP, for at least 10 s"""
    backoff_min_s: float = Field(0.5, gt=0, le=60)
    """First wait before reconnecting, doubled after each failure, s"""
    backoff_max_s: float = Field(30, gt=0, le=600)
    """Longest wait before reconnecting, s"""
    recover_s: float = Field(5, ge=0, le=600)
    """Without a keyframe for this long after damage, frames are counted again, as incomplete, s"""


class PreprocessSettings(Section):
    slots: int = Field(0, ge=0, le=64)
    """Slots of the tensors ring, one frame each; 0: two more than the number of sources, at least 3"""
    group: int = Field(0, ge=0, le=256)
    """Maximum views that an infer_tiles worker gets at once; 0: on a GPU as many as its plan takes, on a CPU few"""

    @field_validator("slots")
    @classmethod
    def _one_each(cls, value: int) -> int:
        if 0 < value < 3:
            raise ValueError("a ring needs at least 3 slots: one written, one waiting, one read")
        return value


class EngineSettings(Section):
    model: str = ""
    """ONNX file, TensorRT plan (cuda), or tcp://HOST:PORT of 'engine serve'; empty: the demo's model"""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Expected SHA-256 of the model; empty: not checked"""
    server_key: str = Field("", pattern=r"^([!-~]{40})?$")
    """Public CURVE key (Z85) of the server of a tcp:// model; required beyond loopback"""
    limit_mb: int = Field(1024, ge=1, le=65_536)
    """Maximum size of a model, MB"""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What runs an ONNX file on a CPU; auto: OpenVINO where it is installed and gains, see 'peoplecounter doctor'"""
    precision: Literal["auto", "fp32"] = "auto"
    """Of an ONNX file in FP32 under OpenVINO; auto: BF16 where the processor has it"""
    threads: int = Field(0, ge=0, le=256)
    """Threads of each infer process on a CPU; 0: as the cores allow, see 'peoplecounter doctor'"""
    score: float = Field(0.2, gt=0, lt=1)
    """Minimum score of a detection that is sent to fusion"""
    person_class: int | None = Field(None, ge=0)
    """Index of the class that is counted; unset: the one that the model calls person, or 0 if it names none"""
    head: str = "auto"
    """What the model's outputs mean, see 'peoplecounter models'; auto: what their shapes say"""
    pixels: Literal["auto", "rgb", "rgb255", "bgr255", "imagenet"] = "auto"
    """Values of the images: RGB in 0..1, 0..255, BGR in 0..255, or RGB normalized; auto: as the head is exported"""


class FusionSettings(Section):
    publish: str = ""
    """tcp://HOST:PORT to publish counts on, besides counts.sock in run_dir; beyond loopback, keys are required"""
    key: str = ""
    """File with fusion's secret CURVE key for TCP, see 'peoplecounter keys'; empty: no encryption"""
    subscribers: str = ""
    """File with the public keys that may subscribe on TCP, one a line; read again for each connection"""
    reorder_frames: int = Field(16, ge=1, le=256)
    """A lost frame is given up five times sooner when more than this many later ones are complete"""
    idle_s: float = Field(10, gt=0, le=600)
    """A frame without a deadline is given up when no result came and no ring held it for this long, s"""
    same_iou: float = Field(0.5, gt=0, le=1)
    """Minimum intersection over union of two views' boxes of one person"""
    same_ios: float = Field(0.7, gt=0, le=1)
    """Minimum intersection over the smaller box of two views' boxes of one person"""
    new_score: float = Field(0.48, gt=0, lt=1)
    """Minimum score of a person not seen in the previous frame; down to 65 % of it for people small in their view"""
    edge_px: float = Field(4, ge=0, le=64)
    """A box this close to an inner edge of its view counts as cut by it, px of the view"""

    @field_validator("publish")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.match(ENDPOINT, value):
            raise ValueError("expected tcp://HOST:PORT, where 0.0.0.0 stands for all addresses of this machine")
        return value

    @model_validator(mode="after")
    def _private(self) -> "FusionSettings":
        if bool(self.key) != bool(self.subscribers):
            raise ValueError("set both key and subscribers, or neither")
        if self.publish and not self.key and not re.match(LOOPBACK, self.publish):
            raise ValueError(f"{self.publish} is beyond loopback: set fusion.key and fusion.subscribers")
        return self


class TelemetrySettings(Section):
    exporter: Literal["none", "file", "otlp"] = "none"
    """Where spans go: nowhere, to a file (OTLP/JSON lines, see `peoplecounter trace`), or to a collector (OTLP/HTTP)"""
    ratio: float = Field(0.01, ge=0, le=1)
    """Share of frames that are traced"""
    file: str = "traces.jsonl"
    """File of the exporter 'file'; all services append to it"""
    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    """URL of the exporter 'otlp'"""
    prometheus: str = ""
    """127.0.0.1:PORT where Prometheus can scrape the group's metrics; empty: off"""
    metrics_endpoint: str = ""
    """URL (…/v1/metrics) of a collector that gets the group's metrics every 10 s by OTLP/HTTP; empty: off"""

    @property
    def metrics(self) -> bool:
        """True when metrics are scraped or pushed."""
        return bool(self.prometheus or self.metrics_endpoint)

    @field_validator("prometheus")
    @classmethod
    def _on_loopback(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (re.match(r"127\.\d+\.\d+\.\d+\Z", host) and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("expected 127.0.0.1:PORT; to send metrics to another machine set metrics_endpoint")
        return value

    @field_validator("endpoint", "metrics_endpoint")
    @classmethod
    def _a_url(cls, value: str, info: ValidationInfo) -> str:
        kind, other = ("traces", "metrics") if info.field_name == "endpoint" else ("metrics", "traces")
        if value and (not re.match(r"https?://[^/\s]+/\S", value) or value.endswith(f"/v1/{other}")):
            raise ValueError(f"expected the URL of a collector of {kind}: http(s)://HOST:4318/v1/{kind}")
        return value


class DashboardSettings(Section):
    listen: str = "auto"
    """HOST:PORT of the pages and the API; auto: with `run` a free port of 127.0.0.1, otherwise none; empty: none"""
    video: Literal["auto", "off", "background", "pixelated", "on"] = "auto"
    """Pictures on the pages, see deploy/SECURITY.md; auto: on, but off where listen or hosts are beyond loopback"""
    token_file: str = ""
    """File of those who may log in, see 'peoplecounter dashboard token'; required beyond loopback"""
    tls_certificate: str = ""
    """PEM file with the certificate, and those between it and its root; required beyond loopback, with tls_key"""
    tls_key: str = ""
    """PEM file with the key of the certificate"""
    behind_proxy: bool = False
    """A proxy in front of the dashboard speaks TLS: it may listen without, and its users come by https"""
    hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+(:\d{1,5})?$")], ...] = ()
    """Names by which browsers reach it, beside loopback and the address of listen, e.g. counter.example.com"""

    @field_validator("listen")
    @classmethod
    def _an_address(cls, value: str) -> str:
        found = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})", value)
        if value not in ("", "auto") and (found is None or int(found[2]) > 65_535):
            raise ValueError("expected HOST:PORT, e.g. 127.0.0.1:8650")
        return value

    @model_validator(mode="after")
    def _private(self) -> "DashboardSettings":
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("set both tls_certificate and tls_key, or neither")
        if self.beyond_loopback and not self.token_file:
            raise ValueError("the dashboard can be reached from other machines: set token_file")
        if self.address and not self.listens_on_loopback and not (self.tls_key or self.behind_proxy):
            raise ValueError(f"{self.listen} is beyond loopback: set tls_certificate and tls_key, or behind_proxy")
        return self

    @property
    def address(self) -> tuple[str, int] | None:
        """(host, port) to listen on; None: there is no dashboard."""
        if self.listen in ("", "auto"):
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def speaks_tls(self) -> bool:
        """True when browsers come by https."""
        return bool(self.tls_key) or self.behind_proxy

    @property
    def listens_on_loopback(self) -> bool:
        return self.address is not None and bool(re.fullmatch(r"127\.\d+\.\d+\.\d+|::1|localhost", self.address[0]))

    @property
    def beyond_loopback(self) -> bool:
        """True when other machines can reach it, by themselves or by a proxy."""
        return self.address is not None and (not self.listens_on_loopback or self.behind_proxy or bool(self.hosts))

    @property
    def pictures(self) -> str:
        """What is shown of the pictures: "off", "background", "pixelated" or "on"."""
        if self.address is None:
            return "off"
        return ("off" if self.beyond_loopback else "on") if self.video == "auto" else self.video


Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BudgetSettings(Section):
    end_to_end_ms: Budget = 33
    """A live frame, from its packet to its published count: p95 over the last 10 s, ms; 0: no budget"""
    fusion_wait_ms: Budget = 8
    """From the first answer of a frame to the last, ms"""
    infer_tiles_ms: Budget = 20
    """Inference of all other views of a frame, ms"""
    infer_global_ms: Budget = 15
    """Inference of the whole frame, ms"""
    preprocess_ms: Budget = 16
    """The preprocessing kernel, ms"""
    decode_ms: Budget = 42
    """Decoding of a frame, ms"""

    @property
    def by_name(self) -> dict[str, float]:
        """Stage, hop or end_to_end (as fusion publishes their times) -> budget, ms. Only budgets that are set."""
        return {field.removesuffix("_ms"): ms for field, ms in self.model_dump().items() if ms}


class WorkerSettings(Section):
    preprocess: int = Field(1, ge=1, le=16)
    """Number of preprocess processes"""
    infer_global: int = Field(1, ge=1, le=16)
    """Number of infer_global processes"""
    infer_tiles: int = Field(0, ge=0, le=32)
    """Number of infer_tiles processes; 0: on a CPU one for each core, at most 16; on a GPU 1"""
    fusion: int = Field(1, ge=1, le=16)
    """Number of fusion processes, which share the sources by their names; more of them for several GPUs"""


def default_run_dir() -> str:
    """systemd's RuntimeDirectory, or this user's directory on a tmpfs."""
    if os.environ.get("RUNTIME_DIRECTORY"):
        return os.environ["RUNTIME_DIRECTORY"].split(":")[0]
    base = os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"
    return f"{base}/peoplecounter-{os.getuid()}"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    run_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(default_factory=lambda: Path(default_run_dir()))
    """Private directory of sockets, locks and shared memory: put it on a tmpfs"""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """What decodes and infers; auto: cuda if the model is a TensorRT plan, or a served one and CUDA is available"""
    cores: int = Field(0, ge=0, le=1024)
    """Cores for inference on a CPU; 0: all that the processes may use, by their affinity and their cgroup's quota"""
    gpu: str = Field("", pattern=f"^({GPU})?$")
    """GPU of this group: its number, as nvidia-smi shows it, or its UUID; empty: the first that is visible"""
    gpus: Annotated[tuple[Annotated[str, Field(pattern=GPUS)], ...], NoDecode] = ()
    """Several GPUs, e.g. [0, 1], or "all": each gets its own workers, and they share the sources; instead of gpu"""
    mps: Literal["auto", "off"] = "auto"
    """Whether `run` starts a private MPS daemon for a cuda group; auto: if it is installed and none runs yet"""
    deadline_ms: int = Field(2_000, ge=10, le=60_000)
    """A live frame older than this is dropped, ms"""
    log_level: Level = "info"
    """Minimum level that is logged; see also `peoplecounter log`"""
    log_format: Literal["text", "json"] = "text"
    """Log text lines, or one JSON object a line"""
    heartbeat: str = ""
    """File to which a service writes its pid once a second, for health checks: deploy/compose/healthy.sh"""
    sources: dict[Name, SourceSettings] = {}
    """[sources.NAME] tables, one per camera or file"""
    data_dir: str = ""
    """Private directory on a disk for event logs and history: totals survive a reboot; empty: they are in run_dir"""
    timezone: str = "UTC"
    """Where the cameras are, e.g. Europe/Berlin: for daily resets, and for the intervals of `peoplecounter history`"""
    areas: dict[Name, AreaSettings] = {}
    """[areas.NAME] tables: places whose entrances are lines, of one or several cameras"""
    alerts: dict[Name, AlertSettings] = {}
    """[alerts.NAME] tables"""
    lines_dir: str = ""
    """Private directory of lines and zones added at run time; empty: in data_dir, or in run_dir"""
    sources_dir: str = ""
    """Private directory of sources added at run time; on a disk they survive a reboot; empty: in run_dir"""
    workers: WorkerSettings = WorkerSettings()
    link: LinkSettings = LinkSettings()
    decoder: DecoderSettings = DecoderSettings()
    views: ViewSettings = ViewSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    engine: EngineSettings = EngineSettings()
    fusion: FusionSettings = FusionSettings()
    history: HistorySettings = HistorySettings()
    dashboard: DashboardSettings = DashboardSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    budgets: BudgetSettings = BudgetSettings()

    @field_validator("timezone")
    @classmethod
    def _a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a known time zone: use a name such as Europe/Berlin") from None
        return value

    @field_validator("gpus", mode="before")
    @classmethod
    def _a_list_of_texts(cls, value: object) -> object:
        if isinstance(value, str):
            return re.findall(r"[^\s,\[\]\"']+", value)
        return [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]

    @model_validator(mode="after")
    def _one_way_to_say(self) -> "Settings":
        if self.gpu and self.gpus:
            raise ValueError("gpu and gpus are two ways to say the same: set one of them")
        if (ALL_GPUS in self.gpus and len(self.gpus) > 1) or len(set(self.gpus)) < len(self.gpus):
            raise ValueError(f"gpus names a GPU twice: set it to {ALL_GPUS!r}, or to different GPUs")
        return self

    @model_validator(mode="after")
    def _known_areas(self) -> "Settings":
        for name, alert in self.alerts.items():
            if alert.area is not None and alert.area not in self.areas:
                raise ValueError(f"the alert {name!r} watches the area {alert.area!r}, which does not exist")
        return self

    @property
    def data(self) -> Path:
        """Where event logs are: data_dir, or a folder of run_dir."""
        return Path(self.data_dir) if self.data_dir else self.run_dir / DATA

    @property
    def history_url(self) -> str:
        """Where the history is stored; empty: nowhere."""
        if self.history.database != "auto":
            return self.history.database
        installed = self.data_dir and importlib.util.find_spec("sqlalchemy")
        return f"sqlite:///{Path(self.data_dir).absolute()}/history.db" if installed else ""

    @property
    def publish(self) -> str:
        """The private endpoint where counts are always published, in addition to fusion.publish."""
        return f"ipc://{self.run_dir}/counts.sock"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_VARIABLE)
        return init_settings, env_settings, *([_SettingsFile(settings_cls, file)] if file else [])


class _SettingsFile(TomlConfigSettingsSource):
    """The settings of a TOML file, whose relative paths are relative to the file."""

    def __call__(self) -> dict[str, Any]:
        values, folder = super().__call__(), Path(os.environ[CONFIG_VARIABLE]).absolute().parent
        tables: list[Any] = [values, *(values.get(name) for name in ("engine", "fusion", "telemetry"))]
        sources = values.get("sources")
        tables += sources.values() if isinstance(sources, dict) else []
        for table in tables:
            for key in PATHS & table.keys() if isinstance(table, dict) else ():
                path = table[key]
                if isinstance(path, str) and path and "://" not in path:
                    table[key] = str(folder / path)
        return values


def load_settings(**overrides: Any) -> Settings:
    """Settings from the file named by PEOPLECOUNTER_CONFIG, the environment, and overrides; the latter take precedence.

    Raises AppError, naming the setting, when a file is missing or unreadable, a key is unknown (with the most similar
    one that exists) or a value is out of bounds.
    """
    file = os.environ.get(CONFIG_VARIABLE)
    if file:
        try:
            Path(file).open().close()
        except OSError as error:
            raise AppError(f"The configuration file {file} cannot be read: {error.strerror}.", NO_INPUT) from None
    known = key_paths()
    for variable in os.environ:
        path = variable.removeprefix(PREFIX).lower().replace("__", ".")
        if variable.startswith(PREFIX) and variable != CONFIG_VARIABLE and not _is_known(path, known):
            raise AppError(
                f"The environment variable {variable} is not a setting: {_nearest(path, known, environment=True)}"
            )
    try:
        return Settings(**overrides)
    except tomllib.TOMLDecodeError as error:
        raise AppError(f"The configuration file {file} is not valid TOML: {error}.") from None
    except (ValidationError, ValueError) as error:
        raise AppError(_message(error, known)) from None


OneSection = TypeVar("OneSection", bound=Section)


def section_settings(kind: type[OneSection], **values: Any) -> OneSection:
    """The settings of one source, line or zone. Raises AppError, which never contains a URL."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise AppError(_message(error, {})) from None


def requested_log_format() -> str:
    """The log format of the environment or file, even when other settings there are invalid; "text" if unclear."""
    chosen = os.environ.get(PREFIX + "LOG_FORMAT")
    if chosen is None and (file := os.environ.get(CONFIG_VARIABLE)):
        try:
            chosen = tomllib.loads(Path(file).read_text()).get("log_format")
        except (OSError, ValueError):  # the file itself may be the error that is being reported
            chosen = None
    return "json" if chosen == "json" else "text"


def key_paths() -> dict[str, Any]:
    """Dotted name -> pydantic field of every setting; `sources.NAME` stands for each source, and so on."""
    return {path: model.model_fields[name] for path, model, name in _fields(Settings)}


def meaning(path: str) -> str:
    """What the docstring below a setting of key_paths() says.

    It is read from the source when it is asked for: pydantic would do it in every process that starts.
    """
    (model, field), found = next((model, name) for known, model, name in _fields(Settings) if known == path), ""
    for kind in model.__mro__:
        if kind in (BaseSettings, BaseModel) or found:
            break
        (written,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(written, ast.ClassDef)
        for one, below in pairwise(written.body):
            if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == field and isinstance(below, ast.Expr):
                found = ast.literal_eval(below.value)
    return found


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """(dotted name, model, its field) of every setting in a model."""
    for name, field in model.model_fields.items():
        kind, path = field.annotation, prefix + name
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _fields(kind, f"{path}.")
            continue
        yield path, model, name
        if get_origin(kind) is dict and issubclass(section := get_args(kind)[1], Section):
            yield from _fields(section, f"{path}.NAME.")


def _is_known(path: str, known: dict[str, Any]) -> bool:
    return path in known or any(key.startswith(path + ".") for key in known) or path.startswith(TABLES)


def _nearest(path: str, known: dict[str, Any], environment: bool = False) -> str:
    namesakes = [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]  # in another section
    parent, _, leaf = path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    similar = [siblings[one] for one in difflib.get_close_matches(leaf, siblings, 1, 0.75)]
    near = similar or sorted(namesakes, key=len) or difflib.get_close_matches(path, known, 1, 0.4)
    if not near:
        return "see the table of settings in deploy/SETTINGS.md"
    name = PREFIX + near[0].upper().replace(".", "__") if environment else near[0]
    return f"did you mean {name!r}?"


def _message(error: Exception, known: dict[str, Any]) -> str:
    if not isinstance(error, ValidationError):
        return f"The settings cannot be read: {error}."
    first = error.errors()[0]
    path = ".".join(str(step) for step in first["loc"])
    generic = re.sub(r"(^|\.)(sources|lines|zones|areas|alerts)\.[^.]+\.", r"\1\2.NAME.", path)
    if first["type"] == "extra_forbidden":
        return f"The setting {path!r} does not exist: {_nearest(generic, known)}"
    problem = first["msg"].removeprefix("Value error, ")
    setting = re.sub(r"(\.\d+)+$", "", generic)
    if setting in known and first["type"] in DESCRIBED:
        problem = f"{problem}. It is: {meaning(setting)}"
    if not path:
        return f"The settings are not valid: {problem}."
    if first["loc"][-1] in SECRET or isinstance(first["input"], dict):
        return f"The setting {path!r} is not valid: {problem[0].lower()}{problem[1:]}."
    return f"The setting {path!r} is {str(first['input'])[:60]!r}: {problem[0].lower()}{problem[1:]}."
