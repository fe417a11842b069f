//! A DTCP client made of one TCP connection: says lines, hears lines, and knows how a user is proven.
//!
//! Sets up no tunnel: what the server grants is for the story to use. Users live in a dump of `pop.auth`. Most stories begin
//! with [`served`].

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use md5::{Digest, Md5};
use socket2::{Domain, Socket, Type};

use crate::lab::must;
use crate::{PATIENCE, Rig, Router, Space};

/// What address pairs begin with.
pub const PAIRS: &str = "fd00:2:f::";
/// What is routed to foo.
pub const FOO_NET: &str = "fd00:2:7::/48";

/// The rig with a server in S: users foo/bar and eve/adam, and more keys for `[dtcp]`.
#[track_caller]
pub fn served(story: &str, keys: &str) -> Option<(Rig, Router)> {
    let rig = Rig::new_or_skip(story)?;
    let server = Router::start(&rig.lab, &rig.s, &server_config(&rig, keys));
    Some((rig, server))
}

/// That server's configuration. The route table is written unless the story has one already.
pub fn server_config(rig: &Rig, keys: &str) -> String {
    let secrets = rig.lab.write("pop.auth", &popauth(&[("foo", "bar"), ("eve", "adam")]));
    let routes = rig.lab.path("routetable");
    if !routes.exists() {
        rig.lab.write("routetable", &format!("foo {FOO_NET}  # his\neve - gif7\n"));
    }
    let dtcp = format!(
        "[store]\npath = \"{}\"\n[dtcp]\nprefix = \"{PAIRS}/64\"\npopauth = \"{}\"\nroutetable = \"{}\"\n{keys}\n",
        rig.lab.path("store.db").display(),
        secrets.display(),
        routes.display()
    );
    Rig::server_config("", &dtcp)
}

/// One connection to the server.
#[derive(Debug)]
pub struct Dtcp {
    lines: BufReader<TcpStream>,
    /// What the server greeted with.
    pub challenge: String,
}

impl Dtcp {
    /// Connect from this address of the space to port 20200 of the server; hears the greeting.
    #[track_caller]
    pub fn connect(space: &Space, from: &str, server: &str) -> Self {
        Self::connect_to(space, from, &format!("{server}:20200"))
    }

    /// The same to another port.
    #[track_caller]
    pub fn connect_to(space: &Space, from: &str, server: &str) -> Self {
        let mut client = Self::over(Self::dial(space, from, server));
        assert!(client.is_greeted(PATIENCE), "no greeting");
        client
    }

    /// A client over a connection that has not been greeted.
    pub fn over(stream: TcpStream) -> Self {
        Self { lines: BufReader::new(stream), challenge: String::new() }
    }

    /// Whether the server has greeted, within `patience`.
    #[track_caller]
    pub fn is_greeted(&mut self, patience: Duration) -> bool {
        if self.challenge.is_empty() {
            must(self.lines.get_ref().set_read_timeout(Some(patience)), "set a timeout");
            let mut line = String::new();
            let heard = self.lines.read_line(&mut line).is_ok();
            must(self.lines.get_ref().set_read_timeout(Some(PATIENCE)), "set a timeout");
            line.split(' ').nth(1).filter(|_| heard).unwrap_or_default().clone_into(&mut self.challenge);
        }
        self.challenge.len() == 32
    }

    /// A connection that says and hears nothing yet.
    #[track_caller]
    pub fn dial(space: &Space, from: &str, server: &str) -> TcpStream {
        let here: SocketAddr = must(format!("{from}:0").parse(), "read an address");
        let there: SocketAddr = must(server.parse(), "read an address");
        space.inside(|| {
            let socket = must(Socket::new(Domain::IPV4, Type::STREAM, None), "open a socket");
            must(socket.bind(&here.into()), "bind a socket");
            must(socket.connect_timeout(&there.into(), PATIENCE), &format!("connect to {there}"));
            let stream = TcpStream::from(socket);
            must(stream.set_read_timeout(Some(PATIENCE)), "set a timeout");
            stream
        })
    }

    /// Say a line.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        println!("    C: {line}");
        must(self.lines.get_mut().write_all(format!("{line}\r\n").as_bytes()), "say a line");
    }

    /// The next line, without its end; empty when the server has ended the connection by FIN.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        must(self.lines.read_line(&mut line), "hear a line");
        println!("    S: {}", line.trim_end());
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    /// Say a line and hear the answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    /// Ask for a tunnel of this type (with more words behind it, if any).
    #[track_caller]
    pub fn tunnel(&mut self, user: &str, secret: &str, kind: &str) -> String {
        let digest = digest(user, &self.challenge, secret);
        self.ask(&format!("tunnel {user} {digest} {kind}"))
    }

    /// Whether the server has ended the connection in good order, saying nothing more, within `patience`.
    pub fn is_ended(&mut self, patience: Duration) -> bool {
        must(self.lines.get_ref().set_read_timeout(Some(patience)), "set a timeout");
        let ended = match self.lines.read(&mut [0; 64]) {
            Ok(len) => len == 0,
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(why) => panic!("no end in good order: {why}"),
        };
        must(self.lines.get_ref().set_read_timeout(Some(PATIENCE)), "set a timeout");
        ended
    }
}

/// What proves a user.
pub fn digest(user: &str, challenge: &str, secret: &str) -> String {
    let hash = Md5::digest(format!("{user}{challenge}{secret}"));
    hash.iter().fold(String::new(), |mut text, octet| {
        let _infallible = write!(text, "{octet:02X}");
        text
    })
}

/// The dump of a `pop.auth` with these users.
pub fn popauth(users: &[(&str, &str)]) -> String {
    let mut text = "VERSION=3\nformat=bytevalue\ntype=hash\nHEADER=END\n".to_owned();
    let mut line = |octets: &mut dyn Iterator<Item = u8>| {
        let digits: String = octets.chain([0]).map(|octet| format!("{octet:02x}")).collect();
        text += &format!(" {digits}\n");
    };
    for (user, secret) in users {
        line(&mut user.bytes());
        line(&mut secret.bytes().map(|octet| !octet));
    }
    text + "DATA=END\n"
}
