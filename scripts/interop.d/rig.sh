# The hosts of scripts/interop and what runs in them. Sourced; knows nothing of the guest's kernel.

ROOT=$(cd "$HERE/.." && pwd)
TAG=sixip$$
WORK=$(mktemp -d) || exit 1
SIXWAY=${SIXWAY_BIN:-$(ls -t "$ROOT"/target/release/sixway "$ROOT"/target/debug/sixway 2>/dev/null | head -1)}
BUSYBOX=$(command -v busybox)
PASSED=0 FAILED=0 SKIPPED=0

S() { ip netns exec "$TAG-S" "$@"; }
F() { ip netns exec "$TAG-F" "$@"; }
U() { ip netns exec "$TAG-U" "$@"; }

# skip WHY : say loudly that a story was left out.
skip() {
    echo "SKIPPED: scripts/interop: $1" >&2
    [ "${SIXWAY_REQUIRE_INTEROP:-}" = 1 ] && FAILED=$((FAILED + 1))
    SKIPPED=$((SKIPPED + 1))
}

# What every story needs. Without it there is nothing to do but to say so.
needs_rig() {
    local why=
    [ "$(id -u)" = 0 ] || why="needs root for namespaces and a tap device; run it with sudo"
    [ -n "$why" ] || [ -c /dev/net/tun ] || why="/dev/net/tun is missing; mknod /dev/net/tun c 10 200"
    for program in ip ping busybox timeout; do
        [ -n "$why" ] || command -v $program >/dev/null ||
            why="$program is missing; apt-get install iproute2 iputils-ping busybox-static"
    done
    if [ -z "$why" ] && [ ! -x "$SIXWAY" ]; then
        echo "no sixway binary; cargo build first" >&2
        exit 1
    fi
    [ -z "$why" ] && return
    skip "$why"
    verdict
}

# Three namespaces: S the router, F a second one that only sends UDP, U the host behind both.
rig_up() {
    rig_down
    for n in S F U; do
        ip netns add "$TAG-$n"
        ip -n "$TAG-$n" link set lo up
        ip netns exec "$TAG-$n" sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.forwarding=1
    done
    S ip tuntap add mode tap name s0
    S ip link add s1 type veth peer name u0 netns "$TAG-U"
    S ip link add s2 type veth peer name f0 netns "$TAG-F"
    F ip link add f1 type veth peer name u1 netns "$TAG-U"
    S sh -c 'ip addr add 10.71.0.1/24 dev s0; ip addr add 10.72.0.1/24 dev s2; ip addr add fd00:1::1/64 dev s1
             for d in s0 s1 s2; do ip link set $d up; done; sysctl -qw net.ipv4.ip_forward=1'
    F sh -c 'ip addr add 10.72.0.2/24 dev f0; ip addr add fd00:3::1/64 dev f1
             ip link set f0 up; ip link set f1 up; ip route add default via 10.72.0.1'
    U sh -c 'ip addr add fd00:1::2/64 dev u0; ip addr add fd00:3::2/64 dev u1; ip link set u0 up; ip link set u1 up
             ip route add fd00:2::/32 via fd00:1::1; ip route add fd00:2:f::/64 via fd00:3::1'
    S ip route add fd00:3::/64 via fd00:1::2
    mkfifo "$WORK/hold"
}

rig_down() {
    local inhabitants
    for n in S F U; do
        [ -e "/run/netns/$TAG-$n" ] || continue
        inhabitants=$(ip netns pids "$TAG-$n")
        [ -z "$inhabitants" ] || kill -9 $inhabitants 2>/dev/null
        ip netns del "$TAG-$n"
    done
    wait 2>/dev/null
    rm -rf "$WORK"
    mkdir -p "$WORK"
    [ "${FUNCNAME[1]}" = rig_up ] || rmdir "$WORK"
}

# router NAME NAMESPACE : run sixway with the configuration on standard input, until it answers.
router() {
    cat >"$WORK/$1.toml"
    printf '\n[admin]\nsocket = "%s"\n' "$WORK/$1.sock" >>"$WORK/$1.toml"
    "$2" "$SIXWAY" run --config "$WORK/$1.toml" >"$WORK/$1.log" 2>&1 &
    for _ in $(seq 100); do
        "$SIXWAY" status --socket "$WORK/$1.sock" --json >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "FAILED  the router '$1' does not answer:"
    cat "$WORK/$1.log"
    FAILED=$((FAILED + 1))
    verdict
}

# guest COMMAND : run a shell command in the guest and print what it said.
guest() {
    printf '%s\nexit\n' "$1" | S timeout --foreground "${2:-15}" "$BUSYBOX" nc -w 3 10.71.0.2 7000
}

# Wait until the guest answers; $1 is its console's log.
guest_ready() {
    local begin=$EPOCHREALTIME end=$((SECONDS + 60))
    while [ $SECONDS -lt $end ]; do
        if [ "$(guest 'echo here' 3 2>/dev/null)" = here ]; then
            awk "BEGIN { printf \"        guest up after %.1f s: \", $EPOCHREALTIME - $begin }"
            guest 'uname -r'
            return
        fi
        sleep 0.2
    done
    echo "FAILED  the guest does not come up within a minute:"
    tail -20 "$1"
    FAILED=$((FAILED + 1))
    verdict
}

verdict() {
    [ "$SKIPPED" = 0 ] || echo "$SKIPPED skipped"
    echo "$PASSED passed, $FAILED failed"
    [ "$FAILED" = 0 ]
    exit
}
