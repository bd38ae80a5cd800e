"""Crossings against the truth: cases to verify by hand, and intervals from the literature."""

import numpy as np
import pytest

from peoplecounter.common.counting import LineSettings
from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError
from peoplecounter.deploy.report import crossings
from peoplecounter.deploy.report.crossings import (
    CrossingAt,
    compare_crossings,
    comparison_lines,
    crossings_needed,
    disagreement_lines,
    read_crossings,
    true_crossings,
    wilson,
    write_crossings,
)
from peoplecounter.services.fusion import track

SIZE = (100, 100)
LINE = LineSettings(points=((0.5, 0.0), (0.5, 1.0)), inside=(0.9, 0.5), band=0.1)  # to the right is in
EVENT = '{"kind":"crossings","source":"%s","line":"door","direction":"in","seq":3,"pts_s":%s}'


def ins(*times_s, line="door"):
    return [CrossingAt(line, "in", at_s) for at_s in times_s]


def outs(*times_s, line="door"):
    return [CrossingAt(line, "out", at_s) for at_s in times_s]


def walk(*xs, person="a", width=10, height=20):
    """Frame -> (ids, boxes): one person whose middle is at these x, px; None: not seen."""
    boxes = {x: [[x - width / 2, 50, x + width / 2, 50 + height]] for x in xs if x is not None}
    return {
        number: (np.array([] if x is None else [person], object), np.array(boxes.get(x, []), float).reshape(-1, 4))
        for number, x in enumerate(xs)
    }


def told(tracks, **line):
    lines = {"door": LINE.model_copy(update=line)}
    return [(c.direction, c.at_s) for c in true_crossings(tracks, lines, SIZE, lambda frame: frame / 10)]


def test_pairs_have_one_line_one_direction_and_are_near():
    result = compare_crossings(ins(1, 5, 9) + outs(2) + ins(1, line="gate"), ins(1.5, 6.1) + outs(3) + outs(9))
    assert (result["found"], result["true"], result["matched"]) == (5, 4, 2)
    assert (result["precision"], result["recall"]) == (0.4, 0.5)
    assert result["in"] == {"found": 4, "true": 2, "matched": 1}
    assert result["out"] == {"found": 1, "true": 2, "matched": 1}
    door, gate = result["lines"]["door"], result["lines"]["gate"]
    assert (door["found"], door["true"], door["matched"]) == (4, 4, 2)
    assert (gate["precision"], gate["recall"], gate["recall_interval"]) == (0, None, None)
    assert result["only_found"] == [
        {"line": "gate", "direction": "in", "at_s": 1},
        {"line": "door", "direction": "in", "at_s": 5},
        {"line": "door", "direction": "in", "at_s": 9},
    ]
    assert [row["at_s"] for row in result["only_true"]] == [6.1, 9]


def test_the_nearest_pair_first_and_each_crossing_once():
    assert compare_crossings(ins(1.0), ins(0.5, 1.1))["only_true"] == [{"line": "door", "direction": "in", "at_s": 0.5}]
    assert compare_crossings(ins(1.0, 1.1), ins(1.0))["matched"] == 1
    assert compare_crossings(ins(3, 1, 2), ins(2, 3, 1))["matched"] == 3  # in any order
    assert compare_crossings(ins(4.2), ins(5.2))["matched"] == 1  # 1 s is near, in floating point, too
    assert compare_crossings(ins(4.2), ins(5.2), tolerance_s=0.9)["matched"] == 0


def test_nothing_found_and_nothing_true():
    result = compare_crossings([], [])
    assert (result["precision"], result["recall"], result["precision_interval"], result["lines"]) == (None,) * 3 + ({},)
    assert comparison_lines(result) == ["crossings: 0 found, 0 true, 0 match within 1 s"]


@pytest.mark.parametrize(
    "right, of, interval",
    [(12, 12, [0.7575, 1.0]), (73, 73, [0.95, 1.0]), (0, 1, [0.0, 0.7935]), (81, 263, [0.2553, 0.3662])],
)
def test_intervals_are_wilsons(right, of, interval):
    """81 of 263 is the example of Newcombe (1998), table I; the others follow from n / (n + z²)."""
    assert wilson(right, of) == interval


def test_how_many_crossings_a_claim_needs():
    assert [crossings_needed(claim) for claim in (0, 0.5, 0.9, 0.95, 0.99)] == [0, 4, 35, 73, 381]
    for claim in (0.9, 0.95):
        needed = crossings_needed(claim)
        assert wilson(needed, needed)[0] >= claim > wilson(needed - 1, needed - 1)[0]


def test_what_people_read():
    lines = comparison_lines(compare_crossings(ins(*range(0, 36, 3)), ins(*range(0, 36, 3))))
    assert lines == [
        "crossings: 12 found, 12 true, 12 match within 1 s",
        "door in: 12 found, 12 true, 12 match",
        "door out: 0 found, 0 true, 0 match",
        "precision (found ones are true): 100 % of 12: between 76 % and 100 %, with 95 % confidence",
        "recall (true ones are found): 100 % of 12: between 76 % and 100 %, with 95 % confidence",
        "To claim 95 % you need 73 crossings without an error.",
    ]
    assert "99 % of 300" in comparison_lines(compare_crossings(ins(*range(300)), ins(*range(299)), 0.1))[3]
    assert "claim" not in comparison_lines(compare_crossings(ins(*range(73)), ins(*range(73)), 0.1))[-1]
    assert disagreement_lines(compare_crossings(ins(7), outs(2.5))) == [
        "     2.50 s  door out  marked, not counted",
        "     7.00 s  door in  counted, not marked",
    ]


def test_crossings_are_read_from_events_and_from_a_csv(tmp_path):
    events, marks = tmp_path / "events", tmp_path / "marks"
    events.write_text(f'{EVENT % ("a", 1.5)}\n{{"kind":"zones","source":"a","zone":"hall"}}\n{EVENT % ("a", 20)}\n')
    assert read_crossings(events) == ins(1.5, 20)
    marks.write_text(write_crossings(ins(12345.6789) + outs(2)))
    assert marks.read_text() == "line,direction,at_s\ndoor,in,12345.679\ndoor,out,2\n"
    assert read_crossings(marks) == ins(12345.679) + outs(2)
    marks.write_text("\ufeffat_s,direction,line,by\r\n 3 ,out,door,me\r\n", newline="")  # as a spreadsheet saves it
    assert read_crossings(marks) == outs(3)
    for empty in ("", "line,direction,at_s\n"):
        marks.write_text(empty)
        assert read_crossings(marks) == []


@pytest.mark.parametrize(
    "content, message",
    [
        ("frame,person\n1,2\n", "Line 1 of .* is not a crossing"),
        ("line,direction,at_s\ndoor,in,1\ndoor,up,2\n", "Line 3 of"),
        ("line,direction,at_s\ndoor,in\n", "Line 2 of"),
        ("line,direction,at_s\ndoor,in,nan\n", "Line 2 of"),
        ("line,direction,at_s\n,in,1\n", "Line 2 of"),
        (EVENT % ("a", 1) + '\n{"source":"a","seq":0,"count":1}\n', "Line 2 of .* or a CSV with the columns"),
        (EVENT % ("a", 1) + "\n[]\n", "Line 2 of"),
        (EVENT % ("a", "null"), "Line 1 of .* has no pts_s"),
        (EVENT % ("b", 1) + "\n" + EVENT % ("a", 2), "several sources: a, b"),
        (b"\xff\xfe\x00", "Line 1 of"),
    ],
)
def test_other_files_are_rejected(tmp_path, content, message):
    path = tmp_path / "crossings"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AppError, match=message) as error:
        read_crossings(path)
    assert error.value.code == BAD_DATA


def test_a_missing_file_is_rejected(tmp_path):
    with pytest.raises(AppError, match="cannot be read: No such file") as error:
        read_crossings(tmp_path / "nowhere")
    assert error.value.code == NO_INPUT


def test_true_tracks_cross_as_the_product_counts():
    assert told(walk(30, 38, 46, 54, 62)) == [("in", 0.3)]  # 4 px beyond the line, the band is 2 px
    assert told(walk(30, 40, 49, 51, 62)) == [("in", 0.4)]  # still within the band in frame 3
    assert told(walk(30, 40, 51, 49, 40)) == []
    assert told(walk(40, 46, 54, 60, 54, 46, 40)) == [("in", 0.2), ("out", 0.5)]
    assert told(walk(46, 54)) == []  # two frames do not confirm a person
    assert told(walk(46, 54, 60)) == [("in", 0.2)]
    assert told(walk(30, 40, None, None, 60)) == [("in", 0.4)]  # behind a pillar
    assert told({}) == []


def test_a_true_line_that_counts_persons_does_so_at_their_end():
    assert told(walk(30, 40, 60, 70, None), count="persons") == [("in", 0.3)]
    assert told(walk(30, 40, 60, 40, 30), count="persons") == []


def test_true_people_come_and_go():
    first, second = walk(30, 40, 60, 70, None, None), walk(None, None, 70, 60, 40, 30, person="b")
    both = {n: tuple(map(np.concatenate, zip(first[n], second[n]))) for n in first}
    assert told(both) == [("in", 0.2), ("out", 0.4)]
    twice = {0: (np.array(["a", "a"], object), np.zeros((2, 4)))}
    with pytest.raises(AppError, match="Frame 0 of the truth has a person twice: a, a"):
        told(twice)


def test_a_person_is_confirmed_as_by_the_tracker():
    assert crossings.CONFIRMED_FRAMES == track.CONFIRMED_HITS
