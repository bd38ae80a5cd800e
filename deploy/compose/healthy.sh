#!/bin/sh
# healthy FILE SECONDS [end]: succeeds if the service that writes its pid to FILE once a second (setting `heartbeat`) did
# so within SECONDS. With `end`, a service that did not is killed, for container engines that restart only containers
# that have ended.
[ $(($(date +%s) - $(stat -c %Y "$1"))) -lt "$2" ] && exit 0
[ "${3-}" = end ] && kill -KILL "$(cat "$1")"
exit 1
