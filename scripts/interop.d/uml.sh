# The story with user-mode-linux: a whole kernel as an ordinary process, its root the host's own files.

uml_story() {
    command -v linux.uml >/dev/null || { skip "linux.uml is missing; apt-get install user-mode-linux"; return; }
    command -v insmod >/dev/null || { skip "insmod is missing; apt-get install kmod"; return; }
    echo "== user-mode-linux: sit, and FOU reception"
    rig_up
    router router S <<'CONF'
[router]
tun = "six0"
address = ["fd00:2::1/64"]
outer = "10.71.0.1"
[[tunnel]]
name = "kernel"
encap = "proto41"
remote = "10.71.0.2"
prefixes = ["fd00:2:1::/64", "fd00:2:f::/64"]
mtu = 1480
CONF
    router sender F <<'CONF'
[router]
tun = "six0"
address = ["fd00:2:f::1/128"]
outer = "10.72.0.2"
[[tunnel]]
name = "fou"
encap = "udp"
remote = "10.71.0.2:5555"
prefixes = ["fd00:2:f::/64"]
mtu = 1472
CONF
    # Read-only: what this kernel does wrong must not reach the files it borrows.
    S linux.uml mem=128M root=none rootfstype=hostfs rootflags=/ ro quiet init="$HERE/interop.d/uml-init" \
        HOUSE="$HERE/interop.d" vec0:transport=tap,ifname=s0,depth=128,gro=1 \
        con=null con0=null,fd:1 </dev/null >"$WORK/uml.log" 2>&1 &
    guest_ready "$WORK/uml.log"
    tunnel_checks "sit" 1480
    check "FOU reception: ping, by our UDP there, by sit back" ping_from U fd00:2:f::2
    check "FOU reception: inner packets of 1472 octets" ping_from U fd00:2:f::2 -M do -s 1424
    check "FOU reception: TCP, host connects and sends 8 MB" tcp_to_guest fd00:2:f::2
    check "FOU reception: nothing was taken for a spoof or found too big" \
        no_drops router wrong_outer unknown_outer source_not_in_prefix truncated too_big send_failed
    guest 'busybox poweroff -f' 3 >/dev/null 2>&1
}
