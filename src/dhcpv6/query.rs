//! Lease queries on the wire (RFC 5007 section 4.1.2): the options of a LEASEQUERY and of what answers it. Pure.
//!
//! Who may ask, and what there is to tell, is not known here.

use std::net::Ipv6Addr;

use dhcproto::v6::{DhcpOption, ORO, OptionCode, Status};

use super::codec::{
    IaKind, MAX_DUID, Malformed, Message, Opt, Part, Value, address, code, emit_part, parse_options,
    parse_part,
};

/// Query types (RFC 5007 section 6).
const BY_ADDRESS: u8 = 1;
const BY_CLIENT: u8 = 2;
/// Octets in front of a query's options: its type and a link's address.
const HEAD: usize = 17;

/// Whose leases are sought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought {
    /// Of whoever has this address, or a prefix that it lies in.
    Address(Ipv6Addr),
    /// Of the client with this DUID.
    Client(Vec<u8>),
}

/// OPTION_LQ_QUERY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Whose leases.
    pub sought: Sought,
    /// On the link that has this address; `None`: on any.
    pub link: Option<Ipv6Addr>,
    /// Codes of options that are wanted beside them.
    pub wanted: Vec<u16>,
}

/// The octets of a message's query.
pub fn body(message: &Message) -> Option<&[u8]> {
    message.options.iter().find_map(|option| match option {
        Opt::Other(code::LQ_QUERY, octets) => Some(&octets[..]),
        Opt::Other(..)
        | Opt::Ia(_)
        | Opt::Relayed(_)
        | Opt::Addresses(..)
        | Opt::Names(..)
        | Opt::Seconds(..)
        | Opt::Leaf(_) => None,
    })
}

impl Query {
    /// Reads the octets of the option.
    ///
    /// # Errors
    /// What a server says of it: `UnknownQueryType`, or `MalformedQuery` where an option is missing that must be there, or
    /// cannot be read.
    pub fn parse(body: &[u8]) -> Result<Self, Status> {
        let malformed = |_: Malformed| Status::MalformedQuery;
        let kind = *body.first().ok_or(Status::MalformedQuery)?;
        if !matches!(kind, BY_ADDRESS | BY_CLIENT) {
            return Err(Status::UnknownQueryType);
        }
        let (head, rest) = body.split_at_checked(HEAD).ok_or(Status::MalformedQuery)?;
        let link = Some(address(&head[1..]).map_err(malformed)?).filter(|link| !link.is_unspecified());
        let options = parse_options(rest).map_err(malformed)?;
        let sought = options.iter().find_map(|option| sought(kind, option)).ok_or(Status::MalformedQuery)?;
        let wanted = options.iter().find_map(|option| match option {
            Opt::Leaf(DhcpOption::ORO(asked)) => {
                Some(asked.opts.iter().map(|code| u16::from(*code)).collect())
            }
            Opt::Leaf(_)
            | Opt::Other(..)
            | Opt::Ia(_)
            | Opt::Relayed(_)
            | Opt::Addresses(..)
            | Opt::Names(..)
            | Opt::Seconds(..) => None,
        });
        Ok(Self { sought, link, wanted: wanted.unwrap_or_default() })
    }

    /// It as an option.
    pub fn option(&self) -> Opt {
        let kind = if matches!(self.sought, Sought::Address(_)) { BY_ADDRESS } else { BY_CLIENT };
        let mut out = vec![kind];
        out.extend(self.link.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        match &self.sought {
            Sought::Address(addr) => {
                let value = Value { addr: *addr, len: 128, preferred: 0, valid: 0, options: Vec::new() };
                emit_part(IaKind::Address, &Part::Value(value), &mut out);
            }
            Sought::Client(duid) => Opt::Leaf(DhcpOption::ClientId(duid.clone())).emit(&mut out),
        }
        if !self.wanted.is_empty() {
            let opts = self.wanted.iter().map(|code| OptionCode::from(*code)).collect();
            Opt::Leaf(DhcpOption::ORO(ORO { opts })).emit(&mut out);
        }
        Opt::Other(code::LQ_QUERY, out)
    }
}

/// What a query of this type is for, if that is in this option.
fn sought(kind: u8, option: &Opt) -> Option<Sought> {
    match (kind, option) {
        (BY_ADDRESS, Opt::Other(code::IA_ADDR, body)) => {
            match parse_part(IaKind::Address, code::IA_ADDR, body) {
                Ok(Part::Value(value)) => Some(Sought::Address(value.addr)),
                Ok(Part::Status(..) | Part::Other(..)) | Err(_) => None,
            }
        }
        (BY_CLIENT, Opt::Leaf(DhcpOption::ClientId(duid))) => Some(Sought::Client(duid.clone())),
        _ => None,
    }
}

/// OPTION_CLIENT_DATA: what one client has on one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientData {
    /// Its DUID; empty: it is known by something else.
    pub client: Vec<u8>,
    /// Its addresses (of length 128) and prefixes, with the lifetimes that are left.
    pub values: Vec<Value>,
    /// How many seconds ago the server has last heard it on that link.
    pub heard: Option<u32>,
    /// The relay that its last message came from, and that message without the client's own.
    pub relay: Option<(Ipv6Addr, Vec<u8>)>,
    /// Anything else that is said of it.
    pub options: Vec<Opt>,
}

impl ClientData {
    /// Reads the octets of the option.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut data = Self::default();
        for option in parse_options(body)? {
            data.take(option)?;
        }
        Ok(data)
    }

    fn take(&mut self, option: Opt) -> Result<(), Malformed> {
        let kind = match option.code() {
            code::IA_ADDR => Some(IaKind::Address),
            code::IA_PREFIX => Some(IaKind::Prefix),
            _ => None,
        };
        match (kind, option) {
            (Some(kind), Opt::Other(code, octets)) => {
                if let Part::Value(value) = parse_part(kind, code, &octets)? {
                    self.values.push(value);
                }
            }
            (_, Opt::Leaf(DhcpOption::ClientId(duid))) => self.client = duid,
            (_, Opt::Seconds(code::CLT_TIME, seconds)) => self.heard = Some(seconds),
            (_, Opt::Other(code::LQ_RELAY_DATA, octets)) => {
                let (peer, message) = octets.split_at_checked(16).ok_or(Malformed::Option)?;
                self.relay = Some((address(peer)?, message.to_vec()));
            }
            (_, other) => self.options.push(other),
        }
        Ok(())
    }

    /// It as an option.
    pub fn option(&self) -> Opt {
        let mut out = Vec::new();
        if (1..=MAX_DUID).contains(&self.client.len()) {
            Opt::Leaf(DhcpOption::ClientId(self.client.clone())).emit(&mut out);
        }
        for value in &self.values {
            let kind = if value.len == 128 { IaKind::Address } else { IaKind::Prefix };
            emit_part(kind, &Part::Value(value.clone()), &mut out);
        }
        self.heard.iter().for_each(|seconds| Opt::Seconds(code::CLT_TIME, *seconds).emit(&mut out));
        if let Some((peer, message)) = &self.relay {
            let octets = [&peer.octets()[..], message].concat();
            Opt::Other(code::LQ_RELAY_DATA, octets).emit(&mut out);
        }
        self.options.iter().for_each(|option| option.emit(&mut out));
        Opt::Other(code::CLIENT_DATA, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn octets(option: Opt) -> Vec<u8> {
        if let Opt::Other(_, octets) = option { octets } else { panic!("{option:?}") }
    }

    #[test]
    fn queries_stand_octet_by_octet_as_the_rfc_has_them() {
        let link = "2001:db8::1".parse().unwrap();
        let by_address = Query {
            sought: Sought::Address("2001:db8::5".parse().unwrap()),
            link: Some(link),
            wanted: vec![23, 47],
        };
        let [two, zero] = [[0x20, 0x01, 0x0d, 0xb8], [0; 4]];
        let head = [&[1][..], &two, &zero, &zero, &[0, 0, 0, 1]].concat();
        let addr = [&[0, 5, 0, 24][..], &two, &zero, &zero, &[0, 0, 0, 5], &zero, &zero].concat();
        let wire = [&head[..], &addr, &[0, 6, 0, 4, 0, 23, 0, 47]].concat();
        assert_eq!(octets(by_address.option()), wire);
        assert_eq!(Query::parse(&wire), Ok(by_address));
        let by_client = Query { sought: Sought::Client(vec![0, 3, 9]), link: None, wanted: Vec::new() };
        let wire = [&[2][..], &[0; 16], &[0, 1, 0, 3, 0, 3, 9]].concat();
        assert_eq!(octets(by_client.option()), wire);
        assert_eq!(Query::parse(&wire), Ok(by_client));
    }

    /// RFC: V49 (RFC 5007 section 4.1.2.1)
    #[test]
    fn what_is_no_query_is_named() {
        use Status::{MalformedQuery, UnknownQueryType};
        let with = |kind: u8, options: &[u8]| [&[kind][..], &[0; 16], options].concat();
        let cases = [
            (vec![], MalformedQuery),
            (vec![1, 0, 0], MalformedQuery),
            (vec![3], UnknownQueryType),
            (with(0, &[]), UnknownQueryType),
            (with(1, &[]), MalformedQuery),
            (with(1, &[0, 1, 0, 1, 7]), MalformedQuery),
            (with(1, &[0, 5, 0, 2, 7, 7]), MalformedQuery),
            (with(2, &[0, 1, 0, 0]), MalformedQuery),
            (with(2, &[0, 1, 0, 9, 7]), MalformedQuery),
            (with(2, &[0, 1, 0, 1, 7, 0, 1, 0, 1, 8]), MalformedQuery),
        ];
        for (body, said) in cases {
            assert_eq!(Query::parse(&body), Err(said), "{body:?}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        (any::<u128>(), 0_u8..=128, any::<u32>(), any::<u32>()).prop_map(|(addr, len, preferred, valid)| {
            Value { addr: addr.into(), len, preferred, valid, options: Vec::new() }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            client in prop::collection::vec(any::<u8>(), 0..=MAX_DUID), values in prop::collection::vec(value(), 0..9),
            heard in prop::option::of(any::<u32>()), relay in prop::option::of((any::<u128>(), prop::collection::vec(any::<u8>(), 0..40))),
        ) {
            let options = vec![Opt::Other(37, vec![0, 0, 0, 9, 1])];
            let relay = relay.map(|(peer, message)| (Ipv6Addr::from(peer), message));
            let data = ClientData { client, values, heard, relay, options };
            prop_assert_eq!(ClientData::parse(&octets(data.option())), Ok(data));
        }

        #[test]
        fn no_octets_are_too_wrong(body in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(query) = Query::parse(&body) {
                prop_assert_eq!(Query::parse(&octets(query.option())), Ok(query));
            }
            if let Ok(data) = ClientData::parse(&body) {
                prop_assert_eq!(ClientData::parse(&octets(data.option())).map(|again| again.values), Ok(data.values));
            }
        }
    }
}
