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
    /// Whether it is given at once, with nobody to accept it.
    pub firm: bool,
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
pub fn want(terms: &Terms, request: &Tunnel, user: Option<UserName>, firm: bool) -> Result<Want, Code> {
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
    let keepalive = match terms.offer.anonymous_keepalive.filter(|_| user.is_none()) {
        Some(most) if keepalive == 0 || keepalive > most => most,
        Some(_) | None => keepalive,
    };
    let end = if mode == Mode::V6V4 { claimed } else { terms.peer };
    Ok(Want { user, mode, end, network, keepalive, claimed, firm })
}

fn may_end_at(terms: &Terms, addr: Ipv4Addr) -> bool {
    let own = addr.is_loopback() && !terms.peer.is_loopback();
    !(addr.is_unspecified() || addr.octets()[0] == 0 || addr.is_multicast() || addr.is_broadcast() || own)
}

/// Whether packets may be aimed at another box on somebody's word: not at ourselves, nor where no box is (RFC 6890).
fn may_aim_at(terms: &Terms, addr: Ipv4Addr) -> bool {
    let ours = addr == terms.local || terms.offer.public_address == Some(addr);
    !(ours || addr.octets()[0] >= 240 || addr.is_link_local())
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
        Mode::V6V4 if direct => Ok(Mode::V6V4),
        Mode::V6V4 if proxy && offer.proxy && may_aim_at(terms, claimed) => Ok(Mode::V6V4),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tsp::terms::Offer;

    fn aimed_at(addr: &str) -> Result<Want, Code> {
        let public_address = Some(Ipv4Addr::new(203, 0, 113, 1));
        let offer = Offer { proxy: true, public_address, ..Offer::plain(Mode::V6V4, Vec::new()) };
        let [peer, local] = [[198, 51, 100, 9], [192, 0, 2, 1]].map(Ipv4Addr::from);
        let terms = Terms { transport: Transport::Udp, peer, local, random: [0; 16], offer: Arc::new(offer) };
        let xml = format!(
            "<tunnel action=\"create\" type=\"v6v4\" proxy=\"yes\"><client><address type=\"ipv4\">{addr}</address></client></tunnel>"
        );
        want(&terms, &Tunnel::parse(xml.as_bytes()).unwrap(), None, false)
    }

    #[test]
    fn nobody_aims_a_tunnel_at_us_or_where_no_box_is() {
        assert_eq!(aimed_at("192.0.2.9").unwrap().end, Ipv4Addr::new(192, 0, 2, 9));
        for wrong in ["192.0.2.1", "203.0.113.1", "240.1.1.1", "169.254.1.1", "255.255.255.255"] {
            assert_eq!(aimed_at(wrong), Err(Code::InvalidIpv4), "{wrong}");
        }
    }
}
