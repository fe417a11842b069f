//! Tunnels that may reuse an outer identification too soon (RFC 6864 section 4.3, RFC 4963 section 2).
//!
//! An outer packet that may be fragmented carries a number of 16 bits; when all have been used while fragments of the first
//! still wait at the peer, two packets may be put together to one. That takes 65,536 packets in the time that a host waits
//! for fragments, 30 seconds in Linux. Such tunnels want a path MTU that needs no fragments. Pure: told what was sent.

use sixway_dataplane::update::TunnelId;

/// How often each tunnel is looked at, seconds; as long as fragments wait.
const ROUND: usize = 30;
/// Packets after which the numbers begin anew.
const NUMBERS: u64 = 1 << 16;
/// Not looked at yet.
const UNKNOWN: u64 = u64::MAX;

/// What each tunnel had sent when it was looked at.
#[derive(Debug, Default)]
pub struct Wraps {
    sent: Vec<u64>,
    second: usize,
    risks: u64,
}

impl Wraps {
    /// Once a second: looks at one tunnel in thirty, so at each every 30 seconds. `sent` says how many packets a tunnel has
    /// sent that may be fragmented; `None`: it sends none.
    pub fn look(&mut self, slots: usize, sent: impl Fn(TunnelId) -> Option<u64>) {
        if self.sent.len() < slots {
            self.sent.resize(slots, UNKNOWN);
        }
        self.second = (self.second + 1) % ROUND;
        for slot in (self.second..slots).step_by(ROUND) {
            let now = sent(TunnelId(slot as u32)).unwrap_or(UNKNOWN);
            let before = std::mem::replace(&mut self.sent[slot], now);
            let known = before != UNKNOWN && now != UNKNOWN;
            self.risks += u64::from(known && now.saturating_sub(before) > NUMBERS);
        }
    }

    /// How often a tunnel was found to send so fast.
    pub fn risks(&self) -> u64 {
        self.risks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two minutes in which tunnel 7 sends so many packets a second, and the others none.
    fn risks(per_second: u64, is_whole: bool) -> u64 {
        let mut wraps = Wraps::default();
        for second in 0..120 {
            wraps.look(100, |id| match id.0 {
                7 => (!is_whole).then_some(per_second * second),
                8 => None,
                _ => Some(0),
            });
        }
        wraps.risks()
    }

    /// RFC: E7 (RFC 4963 section 2)
    #[test]
    fn a_tunnel_that_wraps_is_counted_once_a_round() {
        assert_eq!(risks(2185, false), 3);
        assert_eq!(risks(2184, false), 0, "65,520 packets in 30 seconds");
        assert_eq!(risks(1_000_000, true), 0, "with DF set the number means nothing");
    }
}
