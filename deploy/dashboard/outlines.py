"""Where the views of a frame lie in it, for the page that shows them."""

import threading

from peoplecounter.common import backend
from peoplecounter.common.engine.loading import cpu_engine
from peoplecounter.common.engine.model import plan_path
from peoplecounter.common.engine.sidecar import read_sidecar
from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.settings import Settings, ViewSettings


class ViewOutlines:
    """Asks the model once how large its images are. Threads may share it."""

    def __init__(self, settings: Settings):
        self._settings, self._lock = settings, threading.Lock()
        self._image: tuple[tuple[int, int], bool] | None = None  # (width, height), whether the whole lies at the corner

    def of(self, views: ViewSettings, size: tuple[int, int], stored: tuple[int, int]) -> list[dict]:
        """[{"level": scale, "x1", "y1", "x2", "y2"}] for upright frames of `size`, in px of frames as they are stored.

        Raises AppError.
        """
        with self._lock:
            self._image = self._image or self._read()
        image, corner = self._image
        outlines = []
        for view in views.within(self._settings.views).table(*size, image, corner):
            rows, columns, _, _ = view.window(image)
            right, down = stored[0] / view.width, stored[1] / view.height
            outlines.append(
                {
                    "level": round(view.width / size[0], 4),
                    "x1": round(columns.start * right, 1),
                    "y1": round(rows.start * down, 1),
                    "x2": round(columns.stop * right, 1),
                    "y2": round(rows.stop * down, 1),
                }
            )
        return outlines

    def _read(self) -> tuple[tuple[int, int], bool]:
        engine = self._settings.engine
        unknown = AppError("The size of the model's images is not known here.", SOFTWARE)
        if backend.is_endpoint(engine.model):
            raise unknown
        if backend.resolve(self._settings) == "cpu":
            loaded = cpu_engine(engine)
            loaded.close()
            return loaded.input.size, loaded.input.corner
        sidecar = read_sidecar(plan_path(engine.model))
        shape = list(sidecar.inputs[0]["shape"]) if sidecar and sidecar.inputs else []
        if len(shape) != 4 or min(shape[2:]) < 1:
            raise unknown
        return (shape[3], shape[2]), False
