//! What a client takes from answers besides what it holds: whether the link is the same (Confirm, RFC 8415 section 18.2.3),
//! information (section 18.2.6), how often servers want to be asked, and why they give nothing. Pure.

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, Status};
use rand::Rng;

use super::{Client, Ignored, Output, Stage};
use crate::dhcpv6::codec::{INFINITY, Message, Opt, Part, code};
use crate::dhcpv6::holding::Association;

/// Bounds of the longest wait between messages that a server may ask for, in seconds (RFC 8415 sections 21.24 and 21.25).
const MAX_RT: std::ops::RangeInclusive<u32> = 60..=86_400;
/// For how long information is good where the server does not say, and at least, in seconds (RFC 8415 section 21.23).
const REFRESH: (u32, u32) = (86_400, 600);
/// The most of its words that are passed on when a server has nothing, in characters.
const MOST_WORDS: usize = 120;

impl<R: Rng> Client<R> {
    /// What a server says of the link (RFC 8415 section 18.2.10.3). One who agrees is enough; else the others are waited for.
    pub(super) fn confirmed(&mut self, message: &Message) {
        let said = status(message).map(|(status, _)| status);
        if said.is_none() {
            self.stage = Stage::Bound;
        } else if let (Some(Status::NotOnLink), Stage::Asking(exchange)) = (said, &mut self.stage) {
            exchange.is_elsewhere = true;
        }
    }

    /// This is another link: what is held is of no use here.
    pub(super) fn lose(&mut self, now: Duration) {
        self.all.iter_mut().for_each(|one| *one = Association::new(one.want));
        self.out.push_back(Output::Have(self.lease()));
        self.begin(MessageType::Solicit, self.solicit, None, now);
    }

    /// The answer to an Information-request (RFC 8415 section 18.2.10.4).
    pub(super) fn informed(
        &mut self,
        message: &Message,
        server: Vec<u8>,
        now: Duration,
    ) -> Result<(), Ignored> {
        self.learn_pace(message);
        if status(message).is_some() {
            self.refused(message);
            return Err(Ignored::Empty);
        }
        let is_alone = self.wish.wants.is_empty();
        if is_alone {
            self.choose(server);
        }
        self.trust.learn(message);
        self.inform(message);
        self.out.push_back(Output::Have(self.lease()));
        self.stage = if is_alone { Stage::Informed(refresh(message, now)) } else { Stage::Bound };
        Ok(())
    }

    pub(super) fn learn_pace(&mut self, message: &Message) {
        for option in &message.options {
            let Opt::Seconds(code, seconds) = option else { continue };
            let longest = Duration::from_secs((*seconds).into());
            let (pace, kind) = match *code {
                code::SOL_MAX_RT => (&mut self.solicit, MessageType::Solicit),
                code::INF_MAX_RT => (&mut self.inquire, MessageType::InformationRequest),
                _ => continue,
            };
            if !MAX_RT.contains(seconds) {
                continue;
            }
            pace.longest = longest;
            if let Stage::Asking(exchange) = &mut self.stage
                && exchange.kind == kind
            {
                exchange.again.slow_down(longest);
            }
        }
    }

    pub(super) fn inform(&mut self, message: &Message) {
        for option in &message.options {
            if let Opt::Addresses(code::DNS_SERVERS, all) = option {
                self.dns = all.iter().filter(|addr| is_somebodys(addr)).copied().collect();
            } else if let Opt::Names(code::DOMAIN_LIST, all) = option {
                self.domains = all.iter().filter(|name| name.is_plain()).cloned().collect();
            }
        }
    }

    /// Passes on what a server says of why it has nothing.
    pub(super) fn refused(&mut self, message: &Message) {
        let inside = message.ias().flat_map(|ia| &ia.parts).find_map(|part| {
            let Part::Status(status, text) = part else { return None };
            (*status != Status::Success).then_some((*status, text.as_str()))
        });
        let Some((code, text)) = status(message).or(inside) else { return };
        let text: String = text.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect();
        self.out.push_back(Output::Refused(words(code, &text)));
    }
}

/// Whether a server for names can have it.
fn is_somebodys(addr: &Ipv6Addr) -> bool {
    !addr.is_unspecified() && !addr.is_loopback() && !addr.is_multicast() && addr.to_ipv4_mapped().is_none()
}

/// When information is to be asked for anew; `None`: never.
fn refresh(message: &Message, now: Duration) -> Option<Duration> {
    let said = message.options.iter().find_map(|option| {
        if let Opt::Seconds(code::REFRESH_TIME, seconds) = option { Some(*seconds) } else { None }
    });
    let (usual, least) = REFRESH;
    let seconds = said.unwrap_or(usual).max(least);
    (seconds != INFINITY).then(|| now + Duration::from_secs(seconds.into()))
}

/// A status (RFC 8415 section 21.13) in words, with its name and what the server says to it.
fn words(status: Status, text: &str) -> String {
    const KNOWN: [(Status, &str, &str); 5] = [
        (Status::UnspecFail, "it has failed", "UnspecFail"),
        (Status::NoAddrsAvail, "it has no addresses left", "NoAddrsAvail"),
        (Status::NoBinding, "it knows of no such binding", "NoBinding"),
        (Status::NotOnLink, "what is asked for does not belong on this link", "NotOnLink"),
        (Status::NoPrefixAvail, "it has no prefixes left", "NoPrefixAvail"),
    ];
    let said = if text.is_empty() { String::new() } else { format!(": {text}") };
    match KNOWN.iter().find(|(known, ..)| *known == status) {
        Some((_, words, name)) => format!("{words} ({name}{said})"),
        None => format!("it says so with status {}{said}", u16::from(status)),
    }
}

/// What the server says of the message as a whole, if it is no success.
pub(super) fn status(message: &Message) -> Option<(Status, &str)> {
    message.options.iter().find_map(|option| {
        let Opt::Leaf(DhcpOption::StatusCode(said)) = option else { return None };
        (said.status != Status::Success).then_some((said.status, said.msg.as_str()))
    })
}
