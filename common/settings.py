"""Every setting there is: one TOML file, then environment variables PEOPLECOUNTER_SECTION__KEY, the latter win."""

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from peoplecounter.common.errors import NO_INPUT, Refused
from peoplecounter.common.logs import Level

PREFIX = "PEOPLECOUNTER_"
CONFIG_VARIABLE = PREFIX + "CONFIG"  # path of the TOML file
ENDPOINT = r"tcp://[^/\s]+:\d+\Z"
LOOPBACK = r"tcp://(127\.\d+\.\d+\.\d+|\[::1\]|localhost):(\d+|\*)\Z"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME)]


def check_name(name: str, of: str) -> None:
    """Raises Refused for what cannot be the name of a source, a group or the like."""
    if not re.match(NAME, name):
        raise Refused(f"{name!r} is no name of {of}: letters, digits, - and _, at most 63.")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Section):
    url: str
    """File or URL that FFmpeg opens; http(s) is played like a file, RTSP and other streams are opened again"""
    realtime: bool = False
    """Play a file at its own rate, dropping frames when late, as a camera would; http cameras need it"""
    fps: float = Field(0, ge=0, le=1000)
    """Rate of a file played in real time, frames/s; 0: its own"""
    loop: bool = False
    """Start a file again when it ends"""

    @property
    def live(self) -> bool:
        """True for what cannot wait for us: network streams, and files played in real time."""
        return self.realtime or bool(re.match(r"(rtsps?|rtmps?|udp|rtp|srt|tcp)://", self.url))


class Link(Section):
    beat_ms: int = Field(250, ge=10, le=10_000)
    """How often the ends of a link tell each other that they live, ms"""
    silent_ms: int = Field(2_000, ge=100, le=60_000)
    """After how long without a beat a consumer gets no more work, ms"""
    credits: int = Field(2, ge=1, le=64)
    """Offers a consumer accepts before it has released the first"""

    @model_validator(mode="after")
    def _several_beats(self) -> "Link":
        if self.silent_ms < 4 * self.beat_ms:
            raise ValueError(f"silent_ms must be at least four beats, {4 * self.beat_ms} ms")
        return self


class Decoder(Section):
    slots: int = Field(4, ge=3, le=64)
    """Slots of a surfaces ring"""
    open_timeout_s: float = Field(5, gt=0, le=120)
    """Give up opening a network source after, s"""
    read_timeout_s: float = Field(2, gt=0, le=120)
    """Reconnect when a network source is mute for, s"""
    backoff_min_s: float = Field(0.5, gt=0, le=60)
    """First wait before reconnecting, doubled each time, s"""
    backoff_max_s: float = Field(30, gt=0, le=600)
    """Longest wait before reconnecting, s"""


class Preprocess(Section):
    slots: int = Field(0, ge=0, le=64)
    """Slots of the tensors ring, one frame each; 0: two more than there are sources, 3 at least"""
    overlap: float = Field(0.2, ge=0, le=0.5)
    """Overlap of neighbouring tiles, share of a side"""
    group: int = Field(16, ge=1, le=256)
    """Tiles an infer_tiles worker gets at once, at most"""

    @field_validator("slots")
    @classmethod
    def _one_each(cls, value: int) -> int:
        if 0 < value < 3:
            raise ValueError("a ring has 3 slots at least: one written, one waiting, one read")
        return value


class Engine(Section):
    model: str = ""
    """ONNX file, or TensorRT plan for cuda, or tcp://HOST:PORT where one is served; empty: the demo's, for its plaza"""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """What the model must be, by its SHA-256; empty: whatever lies there"""
    server_key: str = Field("", pattern=r"^([!-~]{40})?$")
    """Public key (CURVE, Z85) of a tcp:// model's server, which must prove that it has it; needed beyond loopback"""
    limit_mb: int = Field(1024, ge=1, le=65_536)
    """Largest model that is loaded, MB"""
    threads: int = Field(0, ge=0, le=256)
    """ONNX Runtime threads of each infer process; 0: share the cores between them"""
    score: float = Field(0.2, gt=0, lt=1)
    """Least score of a detection that is sent to fusion"""
    person_class: int = Field(0, ge=0)
    """Index of the class to count"""


class Fusion(Section):
    publish: str = ""
    """Where counts are published besides counts.sock in run_dir: tcp://HOST:PORT; beyond loopback with keys"""
    key: str = ""
    """File with the secret key that fusion proves itself with on TCP, see 'peoplecounter keys'; empty: no encryption"""
    subscribers: str = ""
    """File of the public keys of those who may subscribe on TCP, one a line; read for each that connects"""
    reorder_frames: int = Field(16, ge=1, le=256)
    """A frame is given up when more than this many later ones are complete"""
    idle_s: float = Field(10, gt=0, le=600)
    """A frame without deadline is given up when no result came and no ring held it for, s"""
    same_iou: float = Field(0.5, gt=0, le=1)
    """Boxes of two views overlapping by this intersection over union are one person"""
    same_ios: float = Field(0.7, gt=0, le=1)
    """Boxes of two views overlapping by this share of the smaller one are one person"""
    new_score: float = Field(0.35, gt=0, lt=1)
    """Least score of a person where the frame before had none"""
    edge_px: float = Field(2, ge=0, le=64)
    """A box this close to an inner tile edge counts as cut by it, px"""

    @field_validator("publish")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.match(ENDPOINT, value):
            raise ValueError("counts are published on tcp://HOST:PORT, 0.0.0.0 being all of this machine's addresses")
        return value

    @model_validator(mode="after")
    def _private(self) -> "Fusion":
        if bool(self.key) != bool(self.subscribers):
            raise ValueError("key and subscribers belong together: one says who publishes, the other who may listen")
        if self.publish and not self.key and not re.match(LOOPBACK, self.publish):
            raise ValueError(f"{self.publish} is beyond loopback: set fusion.key and fusion.subscribers")
        return self


class Telemetry(Section):
    exporter: Literal["none", "file", "otlp"] = "none"
    """Where spans go: nowhere, OTLP/JSON lines in a file, see `peoplecounter trace`, or a collector by OTLP/HTTP"""
    ratio: float = Field(0.01, ge=0, le=1)
    """Share of the frames that are traced"""
    file: str = "traces.jsonl"
    """File of the exporter 'file', appended to by all services"""
    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    """URL of the exporter 'otlp'"""
    prometheus: str = ""
    """127.0.0.1:PORT where Prometheus may scrape the group's metrics; empty: nowhere"""
    metrics_endpoint: str = ""
    """URL of a collector that gets the group's metrics every 10 s by OTLP/HTTP, …/v1/metrics; empty: none"""

    @property
    def metrics(self) -> bool:
        """True when somebody wants metrics."""
        return bool(self.prometheus or self.metrics_endpoint)

    @field_validator("prometheus")
    @classmethod
    def _on_loopback(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (re.match(r"127\.\d+\.\d+\.\d+\Z", host) and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("metrics are scraped on 127.0.0.1:PORT alone; other machines get them by metrics_endpoint")
        return value

    @field_validator("endpoint", "metrics_endpoint")
    @classmethod
    def _a_url(cls, value: str, info: ValidationInfo) -> str:
        kind, other = ("traces", "metrics") if info.field_name == "endpoint" else ("metrics", "traces")
        if value and (not re.match(r"https?://[^/\s]+/\S", value) or value.endswith(f"/v1/{other}")):
            raise ValueError(f"a collector of {kind} is http://HOST:4318/v1/{kind}, or https")
        return value


Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Budgets(Section):
    end_to_end_ms: Budget = 33
    """From a live frame's packet to its published count, p95 of those counted in the last 10 s, ms; 0: no budget"""
    fusion_wait_ms: Budget = 8
    """From the first answer of a frame until the last is there, ms"""
    infer_tiles_ms: Budget = 20
    """All tiles of a frame, ms"""
    infer_global_ms: Budget = 15
    """The whole frame, ms"""
    preprocess_ms: Budget = 16
    """The kernel, ms"""
    decode_ms: Budget = 42
    """A picture, ms"""

    @property
    def by_name(self) -> dict[str, float]:
        """Stage, hop or end_to_end, as fusion publishes their times -> ms, of those that are set."""
        return {field.removesuffix("_ms"): ms for field, ms in self.model_dump().items() if ms}


class Workers(Section):
    preprocess: int = Field(1, ge=1, le=16)
    """Processes of preprocess"""
    infer_global: int = Field(1, ge=1, le=16)
    """Processes of infer_global"""
    infer_tiles: int = Field(1, ge=1, le=32)
    """Processes of infer_tiles"""


def default_run_dir() -> str:
    """systemd's RuntimeDirectory, or this user's directory on a tmpfs."""
    if os.environ.get("RUNTIME_DIRECTORY"):
        return os.environ["RUNTIME_DIRECTORY"].split(":")[0]
    base = os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"
    return f"{base}/peoplecounter-{os.getuid()}"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    run_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(default_factory=lambda: Path(default_run_dir()))
    """Private directory of sockets, locks and shared memory: put it on a tmpfs"""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """What decodes and infers; auto: cuda for a TensorRT plan, where everything for it is there"""
    mps: Literal["auto", "off"] = "auto"
    """Whether `run` starts a private MPS daemon for a cuda group; auto: where it is installed and none runs yet"""
    deadline_ms: int = Field(2_000, ge=10, le=60_000)
    """A live frame older than this is dropped, ms"""
    log_level: Level = "info"
    """Least level of what is logged; see also `peoplecounter log`"""
    log_format: Literal["text", "json"] = "text"
    """Log lines for people, or one JSON object a line"""
    heartbeat: str = ""
    """File that gets the pid once a second while the service goes on, for health checks: deploy/compose/healthy.sh"""
    sources: dict[Name, Source] = {}
    """[sources.NAME] tables, one for each camera or file"""
    sources_dir: str = ""
    """Private directory of the sources added at run time: on a disk they outlive the machine; empty: in run_dir"""
    workers: Workers = Workers()
    link: Link = Link()
    decoder: Decoder = Decoder()
    preprocess: Preprocess = Preprocess()
    engine: Engine = Engine()
    fusion: Fusion = Fusion()
    telemetry: Telemetry = Telemetry()
    budgets: Budgets = Budgets()

    @property
    def publish(self) -> str:
        """The private endpoint where counts are always published; fusion.publish comes on top of it."""
        return f"ipc://{self.run_dir}/counts.sock"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        **_: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_VARIABLE)
        return init_settings, env_settings, *([TomlConfigSettingsSource(settings_cls, file)] if file else [])


def load_settings(**overrides: Any) -> Settings:
    """Settings from the file named by PEOPLECOUNTER_CONFIG, the environment, and overrides (strongest).

    Raises Refused, in one sentence that names the setting, when a file is missing or unreadable, a key is unknown
    (with the nearest one that exists) or a value is out of its bounds.
    """
    file = os.environ.get(CONFIG_VARIABLE)
    if file:
        try:
            Path(file).open().close()
        except OSError as error:
            raise Refused(f"The configuration file {file} cannot be read: {error.strerror}.", NO_INPUT) from None
    known = key_paths()
    for variable in os.environ:
        path = variable.removeprefix(PREFIX).lower().replace("__", ".")
        if variable.startswith(PREFIX) and variable != CONFIG_VARIABLE and not _is_known(path, known):
            raise Refused(
                f"The environment variable {variable} is no setting: {_nearest(path, known, environment=True)}."
            )
    try:
        return Settings(**overrides)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"The configuration file {file} is not valid TOML: {error}.") from None
    except (ValidationError, ValueError) as error:
        raise Refused(_sentence(error, known)) from None


def log_format() -> str:
    """The log format that is asked for, also where the other settings cannot be read; "text" where that is unclear."""
    chosen = os.environ.get(PREFIX + "LOG_FORMAT")
    if chosen is None and (file := os.environ.get(CONFIG_VARIABLE)):
        try:
            chosen = tomllib.loads(Path(file).read_text()).get("log_format")
        except (OSError, ValueError):  # which is what is being refused
            chosen = None
    return "json" if chosen == "json" else "text"


def key_paths(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> pydantic field of every setting; `sources.NAME` stands for any source."""
    paths = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            paths |= key_paths(kind, f"{prefix}{name}.")
        elif name == "sources":
            paths["sources"] = field
            paths |= key_paths(get_args(kind)[1], "sources.NAME.")
        else:
            paths[prefix + name] = field
    return paths


def _is_known(path: str, known: dict[str, Any]) -> bool:
    return path in known or any(key.startswith(path + ".") for key in known) or path.startswith("sources.")


def _nearest(path: str, known: dict[str, Any], environment: bool = False) -> str:
    near = difflib.get_close_matches(path, known, 1, 0.4)
    if not near:
        return "see the table of settings in the README"
    name = PREFIX + near[0].upper().replace(".", "__") if environment else near[0]
    return f"the nearest is {name!r}"


def _sentence(error: Exception, known: dict[str, Any]) -> str:
    if not isinstance(error, ValidationError):
        return f"The settings cannot be read: {error}."
    first = error.errors()[0]
    path = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        generic = re.sub(r"^sources\.[^.]+\.", "sources.NAME.", path)
        return f"The setting {path!r} does not exist: {_nearest(generic, known)}."
    problem = first["msg"].removeprefix("Value error, ")
    return f"The setting {path!r} is {str(first['input'])[:60]!r}: {problem[0].lower()}{problem[1:]}."
