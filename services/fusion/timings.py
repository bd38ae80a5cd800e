"""Where a frame's milliseconds went, from the times in its messages. Pure."""

from peoplecounter.common.topology import GLOBAL, TILES
from peoplecounter.services.fusion.join import PendingFrame

BRANCHES = {GLOBAL: "infer_global", TILES: "infer_tiles"}  # part -> the stage that answers it
AFTER = {"copy": "decode", "preprocess": "copy", "infer_global": "preprocess", "infer_tiles": "preprocess"}
AFTER_EARLY = AFTER | {"infer_global": "copy", "infer_tiles": "copy"}  # preprocess runs while the frame is decoded


def timings(frame: PendingFrame, began_ns: int, ended_ns: int) -> tuple[dict[str, float], dict[str, float]]:
    """(ms of each stage's work, ms between each stage and the one before it) of a frame with at least one answer.

    `began_ns`, `ended_ns`: fusion's own work on the frame.
    A stage of several parts lasts from the first part's begin to the last part's end. `fusion_wait` is the time between
    the ends of the two branches.
    """
    header = frame.header
    spans = {**header.marks, **(frame.confirmed.marks if frame.confirmed else {})}
    gpu_ms = {}
    for part, stage in BRANCHES.items():
        answers = [answer for (name, _), answer in frame.answers.items() if name == part]
        if answers:
            spans[stage] = min(a.began_ns for a in answers), max(a.ended_ns for a in answers)
            if any(a.gpu_ns for a in answers):
                gpu_ms[f"{stage}_gpu"] = _ms(sum(a.gpu_ns for a in answers))
    branch_ends = [spans[stage][1] for stage in BRANCHES.values() if stage in spans]
    last = max((stage for stage in BRANCHES.values() if stage in spans), key=lambda stage: spans[stage][1])
    spans["fusion"] = began_ns, ended_ns

    hops_ms = {}
    if "decode" in spans:
        hops_ms["packet>decode"] = _ms(spans["decode"][0] - header.captured_ns)
    for stage, before in (AFTER_EARLY if header.early else AFTER).items():
        if stage in spans and before in spans:
            hops_ms[f"{before}>{stage}"] = _ms(max(0, spans[stage][0] - spans[before][1]))
    hops_ms[f"{last}>fusion"] = _ms(began_ns - spans[last][1])
    if len(branch_ends) == len(BRANCHES):
        hops_ms["fusion_wait"] = _ms(max(branch_ends) - min(branch_ends))
    stages_ms = {stage: _ms(end - begin) for stage, (begin, end) in spans.items()}
    return stages_ms | gpu_ms, hops_ms


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
