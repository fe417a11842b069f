//! The DHCPv6 server inside tunnels as the configuration wants it, and what clients lose by changes: bindings that are not to be
//! given any more end, and those who had them are told (RFC 8415 section 18.3.11).
//!
//! Knows no message: [`crate::dhcpv6`] says and reads them.

use anyhow::Context;

use super::Control;
use crate::broker::End;
use crate::dhcpv6::keep::RingFile;
use crate::dhcpv6::server as dhcpv6;

impl Control {
    /// Opens, changes or closes the DHCPv6 server as the configuration says.
    pub(super) fn serve_dhcpv6(&mut self) -> anyhow::Result<()> {
        match (&self.config.dhcpv6, &mut self.dhcpv6) {
            (Some(terms), Some(server)) => {
                server.configure(terms.clone());
                server.leave_gone(&self.registry);
            }
            (Some(terms), None) => {
                let path = self.config.store.path.with_extension("duid");
                let duid = dhcpv6::own_duid(&path, rand::random())
                    .with_context(|| format!("cannot keep the server's DUID in {}", path.display()))?;
                let terms = crate::dhcpv6::session::Terms { duid, ..terms.clone() };
                let keys = self.config.store.path.with_extension("keys");
                let ring = RingFile::open(&keys, rand::random())
                    .with_context(|| format!("cannot keep Reconfigure keys in {}", keys.display()))?;
                let mut server = dhcpv6::Server::new(terms, rand::random());
                server.trust(ring);
                self.dhcpv6 = Some(server);
            }
            (None, _) => self.dhcpv6 = None,
        }
        self.withdraw_bindings();
        self.serve_queries();
        Ok(())
    }

    /// Ends bindings of what the configuration and the accounts do not give any more.
    pub(super) fn withdraw_bindings(&mut self) {
        let Some(office) = &mut self.office else { return };
        let (server, registry, broker) = (&self.dhcpv6, &self.registry, office.broker());
        let gives = |b: &_| server.as_ref().is_some_and(|server| server.still_gives(registry, broker, b));
        let gone: Vec<_> = broker.bindings().filter(|b| !gives(b)).map(|b| b.prefix).collect();
        for prefix in gone {
            office.unbind(prefix, End::Withdrawn);
        }
        if let Some(server) = &mut self.dhcpv6 {
            server.tell_news(office.broker(), self.started.elapsed());
        }
        self.tell_losers();
    }

    /// Has those asked to ask anew who have lost something. What an earlier process has given and the configuration gives no
    /// more is lost before there is a server; where there is none, nobody can be told.
    pub(super) fn tell_losers(&mut self) {
        let (Some(server), Some(office)) = (&mut self.dhcpv6, &self.office) else { return };
        let lost = std::mem::take(&mut self.lost);
        server.tell_losers(&self.registry, &lost, self.started.elapsed(), office.now());
    }

    /// Sends the Reconfigure messages that are due.
    pub(super) fn call_clients(&mut self) {
        let Some(server) = &mut self.dhcpv6 else { return };
        for (id, packet) in server.poll_calls(&self.registry, self.started.elapsed()) {
            self.dispatch.send(id, packet);
        }
    }
}
