//! What becomes of a packet, and why: one [`Reason`] for each way to die, each with its own counter. And the checks on its
//! way, for a [`Witness`].

use crate::packet::icmp::IcmpError;
use crate::table::slab::Path;
use crate::update::TunnelId;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a packet was dropped. `docs/counters.md` places each on the packet's way.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in status output and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// One sentence for people.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Shorter than an IPv6 header, or a datagram too short to mean anything.
    TooShort = "too_short",
    /// Not IPv6 where only IPv6 can be.
    NotIpv6 = "not_ipv6",
    /// The inner payload length says more than has come.
    Truncated = "truncated",
    /// The outer IPv4 header is damaged: version, length or checksum.
    OuterHeader = "outer_header",
    /// An outer fragment that nothing has reassembled.
    OuterFragment = "outer_fragment",
    /// Protocol 41 for an IPv4 address that is not ours.
    NotOurs = "not_ours",
    /// The outer source is no address that a peer can have (RFC 4213 section 3.6).
    OuterMartian = "outer_martian",
    /// The inner source or destination is no address that may cross a tunnel (RFC 4213 section 3.6).
    InnerMartian = "inner_martian",
    /// The outer sender is no tunnel's peer, and the inner source is in no tunnel's prefix.
    UnknownOuter = "unknown_outer",
    /// The inner source is in a tunnel's prefix, but the outer sender is no tunnel's peer.
    WrongOuter = "wrong_outer",
    /// The sender is a tunnel's peer, but the inner source is not in that tunnel's prefixes.
    SourceNotInPrefix = "source_not_in_prefix",
    /// A packet out of a tunnel claims to come from the router itself.
    SourceIsLocal = "source_is_local",
    /// A packet out of the TUN device claims to come from inside a tunnel.
    SourceInTunnel = "source_in_tunnel",
    /// No tunnel has the inner destination.
    NoRoute = "no_route",
    /// The inner destination is in space that was handed out to nobody.
    Unassigned = "unassigned",
    /// The tunnel's peer has not been learned yet.
    NoEndpoint = "no_endpoint",
    /// Longer than the tunnel's MTU, which Packet Too Big tells the sender.
    TooBig = "too_big",
    /// The hop limit ran out between two tunnels.
    HopLimit = "hop_limit",
    /// The packet would leave by the tunnel that it came from.
    SameTunnel = "same_tunnel",
    /// Tunnel to tunnel, which the configuration forbids.
    HairpinOff = "hairpin_off",
    /// Link-local or multicast where it must not be forwarded (RFC 4291 sections 2.5.6 and 2.7).
    Scope = "scope",
    /// Congestion was signalled in the outer header to a packet that cannot carry the signal (RFC 6040 section 4.2).
    Ecn = "ecn",
    /// A routing header that is not to be followed (RFC 5095 section 3, RFC 6169 section 2.3).
    SourceRouted = "source_routed",
    /// More tunnels inside a tunnel than may be (RFC 2473 section 4.1.1).
    Nested = "nested",
    /// The packet's extension headers cannot be followed to their end: more than eight, or cut short.
    HeaderChain = "header_chain",
    /// A 6to4 address around an IPv4 address that it cannot stand for (RFC 3964 section 5.1).
    SixToFour = "six_to_four",
    /// The tunnel's rate is used up.
    RateLimited = "rate_limited",
    /// The tunnel's quota is used up.
    QuotaSpent = "quota_spent",
    /// The way to the control plane is full.
    PuntFull = "punt_full",
    /// This sender asks too often for the control plane.
    PuntLimited = "punt_limited",
    /// The control plane knew nobody who wanted it.
    Unclaimed = "unclaimed",
    /// A super-packet whose description does not fit its octets.
    BadOffload = "bad_offload",
    /// The link under the outer interface is of a kind that is not understood.
    OddLink = "odd_link",
    /// The socket refused the packet.
    SendFailed = "send_failed",
    /// The TUN device refused the packet.
    TunFull = "tun_full",
    /// More packets at once than one batch can describe.
    BatchFull = "batch_full",
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

/// Why a packet goes up to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PuntClass {
    /// Link-local traffic or neighbour discovery out of a tunnel.
    Link,
    /// A packet from inside a tunnel's prefix by a sender who may be its peer, moved.
    Candidate,
    /// An echo reply to the router itself: perhaps the answer to a probe. It was also delivered if that was due.
    EchoReply,
    /// A UDP datagram that is not IPv6.
    Datagram,
    /// A copy of a watched tunnel's packet.
    Watched,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Encapsulate and send; the octet is the outer type of service.
    ToWire(Path, u8),
    /// Hand to the kernel.
    ToTun,
    /// Hand to the control plane.
    Punt(PuntClass),
    /// Hand to the kernel and a copy to the control plane.
    ToTunAndPunt(PuntClass),
    /// Throw away, perhaps telling the sender.
    Drop(Reason, Option<IcmpError>),
}

impl Verdict {
    /// What becomes of a packet over a limit. A tunnel that may carry no more is closed (RFC 4443 section 3.1); one that is
    /// too fast is only slowed.
    pub fn over(reason: Reason) -> Self {
        Self::Drop(reason, (reason == Reason::QuotaSpent).then_some(IcmpError::Prohibited))
    }
}

/// A verdict with the tunnel that the packet came out of, or was dropped on behalf of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Whose packet it is: the tunnel it came from, else the one it was meant for.
    pub tunnel: Option<Path>,
}

impl Judged {
    /// Whether it goes on, to a peer or to the kernel: what a tunnel's limits are asked about.
    pub fn is_carried(&self) -> bool {
        match self.verdict {
            Verdict::ToWire(..) | Verdict::ToTun | Verdict::ToTunAndPunt(_) => true,
            Verdict::Punt(_) | Verdict::Drop(..) => false,
        }
    }

    /// The tunnels that carry it: the one that it is accounted to, then the one that it enters from there.
    pub fn carriers(&self) -> impl Iterator<Item = Path> + use<> {
        let entered = match self.verdict {
            Verdict::ToWire(path, _) if Some(path.tunnel) != self.tunnel_id() => Some(path),
            Verdict::ToWire(..) | Verdict::ToTun | Verdict::ToTunAndPunt(_) => None,
            Verdict::Punt(_) | Verdict::Drop(..) => None,
        };
        self.tunnel.into_iter().chain(entered)
    }

    /// The number of the tunnel it is accounted to.
    pub fn tunnel_id(&self) -> Option<TunnelId> {
        self.tunnel.map(|p| p.tunnel)
    }
}

/// One thing that is looked at on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// Can the outer source be a peer at all?
    Sender,
    /// Is it IPv6, or a datagram for the control plane?
    Datagram,
    /// Is there an IPv6 header with an honest length?
    Header,
    /// Are the addresses such as may cross a tunnel?
    Addresses,
    /// May the packet leave its link, or is it one that its link is for?
    Scope,
    /// Whose is the inner source?
    Source,
    /// Is the sender a tunnel's peer, and of the tunnel that the inner source belongs to?
    Peer,
    /// Does it carry what may not come out of a tunnel, or too many tunnels?
    Inside,
    /// Can the packet carry the congestion mark that it got outside?
    Marks,
    /// Can a merged packet be cut, a left checksum be completed?
    Train,
    /// Who has the destination?
    Destination,
    /// May it go from this tunnel to that one?
    Hairpin,
    /// Is the tunnel's peer known?
    Endpoint,
    /// Does it fit the tunnel's MTU?
    Size,
    /// Does the tunnel's rate or quota have room for it?
    Limit,
}

/// Who sees the checks of a packet as they are made. The forwarder's own threads have none: `()` costs nothing.
pub trait Witness {
    /// This check comes now. It is passed if another comes, or if the packet goes on.
    fn meets(&mut self, check: Check);
}

impl Witness for () {
    #[inline(always)]
    fn meets(&mut self, _check: Check) {}
}

impl Witness for Vec<Check> {
    fn meets(&mut self, check: Check) {
        self.push(check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order_and_named_once() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert!(Reason::ALL.iter().enumerate().all(|(n, r)| *r as usize == n));
        assert!(Reason::ALL.iter().all(|r| r.meaning().ends_with('.')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::COUNT);
    }
}
