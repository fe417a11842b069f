//! What the control loop waits for besides channels: the punt queue, errors about outer packets, a time that may not come.

use std::os::fd::OwnedFd;
use std::time::Instant;

use sixway_dataplane::punt::PuntReader;

pub(super) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The punt queue as something to wait for.
pub(super) struct Punts {
    pub(super) reader: PuntReader,
    bell: tokio::net::UnixStream,
}

impl Punts {
    pub(super) fn new(reader: PuntReader) -> std::io::Result<Self> {
        let bell = tokio::net::UnixStream::from_std(reader.bell()?)?;
        Ok(Self { reader, bell })
    }

    pub(super) async fn ready(&mut self) {
        loop {
            if self.reader.arm() {
                return;
            }
            // `arm` has emptied the pipe behind tokio's back; an empty read tells tokio so.
            let _empty = self.bell.try_read(&mut [0; 64]);
            if self.reader.arm() || self.bell.readable().await.is_err() {
                return;
            }
        }
    }
}

/// Errors about outer packets as something to wait for.
pub(super) struct Errors(Option<tokio::net::UdpSocket>);

impl Errors {
    /// Any socket of datagrams can be waited on as one of UDP.
    pub(super) fn new(socket: Option<OwnedFd>) -> std::io::Result<Self> {
        let socket = socket.map(std::net::UdpSocket::from);
        Ok(Self(socket.map(tokio::net::UdpSocket::from_std).transpose()?))
    }

    /// What comes while the last errors are read is told of again.
    pub(super) async fn ready(&self) {
        if let Some(socket) = &self.0
            && socket.readable().await.is_ok()
        {
            // It is read behind tokio's back; to find nothing tells tokio so.
            let empty = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
            let _emptied = socket.try_io(tokio::io::Interest::READABLE, empty);
            return;
        }
        std::future::pending().await
    }
}
