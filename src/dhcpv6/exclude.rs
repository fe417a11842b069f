//! The Prefix Exclude option (RFC 6603 section 4.2): which part of a delegated prefix is the link's, and not its client's. Pure.

use sixway_dataplane::update::Ipv6Prefix;

use super::codec::code;

/// The option for within the delegated prefix's own: the length of the excluded prefix, then its bits behind those of the
/// delegated one, from the left and with zeros at the end. `None` if it is no part of it.
pub(super) fn emit(delegated: Ipv6Prefix, excluded: Ipv6Prefix) -> Option<Vec<u8>> {
    let bits = excluded.prefix_len().checked_sub(delegated.prefix_len()).filter(|bits| *bits > 0)?;
    let behind = excluded.bits() << delegated.prefix_len();
    let octets = usize::from(bits).div_ceil(8);
    let mut option = code::PD_EXCLUDE.to_be_bytes().to_vec();
    // At most 17.
    option.extend((1 + octets as u16).to_be_bytes());
    option.push(excluded.prefix_len());
    option.extend(&behind.to_be_bytes()[..octets]);
    delegated.covers(excluded).then_some(option)
}

#[cfg(test)]
mod tests {
    /// RFC: V47 (RFC 6603 section 4.2)
    #[test]
    fn only_the_bits_behind_the_delegated_prefix_are_said() {
        let emit = |delegated: &str, excluded: &str| {
            super::emit(delegated.parse().unwrap(), excluded.parse().unwrap())
        };
        // The example of section 4.2: of 2001:db8:dead:bee0::/59 the prefix 2001:db8:dead:beef::/64, its five last bits.
        let said = emit("2001:db8:dead:bee0::/59", "2001:db8:dead:beef::/64");
        assert_eq!(said.as_deref(), Some(&[0, 67, 0, 2, 64, 0x78][..]));
        let said = emit("2001:db8::/48", "2001:db8:0:1234::/64");
        assert_eq!(said.as_deref(), Some(&[0, 67, 0, 3, 64, 0x12, 0x34][..]));
        let said = emit("2001:db8::/56", "2001:db8:0:12::/63");
        assert_eq!(said.as_deref(), Some(&[0, 67, 0, 2, 63, 0x12][..]));
        let said = emit("::/0", "2001:db8::1/128").map(|said| said.len());
        assert_eq!(said, Some(4 + 1 + 16));
        assert_eq!(emit("2001:db8::/56", "2001:db8::/56"), None);
        assert_eq!(emit("2001:db8::/56", "2001:db8::/48"), None);
        assert_eq!(emit("2001:db8::/56", "2001:db8:1::/64"), None);
    }
}
