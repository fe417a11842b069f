//! `dtcpc`: the DTCP client with the old programs' flags, by its own name or as `sixway dtcpc`.
//!
//! Understands the flags of KAME's dtcpc and of ume's as far as anybody knows what they do; refuses those that ask for
//! something that is not done here, instead of doing something else.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use zeroize::Zeroizing;

use super::background::into_background;
use super::connect::{Job, Target, UDP_PORT, Way, keep, kind_of, mtu_of, secret};
use crate::config::DEFAULT_TUN;
use crate::dtcp::codec::PORT;
use crate::privileges;

/// Passwords, one `server:user:password` a line.
const PASSWORDS: &str = "/usr/local/etc/dtcpc.auth";

/// Arguments of `dtcpc`.
#[derive(Debug, Args)]
#[command(
    disable_version_flag = true,
    after_help = "Passwords: /usr/local/etc/dtcpc.auth (server:user:password), else SIXWAY_PASSWORD, else asked for.\nNot done: -P (prefixes on other interfaces), -R with other destinations, -A."
)]
pub struct DtcpcArgs {
    /// The server
    server: String,
    /// The user [default: the login name]
    #[arg(short, value_name = "USER")]
    user: Option<String>,
    /// tunnelonly, host or network
    #[arg(short = 't', value_name = "TYPE", default_value = "tunnelonly")]
    kind: String,
    /// TCP port
    #[arg(short, value_name = "PORT", default_value_t = PORT)]
    port: u16,
    /// Name of the tunnel device; gif0 and the like mean the usual one
    #[arg(short, value_name = "INTERFACE")]
    interface: Option<String>,
    /// Largest packet inside the tunnel, octets
    #[arg(short, value_name = "MTU", default_value = "1280")]
    mtu: String,
    /// Connect again when the connection is lost
    #[arg(short = 'l')]
    again: bool,
    /// There is a NAT between; it must forward protocol 41
    #[arg(short)]
    nat: bool,
    /// IPv6 in UDP (from sixway's server only)
    #[arg(short = 'U')]
    udp: bool,
    /// UDP port that is sent from
    #[arg(short = 'b', value_name = "PORT", default_value_t = UDP_PORT)]
    udp_port: u16,
    /// Routes: static and solicit set the default route (a tunnel has one router), none sets no route [default: static, but
    /// none in a tunnel without an address]
    #[arg(short, value_name = "static|solicit|none")]
    routes: Option<String>,
    /// What to route: only `default` is known
    #[arg(short = 'R', value_name = "LIST", default_value = "default")]
    destinations: String,
    /// Not done: prefixes on other interfaces
    #[arg(short = 'P', value_name = "IF/SLA[/HOST[/LEN]],...", hide = true)]
    prefixes: Option<String>,
    /// Not done
    #[arg(short = 'A', value_name = "ADDRESS", hide = true)]
    address: Option<String>,
    /// Log more
    #[arg(short)]
    debug: bool,
    /// Go to the background: with -l at once, else when the tunnel is up
    #[arg(short = 'D')]
    daemon: bool,
    /// Write the number of the process into this file
    #[arg(short = 'f', value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Without meaning here: there is no rtadvd to be told (-a), there are no interfaces to be cloned (-c) or kept (-o)
    #[arg(short = 'a')]
    _no_rtadvd: bool,
    /// See -a
    #[arg(short = 'c')]
    _no_cloning: bool,
    /// See -a
    #[arg(short = 'o')]
    _keep: bool,
    /// Read the password from this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Say so on standard output when it works (used by the process that waits for it)
    #[arg(long, hide = true)]
    child: bool,
}

/// Keeps a tunnel until a signal ends it.
pub fn run(args: &DtcpcArgs) -> anyhow::Result<()> {
    if args.destinations != "default" {
        bail!("-R {}: only the default route is set here; add others by hand", args.destinations);
    }
    if let Some(list) = &args.prefixes {
        bail!(
            "-P {list}: addresses on other interfaces are not given here; give them by hand once the network is known \
             (`ip -6 address add ADDRESS/64 dev IF`): they stay the same as long as the user has it"
        );
    }
    if let Some(address) = &args.address {
        bail!("-A {address}: nobody knows any more what it meant; leave it out");
    }
    let way = match args.routes.as_deref() {
        None => Way::WithAddress,
        // A tunnel has one router: whom soliciting would find is whom the default route leads to.
        Some("static" | "solicit") => Way::Open,
        Some("none") => Way::Closed,
        Some(other) => bail!("-r {other}: known are static, solicit and none"),
    };
    if args.daemon && !args.child {
        return into_background("dtcpc");
    }
    if args.debug {
        super::run::start_log(Some("debug"));
    }
    let user = match &args.user {
        Some(user) => user.clone(),
        None => std::env::var("USER").map_err(|_| anyhow::anyhow!("who asks? give the user with -u NAME"))?,
    };
    let target = Target {
        host: args.server.clone(),
        port: args.port,
        user,
        kind: kind_of(&args.kind)?,
        udp: args.udp.then_some(args.udp_port),
        nat: args.nat,
        mtu: mtu_of(&args.mtu)?,
        pd: None,
    };
    let known = if args.password_file.is_none() { known(&target)? } else { None };
    let secret = match known {
        Some(secret) => secret,
        None => secret(args.password_file.as_deref(), &target.user, &target.host)?,
    };
    // Kernel interfaces of the old system are not devices that can be made here.
    let tun = args.interface.clone().filter(|name| !name.starts_with("gif") && !name.starts_with("ng"));
    let tun = tun.unwrap_or_else(|| DEFAULT_TUN.to_owned());
    let written = args.pid_file.as_deref().map(PidFile::write).transpose()?;
    let (again, background) = (args.again, args.child);
    let kept =
        keep(Job { target, secret, tun, way, again, print: false, socket: None, background, pd: None });
    drop(written);
    kept
}

/// A file with the number of this process, removed in the end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> anyhow::Result<Self> {
        // The process will have another directory in the background.
        let path = std::path::absolute(path)?;
        std::fs::write(&path, format!("{}\n", std::process::id())).with_context(|| {
            format!("cannot write {}; name another file, or run with sudo", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

/// The password in [`PASSWORDS`], if there is one for this server and user.
fn known(target: &Target) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
    if !Path::new(PASSWORDS).exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(PASSWORDS).with_context(|| format!("cannot read {PASSWORDS}"))?;
    privileges::told_to_others(Path::new(PASSWORDS)).iter().for_each(|said| eprintln!("dtcpc: {said}"));
    Ok(find(&Zeroizing::new(text), target))
}

fn find(text: &str, target: &Target) -> Option<Zeroizing<Vec<u8>>> {
    let own = |line: &str| {
        let (server, rest) = line.split_once(':')?;
        let (user, word) = rest.split_once(':')?;
        (server == target.host && user == target.user).then(|| Zeroizing::new(word.as_bytes().to_vec()))
    };
    text.lines().filter(|line| !line.starts_with('#')).find_map(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_by_server_and_user() {
        let target = Target::parse("dtcp://bob@b.example").unwrap();
        let text = "# x\nb.example:alice:one\na.example:bob:two\nb.example:bob:thr:ee\n";
        assert_eq!(find(text, &target).as_deref().map(Vec::as_slice), Some(&b"thr:ee"[..]));
        assert_eq!(find("b.example\n", &target), None);
    }
}
