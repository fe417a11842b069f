//! Orders to octets and back; the digest. Numbers are in network byte order.
//!
//! Whether a message is late, forged or meant for somebody else is `session`'s business.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;

/// What comes before the digest, and is not counted by the length.
pub const HEADER: usize = 12;
/// Octets of the digest.
pub const DIGEST: usize = 16;
/// The largest message that is read.
pub const MAX_MESSAGE: usize = 1024;
/// The longest name of an interface, without the zero behind it.
pub const MAX_NAME: usize = 15;

const RELOAD: u16 = 1;
const REMOVE: u16 = 2;
const START: u16 = 3;
const STOP: u16 = 4;
const BINDING: u32 = 1;
const INTERFACE: u32 = 4;
const BINDING_IA: u32 = 2;
const IA_PD: u32 = 3;
const IA_NA: u32 = 5;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The configuration is to be read again.
    Reload,
    /// A server is to forget a binding.
    Remove(Binding),
    /// A client is to begin anew on an interface.
    Start(InterfaceName),
    /// The process is to end.
    Stop,
    /// A client is to give up what it has on an interface.
    StopInterface(InterfaceName),
}

/// As it is typed.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reload => f.write_str("reload"),
            Self::Remove(Binding { kind, iaid, duid }) => {
                let kind = match kind {
                    IaKind::Na => "IA_NA",
                    IaKind::Pd => "IA_PD",
                };
                let duid: Vec<_> = duid.iter().map(|octet| format!("{octet:02x}")).collect();
                write!(f, "remove binding IA {kind} {iaid} {}", duid.join(":"))
            }
            Self::Start(name) => write!(f, "start interface {}", name.as_str().escape_debug()),
            Self::Stop => f.write_str("stop"),
            Self::StopInterface(name) => write!(f, "stop interface {}", name.as_str().escape_debug()),
        }
    }
}

/// One identity association of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Addresses or prefixes.
    pub kind: IaKind,
    /// The association's number, which the client chose.
    pub iaid: u32,
    /// The client's DUID, 1 octet at least.
    pub duid: Vec<u8>,
}

/// Kinds of identity associations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IaKind {
    /// Non-temporary addresses.
    Na,
    /// Delegated prefixes.
    Pd,
}

/// A name that an interface can have: 1 to 15 octets, no zero among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name, if it can be one.
    pub fn parse(name: &str) -> Option<Self> {
        let fits = (1..=MAX_NAME).contains(&name.len()) && !name.contains('\0');
        fits.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message taken apart, as far as that can be done without trusting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What is to be done, as a number.
    pub command: u16,
    /// 0 today.
    pub version: u16,
    /// Unix seconds, the low 32 bits.
    pub time: u32,
    /// `None` where the message ends before.
    pub digest: Option<&'a [u8; DIGEST]>,
    /// What stands behind the digest.
    pub arguments: &'a [u8],
    whole: &'a [u8],
}

/// Why arguments make no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// No such command, or not for this kind of process.
    #[error("there is no such command, or not for this kind of process")]
    Command,
    /// A command that takes none has arguments, or some are missing.
    #[error("there are too many of them, or some are missing")]
    Length,
    /// What is to be removed, started or stopped is of no known kind.
    #[error("what is to be removed, started or stopped is of no known kind")]
    Target,
    /// What kind of binding is to be removed is not known.
    #[error("what kind of binding is to be removed is not known")]
    Binding,
    /// Neither addresses nor prefixes.
    #[error("the binding is neither of addresses nor of prefixes")]
    Ia,
    /// The DUID is empty or longer than the message.
    #[error("the DUID is empty, or longer than the message")]
    Duid,
    /// The interface's name is empty, too long or no text.
    #[error("the interface's name is empty, too long or no text")]
    Name,
}

/// How long the whole message is, told by its first octets.
pub fn announced(header: &[u8; HEADER]) -> usize {
    HEADER + usize::from(u16::from_be_bytes([header[2], header[3]]))
}

impl<'a> Message<'a> {
    /// Takes a whole message apart; `None` if it is shorter than a header or not as long as it says.
    pub fn parse(whole: &'a [u8]) -> Option<Self> {
        let (header, rest) = whole.split_first_chunk::<HEADER>()?;
        if announced(header) != whole.len() {
            return None;
        }
        let &[c, d, _, _, v, w, _, _, t @ ..] = header;
        let (digest, arguments) = match rest.split_first_chunk() {
            Some((digest, arguments)) => (Some(digest), arguments),
            None => (None, &rest[..0]),
        };
        let (command, version) = (u16::from_be_bytes([c, d]), u16::from_be_bytes([v, w]));
        Some(Self { command, version, time: u32::from_be_bytes(t), digest, arguments, whole })
    }

    /// Whether somebody who knows the secret has made it; compared in constant time.
    pub fn is_by(&self, secret: &[u8]) -> bool {
        self.digest
            .is_some_and(|digest| mac(self.whole, secret).is_some_and(|mac| mac.verify_slice(digest).is_ok()))
    }

    /// What a server is told.
    ///
    /// # Errors
    /// [`Unclear`].
    pub fn server_order(&self) -> Result<Order, Unclear> {
        match self.command {
            RELOAD => self.bare(Order::Reload),
            STOP => self.bare(Order::Stop),
            REMOVE => removal(self.arguments).map(Order::Remove),
            _ => Err(Unclear::Command),
        }
    }

    /// What a client is told.
    ///
    /// # Errors
    /// [`Unclear`].
    pub fn client_order(&self) -> Result<Order, Unclear> {
        match self.command {
            RELOAD => self.bare(Order::Reload),
            STOP if self.arguments.is_empty() => Ok(Order::Stop),
            STOP => interface(self.arguments).map(Order::StopInterface),
            START => interface(self.arguments).map(Order::Start),
            _ => Err(Unclear::Command),
        }
    }

    fn bare(&self, order: Order) -> Result<Order, Unclear> {
        if self.arguments.is_empty() { Ok(order) } else { Err(Unclear::Length) }
    }
}

/// The message that says `order` at `time` (Unix seconds), signed. A DUID longer than 65,000 octets cannot be said.
pub fn emit(order: &Order, time: u32, secret: &[u8]) -> Option<Vec<u8>> {
    let (command, arguments) = match order {
        Order::Reload => (RELOAD, Vec::new()),
        Order::Stop => (STOP, Vec::new()),
        Order::Remove(binding) => (REMOVE, emit_removal(binding)?),
        Order::Start(name) => (START, emit_interface(name)),
        Order::StopInterface(name) => (STOP, emit_interface(name)),
    };
    let len = u16::try_from(DIGEST + arguments.len()).ok()?;
    let mut whole = Vec::with_capacity(HEADER + usize::from(len));
    whole.extend_from_slice(&command.to_be_bytes());
    whole.extend_from_slice(&len.to_be_bytes());
    whole.extend_from_slice(&[0; 4]);
    whole.extend_from_slice(&time.to_be_bytes());
    whole.extend_from_slice(&[0; DIGEST]);
    whole.extend_from_slice(&arguments);
    let digest = mac(&whole, secret)?.finalize().into_bytes();
    whole.get_mut(HEADER..HEADER + DIGEST)?.copy_from_slice(&digest);
    Some(whole)
}

/// The digest's state after the whole message, whose own digest counts as zero (RFC 2104).
fn mac(whole: &[u8], secret: &[u8]) -> Option<Hmac<Md5>> {
    let mut mac = Hmac::<Md5>::new_from_slice(secret).ok()?;
    mac.update(whole.get(..HEADER)?);
    mac.update(&[0; DIGEST]);
    mac.update(whole.get(HEADER + DIGEST..)?);
    Some(mac)
}

fn number(octets: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = octets.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn removal(arguments: &[u8]) -> Result<Binding, Unclear> {
    let next = |octets| number(octets).ok_or(Unclear::Length);
    let (target, rest) = next(arguments)?;
    if target != BINDING {
        return Err(Unclear::Target);
    }
    let (binding, rest) = next(rest)?;
    if binding != BINDING_IA {
        return Err(Unclear::Binding);
    }
    let (_flags, rest) = next(rest)?;
    let (kind, rest) = next(rest)?;
    let (iaid, rest) = next(rest)?;
    let (len, rest) = next(rest)?;
    let kind = match kind {
        IA_PD => IaKind::Pd,
        IA_NA => IaKind::Na,
        _ => return Err(Unclear::Ia),
    };
    // What stands behind the DUID says nothing.
    let duid = rest.get(..len as usize).filter(|duid| !duid.is_empty()).ok_or(Unclear::Duid)?;
    Ok(Binding { kind, iaid, duid: duid.to_vec() })
}

fn emit_removal(binding: &Binding) -> Option<Vec<u8>> {
    let kind = match binding.kind {
        IaKind::Pd => IA_PD,
        IaKind::Na => IA_NA,
    };
    let len = u32::try_from(binding.duid.len()).ok()?;
    let mut octets: Vec<u8> =
        [BINDING, BINDING_IA, 0, kind, binding.iaid, len].into_iter().flat_map(u32::to_be_bytes).collect();
    octets.extend_from_slice(&binding.duid);
    Some(octets)
}

fn interface(arguments: &[u8]) -> Result<InterfaceName, Unclear> {
    let (target, rest) = number(arguments).ok_or(Unclear::Length)?;
    if target != INTERFACE {
        return Err(Unclear::Target);
    }
    let (len, rest) = number(rest).ok_or(Unclear::Length)?;
    if len as usize > MAX_NAME + 1 {
        return Err(Unclear::Name);
    }
    let name = rest.get(..len as usize).ok_or(Unclear::Length)?;
    let name = name.split(|octet| *octet == 0).next().unwrap_or_default();
    std::str::from_utf8(name).ok().and_then(InterfaceName::parse).ok_or(Unclear::Name)
}

fn emit_interface(name: &InterfaceName) -> Vec<u8> {
    let len = name.0.len() as u32 + 1;
    [&INTERFACE.to_be_bytes()[..], &len.to_be_bytes(), name.0.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines of a capture: `# comment`, then the message in hexadecimal.
    fn capture(text: &str) -> Vec<(String, Vec<u8>)> {
        let mut comment = String::new();
        let mut all = Vec::new();
        for line in text.lines() {
            match line.strip_prefix("# ") {
                Some(said) => comment = said.to_owned(),
                None => all.push((comment.clone(), hex(line))),
            }
        }
        all
    }

    fn hex(line: &str) -> Vec<u8> {
        (0..line.len() / 2).map(|n| u8::from_str_radix(&line[2 * n..2 * n + 2], 16).unwrap()).collect()
    }

    fn name(name: &str) -> InterfaceName {
        InterfaceName::parse(name).unwrap()
    }

    /// What the command in a comment asks for, in our words.
    fn order(comment: &str) -> Option<Order> {
        let words: Vec<&str> = comment.split('`').nth(1)?.split('(').next()?.split_whitespace().collect();
        let words: Vec<&str> =
            words.into_iter().filter(|w| !["dhcp6ctl", "-S", "-C", "-a", "::1"].contains(w)).collect();
        match words[..] {
            ["reload", ..] => Some(Order::Reload),
            ["stop"] => Some(Order::Stop),
            ["stop", "interface", interface] => InterfaceName::parse(interface).map(Order::StopInterface),
            ["start", "interface", interface] => Some(Order::Start(name(interface))),
            ["remove", "binding", "IA", kind, iaid, duid] => {
                let kind = if kind == "IA_PD" { IaKind::Pd } else { IaKind::Na };
                let duid = hex(&duid.replace(':', ""));
                Some(Order::Remove(Binding { kind, iaid: iaid.parse().unwrap(), duid }))
            }
            [..] => None,
        }
    }

    #[test]
    fn messages_are_those_of_the_old_program_octet_by_octet() {
        let key: Vec<u8> = (0..16).collect();
        let long: Vec<u8> = (0..80).collect();
        let server = capture(include_str!("../../tests/dhcp6ctl/server.hex"));
        let client = capture(include_str!("../../tests/dhcp6ctl/client.hex"));
        let hashed = capture(include_str!("../../tests/dhcp6ctl/longkey.hex"));
        let mut same = 0;
        let all = [(&server, &key), (&client, &key), (&hashed, &long)];
        for ((comment, octets), key) in
            all.into_iter().flat_map(|(all, key)| all.iter().map(move |one| (one, key)))
        {
            let message = Message::parse(octets).unwrap();
            assert_eq!(message.is_by(key), !comment.contains("wrong key"), "{comment}");
            let Some(order) = order(comment).filter(|_| message.is_by(key)) else { continue };
            assert_eq!(emit(&order, message.time, key).as_ref(), Some(octets), "{comment}");
            let read = [message.server_order(), message.client_order()];
            assert!(read.contains(&Ok(order)), "{comment}");
            same += 1;
        }
        // All but the wrong key's and the two names that are too long.
        assert_eq!(same, server.len() + client.len() + hashed.len() - 3);
    }

    #[test]
    fn names_of_interfaces_are_bounded() {
        assert!(InterfaceName::parse("abcdefghijklmno").is_some());
        for wrong in ["", "abcdefghijklmnop", "a\0b"] {
            assert_eq!(InterfaceName::parse(wrong), None);
        }
    }

    proptest! {
        #[test]
        fn any_order_comes_back(kind: bool, iaid: u32, duid in prop::collection::vec(any::<u8>(), 1..200), time: u32) {
            let kind = if kind { IaKind::Na } else { IaKind::Pd };
            let order = Order::Remove(Binding { kind, iaid, duid });
            let octets = emit(&order, time, b"key").unwrap();
            let message = Message::parse(&octets).unwrap();
            prop_assert_eq!(message.server_order(), Ok(order));
            prop_assert!(message.is_by(b"key") && !message.is_by(b"kez"));
        }

        #[test]
        fn any_octets_are_read_or_refused(mut octets in prop::collection::vec(any::<u8>(), 12..80)) {
            let len = (octets.len() - HEADER) as u16;
            octets[2..4].copy_from_slice(&len.to_be_bytes());
            let command = octets[0] & 7;
            octets[0..2].copy_from_slice(&[0, command]);
            let message = Message::parse(&octets).unwrap();
            let _either = (message.server_order(), message.client_order());
            prop_assert!(!message.is_by(b"key"));
        }
    }
}
