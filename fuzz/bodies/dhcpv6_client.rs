//! Any answers to the DHCPv6 client, as if to what it has just said: nothing panics, nothing grows, what it holds is sound, and
//! what it says can be read.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use sixway::dhcpv6::client::{Client, Output, Want, Wish};
use sixway::dhcpv6::codec::{IaKind, Packet};

/// What the client is called.
const US: [u8; 3] = [0, 4, 7];

/// Messages one behind the other: seconds that pass, a length, the octets behind the number of the exchange.
pub(crate) fn dhcpv6_client(mut octets: &[u8]) {
    let want = |kind, len| Want { kind, iaid: 7, len };
    let wants = vec![want(IaKind::Prefix, 56), want(IaKind::Address, 0)];
    let wish = Wish { duid: US.to_vec(), wants, rapid_commit: true };
    let mut client = Client::new(wish, StdRng::seed_from_u64(7));
    let mut now = Duration::from_secs(1000);
    client.start(now);
    let mut xid = [0; 3];
    while let [seconds, len, rest @ ..] = octets {
        now += Duration::from_secs(u64::from(*seconds));
        client.handle_timeout(now);
        said(&mut client, &mut xid);
        let (message, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        if let [kind, tail @ ..] = message {
            let ours = [&[0, 1, 0, US.len() as u8][..], &US].concat();
            let whole = [&[*kind][..], &xid, &ours, tail].concat();
            let _either = client.handle_message(&whole, now);
        }
        match seconds {
            250 => client.stop(now),
            251 => client.start(now),
            252 => client.renew(now),
            _ => {}
        }
        said(&mut client, &mut xid);
        let held = client.lease().held;
        assert!(held.len() <= 2 * 16, "a few values of each");
        assert!(
            held.iter().all(|one| one.valid.is_none_or(|until| one.preferred.is_some_and(|at| at <= until)))
        );
        octets = rest;
    }
}

fn said(client: &mut Client<StdRng>, xid: &mut [u8; 3]) {
    while let Some(output) = client.poll_output() {
        if let Output::Send(octets) = output {
            let Ok(Packet::Message(message)) = Packet::parse(&octets) else {
                panic!("it says what it can read")
            };
            *xid = message.xid;
        }
    }
}
