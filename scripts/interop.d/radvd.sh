# The configuration that `sixway connect --pd-radvd` writes, read by the real radvd: a host behind the client has an address by
# router advertisement, a way out through the tunnel, and lets go of both at the end. Sourced by scripts/interop, used by dhcp6.sh
# after dhcp6tunnel.sh has started the router. Debian: radvd
#
#   S: sixway run, [dhcpv6] on vs0 ──── protocol 41 ──── vc0 C: sixway connect --pd, radvd on lan0 ──── lan1 U: a host

radvd_checks() {
    command -v radvd >/dev/null || {
        skip "radvd is missing; scripts/setup test installs it, and does not start its service"
        return
    }
    radvd_rig
    check "radvd: the file that --pd-radvd writes is accepted" radvd_accepts
    check "radvd: a host behind --pd-to has an address, and reaches the router through the tunnel" host_reaches
    check "radvd: after a renewal it goes on with the file as it is then" host_keeps
    check "radvd: at the end the host is told to let go of prefix and router" host_lets_go
}

# The protocol-41 carrier of the other checks goes: the tunnel's end is our own client's now.
radvd_rig() {
    C pkill -f "$WORK/device.py"
    C sysctl -qw net.ipv6.conf.all.forwarding=1
    U sh -c 'sysctl -qw net.ipv6.conf.lan1.accept_ra=1 net.ipv6.conf.lan1.autoconf=1 net.ipv6.conf.lan1.accept_ra_mtu=1
             ip -6 addr flush dev lan1 scope global'
    cat >"$WORK/uplink.toml" <<X
[router]
tun = "sixc"
[udp]
ports = []
[admin]
socket = "$WORK/uplink.sock"
[[tunnel]]
name = "up"
encap = "proto41"
local = "10.73.0.2"
remote = "10.73.0.1"
prefixes = ["::/0"]
default_route = true
X
    # As a user would write it: radvd is started with the first prefix, and reads its file again whenever that has changed.
    cat >"$WORK/radvd-again" <<X
echo "\$SIXWAY_EVENT \$SIXWAY_SUBNETS" >>"$WORK/radvd-events"
if [ -e "$WORK/radvd.pid" ]; then kill -HUP "\$(cat "$WORK/radvd.pid")"
else radvd -C "\$SIXWAY_RADVD" -p "$WORK/radvd.pid" -m logfile -l "$WORK/radvd.log" -d 2; fi
X
    : >"$WORK/radvd-events"
    ip netns exec "$TAG-F" "$SIXWAY" connect --config "$WORK/uplink.toml" --pd --pd-to lan0:2 --pd-radvd "$WORK/radvd.conf" \
        --pd-script "$WORK/radvd-again" --pd-duid "$WORK/uplink.duid" >"$WORK/uplink.log" 2>&1 &
    CLIENT=$!
    within 15 grep -q "^up lan0=" "$WORK/radvd-events"
}

radvd_accepts() {
    cat "$WORK/radvd.conf"
    C radvd -c -C "$WORK/radvd.conf"
}

# host_address [WORD] : the host's address out of the delegated prefix, if it has one (that is marked so).
host_address() { U ip -6 -o addr show dev lan1 scope global dynamic | grep "${1:-.}" | grep -o '2001:db8:80[0-9a-f:]*' | head -1; }
has_address() { [ -n "$(host_address "$@")" ]; }
has_router() { U ip -6 route show default | grep -q "proto ra"; }

host_reaches() {
    # A host asks for routers when its link comes up.
    U sh -c 'ip link set lan1 down; ip link set lan1 up'
    within 20 has_address && within 5 has_router || { tail -5 "$WORK/radvd.log" "$WORK/uplink.log"; return 1; }
    # The second /64, as it was asked for; the tunnel's MTU besides.
    grep -q "^up lan0=$(host_address | cut -d: -f1-3):[0-9a-f]*1::/64" "$WORK/radvd-events" || { cat "$WORK/radvd-events"; host_address; return 1; }
    U ip -6 route show default | grep -q "mtu 1280" || U sysctl net.ipv6.conf.lan1.mtu | grep -q 1280 || return
    within 10 U ping -6 -n -q -c 1 -W 1 2001:db8:100::1 && ping_from U 2001:db8:100::1 && ping_from S "$(host_address)" || return
    "$SIXWAY" status --socket "$WORK/uplink.sock" | grep -E "delegated +2001:db8:80[0-9a-f:]*/56"
}

# T1 is 30 s here; dhcp6ctl is not listened to, so it is waited for.
host_keeps() {
    within 45 grep -q "^renewed " "$WORK/radvd-events" && sleep 1 && has_address && has_router && ping_from U 2001:db8:100::1
}

host_lets_go() {
    kill $CLIENT
    within 15 sh -c "! kill -0 $CLIENT" && within 10 has_address deprecated || { tail -5 "$WORK/radvd.log"; return 1; }
    within 10 sh -c "! ip netns exec $TAG-U ip -6 route show default | grep -q 'proto ra'" || return
    kill "$(cat "$WORK/radvd.pid")"
    bound 0
}
