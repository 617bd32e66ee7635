//! Shares: how much of a common bound one client address may take, so that nobody can take it all.
//!
//! Called where strangers take places before they have proved anything: handshakes of tunnels, connections to the
//! controller. Addresses of one IPv6 /64 are one client, since a client may have them all. Knows nothing of the bound itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bits of an IPv6 address that tell clients apart: one link has the rest (RFC 4291 §2.5.4).
const IPV6_CLIENT: u128 = !0 << 64;

/// Places by client; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shares {
    each: usize,
    /// Only clients that hold or await a place.
    clients: Arc<Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>>,
}

/// A place; given back on drop.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    client: IpAddr,
    places: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Shares {
    /// At most `each` places, and at least one, for each client.
    pub fn new(each: usize) -> Self {
        Self {
            each: each.clamp(1, Semaphore::MAX_PERMITS),
            clients: Arc::default(),
        }
    }

    /// A place for the client, if it has one left.
    pub fn try_take(&self, client: IpAddr) -> Option<Share> {
        let mut share = self.none_yet(client);
        let places = share.places.as_ref()?;
        share.permit = Some(Arc::clone(places).try_acquire_owned().ok()?);
        Some(share)
    }

    /// Waits until the client has a place left, behind those of the same client only. The caller sets a deadline.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the line.
    pub async fn take(&self, client: IpAddr) -> Share {
        let mut share = self.none_yet(client);
        if let Some(places) = share.places.clone() {
            // Never closed; a closed one would mean that nobody counts.
            share.permit = places.acquire_owned().await.ok();
        }
        share
    }

    fn none_yet(&self, client: IpAddr) -> Share {
        let client = who(client);
        let mut clients = self.locked();
        let places = clients
            .entry(client)
            .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
        Share {
            shares: self.clone(),
            client,
            places: Some(Arc::clone(places)),
            permit: None,
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Arc<Semaphore>>> {
        // Every change under the lock is one insertion or removal.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut clients = self.shares.locked();
        (self.permit, self.places) = (None, None);
        // Whoever else holds or awaits a place has the semaphore too; new ones get it under this lock.
        if let Some(places) = clients.get(&self.client)
            && Arc::strong_count(places) == 1
        {
            clients.remove(&self.client);
        }
    }
}

/// The address by which a client counts.
fn who(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & IPV6_CLIENT).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_has_its_share_and_takes_none_of_the_others() {
        let shares = Shares::new(2);
        let held: Vec<_> = (0..2).map(|_| shares.try_take(ip("10.0.0.1"))).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(shares.try_take(ip("10.0.0.1")).is_none());
        assert!(shares.try_take(ip("::ffff:10.0.0.1")).is_none());
        assert!(shares.try_take(ip("10.0.0.2")).is_some());
        drop(held);
        assert!(shares.try_take(ip("10.0.0.1")).is_some());
        assert!(
            shares.locked().is_empty(),
            "clients without a place are kept"
        );
    }

    #[test]
    fn addresses_of_one_link_are_one_client() {
        let shares = Shares::new(1);
        let _held = shares.try_take(ip("fd00::1")).unwrap();
        assert!(shares.try_take(ip("fd00::2")).is_none());
        assert!(shares.try_take(ip("fd00:0:0:1::1")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_place_and_leaves_nothing_when_it_gives_up() {
        let shares = Shares::new(1);
        let client = ip("10.0.0.1");
        let held = shares.take(client).await;
        let soon = Duration::from_secs(1);
        assert!(timeout(soon, shares.take(client)).await.is_err());
        let other = timeout(soon, shares.take(ip("10.0.0.2"))).await;
        assert!(other.is_ok());
        drop(other);
        let (next, ()) = tokio::join!(timeout(soon, shares.take(client)), async { drop(held) });
        assert!(next.is_ok());
        drop(next);
        assert!(
            shares.locked().is_empty(),
            "clients without a place are kept"
        );
    }
}
