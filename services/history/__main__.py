"""history: the event logs of all sources -> a database. It may be away for weeks: the logs wait.

events/SOURCE.log, areas/NAME.log --> transactions of many rows --> crossings, visits, minutes, corrections …
"""

from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.services.history.service import History


def run(rt: Runtime) -> None:
    history = rt.closing(History(rt))
    rt.ready()
    while rt.running:
        rt.tick()
        history.check()


if __name__ == "__main__":
    serve("history", run)
