//! Statements to a configuration: what must hold between them, in the old program's order (keys, authentication, pools,
//! interfaces, hosts, options).
//!
//! All mistakes are found, not only the first. Of two statements with one name the first counts, as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use sixway_dataplane::update::Ipv6Prefix;

use super::parser::{
    AuthDecl, Block, HostDecl, InterfaceDecl, KeyDecl, Life, PoolDecl, PoolRef, PrefixPoolDecl, Statement,
    SubnetDecl,
};
use super::values::{self, Lifetimes};
use super::{
    Host, Interface, Key, Notes, Options, Place, PoolUse, PrefixPool, Remark, ServerConf, Subnet,
    Surroundings,
};
use crate::compat::base64;
use crate::dhcpv6::codec::code;

mod hosts;

/// The least refresh time in seconds (RFC 8415 section 21.23).
const MIN_REFRESH: u32 = 600;
/// The longest prefix that is cut from a pool.
const MAX_DELEGATED: u8 = 64;

/// The configuration that the statements make together.
pub(super) fn apply(
    statements: Vec<Statement>,
    around: &dyn Surroundings,
    notes: &mut Notes,
) -> Result<ServerConf, Vec<Remark>> {
    let sorted = Sorted::of(statements, notes);
    let mut whole = Whole {
        around,
        notes,
        wrong: Vec::new(),
        keys: BTreeMap::new(),
        pools: BTreeMap::new(),
        reconfigure: false,
    };
    sorted.keys.into_iter().for_each(|block| whole.key(block));
    sorted.authentications.into_iter().for_each(|block| whole.authentication(&block));
    sorted.pools.into_iter().for_each(|block| whole.pool(block));
    let interfaces = sorted.interfaces.into_iter().filter_map(|block| whole.interface(block)).collect();
    let places: Vec<Place> = sorted.hosts.iter().map(|block| block.place.clone()).collect();
    let hosts = sorted.hosts.into_iter().filter_map(|block| whole.host(block)).collect();
    let requestors =
        sorted.requestors.into_iter().flat_map(|(at, list)| whole.requestors(&at, list)).collect();
    let options = whole.options(sorted.options);
    let hosts: Vec<Host> = hosts;
    whole.overlaps(&hosts, &places);
    let (mut wrong, reconfigure) = (whole.wrong, whole.reconfigure);
    wrong.sort_by(|a, b| a.place.cmp(&b.place));
    if wrong.is_empty() {
        Ok(ServerConf { options, interfaces, hosts, reconfigure, requestors })
    } else {
        Err(wrong)
    }
}

/// Statements by their kinds, without those whose name has been there before.
#[derive(Default)]
struct Sorted {
    options: Vec<Statement>,
    interfaces: Vec<Block<InterfaceDecl>>,
    hosts: Vec<Block<HostDecl>>,
    pools: Vec<Block<PoolDecl>>,
    keys: Vec<Block<KeyDecl>>,
    authentications: Vec<Block<AuthDecl>>,
    requestors: Vec<(Place, Vec<(Ipv6Addr, u64)>)>,
}

fn codes(list: Vec<u64>) -> Result<Vec<u16>, String> {
    let all: Result<Vec<u16>, _> = list.into_iter().map(u16::try_from).collect();
    all.map_err(|_| "an option's code is 0 to 65535".to_owned())
}

const NO_PAIRS: &str = "behind '0x' stand pairs of hexadecimal digits";

/// What a relay says in its option: text, or octets behind `0x`.
fn relay_id(text: &str) -> Option<Vec<u8>> {
    let Some(digits) = text.strip_prefix("0x") else { return Some(text.as_bytes().to_vec()) };
    let is_pairs = digits.len() % 2 == 0 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let pairs = is_pairs.then(|| (0..digits.len()).step_by(2).map(|at| digits.get(at..at + 2)))?;
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

impl Sorted {
    fn of(statements: Vec<Statement>, notes: &mut Notes) -> Self {
        let mut all = Self::default();
        let mut names = BTreeSet::new();
        for statement in statements {
            match statement {
                Statement::Interface(block) => {
                    keep(&mut all.interfaces, "interface", block, &mut names, notes);
                }
                Statement::Host(block) => keep(&mut all.hosts, "host", block, &mut names, notes),
                Statement::Pool(block) => keep(&mut all.pools, "pool", block, &mut names, notes),
                Statement::Key(block) => keep(&mut all.keys, "keyinfo", block, &mut names, notes),
                Statement::Authentication(block) => {
                    keep(&mut all.authentications, "authentication", block, &mut names, notes);
                }
                Statement::LeaseQuery(at, list) => all.requestors.push((at, list)),
                Statement::Addresses(..) | Statement::Name(..) | Statement::Refresh(..) => {
                    all.options.push(statement);
                }
            }
        }
        all
    }
}

fn keep<T>(
    list: &mut Vec<Block<T>>,
    kind: &'static str,
    block: Block<T>,
    names: &mut BTreeSet<(&'static str, String)>,
    notes: &mut Notes,
) {
    if names.insert((kind, block.name.clone())) {
        list.push(block);
    } else {
        let what =
            format!("there is a {kind} '{}' before this, which counts; this one is ignored", block.name);
        notes.push(&block.place, what);
    }
}

/// What has been resolved so far, and what was wrong.
struct Whole<'a> {
    around: &'a dyn Surroundings,
    notes: &'a mut Notes,
    wrong: Vec<Remark>,
    keys: BTreeMap<String, Arc<Key>>,
    /// The lowest and the highest address, and whether the lowest free one is given.
    pools: BTreeMap<String, (Ipv6Addr, Ipv6Addr, bool)>,
    reconfigure: bool,
}

impl Whole<'_> {
    fn refuse(&mut self, place: &Place, what: impl Into<String>) {
        self.wrong.push(Remark { place: place.clone(), what: what.into() });
    }

    /// What `made` says, or nothing and the mistake put down.
    fn taken<T>(&mut self, place: &Place, made: Result<T, String>) -> Option<T> {
        made.map_err(|what| self.refuse(place, what)).ok()
    }

    fn key(&mut self, block: Block<KeyDecl>) {
        let Block { place, name, decls } = block;
        let (mut realm, mut id, mut secret, mut expires) = (None, None, None, None);
        let before = self.wrong.len();
        for (at, decl) in decls {
            match decl {
                KeyDecl::Realm(text) => realm = Some(text),
                KeyDecl::Id(number) => {
                    let number =
                        u32::try_from(number).map_err(|_| format!("a key's number is 0 to {}", u32::MAX));
                    id = self.taken(&at, number);
                }
                KeyDecl::Secret(text) => {
                    let decoded = base64::decode(text.as_bytes());
                    secret =
                        self.taken(&at, decoded.map_err(|why| format!("the secret is no base64: {why}")));
                }
                KeyDecl::Expire(text) => {
                    expires = self.taken(&at, values::expiry(&text, self.around)).flatten();
                }
            }
        }
        match (realm, id, secret) {
            (Some(realm), Some(id), Some(secret)) => {
                let key = Key { name: name.clone(), realm, id, secret, expires };
                self.keys.insert(name, Arc::new(key));
            }
            // What has been said already is not said as missing.
            _ if self.wrong.len() > before => {}
            (realm, id, secret) => {
                let needed =
                    [("realm", realm.is_none()), ("keyid", id.is_none()), ("secret", secret.is_none())];
                let missing: Vec<&str> = needed.iter().filter(|(_, no)| *no).map(|(word, _)| *word).collect();
                self.refuse(&place, format!("keyinfo '{name}' has no {}", missing.join(", no ")));
            }
        }
    }

    fn authentication(&mut self, block: &Block<AuthDecl>) {
        let protocol = block
            .decls
            .iter()
            .rev()
            .find(|(_, decl)| matches!(decl, AuthDecl::Delayed | AuthDecl::Reconfigure));
        match protocol {
            None => {
                let what =
                    format!("authentication '{}' has no protocol; write 'protocol reconfig;'", block.name);
                self.refuse(&block.place, what);
            }
            Some((at, AuthDecl::Delayed)) => {
                self.refuse(at, "'protocol delayed' is for clients; a server has 'delayedkey' in its hosts");
            }
            Some(_) => self.reconfigure = true,
        }
    }

    fn pool(&mut self, block: Block<PoolDecl>) {
        let Block { place, name, decls } = block;
        let lowest_first = decls.iter().any(|(_, decl)| matches!(decl, PoolDecl::LowestFirst));
        let range = |(at, decl)| match decl {
            PoolDecl::Range(first, last) => Some((at, (first, last))),
            PoolDecl::LowestFirst => None,
        };
        let mut decls: Vec<(Place, (Ipv6Addr, Ipv6Addr))> = decls.into_iter().filter_map(range).collect();
        let ranges = decls.len();
        let Some((at, (first, last))) = decls.pop() else {
            self.refuse(&place, format!("pool '{name}' has no range; write 'range ADDRESS to ADDRESS;'"));
            return;
        };
        if ranges > 1 {
            self.notes.push(&at, format!("of the {ranges} ranges of pool '{name}' only this one counts"));
        }
        if first > last {
            self.refuse(&at, format!("the range ends ({last}) below its beginning ({first})"));
        } else if [first, last].iter().any(|addr| addr.is_multicast() || addr.is_unicast_link_local()) {
            self.notes.push(&at, "link-local and multicast addresses are not given to anybody");
        }
        // Known in any case, so that whoever uses it is not refused for this.
        self.pools.insert(name, (first, last, lowest_first));
    }

    fn interface(&mut self, block: Block<InterfaceDecl>) -> Option<(String, Interface)> {
        let Block { place, name, decls } = block;
        // What relays call so need not be an interface of this host.
        let is_relayed = decls.iter().any(|(_, decl)| matches!(decl, InterfaceDecl::RelayId(_)));
        if !is_relayed && !self.around.has_interface(&name) {
            self.refuse(
                &place,
                format!("there is no interface '{name}'; `ip link` names those that there are"),
            );
        }
        let (mut interface, mut excluded_at) = (Interface::default(), None);
        let mut decided = BTreeSet::new();
        for (at, decl) in decls {
            match decl {
                InterfaceDecl::AllowRapidCommit => interface.rapid_commit = true,
                InterfaceDecl::SendRapidCommit => {
                    self.notes.push(&at, "'send' is for clients and says nothing here");
                }
                InterfaceDecl::Preference(number) => {
                    self.last_counts(&at, &mut decided, "preference");
                    let number =
                        u8::try_from(number).map_err(|_| format!("a preference is 0 to 255, not {number}"));
                    interface.preference = self.taken(&at, number).or(interface.preference);
                }
                InterfaceDecl::Pool(pool) => {
                    self.last_counts(&at, &mut decided, "address-pool");
                    interface.pool = self.pool_use(&at, pool).or(interface.pool);
                }
                InterfaceDecl::PrefixPool(pool) => self.prefix_pool(&at, &pool, &mut interface.prefix_pools),
                InterfaceDecl::ExcludedSubnet(subnet) => {
                    self.last_counts(&at, &mut decided, "excluded-subnet");
                    interface.excluded = self.subnet(&at, &subnet).or(interface.excluded);
                    excluded_at = Some(at);
                }
                other @ (InterfaceDecl::DeclineTime(_)
                | InterfaceDecl::MaxRt(..)
                | InterfaceDecl::Unasked(_)
                | InterfaceDecl::Supplied(_)
                | InterfaceDecl::RelayId(_)) => self.own_words(&at, other, &mut interface),
            }
        }
        self.fits_pools(excluded_at, interface.excluded, &interface.prefix_pools);
        if !interface.relay_ids.is_empty() && interface.pool.is_none() && interface.prefix_pools.is_empty() {
            self.notes
                .push(&place, format!("interface '{name}' has no pool for the clients that relays name"));
        }
        Some((name, interface))
    }

    /// What only our own words say.
    fn own_words(&mut self, at: &Place, decl: InterfaceDecl, interface: &mut Interface) {
        match decl {
            InterfaceDecl::DeclineTime(seconds) => {
                let seconds = u32::try_from(seconds).map_err(|_| format!("a time is 0 to {} s", u32::MAX));
                interface.decline_time = self.taken(at, seconds).or(interface.decline_time);
            }
            InterfaceDecl::MaxRt(code, seconds) => {
                let fits = u32::try_from(seconds).ok().filter(|seconds| (60..=86_400).contains(seconds));
                let seconds = fits.ok_or_else(|| format!("the time is 60 to 86400 s, not {seconds}"));
                interface.max_rts.extend(self.taken(at, seconds).map(|seconds| (code, seconds)));
            }
            InterfaceDecl::Unasked(list) => {
                interface.unasked.extend(self.taken(at, codes(list)).unwrap_or_default())
            }
            InterfaceDecl::Supplied(list) => {
                let known =
                    codes(list).and_then(|all| match all.iter().find(|one| !code::is_suppliable(**one)) {
                        Some(own) => Err(format!(
                            "a server and its clients speak by option {own}; no relay can supply it"
                        )),
                        None => Ok(all),
                    });
                interface.supplied.extend(self.taken(at, known).unwrap_or_default());
            }
            InterfaceDecl::RelayId(text) => {
                let id = relay_id(&text).ok_or_else(|| NO_PAIRS.to_owned());
                interface.relay_ids.extend(self.taken(at, id));
            }
            InterfaceDecl::AllowRapidCommit
            | InterfaceDecl::SendRapidCommit
            | InterfaceDecl::Preference(_)
            | InterfaceDecl::Pool(_)
            | InterfaceDecl::PrefixPool(_)
            | InterfaceDecl::ExcludedSubnet(_) => {}
        }
    }

    fn last_counts(&mut self, at: &Place, decided: &mut BTreeSet<&'static str>, what: &'static str) {
        if !decided.insert(what) {
            self.notes.push(at, format!("a second '{what}': the last one counts"));
        }
    }

    fn pool_use(&mut self, at: &Place, wanted: PoolRef) -> Option<PoolUse> {
        let PoolRef { name, life } = wanted;
        let lifetimes = self.lifetimes(at, life)?;
        let Some(&(first, last, lowest_first)) = self.pools.get(&name) else {
            self.refuse(
                at,
                format!("there is no pool '{name}'; write 'pool {name} {{ range ... to ...; }};'"),
            );
            return None;
        };
        Some(PoolUse { name, first, last, lowest_first, lifetimes })
    }

    fn prefix_pool(&mut self, at: &Place, wanted: &PrefixPoolDecl, list: &mut Vec<PrefixPool>) {
        let Some(space) = self.prefix(at, wanted.space.0, wanted.space.1) else { return };
        let Some(lifetimes) = self.lifetimes(at, wanted.life) else { return };
        let fits = |len: &u8| (space.prefix_len()..=MAX_DELEGATED).contains(len);
        let Some(len) = u8::try_from(wanted.len).ok().filter(fits) else {
            let from = space.prefix_len();
            self.refuse(
                at,
                format!("prefixes of {space} are /{from} to /{MAX_DELEGATED}, not /{}", wanted.len),
            );
            return;
        };
        if list.iter().any(|other| other.space.covers(space) || space.covers(other.space)) {
            self.refuse(at, format!("{space} lies in another pool of the same block, or around it"));
            return;
        }
        list.push(PrefixPool { space, len, lifetimes });
    }

    fn subnet(&mut self, at: &Place, wanted: &SubnetDecl) -> Option<Subnet> {
        let len = u8::try_from(wanted.len).ok().filter(|len| (1..=128).contains(len));
        let len = len.ok_or_else(|| format!("a prefix length is 1 to 128, not {}", wanted.len));
        Some(Subnet { len: self.taken(at, len)?, number: wanted.number })
    }

    /// What is excluded from each prefix of a pool must be a part of it.
    fn fits_pools(&mut self, at: Option<Place>, excluded: Option<Subnet>, pools: &[PrefixPool]) {
        let (Some(at), Some(Subnet { len, number })) = (at, excluded) else { return };
        if pools.is_empty() {
            self.notes.push(&at, "there is no delegated-prefix-pool here, so nothing is excluded");
        }
        for pool in pools {
            let bits = len.saturating_sub(pool.len);
            if bits == 0 || number.checked_shr(bits.into()).is_some_and(|rest| rest > 0) {
                self.refuse(
                    &at,
                    format!("a /{} of {} has no /{len} with the number {number}", pool.len, pool.space),
                );
            }
        }
    }

    fn prefix(&mut self, at: &Place, addr: Ipv6Addr, len: u64) -> Option<Ipv6Prefix> {
        let addr = self.usable(at, addr)?;
        let prefix = u8::try_from(len).ok().and_then(|len| Ipv6Prefix::new(addr, len));
        let Some(prefix) = prefix else {
            self.refuse(at, format!("a prefix length is 0 to 128, not {len}"));
            return None;
        };
        if prefix.addr() != addr {
            self.notes.push(at, format!("bits are set behind the length of {addr}/{len}; {prefix} is taken"));
        }
        Some(prefix)
    }

    /// An address that somebody outside can have.
    fn usable(&mut self, at: &Place, addr: Ipv6Addr) -> Option<Ipv6Addr> {
        /// fec0::/10, which RFC 3879 has done away with.
        const SITE_LOCAL: u16 = 0xfec0;
        let kind = if addr.is_multicast() {
            "a multicast"
        } else if addr.is_unicast_link_local() {
            "a link-local"
        } else if addr.segments()[0] & 0xffc0 == SITE_LOCAL {
            "a site-local"
        } else {
            return Some(addr);
        };
        self.refuse(at, format!("{addr} is {kind} address, which nobody can be given"));
        None
    }

    fn lifetimes(&mut self, at: &Place, life: Life) -> Option<Lifetimes> {
        let lifetimes = Lifetimes::new(life.preferred, life.valid);
        if lifetimes.is_none() {
            self.refuse(at, "the preferred lifetime (the first) is longer than the valid one (the second)");
        }
        lifetimes
    }

    /// Where those are who may ask for leases: on the link too.
    fn requestors(&mut self, at: &Place, list: Vec<(Ipv6Addr, u64)>) -> Vec<Ipv6Prefix> {
        let prefix = |(addr, len): (Ipv6Addr, u64)| {
            if addr.is_multicast() {
                return Err(format!("nobody asks from {addr}, which is a multicast address"));
            }
            let prefix = u8::try_from(len).ok().and_then(|len| Ipv6Prefix::new(addr, len));
            prefix.ok_or_else(|| format!("a prefix length is 0 to 128, not {len}"))
        };
        let all: Vec<Ipv6Prefix> = list.into_iter().filter_map(|one| self.taken(at, prefix(one))).collect();
        if all.iter().any(|prefix| prefix.prefix_len() == 0) {
            self.notes.push(at, "everybody may ask who has which address");
        }
        all
    }

    fn options(&mut self, statements: Vec<Statement>) -> Options {
        let mut options = Options::default();
        let mut raw: BTreeSet<(u16, String)> = BTreeSet::new();
        for statement in statements {
            match statement {
                Statement::Addresses(at, code, list) => {
                    let all = options.addresses.entry(code).or_default();
                    for addr in list {
                        if all.contains(&addr) {
                            self.refuse(&at, format!("{addr} stands in this option twice"));
                        } else {
                            all.push(addr);
                        }
                    }
                }
                Statement::Name(at, code, text) => {
                    if !raw.insert((code, text.clone())) {
                        self.refuse(&at, format!("\"{}\" stands in this option twice", text.escape_debug()));
                        continue;
                    }
                    match values::domain_name(&text) {
                        Ok(name) => options.names.entry(code).or_default().push(name),
                        Err(why) => {
                            let text = text.escape_debug();
                            self.notes.push(&at, format!("\"{text}\" is no domain name and left out: {why}"));
                        }
                    }
                }
                Statement::Refresh(at, seconds) => self.refresh(&at, seconds, &mut options.refresh_time),
                Statement::Interface(_)
                | Statement::Host(_)
                | Statement::Pool(_)
                | Statement::Key(_)
                | Statement::Authentication(_)
                | Statement::LeaseQuery(..) => {}
            }
        }
        options.addresses.retain(|_, list| !list.is_empty());
        options
    }

    fn refresh(&mut self, at: &Place, seconds: u64, time: &mut Option<u32>) {
        let Some(seconds) = u32::try_from(seconds).ok().filter(|seconds| *seconds >= MIN_REFRESH) else {
            self.refuse(at, format!("a refresh time is {MIN_REFRESH} to {} s, not {seconds}", u32::MAX));
            return;
        };
        if time.is_some() {
            self.notes.push(at, "there is a refresh time before this, which counts; this one is ignored");
        }
        time.get_or_insert(seconds);
    }
}
