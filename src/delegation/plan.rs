//! From what a server has delegated to what is done with it on this host: addresses, black holes, texts. Pure.
//!
//! What of a delegated prefix is on no interface leads nowhere (RFC 7084 WPD-5); else packets to it would go round between
//! us and the server.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use crate::dhcpv6::client::{Held, Lease, Want};
use crate::dhcpv6::codec::{INFINITY, IaKind};

/// The length of the prefix that one link is given, in bits (RFC 4291 section 2.5.1).
pub(super) const LINK: u8 = 64;

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The prefix length that is asked for, in bits; `None`: information alone.
    pub len: Option<u8>,
    /// Whether an address is asked for too, for the tunnel's device.
    pub address: bool,
    /// Links that are given a part of the prefix.
    pub to: Vec<Place>,
    /// Where radvd's configuration is written.
    pub radvd: Option<PathBuf>,
    /// What is run when the prefix comes, changes or goes.
    pub script: Option<PathBuf>,
    /// The tunnel's device.
    pub tun: String,
    /// The largest packet in the tunnel, in octets.
    pub mtu: u16,
}

/// An interface and which /64 of the prefix it has, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Its name.
    pub interface: String,
    /// Which.
    pub number: u64,
}

/// Preferred and valid lifetime in seconds from now on; [`INFINITY`] for no end.
pub type Life = (u32, u32);

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where.
    pub interface: String,
    /// The address.
    pub addr: Ipv6Addr,
    /// Bits of the network that it lies in.
    pub len: u8,
    /// For how long.
    pub life: Life,
}

/// What is to be on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Addresses.
    pub addresses: Vec<Placed>,
    /// What leads nowhere, except where something smaller leads somewhere.
    pub black_holes: Vec<Ipv6Prefix>,
    /// What cannot be done, in words.
    pub notes: Vec<String>,
}

impl Place {
    /// Reads `eth1` or `eth1:2`.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, number) = text.rsplit_once(':').unwrap_or((text, "1"));
        let number = number.parse().ok().filter(|n| *n > 0);
        let is_name = (1..=15).contains(&name.len()) && !name.contains(['/', ' ', ':']);
        match number.filter(|_| is_name) {
            Some(number) => Ok(Self { interface: name.to_owned(), number }),
            None => {
                Err(format!("'{text}' is no interface, or INTERFACE:N for its Nth /64 from 1, as in eth1:2"))
            }
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: /64 number {}", self.interface, self.number)
    }
}

impl Wish {
    /// What the client asks for. Several clients of one host ask under numbers of their own: of the device's name.
    pub fn wants(&self) -> Vec<Want> {
        let iaid = number_of(&self.tun);
        let prefix = self.len.map(|len| Want { kind: IaKind::Prefix, iaid, len });
        let address = self.address.then_some(Want { kind: IaKind::Address, iaid, len: 0 });
        prefix.into_iter().chain(address).collect()
    }

    /// What is to be done with a lease. `tunnel` are the prefixes that lie on the tunnel's device already: they are on no other
    /// link, and lead somewhere.
    pub fn plan(&self, lease: &Lease, tunnel: &[Ipv6Prefix], now: Duration) -> Plan {
        let is_link = |prefix: &Ipv6Prefix| tunnel.iter().any(|own| own.covers(*prefix));
        let black_holes = prefixes(lease, now).map(|held| held.prefix).filter(|p| !is_link(p)).collect();
        let notes = prefixes(lease, now).filter_map(|held| self.other_length(held.prefix)).collect();
        let mut plan = Plan { black_holes, notes, ..Plan::default() };
        for held in lease.held.iter().filter(|held| held.kind == IaKind::Address) {
            let interface = self.tun.clone();
            plan.addresses.push(Placed {
                interface,
                addr: held.prefix.addr(),
                len: 128,
                life: life(held, now),
            });
        }
        let Some(held) = prefixes(lease, now).next() else { return plan };
        for place in &self.to {
            let net = subnet(held.prefix, place.number);
            let meets = |net: Ipv6Prefix| {
                tunnel.iter().copied().find(|own: &Ipv6Prefix| own.covers(net) || net.covers(*own))
            };
            if let Some((net, own)) = net.and_then(|net| Some((net, meets(net)?))) {
                plan.notes.push(self.is_the_tunnel_s(net, own, place));
                continue;
            }
            match net {
                Some(net) => plan.addresses.push(Placed {
                    interface: place.interface.clone(),
                    addr: Ipv6Addr::from(net.bits() | 1),
                    len: LINK,
                    life: life(held, now),
                }),
                None => plan.notes.push(format!(
                    "{} has no /64 number {}: nothing is put on {}",
                    held.prefix, place.number, place.interface
                )),
            }
        }
        plan
    }

    /// That a prefix is of another length than was asked for.
    fn other_length(&self, prefix: Ipv6Prefix) -> Option<String> {
        let wanted = self.len.filter(|wanted| *wanted != prefix.prefix_len())?;
        let what = if prefix.prefix_len() > wanted { "smaller" } else { "larger" };
        Some(format!("a /{wanted} was asked for, and {prefix} is {what}: the server delegates what it has"))
    }

    /// That a network cannot be on a link, since it is on the tunnel's device.
    fn is_the_tunnel_s(&self, net: Ipv6Prefix, own: Ipv6Prefix, place: &Place) -> String {
        format!(
            "{net} is delegated, and {} has an address in {own}: nothing is put on {}, where it would lead two ways. \
             Give {} its address as a /128 at both ends, or have the server delegate something else",
            self.tun, place.interface, self.tun
        )
    }

    /// What [`Self::plan`] would do, before anything is delegated: a line each.
    pub fn intent(&self) -> Vec<String> {
        let Some(len) = self.len else {
            let asks = "asks for name servers and the like by DHCPv6 inside the tunnel".to_owned();
            return std::iter::once(asks).chain(self.runs()).collect();
        };
        let mut lines = vec![format!("asks for a /{len} by DHCPv6 inside the tunnel")];
        if self.address {
            lines.push(format!("asks for an address too, for {}", self.tun));
        }
        lines.push("what of it is on no interface becomes unreachable".to_owned());
        let places =
            self.to.iter().map(|place| format!("{} of it, its first address on the interface", place));
        lines.extend(places);
        lines.extend(
            self.radvd.iter().map(|file| format!("writes radvd's configuration to {}", file.display())),
        );
        lines.extend(self.runs());
        lines
    }

    fn runs(&self) -> Option<String> {
        self.script.as_ref().map(|file| format!("runs {} when it comes, changes or goes", file.display()))
    }

    /// What the script is told.
    pub fn variables(
        &self,
        event: Event,
        plan: &Plan,
        lease: &Lease,
        now: Duration,
    ) -> Vec<(&'static str, String)> {
        let joined = |all: Vec<String>| all.join(" ");
        let first = prefixes(lease, now).next();
        let (preferred, valid) = first.map_or((0, 0), |held| life(held, now));
        let subnets = plan.addresses.iter().filter(|placed| placed.len == LINK);
        let subnets = subnets.map(|placed| format!("{}={}", placed.interface, network(placed)));
        vec![
            ("SIXWAY_EVENT", event.name().to_owned()),
            ("SIXWAY_TUNNEL_INTERFACE", self.tun.clone()),
            ("SIXWAY_MTU", self.mtu.to_string()),
            ("SIXWAY_PREFIX", first.map(|held| held.prefix.to_string()).unwrap_or_default()),
            ("SIXWAY_PREFIXES", joined(prefixes(lease, now).map(|held| held.prefix.to_string()).collect())),
            ("SIXWAY_PREFERRED", preferred.to_string()),
            ("SIXWAY_VALID", valid.to_string()),
            ("SIXWAY_SUBNETS", joined(subnets.collect())),
            ("SIXWAY_ADDRESSES", joined(addresses(lease))),
            ("SIXWAY_DNS", joined(lease.dns.iter().map(Ipv6Addr::to_string).collect())),
            ("SIXWAY_DOMAINS", joined(lease.domains.iter().map(ToString::to_string).collect())),
            ("SIXWAY_RADVD", self.radvd.as_ref().map(|file| file.display().to_string()).unwrap_or_default()),
        ]
    }
}

/// Why the script is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// There was no prefix, and now there is.
    Up,
    /// The same lasts longer.
    Renewed,
    /// It is another one.
    Changed,
    /// There is none, and what servers say besides is other than before.
    Informed,
    /// It is gone.
    Down,
}

impl Event {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Renewed => "renewed",
            Self::Changed => "changed",
            Self::Informed => "informed",
            Self::Down => "down",
        }
    }

    /// What has happened between two leases, if anything; `None`: there was nothing and is nothing.
    pub fn between(before: &Lease, after: &Lease) -> Option<Self> {
        let set = |lease: &Lease| lease.held.iter().map(|held| held.prefix).collect::<Vec<_>>();
        let is_told = (&before.dns, &before.domains) != (&after.dns, &after.domains);
        match (set(before), set(after)) {
            (before, after) if before.is_empty() && after.is_empty() => is_told.then_some(Self::Informed),
            (before, _) if before.is_empty() => Some(Self::Up),
            (_, after) if after.is_empty() => Some(Self::Down),
            (before, after) if before == after => Some(Self::Renewed),
            (_, _) => Some(Self::Changed),
        }
    }
}

/// The delegated prefixes; those that are being withdrawn come last.
fn prefixes(lease: &Lease, now: Duration) -> impl Iterator<Item = &Held> {
    let mut all: Vec<&Held> = lease.held.iter().filter(|held| held.kind == IaKind::Prefix).collect();
    all.sort_by_key(|held| held.preferred.is_some_and(|until| until <= now));
    all.into_iter()
}

fn addresses(lease: &Lease) -> Vec<String> {
    let own = lease.held.iter().filter(|held| held.kind == IaKind::Address);
    own.map(|held| held.prefix.addr().to_string()).collect()
}

/// The `number`th /64 of a prefix, from 1.
pub fn subnet(prefix: Ipv6Prefix, number: u64) -> Option<Ipv6Prefix> {
    let free = LINK.checked_sub(prefix.prefix_len())?;
    let index = u128::from(number.checked_sub(1)?);
    let fits = index.checked_shr(free.into()).unwrap_or(0) == 0;
    Ipv6Prefix::new(Ipv6Addr::from(prefix.bits() | index << LINK), LINK).filter(|_| fits)
}

pub(super) fn network(placed: &Placed) -> Ipv6Prefix {
    Ipv6Prefix::new(placed.addr, placed.len).unwrap_or(Ipv6Prefix::ALL)
}

fn life(held: &Held, now: Duration) -> Life {
    let left = |until: Option<Duration>| {
        until.map_or(INFINITY, |until| u32::try_from(until.saturating_sub(now).as_secs()).unwrap_or(INFINITY))
    };
    (left(held.preferred), left(held.valid))
}

/// A number that stays the same for a name (FNV-1a).
fn number_of(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash: u32, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dhcpv6::codec::Name;

    fn s(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    pub(in crate::delegation) fn wish(to: &[&str]) -> Wish {
        Wish {
            len: Some(56),
            address: true,
            to: to.iter().map(|text| Place::parse(text).unwrap()).collect(),
            radvd: Some("/etc/radvd.conf".into()),
            script: None,
            tun: "six0".to_owned(),
            mtu: 1280,
        }
    }

    pub(in crate::delegation) fn lease(prefix: &str) -> Lease {
        let prefix =
            Held { kind: IaKind::Prefix, prefix: prefix.parse().unwrap(), preferred: s(160), valid: s(190) };
        let own = "2001:db8:5::9/128".parse().unwrap();
        let address = Held { kind: IaKind::Address, prefix: own, preferred: None, valid: None };
        let dns = vec!["2001:db8:53::53".parse().unwrap()];
        Lease { held: vec![prefix, address], dns, domains: vec![Name::from_text("example.com").unwrap()] }
    }

    #[test]
    fn places_are_read() {
        let place = |text: &str| Place::parse(text).map(|p| (p.interface, p.number)).ok();
        assert_eq!(place("eth1"), Some(("eth1".to_owned(), 1)));
        assert_eq!(place("br-lan:256"), Some(("br-lan".to_owned(), 256)));
        for wrong in ["", ":1", "eth1:0", "eth1:x", "eth1:-1", "an-interface-far-too-long", "a/b"] {
            assert_eq!(place(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn links_are_numbered_from_one() {
        let net = |prefix: &str, n| subnet(prefix.parse().unwrap(), n).map(|net| net.to_string());
        assert_eq!(net("2001:db8:200::/56", 1).as_deref(), Some("2001:db8:200::/64"));
        assert_eq!(net("2001:db8:200::/56", 2).as_deref(), Some("2001:db8:200:1::/64"));
        assert_eq!(net("2001:db8:200::/56", 256).as_deref(), Some("2001:db8:200:ff::/64"));
        assert_eq!(net("2001:db8:200::/56", 257), None);
        assert_eq!(net("2001:db8:200::/64", 1).as_deref(), Some("2001:db8:200::/64"));
        assert_eq!(
            (net("2001:db8:200::/64", 2), net("2001:db8::/65", 1), net("2001:db8::/56", 0)),
            (None, None, None)
        );
        assert_eq!(net("2000::/8", u64::MAX), None);
        assert_eq!(net("2001:db8::/48", 65_536).as_deref(), Some("2001:db8:0:ffff::/64"));
    }

    #[test]
    fn what_is_delegated_is_put_where_it_is_wanted_and_the_rest_leads_nowhere() {
        let plan = wish(&["eth1", "eth2:2", "eth3:999"]).plan(
            &lease("2001:db8:200::/56"),
            &[],
            Duration::from_secs(100),
        );
        let shown: Vec<String> = plan
            .addresses
            .iter()
            .map(|p| format!("{} {}/{} {:?}", p.interface, p.addr, p.len, p.life))
            .collect();
        assert_eq!(
            shown,
            [
                "six0 2001:db8:5::9/128 (4294967295, 4294967295)",
                "eth1 2001:db8:200::1/64 (60, 90)",
                "eth2 2001:db8:200:1::1/64 (60, 90)"
            ]
        );
        assert_eq!(plan.black_holes, ["2001:db8:200::/56".parse().unwrap()]);
        assert!(plan.notes.len() == 1 && plan.notes[0].contains("number 999"), "{:?}", plan.notes);
    }

    #[test]
    fn what_the_tunnel_lies_in_is_put_on_no_link() {
        let (tun, now) = ("2001:db8:200::/64".parse().unwrap(), Duration::from_secs(100));
        let plan = wish(&["eth1", "eth2:2"]).plan(&lease("2001:db8:200::/56"), &[tun], now);
        let places: Vec<&str> = plan.addresses.iter().map(|placed| placed.interface.as_str()).collect();
        assert_eq!((places, plan.black_holes.len()), (vec!["six0", "eth2"], 1));
        assert!(
            plan.notes.len() == 1 && plan.notes[0].contains("nothing is put on eth1"),
            "{:?}",
            plan.notes
        );
        let whole = wish(&["eth1"]).plan(&lease("2001:db8:200::/64"), &[tun], now);
        assert_eq!((whole.addresses.len(), whole.black_holes.len(), whole.notes.len()), (1, 0, 2));
        assert!(whole.notes[0].contains("a /56 was asked for, and 2001:db8:200::/64 is smaller"));
        let shorter = wish(&["eth1"]).plan(&lease("2001:db8:200::/48"), &[], now);
        assert!(shorter.notes.len() == 1 && shorter.notes[0].contains("is larger"), "{:?}", shorter.notes);
        let none = Wish { len: None, ..wish(&[]) }.plan(&lease("2001:db8:200::/48"), &[], now);
        assert!(none.notes.is_empty());
    }

    #[test]
    fn scripts_are_told_what_has_happened() {
        let (wish, now) = (wish(&["eth1:2"]), Duration::from_secs(100));
        let (before, after) = (lease("2001:db8:200::/56"), lease("2001:db8:300::/56"));
        let none = Lease::default();
        let told = Lease { held: Vec::new(), ..before.clone() };
        for (from, to, event) in [
            (&none, &before, Some(Event::Up)),
            (&before, &before, Some(Event::Renewed)),
            (&before, &after, Some(Event::Changed)),
            (&after, &none, Some(Event::Down)),
            (&none, &none, None),
            (&none, &told, Some(Event::Informed)),
            (&told, &told, None),
            (&told, &none, Some(Event::Informed)),
            (&told, &before, Some(Event::Up)),
        ] {
            assert_eq!(Event::between(from, to), event);
        }
        let told = wish.variables(Event::Changed, &wish.plan(&after, &[], now), &after, now);
        for (name, value) in [
            ("SIXWAY_EVENT", "changed"),
            ("SIXWAY_PREFIX", "2001:db8:300::/56"),
            ("SIXWAY_VALID", "90"),
            ("SIXWAY_SUBNETS", "eth1=2001:db8:300:1::/64"),
            ("SIXWAY_ADDRESSES", "2001:db8:5::9"),
            ("SIXWAY_DNS", "2001:db8:53::53"),
            ("SIXWAY_DOMAINS", "example.com."),
        ] {
            assert!(told.contains(&(name, value.to_owned())), "{name} in {told:?}");
        }
    }

    #[test]
    fn two_devices_ask_under_two_numbers() {
        let other = Wish { tun: "six1".to_owned(), ..wish(&[]) };
        assert_ne!(wish(&[]).wants()[0].iaid, other.wants()[0].iaid);
        assert_eq!(wish(&[]).wants()[0].iaid, number_of("six0"));
    }
}
