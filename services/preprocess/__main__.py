"""preprocess: an NV12 surface -> one tensor slot with the images of all its views, offered in parts.

surfaces rings (one per source) --> one kernel --> tensors ring: part "global", parts "tiles"
"""

from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.services.preprocess.service import Preprocess


def run(rt: Runtime) -> None:
    preprocess = Preprocess(rt)
    rt.ready()
    while rt.running:
        rt.tick()
        for connection, offer in preprocess.frames():
            preprocess.process(connection, offer)
    rt.linger(lambda: preprocess.tensors.drained)


if __name__ == "__main__":
    serve("preprocess", run)
