//! How an answer is put together: identity associations with what is given or why not, times, and options in the order of
//! KAME's server. Pure; who gets what has been decided before.

use dhcproto::v6::{DhcpOption, MessageType, Status, StatusCode};
use sixway_dataplane::update::Ipv6Prefix;

use super::auth;
use super::codec::{INFINITY, Ia, IaKind, Message, Opt, Part, Value, code};
use super::exclude;
use super::session::{Case, Leases, Life, Session, gives_key, key};

impl Session {
    pub(super) fn filled(
        &self,
        case: &Case<'_>,
        ia: &Ia,
        prefixes: &[Ipv6Prefix],
        leases: &dyn Leases,
    ) -> Ia {
        let usual = Life { preferred: self.terms.preferred, valid: self.terms.valid };
        let key = key(case, ia);
        let value = |p: &Ipv6Prefix| {
            let Life { preferred, valid } = leases.lifetimes(&key, *p, case.link).unwrap_or(usual);
            let excluded = self.excluded(case, *p, leases).and_then(|part| exclude::emit(*p, part));
            let options = excluded.unwrap_or_default();
            Part::Value(Value { addr: p.addr(), len: p.prefix_len(), preferred, valid, options })
        };
        Ia { kind: ia.kind, iaid: ia.iaid, t1: 0, t2: 0, parts: prefixes.iter().map(value).collect() }
    }

    /// What within a delegated prefix is the link's, for a client that asks what is (RFC 6603 section 5).
    fn excluded(&self, case: &Case<'_>, prefix: Ipv6Prefix, leases: &dyn Leases) -> Option<Ipv6Prefix> {
        if prefix.prefix_len() == 128 || !case.message.asks_for(code::PD_EXCLUDE) {
            return None;
        }
        let set = self.sets(case).flat_map(|set| &set.excluded);
        let all = set.chain(case.origin.on_link).copied().chain(leases.excluded(case.client, prefix));
        all.into_iter().find(|part| *part != prefix && prefix.covers(*part))
    }

    pub(super) fn lacking(&mut self, ia: &Ia) -> Ia {
        match ia.kind {
            IaKind::Address => {
                self.count("no_address");
                failed(ia, Status::NoAddrsAvail)
            }
            IaKind::Prefix => {
                self.count("no_prefix");
                failed(ia, Status::NoPrefixAvail)
            }
        }
    }

    /// Options in the order of KAME's server: identity, addresses, information, prefixes.
    pub(super) fn reply(
        &mut self,
        case: &Case<'_>,
        mut ias: Vec<Ia>,
        status: Option<Status>,
        rapid: bool,
    ) -> Message {
        use MessageType as M;
        set_times(&mut ias);
        let (addresses, prefixes): (Vec<Ia>, Vec<Ia>) =
            ias.into_iter().partition(|ia| ia.kind == IaKind::Address);
        let mut options = Vec::new();
        if let Some(client) = case.message.client() {
            options.push(Opt::Leaf(DhcpOption::ClientId(client.to_vec())));
        }
        options.push(Opt::Leaf(DhcpOption::ServerId(self.terms.duid.clone())));
        options.extend(addresses.into_iter().map(Opt::Ia));
        if rapid {
            options.push(Opt::Leaf(DhcpOption::RapidCommit));
        }
        if let Some(preference) = self.terms.preference.filter(|_| case.message.kind == M::Solicit) {
            options.push(Opt::Leaf(DhcpOption::Preference(preference)));
        }
        options.extend(status.map(|status| Opt::Leaf(DhcpOption::StatusCode(worded(status)))));
        let informs = !matches!(case.message.kind, M::Confirm | M::Release | M::Decline);
        let wanted = |option: &&Opt| self.is_wanted(case.message, option);
        if informs {
            options.extend(self.terms.options.iter().chain(&case.supplied).filter(wanted).cloned());
        }
        options.extend(prefixes.into_iter().map(Opt::Ia));
        if let Some(seconds) = self.terms.refresh.filter(|_| case.message.kind == M::InformationRequest) {
            options.push(Opt::Seconds(code::REFRESH_TIME, seconds));
        }
        self.put_proof(case, rapid, &mut options);
        Message { kind: M::Reply, xid: case.message.xid, options }
    }

    /// What shows who has made the answer, or will show it of a Reconfigure message: the last option.
    fn put_proof(&mut self, case: &Case<'_>, rapid: bool, options: &mut Vec<Opt>) {
        use MessageType as M;
        let clock = self.clock;
        let Some(ring) = &mut self.ring else { return };
        if let Some(key) = &case.key {
            options.push(key.option(ring.next(clock)));
            return;
        }
        let is_offer = case.message.kind == M::Solicit && !rapid;
        if !case.may_be_told || !gives_key(case.message.kind, M::Reply) {
            return;
        }
        options.push(Opt::Leaf(DhcpOption::ReconfAccept));
        if !is_offer {
            let key = ring.key(case.origin.tunnel, case.client);
            options.push(auth::key_option(ring.next(clock), &key));
        }
    }

    fn is_wanted(&self, message: &Message, option: &Opt) -> bool {
        let code = option.code();
        message.asks_for(code) || self.terms.always.contains(&code)
    }
}

/// The same value with lifetimes of zero: it is not the client's any more.
pub(super) fn ended(value: &Value) -> Value {
    Value { preferred: 0, valid: 0, options: Vec::new(), ..*value }
}

/// T1 and T2: half and four fifths of the shortest preferred lifetime, the same in all that give something (RFC 8415
/// sections 18.3.2 and 21.4).
fn set_times(ias: &mut [Ia]) {
    let given = |ia: &Ia| ia.values().filter(|value| value.valid > 0).map(|value| value.preferred).min();
    let Some(shortest) = ias.iter().filter_map(given).min() else { return };
    let part = |n: u64| u32::try_from(u64::from(shortest) * n / 10).unwrap_or(INFINITY);
    let times = if shortest == INFINITY { (INFINITY, INFINITY) } else { (part(5), part(8)) };
    for ia in ias.iter_mut().filter(|ia| given(ia).is_some()) {
        (ia.t1, ia.t2) = times;
    }
}

pub(super) fn failed(ia: &Ia, status: Status) -> Ia {
    let StatusCode { status, msg } = worded(status);
    Ia { kind: ia.kind, iaid: ia.iaid, t1: 0, t2: 0, parts: vec![Part::Status(status, msg)] }
}

pub(super) fn worded(status: Status) -> StatusCode {
    let texts = [
        (Status::NoAddrsAvail, "no address is free"),
        (Status::NoPrefixAvail, "no prefix is free"),
        (Status::NoBinding, "nothing is bound"),
        (Status::NotOnLink, "not an address of this link"),
        (Status::UnspecFail, "it is too much for one answer"),
        (Status::UnknownQueryType, "queries are by address or by client"),
        (Status::MalformedQuery, "the query lacks what it asks about, or cannot be read"),
        (Status::NotConfigured, "nothing here is on that link or has that address"),
        (Status::NotAllowed, "the configuration does not let you ask"),
    ];
    let text = texts.iter().find(|(of, _)| *of == status).map_or("", |(_, text)| text);
    StatusCode { status, msg: text.to_owned() }
}
