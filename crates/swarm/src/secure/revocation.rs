use std::future::pending;

use sepal_core::PublicKey;
use tokio::sync::watch;

use super::{Rights, Secret};

/// Secrets whose holders a server accepts at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedSecrets {
    swarm: PublicKey,
    epoch: u32,
    previous: Option<u32>,
}

impl AcceptedSecrets {
    /// Secrets of a founder's secret, in its epoch and perhaps in an earlier one.
    pub fn new(founders: &Secret, previous: Option<u32>) -> Self {
        Self { swarm: founders.swarm(), epoch: founders.epoch(), previous }
    }
}

/// End of the permission of a connection. It comes when the server no longer accepts the secret that admitted the client.
#[derive(Debug, Clone, Default)]
pub struct Revocation(Option<AdmittedSecret>);

#[derive(Debug, Clone)]
struct AdmittedSecret {
    swarm: PublicKey,
    /// `None` for servers, which have no epoch.
    epoch: Option<u32>,
    accepted: watch::Receiver<AcceptedSecrets>,
}

impl Revocation {
    /// Revocation of a client with these rights, which the founder's secret `accepting` has admitted.
    pub fn of_rights(accepting: &Secret, rights: Rights, accepted: watch::Receiver<AcceptedSecrets>) -> Self {
        let epoch = (rights < Rights::Server).then(|| accepting.epoch());
        Self(Some(AdmittedSecret { swarm: accepting.swarm(), epoch, accepted }))
    }

    /// Revocation of a client of any rights at the end of the epoch of `accepting`.
    pub fn of_epoch(accepting: &Secret, accepted: watch::Receiver<AcceptedSecrets>) -> Self {
        Self(Some(AdmittedSecret { swarm: accepting.swarm(), epoch: Some(accepting.epoch()), accepted }))
    }

    /// Waits until the client's secret is revoked; for ever if it never is.
    pub async fn revoked(&mut self) {
        let Some(admitted) = &mut self.0 else { return pending().await };
        let (swarm, epoch) = (admitted.swarm, admitted.epoch);
        let is_accepted = |accepted: &AcceptedSecrets| {
            let is_of_epoch = |epoch: u32| epoch == accepted.epoch || accepted.previous == Some(epoch);
            accepted.swarm == swarm && epoch.is_none_or(is_of_epoch)
        };
        // An error means that nothing revokes secrets any more.
        let is_closed = admitted.accepted.wait_for(|accepted| !is_accepted(accepted)).await.is_err();
        if is_closed {
            pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_revoked(revocation: &Revocation) -> bool {
        let mut revocation = revocation.clone();
        let polled = pin!(revocation.revoked()).poll(&mut Context::from_waker(Waker::noop()));
        polled == Poll::Ready(())
    }

    #[test]
    fn clients_end_with_their_epoch_and_servers_with_their_swarm() {
        let founders = Secret::generate().expect("a secret");
        let next = founders.next_epoch().expect("an epoch");
        let (sender, accepted) = watch::channel(AcceptedSecrets::new(&founders, None));
        let client = Revocation::of_rights(&founders, Rights::Client, accepted.clone());
        let server = Revocation::of_rights(&founders, Rights::Server, accepted.clone());
        let old_server = Revocation::of_epoch(&founders, accepted);
        let revoked = || [&client, &server, &old_server].map(is_revoked);
        assert_eq!(revoked(), [false; 3]);
        sender.send_replace(AcceptedSecrets::new(&next, Some(0)));
        assert_eq!(revoked(), [false; 3], "the earlier epoch is still accepted");
        sender.send_replace(AcceptedSecrets::new(&next, None));
        assert_eq!(revoked(), [true, false, true]);
        sender.send_replace(AcceptedSecrets::new(&Secret::generate().expect("a secret"), None));
        assert_eq!(revoked(), [true; 3], "another founder's secret");
        assert!(!is_revoked(&Revocation::default()));
        drop(sender);
        assert!(is_revoked(&server), "the last secret holds");
    }
}
