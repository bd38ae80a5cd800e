"""fusion: results of all branches -> one count per frame, published. It keeps the ledger of every source.

results of all processes --> join by (source, seq) --> merge --> PUB counts, detections, dropped, status, service
"""

from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.services.fusion.service import Fusion


def run(rt: Runtime) -> None:
    fusion = Fusion(rt)
    rt.ready()
    while rt.running:
        rt.tick()
        fusion.settle()
        fusion.publish_statuses()


if __name__ == "__main__":
    serve("fusion", run)
