//! The listening end: a few connections at a time, each for a short while, one message each; nothing is answered.
//!
//! Orders go to whoever owns the process; the connection closes when that owner is done with the order. Knows no DHCPv6.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::codec::Order;
use super::session::{Heard, Inbox, Judge, Refusal, Side};

/// How many connections are held; one more closes the oldest.
pub const CONNECTIONS: usize = 5;
/// How long a connection may take, to its message and until the order is carried out.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long no connection is taken when the system has no more descriptors or memory.
const PAUSE: Duration = Duration::from_millis(200);
/// Orders that wait for their owner.
const WAITING: usize = 16;

/// What has happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    accepted: AtomicU64,
    accept_failed: AtomicU64,
    ordered: AtomicU64,
    too_large: AtomicU64,
    wrong_time: AtomicU64,
    wrong_digest: AtomicU64,
    wrong_version: AtomicU64,
    repeated: AtomicU64,
    too_many: AtomicU64,
    unknown_command: AtomicU64,
    wrong_arguments: AtomicU64,
    cut_short: AtomicU64,
    looked: AtomicU64,
    too_slow: AtomicU64,
    crowded_out: AtomicU64,
    busy: AtomicU64,
}

impl Counts {
    /// All of them by name.
    pub fn all(&self) -> BTreeMap<String, u64> {
        let all = [
            ("accepted", &self.accepted),
            ("accept_failed", &self.accept_failed),
            ("ordered", &self.ordered),
            ("too_large", &self.too_large),
            ("wrong_time", &self.wrong_time),
            ("wrong_digest", &self.wrong_digest),
            ("wrong_version", &self.wrong_version),
            ("repeated", &self.repeated),
            ("too_many", &self.too_many),
            ("unknown_command", &self.unknown_command),
            ("wrong_arguments", &self.wrong_arguments),
            ("cut_short", &self.cut_short),
            ("looked", &self.looked),
            ("too_slow", &self.too_slow),
            ("crowded_out", &self.crowded_out),
            ("busy", &self.busy),
        ];
        all.into_iter().map(|(name, n)| (name.to_owned(), n.load(Ordering::Relaxed))).collect()
    }

    fn refused(&self, why: Refusal) {
        count(match why {
            Refusal::TooLarge => &self.too_large,
            Refusal::Time | Refusal::Before => &self.wrong_time,
            Refusal::Digest => &self.wrong_digest,
            Refusal::Version => &self.wrong_version,
            Refusal::Repeated => &self.repeated,
            Refusal::TooMany => &self.too_many,
            Refusal::Command => &self.unknown_command,
            Refusal::Arguments(_) => &self.wrong_arguments,
        });
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// An order that has been judged good.
#[derive(Debug)]
pub struct Ordered {
    /// What is to be done.
    pub order: Order,
    /// Dropped when it has been done: then the connection closes.
    pub done: oneshot::Sender<()>,
}

/// The running end; dropped, it listens no more.
#[derive(Debug)]
pub struct Control {
    accepting: JoinHandle<()>,
    counts: Arc<Counts>,
    at: SocketAddr,
}

impl Control {
    /// Listens at `at`; orders come out of the receiver.
    ///
    /// # Errors
    /// That it cannot listen.
    pub fn start(
        at: SocketAddr,
        side: Side,
        secret: Zeroizing<Vec<u8>>,
    ) -> io::Result<(Self, mpsc::Receiver<Ordered>)> {
        let socket = if at.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        let listener = socket.listen(CONNECTIONS as u32)?;
        let at = listener.local_addr()?;
        let (orders, ordered) = mpsc::channel(WAITING);
        let counts = Arc::new(Counts::default());
        let judge = Mutex::new(Judge::new(side, secret, now()));
        let house = Arc::new(House { judge, counts: counts.clone(), orders });
        let accepting = tokio::spawn(accept(listener, house));
        Ok((Self { accepting, counts, at }, ordered))
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// What has happened.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.all()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What all connections share.
#[derive(Debug)]
struct House {
    judge: Mutex<Judge>,
    counts: Arc<Counts>,
    orders: mpsc::Sender<Ordered>,
}

/// The clock in Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn accept(listener: TcpListener, house: Arc<House>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            count(&house.counts.accept_failed);
            sleep(PAUSE).await;
            continue;
        };
        count(&house.counts.accepted);
        open.retain(|one| !one.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            count(&house.counts.crowded_out);
            oldest.abort();
        }
        open.push_back(tokio::spawn(converse(stream, house.clone())).abort_handle());
    }
}

async fn converse(stream: TcpStream, house: Arc<House>) {
    match timeout(PATIENCE, listen(&stream, &house)).await {
        Ok(Ok(order)) => house.pass_on(order).await,
        Ok(Err(Unheard::Refused(why))) => {
            house.counts.refused(why);
            tracing::warn!(event = "control_refused", "a control command is refused: {why}");
        }
        Ok(Err(Unheard::Nothing)) => count(&house.counts.looked),
        Ok(Err(Unheard::Part)) => count(&house.counts.cut_short),
        Err(_) => count(&house.counts.too_slow),
    }
}

/// Why a connection has brought no order.
enum Unheard {
    /// Its end came before anything else: somebody has looked whether anybody listens, as dhcp6ctl does after its orders.
    Nothing,
    /// Its end came within a message.
    Part,
    Refused(Refusal),
}

/// Reads one message and judges it.
async fn listen(stream: &TcpStream, house: &House) -> Result<Order, Unheard> {
    let mut inbox = Inbox::default();
    let mut ended = Unheard::Nothing;
    loop {
        let mut octets = [0; 512];
        let read = match stream.readable().await {
            Ok(()) => stream.try_read(&mut octets),
            Err(why) => Err(why),
        };
        let len = match read {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => continue,
            Ok(0) | Err(_) => return Err(ended),
            Ok(len) => len,
        };
        ended = Unheard::Part;
        match inbox.handle_input(&octets[..len]) {
            Heard::Part => {}
            Heard::TooLarge => return Err(Unheard::Refused(Refusal::TooLarge)),
            Heard::Whole(message) => {
                let mut judge = house.judge.lock().unwrap_or_else(PoisonError::into_inner);
                return judge.handle_message(message, now()).map_err(Unheard::Refused);
            }
        }
    }
}

impl House {
    async fn pass_on(&self, order: Order) {
        tracing::info!(event = "control", order = order.to_string());
        let (done, carried_out) = oneshot::channel();
        if self.orders.try_send(Ordered { order, done }).is_err() {
            count(&self.counts.busy);
            tracing::warn!(
                event = "control_busy",
                "a control command is dropped: others are being carried out"
            );
            return;
        }
        count(&self.counts.ordered);
        // Either way it is over: the order is done, or takes longer than anybody should be held for.
        let _done_or_late = timeout(PATIENCE, carried_out).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp6ctl::codec::emit;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const KEY: &[u8] = b"0123456789abcdef";

    fn here() -> SocketAddr {
        "[::1]:0".parse().unwrap()
    }

    fn now() -> u32 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
    }

    /// Runs on a clock that jumps over every wait.
    fn paused<T>(story: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(story)
    }

    async fn closes(stream: &mut TcpStream) {
        let mut rest = Vec::new();
        let _end_or_reset =
            timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.expect("closes");
        assert!(rest.is_empty(), "nothing is ever answered");
    }

    #[test]
    fn good_orders_arrive_and_bad_ones_are_counted() {
        paused(async {
            let secret = Zeroizing::new(KEY.to_vec());
            let (control, mut orders) = Control::start(here(), Side::Server, secret).unwrap();
            let good = emit(&Order::Reload, now(), KEY).unwrap();
            let forged = emit(&Order::Stop, now(), b"wrong").unwrap();
            let late = emit(&Order::Stop, now() - 400, KEY).unwrap();
            let large = [&[0, 1, 0xff, 0xff][..], &[0; 2000]].concat();
            for octets in [&good, &good, &forged, &late, &large, &good[..20].to_vec(), &Vec::new()] {
                let mut stream = TcpStream::connect(control.at()).await.unwrap();
                stream.write_all(octets).await.unwrap();
                stream.shutdown().await.unwrap();
                if octets == &good
                    && let Ok(Some(ordered)) = timeout(Duration::from_millis(300), orders.recv()).await
                {
                    assert_eq!(ordered.order, Order::Reload);
                }
                closes(&mut stream).await;
            }
            let counts = control.counts();
            for (name, n) in [
                ("accepted", 7),
                ("ordered", 1),
                ("repeated", 1),
                ("wrong_digest", 1),
                ("wrong_time", 1),
                ("too_large", 1),
            ] {
                assert_eq!(counts[name], n, "{name}: {counts:?}");
            }
            assert_eq!((counts["cut_short"], counts["looked"]), (1, 1));
        });
    }

    #[test]
    fn a_sixth_connection_closes_the_oldest_and_a_good_order_still_comes_through() {
        paused(async {
            let secret = Zeroizing::new(KEY.to_vec());
            let (control, mut orders) = Control::start(here(), Side::Server, secret).unwrap();
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS {
                silent.push(TcpStream::connect(control.at()).await.unwrap());
            }
            let mut last = TcpStream::connect(control.at()).await.unwrap();
            last.write_all(&emit(&Order::Stop, now(), KEY).unwrap()).await.unwrap();
            assert_eq!(orders.recv().await.unwrap().order, Order::Stop);
            closes(&mut silent[0]).await;
            assert_eq!(control.counts()["crowded_out"], 1);
        });
    }
}
