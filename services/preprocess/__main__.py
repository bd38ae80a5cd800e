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
        if preprocess.input is None:
            continue  # no engine yet: surfaces wait in their ring
        for connection, offer in preprocess.surfaces.offers():
            preprocess.process(connection, offer)
            if not rt.running:
                break
    rt.linger(lambda: preprocess.tensors.drained)


if __name__ == "__main__":
    serve("preprocess", run)
