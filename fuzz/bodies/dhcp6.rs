//! `dhcp6s.conf` with its small files, and the control protocol: nothing panics, every mistake has a line of the text,
//! nothing is obeyed that is not signed.

use std::io;

use sixway::compat::dhcp6sconf::{Surroundings, load};
use sixway::compat::{base64, ctlkey, duidfile};
use sixway::dhcp6ctl::codec::{Message, Order, emit};
use sixway::dhcp6ctl::session::{Heard, Inbox, Judge, Refusal, Side};
use zeroize::Zeroizing;

const NOW: u64 = 1_700_000_000;

/// Every file includes the text itself, and the clock stands.
struct Room<'a>(&'a [u8]);

impl Surroundings for Room<'_> {
    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        if file.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(self.0.to_vec()) }
    }

    fn has_interface(&self, name: &str) -> bool {
        name.len() < 4
    }

    fn now(&self) -> u64 {
        NOW
    }

    fn today(&self) -> (i16, i8, i8) {
        (2023, 11, 14)
    }

    fn unix_time(&self, (year, _, day): (i16, i8, i8), (hour, _): (i8, i8)) -> Option<u64> {
        u64::try_from(i64::from(year) * 86400 * 366 + i64::from(day) * 86400 + i64::from(hour)).ok()
    }
}

pub(crate) fn dhcp6sconf(octets: &[u8]) {
    let lines = octets.iter().filter(|octet| **octet == b'\n').count() + 1;
    match load("fuzz", octets, &Room(octets)) {
        Ok(loaded) => assert!(loaded.notes.iter().all(|note| note.place.line <= lines)),
        Err(wrong) => assert!(!wrong.is_empty() && wrong.iter().all(|one| one.place.line <= lines)),
    }
    if let Ok(duid) = duidfile::parse(octets) {
        assert_eq!(duidfile::parse(&duidfile::emit(&duid)), Ok(duid));
    }
    let _either = (ctlkey::parse(octets), base64::decode(octets));
}

pub(crate) fn dhcp6ctl(octets: &[u8]) {
    let Some((how, octets)) = octets.split_first() else { return };
    let side = if how & 1 == 1 { Side::Server } else { Side::Client };
    let secret = Zeroizing::new(vec![*how; 16]);
    let mut judge = Judge::new(side, secret.clone(), 0);
    let mut inbox = Inbox::default();
    for piece in octets.chunks(1 + usize::from(how >> 2)) {
        match inbox.handle_input(piece) {
            Heard::Part => {}
            Heard::TooLarge => break,
            Heard::Whole(message) => {
                assert!(judge.handle_message(message, NOW).is_err(), "nobody guesses a digest");
                break;
            }
        }
    }
    signed(octets, &secret, side);
}

/// Whatever the arguments are: an order that is understood is understood again when it is said again.
fn signed(octets: &[u8], secret: &Zeroizing<Vec<u8>>, side: Side) {
    let Some(message) = Message::parse(octets) else { return };
    let order = if side == Side::Server { message.server_order() } else { message.client_order() };
    let Ok(order) = order else { return };
    let Some(said) = emit(&order, NOW as u32, secret) else { return };
    let mut judge = Judge::new(side, secret.clone(), 0);
    assert_eq!(judge.handle_message(&said, NOW), Ok::<Order, Refusal>(order));
    assert_eq!(judge.handle_message(&said, NOW), Err(Refusal::Repeated));
}
