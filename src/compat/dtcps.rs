//! The flags of dtcps(8), put over a configuration: each says one key of `[dtcp]`.
//!
//! Text in, text out; the flags' values are checked where the keys are.

use std::fmt::Write;

use toml::{Table, Value};

/// Where the old program has its route table, if anywhere.
pub const ROUTETABLE: &str = "/usr/local/etc/routetable";
/// Where the dump of the APOP database is looked for. The database itself, `pop.auth.db`, stands beside it.
pub const POPAUTH: &str = "/usr/local/etc/qpopper/pop.auth";
/// Where the old program writes its process's number.
pub const PID_FILE: &str = "/var/run/dtcps.pid";

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-p`: the TCP port.
    pub port: Option<u16>,
    /// The argument: what address pairs begin with.
    pub prefix: Option<String>,
    /// `-i`.
    pub interfaces: Option<String>,
    /// `-c`: `-i` is an expression, whatever it looks like.
    pub no_cloning: bool,
    /// `-o`.
    pub keep: bool,
    /// `-g`.
    pub public_address: Option<String>,
    /// `-U`.
    pub udp: bool,
    /// `-b`.
    pub udp_port: Option<u16>,
    /// `-I`.
    pub udp_interface: Option<String>,
    /// [`ROUTETABLE`]; it need not exist yet.
    pub routetable: Option<String>,
    /// [`POPAUTH`]; it need not exist yet.
    pub popauth: Option<String>,
}

impl Flags {
    /// The configuration `base` with these flags over it.
    ///
    /// # Errors
    /// That `base` is no TOML, or its `[dtcp]` no table; nothing else is looked at.
    pub fn over(&self, base: &str) -> Result<String, String> {
        let mut all: Table = base.parse().map_err(|why: toml::de::Error| why.message().to_owned())?;
        let has_address = all.get("router").and_then(|r| r.get("address")).is_some();
        let dtcp = all.entry("dtcp").or_insert_with(|| Value::Table(Table::new()));
        let dtcp = dtcp.as_table_mut().ok_or("`dtcp` is not a table")?;
        self.put(dtcp);
        // Without an address of its own the router answers nobody; the first one before the pairs is free.
        let prefix =
            dtcp.get("prefix").and_then(Value::as_str).map(|text| text.split('/').next().unwrap_or(text));
        let address =
            prefix.filter(|text| !has_address && text.ends_with("::")).map(|text| format!("{text}1/128"));
        if let Some(address) = address {
            let router = all.entry("router").or_insert_with(|| Value::Table(Table::new()));
            let router = router.as_table_mut().ok_or("`router` is not a table")?;
            router.insert("address".to_owned(), Value::Array(vec![Value::String(address)]));
        }
        let mut text = String::new();
        write!(text, "{all}").map_err(|why| why.to_string())?;
        Ok(text)
    }

    fn put(&self, dtcp: &mut Table) {
        let texts = [
            ("prefix", &self.prefix),
            ("names", &self.interfaces),
            ("public_address", &self.public_address),
            ("udp_names", &self.udp_interface),
        ];
        for (key, text) in texts.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?))) {
            dtcp.insert(key.to_owned(), Value::String(text.clone()));
        }
        // What the file names is not replaced by a place where something happens to be.
        let places = [("routetable", &self.routetable), ("popauth", &self.popauth)];
        for (key, text) in places.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?))) {
            dtcp.entry(key).or_insert_with(|| Value::String(text.clone()));
        }
        dtcp.entry("pid_file").or_insert_with(|| Value::String(PID_FILE.to_owned()));
        if let Some(port) = self.port {
            let listen = dtcp.get("listen").and_then(Value::as_str).unwrap_or_default();
            let addr = listen.rsplit_once(':').map_or("", |(addr, _)| addr);
            let listen = format!("{addr}:{port}");
            dtcp.insert("listen".to_owned(), Value::String(listen));
        }
        if let Some(port) = self.udp_port {
            dtcp.insert("udp_port".to_owned(), Value::Integer(port.into()));
        }
        let switches =
            [("cloning", self.no_cloning, false), ("keep", self.keep, true), ("udp", self.udp, true)];
        for (key, _, value) in switches.into_iter().filter(|(_, said, _)| *said) {
            dtcp.insert(key.to_owned(), Value::Boolean(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::dtcp::interfaces::Names;

    fn config(flags: &Flags, base: &str) -> Config {
        let text = flags.over(base).unwrap();
        Config::parse("dtcps", &text).unwrap_or_else(|why| panic!("{why}\n{text}"))
    }

    #[test]
    fn every_flag_says_a_key() {
        let some = |text: &str| Some(text.to_owned());
        let flags = Flags {
            port: Some(2020),
            prefix: some("3ffe:ffff:ffff:ffff::"),
            interfaces: some("gif10"),
            no_cloning: true,
            keep: true,
            public_address: some("192.0.2.1"),
            udp: true,
            udp_port: Some(5000),
            udp_interface: some("ng3"),
            routetable: some("/r"),
            popauth: some("/p"),
        };
        let config = config(&flags, "");
        let dtcp = config.dtcp.unwrap();
        assert_eq!(dtcp.listen.to_string(), "0.0.0.0:2020");
        assert_eq!(&*dtcp.prefix.unwrap().text, "3ffe:ffff:ffff:ffff::");
        assert!(matches!(dtcp.names, Names::Matching(_)) && dtcp.keep && dtcp.udp);
        assert_eq!((dtcp.udp_port, dtcp.udp_names), (5000, Names::From(3)));
        assert_eq!(dtcp.public_address, Some([192, 0, 2, 1].into()));
        assert_eq!(dtcp.pid_file, Some("/var/run/dtcps.pid".into()));
        assert_eq!(
            config.router.address[0].addr,
            "3ffe:ffff:ffff:ffff::1".parse::<std::net::Ipv6Addr>().unwrap()
        );
    }

    #[test]
    fn flags_come_before_the_file_and_places_behind_it() {
        let base = "[router]\naddress = [\"2001:db8::1/64\"]\n[dtcp]\nlisten = \"10.0.0.1:1\"\nroutetable = \"/mine\"\nudp = true\n";
        let flags = Flags { port: Some(7), routetable: Some("/theirs".to_owned()), ..Flags::default() };
        let config = config(&flags, base);
        let dtcp = config.dtcp.unwrap();
        assert_eq!(dtcp.listen.to_string(), "10.0.0.1:7");
        assert_eq!(dtcp.routetable, Some("/mine".into()));
        assert!(dtcp.udp && config.router.address.len() == 1);
        assert!(flags.over("x").is_err() && flags.over("dtcp = 1").is_err());
    }
}
