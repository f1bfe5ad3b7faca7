#!/bin/sh
# The manual's name for what apagent does: install_step1.sh LOGFILE resize

exec /usr/bin/apagent install_step1 "$@"
