//! Asking a running instance: connect, one line, one line back. Blocking; for commands.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::packet::Seen;
use super::{Request, Response};

/// An instance that is busy answers within this time or not at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error(
        "no sixway answers at {path}: {cause}; is it running? start it with `sixway run`, or name its socket with --socket"
    )]
    NoInstance {
        /// The socket asked.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// We may not ask.
    #[error(
        "not allowed to ask the instance at {0}: the socket is its owner's alone; use sudo, or the account it runs as"
    )]
    NotAllowed(PathBuf),
    /// The conversation broke off.
    #[error("the instance at {path} broke off: {cause}")]
    Broken {
        /// The socket asked.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks the instance behind the socket at `path`.
pub fn ask(path: &Path, request: &Request) -> Result<Response, AskError> {
    let stream = connect(path)?;
    match converse(&stream, request) {
        Ok(Response::Error(text)) => Err(AskError::Refused(text)),
        Ok(response) => Ok(response),
        Err(source) => Err(AskError::Broken { path: path.to_owned(), cause: source }),
    }
}

/// Shows every packet of the tunnel `tunnel` to `each` until that says `false` or the instance ends it.
pub fn view(
    path: &Path,
    tunnel: &str,
    mut each: impl FnMut(Seen) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let stream = connect(path)?;
    let broken = |cause| AskError::Broken { path: path.to_owned(), cause };
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    let mut line = serde_json::to_vec(&Request::Watch { tunnel: tunnel.to_owned() })?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(broken)?;
    let mut lines = BufReader::new(&stream).lines();
    let first = lines.next().unwrap_or(Err(io::ErrorKind::UnexpectedEof.into())).map_err(broken)?;
    let first: Response = serde_json::from_str(&first)?;
    if let Response::Error(text) = first {
        return Err(AskError::Refused(text).into());
    }
    anyhow::ensure!(
        first == Response::Watching,
        "the instance answered something else; is it another version?"
    );
    for line in lines {
        if !each(serde_json::from_str(&line.map_err(broken)?)?)? {
            return Ok(());
        }
    }
    anyhow::bail!("tunnel '{tunnel}' is gone, or the router has stopped")
}

fn connect(path: &Path) -> Result<UnixStream, AskError> {
    UnixStream::connect(path).map_err(|source| {
        let denied = source.kind() == io::ErrorKind::PermissionDenied;
        let path = path.to_owned();
        if denied { AskError::NotAllowed(path) } else { AskError::NoInstance { path, cause: source } }
    })
}

fn converse(mut stream: &UnixStream, request: &Request) -> io::Result<Response> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

/// The process that listens behind a live socket; `None` when nobody does.
pub fn owner(path: &Path) -> Option<i32> {
    UnixStream::connect(path).ok().map(|stream| peer_pid(&stream))
}

/// The process at the other end of a connection; 0 when the system does not say.
pub fn peer_pid(stream: &UnixStream) -> i32 {
    let who = nix::sys::socket::getsockopt(&stream.as_fd(), nix::sys::socket::sockopt::PeerCredentials);
    who.map_or(0, |w| w.pid())
}
