//! Clients from outside: TCP connections, each from an address of its own.
//!
//! On one machine `ip route add local 10.64.0.0/10 dev lo` makes all those addresses its own.

use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::net::{TcpSocket, TcpStream};

use super::Dial;
use super::dtcp::{Session, Users};

/// DTCP over TCP.
#[derive(Debug)]
pub struct DtcpDial {
    /// Where the server listens.
    pub server: SocketAddrV4,
    /// The first client's address; the others' follow it. `None`: the system chooses.
    pub from: Option<Ipv4Addr>,
    /// Who they are.
    pub users: Users,
}

impl Dial for DtcpDial {
    type Session = Session<TcpStream>;

    async fn open(&self, n: u32) -> Result<Self::Session, String> {
        let stream = connect(self.server, self.from, n).await?;
        Session::open(stream, self.users.wish(n)).await
    }

    async fn ping(session: &mut Self::Session) -> Result<(), String> {
        session.ping().await
    }

    async fn quit(session: Self::Session) {
        session.quit().await;
    }
}

/// A connection of client `n`.
async fn connect(server: SocketAddrV4, from: Option<Ipv4Addr>, n: u32) -> Result<TcpStream, String> {
    let socket = TcpSocket::new_v4().map_err(|why| format!("no socket: {why}"))?;
    if let Some(from) = from {
        let own = Ipv4Addr::from(u32::from(from).saturating_add(n));
        socket.bind(SocketAddrV4::new(own, 0).into()).map_err(|why| format!("cannot bind: {why}"))?;
    }
    socket.connect(server.into()).await.map_err(|why| format!("cannot connect: {why}"))
}
