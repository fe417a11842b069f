//! What an encapsulation does to the outer header: sizes, hop limit, code point, congestion marks.
//!
//! Wraps and unwraps; decides nothing. Who may use a tunnel is `table`'s business, path MTU is `forward`'s.

pub mod proto41;

use crate::manners::{Dscp, Manners};

/// The outer time to live unless told otherwise (RFC 4213 section 3.3; the default of RFC 1700's successors).
pub const OUTER_TTL: u8 = 64;

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const CE: u8 = 3;
const ECN: u8 = 3;

/// The outer type of service for an inner traffic class. A plain tunnel copies ECN (RFC 6040 section 4.1, normal mode) and
/// sets DSCP 0 (the pipe model of RFC 2983 section 3.1: a client's marks mean nothing to the IPv4 network).
pub fn outer_tos(manners: Manners, inner_class: u8) -> u8 {
    if manners == Manners::PLAIN {
        return inner_class & ECN;
    }
    let ecn = if manners.is_ecn_hidden() { NOT_ECT } else { inner_class & ECN };
    match manners.dscp() {
        Dscp::Uniform => inner_class & !ECN | ecn,
        Dscp::Pipe(code) => code << 2 | ecn,
    }
}

/// The inner traffic class after decapsulation: DSCP by the tunnel's model (RFC 2983 section 3), ECN by figure 4 of
/// RFC 6040, in either mode of the tunnel. `None` when the packet must be dropped: congestion was experienced and the
/// inner packet cannot say so.
pub fn inner_class(manners: Manners, inner: u8, outer_tos: u8) -> Option<u8> {
    let is_uniform = manners.dscp() == Dscp::Uniform;
    if outer_tos & ECN == NOT_ECT && !is_uniform {
        return Some(inner);
    }
    let marked = decapsulated_ecn(inner, outer_tos)?;
    Some(if is_uniform { outer_tos } else { inner } & !ECN | marked)
}

/// Whether a packet that carries `decapsulated` now came with a mark outside that no honest path makes of it: the cells of
/// figure 4 of RFC 6040 that shall be told of, but for the one that is dropped.
pub fn is_odd(decapsulated: u8, outer_tos: u8) -> bool {
    // What is CE now and was ECT(1) outside was CE inside.
    matches!((decapsulated & ECN, outer_tos & ECN), (NOT_ECT, 1..=2) | (CE, ECT_1))
}

fn decapsulated_ecn(inner: u8, outer_tos: u8) -> Option<u8> {
    Some(match (inner & ECN, outer_tos & ECN) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) | (CE, _) => CE,
        (_, ECT_1) => ECT_1,
        (kept, _) => kept,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC: E11 (RFC 6040 section 4.2)
    #[test]
    fn all_sixteen_combinations_of_rfc_6040_figure_4() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let (not, ect0, ect1, ce) = (0, 2, 1, 3);
        let figure = [
            (not, [Some(not), Some(not), Some(not), None]),
            (ect0, [Some(ect0), Some(ect0), Some(ect1), Some(ce)]),
            (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(ce)]),
            (ce, [Some(ce), Some(ce), Some(ce), Some(ce)]),
        ];
        for (inner, row) in figure {
            for (outer, expected) in [not, ect0, ect1, ce].into_iter().zip(row) {
                for manners in [Manners::PLAIN, Manners::PLAIN.with_ecn_hidden(true)] {
                    let got = inner_class(manners, inner | 0xa8, outer | 0xb8);
                    assert_eq!(got, expected.map(|e| e | 0xa8), "{inner} in {outer}");
                }
            }
        }
    }

    /// RFC: E11 (RFC 6040 section 4.2)
    #[test]
    fn the_cells_with_three_marks_are_odd() {
        let mut odd = Vec::new();
        for (inner, outer) in (0..16).map(|n| (n / 4, n % 4)) {
            let now = decapsulated_ecn(inner, outer);
            odd.extend(now.filter(|now| is_odd(*now, outer)).map(|_| (inner, outer)));
        }
        assert_eq!(odd, [(NOT_ECT, ECT_1), (NOT_ECT, 2), (CE, ECT_1)]);
    }

    /// RFC: E9, E10 (RFC 6040 section 4.1; RFC 2983 section 3.1)
    #[test]
    fn the_outer_header_carries_ecn_and_no_dscp() {
        assert_eq!(outer_tos(Manners::PLAIN, 0xb9), 1);
    }

    /// RFC: E9 (RFC 2983 section 3)
    #[test]
    fn dscp_is_the_tunnels_choice() {
        let uniform = Manners::PLAIN.with_dscp(Dscp::Uniform);
        assert_eq!(outer_tos(uniform, 0xb9), 0xb9);
        assert_eq!(inner_class(uniform, 0xb8, 0x28), Some(0x28));
        assert_eq!(inner_class(uniform, 0xb9, 0x2b), Some(0x2b));
        assert_eq!(inner_class(uniform, 0xb8, 0x2b), None);
        let pipe = Manners::PLAIN.with_dscp(Dscp::Pipe(46));
        assert_eq!(outer_tos(pipe, 0x29), 46 << 2 | 1);
        assert_eq!(inner_class(pipe, 0x29, 0xb8), Some(0x29));
    }

    /// RFC: E10 (RFC 6040 sections 4.1 and 4.3)
    #[test]
    fn ecn_is_copied_or_left_out() {
        for ecn in 0..4 {
            assert_eq!(outer_tos(Manners::PLAIN.with_clamped(true), 0xb8 | ecn), ecn);
            assert_eq!(outer_tos(Manners::PLAIN.with_ecn_hidden(true), 0xb8 | ecn), 0);
            let both = Manners::PLAIN.with_ecn_hidden(true).with_dscp(Dscp::Uniform);
            assert_eq!(outer_tos(both, 0xb8 | ecn), 0xb8);
        }
    }
}
