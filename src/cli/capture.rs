//! `sixway capture`: one tunnel's packets into a file that Wireshark and tshark open, verdicts as comments.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::socket::SocketArgs;
use crate::admin::client::view;
use crate::admin::pcapng;

/// Octets of a packet that are captured at most.
const LONGEST: u32 = 2048;
/// Sides a packet may come from, numbered as the file's interfaces.
const SIDES: [&str; 3] = ["kernel", "peer", "datagram"];

/// Arguments of `sixway capture`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with Ctrl-C, after --count packets, or when the tunnel goes; the file is whole at every moment. Of long (merged) packets the first 2048 octets are kept. Look at it with `tshark -r FILE -T fields -e frame.comment -e ipv6.src -e ipv6.dst`."
)]
pub struct CaptureArgs {
    /// The tunnel
    #[arg(value_name = "TUNNEL")]
    tunnel: String,
    /// The file to write, only for its owner to read; `-`: standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Writes packets until there are no more.
pub fn run(args: &CaptureArgs) -> anyhow::Result<()> {
    let socket = args.instance.path()?;
    let mut file: Box<dyn Write> = if args.write.as_os_str() == "-" {
        Box::new(std::io::stdout())
    } else {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&args.write);
        Box::new(opened.with_context(|| format!("cannot write {}", args.write.display()))?)
    };
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
