//! The log of the old programs' successors: to the system's log in the background, to standard error in the foreground.
//!
//! Lines go to `/dev/log` as RFC 3164 has them, facility daemon, with the process's number. A line that the system's log
//! does not take at once is dropped: a server must not wait for its log.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Zoned;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Where the system's log takes lines.
const DEV_LOG: &str = "/dev/log";
/// Facility daemon (RFC 3164 section 4.1.1), as the upper bits of a priority.
const DAEMON: u8 = 3 << 3;

/// Logs as WIDE's programs do: to standard error in the foreground, else to the system's log under this name.
pub(super) fn start(name: &'static str, level: LevelFilter, foreground: bool) {
    let filter = EnvFilter::builder().with_env_var("SIXWAY_LOG").with_default_directive(level.into());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_target(false)
        .with_ansi(false);
    // A second subscriber is refused: then somebody else has set one up, and it will do.
    let _already_set = if foreground {
        log.with_timer(LocalTime).with_writer(io::stderr).try_init()
    } else {
        let system = SystemLog::new(name);
        if let Err(why) = system.reaches() {
            eprintln!(
                "{name}: nothing takes what is logged: {DEV_LOG}: {why}; start a log daemon, or run this with -f, which logs to \
                 standard error"
            );
        }
        log.without_time().with_level(false).with_writer(system).try_init()
    };
}

/// `Nov/21/2026 15:04:05:`, in local time.
struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", Zoned::now().strftime("%b/%d/%Y %H:%M:%S:"))
    }
}

/// A way to the system's log.
#[derive(Clone, Debug)]
struct SystemLog {
    name: &'static str,
    socket: Arc<Mutex<Option<UnixDatagram>>>,
}

impl SystemLog {
    fn new(name: &'static str) -> Self {
        Self { name, socket: Arc::default() }
    }

    /// Whether anybody takes lines now.
    fn reaches(&self) -> io::Result<()> {
        UnixDatagram::unbound()?.connect(DEV_LOG)
    }

    fn send(&self, line: &[u8]) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was there before may have been started again.
        if let Some(open) = &*socket
            && open.send(line).is_ok()
        {
            return Ok(());
        }
        let open = UnixDatagram::unbound()?;
        open.set_nonblocking(true)?;
        open.connect(DEV_LOG)?;
        let sent = open.send(line).map(|_| ());
        *socket = Some(open);
        sent
    }
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { log: self.clone(), severity: severity(Level::INFO), text: Vec::new() }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line {
        Line { log: self.clone(), severity: severity(*about.level()), text: Vec::new() }
    }
}

/// One line on its way.
struct Line {
    log: SystemLog,
    severity: u8,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let time = Zoned::now().strftime("%b %e %H:%M:%S").to_string();
        let line = line(self.log.name, self.severity, &time, std::process::id(), &self.text);
        // Nobody takes it, or not now: there is nowhere to say so.
        let _dropped = self.log.send(&line);
    }
}

fn line(name: &str, severity: u8, time: &str, pid: u32, text: &[u8]) -> Vec<u8> {
    let mut line = format!("<{}>{time} {name}[{pid}]: ", DAEMON | severity).into_bytes();
    line.extend(text.trim_ascii().iter().map(|octet| if *octet == b'\n' { b' ' } else { *octet }));
    line
}

/// Severities of RFC 3164 section 4.1.1.
fn severity(level: Level) -> u8 {
    if level == Level::ERROR {
        3
    } else if level == Level::WARN {
        4
    } else if level == Level::INFO {
        6
    } else {
        7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_rfc_3164() {
        let said = line("dhcp6s", severity(Level::WARN), "Nov  1 15:04:05", 7, b"  one\ntwo \n");
        assert_eq!(said, b"<28>Nov  1 15:04:05 dhcp6s[7]: one two");
        assert_eq!([Level::ERROR, Level::INFO, Level::DEBUG, Level::TRACE].map(severity), [3, 6, 7, 7]);
    }
}
