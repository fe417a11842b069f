//! Neighbour discovery and echo inside a tunnel that no kernel interface stands for.
//!
//! A tunnel is a point-to-point link of its own, and each link needs the little that any IPv6 link has: a
//! link-local address that answers, reachability confirmed, a router to be found. The forwarder hands up what it
//! cannot judge (anything from or to a link-local address); this module says what goes back into the tunnel.
//! RFC 4861 (neighbour discovery), RFC 4862 (duplicate address detection), RFC 4443 section 4 (echo),
//! RFC 4213 sections 3.7 and 3.8 (what of this a configured tunnel uses).
//!
//! Answering holds no state: one packet in, one packet out or a named reason for silence.
//!
//! ```text
//!            solicitation for an address of ours ──► advertisement  (its source; ff02::1 when the source is ::)
//!  packet ─► router solicitation, RA on          ──► router advertisement      (likewise)
//!            echo request to us, ff02::1, ff02::2 ─► echo reply
//!            anything else                       ──► Silence(reason), counted by the caller
//! ```
//!
//! The only state is *when*: [`AdvertSchedule`] is a ring of slots around which each tunnel's unsolicited router
//! advertisement comes up once every 400 s.
//!
//! ```text
//!  absent ──add──► waiting in its slot ──400 s──► due ──► waiting ...      remove: absent, withdrawal sent once
//! ```
//!
//! Left out: our own address resolution and unreachability detection (a point-to-point link has nothing to
//! resolve, and RFC 4213 section 3.8 does not ask it); link-layer options, neither read nor sent (same section);
//! redirects; multicast listener reports, which are recognised and ignored; ICMPv6 errors back to the peer; the
//! random delay and the three-second spacing of RFC 4861 section 6.2.6, which protect a shared link from many
//! hosts at once while ours has one; fragments and headers other than Hop-by-Hop before ICMPv6 (RFC 6980).

pub mod codec;
pub mod server;
pub mod session;

pub use session::{AdvertSchedule, Link, RaPolicy, Silence, advertisement, answer, withdrawal};
