down() {
  route -q delete -inet6 default
  [ "$type" != network ] || for net in $(echo "$inside" | tr , ' '); do route -q delete -inet6 "$net"; done
  ifconfig "$device" destroy
  kill "$talk" 2>/dev/null
  rm -rf "$pipes"
}
device=$(ifconfig gif create) || exit 1
trap down EXIT
ifconfig "$device" tunnel "$here" "$there" mtu "$mtu" up
case $type in
  host) ifconfig "$device" inet6 "$inside" "$ours" prefixlen 128 ;;
  network)
    for net in $(echo "$inside" | tr , ' '); do
      first=${net%/*}
      case $first in *::) first=${first}1 ;; esac
      # What of it is not routed anywhere must not go back by the default route.
      route -q add -inet6 "$net" ::1 -reject
      ifconfig "$device" inet6 "$first" prefixlen 128
    done ;;
esac
route -q add -inet6 default -interface "$device"
echo "the tunnel is up: ${inside:-link-local addresses only}"
