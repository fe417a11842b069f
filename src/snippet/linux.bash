down() {
  ip tunnel del "$device"
  [ "$type" != network ] || for net in ${inside//,/ }; do ip -6 route del unreachable "$net" metric 4096; done
}
# What stands already is somebody else's, and stays.
if ip link show dev "$device" >/dev/null 2>&1; then
  echo "there is a device $device already; end what made it, or change device= above" >&2; exit 1
fi
ip tunnel add "$device" mode sit local "$here" remote "$there" ttl 64 ||
  { echo "no tunnel: does the kernel have the module sit (modprobe sit), and is this root?" >&2; exit 1; }
trap 'down; exec 3>&-' EXIT
ip link set "$device" mtu "$mtu" up
case $type in
  host) ip -6 addr add "$inside/128" dev "$device" ;;
  network)
    for net in ${inside//,/ }; do
      first=${net%/*}
      ip -6 addr add "${first/%::/::1}/128" dev "$device"
      # What of it is not routed anywhere must not go back by the default route.
      ip -6 route add unreachable "$net" metric 4096
    done ;;
esac
ip -6 route add default dev "$device" ||
  echo "the default route stays as it was: what is to go by the tunnel needs routes of its own" >&2
echo "the tunnel is up: ${inside:-link-local addresses only}"
