//! `gogoc.conf`: the configuration of gogo6's client, `key=value` lines, read as it is.
//!
//! Every key of gogoc 1.2 is known. Those that mean nothing here (log files, names of devices that are not made, files
//! about brokers) are passed over with a note; an unknown key is passed over with a warning; a value that cannot be meant
//! is a mistake. Pure: the file has been read.

use std::net::Ipv4Addr;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::broker::Mechanism;
use crate::tsp::codec::Mode;
use crate::tsp::search::Place;
use crate::tsp::xml::Name;

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gogoc {
    /// `userid`; empty: nobody in particular.
    pub user: String,
    /// `passwd`.
    pub secret: Hidden,
    /// `server`.
    pub server: Place,
    /// `server`, as it is written.
    pub server_text: String,
    /// `auth_method`: `None` is `any`.
    pub mechanism: Option<Mechanism>,
    /// `host_type=router`: a network is wanted.
    pub router: bool,
    /// `prefixlen`.
    pub prefix_len: u8,
    /// `if_prefix`.
    pub home: Option<String>,
    /// `dns_server`.
    pub dns: Vec<Name>,
    /// `gogoc_dir`.
    pub folder: String,
    /// `auto_retry_connect`.
    pub retry: bool,
    /// `retry_delay` and `retry_delay_max`.
    pub delays: (Duration, Duration),
    /// `keepalive_interval`, 0 where `keepalive=no`; in seconds.
    pub keepalive: u32,
    /// `tunnel_mode`.
    pub mode: Mode,
    /// `if_tunnel_v6udpv4`, else `if_tunnel_v6v4`: the device that the tunnel shall have.
    pub tun: Option<String>,
    /// `client_v4`; `None` is `auto`.
    pub client: Option<Ipv4Addr>,
    /// `template`; `None`: no script.
    pub template: Option<String>,
    /// What the user should know, a line each.
    pub notes: Vec<String>,
}

/// Scripts that came with gogoc, by the names of systems. Whoever names one wants what it does, and not that file.
pub const STOCK_TEMPLATES: [&str; 10] = [
    "linux",
    "freebsd",
    "netbsd",
    "openbsd",
    "darwin",
    "sunos",
    "windows",
    "openwrt",
    "checktunnel",
    "cisco",
];

/// A password: not printed, overwritten when it goes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hidden(pub Zeroizing<String>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden(..)")
    }
}

/// A line that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {why}")]
pub struct Mistake {
    /// The file's name.
    pub file: String,
    /// Which line, from 1 on; 0: the file as a whole.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// Keys that mean nothing here, and why.
const IDLE: &[(&str, &str)] = &[
    ("if_tunnel_v4v6", "tunnels of IPv4 in IPv6 are not made"),
    ("client_v6", "tunnels of IPv4 in IPv6 are not made"),
    ("broker_list", "lists of brokers are not kept from one start to the next"),
    ("last_server", "lists of brokers are not kept from one start to the next"),
    ("always_use_same_server", "each start begins with the broker of 'server'"),
    ("log_console", LOG),
    ("log_stderr", LOG),
    ("log_file", LOG),
    ("log_syslog", LOG),
    ("log_filename", LOG),
    ("log_rotation", LOG),
    ("log_rotation_size", LOG),
    ("log_rotation_delete", LOG),
    ("syslog_facility", LOG),
];
const LOG: &str = "the log is on standard error, set by SIXWAY_LOG";

impl Gogoc {
    /// Reads the text of `file`.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(file: &str, text: &str) -> Result<Self, Mistake> {
        let mut found = Self {
            user: String::new(),
            secret: Hidden::default(),
            server: Place { host: String::new(), port: 0 },
            server_text: String::new(),
            mechanism: None,
            router: false,
            prefix_len: 64,
            home: None,
            dns: Vec::new(),
            folder: "/usr/local/gogoc".to_owned(),
            retry: true,
            delays: (Duration::from_secs(30), Duration::from_secs(300)),
            keepalive: 30,
            mode: Mode::V6AnyV4,
            tun: None,
            client: None,
            template: None,
            notes: Vec::new(),
        };
        let mut wants_keepalive = true;
        for (n, line) in text.lines().enumerate() {
            let at = |why: String| Mistake { file: file.to_owned(), line: n + 1, why };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let form = || at("a line is KEY=VALUE, or a comment that begins with #".to_owned());
            let (key, value) = line.split_once('=').ok_or_else(form)?;
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            if key == "keepalive" {
                wants_keepalive = yes_or_no(value).map_err(at)?;
            } else if let Some(note) = found.set(&key, value).map_err(at)? {
                found.notes.push(format!("{file}:{}: {note}", n + 1));
            }
        }
        found.keepalive = if wants_keepalive { found.keepalive } else { 0 };
        found.whole(file)
    }

    /// What must hold between the lines.
    fn whole(mut self, file: &str) -> Result<Self, Mistake> {
        let at = |why: &str| Mistake { file: file.to_owned(), line: 0, why: why.to_owned() };
        if self.server.host.is_empty() {
            return Err(at("the server is missing: write server=broker.example"));
        }
        if self.user.is_empty() {
            match self.mechanism {
                None | Some(Mechanism::Anonymous) => self.mechanism = Some(Mechanism::Anonymous),
                Some(_) => return Err(at("auth_method needs an account: write userid=NAME and passwd=...")),
            }
        }
        if self.router && self.home.is_none() {
            self.notes
                .push(format!("{file}: host_type=router without if_prefix: the network is behind no device"));
        }
        Ok(self)
    }

    /// Sets one key; a note where it means nothing here.
    fn set(&mut self, key: &str, value: &str) -> Result<Option<String>, String> {
        match key {
            "userid" => value.clone_into(&mut self.user),
            "passwd" => self.secret = Hidden(Zeroizing::new(value.to_owned())),
            "server" => {
                value.clone_into(&mut self.server_text);
                self.server = place(value)?;
            }
            "auth_method" => self.mechanism = mechanism(value)?,
            "host_type" => self.router = is_router(value)?,
            "prefixlen" => {
                let len = value.parse().ok().filter(|len| (1..=128).contains(len));
                self.prefix_len = len.ok_or_else(|| format!("prefixlen is 1 to 128, not '{value}'"))?;
            }
            "if_prefix" => self.home = some(value),
            "dns_server" => self.dns = names(value)?,
            "gogoc_dir" | "gw6_dir" => value.clone_into(&mut self.folder),
            "auto_retry_connect" => self.retry = yes_or_no(value)?,
            "retry_delay" => self.delays.0 = seconds(key, value)?,
            "retry_delay_max" => self.delays.1 = seconds(key, value)?,
            "keepalive_interval" => {
                let interval = seconds(key, value)?.as_secs();
                self.keepalive = u32::try_from(interval).unwrap_or(u32::MAX);
            }
            "tunnel_mode" => self.mode = mode(value)?,
            "if_tunnel_v6udpv4" => self.tun = some(value).or(self.tun.take()),
            "if_tunnel_v6v4" => self.tun = self.tun.take().or(some(value)),
            "client_v4" => self.client = client(value)?,
            "template" => {
                self.template = Some(value.to_owned()).filter(|name| !matches!(name.as_str(), "" | "none"));
                if value.contains('/') {
                    return Err("template is a name: its script is gogoc_dir/template/NAME.sh".to_owned());
                }
            }
            "proxy_client" => {
                if yes_or_no(value)? {
                    return Err("proxy_client=yes is not done: the tunnel ends at this machine".to_owned());
                }
            }
            "client_v6" if value.eq_ignore_ascii_case("auto") => {}
            other => {
                return Ok(Some(match IDLE.iter().find(|(name, _)| *name == other) {
                    Some((name, why)) => format!("'{name}' means nothing here: {why}"),
                    None => format!(
                        "'{}' is no key of gogoc.conf that is known; it is passed over",
                        other.escape_debug()
                    ),
                }));
            }
        }
        Ok(None)
    }
}

fn is_router(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "host" => Ok(false),
        "router" => Ok(true),
        _ => Err(format!("host_type is host or router, not '{value}'")),
    }
}

fn client(value: &str) -> Result<Option<Ipv4Addr>, String> {
    if value.eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| format!("client_v4 is auto or an IPv4 address, not '{value}'"))
}

fn some(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|text| !text.is_empty())
}

fn place(value: &str) -> Result<Place, String> {
    Place::parse(value).ok_or_else(|| format!("server is HOST or HOST:PORT, reached by IPv4, not '{value}'"))
}

fn mechanism(value: &str) -> Result<Option<Mechanism>, String> {
    match value.to_ascii_lowercase().as_str() {
        "any" => Ok(None),
        "passdss-3des-1" => Err("PASSDSS-3DES-1 is not done; write auth_method=any".to_owned()),
        _ => Mechanism::parse(value).filter(|one| *one != Mechanism::Apop).map(Some).ok_or_else(|| {
            format!("auth_method is any, anonymous, plain, digest-md5 or scram-sha-256, not '{value}'")
        }),
    }
}

fn mode(value: &str) -> Result<Mode, String> {
    match value.parse() {
        Ok(Mode::V4V6) => Err("tunnels of IPv4 in IPv6 (v4v6) are not made".to_owned()),
        Ok(mode) => Ok(mode),
        Err(()) => Err(format!("tunnel_mode is v6anyv4, v6v4 or v6udpv4, not '{value}'")),
    }
}

fn names(value: &str) -> Result<Vec<Name>, String> {
    let parts = value.split(':').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| Name::parse(part).ok_or_else(|| format!("'{part}' is no name of a server"))).collect()
}

fn seconds(key: &str, value: &str) -> Result<Duration, String> {
    let parsed = value.parse().ok().filter(|n| (1..=86_400).contains(n));
    parsed.map(Duration::from_secs).ok_or_else(|| format!("{key} is 1 to 86400 seconds, not '{value}'"))
}

fn yes_or_no(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("yes or no is expected, not '{value}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Gogoc, Mistake> {
        Gogoc::parse("gogoc.conf", text)
    }

    #[test]
    fn every_key_of_the_old_client_is_known() {
        let text = "# sample\nuserid=alice\npasswd= s3=cret \nserver=broker.example:3653\nauth_method=any\nhost_type=router\n\
            prefixlen=56\nif_prefix=eth1\ndns_server=ns1.example:ns2.example\ngogoc_dir=/opt/gogoc\nauto_retry_connect=no\n\
            retry_delay=10\nretry_delay_max=60\nkeepalive=yes\nkeepalive_interval=45\ntunnel_mode=v6udpv4\n\
            if_tunnel_v6v4=sit1\nif_tunnel_v6udpv4=tun7\nif_tunnel_v4v6=sit0\nclient_v4=192.0.2.9\nclient_v6=2001:db8::9\n\
            template=linux\nproxy_client=no\nbroker_list=a.txt\nlast_server=b.txt\nalways_use_same_server=no\n\
            log_console=0\nlog_stderr=1\nlog_file=3\nlog_syslog=0\nlog_filename=x\nlog_rotation=yes\n\
            log_rotation_size=32\nlog_rotation_delete=no\nsyslog_facility=USER\n";
        let found = parse(text).unwrap();
        assert_eq!((found.user.as_str(), found.secret.0.as_str()), ("alice", "s3=cret"));
        assert_eq!(
            (found.server.to_string(), found.router, found.prefix_len),
            ("broker.example".to_owned(), true, 56)
        );
        assert_eq!((found.keepalive, found.mode, found.retry), (45, Mode::V6UdpV4, false));
        assert_eq!((found.tun.as_deref(), found.template.as_deref()), (Some("tun7"), Some("linux")));
        assert_eq!(found.dns.len(), 2);
        assert_eq!(found.client, Some(Ipv4Addr::new(192, 0, 2, 9)));
        assert!(found.notes.iter().all(|note| note.contains("means nothing here")), "{:?}", found.notes);
        assert_eq!(found.notes.len(), IDLE.len());
        assert!(!format!("{found:?}").contains("s3=cret"));
    }

    #[test]
    fn what_is_left_out_is_as_the_old_client_has_it() {
        let found = parse("server=b\nuserid=alice\npasswd=x").unwrap();
        assert_eq!(
            (found.mode, found.keepalive, found.router, found.retry),
            (Mode::V6AnyV4, 30, false, true)
        );
        assert_eq!(parse("server=b\nclient_v6=auto").unwrap().notes, [""; 0], "as everybody has it");
        assert_eq!(found.delays, (Duration::from_secs(30), Duration::from_secs(300)));
        assert_eq!((found.mechanism, found.template), (None, None));
        assert_eq!(parse("server=b").unwrap().mechanism, Some(Mechanism::Anonymous));
        assert_eq!(parse("server=b\nkeepalive_interval=9\nkeepalive=no").unwrap().keepalive, 0);
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let found = parse("server=b\n\nuserid=a\nkeepalve=yes").unwrap();
        assert_eq!(
            found.notes,
            ["gogoc.conf:4: 'keepalve' is no key of gogoc.conf that is known; it is passed over"]
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, why) in [
            ("", 0, "server is missing"),
            ("server=b\nx", 2, "KEY=VALUE"),
            ("server=[2001:db8::1]", 1, "IPv4"),
            ("server=b\nauth_method=plain", 0, "account"),
            ("server=b\nauth_method=passdss-3des-1", 2, "any"),
            ("server=b\nauth_method=apop", 2, "auth_method is"),
            ("server=b\ntunnel_mode=v4v6", 2, "v4v6"),
            ("server=b\ntunnel_mode=x", 2, "tunnel_mode"),
            ("server=b\nprefixlen=0", 2, "prefixlen"),
            ("server=b\nhost_type=x", 2, "host_type"),
            ("server=b\nkeepalive=1", 2, "yes or no"),
            ("server=b\nretry_delay=0", 2, "seconds"),
            ("server=b\nclient_v4=x", 2, "client_v4"),
            ("server=b\ndns_server=a b", 2, "name"),
            ("server=b\ntemplate=../x", 2, "template"),
            ("server=b\nproxy_client=yes", 2, "not done"),
        ] {
            let mistake = parse(text).unwrap_err();
            assert!(mistake.line == line && mistake.to_string().contains(why), "{text}: {mistake}");
        }
    }
}
