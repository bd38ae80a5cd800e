"""One self-contained HTML page: no script, nothing from the network, light or dark as the browser prefers."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, AppError

STAGES = ("decode", "copy", "preprocess", "infer_global", "infer_tiles", "fusion")
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #5c6672; --line: #dce1e7; --paper: #ffffff; --card: #f5f7f9;
  --good: #1a7f4b; --bad: #b3382c; --decode: #2f6fb7; --copy: #6aa9dd; --preprocess: #2a9d8f; --infer_global: #e0a030;
  --infer_tiles: #d9632a; --fusion: #8657b5; --wait: #c3cad2; --before: #b4bdc7; --after: #2f6fb7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #98a2ad; --line: #333b44; --paper: #14181d;
  --card: #1c2229; --good: #57c78d; --bad: #ef7f72; --decode: #5c9be0; --copy: #8fc1ea; --preprocess: #4cc0b1;
  --infer_global: #edbb5a; --infer_tiles: #ee8350; --fusion: #ab82d8; --wait: #47515c; --before: #5a6570;
  --after: #5c9be0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 40px 24px 80px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 52px 0 4px; }
h3 { font-size: 15px; margin: 26px 0 2px; }
p { margin: 4px 0 14px; max-width: 74ch; } .soft, figcaption { color: var(--soft); }
figure { margin: 14px 0 26px; } figcaption { font-size: 13px; margin-top: 6px; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12.5px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
small { color: var(--soft); display: block; font-size: 12.5px; } small code { font-size: 11.5px; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  flex: 1 1 170px; }
.card b { display: block; font-size: 25px; line-height: 1.25; letter-spacing: -0.01em; }
.card span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg .small { font-size: 11px; } svg .soft { fill: var(--soft); } svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .curve { fill: none; stroke-width: 2; }
"""


def page(title: str, lead: str, body: Iterable[str]) -> str:
    """The whole page; `lead` is text, `body` is HTML."""
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    return (
        f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p class='soft'>{escape(lead)}</p>{''.join(body)}</body></html>\n"
    )


def write(path: Path, text: str) -> None:
    """Writes a page. Raises AppError when it cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        raise AppError(f"{path} cannot be written: {error.strerror}.", NO_INPUT) from None


def section(title: str, about: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2><p class='soft'>{escape(about)}</p>{''.join(parts)}"


def figure(svg: str, caption: str = "") -> str:
    return f"<figure><div class='wide'>{svg}</div><figcaption>{caption}</figcaption></figure>"


def cards(items: Iterable[tuple[str, str]]) -> str:
    """(number, what it is), in large type."""
    shown = (f"<div class='card'><b>{escape(number)}</b><span>{escape(what)}</span></div>" for number, what in items)
    return f"<div class='cards'>{''.join(shown)}</div>"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table. Cells are HTML; a title that starts with > marks a column of numbers."""
    titles = list(titles)
    kinds = [" class='n'" if title.startswith(">") else "" for title in titles]
    head = "".join(f"<th{kind}>{escape(title.lstrip('>'))}</th>" for title, kind in zip(titles, kinds))
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{cell}</td>' for k, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
