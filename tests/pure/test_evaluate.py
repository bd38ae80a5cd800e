"""What a box is to the truth: a person, a second one, a part of one, or nobody."""

import numpy as np
import pytest

from peoplecounter.common.errors import AppError
from peoplecounter.deploy.report.evaluate import compare_boxes, match

TRUE = np.array([[0, 0, 100, 200], [300, 0, 400, 200]], float)


@pytest.mark.parametrize(
    "boxes, kinds",
    [
        ([], (0, 2, 0, 0, 0)),
        ([[0, 0, 100, 200], [305, 5, 400, 205]], (2, 0, 0, 0, 0)),
        ([[0, 0, 100, 200], [4, 4, 104, 204]], (1, 1, 1, 0, 0)),
        ([[10, 10, 60, 60]], (0, 2, 0, 1, 0)),
        ([[150, 0, 250, 200]], (0, 2, 0, 0, 1)),
        ([[60, 0, 160, 200]], (0, 2, 0, 0, 1)),
    ],
)
def test_kinds_of_boxes(boxes, kinds):
    found = np.array([[*box, 0.9] for box in boxes], float).reshape(-1, 5)
    result = compare_boxes({0: found}, {0: TRUE})
    names = ("matched", "missed", "duplicate", "part", "without_truth")
    assert tuple(result[name] for name in names) == kinds and result["people"] == 2


def test_the_best_pairs_match_first():
    """A box between two people takes the nearer one, also when it comes first."""
    found = np.array([[20, 0, 120, 200], [0, 0, 100, 200]], float)
    assert match(found, TRUE).tolist() == [-1, 0]


def test_frames_without_people_or_boxes():
    nobody = np.zeros((0, 5))
    assert compare_boxes({0: nobody, 1: nobody}, {0: nobody[:, :4]})["frames"] == 1
    assert compare_boxes({0: np.ones((1, 5))}, {0: nobody[:, :4]})["without_truth"] == 1
    with pytest.raises(AppError, match="no frame in common"):
        compare_boxes({0: nobody}, {1: TRUE})
