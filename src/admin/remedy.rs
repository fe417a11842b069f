//! What an operator can do about each drop reason, in a sentence; `docs/counters.md` says more.

use sixway_dataplane::verdict::Reason;

/// The next step.
pub fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::TooShort | Reason::NotIpv6 => {
            "The peer sends something else than IPv6: look at it with tcpdump on the outer interface."
        }
        Reason::Truncated => {
            "The peer or something on the way cuts packets: compare the MTU of peer and path."
        }
        Reason::OuterHeader => "Damage on the link under the outer interface: `ip -s link`, `ethtool -S`.",
        Reason::OuterFragment => "Lower the tunnel's mtu at both ends until outer packets fit the path.",
        Reason::NotOurs => "Nothing, where this host forwards protocol 41 for others.",
        Reason::OuterMartian => "Forged, or a misconfigured peer: filter such sources at the border.",
        Reason::InnerMartian => {
            "Forged, or a broken host behind the tunnel: no packet may have these addresses."
        }
        Reason::UnknownOuter => {
            "If a client is meant: compare its address and port with the tunnel's remote. Otherwise scanners."
        }
        Reason::WrongOuter => {
            "If the client has moved: correct its remote, or use UDP with \"learn\". Otherwise somebody forges."
        }
        Reason::SourceNotInPrefix => {
            "Add the prefix to the tunnel, or have the client use what it was given."
        }
        Reason::SourceIsLocal => "Forged, or two hosts have one address: look for it behind the tunnel.",
        Reason::SourceInTunnel => "See why the kernel sends it here: `ip -6 route get DST from SRC`.",
        Reason::NoRoute => "Add a tunnel with that prefix, or take the route to the TUN device away.",
        Reason::Unassigned => "Nobody has that part of the pool: the client gave it back, or somebody scans.",
        Reason::NoEndpoint => "Wait until the client sends something from an address in its prefixes.",
        Reason::TooBig => {
            "Normal now and then. If connections hang, ICMPv6 type 2 is filtered: let it pass, or lower the MTU."
        }
        Reason::HopLimit => "Normal for traceroute; many are a loop between two clients.",
        Reason::SameTunnel => {
            "Give the client an unreachable route for its whole prefix: it sends its own space back."
        }
        Reason::HairpinOff => "As configured: [router] hairpin = true lets tunnels talk to each other.",
        Reason::Scope => "Nothing: link-local and multicast stay on their link.",
        Reason::Ecn => "Nothing: the path is congested and the packet cannot carry the mark.",
        Reason::SourceRouted => {
            "Nothing; where routing headers are wanted: [guard] source_routes = true (never type 0)."
        }
        Reason::HeaderChain => "Nothing to do: such packets hide what is behind their headers.",
        Reason::Nested => "Look for a loop of tunnels; [guard] nesting allows more.",
        Reason::SixToFour => "Forged, or a 6to4 site that numbers itself from a private address.",
        Reason::RateLimited => {
            "As configured: packets_per_second or kbit_per_second of the tunnel is used up."
        }
        Reason::QuotaSpent => "As configured: raise the tunnel's quota_mib and reload.",
        Reason::PuntFull | Reason::PuntLimited => {
            "Look for who sends so many: `sixway show drops` names the last one."
        }
        Reason::Unclaimed => "Keepalives or set-up protocols that nothing here speaks.",
        Reason::BadOffload => {
            "From a peer: forged. From the kernel: try [offload] tun_tcp and tun_udp = false."
        }
        Reason::OddLink => "Use [proto41] receive = \"raw\".",
        Reason::SendFailed => "See `ip route get PEER`, the firewall on output, and net.core.wmem_max.",
        Reason::TunFull => "Is the device up? `ip link show`.",
        Reason::BatchFull => "Harmless in small numbers.",
    }
}
