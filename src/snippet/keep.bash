trap 'kill "$pause"; exit 0' INT TERM HUP
# What waits must not hold the connection too.
while sleep 60 3>&- & pause=$!; wait "$pause"; do
  printf 'ping\r\n' >&3
  read -r -t 30 -u 3 answer _ && [ "$answer" = +OK ] || { echo "the tunnel is lost; start me again" >&2; exit 1; }
done
