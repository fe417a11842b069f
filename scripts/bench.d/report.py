#!/usr/bin/env python3
"""What scripts/bench says: one table of the criterion figures against their targets, and the performance page.

report.py table [--since SECONDS]      reads target/criterion and scripts/bench.d/targets.tsv, prints the table
report.py page PEERS.json COMMAND      writes docs/performance.md and docs/performance/*.svg
"""
import glob
import json
import os
import platform
import subprocess
import sys
import time

import svg

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CRITERION = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "criterion")


# ---- figures ----


def measured(since=0.0):
    """Nanoseconds for one element of each bench that was run after `since`, by its full name.

    The figure is the one that criterion prints: the slope over all samples, or the median where it takes none.
    """
    found = {}
    for path in glob.glob(os.path.join(CRITERION, "**", "new", "estimates.json"), recursive=True):
        if os.path.getmtime(path) < since:
            continue
        with open(os.path.join(os.path.dirname(path), "benchmark.json"), encoding="utf-8") as file:
            bench = json.load(file)
        with open(path, encoding="utf-8") as file:
            estimates = json.load(file)
        elements = (bench.get("throughput") or {}).get("Elements", 1)
        found[bench["full_id"]] = (estimates["slope"] or estimates["median"])["point_estimate"] / elements
    return found


def targets():
    """The rows of targets.tsv: (bench, nanoseconds, for what, what it is)."""
    rows = []
    with open(os.path.join(HERE, "targets.tsv"), encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                bench, target, per, what = line.rstrip("\n").split("\t")
                rows.append((bench, float(target), per, what))
    return rows


def value_of(bench, found):
    """The figure of a row; "a - b" is a difference. None if it was not measured."""
    one, _, other = bench.partition(" - ")
    if one not in found or (other and other not in found):
        return None
    return found[one] - (found[other] if other else 0)


def article(per):
    return f"an {per}" if per[0] in "aeio" else f"a {per}"


def verdict(value, target):
    return "ok" if value <= target else "above, %.1f times" % (value / target)


def table(since):
    found = measured(since)
    if not found:
        sys.exit("scripts/bench: no figures were found below %s; was a bench run?" % CRITERION)
    rows, named = [], set()
    for bench, target, per, what in targets():
        named.update(bench.split(" - "))
        value = value_of(bench, found)
        if value is not None:
            rows.append((bench, value, target, verdict(value, target), article(per)))
    for bench in sorted(set(found) - named):
        rows.append((bench, found[bench], None, "", ""))
    wide = max(len(r[0]) for r in rows)
    print("\n%-*s %12s %10s  %s" % (wide, "bench", "ns", "target", "verdict"))
    for bench, value, target, said, per in rows:
        limit = "" if target is None else "%g" % target
        print("%-*s %12s %10s  %-18s %s" % (wide, bench, svg.number(value), limit, said, per))
    missing = [b for b, *_ in targets() if value_of(b, found) is None]
    above = [r for r in rows if r[3].startswith("above")]
    with_target = [r for r in rows if r[2] is not None]
    print("\n%d of %d targets met; %d not measured" % (len(with_target) - len(above), len(with_target), len(missing)))


# ---- the machine ----


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor():
    model, extensions = "unknown", []
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                extensions = value.split()
    kind = "a virtual machine" if "hypervisor" in extensions else "no virtual machine"
    return f"{model}, {os.cpu_count()} cores, {kind}, {'with' if 'avx2' in extensions else 'without'} AVX2"


def memory():
    with open("/proc/meminfo", encoding="utf-8") as file:
        return "%.0f GiB" % (int(file.readline().split()[1]) / 2**20)


# ---- plots ----


def plot(name, drawing):
    folder = os.path.join(ROOT, "docs", "performance")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(drawing)


# Programs of ours, other tunnels, and what is no tunnel or no program one would use.
REFERENCES = {"direct", "gso", "gso1"}
LABELS = {
    "sixway-udp": "sixway, UDP",
    "sixway-p41": "sixway, protocol 41",
    "vxlan": "kernel VXLAN",
    "vxlan-again": "kernel VXLAN, again",
    "direct": "no tunnel",
    "gso": "bare UDP loop",
    "gso1": "bare UDP loop, 1 thread",
}


def label(peer):
    return LABELS.get(peer, peer)


def colour(peer):
    return svg.OURS if peer.startswith("sixway") else svg.REFERENCE if peer in REFERENCES else svg.THEIRS


def spread(peer, n):
    values = [r[n] for r in peer["rounds"]]
    return peer["median"][n], min(values), max(values)


def peer_plots(peers):
    measured_peers = peers["peers"].items()
    rounds = "one round" if peers["rounds"] == 1 else f"{peers['rounds']} rounds, medians; whiskers: least and most"
    under = f"{peers['seconds']} s each, {rounds}"
    tcp = [(label(p), [spread(v, n) for n in range(3)], None) for p, v in measured_peers]
    series = ["up, one flow", "down, one flow", "up, four flows"]
    plot("peers-tcp.svg", svg.bars("TCP through a tunnel, all on one machine", under, tcp, series, "Gbit/s"))
    under = rounds
    small = [(label(p), [spread(v, 3)], colour(p)) for p, v in measured_peers]
    plot("peers-small.svg", svg.bars("Datagrams of 64 octets, loss below 1 %", under, small, [""], "1000 packets/s"))


STAGES = [
    ("outer and inner header", "outer/proto41"),
    ("tunnel of the source", "decap_validate/source"),
    ("sender compared with it", "decap_validate/source_and_sender - decap_validate/source"),
    ("congestion mark", "outer/ecn_decap"),
    ("counted, of a million tunnels", "counters/64_of_1000000"),
    ("queued as a message", "outer/queue_message"),
    ("checksum of 1440 octets", "checksum/sum/1440"),
    ("cut from a super-packet", "gso/headers"),
    ("merged into a super-packet", "gro/one_flow"),
    ("up to the control plane", "punt/push_and_pop"),
    ("Packet Too Big built", "icmp/packet_too_big"),
]


def cost_plots(found):
    values = [(name, value_of(bench, found)) for name, bench in STAGES]
    rows = [(name, [(value, value, value)], svg.OURS) for name, value in values if value is not None]
    if rows:
        plot("stages.svg", svg.bars("What each step costs", "nanoseconds for a packet, one core", rows, [""], "ns"))
    series = []
    for name in ("pipeline/encap", "pipeline/decap", "judge/encap", "judge/decap"):
        points = {n: found[f"{name}/{n}"] for n in (1000, 100_000, 1_000_000) if f"{name}/{n}" in found}
        if points:
            series.append((name.replace("/", ", "), points))
    if series:
        points = sorted({n for _, values in series for n in values})
        under = "nanoseconds for a packet of 100 octets, each to or from a random tunnel, one core"
        plot("tunnels.svg", svg.lines("Cost by number of tunnels", under, points, series, "tunnels", "ns a packet"))
    return bool(rows), bool(series)


# ---- the page ----


def peer_table(peers):
    base = peers["peers"].get("vxlan")
    heads = ["TCP up, Gbit/s", "TCP down", "4 flows up", "64-octet datagrams, 1000/s", "idle round trip, µs", "processor s a GB"]
    out = ["| tunnel | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name, peer in peers["peers"].items():
        cells = []
        for n, value in enumerate(peer["median"]):
            ratio = f" ({value / base['median'][n]:.2f})" if base and base["median"][n] else ""
            cells.append(f"{value:.{peers['figures'][n]['digits']}f}{ratio}")
        mark = "**" if name.startswith("sixway") else ""
        out.append(f"| {mark}{label(name)}{mark} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def noise_lines(peers):
    noise = peers["noise"]
    if not noise:
        return "The same tunnel was not measured twice in this run, so its noise is not known: trust no difference below 10 %.\n"
    cell = lambda d: "-" if d is None else f"{100 * d:.0f} %"
    out = ["| noise | " + " | ".join(f["name"] for f in peers["figures"]) + " |", "|---|" + "--:|" * len(peers["figures"])]
    for title, key in (("between the medians", "medians"), ("at most within a round", "worst_round")):
        out.append(f"| {title} | " + " | ".join(cell(d) for d in noise[key]) + " |")
    return (
        "Noise: kernel VXLAN is measured twice in every round, first and last. So far do the two lie apart; smaller\n"
        "differences between others mean nothing.\n\n" + "\n".join(out) + "\n"
    )


def cost_table(found):
    out = ["| what | bench | ns | target | |", "|---|---|--:|--:|---|"]
    for bench, target, per, what in targets():
        value = value_of(bench, found)
        if value is not None:
            said = verdict(value, target)
            out.append(f"| {what} | `{bench}` | {svg.number(value)} {article(per)} | {target:g} | {said} |")
    return "\n".join(out)


# Where the part of the page begins that is not this script's.
BY_HAND = "## DHCPv6 on a link\n"


def page(peers_file, command):
    with open(peers_file, encoding="utf-8") as file:
        peers = json.load(file)
    found = measured()
    peer_plots(peers)
    stages, tunnels = cost_plots(found)
    missing = ""
    if peers["missing"]:
        missing = "Not installed on this machine, so not measured: " + ", ".join(peers["missing"]) + ".\n\n"
    if not found:
        print("scripts/bench: no bench figures are there, so the page has none", file=sys.stderr)
    pictures = []
    if tunnels:
        pictures.append("![Nanoseconds a packet against the number of tunnels](performance/tunnels.svg)\n")
    if stages:
        pictures.append("![Nanoseconds of each step](performance/stages.svg)\n")
    words = f"""# How fast

Written by `{command}` on {time.strftime("%Y-%m-%d")}; do not edit by hand.

| | |
|---|---|
| processor | {processor()} |
| memory | {memory()} |
| kernel | {platform.release()} |
| compiler | {first_line("rustc", "--version")} |
| version | {first_line("git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*")} |

## Beside other tunnels

Three hosts (network namespaces) on this one machine: a client, a router, an IPv6 host. Every tunnel in turn joins client
and router. **Both ends of the tunnel, both ends of the load and the kernel's network share the same
{os.cpu_count()} cores: only ratios within this run mean anything.** Two real machines give other figures, and more of them.

![TCP through each tunnel, in Gbit/s](performance/peers-tcp.svg)

![Datagrams of 64 octets through each tunnel, in thousands a second](performance/peers-small.svg)

Medians; in brackets the ratio to the kernel's VXLAN. Up is from the client to the host. Datagrams: the highest rate of
which fewer than 1 % were lost. Processor seconds are those of the whole machine, load and all, for each gigabyte up.

{peer_table(peers)}

{noise_lines(peers)}
{missing}The bare UDP loops are no tunnels that one would use: they read a TUN device and write a UDP socket, both by super-packets,
and check nothing. They show what the kernel's interfaces leave to a program. fastd runs without encryption here.
wireguard-go, where it was measured, encrypts.

Command: `scripts/bench-peers -r {peers["rounds"]} -t {peers["seconds"]} {" ".join([*peers["peers"], *peers["missing"]])}`, as root.

## What a packet costs

One core, no kernel and no devices. `pipeline` is a worker's whole turn over 64 packets (receive, judge, send, count), `judge`
the forwarder alone.

{chr(10).join(pictures)}
The targets are for a machine of this class, and no test asserts them.

{cost_table(found)}

Command: `scripts/bench`, which runs `cargo bench` and prints this table. Each figure is criterion's estimate from 20 samples.
One bench alone: `scripts/bench pipeline`, or `cargo bench --bench forward -- pipeline`. Packets of the
benches fit the caches unless the number of tunnels says otherwise.
"""
    path = os.path.join(ROOT, "docs", "performance.md")
    # What other scripts measure is written by hand, and stays.
    before = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
    by_hand = before.find(BY_HAND)
    with open(path, "w", encoding="utf-8") as file:
        file.write(words + ("\n" + before[by_hand:] if by_hand >= 0 else ""))
    print("wrote docs/performance.md and docs/performance/*.svg")


def main():
    match sys.argv[1:]:
        case ["table"]:
            table(0.0)
        case ["table", "--since", seconds]:
            table(float(seconds))
        case ["page", peers, command]:
            page(peers, command)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
