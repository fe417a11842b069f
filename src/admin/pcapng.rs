//! Packets as a pcapng file (draft-ietf-opsawg-pcapng): one section, IPv6 without a link header, verdicts as comments.
//! Datagrams that are no IPv6 have an interface of their own, whose link type says nothing about their octets.
//!
//! Little endian throughout. Knows octets and times, not what they mean.

/// Raw IPv6, LINKTYPE_IPV6 of the registry of link types.
const LINK_IPV6: u16 = 229;
/// For private use, LINKTYPE_USER0 there.
const LINK_OTHER: u16 = 147;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const COMMENT: u16 = 1;
const NAME: u16 = 2;
const APPLICATION: u16 = 4;

/// The blocks before the first packet: the section, and one interface for each name, numbered from 0; the last one is for
/// what is no IPv6.
pub fn head(application: &str, interfaces: &[&str], longest: u32) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
    section.extend_from_slice(&[1, 0, 0, 0]);
    // The section's length is not known beforehand.
    section.extend_from_slice(&u64::MAX.to_le_bytes());
    option(&mut section, APPLICATION, application.as_bytes());
    end_options(&mut section);
    let mut out = block(SECTION, &section);
    for (n, name) in interfaces.iter().enumerate() {
        let mut body = Vec::new();
        let link = if n + 1 == interfaces.len() { LINK_OTHER } else { LINK_IPV6 };
        body.extend_from_slice(&link.to_le_bytes());
        body.extend_from_slice(&[0, 0]);
        body.extend_from_slice(&longest.to_le_bytes());
        option(&mut body, NAME, name.as_bytes());
        end_options(&mut body);
        out.extend(block(INTERFACE, &body));
    }
    out
}

/// One packet at `at_us` microseconds since 1970: its first octets and how many it had.
pub fn packet(interface: u32, at_us: u64, bytes: &[u8], len: usize, comment: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes.len() + comment.len() + 64);
    let words = [interface, (at_us >> 32) as u32, at_us as u32, bytes.len() as u32, len as u32];
    words.iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
    body.extend_from_slice(bytes);
    pad(&mut body);
    option(&mut body, COMMENT, comment.as_bytes());
    end_options(&mut body);
    block(PACKET, &body)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes()[..], &len, body, &len].concat()
}

/// An option; its value is cut at what its length field can say.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(out);
}

fn end_options(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind and body of each block, the two lengths compared.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |at: &[u8]| u32::from_le_bytes([at[0], at[1], at[2], at[3]]);
        let mut all = Vec::new();
        while !file.is_empty() {
            let len = word(&file[4..]) as usize;
            assert!(len.is_multiple_of(4) && word(&file[len - 4..]) as usize == len);
            all.push((word(file), file[8..len - 4].to_vec()));
            file = &file[len..];
        }
        all
    }

    #[test]
    fn blocks_are_whole_and_padded() {
        let mut file = head("sixway", &["kernel", "datagram"], 2048);
        file.extend(packet(1, (7 << 32) + 9, &[0x60; 41], 1500, "dropped: too_big"));
        let all = blocks(&file);
        assert_eq!(
            all.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [SECTION, INTERFACE, INTERFACE, PACKET]
        );
        assert_eq!((all[1].1[0], all[2].1[0]), (229, 147));
        let body = &all[3].1;
        assert_eq!(body[..20], [1, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 41, 0, 0, 0, 0xdc, 5, 0, 0]);
        assert_eq!(body[20..61], [0x60; 41]);
        assert_eq!(body[64..68], [1, 0, 16, 0]);
        assert_eq!(&body[68..84], b"dropped: too_big");
        assert_eq!(body[84..], [0; 4]);
    }
}
