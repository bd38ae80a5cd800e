"""Persons picked on the GPU are those that a CPU finds, at the same places; without a GPU in Triton's interpreter."""

import numpy as np
import pytest

from peoplecounter.common.engine.heads import head
from peoplecounter.common.engine.layouts import Context, Output
from peoplecounter.common.engine.placing import Placing, each_alone
from peoplecounter.common.errors import ModelOutputError
from peoplecounter.common.views import table

torch = pytest.importorskip("torch", reason="torch is installed for Python 3.11 only, see the extra 'dev'")
pytest.importorskip("triton")
from tests.support.select import selected  # noqa: E402

SIZE = (640, 640)


def rows_of(images, count, columns=6, dtype="float32"):
    """Rows of three classes, the best first, a few of them confident; some images show nobody."""
    random = np.random.default_rng(0)
    rows = np.zeros((images, count, columns), np.float32)
    rows[..., :2] = random.random((images, count, 2)) * 500 - 20
    rows[..., 2:4] = rows[..., :2] + 5 + random.random((images, count, 2)) * 200
    rows[..., 4] = np.sort(random.random((images, count)) ** 4)[:, ::-1]
    rows[..., 5] = random.integers(0, 3, (images, count))
    rows[::3, :, 5] = 2
    if columns > 6:
        rows[..., 6:] = np.nan  # masks, which nobody reads
    return rows.astype(dtype)


def head_of(rows, person=0):
    outputs = [Output("output0", ["B", *rows.shape[1:]])]
    outputs += [Output("output1", ["B", 32, 160, 160])] if rows.shape[2] > 6 else []
    return head(outputs, Context(SIZE), person=person)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "images, count, columns, person", [(5, 300, 6, 0), (2, 300, 38, 1), (2, 7, 6, 0), (4, 1, 6, 1)]
)
@pytest.mark.parametrize("width, height, first", [(3840, 2160, 3), (1367, 769, 1), (480, 360, 0)])
def test_the_same_persons_as_on_the_cpu(images, count, columns, person, dtype, width, height, first):
    rows = rows_of(images, count, columns, dtype)
    views = table(width, height, SIZE)
    placing = Placing((views[first:] + 5 * views)[:images], first, SIZE, (width, height), 2)
    one = head_of(rows, person)
    expected = placing.rows(one.persons([rows.astype(np.float32)], 0.2))
    np.testing.assert_array_equal(selected(one, rows, 0.2, placing), expected)


def test_rows_that_show_nobody_are_no_persons():
    rows = np.zeros((3, 300, 6), np.float32)
    assert selected(head_of(rows), rows, 0.2, each_alone(SIZE, 3)).shape == (0, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", range(5))
def test_what_is_no_number_is_an_error(column, value):
    rows = rows_of(4, 300)
    rows[1, 5, 4:6] = 0.9, 0
    rows[1, 5, column] = value
    one = head_of(rows)
    for find in (lambda: one.persons([rows], 0.2), lambda: selected(one, rows, 0.2, each_alone(SIZE, 4))):
        with pytest.raises(ModelOutputError, match="not a number"):
            find()


def test_nan_in_a_row_of_nobody_is_an_error():
    rows = rows_of(4, 300)
    rows[2, 299, :] = [1, 1, np.nan, 4, 0, 5]
    with pytest.raises(ModelOutputError, match="not a number"):
        selected(head_of(rows), rows, 0.2, each_alone(SIZE, 4))


@pytest.mark.parametrize(
    "row, message",
    [
        ([10, 10, 50, 90, 0.9, 0.3], "no whole numbers"),
        ([40, 40, 8, 20, 0.9, 0], "end before they begin"),
        ([0.1, 0.1, 0.5, 0.9, 0.9, 0], "as shares of a side"),
        ([10, 10, 50, 90, 7, 0], "scores are above 1"),
        ([10, 10, 50, 9000, 0.9, 0], "far outside"),
    ],
)
def test_what_is_read_as_what_it_is_not_is_an_error_as_on_the_cpu(row, message):
    rows = np.tile(np.float32(row), (2, 300, 1))
    one = head_of(rows)
    for find in (lambda: one.persons([rows], 0.2), lambda: selected(one, rows, 0.2, each_alone(SIZE, 2))):
        with pytest.raises(ModelOutputError, match=message):
            find()
