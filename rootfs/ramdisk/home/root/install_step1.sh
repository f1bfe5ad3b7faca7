#!/bin/sh
# Lets the data partition take all of a disk that was enlarged, then starts the
# installed system. The manual calls it by this name, in the rescue system.

if [ $# -ne 2 ] || [ -z "$1" ] || [ "$2" != resize ]; then
	echo "usage: $0 LOG resize" >&2
	echo "LOG is a file that takes what is printed; on the data partition it is kept in apps/install_step1.log" >&2
	exit 2
fi

# It does not return when it has resized: it reboots. What could not be done has
# been said, and the rescue system stays.
exec apagent resize --reboot --log "$1"
