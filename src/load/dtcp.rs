//! One client of a DTCP server in a load: the same state machine as `sixway connect` has, with a clock of its own.
//!
//! Pings when it is told to, not each minute. Sets up no tunnel.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::dtcp::client::{Client, Output, PING, Wish};
use crate::dtcp::codec::Kind;

/// Who asks for what: users `NAME0`, `NAME1`, ... with one secret.
#[derive(Clone, Debug)]
pub struct Users {
    /// How their names begin.
    pub name: String,
    /// The secret of all.
    pub secret: Vec<u8>,
    /// What type of tunnel.
    pub kind: Kind,
}

impl Users {
    /// What user `n` wants.
    pub fn wish(&self, n: u32) -> Wish {
        let (user, secret, kind) = (format!("{}{n}", self.name), self.secret.clone(), self.kind);
        let secret = zeroize::Zeroizing::new(secret);
        Wish { user, secret, kind, udp: None, behind_nat: true }
    }
}

/// A session with a tunnel.
#[derive(Debug)]
pub struct Session<S> {
    stream: S,
    client: Client,
    now: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Hears the greeting, logs in, and asks.
    ///
    /// # Errors
    /// What the server said, or why it said nothing.
    pub async fn open(stream: S, wish: Wish) -> Result<Self, String> {
        let now = Duration::ZERO;
        let client = Client::new(wish, IpAddr::V4(Ipv4Addr::UNSPECIFIED), now);
        let mut session = Self { stream, client, now };
        while !session.say().await? {
            session.hear().await?;
        }
        Ok(session)
    }

    /// Pings, and waits for the answer.
    ///
    /// # Errors
    /// That it did not come.
    pub async fn ping(&mut self) -> Result<(), String> {
        let due = self.client.poll_timeout().ok_or("the session is over")?;
        self.now = due;
        self.client.handle_timeout(due);
        self.say().await?;
        // The next ping is due later only once this one is answered.
        while self.client.poll_timeout() != Some(due + PING) {
            self.hear().await?;
            self.say().await?;
        }
        Ok(())
    }

    /// Gives the tunnel back, and waits until the server has ended the connection.
    pub async fn quit(mut self) {
        self.client.quit();
        let _or_gone = self.say().await;
        let mut octets = [0; 128];
        while self.stream.read(&mut octets).await.is_ok_and(|len| len > 0) {}
    }

    /// Says what is to be said; true: the tunnel is up.
    async fn say(&mut self) -> Result<bool, String> {
        let mut is_up = false;
        for output in self.client.poll_output() {
            match output {
                Output::Send(octets) => self.stream.write_all(&octets).await.map_err(|why| broken(&why))?,
                Output::Up(_) => is_up = true,
                Output::Over(end) => return Err(end.to_string()),
            }
        }
        Ok(is_up)
    }

    async fn hear(&mut self) -> Result<(), String> {
        let mut octets = [0; 256];
        match self.stream.read(&mut octets).await.map_err(|why| broken(&why))? {
            0 => self.client.handle_end(),
            len => self.client.handle_input(&octets[..len], self.now),
        }
        Ok(())
    }
}

fn broken(why: &io::Error) -> String {
    format!("the connection broke: {why}")
}
