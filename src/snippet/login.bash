exec 3<>"/dev/tcp/$server/$port" || exit 1
read -r -t 30 -u 3 _ challenge _ || { echo "$server does not greet: is it full?" >&2; exit 1; }
digest=$(printf %s "$user$challenge$secret" | md5sum)
printf 'tunnel %s %s %s\r\n' "$user" "${digest%% *}" "$type" >&3
IFS=$' \r' read -r -t 30 -u 3 answer here there inside ours || { echo "no answer" >&2; exit 1; }
[ "$answer" = +OK ] || { echo "$server says: $answer $here $there $inside $ours" >&2; exit 1; }
