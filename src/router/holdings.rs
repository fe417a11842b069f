//! Who has what, in tunnels and then on links: a page at a time.

use sixway_dataplane::update::Ipv6Prefix;

use super::Control;
use crate::admin::Response;
use crate::admin::leases::{Held, Mark, Page, Sieve, Wish, page, parse_prefix};
use crate::broker::{Binding, Time};

impl Control {
    pub(super) async fn leases(&self, wish: &Wish) -> Response {
        match self.find_leases(wish).await {
            Ok(found) => Response::Leases(found),
            Err(why) => Response::Error(why),
        }
    }

    async fn find_leases(&self, wish: &Wish) -> Result<Page, String> {
        let sieve = Sieve::new(wish)?;
        let after = wish.after.as_ref().and_then(|mark| mark.prefix.as_deref());
        let after = after.map(parse_prefix).transpose()?;
        let mark = |links, prefix: Option<Ipv6Prefix>| {
            Some(Mark { links, prefix: prefix.map(|prefix| prefix.to_string()) })
        };
        if wish.after.as_ref().is_none_or(|mark| !mark.links) {
            let (leases, next) = self.in_tunnels(&sieve, after);
            let more = next.is_some() || self.links.is_some();
            let next = if more { mark(next.is_none(), next) } else { None };
            return Ok(Page { leases, next });
        }
        let Some(links) = &self.links else { return Ok(Page::default()) };
        let Some((leases, next)) = links.leases(sieve, after).await else {
            // It is busy: whoever asks may ask for the same again.
            return Ok(Page { leases: Vec::new(), next: wish.after.clone() });
        };
        Ok(Page { leases, next: next.and_then(|at| mark(true, Some(at))) })
    }

    fn in_tunnels(&self, sieve: &Sieve, after: Option<Ipv6Prefix>) -> (Vec<Held>, Option<Ipv6Prefix>) {
        let Some(office) = &self.office else { return (Vec::new(), None) };
        let now = office.now();
        let told = |one: &&Binding| sieve.lets(&one.key, one.prefix).then(|| held(one, now));
        page(office.broker().bindings_after(after), |one| one.prefix, told)
    }
}

fn held(binding: &Binding, now: Time) -> Held {
    let tunnel = Some(binding.key.tunnel.to_string());
    let left = (!binding.expires.is_never()).then(|| binding.expires.since(now).as_secs());
    Held { tunnel, ..Held::new(&binding.key, binding.prefix, left, binding.reach) }
}
