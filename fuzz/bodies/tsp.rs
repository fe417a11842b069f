//! Any octets to the parsers of TSP: lines, frames, UDP headers and documents. Nothing panics, nothing grows, and what is
//! understood is understood again when it is said again.

use sixway::tsp::codec::{Capability, Line, MAX_REQUEST, Status};
use sixway::tsp::framing::{Input, split_reply, unframe};
use sixway::tsp::header::Datagram;
use sixway::tsp::xml::{BrokerAt, Tunnel, emit_list};

pub(crate) fn tsp(octets: &[u8]) {
    let Some((how, octets)) = octets.split_first() else { return };
    match how % 4 {
        0 => line(octets),
        1 => stream(octets, 1 + usize::from(how >> 4)),
        2 => header(octets, how & 4 == 4),
        _ => document(octets),
    }
}

fn line(octets: &[u8]) {
    let line = Line::parse(octets);
    let said = line.emit();
    if !said.is_empty() && line != Line::Authenticate(String::new()) {
        assert_eq!(Line::parse(said.as_bytes()), line);
    }
    if let Some(capability) = Capability::parse(octets) {
        let _again = Capability::parse(capability.emit().as_bytes());
    }
    if let Some(status) = Status::parse(octets) {
        assert_eq!(Status::parse(status.emit().as_bytes()), Some(status));
    }
}

fn stream(octets: &[u8], piece: usize) {
    let (mut lines, mut frames) = (Input::default(), Input::default());
    for part in octets.chunks(piece) {
        lines.push(part);
        frames.push(part);
        while matches!(lines.line(), Ok(Some(_))) {}
        while matches!(frames.frame(), Ok(Some(_))) {}
        if lines.line().is_err() || frames.frame().is_err() {
            return;
        }
        assert!(lines.len() <= MAX_REQUEST && frames.len() <= MAX_REQUEST + 64);
    }
    let _either = lines.until(b"</tunnel>");
}

fn header(octets: &[u8], legacy: bool) {
    if let Some(Datagram::Message { header, payload }) = Datagram::parse(octets, legacy) {
        assert_eq!(header.wrap(payload), octets);
    }
    if let Ok(body) = unframe(octets) {
        assert!(body.len() <= MAX_REQUEST);
        let _either = split_reply(body);
    }
}

fn document(octets: &[u8]) {
    let _either = Tunnel::parse(octets);
    if let Some(broker) = std::str::from_utf8(octets).ok().and_then(BrokerAt::parse) {
        let list = Tunnel::parse(emit_list(std::slice::from_ref(&broker)).as_bytes()).unwrap();
        assert_eq!(list.brokers[0].0[0].text, broker.as_str());
    }
}
