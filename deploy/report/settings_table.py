"""Prints deploy/SETTINGS.md from the settings.

`python -m peoplecounter.deploy.report.settings_table > deploy/SETTINGS.md`
"""

from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from peoplecounter.common.settings import key_paths, meaning


def table() -> str:
    """Markdown: setting, type and bounds, default, meaning."""
    lines = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    for name, field in key_paths().items():
        if get_origin(field.annotation) is dict:  # its tables follow
            continue
        lines.append(f"| `{name}` | {_kind(field)} | {_default(field)} | {meaning(name)} |")
    return "\n".join(lines)


def _kind(field) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    bounds = [
        f"{sign} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, sign in _SIGNS.items()
        if hasattr(rule, key)
    ]
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        of = str(get_args(kind)[0])
        return "names" if "str" in of else "points" if "tuple" in of else "numbers"
    kind = {"str": "text", "bool": "true, false", "Path": "path"}.get(kind.__name__, kind.__name__)
    return " ".join([kind, *bounds])


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _default(field) -> str:
    if field.is_required():
        return "required"
    if field.default_factory:
        return "per user"
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    if field.annotation and "tuple" in str(field.annotation) and default is None:
        return "`auto`"
    return f"`{default}`" if default not in ("", None, ()) else "–"


PAGE = """# Settings

One TOML file (`--config FILE` or `PEOPLECOUNTER_CONFIG`), then variables such as `PEOPLECOUNTER_DECODER__SLOTS=5`,
then options of `run`; the latter take precedence. An unknown key is rejected; the error names the most similar one.

```toml
deadline_ms = 1000

[sources.entrance]
url = "rtsp://user:password@10.0.0.7/stream1"

[engine]
model = "/srv/models/yolo26n.onnx"

[workers]
infer_tiles = 2
```

This page is generated: `python -m peoplecounter.deploy.report.settings_table > deploy/SETTINGS.md`.

"""


def page() -> str:
    """The whole page."""
    return PAGE + table() + "\n"


if __name__ == "__main__":
    print(page(), end="")
