#!/usr/bin/env python3
"""What scripts/bench-control has measured, as a table or as JSON; ends with 3 where something is not as wanted.

    control_report.py FOLDER PARTS [json]

Reads FOLDER/rows (part, tab, JSON object), FOLDER/lost (part, tab, why it has no result), FOLDER/pairs and FOLDER/paces.
A part of PARTS without a result, or with one that cannot be read, is a line of the table that is not met.
"""
import json, os, statistics, sys

work, parts, as_json = sys.argv[1], sys.argv[2].split(","), len(sys.argv) > 3
table = []


def read(name):
    path = os.path.join(work, name)
    return open(path).read().splitlines() if os.path.exists(path) else []


def add(what, measured, wanted, ok):
    table.append((what, measured, wanted, "yes" if ok else "NO"))


def setups(r):
    return "%d of %d in %.2f s" % (r["done"], r["asked"], r["seconds"])


def all_of(what, r, extra=""):
    add(what, setups(r) + extra, "all", r["done"] == r["asked"] > 0)


def held(row):
    s, m = row["setups"], row["memory"]
    all_of("sessions held over sockets", s)
    add("  server memory a session", "%d octets" % m["a_session"], "<= 8192", m["a_session"] <= 8192)
    all_of("  pings answered", row["pings"])
    add("durable setups a second", "%.0f (p50 %.1f, p99 %.1f ms)" % (s["a_second"], s["p50_ms"], s["p99_ms"]), ">= 5000", s["a_second"] >= 5000)


def storm(row):
    r = row["storm"]
    add("reconnect storm", setups(r) + ", came again %d times" % r["again"], "all, in seconds", r["done"] == r["asked"] and r["seconds"] < 10)


def edge(row):
    first, after = row["first"]["setups"], row["after"]["setups"]
    refused = first["asked"] - first["done"]
    counted = row["refused_counted"]
    add("no descriptors left", "%d served, %d refused, %d counted" % (first["done"], refused, counted), "all counted", refused > 0 and refused == counted)
    all_of("  and after that", after)


def memory(row):
    s, m = row["setups"], row["memory"]
    all_of("sessions in memory", s, ", %.0f a second" % s["a_second"])
    add("  memory a session, both ends", "%d octets" % m["a_session"], "<= 8192", m["a_session"] <= 8192)
    all_of("  pings answered", row["pings"])


def tsp(row):
    s = row["setups"]
    all_of("TSP sessions", s)
    add("  a second, leases on disk", "%.0f (p50 %.1f, p99 %.1f ms)" % (s["a_second"], s["p50_ms"], s["p99_ms"]), ">= 3000", s["a_second"] >= 3000)
    all_of("  pings through the tunnels", row["pings"])


def flood(row):
    s, grown = row["clients"]["setups"], (row["with_kib"] - row["before_kib"]) / 1024
    all_of("TSP sessions in a flood", s, ", %d sessions given up" % row["counted"]["udp_evicted"])
    for why, times in s["failed"].items():
        add("  %d times" % times, why, "never", False)
    add("  memory that it costs", "%.0f MiB" % grown, "<= 128", grown <= 128)


def tunnels(row):
    seen, leases = row["seen"], row["leases"]
    s, kept, m = seen["setups"], seen["kept"], seen["memory"]
    signs = kept["signs"]
    all_of("TSP tunnels", s, ", %.0f a second" % s["a_second"])
    add("  held at the end", "%d, ended for silence %d" % (leases, row["silent"]), "all", leases == s["asked"] and row["silent"] == 0)
    answered = "%d of %d, p50 %.1f, p99 %.1f ms" % (signs["done"], signs["asked"], signs["p50_ms"], signs["p99_ms"])
    add("  keepalives answered, one in %d s" % kept["every"], answered, "all", signs["done"] == signs["asked"])
    add("  answers that every tunnel had", "%d or more" % kept["least"], ">= 2", kept["least"] >= 2)
    add("  server memory a tunnel", "%d octets (%.0f MiB in all)" % (m["a_session"], m["with_kib"] / 1024), "<= 8192", m["a_session"] <= 8192)
    coming, holding = seen["processor"]
    add("  server processor, cores", "%.2f while they came, %.2f while held" % (coming, holding), "", True)


def forward():
    pairs = [tuple(map(float, line.split())) for line in read("pairs")]
    if not pairs:
        raise ValueError("no pair of streams was measured")
    ratio, equal = [b / a for a, b, _ in pairs], [c / a for a, _, c in pairs]
    spread = lambda r: "%.3f (%.3f to %.3f)" % (statistics.median(r), min(r), max(r))
    paces = [json.loads(line)["setups"] for line in read("paces")]
    slow = min(p["done"] / p["asked"] for p in paces)
    add("throughput under setups, ratio", spread(ratio), ">= 0.95", statistics.median(ratio) >= 0.95)
    add("  equal pairs", spread(equal), "", True)
    add("  setups that were granted", "%.1f %% in the worst run" % (100 * slow), "all", slow == 1)
    return {"gbits": pairs, "ratio": ratio, "equal": equal, "paces": paces}


shown = {"held": held, "storm": storm, "edge": edge, "memory": memory, "tsp": tsp, "flood": flood, "tunnels": tunnels}
texts, lost = dict(line.split("\t", 1) for line in read("rows")), dict(line.split("\t", 1) for line in read("lost"))
rows = {}
for part in parts:
    try:
        if part == "forward":
            rows[part] = forward()
        elif part not in shown:
            raise ValueError("there is no such part")
        elif part not in texts:
            raise ValueError(lost.get(part, "it has not been run to its end"))
        else:
            rows[part] = json.loads(texts[part])
            shown[part](rows[part])
            if part in lost:
                raise ValueError(lost[part])
    except (ValueError, LookupError, TypeError, ArithmeticError) as why:
        add(part, "no result: %s" % (why if isinstance(why, ValueError) else repr(why)), "a result", False)
if as_json:
    print(json.dumps({"rows": rows, "table": table}))
else:
    lines = [("what", "measured", "wanted", "met"), *table]
    widths = [max(len(r[n]) for r in lines) for n in range(4)]
    for r in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(r, widths)).rstrip())
sys.exit(0 if all(r[3] == "yes" for r in table) else 3)
