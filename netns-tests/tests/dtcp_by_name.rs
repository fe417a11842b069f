//! The program under its old names, `dtcps`, `dtcpc` and `dtcpauth`, with the old flags and files.
//!
//! ```text
//!   C dtcpc ──DTCP──► S dtcps ──IPv6── U
//! ```

use std::fs;
use std::path::PathBuf;

use netns_tests::dtcp::Dtcp;
use netns_tests::{C4, Job, PATIENCE, Rig, S4, U6, pings, program, wait_for};
use nix::sys::signal::Signal;

/// The program by another name, and the files that it uses.
struct Named {
    dtcps: PathBuf,
    dtcpc: PathBuf,
    dtcpauth: PathBuf,
    config: PathBuf,
    auth: PathBuf,
    pid: PathBuf,
}

fn named(rig: &Rig) -> Named {
    let link = |name: &str| {
        let path = rig.lab.path(name);
        std::os::unix::fs::symlink(program(), &path).unwrap_or_else(|why| panic!("cannot link: {why}"));
        path
    };
    let (auth, pid) = (rig.lab.path("auth/pop.auth"), rig.lab.path("dtcps.pid"));
    let text = format!(
        "[admin]\nsocket = \"{}\"\n[store]\npath = \"{}\"\n[dtcp]\npopauth = \"{}\"\npid_file = \"{}\"\n",
        rig.lab.path("s.sock").display(),
        rig.lab.path("s.db").display(),
        auth.display(),
        pid.display()
    );
    let config = rig.lab.write("sixway.toml", &text);
    Named { dtcps: link("dtcps"), dtcpc: link("dtcpc"), dtcpauth: link("dtcpauth"), config, auth, pid }
}

impl Named {
    /// `dtcpauth -init`, then a user foo with the password bar.
    fn users(&self, rig: &Rig) {
        let (auth, file) = (self.dtcpauth.display(), self.auth.display());
        rig.s.run(&format!("{auth} -init --file {file}"));
        rig.s.run(&format!("echo bar | {auth} -user foo --password-file - --file {file}"));
        assert_eq!(rig.s.run(&format!("{auth} -list --file {file}")), "foo\n");
    }
}

fn started(rig: &Rig, args: &[&str]) -> Job {
    let (log, named) = (rig.lab.path("dtcps.log"), rig.lab.path("dtcps"));
    let job = rig.s.spawn(&named, args, &log);
    wait_for("dtcps to run", PATIENCE, || fs::read_to_string(&log).ok()?.contains(" runs;").then_some(()));
    job
}

#[test]
fn dtcps_and_dtcpc_by_name() {
    let Some(rig) = Rig::new_or_skip("dtcps -D, its flags, dtcpauth and dtcpc") else { return };
    let named = named(&rig);
    named.users(&rig);
    let config = named.config.to_string_lossy().into_owned();
    let args =
        ["-D", "-d", "-p", "20201", "-i", "gif10", "-g", "192.0.2.9", "--config", &config, "fd00:2:f::"];
    let server = started(&rig, &args);
    assert_eq!(fs::read_to_string(&named.pid).unwrap_or_default().trim(), server.pid().to_string());
    let mut by_hand = Dtcp::connect_to(&rig.c, C4, &format!("{S4}:20201"));
    let said = by_hand.tunnel("foo", "bar", "host");
    assert_eq!(said, format!("+OK {C4} 192.0.2.9 fd00:2:f::002e fd00:2:f::002d"), "gif10, and -g's address");
    drop(by_hand);
    // What the flags say holds after a reload too: the address that the prefix stands for.
    server.signal(Signal::SIGHUP);
    wait_for("the reload", PATIENCE, || {
        fs::read_to_string(rig.lab.path("dtcps.log")).ok()?.contains("reloaded").then_some(())
    });
    assert!(rig.s.run("ip -6 -o addr show dev six0").contains("fd00:2:f::1/128"));
    assert!(server.end(Signal::SIGTERM, PATIENCE).success());
    assert!(!named.pid.exists(), "the pid file goes");
    let server = started(&rig, &["-D", "--config", &config, "fd00:2:f::"]);
    let (log, secret) = (rig.lab.path("dtcpc.log"), rig.lab.write("secret", "bar\n"));
    let secret = secret.to_string_lossy().into_owned();
    let args = ["-l", "-t", "host", "-u", "foo", "-i", "gif0", "--password-file", &secret, S4];
    let client = rig.c.spawn(&named.dtcpc, &args, &log);
    wait_for("dtcpc's tunnel", PATIENCE, || {
        fs::read_to_string(&log).ok()?.contains("the tunnel is up").then_some(())
    });
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    assert!(client.end(Signal::SIGTERM, PATIENCE).success());
    // As the old start scripts do.
    let pid = rig.lab.path("dtcpc.pid");
    let flags = format!("-t host -D -u foo -f {} --password-file {secret} {S4}", pid.display());
    rig.c.run(&format!("{} {flags} 2>{}", named.dtcpc.display(), rig.lab.path("d.log").display()));
    assert_eq!(pings(&rig.c, U6, 1, ""), 1, "it is up when the command comes back");
    rig.c.run(&format!("kill $(cat {})", pid.display()));
    wait_for("dtcpc's end", PATIENCE, || (!pid.exists()).then_some(()));
    let wrong = flags.replace("-u foo", "-u oof");
    let refused = rig.c.attempt(&format!("{} {wrong}", named.dtcpc.display()));
    assert!(!refused.ok && refused.text.contains("authentication failed"), "{}", refused.text);
    assert!(server.end(Signal::SIGTERM, PATIENCE).success());
}

#[test]
fn dtcps_goes_to_the_background_and_says_what_stands_against_it() {
    let Some(rig) = Rig::new_or_skip("dtcps without -D") else { return };
    let named = named(&rig);
    named.users(&rig);
    let line = format!(
        "{} --config {} fd00:2:f:: 2>{}",
        named.dtcps.display(),
        named.config.display(),
        rig.lab.path("log").display()
    );
    rig.s.run(&line);
    let pid = fs::read_to_string(&named.pid).unwrap_or_default().trim().to_owned();
    let mut foo = Dtcp::connect(&rig.c, C4, S4);
    assert!(foo.tunnel("foo", "bar", "tunnelonly").starts_with("+OK"));
    let second =
        rig.s.attempt(&format!("{} --config {} -p 20202", named.dtcps.display(), named.config.display()));
    assert!(!second.ok, "another one has the admin socket: {}", second.text);
    for wrong in ["-i 'gif['", "-p 0x", "-g nonsense", "fd00:2:f::1"] {
        let done =
            rig.s.attempt(&format!("{} --config {} {wrong}", named.dtcps.display(), named.config.display()));
        assert!(!done.ok && !done.text.is_empty(), "{wrong}: {}", done.text);
    }
    rig.s.run(&format!("kill {pid}"));
    wait_for("its end", PATIENCE, || (!named.pid.exists()).then_some(()));
    wait_for("its process's end", PATIENCE, || {
        (!PathBuf::from(format!("/proc/{pid}")).exists()).then_some(())
    });
}

/// `-U`, `-b` and `-I`: IPv6 in UDP from the port and the name that are given; who asks for protocol 41 gets it beside.
#[test]
fn dtcps_gives_ipv6_in_udp() {
    let Some(rig) = Rig::new_or_skip("dtcps -U -b -I, and dtcpc -U") else { return };
    let named = named(&rig);
    named.users(&rig);
    let config = named.config.to_string_lossy().into_owned();
    let server = started(&rig, &["-D", "-U", "-b", "20300", "-I", "ng4", "--config", &config, "fd00:2:f::"]);
    let mut by_hand = Dtcp::connect(&rig.c, C4, S4);
    let said = by_hand.tunnel("foo", "bar", "host udp");
    let (server_address, client_address) = ("fd00:2:f::0015", "fd00:2:f::0016");
    assert_eq!(
        said,
        format!("+OK {C4} {S4} {client_address} {server_address} udp/20300"),
        "ng4's pair, -b's port"
    );
    assert!(rig.s.run("ss -Hlun").contains(":20300"), "opened when it is asked for");
    drop(by_hand);
    let gone = || (!rig.s.run("ss -Hlun").contains(":20300")).then_some(());
    wait_for("the port to be closed with its tunnel", PATIENCE, gone);
    let (log, secret) = (rig.lab.path("dtcpc.log"), rig.lab.write("secret", "bar\n"));
    let secret = secret.to_string_lossy().into_owned();
    let args = ["-l", "-U", "-t", "host", "-u", "foo", "-i", "ng0", "--password-file", &secret, S4];
    let client = rig.c.spawn(&named.dtcpc, &args, &log);
    wait_for("dtcpc's tunnel", PATIENCE, || {
        fs::read_to_string(&log).ok()?.contains("the tunnel is up").then_some(())
    });
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    assert!(client.end(Signal::SIGTERM, PATIENCE).success());
    assert!(server.end(Signal::SIGTERM, PATIENCE).success());
}

#[test]
fn dtcpauth_keeps_its_file() {
    let Some(rig) = Rig::new_or_skip("dtcpauth") else { return };
    let named = named(&rig);
    named.users(&rig);
    let (auth, file) = (named.dtcpauth.display(), named.auth.display());
    assert!(rig.s.run(&format!("stat -c %a {file}")).contains("600"));
    rig.s.run(&format!("echo secret | {auth} --user alice --password-file - --file {file}"));
    assert_eq!(rig.s.run(&format!("{auth} --list --file {file}")), "alice\nfoo\n");
    rig.s.run(&format!("{auth} -delete foo --file {file}"));
    let gone = rig.s.attempt(&format!("{auth} -delete foo --file {file}"));
    assert!(!gone.ok && gone.text.contains("no user 'foo'"), "{}", gone.text);
    assert_eq!(rig.s.run(&format!("{auth} -list --file {file}")), "alice\n");
    let nothing = rig.s.attempt(&format!("{auth} --file {file}"));
    assert!(!nothing.ok, "{}", nothing.text);
}
