//! A TCP socket that a control protocol listens at, and who is let in: opened, accepted from, and never at the cost of the
//! rest of the router.
//!
//! The last descriptors are left to status, the store, UDP tunnels and hooks: a connection that would take one of them is
//! closed at once. Knows no protocol.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

/// Descriptors left to the rest of the router.
const KEPT_FREE: u64 = 64;
/// How often what fails for every connection is logged.
const COMPLAINT: Duration = Duration::from_secs(60);
/// How long no connection is taken when the system has no more descriptors or memory.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections that wait to be taken.
const BACKLOG: u32 = 4096;

/// Who was not let in, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// The system gave no connection.
    pub accept_failed: AtomicU64,
    /// It was closed at once: one of the last descriptors.
    pub out_of_files: AtomicU64,
}

/// Both ends of a connection: the client's, then ours.
pub type Ends = (SocketAddrV4, SocketAddrV4);

/// Listens.
///
/// # Errors
/// What the system refuses.
pub fn listen(at: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at.into())?;
    socket.listen(BACKLOG)
}

/// What to say where that failed; `protocol` is `TSP`, its table `[tsp]`.
pub fn refused(protocol: &str, at: SocketAddrV4, why: &io::Error) -> anyhow::Error {
    let causes = [
        (io::ErrorKind::AddrInUse, "; another server has that port: `ss -ltnp` names it"),
        (io::ErrorKind::AddrNotAvailable, "; this host does not have that address: see `ip -4 address`"),
        (io::ErrorKind::PermissionDenied, "; ports below 1024 need root or CAP_NET_BIND_SERVICE"),
    ];
    let cause = causes.iter().find(|(kind, _)| *kind == why.kind()).map_or("", |(_, text)| text);
    let table = protocol.to_ascii_lowercase();
    anyhow::anyhow!(
        "cannot listen for {protocol} on TCP {at}: {why}{cause}; choose another with [{table}] listen"
    )
}

/// Takes connections for ever; each goes to `take`.
pub async fn accept(
    listener: TcpListener,
    protocol: &'static str,
    counts: &Counts,
    take: impl Fn(TcpStream, Ends),
) {
    let (mut failing, mut full) = (Complaint::default(), Complaint::default());
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_scarce(&stream) => {
                counts.out_of_files.fetch_add(1, Ordering::Relaxed);
                full.say(|| {
                    tracing::warn!(
                        event = "out_of_files",
                        "{protocol} connections are refused; raise the limit of open files (LimitNOFILE=)"
                    );
                });
            }
            Ok((stream, peer)) => {
                if let (SocketAddr::V4(peer), Ok(SocketAddr::V4(local))) = (peer, stream.local_addr()) {
                    take(stream, (peer, local));
                }
            }
            Err(why) => {
                counts.accept_failed.fetch_add(1, Ordering::Relaxed);
                failing.say(|| {
                    tracing::warn!(
                        event = "accept_failed",
                        why = why.to_string(),
                        "{protocol} connections wait; raise the limit of open files"
                    );
                });
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a connection has one of the last descriptors that this process may have. The system gives the lowest that is
/// free, so its number says how many are in use.
fn is_scarce(stream: &TcpStream) -> bool {
    let Ok((most, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return false };
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
    number >= most.saturating_sub(KEPT_FREE.min(most / 4))
}

/// Something that would be logged without end.
#[derive(Default)]
struct Complaint(Option<Instant>);

impl Complaint {
    fn say(&mut self, log: impl FnOnce()) {
        if self.0.is_none_or(|at| at.elapsed() > COMPLAINT) {
            log();
            self.0 = Some(Instant::now());
        }
    }
}
