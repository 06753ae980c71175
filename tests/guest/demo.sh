#!/usr/bin/env bash
# The flow a user of QEMU wants, without any rights: boot a guest behind the gateway, save both, kill both, restore both; the
# guest's TCP connection goes on.
#   demo.sh BINARY WORK     (after build-guest.sh WORK; NET=stream or dgram; GAP seconds between kill and restore)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); B=$(realpath "${1:?BINARY}"); W=$(cd "${2:?WORK}" && pwd); R=$W/run; mkdir -p "$R"
G="$HERE/run-guest.sh $W"; NET=${NET:-stream}; export NET APPEND="guest.dhcp=1 guest.echo=10.0.2.2:7"; P=
LINK=stream:guest@$R/net.sock; [ "$NET" = stream ] || LINK=dgram:guest@$R/net.sock,$R/q.sock
gateway() { "$B" gateway --link "$LINK" --control "$R/control" "$@" & P=$!; until [ -S "$R/control" ]; do sleep .02; done; }
cleanup() { [ -z "$P" ] || kill "$P" 2>/dev/null || true; for n in a b; do [ ! -f "$R/$n.pid" ] || $G kill $n; done; }
trap cleanup EXIT; rm -f "$R"/*.hib "$R"/*.pid "$R/vm.state"
t0=$(date +%s%N); ms() { echo "$(( ($(date +%s%N) - t0) / 1000000 )) ms: $*"; }
gateway --echo 7 --no-dns; $G boot a; $G wait a 'ECHO line-5' 120; ms 'five TCP echoes'
$G save a; "$B" save --hold --control "$R/control" "$R/network.hib"; $G kill a; kill -KILL $P; wait $P || true; P=
rm -f "$R/control"; ms 'saved; QEMU and gateway are dead'; sleep "${GAP:-3}"
gateway --restore "$R/network.hib"; $G restore b; ms 'restored, paused'; $G cont b
$G wait b 'ECHO line-([6-9]|[1-9][0-9])' 60; ms 'the same TCP connection goes on'; sleep 2
if grep -a CLOSED "$R"/[ab].log; then exit 1; fi
grep -ahE 'DHCP|ECHO' "$R/a.log" "$R/b.log"; echo PASS
