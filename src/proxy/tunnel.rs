//! Connections that stopped being HTTP: bytes both ways until one side is done, the target is cut, or the server stops.

use std::{sync::Arc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{io::copy_bidirectional_with_sizes, time::timeout};

use super::{access::Ticket, listen::Connection, target::Seat};

/// How long the two sides may take to leave HTTP after both have agreed.
const HANDOVER: Duration = Duration::from_secs(10);
const BUFFER: usize = 16 * 1024;

/// Starts the tunnel as a task that `serve` waits for. The seat keeps the target from being drained, the ticket the books open.
pub(super) fn start(connection: &Arc<Connection>, client: OnUpgrade, application: OnUpgrade, seat: Seat, mut ticket: Ticket) {
    let hang_up = connection.hang_up.clone();
    let kept = connection.clone();
    connection.tasks.spawn(async move {
        let _kept = kept;
        let cut = seat.cut();
        let carry = async {
            let both = async { tokio::try_join!(client, application) };
            let Ok(Ok((client, application))) = timeout(HANDOVER, both).await else { return };
            let (mut client, mut application) = (TokioIo::new(client), TokioIo::new(application));
            let route = ticket.route().clone();
            // An error is one side going away; the other learns it by the end of its connection.
            if let Ok((up, down)) = copy_bidirectional_with_sizes(&mut client, &mut application, BUFFER, BUFFER).await {
                route.counts.bytes_in.fetch_add(up, std::sync::atomic::Ordering::Relaxed);
                ticket.bytes_out += down;
            }
        };
        tokio::select! {
            () = carry => {}
            () = cut.cancelled() => {}
            () = hang_up.cancelled() => {}
        }
    });
}
