pipes=$(mktemp -d) || exit 1
mkfifo "$pipes/to" "$pipes/from"
nc "$server" "$port" <"$pipes/to" >"$pipes/from" &
talk=$!
trap 'kill "$talk" 2>/dev/null; rm -rf "$pipes"' EXIT
exec 3>"$pipes/to" 4<"$pipes/from"
read -r _ challenge _ <&4 || { echo "$server does not greet: is it full?" >&2; exit 1; }
digest=$(printf %s "$user$challenge$secret" | @MD5@)
printf 'tunnel %s %s %s\r\n' "$user" "${digest%% *}" "$type" >&3
read -r answer here there inside ours <<X
$(IFS= read -r line <&4; printf %s "$line" | tr -d '\r')
X
[ "$answer" = +OK ] || { echo "$server says: $answer $here $there $inside $ours" >&2; exit 1; }
