//! Answers on their way into tunnels: letters that wait until what they tell of is kept, and packets that are cut to the
//! tunnel's MTU (RFC 8200 section 4.5). Pure.

use std::collections::HashMap;

use sixway_dataplane::update::{Ipv6Prefix, TunnelId};

use crate::broker::BindKey;

/// Octets of an IPv6 header.
const IPV6: usize = 40;
/// Octets of a Fragment header.
const FRAGMENT: usize = 8;
/// The Fragment header's number among the next headers.
const FRAGMENT_HEADER: u8 = 44;

/// An answer for a tunnel, and what it says that its client has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The tunnel's number.
    pub id: TunnelId,
    /// Its name.
    pub tunnel: Box<str>,
    /// The answer, in as many packets as the tunnel's MTU asks for.
    pub packets: Vec<Vec<u8>>,
    /// What it tells of, and whose that is.
    pub tells: Vec<(BindKey, Ipv6Prefix)>,
}

/// Letters that wait, each by its ticket.
#[derive(Debug, Default)]
pub struct Post {
    waiting: HashMap<u64, Letter>,
    /// How many were not sent because what they told of was not kept, or was taken back.
    pub not_kept: u64,
}

impl Post {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// One more.
    pub fn wait(&mut self, ticket: u64, letter: Letter) {
        self.waiting.insert(ticket, letter);
    }

    /// The letters that may leave, of those whose tickets have been `acted` upon: what they tell of is kept, and bound still.
    /// Where something could not be kept, nothing else that tells of it leaves either: a client repeats itself, and the
    /// repetition is not kept better than what it repeats.
    pub fn settled(
        &mut self,
        acted: &[(u64, bool)],
        is_bound: impl Fn(&BindKey, Ipv6Prefix) -> bool,
    ) -> Vec<Letter> {
        let mut out = Vec::new();
        for (ticket, kept) in acted {
            let Some(letter) = self.waiting.remove(ticket) else { continue };
            if *kept && letter.tells.iter().all(|(key, prefix)| is_bound(key, *prefix)) {
                out.push(letter);
                continue;
            }
            self.not_kept += 1;
            if !kept {
                self.forget(&letter.tells);
            }
        }
        out
    }

    fn forget(&mut self, lost: &[(BindKey, Ipv6Prefix)]) {
        let before = self.waiting.len();
        self.waiting.retain(|_, letter| !letter.tells.iter().any(|told| lost.contains(told)));
        self.not_kept += (before - self.waiting.len()) as u64;
    }
}

/// Cuts a packet into fragments of at most `mtu` octets, if it is longer. `number` tells its fragments from another's.
pub fn fragments(packet: Vec<u8>, mtu: usize, number: u32) -> Vec<Vec<u8>> {
    let room = mtu.saturating_sub(IPV6 + FRAGMENT) / 8 * 8;
    if packet.len() <= mtu || packet.len() <= IPV6 || room == 0 {
        return vec![packet];
    }
    let (header, payload) = packet.split_at(IPV6);
    let mut out = Vec::new();
    for (n, piece) in payload.chunks(room).enumerate() {
        let at = n * room;
        let more = u16::from(at + piece.len() < payload.len());
        let mut one = header.to_vec();
        // Offsets and lengths are below 65536: so long is no UDP datagram.
        one[4..6].copy_from_slice(&((piece.len() + FRAGMENT) as u16).to_be_bytes());
        one[6] = FRAGMENT_HEADER;
        one.extend([header[6], 0]);
        one.extend((at as u16 | more).to_be_bytes());
        one.extend(number.to_be_bytes());
        one.extend(piece);
        out.push(one);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BindKind;

    fn told(client: u8) -> (BindKey, Ipv6Prefix) {
        let key = BindKey { tunnel: "t".into(), client: [client].into(), kind: BindKind::Prefix, number: 1 };
        (key, format!("2001:db8:{client}::/48").parse().unwrap())
    }

    fn letter(client: u8) -> Letter {
        Letter { id: TunnelId(1), tunnel: "t".into(), packets: Vec::new(), tells: vec![told(client)] }
    }

    #[test]
    fn nothing_is_told_of_what_could_not_be_kept() {
        let mut post = Post::default();
        // The Request, its repetition, and another client's.
        [(1, 7), (2, 7), (3, 8)].into_iter().for_each(|(ticket, client)| post.wait(ticket, letter(client)));
        assert_eq!(post.settled(&[(1, false)], |_, _| true), []);
        assert_eq!(post.settled(&[(2, true), (3, true)], |_, _| true), [letter(8)]);
        assert_eq!((post.not_kept, post.len()), (2, 0));
    }

    #[test]
    fn nothing_is_told_of_what_was_taken_back_meanwhile() {
        let mut post = Post::default();
        post.wait(1, letter(7));
        post.wait(2, letter(8));
        let bound = |key: &BindKey, prefix| (key.clone(), prefix) == told(8);
        assert_eq!(post.settled(&[(1, true), (2, true)], bound), [letter(8)]);
        assert_eq!(post.not_kept, 1);
    }

    #[test]
    fn fragments_make_the_packet_again() {
        let mut packet: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
        packet[6] = 17;
        for mtu in [1280, 1281, 1999, 96] {
            let all = fragments(packet.clone(), mtu, 0x0102_0304);
            let mut payload: Vec<u8> = Vec::new();
            for (n, one) in all.iter().enumerate() {
                assert!(one.len() <= mtu);
                assert_eq!((one[6], one[40], &one[44..48]), (44, 17, &[1, 2, 3, 4][..]));
                assert_eq!(usize::from(u16::from_be_bytes([one[4], one[5]])), one.len() - 40);
                let place = u16::from_be_bytes([one[42], one[43]]);
                assert_eq!(usize::from(place & !7), payload.len());
                assert_eq!(place & 7, u16::from(n + 1 < all.len()));
                payload.extend(&one[48..]);
            }
            assert_eq!(payload, packet[40..]);
        }
        assert_eq!(fragments(packet.clone(), 2000, 1), [packet.clone()]);
    }
}
