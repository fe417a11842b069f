# Real DHCPv6 clients, a real relay and a real dhcp6ctl against our dhcp6s over a cable, and our dhcp6ctl against the real
# daemons. Sourced by scripts/interop. Debian: wide-dhcpv6-{client,server,relay} isc-dhcp-client dhcpcd-base dibbler-client
#
#   S: dhcp6s on vs0 ──── vc0 C: dhcp6c | dhclient | dhcpcd | dibbler-client | dhcp6relay   lan0 ──── lan1 U: dhclient

D_CONF='option domain-name-servers 2001:db8:53::53;
option domain-name "example.com";
interface vs0 { address-pool p 120 240; delegated-prefix-pool 2001:db8:8000::/40 56 120 240; };
pool p { range 2001:db8:1::1000 to 2001:db8:1::1fff; };'

C() { ip netns exec "$TAG-F" "$@"; }

# Everything in a mount namespace of its own: the programs' folders are ours, and nothing of the host's is touched.
dhcp6_story() {
    local program
    for program in dhcp6c dhcp6s dhcp6ctl dhcp6relay dhclient dhcpcd dibbler-client unshare; do
        command -v $program >/dev/null && continue
        skip "$program is missing; scripts/setup test installs Debian's packages, and starts none of their services"
        return
    done
    if [ -z "${INTEROP_PRIVATE:-}" ]; then
        # All of it counts as one here.
        local before; before=$(host_etc)
        # Whose mount namespace this is, so that the other side can see that it has one of its own.
        if INTEROP_PRIVATE=$(readlink /proc/self/ns/mnt) unshare -m "$0" --dhcp6; then PASSED=$((PASSED + 1)); else FAILED=$((FAILED + 1)); fi
        check "nothing in the host's /etc has changed" etc_is "$before"
        return
    fi
    dhcp6_rig
    dhcp6_serve
    check "dhcp6c of WIDE: address and prefix, each routed" wide_both
    check "dhclient: address" dhclient_gets -N iaaddr
    check "dhclient: prefix" dhclient_gets -P iaprefix
    check "dhclient: both" dhclient_both
    check "dhcpcd: address" dhcpcd_gets "ia_na 1"
    check "dhcpcd: prefix" dhcpcd_gets "ia_pd 2 lan0/1"
    check "dhcpcd: both" dhcpcd_gets "ia_na 1" "ia_pd 2 lan0/1"
    check "dibbler-client: address" dibbler_gets "ia { }"
    check "dibbler-client: prefix" dibbler_gets "pd { }"
    check "dibbler-client: both" dibbler_gets "ia { }" "pd { }"
    check "dhclient behind dhcp6relay: address" relayed
    check "the real dhcp6ctl: reload, remove, wrong key" real_ctl
    check "kill -9, and a client renews what it had" killed
    check "the real dhcp6ctl: stop" real_stop
    check "our dhcp6ctl and WIDE's dhcp6s: reload, remove, stop" our_ctl_server
    check "our dhcp6ctl and WIDE's dhcp6c: stop and start an interface, stop" our_ctl_client
    dhcp6_tunnel_checks
}

# What clients might write in the host's /etc, and since when.
host_etc() { find /etc/resolv.conf* /etc/dibbler* /etc/dhcp* /etc/wide-dhcpv6 /etc/radvd* -printf '%p %s %T@ %m %U\n' 2>/dev/null | sort; }
etc_is() { diff <(echo "$1") <(host_etc); }

dhcp6_rig() {
    local n
    # Clients write resolv.conf, and dibbler copies of it beside it: all into a copy of /etc, or not at all.
    if [ "$(readlink /proc/self/ns/mnt)" = "$INTEROP_PRIVATE" ] || ! cp -a /etc "$WORK/etc" || ! mount --bind "$WORK/etc" /etc; then
        echo "FAILED  no /etc of its own; unset INTEROP_PRIVATE, and is there room in ${TMPDIR:-/tmp}?"
        FAILED=$((FAILED + 1))
        verdict
    fi
    rm -f /etc/resolv.conf
    : >/etc/resolv.conf
    mount -t tmpfs none /run
    mkdir -p /run/dibbler /run/netns
    for n in S F U; do
        ip netns add "$TAG-$n"
        ip -n "$TAG-$n" link set lo up
        ip netns exec "$TAG-$n" sysctl -qw net.ipv6.conf.default.accept_dad=0
    done
    rm -rf /etc/wide-dhcpv6 /etc/dibbler
    mkdir -p /etc/wide-dhcpv6 /etc/dibbler /var/lib/dhcpv6 /var/lib/dibbler /var/lib/dhcpcd
    for n in /var/lib/dhcpv6 /var/lib/dibbler /var/lib/dhcpcd /var/log/dibbler; do
        [ -d $n ] && mount -t tmpfs none $n
    done
    S ip link add vs0 address 02:00:00:00:53:01 type veth peer name vc0 address 02:00:00:00:53:02 netns "$TAG-F"
    C ip link add lan0 type veth peer name lan1 address 02:00:00:00:53:03 netns "$TAG-U"
    S sh -c 'ip link set vs0 up; ip addr add 2001:db8:1::1/64 dev vs0'
    C sh -c 'ip link set vc0 up; ip link set lan0 up'
    U ip link set lan1 up
    (umask 077; echo AAECAwQFBgcICQoLDA0ODw== >/etc/wide-dhcpv6/dhcp6sctlkey
        cp /etc/wide-dhcpv6/dhcp6sctlkey /etc/wide-dhcpv6/dhcp6cctlkey; echo AAAA >/etc/wide-dhcpv6/wrong)
    echo "$D_CONF" >/etc/wide-dhcpv6/dhcp6s.conf
    printf '\x0e\x00\x00\x01\x00\x01\x2b\x00\x00\x02\x02\x00\x00\x00\x53\x02' >/var/lib/dhcpv6/dhcp6c_duid
    sleep 1
}

dhcp6_serve() {
    ip netns exec "$TAG-S" "$SIXWAY" dhcp6s -f -D vs0 >>"$WORK/dhcp6s.log" 2>&1 &
    SERVER=$!
    within 5 sh -c "ip netns exec $TAG-S ss -lun | grep -q :547"
}

# What runs in the background is started without the functions above, so that $! is the program itself.
# within SECONDS COMMAND... : until it succeeds, or in vain.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || { echo "in vain: $*"; tail -5 "$WORK/dhcp6s.log"; return 1; }
        sleep 0.2
    done
}

has_route() { S ip -6 route show dev vs0 | grep -Eq "^2001:db8:80[0-9a-f:]*/56 via fe80"; }
no_route() { ! has_route; }

# A client that has not ended hears what the next one asks for.
port_free() { ! C ss -Hlun "sport = :546" | grep -q .; }
alone() {
    within 5 port_free >/dev/null && return
    C ss -Hlunp "sport = :546" | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -u | xargs -r kill -KILL
    within 2 port_free
}

# ended PID : tells a client to stop, which releases what it has.
ended() {
    kill "$1" 2>/dev/null
    within 8 sh -c "! kill -0 $1"
    within 3 no_route
}

wide_client() {
    cat >"$WORK/c.conf" <<X
interface vc0 { send ia-pd 1, ia-na 2; request domain-name-servers; };
id-assoc pd 1 { prefix-interface lan0 { sla-id 1; sla-len 8; }; };
id-assoc na 2 { };
X
    alone || return
    ip netns exec "$TAG-F" dhcp6c -f -D -c "$WORK/c.conf" vc0 >"$WORK/dhcp6c.log" 2>&1 &
    CLIENT=$!
    within 20 sh -c "ip netns exec $TAG-F ip -6 addr show dev vc0 | grep -q 2001:db8:1::1" && return
    # Its port is the next one's.
    kill $CLIENT
    tail -5 "$WORK/dhcp6c.log"
    return 1
}

wide_both() {
    wide_client || return
    within 5 sh -c "ip netns exec $TAG-F ip -6 addr show dev lan0 | grep -q 2001:db8:80" && within 2 has_route || return
    ended $CLIENT
}

dhclient_runs() { # NAMESPACE INTERFACE FLAGS...
    local where=$1 interface=$2
    shift 2
    rm -f "$WORK/leases"
    touch "$WORK/leases"
    $where timeout 20 dhclient -6 "$@" -1 -v -sf /bin/true -cf /dev/null -lf "$WORK/leases" -pf "$WORK/dhclient.pid" "$interface"
}

dhclient_stops() {
    C timeout 10 dhclient -6 "$@" -r -sf /bin/true -cf /dev/null -lf "$WORK/leases" -pf "$WORK/dhclient.pid" vc0
    within 3 no_route
}

dhclient_gets() { # FLAG WORD
    alone && dhclient_runs C vc0 "$1" && grep -q "$2 2001:db8" "$WORK/leases" || return
    [ "$1" != -P ] || within 2 has_route || return
    dhclient_stops "$1"
}

dhclient_both() {
    alone && dhclient_runs C vc0 -N -P && grep -q "iaaddr 2001:db8" "$WORK/leases" && grep -q "iaprefix 2001:db8" "$WORK/leases" || return
    grep -q "dhcp6.name-servers 2001:db8:53::53" "$WORK/leases" && has_route && dhclient_stops -N -P
}

dhcpcd_gets() { # IA...
    { echo "duid"; echo "noipv6rs"; echo "ipv6only"; echo "nohook resolv.conf"; echo "option dhcp6_name_servers"
        echo "interface vc0"; printf '%s\n' "$@"; } >"$WORK/dhcpcd.conf"
    alone || return
    ip netns exec "$TAG-F" dhcpcd -f "$WORK/dhcpcd.conf" -6 -B -d vc0 >"$WORK/dhcpcd.log" 2>&1 &
    CLIENT=$!
    local ia
    for ia in "$@"; do
        case $ia in
        ia_na*) within 10 grep -q "adding address 2001:db8:1::1" "$WORK/dhcpcd.log" || { tail "$WORK/dhcpcd.log"; return 1; } ;;
        *) within 10 grep -q "delegated prefix 2001:db8:80" "$WORK/dhcpcd.log" && within 2 has_route || { tail "$WORK/dhcpcd.log"; return 1; } ;;
        esac
    done
    C timeout 10 dhcpcd -f "$WORK/dhcpcd.conf" -6 -k vc0 >"$WORK/dhcpcd.end" 2>&1
    within 5 no_route || return
    C dhcpcd -x >>"$WORK/dhcpcd.end" 2>&1
    within 5 sh -c "! kill -0 $CLIENT"
}

dibbler_gets() { # IA...
    { echo "log-level 7"; echo "skip-confirm"; echo "iface vc0 {"; printf '%s\n' "$@"; echo "option dns-server }"; } >/etc/dibbler/client.conf
    rm -f /var/lib/dibbler/*.xml
    alone || return
    ip netns exec "$TAG-F" dibbler-client run >"$WORK/dibbler.log" 2>&1 &
    CLIENT=$!
    local ia
    for ia in "$@"; do
        case $ia in
        ia*) within 10 grep -Eq "2001:db8:1::1.* (added|configured)|Address 2001:db8:1::1" "$WORK/dibbler.log" || { tail "$WORK/dibbler.log"; return 1; } ;;
        *) within 10 has_route || { tail "$WORK/dibbler.log"; return 1; } ;;
        esac
    done
    kill $CLIENT
    within 10 sh -c "! kill -0 $CLIENT"
    within 5 no_route
}

relayed() {
    C sh -c 'ip addr add 2001:db8:1::2/64 dev vc0; ip addr add 2001:db8:1::3/128 dev lan0'
    # It has the clients' port as well.
    alone || return
    ip netns exec "$TAG-F" dhcp6relay -f -d -r vc0 lan0 >"$WORK/relay.log" 2>&1 &
    local relay=$!
    sleep 1
    dhclient_runs U lan1 -N && grep -q "iaaddr 2001:db8:1::1" "$WORK/leases"
    local got=$?
    kill $relay
    kill "$(cat "$WORK/dhclient.pid")" 2>/dev/null
    [ $got = 0 ] || tail -5 "$WORK/relay.log"
    C sh -c 'ip addr del 2001:db8:1::2/64 dev vc0; ip addr del 2001:db8:1::3/128 dev lan0'
    return $got
}

logged() { within 3 grep -q "$1" "$WORK/dhcp6s.log"; }

real_ctl() {
    dhclient_runs C vc0 -P >/dev/null 2>&1 || return
    local duid=00:03:00:01:02:00:00:00:53:02 iaid bound
    bound=$(grep -o 'event="bound".*' "$WORK/dhcp6s.log" | tail -1)
    duid=$(echo "$bound" | grep -o 'duid="[^"]*' | cut -d'"' -f2)
    iaid=$(echo "$bound" | grep -o 'iaid=[0-9]*' | cut -d= -f2)
    S dhcp6ctl -S reload && logged 'event="reloaded"' || return
    S dhcp6ctl -S -k /etc/wide-dhcpv6/wrong stop && logged 'digest is not made with our key' || return
    S dhcp6ctl -S remove binding IA IA_NA "$iaid" "$duid" && logged "no such binding" && has_route || return
    S dhcp6ctl -S remove binding IA IA_PD "$iaid" "$duid" && within 3 no_route || return
    # Without a word: what it had has been taken from it.
    kill -KILL "$(cat "$WORK/dhclient.pid")"
}

# The server and its client are killed; what the client remembers it has again, by Rebind, and its route was there before.
killed() {
    alone && dhclient_runs C vc0 -P && within 2 has_route || return
    kill -KILL "$(cat "$WORK/dhclient.pid")" $SERVER
    within 3 sh -c "! ip netns exec $TAG-S ss -lun | grep -q :547" && dhcp6_serve && within 3 has_route || return
    C timeout 20 dhclient -6 -P -1 -v -sf /bin/true -cf /dev/null -lf "$WORK/leases" -pf "$WORK/dhclient.pid" vc0 || return
    tail -3 "$WORK/dhcp6s.log" | grep -q "kind=Rebind .*answered=true" || return
    [ "$(grep -o 'iaprefix [^ ]*' "$WORK/leases" | sort -u | wc -l)" = 1 ] || return
    dhclient_stops -P
}

real_stop() {
    [ -e /run/dhcp6s.pid ] || return
    S dhcp6ctl -S stop && within 3 sh -c "! ip netns exec $TAG-S ss -lun | grep -q :547" && [ ! -e /run/dhcp6s.pid ]
}

our_ctl_server() {
    ip netns exec "$TAG-S" dhcp6s -f -D -k /etc/wide-dhcpv6/dhcp6sctlkey -c "$WORK/wide.conf" vs0 >"$WORK/wide.log" 2>&1 &
    local server=$!
    within 5 sh -c "ip netns exec $TAG-S ss -ltn | grep -q :5547" || return
    S "$SIXWAY" dhcp6ctl -S reload && grep -q "server reloaded" "$WORK/wide.log" || return
    S "$SIXWAY" dhcp6ctl -S remove binding IA IA_PD 1 00:01 && grep -q "no such binding" "$WORK/wide.log" || return
    S "$SIXWAY" dhcp6ctl -S -k /etc/wide-dhcpv6/wrong reload && grep -q "authentication failure" "$WORK/wide.log" || return
    S "$SIXWAY" dhcp6ctl -S stop && within 2 sh -c "! kill -0 $server" && ! S "$SIXWAY" dhcp6ctl -S stop
}

our_ctl_client() {
    dhcp6_serve
    wide_client || return
    local address="ip netns exec $TAG-F ip -6 addr show dev vc0"
    C "$SIXWAY" dhcp6ctl -C stop interface vc0 && within 3 sh -c "! $address | grep -q 2001:db8:1::1" || return
    C "$SIXWAY" dhcp6ctl -C start interface vc0 && within 9 sh -c "$address | grep -q 2001:db8:1::1" || return
    C "$SIXWAY" dhcp6ctl -C stop && within 3 sh -c "! kill -0 $CLIENT"
    local done=$?
    kill $SERVER
    return $done
}
