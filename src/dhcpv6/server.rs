//! DHCPv6 inside every tunnel: the shell around `session`, fed by punts. An answer that binds anything waits until the
//! office says that the binding is on disk and its route in the tables.
//!
//! Knows how a DHCPv6 message is wrapped in IPv6 and UDP; no socket is needed for it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sixway_dataplane::update::{Ipv6Prefix, TunnelId};

use super::auth::Ring;
use super::calls::Called;
use super::codec::{ALL_SERVERS, CLIENT_PORT, MAX_DUID, SERVER_PORT};
use super::datagram::{Datagram, HEADERS, is_to, unwrap, wrap};
use super::grants::Grants;
use super::keep::RingFile;
use super::post::{Letter, Post, fragments};
use super::session::{Answer, Origin, Session, Terms};
use super::telling::{Bound, Evicted, Loss};
use crate::broker::{BindKey, Binding, Broker, End, Time, UserName};
use crate::config::TunnelConfig;
use crate::nd::server::link_local;
use crate::office::Office;
use crate::registry::{Live, Registry};

/// The most answers that wait for the disk.
pub const MOST_WAITING: usize = 8192;

/// LEASEQUERY (RFC 5007 section 4.1.1).
const LEASE_QUERY: u8 = 14;

/// Counts beside those of the session, by name.
pub const COUNTS: [&str; 6] = ["damaged", "too_big", "busy", "not_kept", "waiting", "listeners"];

/// The server for all tunnels.
#[derive(Debug)]
pub struct Server {
    session: Session,
    terms: Terms,
    post: Post,
    ring: Option<RingFile>,
    /// Whether clients are to be told that information is other than before.
    is_news: bool,
    /// Whether lifetimes are.
    new_times: bool,
    began: Instant,
    next: u64,
    damaged: u64,
    too_big: u64,
    busy: u64,
}

impl Server {
    /// A server; `secret` is random.
    pub fn new(terms: Terms, secret: u128) -> Self {
        let session = Session::new(terms.clone(), secret);
        let (post, ring) = (Post::default(), None);
        let (damaged, too_big, busy) = (0, 0, 0);
        let (is_news, new_times, began, next) = (false, false, Instant::now(), 0);
        Self { session, terms, post, ring, is_news, new_times, began, next, damaged, too_big, busy }
    }

    /// From now on clients can be told of changes: by messages that the ring makes, which is kept in the file.
    pub fn trust(&mut self, (file, ring): (RingFile, Ring)) {
        self.ring = Some(file);
        self.session.trust(ring);
    }

    /// From now on this holds; the server's own DUID stays. What is other than before is told by [`Self::tell_news`].
    pub fn configure(&mut self, terms: Terms) {
        let terms = Terms { duid: self.terms.duid.clone(), ..terms };
        let before = std::mem::replace(&mut self.terms, terms);
        self.is_news |= before.options != self.terms.options || before.refresh != self.terms.refresh;
        self.session.configure(self.terms.clone());
        if (before.preferred, before.valid) != (self.terms.preferred, self.terms.valid) {
            self.new_times = true;
        }
    }

    /// Has clients ask anew after a change of the configuration: if lifetimes are other than before, all for what they have; else
    /// all for information, if that has changed. `now` is the time since the start.
    pub fn tell_news(&mut self, broker: &Broker, now: Duration) {
        let (news, times) = (std::mem::take(&mut self.is_news), std::mem::take(&mut self.new_times));
        if news || times {
            let all = bound(broker.bindings());
            self.tick();
            self.session.call_bound(now, &all, times);
            if news {
                self.session.call_informed(now, None, &all);
            }
        }
    }

    /// Whether a client whose binding has ended so is to hear of it: it has not done it itself, and is still there.
    pub fn is_news(why: End) -> bool {
        match why {
            End::Withdrawn | End::Kicked | End::AccountGone | End::Superseded => true,
            End::Released | End::Disconnected | End::Expired | End::Restart => false,
        }
    }

    /// Has the clients of these bindings, which have been taken from them, ask anew, as far as they let themselves be told and
    /// their tunnels are there. `now` is the time since the start; `today` that of the bindings.
    pub fn tell_losers(&mut self, registry: &Registry, lost: &[Binding], now: Duration, today: Time) {
        if lost.is_empty() {
            return;
        }
        self.tick();
        for Binding { key, reach, expires, .. } in lost {
            let lasts = expires.since(today);
            let is_there = registry.by_name(&key.tunnel).is_some() && !key.client.is_empty();
            if is_there && !lasts.is_zero() {
                let who = Called { tunnel: key.tunnel.clone(), client: key.client.clone() };
                self.session.call_loser(now, Loss { who, reach: *reach, lasts });
            }
        }
    }

    /// What becomes of the client of a binding that the operator ends, by the bindings' time.
    pub fn evicted(&self, binding: &Binding, today: Time) -> Evicted {
        let who = Called { tunnel: binding.key.tunnel.clone(), client: binding.key.client.clone() };
        let believes = (!binding.expires.is_never()).then(|| binding.expires.since(today));
        Evicted { is_told: self.session.can_tell(&who, binding.reach), believes }
    }

    /// Has clients that let themselves be told ask anew, in one tunnel or in all: for what they have, or had until it was taken
    /// from them, and those that never had anything for information. Says how many.
    pub fn reconfigure(&mut self, broker: &Broker, tunnel: Option<&str>, now: Duration) -> usize {
        let here = |binding: &&Binding| tunnel.is_none_or(|name| *binding.key.tunnel == *name);
        let all = bound(broker.bindings().filter(here));
        self.tick();
        self.session.call_bound(now, &all, true)
            + self.session.call_informed(now, tunnel, &all)
            + self.session.call_bereft(now, tunnel, &all)
    }

    /// A tunnel is gone, and whoever was in it cannot be told of anything.
    pub fn leave(&mut self, tunnel: &str) {
        self.session.leave(tunnel);
    }

    /// The same of all tunnels that are not there any more.
    pub fn leave_gone(&mut self, registry: &Registry) {
        self.session.leave_all_but(|name| registry.by_name(name).is_some());
    }

    fn tick(&mut self) {
        self.session.set_clock(clock());
        self.session.set_uptime(self.began.elapsed());
    }

    /// When the next Reconfigure message is due, since the start.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.session.poll_call_timeout()
    }

    /// The Reconfigure messages that are due, and their tunnels.
    pub fn poll_calls(&mut self, registry: &Registry, now: Duration) -> Vec<(TunnelId, Vec<u8>)> {
        let mut out = Vec::new();
        self.tick();
        while let Some((who, at, octets)) = self.session.poll_call(now) {
            let live = registry.by_name(&who.tunnel).and_then(|id| Some((id, registry.tunnel(id)?)));
            let Some((id, live)) = live else {
                self.session.call_off(&who);
                continue;
            };
            out.push((id, wrap((link_local(&live.outer), SERVER_PORT), at, &octets)));
        }
        // What cannot be kept is said again, with another number.
        if out.is_empty() || self.keep_ring() { out } else { Vec::new() }
    }

    /// Numbers are on the disk before they are used; says whether that worked.
    fn keep_ring(&mut self) -> bool {
        let Some(file) = &mut self.ring else { return true };
        let kept = self.session.keep_ring(|ring| file.keep(ring));
        let _once = file.say(&kept, "inside tunnels");
        kept.is_ok()
    }

    /// Whether a packet out of a tunnel is for a DHCPv6 server.
    pub fn is_for(packet: &[u8]) -> bool {
        is_to(packet, SERVER_PORT)
    }

    /// Deals with such a packet. Returns what can be sent at once; all else comes out of [`Self::settled`].
    pub fn handle(
        &mut self,
        office: &mut Office,
        registry: &Registry,
        id: TunnelId,
        packet: &[u8],
    ) -> Vec<Vec<u8>> {
        let Some(live) = registry.tunnel(id) else { return Vec::new() };
        let Some(datagram) = unwrap(packet) else {
            self.damaged += 1;
            return Vec::new();
        };
        if self.post.len() >= MOST_WAITING {
            self.busy += 1;
            return Vec::new();
        }
        let user: Option<UserName> = live.lease.and_then(|lease| office.broker().user_of(lease)).cloned();
        let fixed = fixed(&live.config);
        let is_unicast = datagram.destination != ALL_SERVERS;
        let from = Some(datagram.source);
        let origin = Origin {
            tunnel: &live.config.name,
            user: user.as_ref(),
            fixed: &fixed,
            on_link: &live.config.ra.prefix,
            is_unicast,
            from,
            port: datagram.source_port,
        };
        self.next += 1;
        self.tick();
        let session = &mut self.session;
        let acted = office.act(self.next, |broker, now| {
            let mut grants = Grants::new(broker, now);
            let answer = session.handle(&origin, datagram.payload, &mut grants);
            ((answer, grants.tells), grants.outcome)
        });
        let Ok(((answer, tells), must_wait)) = acted else {
            self.busy += 1;
            return Vec::new();
        };
        let Some(answer) = answer else { return Vec::new() };
        if !self.keep_ring() {
            self.busy += 1;
            return Vec::new();
        }
        let packets = self.reply(live, &datagram, &answer);
        // Nobody hears of what a crash could undo, whoever has it.
        let must_wait = must_wait || answer.tells_of_others && office.after_all(self.next);
        if !must_wait {
            return packets;
        }
        self.post.wait(self.next, Letter { id, tunnel: live.config.name.clone(), packets, tells });
        Vec::new()
    }

    /// Answers a lease query (RFC 5007) of somebody who is in no tunnel, or has sent it to an address of ours. An answer with a
    /// number may leave when the office has acted upon that.
    pub fn look_up(
        &mut self,
        office: &mut Office,
        (addr, port): (Ipv6Addr, u16),
        octets: &[u8],
    ) -> Option<(Vec<u8>, Option<u64>)> {
        if octets.first() != Some(&LEASE_QUERY) {
            return None;
        }
        let from = Some(addr);
        let origin =
            Origin { tunnel: "", user: None, fixed: &[], on_link: &[], is_unicast: true, from, port };
        self.next += 1;
        self.tick();
        let session = &mut self.session;
        let acted = office.act(self.next, |broker, now| {
            let mut grants = Grants::new(broker, now);
            (session.handle(&origin, octets, &mut grants), grants.outcome)
        });
        let Ok((answer, _)) = acted else {
            self.busy += 1;
            return None;
        };
        let octets = answer?.octets;
        Some((octets, office.after_all(self.next).then_some(self.next)))
    }

    fn reply(&mut self, live: &Live, asked: &Datagram<'_>, answer: &Answer) -> Vec<Vec<u8>> {
        let mtu = usize::from(live.mtu());
        self.too_big += u64::from(answer.octets.len() + HEADERS > mtu);
        let source = link_local(&live.outer);
        // A relay may say that it listens on the port that it sends from (RFC 8357); clients listen on theirs.
        let port = match () {
            () if answer.to_source_port => asked.source_port,
            () if answer.to_relay => SERVER_PORT,
            () => CLIENT_PORT,
        };
        let packet = wrap((source, SERVER_PORT), (asked.source, port), &answer.octets);
        // Numbers of fragments are the tickets': those of one tunnel do not come twice for long.
        fragments(packet, mtu, self.next as u32)
    }

    /// What the office has kept, or could not keep: returns the answers that may leave now.
    pub fn settled(
        &mut self,
        registry: &Registry,
        broker: &Broker,
        acted: &[(u64, bool)],
    ) -> Vec<(TunnelId, Vec<u8>)> {
        let mut out = Vec::new();
        // A client that hears nothing asks again.
        let is_bound = |key: &BindKey, prefix| broker.bound(key).iter().any(|b| b.prefix == prefix);
        for Letter { id, tunnel, packets, .. } in self.post.settled(acted, is_bound) {
            if registry.by_name(&tunnel) == Some(id) {
                out.extend(packets.into_iter().map(|packet| (id, packet)));
            }
        }
        out
    }

    /// Whether the configuration still gives what is set aside by it.
    pub fn still_gives(&self, registry: &Registry, broker: &Broker, binding: &Binding) -> bool {
        // What rests is nobody's, whatever becomes of its tunnel.
        if binding.key.client.is_empty() {
            return true;
        }
        let Some(live) = registry.by_name(&binding.key.tunnel).and_then(|id| registry.tunnel(id)) else {
            return false;
        };
        if !binding.fixed {
            return true;
        }
        let user = live.lease.and_then(|lease| broker.user_of(lease));
        let account = user.and_then(|user| broker.accounts().find(user));
        let own = account.is_some_and(|account| account.prefixes.contains(&binding.prefix));
        let here = |name: &Option<Box<str>>| name.as_ref().is_none_or(|name| **name == *binding.key.tunnel);
        let by_duid = self.terms.reserved.get(&*binding.key.client).into_iter().flatten();
        own || fixed(&live.config).contains(&binding.prefix)
            || by_duid.filter(|set| here(&set.tunnel)).any(|set| set.prefixes.contains(&binding.prefix))
    }

    /// What has happened, by name.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let (waiting, listeners) = (self.post.len() as u64, self.session.listeners() as u64);
        let own = [self.damaged, self.too_big, self.busy, self.post.not_kept, waiting, listeners];
        let own = COUNTS.into_iter().zip(own);
        own.chain(self.session.counts().iter().map(|(name, n)| (*name, *n)))
            .map(|(name, n)| (name.to_owned(), n))
            .collect()
    }
}

/// Whose these are, and where their clients are.
fn bound<'a>(bindings: impl Iterator<Item = &'a Binding>) -> Bound {
    let mut all = Bound::new();
    for Binding { key, reach, .. } in bindings.filter(|binding| !binding.key.client.is_empty()) {
        let who = Called { tunnel: key.tunnel.clone(), client: key.client.clone() };
        let known = all.entry(who).or_default();
        *known = known.or(*reach);
    }
    all
}

/// The clock in Unix seconds and parts of a second of 2^-32.
fn clock() -> (u64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), ((u64::from(since.subsec_nanos()) << 32) / 1_000_000_000) as u32)
}

/// What a tunnel itself has to give to clients inside it: its networks, but not what is on the link, and its addresses.
pub fn fixed(tunnel: &TunnelConfig) -> Vec<Ipv6Prefix> {
    let on_link = &tunnel.ra.prefix;
    let may = |p: &&Ipv6Prefix| matches!(p.prefix_len(), 1..=64 | 128) && !on_link.contains(p);
    tunnel.prefixes.iter().filter(may).copied().collect()
}

/// The server's DUID out of this file, which is made with a random one (DUID-UUID, RFC 6355) where there is none. It is on
/// disk before anybody sees it: clients know their server by it.
///
/// # Errors
/// The file can be neither read nor made, or has no DUID in it.
pub fn own_duid(path: &Path, random: [u8; 16]) -> io::Result<Vec<u8>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse_duid(text.trim()).ok_or_else(|| {
            let why = format!("{} has no DUID in it; delete it to have a new one", path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        }),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let duid = [&[0, 4][..], &random].concat();
            keep_duid(path, &duid)?;
            Ok(duid)
        }
        Err(why) => Err(why),
    }
}

fn keep_duid(path: &Path, duid: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("duid.new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&beside)?;
    let text: Vec<String> = duid.iter().map(|octet| format!("{octet:02x}")).collect();
    file.write_all(text.join(":").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a DUID as people write it: pairs of hexadecimal digits with colons between them, or without any.
pub fn parse_duid(text: &str) -> Option<Vec<u8>> {
    let pair = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        u8::from_str_radix(part, 16).ok().filter(|_| digits)
    };
    let duid: Vec<u8> = if text.contains(':') {
        text.split(':').map(pair).collect::<Option<_>>()?
    } else {
        text.as_bytes().chunks(2).map(|two| pair(std::str::from_utf8(two).ok()?)).collect::<Option<_>>()?
    };
    (1..=MAX_DUID).contains(&duid.len()).then_some(duid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC: V31 (RFC 8415 section 11)
    #[test]
    fn a_duid_is_made_once() {
        let folder = std::env::temp_dir().join(format!("sixway-duid-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("six0.duid");
        let made = own_duid(&path, [7; 16]).unwrap();
        assert_eq!(made, [&[0, 4][..], &[7; 16]].concat());
        assert_eq!(own_duid(&path, [8; 16]).unwrap(), made);
        std::fs::write(&path, "zz").unwrap();
        assert!(own_duid(&path, [8; 16]).unwrap_err().to_string().contains("delete it"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn duids_are_read_strictly() {
        for right in ["00:03:Ab", "0003aB"] {
            assert_eq!(parse_duid(right), Some(vec![0, 3, 0xab]), "{right}");
        }
        for wrong in ["", "0:3", "00-03", "000", "00:0300", "00:", "+1:00", "+1", "é0"] {
            assert_eq!(parse_duid(wrong), None, "{wrong}");
        }
    }
}
