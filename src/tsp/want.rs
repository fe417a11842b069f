//! What a client's request comes down to: which type of tunnel, to where, with which network (RFC 5572 sections 2.1, 4.7.1
//! and 5.4).
//!
//! Pure. Decides nothing about who may have what: that is the broker's.

use std::net::{IpAddr, Ipv4Addr};

use super::codec::{Code, Mode};
use super::terms::{Terms, Transport};
use super::xml::{Address, Name, Tunnel};
use crate::broker::UserName;

/// The most seconds between signs of life that a client may ask for.
const MOST_KEEPALIVE: u32 = 3600;
/// The longest prefix that makes a network of hosts.
const LONGEST_PREFIX: u8 = 64;

/// The tunnel that a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Who; `None`: nobody in particular.
    pub user: Option<UserName>,
    /// The type that was decided: [`Mode::V6V4`] or [`Mode::V6UdpV4`].
    pub mode: Mode,
    /// Where it ends on the client's side; over UDP the port is the session's.
    pub end: Ipv4Addr,
    /// The network behind it.
    pub network: Network,
    /// Seconds between signs of life; 0: none are agreed.
    pub keepalive: u32,
    /// Where the client takes itself to be.
    pub claimed: Ipv4Addr,
}

/// The network that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None.
    None,
    /// Whichever there is.
    Any,
    /// Of this prefix length in bits.
    Length(u8),
}

/// What the request comes down to (RFC 5572 sections 2.1 and 5.4).
///
/// # Errors
/// The code that the client is told.
pub fn want(terms: &Terms, request: &Tunnel, user: Option<UserName>) -> Result<Want, Code> {
    let asked = request.mode().ok_or(Code::InvalidRequest)?.map_err(|()| Code::UnsupportedTunnelType)?;
    if asked == Mode::V4V6 {
        return Err(Code::UnsupportedTunnelType);
    }
    let claimed =
        request.client.ipv4().flatten().filter(|addr| may_end_at(terms, *addr)).ok_or(Code::InvalidIpv4)?;
    if request.client.ipv6() == Some(None) {
        return Err(Code::InvalidIpv6);
    }
    let mode = decide(terms, asked, claimed, request.proxy)?;
    let network = network(request)?;
    if user.is_none() && network != Network::None {
        return Err(Code::PrefixForAnonymous);
    }
    let asked = request.keepalive.as_ref().and_then(|keepalive| keepalive.interval).unwrap_or(0);
    let keepalive = terms.offer.keepalive.unwrap_or(asked.min(MOST_KEEPALIVE));
    let end = if mode == Mode::V6V4 { claimed } else { terms.peer };
    Ok(Want { user, mode, end, network, keepalive, claimed })
}

fn may_end_at(terms: &Terms, addr: Ipv4Addr) -> bool {
    let own = addr.is_loopback() && !terms.peer.is_loopback();
    !(addr.is_unspecified() || addr.octets()[0] == 0 || addr.is_multicast() || addr.is_broadcast() || own)
}

/// The type, by whether a NAT is on the way.
fn decide(terms: &Terms, asked: Mode, claimed: Ipv4Addr, proxy: bool) -> Result<Mode, Code> {
    let Terms { transport, peer, offer, .. } = terms;
    let direct = claimed == *peer;
    let has = |mode: Mode| offer.tunnels.contains(&mode);
    let udp = *transport == Transport::Udp && has(Mode::V6UdpV4);
    match asked {
        Mode::V6AnyV4 if direct && has(Mode::V6V4) => Ok(Mode::V6V4),
        Mode::V6AnyV4 | Mode::V6UdpV4 if udp => Ok(Mode::V6UdpV4),
        Mode::V6V4 if !has(Mode::V6V4) => Err(Code::UnsupportedTunnelType),
        Mode::V6V4 if direct || (proxy && offer.proxy) => Ok(Mode::V6V4),
        Mode::V6V4 => Err(Code::InvalidIpv4),
        Mode::V6AnyV4 | Mode::V6UdpV4 | Mode::V4V6 => Err(Code::UnsupportedTunnelType),
    }
}

fn network(request: &Tunnel) -> Result<Network, Code> {
    let Some(router) = &request.router else { return Ok(Network::None) };
    // Names are not delegated to these servers, but what is no name and no address nobody could ever ask.
    let odd = |address: &Address| {
        let is_address = address.text.parse::<IpAddr>().is_ok();
        !is_address && Name::parse(&address.text).is_none()
    };
    if router.dns.0.iter().any(odd) {
        return Err(Code::DnsDelegation);
    }
    let Some(prefix) = &router.prefix else { return Ok(Network::Any) };
    if prefix.length.is_none() {
        return Err(Code::PrefixMissing);
    }
    let fits = prefix.bits().filter(|bits| (1..=LONGEST_PREFIX).contains(bits));
    fits.map(Network::Length).ok_or(Code::PrefixUnsupported)
}
