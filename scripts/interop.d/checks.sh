# What is asked of a tunnel, whichever way it is encapsulated. Sourced by scripts/interop.

# check NAME COMMAND... : one line of the table; what a failing command said goes below it.
check() {
    local name=$1 said begin=$EPOCHREALTIME
    shift
    if said=$("$@" 2>&1); then
        PASSED=$((PASSED + 1))
        awk "BEGIN { printf \"ok      %-72s %6.2f s\n\", \"$name\", $EPOCHREALTIME - $begin }"
    else
        FAILED=$((FAILED + 1))
        echo "FAILED  $name"
        echo "$said" | tail -15 | sed 's/^/        | /'
    fi
}

# all_back COUNT : standard input is what ping said; were all of them answered?
all_back() { tee /dev/stderr | grep -q "$1 received, 0% packet loss"; }

# ping_from WHERE ADDRESS [OPTIONS] : ten pings from 'guest' or a namespace, all answered.
ping_from() {
    local where=$1 at=$2
    shift 2
    if [ "$where" = guest ]; then
        guest "ping -6 -n -q -i 0.05 -W 1 -c 10 $* $at" | all_back 10
    else
        "$where" ping -6 -n -q -i 0.05 -W 1 -c 10 "$@" "$at" | all_back 10
    fi
}

# The content of a stream: every line tells its place, so what is lost, doubled or swapped is seen.
CONTENT="seq 1 1200000"
SUM=$($CONTENT | sha256sum)

# Inner timeouts stay in the foreground, so that the end of the whole script reaches them.
# A receiver's standard input must never end, or nc takes that for the end of the stream: hence the fifo.
tcp_to_host() { # ADDRESS of U
    U sh -c "exec timeout --foreground 30 $BUSYBOX nc -l -p 7001 <>'$WORK/hold' | sha256sum >'$WORK/sum'" &
    local receiver=$!
    listening U 7001 || return 1
    guest "$CONTENT | timeout 30 busybox nc $1 7001" 40
    wait $receiver
    same "$(cat "$WORK/sum")"
}

tcp_to_guest() { # ADDRESS of the guest
    guest "rm -f /run/sum; (timeout 30 busybox nc -l -p 7002 <>/run/hold | sha256sum >/run/sum.new
           mv /run/sum.new /run/sum) >/dev/null 2>&1 </dev/null & sleep 0.3"
    U sh -c "$CONTENT | timeout --foreground 30 $BUSYBOX nc $1 7002"
    guest 'for t in $(seq 50); do [ -e /run/sum ] && break; sleep 0.1; done; cat /run/sum' | {
        read -r line
        same "$line"
    }
}

# The guest asks, the host sends: the connection comes from the other side than the data.
tcp_from_host() { # ADDRESS of U
    U sh -c "$CONTENT | exec timeout --foreground 30 $BUSYBOX nc -l -p 7003" &
    local sender=$!
    listening U 7003 || return 1
    guest "timeout 30 busybox nc $1 7003 <>/run/hold | sha256sum" 40 | {
        read -r line
        same "$line"
    }
    local result=$?
    wait $sender
    return $result
}

same() { [ "$1" = "$SUM" ] || { echo "content differs: '$1', not '$SUM'"; return 1; }; }

listening() {
    for _ in $(seq 50); do
        "$1" grep -qi ":$(printf %04X "$2") .* 0A " /proc/net/tcp6 && return
        sleep 0.05
    done
    echo "nobody listens on port $2"
    return 1
}

# drops NAME REASON : how many packets a router has dropped for it, in all or in the worst of its tunnels.
drops() {
    "$SIXWAY" status --socket "$WORK/$1.sock" --json | tr -d ' \n' | grep -o "\"$2\":[0-9]*" |
        grep -o '[0-9]*$' | sort -n | tail -1 | grep . || echo 0
}

no_drops() { # NAME REASON...
    local name=$1 reason count bad=0
    shift
    for reason; do
        count=$(drops "$name" "$reason")
        [ "$count" = 0 ] || { echo "$name dropped $count for $reason"; bad=1; }
    done
    return $bad
}

# The whole of it, for a tunnel of this inner MTU whose guest end is fd00:2:1::2.
tunnel_checks() { # TITLE MTU
    local largest=$(($2 - 48))
    check "$1: ping, guest to the host behind the router" ping_from guest fd00:1::2
    check "$1: ping, host to guest" ping_from U fd00:2:1::2
    check "$1: ping, guest to the router's own address" ping_from guest fd00:2::1
    check "$1: ping, router to guest" ping_from S fd00:2:1::2
    check "$1: ping, guest to all routers on the link" ping_from guest ff02::2%sit1
    check "$1: inner packets of $2 octets, guest to host" ping_from guest fd00:1::2 -M do -s $largest
    check "$1: inner packets of $2 octets, host to guest" ping_from U fd00:2:1::2 -M do -s $largest
    check "$1: TCP, guest connects and sends 8 MB" tcp_to_host fd00:1::2
    check "$1: TCP, guest connects and receives 8 MB" tcp_from_host fd00:1::2
    check "$1: TCP, host connects and sends 8 MB" tcp_to_guest fd00:2:1::2
    check "$1: nothing was taken for a spoof or found too big" \
        no_drops router wrong_outer unknown_outer source_not_in_prefix truncated too_big send_failed
}
