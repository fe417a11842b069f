# The same clients inside a tunnel: on a TUN device whose packets go to our router by protocol 41 and back, so that nothing
# is asked of the kernel but the device. Sourced by scripts/interop, used by dhcp6.sh.
#
#   S: sixway run, [dhcpv6] on vs0 ──── protocol 41 ──── vc0 C: sixc, a TUN device   lan0

# Afterwards dhcp6c, dhcpcd and dibbler-client have been given both, each anew, and have given it back.
dhcp6_tunnel_checks() {
    command -v python3 >/dev/null || {
        skip "clients in a tunnel: python3 is missing, which carries the packets of their TUN device"
        return
    }
    tunnel_rig
    check "in a tunnel: dhcp6c of WIDE, address and prefix" tunnel_wide
    check "in a tunnel: dhcpcd, address and prefix" tunnel_dhcpcd
    check "in a tunnel: dibbler-client, address and prefix" tunnel_dibbler
    # dhclient wants a link-layer address, which a TUN device has not.
    echo "SKIPPED dhclient in a tunnel: it knows no TUN device ($(tunnel_dhclient))"
    SKIPPED=$((SKIPPED + 1))
    radvd_checks
}

tunnel_rig() {
    S ip addr add 10.73.0.1/24 dev vs0
    C ip addr add 10.73.0.2/24 dev vc0
    router dhcp6 S <<X
[router]
tun = "six0"
address = ["2001:db8:100::1/64"]
[store]
path = "$WORK/dhcp6.db"
[dhcpv6]
preferred = 60
valid = 90
dns = ["2001:db8:53::53"]
[[pool]]
prefix = "2001:db8:8000::/40"
assign = 56
[[pool]]
prefix = "2001:db8:5::/64"
addresses = true
[[tunnel]]
name = "c"
encap = "proto41"
remote = "10.73.0.2"
X
    cat >"$WORK/device.py" <<X
import fcntl, os, select, socket, struct
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'sixc', 0x1001))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 41)
raw.bind(('10.73.0.2', 0))
raw.connect(('10.73.0.1', 0))
while True:
    ready, _, _ = select.select([tun, raw], [], [])
    try:
        if tun in ready: raw.send(os.read(tun, 65535))
        if raw in ready: os.write(tun, raw.recv(65535)[20:])
    except OSError: pass
X
    ip netns exec "$TAG-F" python3 "$WORK/device.py" >"$WORK/device.log" 2>&1 &
    within 5 ip netns exec "$TAG-F" ip link set sixc up mtu 1280
    within 5 sh -c "ip netns exec $TAG-F ip -6 addr show dev sixc scope link | grep -q fe80"
}

# bound N : so many bindings has our router.
bound() {
    within "${2:-8}" sh -c "'$SIXWAY' status --json --socket '$WORK/dhcp6.sock' | tr -d ' \n' | grep -q '\"bindings\":$1[,}]'"
}

tunnel_wide() {
    cat >"$WORK/t.conf" <<X
interface sixc { send ia-pd 1, ia-na 2; request domain-name-servers; };
id-assoc pd 1 { prefix-interface lan0 { sla-id 1; sla-len 8; }; };
id-assoc na 2 { };
X
    alone || return
    ip netns exec "$TAG-F" dhcp6c -f -D -c "$WORK/t.conf" -k /dev/null sixc >"$WORK/dhcp6c.log" 2>&1 &
    local client=$!
    within 8 sh -c "ip netns exec $TAG-F ip -6 addr show dev lan0 | grep -q 2001:db8:80" && bound 2 || { tail -5 "$WORK/dhcp6c.log"; return 1; }
    kill $client
    bound 0
}

tunnel_dhcpcd() {
    { echo "duid"; echo "noipv6rs"; echo "ipv6only"; echo "nohook resolv.conf"; echo "option dhcp6_name_servers"
        echo "interface sixc"; echo "ia_na 1"; echo "ia_pd 2 lan0/1"; } >"$WORK/dhcpcd.conf"
    alone || return
    ip netns exec "$TAG-F" dhcpcd -f "$WORK/dhcpcd.conf" -6 -B -d sixc >"$WORK/dhcpcd.log" 2>&1 &
    local client=$!
    within 8 sh -c "ip netns exec $TAG-F ip -6 addr show dev lan0 | grep -q 2001:db8:80" && bound 2 || { tail -5 "$WORK/dhcpcd.log"; return 1; }
    C timeout 10 dhcpcd -f "$WORK/dhcpcd.conf" -6 -k sixc >"$WORK/dhcpcd.end" 2>&1
    bound 0 || return
    C dhcpcd -x >>"$WORK/dhcpcd.end" 2>&1
    within 5 sh -c "! kill -0 $client"
}

tunnel_dibbler() {
    { echo "log-level 7"; echo "skip-confirm"; echo "iface sixc {"; echo "ia { }"; echo "pd { }"; echo "option dns-server }"; } >/etc/dibbler/client.conf
    rm -f /var/lib/dibbler/*.xml
    alone || return
    ip netns exec "$TAG-F" dibbler-client run >"$WORK/dibbler.log" 2>&1 &
    local client=$!
    within 8 sh -c "ip netns exec $TAG-F ip -6 addr show dev sixc | grep -q 2001:db8:5" && bound 2 || { tail -5 "$WORK/dibbler.log"; return 1; }
    kill $client
    within 8 sh -c "! kill -0 $client" && bound 0
}

# What it says of the device.
tunnel_dhclient() {
    touch "$WORK/leases"
    C timeout 5 dhclient -6 -N -1 -v -sf /bin/true -cf /dev/null -lf "$WORK/leases" -pf "$WORK/dhclient.pid" sixc 2>&1 |
        grep -io 'unsupported device type [0-9]*' | head -1
}
