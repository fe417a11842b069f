//! A TSP client that behaves as gogoc 1.2 does: one `recv` for each line, a NUL behind `AUTHENTICATE`, the same sequence of
//! waits for an answer over UDP, each repetition with a new time stamp.
//!
//! Sets up no tunnel: what the server grants is for the story to use, over the very socket that it was asked for by.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use md5::{Digest, Md5};

use crate::lab::must;
use crate::{PATIENCE, Space, rig};

/// When gogoc repeats a datagram, in seconds after the first, and when it gives up: once a server has answered, and before.
pub const LADDER: [u64; 8] = [0, 2, 4, 6, 8, 12, 20, 36];
/// Before any answer.
pub const FIRST_LADDER: [u64; 3] = [0, 2, 4];

/// A client of a server.
#[derive(Debug)]
pub struct Tsp {
    wire: Wire,
    sequence: u32,
    began: Instant,
    heard: bool,
    /// Datagrams sent, repetitions included.
    pub sent: u32,
}

#[derive(Debug)]
enum Wire {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// What a login proves, and how it went.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// The user.
    pub user: &'a str,
    /// The secret.
    pub secret: &'a str,
}

impl Tsp {
    /// Over UDP, from this address of the space to the server (`"10.71.0.1:3653"`).
    #[track_caller]
    pub fn udp(space: &Space, from: &str, server: &str) -> Self {
        let socket = space.inside(|| {
            let socket = must(UdpSocket::bind(from), "bind a TSP client");
            must(socket.connect(server), "connect a TSP client");
            socket
        });
        Self::with(Wire::Udp(socket))
    }

    /// Over TCP.
    #[track_caller]
    pub fn tcp(space: &Space, server: &str) -> Self {
        let stream = space.inside(|| must(TcpStream::connect(server), "connect a TSP client"));
        must(stream.set_read_timeout(Some(PATIENCE)), "set a timeout");
        must(stream.set_nodelay(true), "set TCP_NODELAY");
        Self::with(Wire::Tcp(stream))
    }

    fn with(wire: Wire) -> Self {
        // Every session of gogoc begins with this number.
        Self { wire, sequence: 0xF0, began: Instant::now(), heard: false, sent: 0 }
    }

    /// The UDP socket, for the tunnel.
    #[track_caller]
    pub fn socket(&self) -> &UdpSocket {
        match &self.wire {
            Wire::Udp(socket) => socket,
            Wire::Tcp(_) => panic!("there is no tunnel in a TCP connection"),
        }
    }

    /// A new session begins with the first sequence number again.
    pub fn begin_anew(&mut self) {
        self.sequence = 0xF0;
    }

    /// Say something and hear one answer: over TCP by a single `recv`, over UDP with repetitions.
    #[track_caller]
    pub fn ask(&mut self, text: &str) -> String {
        let answer = self.ask_octets(text.as_bytes());
        println!("    C: {}\n    S: {}", text.escape_debug(), answer.escape_debug());
        answer
    }

    #[track_caller]
    fn ask_octets(&mut self, octets: &[u8]) -> String {
        match &mut self.wire {
            Wire::Tcp(stream) => {
                must(stream.write_all(octets), "say a line");
                recv(stream)
            }
            Wire::Udp(_) => self.ask_by_datagram(octets),
        }
    }

    /// Say something that nothing is answered to over TCP.
    #[track_caller]
    pub fn tell(&mut self, text: &str) -> String {
        if let Wire::Tcp(stream) = &mut self.wire {
            must(stream.write_all(text.as_bytes()), "say a line");
            return String::new();
        }
        self.ask(text)
    }

    #[track_caller]
    fn ask_by_datagram(&mut self, octets: &[u8]) -> String {
        let begin = Instant::now();
        let ladder = if self.heard { &LADDER[..] } else { &FIRST_LADDER[..] };
        for (n, at) in ladder.iter().enumerate() {
            let until = begin + Duration::from_secs(ladder.get(n + 1).map_or(at + 2, |next| *next));
            self.send(octets);
            if let Some(answer) = self.hear(until) {
                self.heard = true;
                self.sequence += 1;
                return answer;
            }
        }
        panic!("no answer to {:?}", String::from_utf8_lossy(octets));
    }

    /// One datagram with the sequence number of the message and the time of now.
    #[track_caller]
    pub fn send(&mut self, octets: &[u8]) {
        let word = 0xF000_0000_u32 | self.sequence;
        let stamp = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(0);
        let datagram = [&word.to_be_bytes()[..], &stamp.to_be_bytes(), octets].concat();
        self.sent += 1;
        // An ICMP error for an earlier datagram is reported on this one.
        let _or_refused = self.socket().send(&datagram);
    }

    /// The answer to this message, whichever repetition it answers; what belongs to another message is passed over.
    #[track_caller]
    pub fn hear(&mut self, until: Instant) -> Option<String> {
        let socket = self.socket();
        let mut buffer = [0; 2048];
        loop {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            must(socket.set_read_timeout(Some(left)), "set a timeout");
            let len = match socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(_) => continue,
            };
            let word = (0xF000_0000_u32 | self.sequence).to_be_bytes();
            if len >= 8 && buffer[..4] == word {
                return Some(String::from_utf8_lossy(&buffer[8..len]).into_owned());
            }
        }
    }

    /// Version, capabilities and a login by DIGEST-MD5, as far as `200`; returns the capabilities.
    #[track_caller]
    pub fn log_in(&mut self, login: Login<'_>, place: &str) -> String {
        let capabilities = self.ask("VERSION=2.0.2\r\n");
        assert!(capabilities.ends_with("\r\n"), "without an end the last word is lost: {capabilities}");
        let challenge = self.ask("AUTHENTICATE DIGEST-MD5\r\n\0");
        let said = self.ask(&format!("{}\r\n", base64(&answer(&challenge, login, place))));
        assert!(said.starts_with("cnNwYXV0aD"), "rspauth is expected: {said}");
        assert!(said.len() < 80 && said.matches('\n').count() == 1, "one line at a time: {said}");
        let success = match &mut self.wire {
            Wire::Tcp(stream) => recv(stream),
            Wire::Udp(_) => self.ask(""),
        };
        assert!(success.starts_with("200 "), "{success}");
        capabilities
    }

    /// Ask for a tunnel of this type, being at `claimed`.
    #[track_caller]
    pub fn create(&mut self, kind: &str, claimed: &str, prefix: Option<u8>, keepalive: u32) -> Offer {
        let router = prefix.map_or_else(String::new, |len| {
            format!("  <router>\r\n   <prefix length=\"{len}\"/>\r\n  </router>\r\n")
        });
        let keepalive = if keepalive == 0 {
            String::new()
        } else {
            format!(
                "  <keepalive interval=\"{keepalive}\">\r\n    <address type=\"ipv6\">::</address>\r\n  </keepalive>\r\n"
            )
        };
        let xml = format!(
            "<tunnel action=\"create\" type=\"{kind}\" proxy=\"no\">\r\n <client>\r\n  <address type=\"ipv4\">{claimed}</address>\r\n\
             {keepalive}{router} </client>\r\n</tunnel>\r\n"
        );
        Offer::read(&self.ask(&framed(&xml)))
    }

    /// Accept what was offered.
    #[track_caller]
    pub fn accept(&mut self) {
        let said = self.tell(&framed("<tunnel action=\"accept\"></tunnel>\r\n"));
        let is_udp = matches!(self.wire, Wire::Udp(_));
        assert!(!is_udp || said.contains("200 "), "{said}");
    }
}

/// What a single `recv` of gogoc's gets.
#[track_caller]
fn recv(stream: &mut TcpStream) -> String {
    let mut buffer = [0; 4096];
    let len = must(stream.read(&mut buffer), "hear a line");
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

/// With its length in front.
pub fn framed(xml: &str) -> String {
    format!("Content-length: {}\r\n{xml}", xml.len())
}

/// A server's answer to `create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The status code.
    pub code: u32,
    /// The type that was decided.
    pub kind: String,
    /// Our end inside the tunnel, as the client knows it.
    pub server6: String,
    /// The client's address inside.
    pub client6: String,
    /// The network behind it, `ADDRESS/LENGTH`.
    pub prefix: Option<String>,
    /// Addresses of other brokers.
    pub brokers: Vec<String>,
    /// The whole text.
    pub text: String,
}

impl Offer {
    /// Reads it as gogoc does: by hand.
    #[track_caller]
    pub fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n").unwrap_or_default();
        let length: Option<usize> = head.strip_prefix("Content-length: ").and_then(|n| n.parse().ok());
        assert_eq!(length, Some(body.len()), "every octet is counted, and none follows: {text}");
        let code = body.get(..body.find(' ').unwrap_or(0)).and_then(|n| n.parse().ok()).unwrap_or(0);
        let of = |begin: &str, end: &str| -> Vec<String> {
            let parts = body.split(begin).skip(1);
            parts.filter_map(|rest| Some(rest.split_once(end)?.0.to_owned())).collect()
        };
        let inner = of("<address type=\"ipv6\">", "</address>");
        let short = |n: usize| inner.get(n).and_then(|a| a.parse::<std::net::Ipv6Addr>().ok());
        let text_of = |n: usize| short(n).map(|addr| addr.to_string()).unwrap_or_default();
        let prefix = of("<prefix length=\"", "</prefix>").pop().and_then(|text| {
            let (len, addr) = text.split_once("\">")?;
            Some(format!("{}/{len}", addr.parse::<std::net::Ipv6Addr>().ok()?))
        });
        let mut brokers = of("<broker>\r\n    <address type=\"ipv4\">", "</address>");
        brokers.extend(of("<broker>\r\n    <address type=\"dn\">", "</address>"));
        Self {
            code,
            kind: of("<tunnel action=\"info\" type=\"", "\"").pop().unwrap_or_default(),
            server6: text_of(0),
            client6: text_of(1),
            prefix,
            brokers,
            text: text.to_owned(),
        }
    }
}

/// The text that answers a challenge (RFC 2831 section 2.1.2).
fn answer(challenge: &str, login: Login<'_>, place: &str) -> String {
    let text = unbase64(challenge.trim_end());
    let field = |name: &str| {
        let found = text.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in {text}")).trim_matches('"').to_owned()
    };
    assert!(!text.contains(", "), "gogoc crashes over a blank behind a comma: {text}");
    let (realm, nonce, _) = (field("realm"), field("nonce"), (field("qop"), field("charset")));
    let Login { user, secret } = login;
    let cnonce = "1795214011";
    let inner = Md5::digest(format!("{user}:{realm}:{secret}"));
    let key = hex(&Md5::digest([&inner[..], format!(":{nonce}:{cnonce}").as_bytes()].concat()));
    let last = hex(&Md5::digest(format!("AUTHENTICATE:tsp/{place}")));
    let response = hex(&Md5::digest(format!("{key}:{nonce}:00000001:{cnonce}:auth:{last}")));
    format!(
        "charset=utf-8,username=\"{user}\",realm=\"{realm}\",nonce=\"{nonce}\",nc=00000001,cnonce=\"{cnonce}\",\
         digest-uri=\"tsp/{place}\",response={response},qop=auth"
    )
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _infallible = write!(text, "{octet:02x}");
        text
    })
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(text: &str) -> String {
    let mut out = String::new();
    for part in text.as_bytes().chunks(3) {
        let word =
            part.iter().chain(&[0, 0]).take(3).fold(0_u32, |word, octet| word << 8 | u32::from(*octet));
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n) & 63) as usize];
            out.push(if n <= part.len() { digit.into() } else { '=' });
        }
    }
    out
}

fn unbase64(text: &str) -> String {
    let values = text.bytes().filter_map(|octet| DIGITS.iter().position(|digit| *digit == octet));
    let values: Vec<usize> = values.collect();
    let octets = values.chunks(4).flat_map(|part| {
        let word = part.iter().chain(&[0, 0, 0]).take(4).fold(0, |word, value| word << 6 | value);
        let octets = [word >> 16 & 255, word >> 8 & 255, word & 255].map(|n| u8::try_from(n).unwrap_or(0));
        octets.into_iter().take(part.len() - 1)
    });
    String::from_utf8_lossy(&octets.collect::<Vec<u8>>()).into_owned()
}

/// Where the server of a rig is.
pub fn server() -> String {
    format!("{}:{}", rig::S4, rig::UDP_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_both_ways() {
        for text in ["", "a", "ab", "abc", "realm=\"x\""] {
            assert_eq!(unbase64(&base64(text)), text);
        }
        assert_eq!(base64("ab"), "YWI=");
    }
}
