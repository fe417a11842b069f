//! How a tunnel treats the packets in it beside wrapping them: marks, fragments, segment sizes, limits.
//!
//! Small enough to lie in a tunnel's record: one number, read with the rest of it. What a plain tunnel does is the number
//! 0, so the packet path asks one question for all of it. Knows no packet.

use std::fmt;

/// The outer differentiated services code point (RFC 2983 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dscp {
    /// The uniform model (sections 3.1 and 4.1): one code point, copied outwards and, at the far end, back in.
    Uniform,
    /// The pipe model: this code point outside, 0 to 63, and the inner one is left alone.
    Pipe(u8),
}

/// How a tunnel treats its packets.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Manners(u16);

const DSCP: u16 = 0x3f;
const UNIFORM: u16 = 1 << 6;
const ECN_HIDDEN: u16 = 1 << 7;
const WHOLE: u16 = 1 << 8;
const CLAMPED: u16 = 1 << 9;
const METERED: u16 = 1 << 10;
const WATCHED: u16 = 1 << 11;

impl Manners {
    /// Outer DSCP 0, congestion marks copied, outer packets may be fragmented, nothing else touched.
    pub const PLAIN: Self = Self(0);

    /// The same with this outer code point; only its six bits are taken.
    pub fn with_dscp(self, dscp: Dscp) -> Self {
        let bits = match dscp {
            Dscp::Uniform => UNIFORM,
            Dscp::Pipe(code) => u16::from(code) & DSCP,
        };
        Self(self.0 & !(DSCP | UNIFORM) | bits)
    }

    /// The same in the compatibility mode of RFC 6040 section 4.3: the outer header says Not-ECT, whatever is inside. For a
    /// far end that does not know congestion marks.
    pub fn with_ecn_hidden(self, on: bool) -> Self {
        self.with(ECN_HIDDEN, on)
    }

    /// The same with DF set in the outer header (RFC 4213 section 3.2.2): the path's MTU is known.
    pub fn with_whole(self, on: bool) -> Self {
        self.with(WHOLE, on)
    }

    /// The same with the segment size that TCP offers lowered to what fits (RFC 9293 section 3.7.1).
    pub fn with_clamped(self, on: bool) -> Self {
        self.with(CLAMPED, on)
    }

    /// The same with a limit of packets, octets or both.
    pub fn with_metered(self, on: bool) -> Self {
        self.with(METERED, on)
    }

    /// The same with copies of its packets going up the punt queue. The table says so, whatever a tunnel is written with.
    pub fn with_watched(self, on: bool) -> Self {
        self.with(WATCHED, on)
    }

    fn with(self, bit: u16, on: bool) -> Self {
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }

    /// The outer code point.
    pub fn dscp(self) -> Dscp {
        if self.0 & UNIFORM != 0 { Dscp::Uniform } else { Dscp::Pipe((self.0 & DSCP) as u8) }
    }

    /// Whether the outer header hides congestion marks.
    pub fn is_ecn_hidden(self) -> bool {
        self.0 & ECN_HIDDEN != 0
    }

    /// Whether DF is set in the outer header.
    pub fn is_whole(self) -> bool {
        self.0 & WHOLE != 0
    }

    /// Whether the segment size of TCP is lowered.
    pub fn is_clamped(self) -> bool {
        self.0 & CLAMPED != 0
    }

    /// Whether there is a limit.
    pub fn is_metered(self) -> bool {
        self.0 & METERED != 0
    }

    /// Whether copies of its packets go up.
    pub fn is_watched(self) -> bool {
        self.0 & WATCHED != 0
    }

    /// The number that stands for it.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// What a number from [`Self::bits`] stands for.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for Manners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        set.entry(&self.dscp());
        let all = [(ECN_HIDDEN, "ecn_hidden"), (WHOLE, "whole"), (CLAMPED, "clamped"), (METERED, "metered")];
        for (bit, name) in all.into_iter().chain([(WATCHED, "watched")]) {
            if self.0 & bit != 0 {
                set.entry(&name);
            }
        }
        set.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_and_taken_back_by_itself() {
        let all = Manners::PLAIN.with_dscp(Dscp::Pipe(46)).with_ecn_hidden(true).with_whole(true);
        let all = all.with_clamped(true).with_metered(true).with_watched(true);
        assert_eq!(all.dscp(), Dscp::Pipe(46));
        assert!(all.is_ecn_hidden() && all.is_whole() && all.is_clamped());
        assert!(all.is_metered() && all.is_watched() && !all.with_watched(false).is_watched());
        assert_eq!(Manners::from_bits(all.bits()), all);
        let uniform = all.with_dscp(Dscp::Uniform).with_whole(false);
        assert!(uniform.dscp() == Dscp::Uniform && !uniform.is_whole() && uniform.is_clamped());
        let none = uniform.with_dscp(Dscp::Pipe(0)).with_ecn_hidden(false).with_clamped(false);
        assert_eq!(none.with_metered(false).with_watched(false), Manners::PLAIN);
    }
}
