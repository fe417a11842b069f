//! A TUN device whose packets go to somebody else by protocol 41 and back: a tunnel's end for programs that want a device of the
//! kernel's, such as DHCPv6 clients and servers.
//!
//! The ends that a kernel makes itself (sit) are not in every kernel. Needs python3; knows nothing of what is in the packets.

use std::path::Path;

use crate::{Job, Lab, PATIENCE, Space, wait_for};

/// What carries the packets.
pub const PYTHON: &str = "/usr/bin/python3";

/// A TUN device of this name in `space`, up, with a link-local address and an MTU of 1280, whose packets go from `local` to
/// `remote` by protocol 41. It goes with the job.
#[track_caller]
pub fn device(lab: &Lab, space: &Space, name: &str, local: &str, remote: &str) -> Job {
    let script = lab.write(&format!("{name}.py"), &script(name, local, remote));
    let log = lab.path(&format!("{name}.log"));
    let job = space.spawn(Path::new(PYTHON), &[&script.to_string_lossy()], &log);
    let up = format!("ip link set {name} up mtu 1280");
    wait_for("the device", PATIENCE, || space.attempt(&up).ok.then_some(()));
    wait_for("a link-local address", PATIENCE, || {
        let shown = space.run(&format!("ip -6 -o addr show dev {name} scope link"));
        shown.contains("fe80").then_some(())
    });
    job
}

/// Packets in, packets out, nothing else; errors of either side are as those of a network.
fn script(name: &str, local: &str, remote: &str) -> String {
    format!(
        "import fcntl, os, select, socket, struct\n\
         tun = os.open('/dev/net/tun', os.O_RDWR)\n\
         fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'{name}', 0x1001))\n\
         raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 41)\n\
         raw.bind(('{local}', 0)); raw.connect(('{remote}', 0))\n\
         while True:\n\
         \x20   ready, _, _ = select.select([tun, raw], [], [])\n\
         \x20   try:\n\
         \x20       if tun in ready: raw.send(os.read(tun, 65535))\n\
         \x20       if raw in ready: os.write(tun, raw.recv(65535)[20:])\n\
         \x20   except OSError: pass\n"
    )
}
