//! DHCPv6 on real links: two of them beside a router's tunnels, and `dhcp6s` by itself; with a client of our own, and with
//! a real one where it is installed.
//!
//! ```text
//!   A a0 ──── s2 S (sixway run, or dhcp6s) s3 ──── b0 B
//! ```

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dhcproto::v6::{DhcpOption, MessageType};
use netns_tests::{Job, Lab, Router, Space, program, wait_for};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Relay, Value};
use sixway_dataplane::update::Ipv6Prefix;

const PATIENCE: Duration = Duration::from_secs(10);
const GROUP: &str = "ff02::1:2";

struct Links {
    a: Space,
    b: Space,
    s: Space,
    lab: Lab,
}

impl Links {
    fn new_or_skip(story: &str) -> Option<Self> {
        let mut lab = Lab::new_or_skip(story)?;
        let (a, b, s) = (lab.space("A"), lab.space("B"), lab.space("S"));
        lab.veth(&a, "a0", &s, "s2");
        lab.veth(&b, "b0", &s, "s3");
        s.run("ip addr add fd00:2::1/64 dev s2 nodad; ip addr add fd00:3::1/64 dev s3 nodad");
        s.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        for (space, device) in [(&a, "a0"), (&b, "b0"), (&s, "s2"), (&s, "s3")] {
            link_local(space, device);
        }
        Some(Self { a, b, s, lab })
    }

    fn conf(&self, more: &str) -> PathBuf {
        let text = format!(
            "option domain-name-servers fd00:2::53;\n\
             interface s2 {{ address-pool p2 60 90; delegated-prefix-pool fd00:200::/40 56 60 90; allow rapid-commit; }};\n\
             interface s3 {{ address-pool p3 60 90; delegated-prefix-pool fd00:300::/40 56 60 90; }};\n\
             pool p2 {{ range fd00:2::1000 to fd00:2::1fff; }};\npool p3 {{ range fd00:3::1000 to fd00:3::1fff; }};\n{more}"
        );
        self.lab.write("dhcp6s.conf", &text)
    }

    /// The configuration of a router that serves both links beside its tunnels.
    fn router(conf: &Path, store: &Path) -> String {
        format!(
            "[router]\ntun = \"six0\"\naddress = [\"fd00:9::1/64\"]\n[store]\npath = \"{}\"\n\
             [dhcpv6]\ninterfaces = [\"s2\", \"s3\"]\nlink_config = \"{}\"\n",
            store.display(),
            conf.display()
        )
    }

    fn dhcp6s(&self, conf: &Path) -> Job {
        self.dhcp6s_with(conf, &self.lab.path("leases.db"))
    }

    fn dhcp6s_with(&self, conf: &Path, leases: &Path) -> Job {
        let log = self.lab.path("dhcp6s.log");
        let before = std::fs::read_to_string(&log).unwrap_or_default().matches("serving s2").count();
        let path = |name: &str| self.lab.path(name).to_string_lossy().into_owned();
        let (pid, duid) = (path("dhcp6s.pid"), path("dhcp6s_duid"));
        let (conf, leases) = (conf.to_string_lossy(), leases.to_string_lossy());
        let args = [
            "dhcp6s",
            "-f",
            "-d",
            "-c",
            &conf,
            "-k",
            "/dev/null",
            "-P",
            &pid,
            "--duid-file",
            &duid,
            "--lease-file",
            &leases,
            "s2",
        ];
        let mut job = self.s.spawn(&program(), &args, &log);
        wait_for("dhcp6s to serve", PATIENCE, || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(job.exited().is_none(), "{said}");
            (said.matches("serving s2").count() > before).then_some(())
        });
        job
    }
}

fn link_local(space: &Space, device: &str) -> Ipv6Addr {
    wait_for("a link-local address", PATIENCE, || {
        let shown = space.run(&format!("ip -6 -o addr show dev {device} scope link -tentative"));
        shown.split_whitespace().find_map(|word| word.split('/').next()?.parse().ok())
    })
}

/// A DHCPv6 client, or a relay, on one end of a cable.
struct Asker {
    socket: UdpSocket,
    scope: u32,
    server: Vec<u8>,
    duid: Vec<u8>,
    port: u16,
}

impl Asker {
    #[track_caller]
    fn on(space: &Space, device: &str, port: u16, duid: u8) -> Self {
        let (socket, scope) = space.inside(|| {
            let Ok(socket) = UdpSocket::bind(("::", port)) else { panic!("cannot bind port {port}") };
            let Ok(scope) = nix::net::if_::if_nametoindex(device) else { panic!("no {device}") };
            (socket, scope)
        });
        assert!(socket.set_read_timeout(Some(Duration::from_secs(3))).is_ok());
        Self { socket, scope, server: Vec::new(), duid: vec![0, 3, 0, 1, 2, 0, 0, 0, 0x53, duid], port }
    }

    #[track_caller]
    fn send(&self, octets: &[u8], group: &str) {
        let Ok(to) = group.parse() else { panic!("{group}") };
        let sent = self.socket.send_to(octets, SocketAddrV6::new(to, 547, 0, self.scope));
        assert!(sent.is_ok(), "{sent:?}");
    }

    /// What comes next, and from which port.
    fn hear(&self) -> Option<(Packet, u16)> {
        let mut buffer = [0; 2048];
        let (len, from) = self.socket.recv_from(&mut buffer).ok()?;
        Some((Packet::parse(buffer.get(..len)?).ok()?, from.port()))
    }

    fn message(&self, kind: MessageType, values: &[Ipv6Prefix]) -> Message {
        let mut options =
            vec![Opt::Leaf(DhcpOption::ClientId(self.duid.clone())), Opt::Leaf(DhcpOption::ReconfAccept)];
        if !matches!(kind, MessageType::Solicit | MessageType::Rebind) {
            options.push(Opt::Leaf(DhcpOption::ServerId(self.server.clone())));
        }
        for (ia, is_one) in [(IaKind::Address, true), (IaKind::Prefix, false)] {
            let own = values.iter().filter(|p| (p.prefix_len() == 128) == is_one);
            let value = |p: &Ipv6Prefix| {
                Part::Value(Value {
                    addr: p.addr(),
                    len: p.prefix_len(),
                    preferred: 0,
                    valid: 0,
                    options: Vec::new(),
                })
            };
            options.push(Opt::Ia(Ia { kind: ia, iaid: 7, t1: 0, t2: 0, parts: own.map(value).collect() }));
        }
        Message { kind, xid: [1, u8::from(kind), self.port as u8], options }
    }

    #[track_caller]
    fn say(&self, kind: MessageType, values: &[Ipv6Prefix]) -> Message {
        let message = self.message(kind, values);
        self.send(&message.emit(), GROUP);
        match self.hear() {
            Some((Packet::Message(answer), 547)) if answer.xid == message.xid => answer,
            other => panic!("{other:?}"),
        }
    }

    /// Four messages; the address, then the prefix.
    #[track_caller]
    fn ask(&mut self) -> (Ipv6Prefix, Ipv6Prefix) {
        let offer = self.say(MessageType::Solicit, &[]);
        self.server = offer.server().unwrap_or_default().to_vec();
        let reply = self.say(MessageType::Request, &given(&offer));
        assert_eq!((offer.kind, reply.kind), (MessageType::Advertise, MessageType::Reply));
        match given(&reply)[..] {
            [address, prefix] => (address, prefix),
            [..] => panic!("{reply:?}"),
        }
    }
}

fn given(answer: &Message) -> Vec<Ipv6Prefix> {
    let values = answer.ias().flat_map(|ia| ia.values().filter(|v| v.valid > 0));
    values.filter_map(|v| Ipv6Prefix::new(v.addr, v.len)).collect()
}

/// The routes of a prefix.
fn route(space: &Space, prefix: &str) -> String {
    space.run(&format!("ip -6 route show {prefix}"))
}

/// RFC: V28, V38 (RFC 8415 section 7.2, RFC 8987 section 4)
#[test]
fn two_links_are_served_beside_the_tunnels() {
    let Some(links) = Links::new_or_skip("DHCPv6 on two links of a router") else { return };
    let (conf, store) = (links.conf(""), links.lab.path("store.db"));
    let config = Links::router(&conf, &store);
    let server = Router::start(&links.lab, &links.s, &config);
    let (mut one, mut two) = (Asker::on(&links.a, "a0", 546, 1), Asker::on(&links.b, "b0", 546, 2));
    let ((here, first), (there, second)) = (one.ask(), two.ask());
    println!("    given: {here}, {first}; {there}, {second}");
    assert!(here.to_string().starts_with("fd00:2::1") && first.to_string().starts_with("fd00:2"));
    assert!(there.to_string().starts_with("fd00:3::1") && second.to_string().starts_with("fd00:3"));
    for (prefix, device) in [(first, "s2"), (second, "s3")] {
        let shown = route(&links.s, &prefix.to_string());
        assert!(shown.contains("via fe80::") && shown.contains(device), "{shown}");
    }
    // What of a pool nobody has leads nowhere.
    assert!(route(&links.s, "fd00:200::/40").contains("blackhole"));
    let leads_nowhere = |space: &Space| !space.attempt("ip -6 route get fd00:2ff::1").ok;
    assert!(leads_nowhere(&links.s));
    let status = server.status();
    for link in ["s2", "s3"] {
        let counts = &status["dhcpv6_links"][link];
        assert_eq!((&counts["leases"], &counts["request"]), (&2.into(), &1.into()), "{counts}");
    }
    let shown =
        links.s.run(&format!("{} status --socket {}", program().display(), server.socket().display()));
    assert!(shown.contains("DHCPv6     s2: 2 leases, 2 answers"), "{shown}");
    // Routes of leases outlive the process; what leads nowhere does not.
    server.stop();
    assert!(route(&links.s, &first.to_string()).contains("via fe80::"));
    assert!(!route(&links.s, "fd00:200::/40").contains("blackhole"));
    let server = Router::start(&links.lab, &links.s, &config);
    assert!(route(&links.s, &first.to_string()).contains("via fe80::"));
    one.say(MessageType::Release, &[here, first]);
    assert_eq!(route(&links.s, &first.to_string()), "");
    assert_eq!(given(&two.say(MessageType::Rebind, &[there, second])), [there, second]);
    server.stop();
}

/// A router does not wait for interfaces that come late: a USB adapter, a VLAN, whatever the boot has not made yet.
#[test]
fn interfaces_that_come_late_are_served_when_they_come() {
    let Some(links) = Links::new_or_skip("DHCPv6 on links that are not there at the start") else { return };
    let s = &links.s;
    for (device, away) in [("s2", "x2"), ("s3", "x3")] {
        s.run(&format!("ip link set {device} down; ip link set {device} name {away}"));
    }
    let (conf, store) = (links.conf(""), links.lab.path("store.db"));
    let config = Links::router(&conf, &store);
    let file = links.lab.write("late.toml", &config);
    let check = || s.run(&format!("{} check {}", program().display(), file.display()));
    let said = check();
    assert!(
        said.contains("there is no 's2' here now") && said.contains("there is no 's3' here now"),
        "{said}"
    );
    let alone = s.attempt(&format!("{} dhcp6s -f -c {} s2", program().display(), conf.display()));
    assert!(!alone.ok && alone.text.contains("there is no interface 's2'"), "{}", alone.text);
    let server = Router::start(&links.lab, s, &config);
    let shown = || s.run(&format!("{} status --socket {}", program().display(), server.socket().display()));
    assert!(shown().contains("DHCPv6     s2: no such interface yet"), "{}", shown());
    assert!(server.reload(&config).ok, "{}", server.log());
    let mut asked = Vec::new();
    for (space, device, n, leases) in [(&links.a, "a0", 2, 2), (&links.b, "b0", 3, 4)] {
        s.run(&format!(
            "ip link set x{n} name s{n}; ip link set s{n} up; ip addr add fd00:{n}::1/64 dev s{n} nodad"
        ));
        link_local(s, &format!("s{n}"));
        wait_for("it to be served", PATIENCE, || {
            shown().contains(&format!("DHCPv6     s{n}: 0 leases")).then_some(())
        });
        let (addr, prefix) = Asker::on(space, device, 546, n).ask();
        assert!(addr.to_string().starts_with(&format!("fd00:{n}::1")), "{addr}");
        let route = route(s, &prefix.to_string());
        assert!(route.contains("via fe80::") && route.contains(&format!("s{n}")), "{route}");
        asked.push(prefix);
        let all: u64 =
            ["s2", "s3"].iter().filter_map(|l| server.status()["dhcpv6_links"][l]["leases"].as_u64()).sum();
        assert_eq!(all, leases);
    }
    assert!(route(s, "fd00:200::/40").contains("blackhole"));
    // A file that has nothing for one of them.
    let text = std::fs::read_to_string(&conf).unwrap_or_default();
    let text: String =
        text.lines().filter(|l| !l.starts_with("interface s3")).map(|l| format!("{l}\n")).collect();
    links.lab.write("dhcp6s.conf", &text);
    let said = check();
    assert!(said.contains("gives nobody on 's3'") && !said.contains("on 's2'"), "{said}");
    server.stop();
}

/// RFC: V32, V35, V38 (RFC 8415 sections 18.3 and 18.3.11)
#[test]
fn dhcp6s_keeps_its_routes_and_tells_its_clients() {
    let Some(links) = Links::new_or_skip("dhcp6s: routes over restarts, Reconfigure, a relay") else {
        return;
    };
    let conf = links.conf("authentication told { protocol reconfig; };");
    let server = links.dhcp6s(&conf);
    let mut client = Asker::on(&links.a, "a0", 546, 1);
    let (address, prefix) = client.ask();
    server.end(Signal::SIGTERM, PATIENCE);
    assert!(route(&links.s, &prefix.to_string()).contains("via fe80::"), "the lease holds");
    // Somebody has taken the route away meanwhile, and left one that no lease has.
    let stray = "fd00:2ff:ff00::/56";
    links.s.run(&format!("ip -6 route del {prefix}; ip -6 route add {stray} via fe80::77 dev s2 proto 61"));
    let server = links.dhcp6s(&conf);
    assert!(route(&links.s, &prefix.to_string()).contains("via fe80::"));
    assert_eq!(route(&links.s, stray), "");
    server.end(Signal::SIGKILL, PATIENCE);
    let server = links.dhcp6s(&conf);
    assert_eq!(given(&client.say(MessageType::Renew, &[address, prefix])), [address, prefix]);

    // At a signal, and after a reload that changes what clients are told.
    let told = |wanted: MessageType| {
        // The server puts numbers on the disk first, which on a busy one takes its time.
        let heard = (0..4).find_map(|_| client.hear());
        let Some((Packet::Message(told), 547)) = heard else { panic!("nothing was heard") };
        assert_eq!((told.kind, told.xid), (MessageType::Reconfigure, [0; 3]));
        assert!(told.options.contains(&Opt::Leaf(DhcpOption::ReconfMsg(wanted))), "{told:?}");
    };
    server.signal(Signal::SIGUSR1);
    told(MessageType::Renew);
    told(MessageType::Renew);
    assert_eq!(given(&client.say(MessageType::Renew, &[address, prefix])), [address, prefix]);
    links.conf("authentication told { protocol reconfig; };\noption domain-name \"example.com\";");
    server.signal(Signal::SIGHUP);
    told(MessageType::InformationRequest);
    // The client's prefix is somebody else's now.
    links.conf(&format!(
        "authentication told {{ protocol reconfig; }};\nhost b {{ duid 00:01; prefix {prefix} 60; }};"
    ));
    server.signal(Signal::SIGHUP);
    told(MessageType::Renew);
    let renewed = client.say(MessageType::Renew, &[address, prefix]);
    assert_eq!(given(&renewed), [address], "{renewed:?}");
    assert!(
        !route(&links.s, &prefix.to_string()).contains("via"),
        "{}",
        route(&links.s, &prefix.to_string())
    );

    // A relay, by the group of all servers of a site, from a port of its own.
    let relay = Asker::on(&links.a, "a0", 5470, 9);
    let inner = client.message(MessageType::Solicit, &[]).emit();
    for (options, port) in [(vec![Opt::Other(135, vec![0, 0])], true), (Vec::new(), false)] {
        let mut options: Vec<Opt> = options;
        options.extend([Opt::Leaf(DhcpOption::InterfaceId(b"x".to_vec())), Opt::Relayed(inner.clone())]);
        let peer = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
        let forward = Relay { is_reply: false, hops: 0, link: Ipv6Addr::UNSPECIFIED, peer, options };
        relay.send(&Packet::Relay(forward).emit(), "ff05::1:3");
        match relay.hear() {
            Some((Packet::Relay(reply), 547)) if port => assert_eq!(reply.interface(), Some(&b"x"[..])),
            None if !port => {}
            other => panic!("{port}: {other:?}"),
        }
    }
    server.end(Signal::SIGTERM, PATIENCE);
}

/// A small disk that this thread and what it starts have for themselves.
struct Disk(PathBuf);

impl Disk {
    #[track_caller]
    fn new(at: PathBuf) -> Self {
        let none = None::<&str>;
        let made = std::fs::create_dir_all(&at).is_ok()
            && unshare(CloneFlags::CLONE_NEWNS).is_ok()
            && mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).is_ok()
            && mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).is_ok();
        assert!(made, "cannot mount a disk");
        Self(at)
    }

    fn fill(&self) {
        let file = std::fs::File::create(self.0.join("filler"));
        while file.as_ref().is_ok_and(|mut file| std::io::Write::write_all(&mut file, &[0; 4096]).is_ok()) {}
    }

    fn empty(&self) {
        assert!(std::fs::remove_file(self.0.join("filler")).is_ok());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone_with_the_thread_else = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_waited_for_and_a_damaged_file_is_mended() {
    let Some(links) = Links::new_or_skip("dhcp6s: leases on a disk that fills, then is damaged") else {
        return;
    };
    let disk = Disk::new(links.lab.path("disk"));
    let leases = links.lab.path("disk/leases.db");
    let duid = "00:03:00:01:02:00:00:00:53:02";
    let conf = links.conf(&format!(
        "host b {{ duid {duid}; address fd00:2::77 infinity; prefix fd00:2ee:ee00::/56 infinity; }};"
    ));
    let server = links.dhcp6s_with(&conf, &leases);
    let mut client = Asker::on(&links.a, "a0", 546, 1);
    let mine = client.ask();
    client.duid[9] = 2;
    let forever = client.ask();
    let renews = |client: &mut Asker, duid, (address, prefix)| {
        client.duid[9] = duid;
        client.send(&client.message(MessageType::Renew, &[address, prefix]).emit(), GROUP);
        client.hear().is_some()
    };
    disk.fill();
    // Within a second nothing is longer than before, and nothing is to be written.
    wait_for("silence", PATIENCE, || (!renews(&mut client, 1, mine)).then_some(()));
    assert!(renews(&mut client, 2, forever), "needs no disk");
    client.duid[9] = 3;
    client.send(&client.message(MessageType::Solicit, &[]).emit(), GROUP);
    assert!(client.hear().is_none(), "offered without a disk");
    // A start reads what is there, and is no better off.
    server.end(Signal::SIGKILL, PATIENCE);
    let server = links.dhcp6s_with(&conf, &leases);
    assert!(renews(&mut client, 2, forever));
    wait_for("silence", PATIENCE, || (!renews(&mut client, 1, mine)).then_some(()));
    disk.empty();
    wait_for("leases to be kept again", PATIENCE, || renews(&mut client, 1, mine).then_some(()));
    server.end(Signal::SIGTERM, PATIENCE);
    let log = || std::fs::read_to_string(links.lab.path("dhcp6s.log")).unwrap_or_default();
    let said = log();
    assert_eq!(said.matches("nobody is told of new or longer leases").count(), 2, "once each: {said}");
    assert_eq!(said.matches("leases are kept on the disk again").count(), 1, "{said}");

    // One bit of the newest record of a lease is another one.
    let mut octets = std::fs::read(&leases).unwrap_or_default();
    let name = [0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0x53, 1];
    let Some(at) = octets.windows(name.len()).rposition(|octets| octets == name) else { panic!("no lease") };
    octets[at + 8] ^= 4;
    assert!(std::fs::write(&leases, octets).is_ok());
    let program = program();
    let line = format!("{} dhcp6s s2 --lease-file {}", program.display(), leases.display());
    let refused = links.s.attempt(&format!("{line} -f -c {} -k /dev/null", conf.display()));
    assert!(!refused.ok && refused.text.contains("--mend-leases --lease-file"), "{}", refused.text);
    let mended = links.s.run(&format!("{line} --mend-leases"));
    assert!(mended.contains("Lost: page") && mended.contains("leases.db.damaged1"), "{mended}");
    let server = links.dhcp6s_with(&conf, &leases);
    assert!(renews(&mut client, 2, forever));
    server.end(Signal::SIGTERM, PATIENCE);
}

/// The client's message by way of the relay, and what comes back through it.
#[track_caller]
fn through(relay: &Asker, message: &Message) -> Message {
    through_with(relay, Vec::new(), message)
}

/// The same, with more that the relay says of the client.
#[track_caller]
fn through_with(relay: &Asker, more: Vec<Opt>, message: &Message) -> Message {
    let (link, peer) =
        (Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 9), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77));
    let mut options =
        vec![Opt::Leaf(DhcpOption::InterfaceId(b"eth7".to_vec())), Opt::Relayed(message.emit())];
    options.extend(more);
    relay.send(&Packet::Relay(Relay { is_reply: false, hops: 0, link, peer, options }).emit(), "ff05::1:3");
    unwrapped(relay)
}

/// What the relay hears for the client behind it.
#[track_caller]
fn unwrapped(relay: &Asker) -> Message {
    let Some((Packet::Relay(reply), 547)) = relay.hear() else { panic!("nothing was heard") };
    assert_eq!((reply.is_reply, reply.interface()), (true, Some(&b"eth7"[..])), "{reply:?}");
    assert_eq!(reply.peer, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77));
    match reply.relayed().map(Packet::parse) {
        Some(Ok(Packet::Message(message))) => message,
        other => panic!("{other:?}"),
    }
}

/// RFC: V45, V46, V35 (RFC 8415 sections 18.3.11 and 19.4)
#[test]
fn a_reload_is_told_through_a_relay_and_to_those_who_only_asked_for_information() {
    let Some(links) = Links::new_or_skip("sixway run on links: a new prefix at once, behind a relay too")
    else {
        return;
    };
    let told = "authentication told { protocol reconfig; };";
    let (conf, store) = (links.conf(told), links.lab.path("store.db"));
    let config = Links::router(&conf, &store);
    let server = Router::start(&links.lab, &links.s, &config);
    let relay = Asker::on(&links.a, "a0", 547, 9);
    let (mut far, mut near) = (Asker::on(&links.a, "a0", 546, 1), Asker::on(&links.b, "b0", 546, 2));
    let offer = through(&relay, &far.message(MessageType::Solicit, &[]));
    far.server = offer.server().unwrap_or_default().to_vec();
    let reply = through(&relay, &far.message(MessageType::Request, &given(&offer)));
    let [address, prefix] = given(&reply)[..] else { panic!("{reply:?}") };
    println!("    given through the relay: {address}, {prefix}");
    // Two on the other link: one with a prefix, one that only asks what there is to know.
    let (_, direct) = near.ask();
    let (only, kind) = (vec![0, 3, 0, 1, 9], MessageType::InformationRequest);
    let inform = |near: &Asker| {
        let client = DhcpOption::ClientId(only.clone());
        let options = vec![Opt::Leaf(client), Opt::Leaf(DhcpOption::ReconfAccept)];
        near.send(&Message { kind, xid: [7, 7, 7], options }.emit(), GROUP);
        let Some((Packet::Message(informed), 547)) = near.hear() else { panic!("no information") };
        assert!(informed.xid == [7, 7, 7] && informed.accepts_reconfigure() && informed.auth().is_some());
    };
    inform(&near);

    let text = std::fs::read_to_string(&conf).unwrap_or_default();
    let text = text.replace("fd00:200::/40", "fd00:400::/40").replace("fd00:300::/40", "fd00:500::/40");
    let news = format!("{text}\noption domain-name \"example.com\";\n");
    assert!(std::fs::write(&conf, news).is_ok());
    assert!(server.reload(&config).ok);
    let wants = |message: &Message, kind| {
        let wanted = Opt::Leaf(DhcpOption::ReconfMsg(kind));
        message.kind == MessageType::Reconfigure && message.options.contains(&wanted)
    };
    let said = unwrapped(&relay);
    assert!(wants(&said, MessageType::Renew) && said.client() == Some(&far.duid[..]), "{said:?}");
    let mut heard: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2 {
        let Some((Packet::Message(said), 547)) = near.hear() else { panic!("{heard:?}") };
        let is_only = said.client() == Some(&only[..]);
        assert!(wants(&said, if is_only { kind } else { MessageType::Renew }), "{said:?}");
        heard.push(said.client().unwrap_or_default().to_vec());
    }
    heard.sort_unstable();
    let mut both = [near.duid.clone(), only.clone()];
    both.sort_unstable();
    assert_eq!(heard, both);
    inform(&near);
    // Each asks, and has a prefix out of the new pool; the old one is over.
    let renewed = through(&relay, &far.message(MessageType::Renew, &[address, prefix]));
    let now = given(&renewed);
    assert!(now.len() == 2 && now.contains(&address) && !now.contains(&prefix), "{renewed:?}");
    assert!(now.iter().any(|new| new.to_string().starts_with("fd00:4")), "{now:?}");
    let renewed = near.say(MessageType::Renew, &[direct]);
    let new = given(&renewed).into_iter().find(|new| new.prefix_len() < 128);
    let new = new.map(|new| new.to_string()).unwrap_or_default();
    assert!(new.starts_with("fd00:5"), "{renewed:?}");
    assert!(route(&links.s, &new).contains("via fe80::"));
    let counts = server.status()["dhcpv6_links"].clone();
    assert_eq!(counts["s2"]["reconfigure_heard"], 1, "{counts}");

    // An account is given what a client on the link has: from then on nobody on a link has it, and the client is told.
    let secret = links.lab.write("secret", "wonderland\n");
    let (program, store) = (program(), store.display());
    let file = secret.display();
    links.s.run(&format!(
        "{} user add alice --store {store} --secret-file {file} --prefix {new}",
        program.display()
    ));
    wait_for("its route to go", PATIENCE, || (!route(&links.s, &new).contains("via")).then_some(()));
    let said = wait_for("the client to be told", PATIENCE, || match near.hear() {
        Some((Packet::Message(said), 547)) => Some(said),
        _ => None,
    });
    assert!(wants(&said, MessageType::Renew) && said.client() == Some(&near.duid[..]), "{said:?}");
    let (address, another) = near.ask();
    assert!(another.to_string().starts_with("fd00:5") && another.to_string() != new, "{another}");

    // What an operator ends, by its name without a length here, is told too.
    let kicked =
        format!("{} kick {} --socket {}", program.display(), address.addr(), server.socket().display());
    let answer = links.s.run(&kicked);
    assert!(answer.contains("ended: 1") && answer.contains("its client is told"), "{answer}");
    let said = near.hear();
    let Some((Packet::Message(said), 547)) = said else { panic!("{said:?}") };
    assert!(wants(&said, MessageType::Renew) && said.client() == Some(&near.duid[..]), "{said:?}");
    server.stop();
}

/// Answers for neighbours that nobody is wait in the queue of their link: the other link is served as ever.
#[test]
fn a_link_whose_neighbours_do_not_answer_stops_no_other_one() {
    let Some(links) =
        Links::new_or_skip("sixway run on links: neighbours that nobody is, interfaces that are not ours")
    else {
        return;
    };
    let (conf, store) = (links.conf(""), links.lab.path("store.db"));
    let server = Router::start(&links.lab, &links.s, &Links::router(&conf, &store));
    let mut other = Asker::on(&links.b, "b0", 546, 2);
    links.a.run("sysctl -qw net.ipv6.ip_nonlocal_bind=1");
    let crowd: Vec<UdpSocket> = links.a.inside(|| {
        let nobody = (0..64).map(|n| Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0xdead, n));
        nobody.filter_map(|addr| UdpSocket::bind((addr, 546)).ok()).collect()
    });
    assert_eq!(crowd.len(), 64);
    let scope = Asker::on(&links.a, "a0", 5546, 9).scope;
    let began = Instant::now();
    for round in 0..160 {
        let duid = vec![7; 30 + round % 90];
        let options = vec![Opt::Leaf(DhcpOption::ClientId(duid))];
        let asked = Message { kind: MessageType::InformationRequest, xid: [9; 3], options }.emit();
        let Ok(to) = GROUP.parse() else { panic!("{GROUP}") };
        for socket in &crowd {
            assert!(socket.send_to(&asked, SocketAddrV6::new(to, 547, 0, scope)).is_ok());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // They are given up after three seconds; before that its queue is full.
    let flooded = began.elapsed();
    let asks = Instant::now();
    other.ask();
    println!("    after {flooded:?} of that, four messages on the other link: {:?}", asks.elapsed());
    // Shorter than a neighbour is waited for.
    assert!(asks.elapsed() < Duration::from_millis(2500), "{:?}", asks.elapsed());
    let counts = || server.status()["dhcpv6_links"].clone();
    let now = counts();
    assert!(now["s2"]["unsent"].as_u64() > Some(0) && now["s3"]["unsent"] == 0, "{now}");
    drop(crowd);
    let here = Asker::on(&links.a, "a0", 546, 1);
    wait_for("the link to come to itself", PATIENCE, || {
        here.send(&here.message(MessageType::Solicit, &[]).emit(), GROUP);
        here.hear().map(drop)
    });

    // Whatever becomes of interfaces that are not ours, nobody looks at ours for that.
    let looks = || wait_for("counts of the link", PATIENCE, || counts()["s2"]["looks"].as_u64());
    let (before, began) = (looks(), Instant::now());
    for n in 0..20 {
        links.s.run(&format!(
            "ip link add x{n} type veth peer name y{n}; ip link set x{n} up; ip link set y{n} up"
        ));
        std::thread::sleep(Duration::from_millis(100));
    }
    // But for the one that comes every half minute.
    let now = looks();
    assert!(now <= before + 1 + began.elapsed().as_secs() / 30, "{before}, {now}");
    let before = looks();
    links.s.run("ip addr add fd00:2::2/64 dev s2 nodad");
    wait_for("the address to be seen", Duration::from_secs(5), || (looks() > before).then_some(()));
    server.stop();
}

/// RFC: V42 (RFC 3315 section 21.4)
#[test]
fn wide_s_client_proves_itself_and_its_prefix_is_routed() {
    let Some(links) = Links::new_or_skip("dhcp6s: wide dhcp6c with delayed authentication") else { return };
    let client = Path::new("/usr/sbin/dhcp6c");
    if !client.exists() {
        netns_tests::skipped(format_args!("{} (wide-dhcpv6-client) is not installed", client.display()));
        return;
    }
    let key = "keyinfo k { realm \"example.com\"; keyid 1; secret \"5pvW2g48OHPvkYMJSw0vZA==\"; };";
    let duid = "00:01:00:01:2b:00:00:02:02:00:00:00:53:02";
    let conf =
        links.conf(&format!("{key}\nhost h {{ duid {duid}; prefix fd00:77::/48 60 90; delayedkey k; }};"));
    let server = links.dhcp6s(&conf);
    links.a.run("ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up");
    let mine = "interface a0 { send ia-pd 1; send authentication a; };\nauthentication a { protocol delayed; };\n\
                id-assoc pd 1 { prefix-interface lan0 { sla-id 1; sla-len 16; }; };\n";
    let mine = links.lab.write("dhcp6c.conf", &format!("{key}\n{mine}"));
    let script = links.lab.write("dhcp6c.sh", &format!(
        "mount -t tmpfs none /var/lib/dhcpv6 2>/dev/null || {{ mkdir -p /var/lib/dhcpv6; }}\n\
         printf '\\016\\000\\000\\001\\000\\001\\053\\000\\000\\002\\002\\000\\000\\000\\123\\002' > /var/lib/dhcpv6/dhcp6c_duid\n\
         exec {} -f -D -c {} -p {} -k /dev/null a0\n",
        client.display(), mine.display(), links.lab.path("dhcp6c.pid").display()
    ));
    let log = links.lab.path("dhcp6c.log");
    let job = links.a.spawn(Path::new("/usr/bin/unshare"), &["-m", "sh", &script.to_string_lossy()], &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("an address on lan0", Duration::from_secs(20), || {
        links.a.run("ip -6 -o addr show dev lan0 scope global").contains("fd00:77:0:1:").then_some(())
    });
    assert!(
        said().contains("message authentication validated") || said().contains("validated"),
        "{}",
        said()
    );
    assert!(route(&links.s, "fd00:77::/48").contains("via fe80::"));
    job.end(Signal::SIGTERM, PATIENCE);
    wait_for(&format!("the release: {}", said()), PATIENCE, || {
        (!route(&links.s, "fd00:77::/48").contains("via")).then_some(())
    });
    assert!(route(&links.s, "fd00:77::/48").contains("blackhole"), "set aside, and nobody's now");
    server.end(Signal::SIGTERM, PATIENCE);
}

/// RFC: V52 (RFC 4649, RFC 4580)
#[test]
fn a_host_that_is_known_by_its_line_keeps_what_is_its_own_with_another_router() {
    let Some(links) = Links::new_or_skip("dhcp6s: hosts known by their lines, through a relay") else {
        return;
    };
    let conf = links.conf(
        "host seven { remote-id 9 \"olt3/7\"; prefix fd00:77::/48 60 90; address fd00:2::77 60 90; };\n\
         host alice { subscriber-id \"alice\"; prefix fd00:88::/48 60 90; };\nlease-query ::1;",
    );
    let server = links.dhcp6s(&conf);
    let relay = Asker::on(&links.a, "a0", 547, 9);
    let mut client = Asker::on(&links.a, "a0", 546, 1);
    let remote = |line: &str| Opt::Other(37, [&[0, 0, 0, 9][..], line.as_bytes()].concat());
    let mut ask = |duid: u8, says: Opt| {
        client.duid = vec![0, 3, 0, 1, 2, 0, 0, 0, 0x53, duid];
        let offer = through_with(&relay, vec![says.clone()], &client.message(MessageType::Solicit, &[]));
        client.server = offer.server().unwrap_or_default().to_vec();
        let request = client.message(MessageType::Request, &given(&offer));
        let all = given(&through_with(&relay, vec![says], &request));
        all.iter().map(ToString::to_string).collect::<Vec<String>>()
    };
    let own = ["fd00:2::77/128", "fd00:77::/48"];
    assert_eq!(ask(1, remote("olt3/7")), own);
    assert_eq!(ask(2, remote("olt3/7")), own, "another router on the same line");
    assert_eq!(ask(3, Opt::Other(38, b"alice".to_vec())), ["fd00:88::/48"]);
    let stranger = ask(1, remote("olt3/8"));
    assert!(stranger[0].starts_with("fd00:2::1") && stranger[1].starts_with("fd00:2"), "{stranger:?}");
    server.end(Signal::SIGKILL, PATIENCE);
    let server = links.dhcp6s(&conf);
    let line = "option 37: 00:00:00:09:6f:6c:74:33:2f:37";
    let said = || links.s.run(&format!("{} lease-query fd00:77::5", program().display()));
    let who = said();
    assert!(who.starts_with("client known by its line, heard ") && who.contains(line), "{who}");
    assert_eq!(ask(4, remote("olt3/7")), own, "a third one, after a crash");
    let who = said();
    assert!(who.starts_with("client 00:03:00:01:02:00:00:00:53:04, heard ") && who.contains(line), "{who}");
    server.end(Signal::SIGTERM, PATIENCE);
}

/// RFC: V49, V53 (RFC 5007)
#[test]
fn who_has_what_is_told_to_those_who_may_ask() {
    let Some(links) = Links::new_or_skip("dhcp6s: lease queries over a link, and on the host itself") else {
        return;
    };
    links.a.run("ip addr add fd00:2::99/64 dev a0 nodad");
    let conf = links.conf("lease-query fd00:2::99, ::1;");
    let server = links.dhcp6s(&conf);
    let mut client = Asker::on(&links.a, "a0", 546, 1);
    let (address, prefix) = client.ask();
    let ask =
        |space: &Space, what: &str| space.attempt(&format!("{} lease-query {what}", program().display()));
    let duid = "00:03:00:01:02:00:00:00:53:01";
    let inside = Ipv6Addr::from(prefix.bits() + 0x1234_5678);
    // From its link, by unicast; by multicast it asks from an address that is not named.
    for what in [address.addr().to_string(), inside.to_string(), prefix.to_string(), format!("--duid {duid}")]
    {
        let done = ask(&links.a, &format!("{what} --server fd00:2::1 --option 23 --json"));
        assert!(done.ok, "{what}: {}", done.text);
        let Ok(told) = serde_json::from_str::<serde_json::Value>(&done.text) else { panic!("{}", done.text) };
        let one = &told["clients"][0];
        assert_eq!(
            (&one["duid"], &one["options"][0]["value"]),
            (&duid.into(), &"fd00:2::53".into()),
            "{told}"
        );
        let mut leases: Vec<&str> =
            one["leases"].as_array().into_iter().flatten().filter_map(|l| l["prefix"].as_str()).collect();
        leases.sort_unstable();
        let mut both = [address.addr().to_string(), prefix.to_string()];
        both.sort_unstable();
        assert_eq!(leases, both, "{told}");
        let left = one["leases"][0]["valid"].as_u64();
        assert!(left.is_some_and(|left| (60..=90).contains(&left)), "{told}");
    }
    let refused = ask(&links.a, &format!("{address} --server ff02::1:2%a0").replace("/128", ""));
    assert!(!refused.ok && refused.text.contains("you may not ask"), "{}", refused.text);
    // From the host itself; after a crash too.
    let here = |what: &str| {
        let done = ask(&links.s, what);
        assert!(done.ok, "{}", done.text);
        done.text
    };
    let said = here(&address.addr().to_string());
    assert!(
        said.starts_with(&format!("client {duid}, heard ")) && said.contains(&prefix.to_string()),
        "{said}"
    );
    assert!(here("fd00:2::1fff").contains("nobody has it"));
    server.end(Signal::SIGKILL, PATIENCE);
    let server = links.dhcp6s(&conf);
    assert!(here(&format!("--duid {duid}")).contains(&prefix.to_string()));
    let strange = ask(&links.s, "2001:db8::1");
    assert!(!strange.ok && strange.text.contains("NotConfigured"), "{}", strange.text);
    // What the file no longer says, nobody is told.
    links.conf("");
    server.signal(Signal::SIGHUP);
    wait_for("the server to be silent", PATIENCE, || {
        let done = ask(&links.s, &format!("--duid {duid} --wait 1"));
        (!done.ok && done.text.contains("has not answered")).then_some(())
    });
    server.end(Signal::SIGTERM, PATIENCE);
}

#[test]
fn who_has_what_is_listed_of_a_router_and_of_a_file() {
    let Some(links) = Links::new_or_skip("DHCPv6: `sixway leases`, and the end of what it lists") else {
        return;
    };
    let listed = |args: &str| links.s.attempt(&format!("{} leases {args}", program().display()));
    let (conf, store) = (links.conf(""), links.lab.path("store.db"));
    let server = Router::start(&links.lab, &links.s, &Links::router(&conf, &store));
    let (mut one, mut two) = (Asker::on(&links.a, "a0", 546, 1), Asker::on(&links.b, "b0", 546, 2));
    let ((here, first), (there, second)) = (one.ask(), two.ask());
    let at = format!("--socket {}", server.socket().display());
    let all = listed(&at);
    println!("{}", all.text);
    assert_eq!(all.text.lines().count(), 5, "{}", all.text);
    let line = |text: &str, prefix: Ipv6Prefix| {
        let shown = if prefix.prefix_len() == 128 { prefix.addr().to_string() } else { prefix.to_string() };
        let found = text.lines().find(|line| line.split_whitespace().next() == Some(&shown));
        let found = found.unwrap_or_else(|| panic!("no {shown} in\n{text}"));
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (prefix, kind, link, duid) in [
        (here, "IA_NA", "s2", "00:03:00:01:02:00:00:00:53:01"),
        (first, "IA_PD", "s2", "00:03:00:01:02:00:00:00:53:01"),
        (there, "IA_NA", "s3", "00:03:00:01:02:00:00:00:53:02"),
        (second, "IA_PD", "s3", "00:03:00:01:02:00:00:00:53:02"),
    ] {
        let line = line(&all.text, prefix);
        assert!(line.contains(&format!("{kind} 7 {duid} ")), "{line}");
        assert!(line.contains(&format!(" {link} fe80::")), "{line}");
    }
    // An address that was declined is nobody's.
    one.say(MessageType::Decline, &[here]);
    let some = listed(&format!("{at} --on s2 --json"));
    let rows: Vec<serde_json::Value> =
        some.text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let declined = rows.iter().find(|row| row["state"] == "declined");
    assert!(declined.is_some_and(|row| row["prefix"] == here.addr().to_string()), "{}", some.text);
    assert_eq!(rows.len(), 2, "{}", some.text);
    let of_one = listed(&format!("{at} --duid 00:03:00:01:02:00:00:00:53:02 --prefix fd00:300::/40"));
    assert_eq!(of_one.text.lines().count(), 2, "{}", of_one.text);
    let nothing = listed(&format!("{at} --duid 00:99"));
    assert!(nothing.ok && nothing.text.contains("nobody has anything"), "{}", nothing.text);
    links.s.run(&format!("{} kick {second} {at}", program().display()));
    assert!(!listed(&at).text.contains(&second.to_string()));
    server.stop();

    // A server without a socket: its file is read while it runs, and when it does not.
    let server = links.dhcp6s(&conf);
    let (here, first) = one.ask();
    let file = links.lab.path("leases.db");
    let of_file = format!("--lease-file {}", file.display());
    let running = listed(&of_file);
    assert!(running.ok, "{}", running.text);
    assert!(line(&running.text, first).contains("IA_PD 7 00:03:00:01:02:00:00:00:53:01"));
    server.end(Signal::SIGKILL, PATIENCE);
    let left = std::fs::read(&file).unwrap_or_default();
    let dead = listed(&of_file);
    assert!(line(&dead.text, here).contains("IA_NA 7 00:03"), "{}", dead.text);
    assert_eq!(std::fs::read(&file).unwrap_or_default(), left, "nothing was done to it");
    let none = listed("--lease-file /nonexistent.db");
    assert!(!none.ok && none.text.contains("--lease-file names another"), "{}", none.text);
}

#[test]
fn two_servers_on_one_host_leave_each_other_alone_and_nobody_loses_what_was_given() {
    let Some(links) =
        Links::new_or_skip("dhcp6s: a second one, starts that fail, a file cut off, a full pool")
    else {
        return;
    };
    const COMMON: &str = "fd00:1111::/48";
    let conf = links.conf(&format!("host h {{ duid 00:77; prefix {COMMON} 60; }};"));
    let first = links.dhcp6s(&conf);
    let path = |name: &str| links.lab.path(name);
    let sinks = || route(&links.s, COMMON).matches("blackhole").count();
    assert_eq!(sinks(), 1);
    let second = |pid: &str| {
        let (conf, duid, leases) = (conf.display(), path("second_duid"), path("second.db"));
        let (duid, leases) = (duid.display(), leases.display());
        format!("dhcp6s -f -d -c {conf} -k /dev/null -P {pid} --duid-file {duid} --lease-file {leases} s3")
    };
    let pid_file = path("dhcp6s.pid");
    let named = std::fs::read_to_string(&pid_file).unwrap_or_default();
    for (pid, why) in [
        (pid_file.display().to_string(), format!("another dhcp6s, process {}", first.pid())),
        ("/nonexistent/x.pid".to_owned(), "/nonexistent/x.pid".to_owned()),
    ] {
        let refused = links.s.attempt(&format!("timeout 30 {} {}", program().display(), second(&pid)));
        assert!(
            !refused.ok && refused.text.contains(&why) && refused.text.contains("-P"),
            "{}",
            refused.text
        );
        assert_eq!(std::fs::read_to_string(&pid_file).unwrap_or_default(), named);
        assert_eq!(sinks(), 1, "a start that fails leaves no route");
        assert!(!path("second.keys").exists() && !path("second.db").exists());
    }
    // One that may: what is common to both stays as long as one of them does.
    let pid = path("second.pid").display().to_string();
    let (words, log) = (second(&pid), path("second.log"));
    let words: Vec<&str> = words.split(' ').collect();
    let other = links.s.spawn(&program(), &words, &log);
    wait_for("both to sink what is common", PATIENCE, || (sinks() == 2).then_some(()));
    other.end(Signal::SIGTERM, PATIENCE);
    assert_eq!(sinks(), 1);
    // What a dead one leaves is its own, and taken back by the next that does not want it.
    let other = links.s.spawn(&program(), &words, &log);
    wait_for("both once more", PATIENCE, || (sinks() == 2).then_some(()));
    other.end(Signal::SIGKILL, PATIENCE);
    assert_eq!(sinks(), 2);
    let other = links.s.spawn(&program(), &words, &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default().matches("serving s3").count();
    wait_for("the third start", PATIENCE, || (said() == 3).then_some(()));
    other.end(Signal::SIGTERM, PATIENCE);
    assert_eq!(sinks(), 1);

    // A file that was cut off takes nothing from anybody; one that has less does what it says.
    let logged = |what: &str| {
        wait_for(what, PATIENCE, || {
            let log = std::fs::read_to_string(path("dhcp6s.log")).unwrap_or_default();
            log.contains(what).then_some(())
        });
    };
    links.lab.write("dhcp6s.conf", "# nothing\n");
    first.signal(Signal::SIGHUP);
    logged("was it cut off?");
    assert_eq!(sinks(), 1);
    links.lab.write("dhcp6s.conf", "interface s3 { delegated-prefix-pool fd00:300::/40 56 60 90; };\n");
    first.signal(Signal::SIGHUP);
    logged("it has pools for s3 and says nothing about s2");
    // A pool of one address.
    let one = "interface s2 { address-pool p 60 90; };\npool p { range fd00:2::7 to fd00:2::7; };\n";
    links.lab.write("dhcp6s.conf", one);
    first.signal(Signal::SIGHUP);
    wait_for("the third reading", PATIENCE, || {
        let log = std::fs::read_to_string(path("dhcp6s.log")).unwrap_or_default();
        (log.matches("has been read again").count() == 2).then_some(())
    });
    let mut lucky = Asker::on(&links.a, "a0", 546, 1);
    let offer = lucky.say(MessageType::Solicit, &[]);
    lucky.server = offer.server().unwrap_or_default().to_vec();
    assert_eq!(given(&lucky.say(MessageType::Request, &given(&offer))).len(), 1);
    lucky.duid.push(2);
    assert_eq!(given(&lucky.say(MessageType::Solicit, &[])), []);
    logged("nothing is left of fd00:2::7 to fd00:2::7, the pool of s2");
    links.s.run("ip link set s2 down");
    logged("s2 is down");
    links.s.run("ip link set s2 up");
    logged("s2 is up");
    first.end(Signal::SIGTERM, PATIENCE);
}
