//! A prefix that is asked for inside a tunnel, as `sixway status` shows it. Knows how to read the delegation's report, not how
//! to print.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::delegation::report::Report;
use crate::dhcpv6::client::Held;
use crate::dhcpv6::codec::IaKind;

/// A DHCPv6 client inside a tunnel, and what it has been given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The tunnel that it asks in.
    pub tunnel: String,
    /// `idle`, `waiting` (a second, or after a refusal), `soliciting`, `requesting`, `bound`, `renewing`, `rebinding`,
    /// `confirming`, `releasing`, `inquiring`, `informed`.
    pub state: String,
    /// The DUID of its server; `null`: none is chosen.
    pub server: Option<String>,
    /// T1: seconds until this server is asked again; `null`: never, or nothing is held.
    pub renew_s: Option<u64>,
    /// T2: seconds until any server is asked; likewise.
    pub rebind_s: Option<u64>,
    /// Delegated prefixes.
    pub prefixes: Vec<HeldStatus>,
    /// Addresses.
    pub addresses: Vec<HeldStatus>,
    /// What it has put on interfaces.
    pub given: Vec<GivenStatus>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Domains to search in.
    pub domains: Vec<String>,
    /// Why a server gives nothing, as it has said last; `null`: it has not since it gave something.
    pub refused: Option<String>,
    /// Messages that nobody has answered; 0: nothing is asked, or it is answered.
    #[serde(default)]
    pub unanswered: u32,
    /// Seconds since the first of them; `null`: there is none.
    #[serde(default)]
    pub silent_s: Option<u64>,
    /// Messages, by what became of them.
    pub counts: BTreeMap<String, u64>,
}

/// A prefix or address and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Which.
    pub prefix: String,
    /// Seconds for which it is good for new connections; `null`: for ever.
    pub preferred_s: Option<u64>,
    /// Seconds for which it is good at all; `null`: for ever.
    pub valid_s: Option<u64>,
}

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenStatus {
    /// Which interface.
    pub interface: String,
    /// The address with the length of its network.
    pub address: String,
    /// Why it is not there; `null`: it is.
    #[serde(default)]
    pub absent: Option<String>,
}

impl ClientStatus {
    /// What the client in this tunnel is at.
    pub fn new(tunnel: &str, report: &Report) -> Self {
        let shown = report.shown();
        let now = shown.now();
        let left = |at: Option<Duration>| at.map(|at| at.saturating_sub(now).as_secs());
        let held = |kind: IaKind| {
            let of_kind = shown.lease.held.iter().filter(|held| held.kind == kind);
            of_kind.map(|held| held_status(held, now)).collect()
        };
        let duid: Vec<String> = shown.view.server.iter().map(|octet| format!("{octet:02x}")).collect();
        let given = shown.given.iter().map(|given| GivenStatus {
            interface: given.interface.clone(),
            address: format!("{}/{}", given.addr, given.len),
            absent: given.absent.as_ref().map(ToString::to_string),
        });
        Self {
            tunnel: tunnel.to_owned(),
            state: shown.view.doing.to_owned(),
            server: Some(duid.join(":")).filter(|duid| !duid.is_empty()),
            renew_s: left(shown.view.renew),
            rebind_s: left(shown.view.rebind),
            prefixes: held(IaKind::Prefix),
            addresses: held(IaKind::Address),
            given: given.collect(),
            dns: shown.lease.dns.iter().map(ToString::to_string).collect(),
            domains: shown.lease.domains.iter().map(ToString::to_string).collect(),
            refused: Some(shown.refused).filter(|why| !why.is_empty()),
            unanswered: shown.silence.tries,
            silent_s: shown.silence.since.map(|since| now.saturating_sub(since).as_secs()),
            counts: shown.counts.into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }
}

fn held_status(held: &Held, now: Duration) -> HeldStatus {
    let left = |until: Option<Duration>| until.map(|until| until.saturating_sub(now).as_secs());
    let prefix = held.prefix.to_string();
    HeldStatus { prefix, preferred_s: left(held.preferred), valid_s: left(held.valid) }
}
