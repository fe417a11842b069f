down() {
  ip tunnel del "$device"
  [ "$type" != network ] || for net in ${inside//,/ }; do ip -6 route del unreachable "$net" metric 4096; done
}
trap 'down; exec 3>&-' EXIT
ip tunnel add "$device" mode sit local "$here" remote "$there" ttl 64 || exit 1
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
ip -6 route add default dev "$device"
echo "the tunnel is up: ${inside:-link-local addresses only}"
