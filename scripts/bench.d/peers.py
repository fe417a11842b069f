#!/usr/bin/env python3
"""Sums up a run of scripts/bench-peers: a table for people and, if wanted, JSON with medians and all rounds.

peers.py LINES JSON|- ROUNDS SECONDS PEER...   LINES has one line a measurement: peer and six figures.
"""
import json
import statistics
import sys
import time

# name, unit, whether more is better, digits
FIGURES = [
    ("up", "Gbit/s", True, 2),
    ("down", "Gbit/s", True, 2),
    ("4 flows", "Gbit/s", True, 2),
    ("kpps 64B", "1000 packets/s", True, 0),
    ("rtt us", "microseconds", False, 0),
    ("cpu-s/GB", "processor seconds a gigabyte", False, 2),
]


def read(path):
    """All rounds of each peer, in order."""
    rounds = {}
    for line in open(path, encoding="utf-8"):
        name, *values = line.split()
        rounds.setdefault(name, []).append([float(v) for v in values])
    return rounds


def noise(rounds):
    """For each figure, how far two runs of the same thing lie apart: between medians, and at most within one round."""
    one, other = rounds.get("vxlan"), rounds.get("vxlan-again")
    if not one or not other:
        return None
    apart = lambda a, b: abs(b / a - 1) if a and b else None
    medians = [apart(statistics.median(a), statistics.median(b)) for a, b in zip(zip(*one), zip(*other))]
    worst = []
    for n in range(len(FIGURES)):
        pairs = [d for d in (apart(a[n], b[n]) for a, b in zip(one, other)) if d is not None]
        worst.append(max(pairs) if pairs else None)
    return {"medians": medians, "worst_round": worst}


def table(peers, median, spread):
    """The table for people: medians, ratios to vxlan, and the noise of each column."""
    base = median.get("vxlan")
    lines = ["%-14s" % "peer" + "".join("%18s" % name for name, *_ in FIGURES)]
    for peer in peers:
        if peer not in median:
            lines.append("%-14s  (not installed)" % peer)
            continue
        cells = []
        for n, value in enumerate(median[peer]):
            ratio = " (%.2f)" % (value / base[n]) if base and base[n] else ""
            cells.append("%18s" % ("%.*f%s" % (FIGURES[n][3], value, ratio)))
        lines.append("%-14s" % peer + "".join(cells))
    for title, key in (("noise, medians", "medians"), ("noise, a round", "worst_round")):
        if spread:
            cells = ("%18s" % ("-" if d is None else "%.0f %%" % (100 * d)) for d in spread[key])
            lines.append("%-14s" % title + "".join(cells))
    return "\n".join(lines)


def main():
    lines, out, count, seconds, *peers = sys.argv[1:]
    rounds = read(lines)
    median = {peer: [statistics.median(c) for c in zip(*r)] for peer, r in rounds.items()}
    spread = noise(rounds)
    print("\n" + table(peers, median, spread))
    rounds_said = "One round" if count == "1" else "Medians of %s rounds" % count
    print("\n%s; in brackets the ratio to vxlan in this run. up, down, 4 flows: Gbit/s." % rounds_said)
    if spread:
        print("noise: how far vxlan and vxlan-again, which are the same, lie apart. Smaller differences mean nothing.")
    if out != "-":
        figures = [{"name": n, "unit": u, "more_is_better": m, "digits": d} for n, u, m, d in FIGURES]
        measured = {p: {"median": median[p], "rounds": rounds[p]} for p in peers if p in median}
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "rounds": int(count),
            "seconds": int(seconds),
            "figures": figures,
            "peers": measured,
            "missing": [p for p in peers if p not in median],
            "noise": spread,
        }
        with open(out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
