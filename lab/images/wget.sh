#!/bin/sh
# wget of the lab's busybox. Debian 12's busybox (1.35) crashes on -T, which the
# Kubernetes documentation has people type, so the limit is kept by timeout.
limit=
n=$#
while [ "$n" -gt 0 ]; do
	word=$1
	shift
	n=$((n - 1))
	case $word in
	-T | --timeout)
		limit=$1
		shift
		n=$((n - 1))
		;;
	--timeout=*) limit=${word#--timeout=} ;;
	-T*) limit=${word#-T} ;;
	*) set -- "$@" "$word" ;;
	esac
done
if [ -z "$limit" ]; then
	exec busybox wget "$@"
fi
timeout "$limit" busybox wget "$@"
status=$?
case $status in
124 | 143) # coreutils' and busybox' ways to say that time was up
	echo "wget: download timed out" >&2
	exit 1
	;;
esac
exit $status
