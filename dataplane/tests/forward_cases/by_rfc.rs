//! The rows once more, by the requirement that they show: the names that `docs/rfc.md` knows.

use crate::{from_tun, from_wire, guarded, lab, trains, upward};

/// RFC: D7 (RFC 4213 section 3.6: what is longer than our own MTU is taken)
#[test]
fn what_a_peer_may_send_is_taken() {
    lab::run(from_wire::accepted());
}

/// RFC: D6 (RFC 4213 section 3.6)
#[test]
fn lengths_and_versions() {
    lab::run(from_wire::shapes());
    lab::run(from_tun::shapes());
}

/// RFC: D2 (RFC 4213 section 3.6; RFC 6890)
#[test]
fn outer_martians() {
    lab::run(from_wire::outer_martians());
}

/// RFC: D3 (RFC 4213 section 3.6; RFC 4291 sections 2.5.2 to 2.5.5)
#[test]
fn inner_martians() {
    lab::run(from_wire::inner_martians());
}

/// RFC: D1, D5, R10 (RFC 4213 sections 3.6 and 5)
#[test]
fn outer_sender_and_inner_source_belong_together() {
    lab::run(from_wire::spoofs());
}

/// RFC: D4, R1 (RFC 3704 section 2)
#[test]
fn nested_prefixes() {
    lab::run(from_wire::nested());
}

/// RFC: D8, L2, X3 (RFC 8200 section 3; RFC 6324 section 3; RFC 7084 WPD-5)
#[test]
fn destinations_out_of_a_tunnel() {
    lab::run(from_wire::destinations());
}

/// RFC: E11 (RFC 6040 section 4.2)
#[test]
fn congestion_marks() {
    lab::run(from_wire::congestion());
}

/// RFC: D9 (RFC 4291 section 2.5.6; RFC 4007 section 9)
#[test]
fn link_local_stays_in_its_tunnel() {
    lab::run(from_wire::on_link());
    lab::run(from_tun::scopes());
}

/// RFC: D5, I7 (RFC 4443 section 3.1)
#[test]
fn what_the_kernel_may_not_send_into_a_tunnel() {
    lab::run(from_tun::refused());
}

/// RFC: D8 (RFC 4291 section 2.5)
#[test]
fn addresses_that_are_none() {
    lab::run(from_tun::martians());
}

/// RFC: E5, E6 (RFC 4213 section 3.2; RFC 8200 section 5)
#[test]
fn sizes() {
    lab::run(from_tun::sizes());
}

/// RFC: I4 (RFC 4443 section 2.4(e))
#[test]
fn no_errors_about_errors() {
    lab::run(from_tun::errors());
}

/// RFC: E2 (RFC 8200 section 3)
#[test]
fn tunnel_to_tunnel_is_a_hop() {
    lab::run(from_tun::hairpin());
}

/// RFC: E2, I7, L2 (RFC 4443 sections 3.1 and 3.3)
#[test]
fn tunnel_to_tunnel_refused() {
    lab::run(from_tun::hairpin_refused());
}

/// RFC: T2, R8 (virtio 1.2 section 5.1.6)
#[test]
fn super_packets() {
    lab::run(trains::rows());
    lab::run_without_offloads(trains::rows());
}

/// RFC: D11 (RFC 5572 section 4.4)
#[test]
fn datagrams_go_up() {
    lab::run(upward::rows());
}

/// RFC: E9 (RFC 2983 section 3)
#[test]
fn code_points_are_the_tunnels_choice() {
    lab::run(guarded::code_points());
}

/// RFC: E10, E11 (RFC 6040 sections 4.1 to 4.3)
#[test]
fn congestion_marks_in_either_mode_and_encapsulation() {
    lab::run(guarded::congestion());
}

/// RFC: T1 (RFC 9293 section 3.7.1)
#[test]
fn segment_sizes_are_lowered_where_asked_for() {
    lab::run(guarded::segment_sizes());
}

/// RFC: D13 (RFC 5095 section 3; RFC 6169 section 2.3)
#[test]
fn source_routes_end_here() {
    lab::run(guarded::source_routed());
}

/// RFC: L3 (RFC 2473 section 4.1.1)
#[test]
fn tunnels_in_tunnels_are_counted() {
    lab::run(guarded::nested());
}

/// RFC: L4 (RFC 3964 section 5.1)
#[test]
fn six_to_four_addresses_stand_for_their_sites() {
    lab::run(guarded::six_to_four());
}

/// RFC: I7 (RFC 4443 section 3.1)
#[test]
fn a_source_outside_is_told_where_asked_for() {
    lab::run(guarded::outside());
}
