# The story with Debian's stock kernel under qemu's software emulation: FOU both ways, which
# user-mode-linux's kernel cannot send (it lacks CONFIG_NET_FOU_IP_TUNNELS).

CACHE=$ROOT/target/interop

qemu_story() {
    command -v qemu-system-x86_64 >/dev/null ||
        { skip "qemu is missing; apt-get install --no-install-recommends qemu-system-x86"; return; }
    stock_kernel || { skip "no stock kernel: $(tail -1 "$CACHE/apt.log")"; return; }
    echo "== qemu with Debian's $(basename "$KERNEL"): FOU both ways"
    initramfs >"$CACHE/initramfs.gz"
    rig_up
    router router S <<'CONF'
[router]
tun = "six0"
address = ["fd00:2::1/64"]
outer = "10.71.0.1"
[udp]
ports = [3653]
[[tunnel]]
name = "kernel"
encap = "udp"
remote = "10.71.0.2:5555"
prefixes = ["fd00:2:1::/64"]
mtu = 1472
CONF
    S qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot \
        -kernel "$KERNEL" -initrd "$CACHE/initramfs.gz" -append "console=ttyS0 quiet panic=-1" -serial stdio \
        -netdev tap,id=n0,ifname=s0,script=no,downscript=no -device virtio-net-pci,netdev=n0,romfile= \
        </dev/null >"$WORK/qemu.log" 2>&1 &
    guest_ready "$WORK/qemu.log"
    tunnel_checks "FOU without outer checksum" 1472
    guest 'ip link set sit1 type sit remote 10.71.0.1 local 10.71.0.2 ttl 64 encap fou encap-sport 5555 \
           encap-dport 3653 encap-csum' >/dev/null
    check "FOU with outer checksum: it is on" with_checksum
    check "FOU with outer checksum: ping, guest to host" ping_from guest fd00:1::2
    check "FOU with outer checksum: TCP, guest connects and sends 8 MB" tcp_to_host fd00:1::2
    guest 'busybox poweroff -f' 3 >/dev/null 2>&1
}

with_checksum() { guest 'ip -d link show sit1' | tee /dev/stderr | grep -q ' encap-csum'; }

# The newest kernel package of this machine's own sources, unpacked and not installed: no boot loader, no initrd.
stock_kernel() {
    mkdir -p "$CACHE"
    KERNEL=$(ls "$CACHE"/kernel/boot/vmlinuz-* 2>/dev/null | tail -1)
    [ -z "$KERNEL" ] || return 0
    mkdir -p "$CACHE/apt"
    local package
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    [ -n "$package" ] || { echo "linux-image-amd64 is in no package source; apt-get update" >"$CACHE/apt.log"; return 1; }
    (cd "$CACHE/apt" && apt-get download "$package") >"$CACHE/apt.log" 2>&1 || return 1
    dpkg-deb -x "$CACHE"/apt/"$package"_*.deb "$CACHE/kernel" >>"$CACHE/apt.log" 2>&1 || return 1
    rm -rf "$CACHE/apt"
    KERNEL=$(ls "$CACHE"/kernel/boot/vmlinuz-* | tail -1)
}

# A root of bash, ip, ping, timeout, busybox for the rest, and the modules, in the order in which they are loaded.
MODULES="net/core/failover drivers/net/net_failover drivers/virtio/virtio_ring drivers/virtio/virtio
    drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci
    drivers/net/virtio_net net/ipv4/tunnel4 net/ipv4/ip_tunnel net/ipv4/udp_tunnel net/ipv6/ip6_udp_tunnel
    net/ipv6/sit net/ipv4/fou"

initramfs() {
    local root=$WORK/root module program library n=10
    mkdir -p "$root"/{bin,proc,sys,dev,run,modules}
    cp "$BUSYBOX" "$root/bin/busybox"
    for module in $MODULES; do
        cp "$CACHE"/kernel/lib/modules/*/kernel/$module.ko "$root/modules/$n-${module##*/}.ko"
        n=$((n + 1))
    done
    for program in bash ip ping timeout; do
        cp -L "$(command -v $program)" "$root/bin/$program"
        for library in $(ldd "$root/bin/$program" | grep -o '/[^ ]*'); do
            mkdir -p "$root${library%/*}"
            cp -L "$library" "$root$library"
        done
    done
    ln -s bash "$root/bin/sh"
    cp "$HERE/interop.d/guest.sh" "$root/guest.sh"
    cp "$HERE/interop.d/qemu-init" "$root/init"
    (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1)
}
