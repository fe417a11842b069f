//! The listening end of the admin socket: takes lines, passes questions to the control loop, writes its answers.
//!
//! Bounded: so many conversations, so long a line, so long a wait.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::packet::Seen;
use super::{MOST_REQUEST, Reply, Request, Response, client};

const CONVERSATIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(30);

/// A question on its way to the control loop, and where its answer goes.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// Who waits.
    pub reply: oneshot::Sender<Reply>,
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another instance listens there.
    #[error(
        "another sixway is already running behind {path}: process {pid} ({command}); stop it, or give this one its own \
         [router] tun and [admin] socket"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Its process.
        pid: i32,
        /// That process's command line.
        command: String,
    },
    /// Something else is there, which is not ours to remove.
    #[error("{0} exists and is no socket; choose another place with [admin] socket, or remove it")]
    NoSocket(PathBuf),
    /// The system refused.
    #[error(
        "cannot open the admin socket {path}: {cause}; run with sudo, or (without rights: `sixway run --help` on --unshare) choose a place that you may write with [admin] socket = \"...\""
    )]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The open socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Listens at `path`. A file left over by a dead instance is replaced.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        if let Some((pid, command)) = living_owner(path) {
            return Err(BindError::InUse { path: path.to_owned(), pid, command });
        }
        let system = |source| BindError::System { path: path.to_owned(), cause: source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(system)?;
        }
        remove_left_over(path)?;
        // Nobody else may connect at any moment; nothing else makes files while this process has one thread of control.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        nix::sys::stat::umask(before);
        Ok(Self { listener: listener.map_err(system)?, path: path.to_owned() })
    }

    /// Takes questions for ever and passes them on.
    pub async fn serve(&self, questions: mpsc::Sender<Question>) {
        let places = std::sync::Arc::new(Semaphore::new(CONVERSATIONS));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            // No place free: the caller sees its connection closed at once.
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let questions = questions.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut read = BufReader::new(read.take(MOST_REQUEST as u64));
                let talked = tokio::time::timeout(PATIENCE, talk(&mut read, &mut write, questions)).await;
                if let Ok(Ok(Some(more))) = talked {
                    let _whoever_has_left_sees_no_more = stream_to(read, write, more).await;
                }
                drop(place);
            });
        }
    }
}

/// Who listens there, and its command line. One without has been killed and is not quite gone: it is waited for, two seconds.
fn living_owner(path: &Path) -> Option<(i32, String)> {
    let mut left = 40;
    loop {
        let pid = client::owner(path)?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        left -= 1;
        if !command.is_empty() || left == 0 {
            return Some((pid, command.replace('\0', " ").trim().to_owned()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Removes a socket that nobody listens on, and nothing else.
fn remove_left_over(path: &Path) -> Result<(), BindError> {
    let system = |cause| BindError::System { path: path.to_owned(), cause };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(system(e)),
        Ok(what) if !what.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(system),
        Err(e) => Err(system(e)),
        Ok(_) => Err(system(io::ErrorKind::AddrInUse.into())),
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _it_may_be_gone_already = std::fs::remove_file(&self.path);
    }
}

type Asking = BufReader<tokio::io::Take<OwnedReadHalf>>;

/// One question and its answer; returns what follows it.
async fn talk(
    read: &mut Asking,
    write: &mut OwnedWriteHalf,
    questions: mpsc::Sender<Question>,
) -> io::Result<Option<mpsc::Receiver<Seen>>> {
    let mut line = Vec::new();
    read.read_until(b'\n', &mut line).await?;
    let reply = match serde_json::from_slice(&line) {
        Ok(request) => answer(request, &questions).await,
        Err(e) => Response::Error(format!("that is no question this version knows: {e}")).into(),
    };
    write.write_all(&as_line(&reply.first)?).await?;
    Ok(reply.more)
}

fn as_line<T: serde::Serialize>(what: &T) -> io::Result<Vec<u8>> {
    let mut out = serde_json::to_vec(what)?;
    out.push(b'\n');
    Ok(out)
}

/// Writes what comes until either end has gone. Whoever reads too slowly misses packets; nobody waits for it.
async fn stream_to(
    mut read: Asking,
    mut write: OwnedWriteHalf,
    mut more: mpsc::Receiver<Seen>,
) -> io::Result<()> {
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            gone = read.read(&mut ignored) => match gone {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            },
            seen = more.recv() => {
                let Some(seen) = seen else { return Ok(()) };
                let line = as_line(&seen)?;
                tokio::select! {
                    written = write.write_all(&line) => written?,
                    // A viewer that has stopped reading may still be seen to go.
                    Ok(0) | Err(_) = read.read(&mut ignored) => return Ok(()),
                }
            }
        }
    }
}

async fn answer(request: Request, questions: &mpsc::Sender<Question>) -> Reply {
    let (reply, wait) = oneshot::channel();
    let stopping = || Response::Error("the router is stopping".to_owned()).into();
    if questions.send(Question { request, reply }).await.is_err() {
        return stopping();
    }
    wait.await.unwrap_or_else(|_| stopping())
}
