"""history: the event logs of all sources -> a database. It may be away for weeks: the logs wait.

events/SOURCE.log, areas/NAME.log --> transactions of many rows --> crossings, visits, minutes, corrections …
"""

from peoplecounter.common.errors import AppError
from peoplecounter.common.process.runtime import Runtime, serve


def run(rt: Runtime) -> None:
    try:
        from peoplecounter.services.history.service import History
    except ModuleNotFoundError as error:
        raise AppError(f"{error.name} is not installed: pip install 'peoplecounter[history]'.") from None
    history = rt.closing(History(rt))
    rt.ready()
    while rt.running:
        rt.tick()
        history.check()


if __name__ == "__main__":
    serve("history", run)
