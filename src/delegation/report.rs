//! What a delegation shows of itself: `sixway status` of the router reads it while the client goes on.
//!
//! Both hold an end of it; the router may go and another one come. Knows nothing of how it is printed.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dhcproto::v6::MessageType;

use super::silence::Silence;
use crate::dhcpv6::client::{Ignored, Lease, View};

/// An address that is to be on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which interface.
    pub interface: String,
    /// The address.
    pub addr: Ipv6Addr,
    /// The length of its network in bits.
    pub len: u8,
    /// Why it is not there; `None`: it is.
    pub absent: Option<Absent>,
}

/// Why an address is not on its interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// There is none of this name.
    #[error("there is no such interface")]
    NoInterface,
    /// It is down.
    #[error("the interface is down")]
    Down,
    /// Somebody takes it away again and again.
    #[error("somebody has taken it away")]
    Lost,
    /// The kernel does not use it.
    #[error("another host of the link has this address")]
    Taken,
    /// The kernel refuses it.
    #[error("{0}")]
    Refused(String),
}

/// A delegation as it is now.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What the client does.
    pub view: View,
    /// What it holds. Times are since `began`, as those in `view`.
    pub lease: Lease,
    /// Where it has put what.
    pub given: Vec<Given>,
    /// Why a server gives nothing, as it has said last; empty: it has not.
    pub refused: String,
    /// What nobody has answered.
    pub silence: Silence,
    /// Messages, by what became of them.
    pub counts: BTreeMap<&'static str, u64>,
    began: Instant,
}

impl Shown {
    /// The time since its beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

/// A hold of what is shown.
#[derive(Clone, Debug)]
pub struct Report(Arc<Mutex<Shown>>);

impl Report {
    /// Nothing has been asked yet.
    pub(super) fn new(began: Instant) -> Self {
        let view = View { doing: "idle", server: Vec::new(), renew: None, rebind: None };
        let (lease, given, refused) = (Lease::default(), Vec::new(), String::new());
        let silence = Silence::default();
        let counts = names().into_iter().map(|name| (name, 0)).collect();
        Self(Arc::new(Mutex::new(Shown { view, lease, given, refused, silence, counts, began })))
    }

    /// What there is to see now.
    pub fn shown(&self) -> Shown {
        self.lock().clone()
    }

    pub(super) fn show(
        &self,
        (view, lease): (View, Lease),
        given: Vec<Given>,
        refused: &str,
        silence: Silence,
    ) {
        let mut shown = self.lock();
        (shown.view, shown.lease, shown.given, shown.silence) = (view, lease, given, silence);
        refused.clone_into(&mut shown.refused);
    }

    pub(super) fn count(&self, name: &'static str) {
        *self.lock().counts.entry(name).or_default() += 1;
    }

    /// Counts are plain numbers: whoever has panicked while it held them has left them whole.
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages of a client, the kinds of [`MessageType`], and by what name they are counted.
const SENT: [(MessageType, &str); 7] = [
    (MessageType::Solicit, "sent_solicit"),
    (MessageType::Request, "sent_request"),
    (MessageType::Confirm, "sent_confirm"),
    (MessageType::Renew, "sent_renew"),
    (MessageType::Rebind, "sent_rebind"),
    (MessageType::Release, "sent_release"),
    (MessageType::InformationRequest, "sent_information_request"),
];
/// The same for those of servers.
const HEARD: [(MessageType, &str); 3] = [
    (MessageType::Advertise, "heard_advertise"),
    (MessageType::Reply, "heard_reply"),
    (MessageType::Reconfigure, "heard_reconfigure"),
];
/// Nobody else's message comes to a client's port but by mistake.
const STRANGE: &str = "heard_other";
/// What is lost between the client and the tunnel, each way.
pub(super) const UNSENT: &str = "unsent";
/// See [`UNSENT`]: the tunnel is away or too narrow.
pub(super) const NO_WAY: &str = "no_way";
/// See [`UNSENT`]: the client is busy or gone.
pub(super) const UNHEARD: &str = "unheard";
/// A packet whose length or checksum is wrong.
pub(super) const DAMAGED: &str = "damaged";

/// What a message that is sent is counted as.
pub(super) fn sent(message: &[u8]) -> &'static str {
    named(&SENT, message).unwrap_or(UNSENT)
}

/// What a message that has come is counted as.
pub(super) fn heard(message: &[u8]) -> &'static str {
    named(&HEARD, message).unwrap_or(STRANGE)
}

/// What one that is not taken is counted as besides.
pub(super) fn ignored(why: Ignored) -> &'static str {
    match why {
        Ignored::Malformed => "ignored_malformed",
        Ignored::Unexpected => "ignored_unexpected",
        Ignored::NotOurs => "ignored_not_ours",
        Ignored::Empty => "ignored_empty",
        Ignored::Unproven => "ignored_unproven",
    }
}

fn named(all: &[(MessageType, &'static str)], message: &[u8]) -> Option<&'static str> {
    let kind = message.first()?;
    all.iter().find(|(known, _)| u8::from(*known) == *kind).map(|(_, name)| *name)
}

/// All names of counts.
pub fn names() -> Vec<&'static str> {
    use Ignored as I;
    let ignored = [I::Malformed, I::Unexpected, I::NotOurs, I::Empty, I::Unproven].map(ignored);
    let kinds = SENT.iter().chain(&HEARD).map(|(_, name)| *name);
    kinds.chain([STRANGE]).chain(ignored).chain([UNSENT, NO_WAY, UNHEARD, DAMAGED]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_by_kind_and_by_fate() {
        let report = Report::new(Instant::now());
        assert_eq!(
            (sent(&[1, 0, 0, 0]), sent(&[11]), heard(&[7]), heard(&[10])),
            ("sent_solicit", "sent_information_request", "heard_reply", "heard_reconfigure")
        );
        assert_eq!((heard(&[]), heard(&[1])), (STRANGE, STRANGE));
        report.count(ignored(Ignored::Unproven));
        let counts = report.shown().counts;
        assert_eq!((counts["ignored_unproven"], counts["sent_solicit"], counts.len()), (1, 0, names().len()));
    }
}
