//! `sixway capture`: one tunnel's packets into a file that Wireshark and tshark open, verdicts as comments.

use std::fs::{OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::socket::SocketArgs;
use crate::admin::client::{ask, view};
use crate::admin::{Request, pcapng};

/// Octets of a packet that are captured at most.
const LONGEST: u32 = 2048;
/// Sides a packet may come from, numbered as the file's interfaces.
const SIDES: [&str; 3] = ["kernel", "peer", "datagram"];

/// Arguments of `sixway capture`.
#[derive(Debug, Args)]
#[command(
    after_help = "A file that is there already is left alone, unless --force is said. Ends with Ctrl-C, after --count packets, or when the tunnel goes; the file is whole at every moment. Of long (merged) packets the first 2048 octets are kept. Look at it with `tshark -r FILE -T fields -e frame.comment -e ipv6.src -e ipv6.dst`."
)]
pub struct CaptureArgs {
    /// The tunnel
    #[arg(value_name = "TUNNEL")]
    tunnel: String,
    /// The file to write, only for its owner to read; `-`: standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Where packets go. What is no file, such as a pipe or /dev/null, is not overwritten by writing into it.
fn open(path: &Path, force: bool) -> anyhow::Result<Box<dyn Write>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdout()));
    }
    let is_precious = !force && std::fs::metadata(path).is_ok_and(|found| found.is_file());
    anyhow::ensure!(
        !is_precious,
        "{} is there already, and stays as it is: name another file, or say --force to overwrite it",
        path.display()
    );
    let cannot = || format!("cannot write {}", path.display());
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = opened.with_context(cannot)?;
    // One that was there keeps its rights, and others must not read packets.
    if file.metadata().with_context(cannot)?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600)).with_context(cannot)?;
    }
    Ok(Box::new(file))
}

/// Writes packets until there are no more.
pub fn run(args: &CaptureArgs) -> anyhow::Result<()> {
    let socket = args.instance.path()?;
    // Before the file is touched: a name that nobody has leaves none behind.
    let about = Request::Status { page: 1, limit: 1, tunnel: Some(args.tunnel.clone()) };
    ask(&socket, &about)?;
    let mut file = open(&args.write, args.force)?;
    file.write_all(&pcapng::head(concat!("sixway ", env!("CARGO_PKG_VERSION")), &SIDES, LONGEST))?;
    file.flush()?;
    let mut file = BufWriter::new(file);
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut missed = 0;
    let done = view(&socket, &args.tunnel, |seen| {
        missed += seen.missed;
        let mut comment = format!("{}; from {}", seen.verdict, seen.from);
        if seen.missed > 0 {
            comment += &format!("; {} packets before it are missing", seen.missed);
        }
        let bytes = seen.bytes();
        file.write_all(&pcapng::packet(side(&seen.from, &bytes), seen.at_us, &bytes, seen.len, &comment))?;
        file.flush()?;
        left = left.saturating_sub(1);
        Ok(left > 0)
    });
    if missed > 0 {
        eprintln!("sixway: {missed} packets passed too fast and are missing");
    }
    done
}

/// The interface of [`SIDES`] that a packet belongs to.
fn side(from: &str, bytes: &[u8]) -> u32 {
    let is_ipv6 = bytes.first().is_some_and(|octet| octet >> 4 == 6);
    match (is_ipv6, from) {
        (false, _) => 2,
        (true, "kernel") => 0,
        (true, _) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_left_alone_unless_that_is_meant() {
        let path = std::env::temp_dir().join(format!("sixway-capture-{}", std::process::id()));
        std::fs::write(&path, "mine").unwrap();
        let why = open(&path, false).err().unwrap().to_string();
        assert!(why.contains("--force") && std::fs::read(&path).unwrap() == b"mine", "{why}");
        open(&path, true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        std::fs::remove_file(&path).unwrap();
        open(&path, false).unwrap();
        std::fs::remove_file(&path).unwrap();
        open(Path::new("/dev/null"), false).unwrap();
    }
}
