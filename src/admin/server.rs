//! The listening end of the admin socket: takes lines, passes questions to the control loop, writes its answers.
//!
//! Bounded: so many conversations, so long a line, so long a wait.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{MOST_REQUEST, Request, Response, client};

const CONVERSATIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(30);

/// A question on its way to the control loop, and where its answer goes.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// Who waits.
    pub reply: oneshot::Sender<Response>,
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
        if let Some(pid) = client::owner(path) {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = command.replace('\0', " ").trim().to_owned();
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
                let _whoever_left_early_gets_no_answer =
                    tokio::time::timeout(PATIENCE, talk(stream, questions)).await;
                drop(place);
            });
        }
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

async fn talk(stream: UnixStream, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    BufReader::new(read.take(MOST_REQUEST as u64)).read_until(b'\n', &mut line).await?;
    let response = match serde_json::from_slice(&line) {
        Ok(request) => answer(request, &questions).await,
        Err(e) => Response::Error(format!("that is no question this version knows: {e}")),
    };
    let mut out = serde_json::to_vec(&response)?;
    out.push(b'\n');
    write.write_all(&out).await
}

async fn answer(request: Request, questions: &mpsc::Sender<Question>) -> Response {
    let (reply, wait) = oneshot::channel();
    let stopping = || Response::Error("the router is stopping".to_owned());
    if questions.send(Question { request, reply }).await.is_err() {
        return stopping();
    }
    wait.await.unwrap_or_else(|_| stopping())
}
