"""decoder: one source -> NV12 surfaces in a ring, offered one by one.

file, RTSP, … --> PyAV, or its demuxer and NVDEC --> surfaces ring, part "frame"
"""

from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.services.decoder.playback import Damaged, Opened, PacketArrived, Picture
from peoplecounter.services.decoder.service import Decoder


def run(rt: Runtime) -> None:
    decoder = Decoder(rt)
    rt.ready()
    while decoder.goes_on:
        rt.tick()
        for event in decoder.events():
            if isinstance(event, PacketArrived):
                decoder.early.offer(event)
            elif isinstance(event, Picture):
                decoder.publish_frame(event)
            elif isinstance(event, Damaged):
                decoder.drop_damaged(event)
            elif isinstance(event, Opened):
                decoder.on_opened(event)
            else:
                decoder.change_state(event)
            if not decoder.goes_on:
                break
    while rt.running and not decoder.settled:
        rt.tick()
    decoder.finish()


if __name__ == "__main__":
    serve("decoder", run)
