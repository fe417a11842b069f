//! Sessions with TSP brokers: sockets and timers around [`crate::tsp::client`], and the search for a broker that gives a
//! tunnel.
//!
//! A tunnel in UDP is asked for again through the running router, from the port that it runs by. Knows nothing of what
//! becomes of a tunnel.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::tsp_wish::Job;
use crate::auth::Identity;
use crate::router::Voice;
use crate::tsp::client::{Client, End, Granted, Login, Output, Transport, Wish, echo_request, is_echo_reply};
use crate::tsp::codec::{PORT, Version};
use crate::tsp::search::{Place, Search, Step};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// The most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 3;
/// How often brokers of a list are asked how near they are, and how long each question waits.
const ECHOES: u32 = 3;
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
/// The largest datagram that is read.
const LARGEST: usize = 8192;

/// A session that has given a tunnel.
pub(super) struct Won {
    /// What was given.
    pub(super) granted: Granted,
    /// The ends of the session.
    pub(super) local: SocketAddrV4,
    pub(super) server: SocketAddrV4,
    /// Who gave it, and in which version.
    at: Place,
    version: Version,
    /// Kept open as long as the tunnel lives: servers of old may look at it.
    _stream: Option<TcpStream>,
}

/// Where datagrams go and come.
enum Wire<'a> {
    Socket(UdpSocket),
    /// The running router's port; the ends.
    Router(&'a mut Voice, SocketAddrV4, SocketAddrV4),
}

impl Wire<'_> {
    /// What cannot be sent now is sent again.
    async fn send(&self, datagram: Vec<u8>) {
        match self {
            Self::Socket(socket) => drop(socket.send(&datagram).await),
            Self::Router(voice, local, server) => voice.say(*local, *server, datagram),
        }
    }

    /// The next datagram from the server; `None`: nobody listens there.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Socket(socket) => {
                let mut octets = vec![0; LARGEST];
                let len = socket.recv(&mut octets).await.ok()?;
                octets.truncate(len);
                Some(octets)
            }
            Self::Router(voice, _, server) => loop {
                let letter = voice.hear().await?;
                if letter.remote == *server {
                    return Some(letter.octets);
                }
            },
        }
    }
}

/// Who asks.
pub(super) struct Asker<'a> {
    /// For what.
    pub(super) job: &'a Job,
    /// What times are counted from.
    pub(super) started: Instant,
}

impl Asker<'_> {
    /// Asks brokers until one gives a tunnel.
    pub(super) async fn find(&self) -> anyhow::Result<Result<Won, End>> {
        let mut search = Search::new(self.job.target.place.clone(), self.job.target.mode);
        loop {
            match search.step() {
                Step::Over(end) => return Ok(Err(end)),
                Step::Time(places) => search.handle_times(&self.time_all(&places).await),
                Step::Ask { at, over, version } => {
                    tracing::debug!("asking {at} by {over}, TSP {version}");
                    match self.ask(&at, over, version).await? {
                        Ok(won) => return Ok(Ok(won)),
                        Err(end) => {
                            tracing::debug!("{at} by {over}: {end}");
                            search.handle_end(end);
                        }
                    }
                }
            }
        }
    }

    /// Asks for a tunnel in UDP again, from the port that it runs by.
    pub(super) async fn ask_again(&self, won: &Won, voice: &mut Voice) -> Result<Won, End> {
        voice.forget();
        let wire = Wire::Router(voice, won.local, won.server);
        self.ask_by_udp(&won.at, wire, (won.local, won.server), won.version).await
    }

    /// A session with each address of a broker, until one answers.
    async fn ask(&self, at: &Place, over: Transport, version: Version) -> anyhow::Result<Result<Won, End>> {
        let addresses = match find(at).await {
            Ok(addresses) => addresses,
            Err(why) => return Ok(Err(End::Lost(format!("{why:#}")))),
        };
        for server in addresses {
            let done = match over {
                Transport::Udp => {
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await;
                    let socket = socket.context("cannot open a UDP socket")?;
                    if let Err(why) = socket.connect(server).await {
                        return Ok(Err(End::Lost(format!("cannot reach {server}: {why}"))));
                    }
                    let SocketAddr::V4(local) = socket.local_addr()? else { return Ok(Err(End::Silent)) };
                    self.ask_by_udp(at, Wire::Socket(socket), (local, server), version).await
                }
                Transport::Tcp => self.ask_by_tcp(at, server, version).await?,
            };
            if !matches!(done, Err(End::Silent)) {
                return Ok(done);
            }
        }
        Ok(Err(End::Silent))
    }

    async fn ask_by_udp(
        &self,
        at: &Place,
        mut wire: Wire<'_>,
        (local, server): (SocketAddrV4, SocketAddrV4),
        version: Version,
    ) -> Result<Won, End> {
        let mut client = self.client(at, *local.ip(), version, Transport::Udp);
        loop {
            for output in client.poll_output() {
                match output {
                    Output::Send(datagram) => wire.send(datagram).await,
                    Output::Up(granted) => {
                        return Ok(Won { granted, local, server, at: at.clone(), version, _stream: None });
                    }
                    Output::Over(end) => return Err(end),
                }
            }
            let Some(due) = client.poll_timeout() else { return Err(End::Silent) };
            tokio::select! {
                heard = wire.hear() => match heard {
                    Some(octets) => client.handle_datagram(&octets, self.started.elapsed()),
                    None => client.handle_end(),
                },
                () = tokio::time::sleep_until((self.started + due).into()) => {
                    client.handle_timeout(self.started.elapsed());
                }
            }
        }
    }

    async fn ask_by_tcp(
        &self,
        at: &Place,
        server: SocketAddrV4,
        version: Version,
    ) -> anyhow::Result<Result<Won, End>> {
        let Ok(Ok(mut stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(server)).await else {
            return Ok(Err(End::Silent));
        };
        let SocketAddr::V4(local) = stream.local_addr()? else { return Ok(Err(End::Silent)) };
        let _or_slower = stream.set_nodelay(true);
        let mut client = self.client(at, *local.ip(), version, Transport::Tcp);
        let mut octets = vec![0; 4096];
        loop {
            for output in client.poll_output() {
                match output {
                    Output::Send(said) => {
                        if stream.write_all(&said).await.is_err() {
                            client.handle_end();
                        }
                    }
                    Output::Up(granted) => {
                        let at = at.clone();
                        return Ok(Ok(Won { granted, local, server, at, version, _stream: Some(stream) }));
                    }
                    Output::Over(end) => return Ok(Err(end)),
                }
            }
            // The end of a session is in its outputs: none is left behind.
            let Some(due) = client.poll_timeout() else { continue };
            tokio::select! {
                read = stream.read(&mut octets) => match read {
                    Ok(len) if len > 0 => client.handle_input(&octets[..len], self.started.elapsed()),
                    Ok(_) | Err(_) => client.handle_end(),
                },
                () = tokio::time::sleep_until((self.started + due).into()) => {
                    client.handle_timeout(self.started.elapsed());
                }
            }
        }
    }

    fn client(&self, at: &Place, local: Ipv4Addr, version: Version, over: Transport) -> Client {
        let Job { target, secret, print, .. } = self.job;
        let login = match target.is_anonymous() {
            true => Login::Anonymous,
            false => {
                let who = Identity { user: target.user.clone(), secret: secret.clone() };
                Login::Account { who, only: target.only }
            }
        };
        // The old servers know themselves by the name that their users write.
        let place = if *at == target.place { target.text.clone() } else { at.to_string() };
        let wish = Wish {
            login,
            mode: target.mode,
            claimed: target.claimed.unwrap_or(local),
            keepalive: target.keepalive,
            prefix: target.prefix,
            dns: target.dns.clone(),
            place,
            decline: *print,
        };
        Client::new(wish, version, over, rand::random(), self.started.elapsed())
    }

    /// How long each of the brokers takes to answer.
    async fn time_all(&self, places: &[Place]) -> Vec<Option<Duration>> {
        let timed = places.iter().map(|place| time(place, self.started));
        futures_util::future::join_all(timed).await
    }
}

/// The IPv4 addresses of a broker.
async fn find(at: &Place) -> anyhow::Result<Vec<SocketAddrV4>> {
    let Place { host, port } = at;
    let found = tokio::net::lookup_host((host.as_str(), *port)).await;
    let found = found.with_context(|| format!("cannot find {host}"))?;
    let ipv4 = |addr: SocketAddr| match addr {
        SocketAddr::V4(addr) => Some(addr),
        SocketAddr::V6(_) => None,
    };
    let all: Vec<SocketAddrV4> = found.filter_map(ipv4).take(MOST_ADDRESSES).collect();
    anyhow::ensure!(!all.is_empty(), "{host} has no IPv4 address");
    Ok(all)
}

/// How long a broker takes to answer `ECHO REQUEST`, which it does at the usual port whatever port it is asked at else.
async fn time(place: &Place, clock: Instant) -> Option<Duration> {
    let addr = *find(place).await.ok()?.first()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect((*addr.ip(), PORT)).await.ok()?;
    let mut octets = [0; 256];
    for _ in 0..ECHOES {
        let asked = Instant::now();
        let _or_asked_again = socket.send(&echo_request(clock.elapsed())).await;
        let answered = async {
            loop {
                let len = socket.recv(&mut octets).await?;
                if is_echo_reply(&octets[..len]) {
                    return std::io::Result::Ok(());
                }
            }
        };
        match tokio::time::timeout(ECHO_PATIENCE, answered).await {
            Ok(Ok(())) => return Some(asked.elapsed()),
            Ok(Err(_)) => return None,
            Err(_) => {}
        }
    }
    None
}
