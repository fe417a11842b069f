//! Client configuration to paste, for other programs and systems than this one: text in, text out.
//!
//! DTCP holds a tunnel by a connection. Where the system's own means set the tunnel up, a short script holds that
//! connection: in bash over `/dev/tcp`, elsewhere over `nc`. Scripts take the address from the server's answer; files that
//! must name it are given what the account has at the moment. Knows neither the store nor the command line; refuses to say a
//! secret that it was not given.

use std::fmt::Write;
use std::net::Ipv4Addr;

use sixway_dataplane::update::Ipv6Prefix;
use zeroize::Zeroizing;

use crate::broker::{Grant, Secret, UserName};
use crate::dtcp::codec::{Kind, PORT};

/// Whose configuration is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Linux with iproute2.
    Linux,
    /// FreeBSD with gif.
    FreeBsd,
    /// gogoCLIENT, by TSP.
    Gogoc,
    /// dtcpc, ours or the old one.
    Dtcpc,
    /// Linux with systemd-networkd.
    Networkd,
    /// OpenWrt with netifd.
    OpenWrt,
}

/// All that a client must be told.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Who.
    pub user: UserName,
    /// The server's address or name as clients reach it.
    pub server: String,
    /// Its TCP port for DTCP.
    pub port: u16,
    /// What type of tunnel.
    pub kind: Kind,
    /// Largest inner packet in octets.
    pub mtu: u16,
    /// What the account would be given now.
    pub grant: Grant,
    /// Whether that is the account's own; else it may be somebody else's before the first login.
    pub is_fixed: bool,
    /// The secret, where it is to be shown.
    pub secret: Option<Secret>,
}

/// Why there is nothing to paste.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnippetError {
    /// A name where an address is needed.
    #[error(
        "--for {client} needs the server's IPv4 address, and '{server}' is a name; give the address with --server"
    )]
    NeedsAddress {
        /// For whom.
        client: &'static str,
        /// What was given.
        server: String,
    },
    /// What is granted may be somebody else's before the files are used.
    #[error(
        "--for {client} writes {what} into files, and '{user}' has none that stays. {how}. --for linux takes it from the \
         server's answer instead"
    )]
    NotFixed {
        /// For whom.
        client: &'static str,
        /// What may change.
        what: &'static str,
        /// Whose it is to be.
        user: UserName,
        /// How it is set aside.
        how: String,
    },
    /// A secret that cannot be written there.
    #[error(
        "the secret of '{user}' cannot be written into {place}: {why}; change it with `sixway user passwd {user}`"
    )]
    Secret {
        /// Whose.
        user: UserName,
        /// Into what.
        place: &'static str,
        /// What stands against it.
        why: &'static str,
    },
}

impl Client {
    /// All of them, by name.
    pub const ALL: [(&str, Self); 6] = [
        ("linux", Self::Linux),
        ("freebsd", Self::FreeBsd),
        ("gogoc", Self::Gogoc),
        ("dtcpc", Self::Dtcpc),
        ("networkd", Self::Networkd),
        ("openwrt", Self::OpenWrt),
    ];

    /// What to paste.
    ///
    /// # Errors
    /// [`SnippetError`].
    pub fn snippet(self, facts: &Facts) -> Result<Zeroizing<String>, SnippetError> {
        match self {
            Self::Linux => facts.linux(),
            Self::FreeBsd => facts.freebsd(),
            Self::Gogoc => facts.gogoc(),
            Self::Dtcpc => facts.dtcpc(),
            Self::Networkd => facts.networkd(),
            Self::OpenWrt => facts.openwrt(),
        }
    }
}

impl Facts {
    fn linux(&self) -> Result<Zeroizing<String>, SnippetError> {
        let user = &self.user;
        let mut text = self.head(
            "#!/bin/bash",
            &format!(
                "# Put it into /usr/local/sbin/six0 and run it as root: bash /usr/local/sbin/six0\n\
                 # The tunnel lasts as long as it runs; Ctrl-C takes everything back. Needs bash, iproute2 and the kernel's\n\
                 # module `sit`; a NAT between must not be.\n{}",
                self.place_of_secret(&format!("/etc/sixway/{user}.secret"))
            ),
        );
        self.variables(&mut text, &format!("/etc/sixway/{user}.secret"))?;
        text.push_str("device=six0\n\n");
        [LOGIN_BASH, "\n", LINUX, "\n", KEEP_BASH].iter().for_each(|part| text.push_str(part));
        Ok(text)
    }

    fn freebsd(&self) -> Result<Zeroizing<String>, SnippetError> {
        let file = format!("/usr/local/etc/sixway-{}.secret", self.user);
        let mut text = self.head(
            "#!/bin/sh",
            &format!(
                "# Put it into /usr/local/sbin/six0 and run it as root: sh /usr/local/sbin/six0\n\
                 # The tunnel lasts as long as it runs; Ctrl-C takes everything back. A NAT between must not be.\n{}",
                self.place_of_secret(&file)
            ),
        );
        self.variables(&mut text, &file)?;
        text.push('\n');
        text.push_str(&LOGIN_SH.replace("@MD5@", "md5"));
        ["\n", FREEBSD, "\n", KEEP_SH].iter().for_each(|part| text.push_str(part));
        Ok(text)
    }

    /// For files that name what is granted.
    fn must_be_fixed(&self, client: &'static str) -> Result<(), SnippetError> {
        let user = self.user.clone();
        let anew = format!("sixway user del {user}; sixway user add {user}");
        let (what, how) = match self.kind {
            Kind::TunnelOnly => return Ok(()),
            Kind::Network => (
                "the network",
                format!("Have '{user}' log in once, or set one aside: {anew} --prefix PREFIX"),
            ),
            Kind::Host => ("the address", format!("Set one aside: {anew} --interface N")),
        };
        if self.is_fixed {
            return Ok(());
        }
        Err(SnippetError::NotFixed { client, what, user, how })
    }

    /// What is granted, for people.
    fn granted(&self) -> String {
        let network = |net: &Ipv6Prefix| match self.is_fixed {
            true => net.to_string(),
            // Out of a pool they come by chance.
            false => format!("a /{} out of {}'s pool", net.prefix_len(), self.server),
        };
        let mut what: Vec<String> = self.networks().iter().map(network).collect();
        what.extend(self.grant.pair.map(|pair| pair.client.to_string()));
        if what.is_empty() { "link-local addresses only".to_owned() } else { what.join(", ") }
    }

    fn networkd(&self) -> Result<Zeroizing<String>, SnippetError> {
        let server = self.address("networkd")?;
        self.must_be_fixed("networkd")?;
        let file = format!("/etc/sixway/{}.secret", self.user);
        let mut text = self.head(
            "#!/bin/bash",
            &format!(
                "# Paste it into a root shell, or run it once as root. It writes three files for systemd-networkd, and a service\n\
                 # that holds the session at the broker: without it there is no tunnel. A NAT between must not be.\n{}",
                self.place_of_secret(&file)
            ),
        );
        let Self { mtu, .. } = self;
        let _infallible = write!(
            text,
            "\ncat >/etc/systemd/network/50-six0.netdev <<'X'\n[NetDev]\nName=six0\nKind=sit\nMTUBytes={mtu}\n\n[Tunnel]\n\
             Independent=true\nLocal=any\nRemote={server}\nTTL=64\nX\n\n\
             cat >/etc/systemd/network/50-six0.network <<'X'\n[Match]\nName=six0\n\n[Network]\nIPv6AcceptRA=no\n"
        );
        self.addresses().iter().for_each(|own| lines(&mut text, &[&format!("Address={own}")]));
        lines(&mut text, &["", "[Route]", "Destination=::/0"]);
        for net in self.networks() {
            let destination = format!("Destination={net}");
            lines(&mut text, &["", "[Route]", &destination, "Type=unreachable", "Metric=4096"]);
        }
        lines(
            &mut text,
            &[
                "X",
                "",
                "install -d -m 755 /usr/local/sbin",
                "(umask 077; cat >/usr/local/sbin/six0-session <<'X'",
            ],
        );
        lines(&mut text, &["#!/bin/bash"]);
        self.variables(&mut text, &file)?;
        ["\n", LOGIN_BASH, "\n", KEEP_BASH].iter().for_each(|part| text.push_str(part));
        text.push_str(
            "X\n)\n\ncat >/etc/systemd/system/six0-session.service <<'X'\n[Unit]\nDescription=The session of the tunnel six0\n\
             Wants=network-online.target\nAfter=network-online.target\n\n[Service]\n\
             ExecStart=/bin/bash /usr/local/sbin/six0-session\nRestart=always\nRestartSec=30\n\n[Install]\n\
             WantedBy=multi-user.target\nX\n\n\
             networkctl reload\nsystemctl daemon-reload\nsystemctl enable --now six0-session\n",
        );
        Ok(text)
    }

    fn openwrt(&self) -> Result<Zeroizing<String>, SnippetError> {
        let server = self.address("openwrt")?;
        self.must_be_fixed("openwrt")?;
        let file = format!("/etc/sixway-{}.secret", self.user);
        let mut text = self.head(
            "#!/bin/sh",
            &format!(
                "# Paste it into a shell of the router, after: opkg update; opkg install 6in4\n\
                 # It makes the interface `six0`, and a service that holds the session at the broker: without it there is no\n\
                 # tunnel. A NAT between must not be.\n{}",
                self.place_of_secret(&file)
            ),
        );
        let _infallible = write!(
            text,
            "\nuci batch <<'X'\nset network.six0=interface\nset network.six0.proto='6in4'\n\
             set network.six0.peeraddr='{server}'\nset network.six0.mtu='{}'\n",
            self.mtu
        );
        if let Some(own) = self.addresses().first() {
            lines(&mut text, &[&format!("set network.six0.ip6addr='{own}'")]);
        }
        for net in self.networks() {
            lines(&mut text, &[&format!("add_list network.six0.ip6prefix='{net}'")]);
        }
        lines(
            &mut text,
            &["add_list firewall.@zone[1].network='six0'", "commit network", "commit firewall", "X", ""],
        );
        lines(&mut text, &["(umask 077; cat >/usr/sbin/six0-session <<'X'", "#!/bin/sh"]);
        self.variables(&mut text, &file)?;
        text.push('\n');
        text.push_str(
            &LOGIN_SH.replace("<<X\n", "<<Y\n").replace("\nX\n", "\nY\n").replace("@MD5@", "md5sum"),
        );
        text.push('\n');
        text.push_str(KEEP_SH);
        text.push_str(
            "X\n)\n\ncat >/etc/init.d/six0-session <<'X'\n#!/bin/sh /etc/rc.common\nUSE_PROCD=1\nSTART=99\n\
             start_service() {\n  procd_open_instance\n  procd_set_param command /bin/sh /usr/sbin/six0-session\n  \
             procd_set_param respawn 3600 30 0\n  procd_close_instance\n}\nX\n\
             chmod 755 /etc/init.d/six0-session\n/etc/init.d/six0-session enable\n\
             /etc/init.d/network reload\n/etc/init.d/firewall reload\n/etc/init.d/six0-session start\n",
        );
        Ok(text)
    }

    fn dtcpc(&self) -> Result<Zeroizing<String>, SnippetError> {
        let Self { user, server, port, kind, mtu, .. } = self;
        let word = self.word("/usr/local/etc/dtcpc.auth")?;
        let mut text = self.head(
            "#!/bin/sh",
            "# Paste it into a root shell. The tunnel lasts as long as dtcpc runs, which goes to the background (-D) and comes back\n\
             # by itself (-l). A NAT between must forward protocol 41: say so with -n.\n",
        );
        let port = if *port == PORT { String::new() } else { format!(" -p {port}") };
        let _infallible = write!(
            text,
            "\n(umask 077; cat >>/usr/local/etc/dtcpc.auth <<'X'\n{server}:{user}:{}\nX\n)\n\
             dtcpc -lD -t {} -m {mtu}{port} -u {user} {server}\n",
            *word,
            kind.name()
        );
        Ok(text)
    }

    fn gogoc(&self) -> Result<Zeroizing<String>, SnippetError> {
        let Self { user, server, .. } = self;
        let word = self.word("gogoc.conf")?;
        let mut text = self.head(
            "# gogoc.conf",
            "# Put it into /usr/local/etc/gogoc/gogoc.conf, mode 0600, and start: gogoc -y -f /usr/local/etc/gogoc/gogoc.conf\n",
        );
        let host = match self.networks().first() {
            None => "host_type=host\n".to_owned(),
            Some(net) => {
                let len = net.prefix_len();
                format!(
                    "# The interface that the network is announced on.\nhost_type=router\nprefixlen={len}\nif_prefix=eth0\n"
                )
            }
        };
        let _infallible = write!(
            text,
            "\nuserid={user}\npasswd={}\nserver={server}\nauth_method=any\n{host}gogoc_dir=\nauto_retry_connect=yes\nretry_delay=30\n\
             keepalive=yes\nkeepalive_interval=30\ntunnel_mode=v6anyv4\nif_tunnel_v6v4=sit1\nif_tunnel_v6udpv4=tun\n\
             client_v4=auto\nclient_v6=auto\ntemplate=linux\nproxy_client=no\n",
            *word
        );
        Ok(text)
    }

    /// The first lines: what it is, where it goes, what is granted.
    fn head(&self, first: &str, place: &str) -> Zeroizing<String> {
        let Self { user, server, kind, .. } = self;
        let what = self.granted();
        let fixed = match (self.is_fixed, *kind) {
            (true, _) | (_, Kind::TunnelOnly) => String::new(),
            (false, Kind::Network) => format!(
                "\n# Which one the first login decides; from then on it is {user}'s. To choose it yourself: sixway user add {user} --prefix PREFIX"
            ),
            (false, Kind::Host) => format!(
                "\n# It is not set aside: somebody else may be given it, and {user} another. To set it aside: sixway user add {user} --interface N"
            ),
        };
        // Room for all: a text that grows leaves copies of the secret behind.
        let mut text = Zeroizing::new(String::with_capacity(16 * 1024));
        let _infallible = write!(
            text,
            "{first}\n# The tunnel of {user} from {server}, type {}: {what}.{fixed}\n{place}",
            kind.name()
        );
        text
    }

    fn place_of_secret(&self, file: &str) -> String {
        if self.secret.is_some() {
            return "# The secret is in here: keep it to its owner (mode 0700).\n".to_owned();
        }
        format!(
            "# The secret is read from {file}. To make that file, type the secret, Enter, Ctrl-D:\n\
             #   mkdir -p {}; (umask 077; cat >{file})\n",
            file.rsplit_once('/').map_or("/", |(folder, _)| folder)
        )
    }

    fn variables(&self, text: &mut Zeroizing<String>, file: &str) -> Result<(), SnippetError> {
        let Self { user, server, port, kind, mtu, secret, .. } = self;
        let _infallible =
            write!(text, "\nserver={server} port={port} user={user} type={} mtu={mtu}\n", kind.name());
        match secret {
            None => lines(text, &[&format!("secret=$(cat {file}) || exit 1")]),
            Some(_) => {
                let quoted = Zeroizing::new(self.word("a script")?.replace('\'', r"'\''"));
                text.push_str("secret='");
                text.push_str(&quoted);
                text.push_str("'\n");
            }
        }
        Ok(())
    }

    /// The secret as text, or what stands for it.
    fn word(&self, place: &'static str) -> Result<Zeroizing<String>, SnippetError> {
        let Some(secret) = &self.secret else { return Ok(Zeroizing::new(PLACEHOLDER.to_owned())) };
        let refused = |why| SnippetError::Secret { user: self.user.clone(), place, why };
        let word = std::str::from_utf8(secret.expose()).map_err(|_| refused("it is no text"))?;
        if word.trim() != word {
            return Err(refused("it begins or ends with a space"));
        }
        Ok(Zeroizing::new(word.to_owned()))
    }

    fn networks(&self) -> &[Ipv6Prefix] {
        if self.kind == Kind::Network { &self.grant.networks } else { &[] }
    }

    /// The addresses of the client's end, with their lengths.
    fn addresses(&self) -> Vec<String> {
        let pair = self.grant.pair.map(|pair| format!("{}/128", pair.client));
        let first = |net: &Ipv6Prefix| {
            let host = u128::from(net.prefix_len() < 128);
            format!("{}/128", std::net::Ipv6Addr::from(net.addr().to_bits() | host))
        };
        pair.into_iter().chain(self.networks().iter().map(first)).collect()
    }

    fn address(&self, client: &'static str) -> Result<Ipv4Addr, SnippetError> {
        let server = self.server.clone();
        self.server.parse().map_err(|_| SnippetError::NeedsAddress { client, server })
    }
}

fn lines(text: &mut String, all: &[&str]) {
    for line in all {
        text.push_str(line);
        text.push('\n');
    }
}

/// Stands where the secret would.
const PLACEHOLDER: &str = "PUT-THE-SECRET-HERE";
const LOGIN_BASH: &str = include_str!("login.bash");
const KEEP_BASH: &str = include_str!("keep.bash");
const LOGIN_SH: &str = include_str!("login.sh");
const KEEP_SH: &str = include_str!("keep.sh");
const LINUX: &str = include_str!("linux.bash");
const FREEBSD: &str = include_str!("freebsd.sh");
