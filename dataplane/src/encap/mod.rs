//! What an encapsulation does to the outer header: sizes, hop limit, congestion marks.
//!
//! Wraps and unwraps; decides nothing. Who may use a tunnel is `table`'s business, path MTU is `forward`'s.

pub mod proto41;

/// The outer time to live (RFC 4213 section 3.3; the default of RFC 1700's successors).
pub const OUTER_TTL: u32 = 64;

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const CE: u8 = 3;
const ECN: u8 = 3;

/// The outer type of service for an inner traffic class: ECN copied (RFC 6040 section 4.1, normal mode), DSCP 0 (the
/// pipe model of RFC 2983 section 3.1: a client's marks mean nothing to the IPv4 network).
pub fn outer_tos(inner_class: u8) -> u8 {
    inner_class & ECN
}

/// The inner traffic class after decapsulation by figure 4 of RFC 6040, or `None` when the packet must be dropped:
/// congestion was experienced and the inner packet cannot say so.
pub fn inner_class(inner: u8, outer_tos: u8) -> Option<u8> {
    let marked = match (inner & ECN, outer_tos & ECN) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) | (CE, _) => CE,
        (_, ECT_1) => ECT_1,
        (kept, _) => kept,
    };
    Some(inner & !ECN | marked)
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
                assert_eq!(
                    inner_class(inner | 0xa8, outer | 0xb8),
                    expected.map(|e| e | 0xa8),
                    "{inner} in {outer}"
                );
            }
        }
    }

    /// RFC: E9, E10 (RFC 6040 section 4.1; RFC 2983 section 3.1)
    #[test]
    fn the_outer_header_carries_ecn_and_no_dscp() {
        assert_eq!(outer_tos(0xb9), 1);
    }
}
