"""A live frame is offered while it is decoded: confirmed, cancelled or left, and never counted without a picture."""

import numpy as np
import pytest

from peoplecounter.common.ipc.messages import Confirmed, Dropped, SurfaceLayout
from peoplecounter.common.process.control import claim_instance
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.common.settings import DecoderSettings, Settings, SourceSettings
from peoplecounter.services.decoder.ffmpeg import FfmpegDecoder
from peoplecounter.services.decoder.playback import START, Damaged, PacketArrived, Picture, StateChanged, play
from peoplecounter.services.decoder.service import Decoder

LAYOUT = SurfaceLayout(64, 48, 64, "bt709", False)


class Pixels:
    """A surface of one grey."""

    layout, aspect = LAYOUT, 1.0

    def write(self, slot: np.ndarray) -> None:
        slot[:] = 7


def picture(pts):
    return Picture(Pixels(), pts, pts / 25, 10, 11, 12)


@pytest.fixture
def decoder(run_dir, clip):
    settings = Settings(run_dir=run_dir, sources={"cam": {"url": str(clip), "realtime": True}})
    instance, lock = claim_instance(settings, "decoder", None)
    rt = Runtime("decoder", instance, settings, lock)
    one = Decoder(rt)
    one.surfaces.open(LAYOUT)
    one.sent = lambda: [body for body in rt.results._senders[0]._waiting if not hasattr(body, "state")]
    yield one
    rt.close()


def test_an_announced_frame_is_confirmed_with_its_times(decoder):
    decoder.early.offer(PacketArrived(5, 0.2, 100))
    index = decoder.early._frame.index
    assert decoder.surfaces.holding() == [("cam", 0)]
    assert decoder.early.header.early
    decoder.publish_frame(picture(5))
    (message,) = decoder.sent()
    assert isinstance(message, Confirmed) and (message.header.seq, message.header.captured_ns) == (0, 100)
    assert message.header.marks["decode"] == (11, 12) and "copy" in message.header.marks
    assert (decoder.surfaces.slot(index) == 7).all()


def test_an_announced_frame_whose_packet_is_damaged_is_dropped_and_the_next_is_announced_again(decoder):
    decoder.early.offer(PacketArrived(5, 0.2, 100))
    decoder.drop_damaged(Damaged("torn"))
    (message,) = decoder.sent()
    assert isinstance(message, Dropped) and (message.header.seq, message.reason) == (0, "decode_error")
    decoder.early.offer(PacketArrived(6, 0.24, 200))
    assert decoder.early.header.seq == 1


def test_a_stream_whose_packets_do_not_give_their_pictures_is_not_announced_any_more(decoder):
    """Interlaced fields, for instance: two packets, one picture."""
    decoder.early.offer(PacketArrived(5, 0.2, 100))
    decoder.early.offer(PacketArrived(6, 0.2, 110))
    assert decoder.early.header is None and not decoder.early._one_to_one
    assert [body.reason for body in decoder.sent()] == ["decode_error"]
    decoder.publish_frame(picture(6))
    assert decoder.surfaces.holding()[-1] == ("cam", 1)
    assert not any(isinstance(body, Confirmed) for body in decoder.sent())


def test_a_new_size_is_not_written_into_an_old_slot(decoder):
    decoder.early.offer(PacketArrived(5, 0.2, 100))
    larger = picture(5)
    larger.surface.layout = SurfaceLayout(128, 48, 128, "bt709", False)
    decoder.publish_frame(larger)  # waits until the old ring is empty: no process reads here, so until the deadline
    assert next(body.reason for body in decoder.sent()) == "decode_error"
    assert decoder.surfaces.layout.width == 128


def test_nothing_is_announced_before_the_first_picture(decoder):
    decoder.surfaces.retire()
    decoder.early.offer(PacketArrived(5, 0.2, 100))
    assert decoder.early.header is None and decoder.sent() == []


def test_a_codec_that_is_early_announces_every_packet_of_the_file(clip):
    class Early(FfmpegDecoder):
        early = True

    events = list(play(SourceSettings(url=str(clip)), DecoderSettings(), START, lambda seconds: False, Early))
    announced = [event.number for event in events if isinstance(event, PacketArrived)]
    shown = [event.number for event in events if isinstance(event, Picture)]
    assert announced == sorted(shown) and events[-1] == StateChanged("ended")


def test_the_first_picture_after_a_reconnect_keeps_its_seq_and_streams_are_announced_again(decoder):
    decoder.early._one_to_one = False
    decoder.change_state(StateChanged("reconnecting", "gone"))
    decoder.early.offer(PacketArrived(5, 0.2, 100))
    decoder.change_state(StateChanged("online"))  # comes with the first picture, behind its announcement
    decoder.publish_frame(picture(5))
    (message,) = decoder.sent()
    assert isinstance(message, Confirmed) and message.header.seq == 0
