#!/bin/sh
# healthy FILE SECONDS [end]: whether the service that writes its pid into FILE once a second (setting `heartbeat`) has
# gone on within so many seconds. With `end`, one that has not is killed, for a container engine that only starts again
# what has ended.
[ $(($(date +%s) - $(stat -c %Y "$1"))) -lt "$2" ] && exit 0
[ "${3-}" = end ] && kill -KILL "$(cat "$1")"
exit 1
