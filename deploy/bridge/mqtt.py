"""MQTT 3.1.1 by paho: at least once (QoS 1), what late subscribers need is retained."""

import ssl
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as mqtt

from peoplecounter.deploy import bridge
from peoplecounter.deploy.bridge.home_assistant import OFFLINE, HomeAssistant

PORTS = {"mqtt": 1883, "mqtts": 8883}


class Mqtt:
    """A client with a thread of its own that reconnects when needed. `shown`: what Home Assistant is to show."""

    def __init__(self, url: str, say: Callable[[str], None], shown: HomeAssistant | None = None):
        self.shown = shown
        parts = urlsplit(url)
        host = parts.hostname or ""  # connect() in __init__.py checked it
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.max_queued_messages_set(bridge.QUEUE_MAX)
        self.client.reconnect_delay_set(1, 30)
        if parts.username:
            self.client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if parts.scheme == "mqtts":
            self.client.tls_set(cert_reqs=ssl.CERT_REQUIRED)
        port = parts.port or PORTS[parts.scheme]
        where = f"{host}:{port}"

        def on_connect(client, data, flags, reason, properties) -> None:
            say(f"{where} refused the connection: {reason}" if reason.is_failure else f"connected to {where}")
            if shown and not reason.is_failure:
                client.subscribe([(topic, 1) for topic in shown.listens])
                shown.again()

        self.client.on_connect = on_connect
        if shown:
            self.client.will_set(shown.status, OFFLINE, qos=1, retain=True)
            self.client.on_message = lambda c, d, message: shown.hear(message.topic, bytes(message.payload))
        self.client.on_connect_fail = lambda c, d: say(f"{where} does not answer: retrying")
        self.client.on_disconnect = lambda c, d, flags, reason, p: say(f"disconnected from {where}: {reason}")
        self.client.connect_async(host, port)
        self.client.loop_start()

    def send(self, levels: tuple[str, ...], body: bytes, keep: bool) -> bool:
        sent = self.client.publish("/".join(levels), body, qos=1, retain=keep)
        return sent.rc in (mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_NO_CONN)  # without a connection it is queued

    def show(self, topic: str, text: str, keep: bool) -> None:
        """With QoS 0, nothing old is sent again behind what is new when a connection was lost."""
        self.client.publish(topic, text, qos=0, retain=keep)

    def close(self) -> None:
        until_s = time.monotonic() + bridge.DRAIN_S
        if self.shown:
            self.show(self.shown.status, OFFLINE, keep=True)  # a client that disconnects leaves no will
        while self.client.is_connected() and self.client.want_write() and time.monotonic() < until_s:
            time.sleep(0.02)
        self.client.disconnect()
        self.client.loop_stop()


connect = Mqtt
