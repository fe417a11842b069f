# The guest's own network, and a door for commands. Sourced by its first process, which stays here.
# DEVICE, ENCAP (options of the tunnel) and MTU are set by then.

ip link set lo up
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set $DEVICE up
ip addr add 10.71.0.2/24 dev $DEVICE
ip route add 10.72.0.0/24 via 10.71.0.1
ip fou add port 5555 ipproto 41 # bare IPv6 in UDP to this port is taken in as if it had come by sit
ip link add sit1 type sit remote 10.71.0.1 local 10.71.0.2 ttl 64 $ENCAP
ip link set sit1 mtu $MTU up
ip addr add fd00:2:1::2/64 dev sit1 nodad
ip -6 route add default dev sit1
# What the second sender puts into FOU is accepted as coming from it; answers go by sit1 all the same.
ip link add sit2 type sit remote 10.72.0.2 local 10.71.0.2
ip link set sit2 up
ip addr add fd00:2:f::2/128 dev sit2 nodad
busybox mkfifo /run/hold
echo "guest ready after $(cut -d' ' -f1 /proc/uptime) s"
# Commands come by the outer network, which nobody but the test can reach.
while :; do busybox nc -ll -p 7000 -e /bin/sh; done
