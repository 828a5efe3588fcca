//! Connections as they come in: counted, bounded, given little time to say something, and
//! encrypted where the settings say so. What does not become a connection of the API in time costs
//! a place no longer.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{self, Sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::tls::Tls;
use crate::metrics::{Counted, METRICS, Refused};

/// Time for a TLS handshake, and again for the first bytes of HTTP.
const OPENING_TIME_MAX: Duration = Duration::from_secs(5);

/// What a client of HTTP/2 sends before all else (RFC 9113, 3.4) has so many bytes. A request of
/// HTTP/1.1 to this API has more.
const PREFACE_BYTES: usize = 24;

/// Pauses after the system could not accept: from the first to the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// How often an idle TCP connection is probed by the kernel.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// How many connections may be open.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    pub(super) all: usize,
    pub(super) of_an_address: usize,
}

/// Places of connections.
pub(super) struct Places {
    limits: ConnectionLimits,
    taken: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A place, given back when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

/// A connection that the API may answer on.
pub(super) struct Connection {
    io: Io,
    /// Until the first bytes are there.
    opening: Option<Opening>,
    _place: Place,
    _counted: Option<Counted>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

struct Opening {
    deadline: Pin<Box<Sleep>>,
    missing: usize,
}

/// Accepts for as long as somebody takes what comes. A client that leaves unread what was sent to
/// it for `unread_max` loses its connection.
pub(super) fn accept(
    listener: TcpListener,
    limits: ConnectionLimits,
    unread_max: Duration,
    tls: Option<Arc<Tls>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let places = Places::new(limits);
        let mut pause = BACK_OFF.0;
        loop {
            let came = tokio::select! {
                came = listener.accept() => came,
                () = accepted.closed() => return,
            };
            let (stream, address) = match came {
                Ok(came) => came,
                Err(error) => {
                    // Such as too many open files: at once again would keep a core busy.
                    tracing::warn!(%error, "no connection can be accepted");
                    METRICS.refused(Refused::AcceptFailed);
                    time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                    continue;
                }
            };
            pause = BACK_OFF.0;
            let Some(place) = places.take(address) else { continue };
            // A place in the channel is waited for by the task, so that accepting goes on.
            tokio::spawn(open(stream, unread_max, tls.clone(), place, accepted.clone()));
        }
    });
    ReceiverStream::new(connections)
}

async fn open(
    stream: TcpStream,
    unread_max: Duration,
    tls: Option<Arc<Tls>>,
    place: Place,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let counted = Counted::in_gauge(&METRICS.connections);
    if let Err(error) = prepare(&stream, unread_max) {
        return tracing::debug!(%error, "a connection was lost at once");
    }
    let io = match tls {
        None => Io::Plain(stream),
        Some(tls) => {
            let handshake = TlsAcceptor::from(tls.server_config()).accept(stream);
            match time::timeout(OPENING_TIME_MAX, handshake).await {
                Ok(Ok(stream)) => Io::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    METRICS.refused(Refused::Handshake);
                    return tracing::debug!(%error, address = %place.address, "TLS failed");
                }
                Err(_) => return METRICS.refused(Refused::TooSlow),
            }
        }
    };
    let _ = accepted.send(Ok(Connection::new(io, place, Some(counted)))).await;
}

fn prepare(stream: &TcpStream, unread_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_KEEPALIVE)?;
    // HTTP/2's keepalive ends a connection only after it could send its last frame; to a client
    // that does not read its socket it never can.
    #[cfg(target_os = "linux")]
    {
        let millis = u32::try_from(unread_max.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, millis)?;
    }
    Ok(())
}

// === impl Places ===

impl Places {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, taken: AtomicUsize::new(0), by_address: Mutex::default() })
    }

    /// A place for a connection, where there is one.
    pub(super) fn take(self: &Arc<Self>, address: SocketAddr) -> Option<Place> {
        // A client of IPv6 has a whole network of addresses.
        let address = network(address.ip());
        if self.taken.load(Ordering::Relaxed) >= self.limits.all {
            METRICS.refused(Refused::Connections);
            return None;
        }
        let mut by_address = self.by_address.lock();
        let taken = by_address.entry(address).or_default();
        if *taken >= self.limits.of_an_address {
            METRICS.refused(Refused::ConnectionsOfAddress);
            return None;
        }
        *taken += 1;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.places.by_address.lock();
        if let Some(taken) = by_address.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                by_address.remove(&self.address);
            }
        }
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who counts as one: an address of IPv4, a network of 64 bits of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl Connection {
    fn new(io: Io, place: Place, counted: Option<Counted>) -> Self {
        let deadline = Box::pin(time::sleep(OPENING_TIME_MAX));
        let opening = Some(Opening { deadline, missing: PREFACE_BYTES });
        Self { io, opening, _place: place, _counted: counted }
    }

    /// One that is not counted among those of the API.
    pub(super) fn plain(stream: TcpStream, place: Place) -> Self {
        Self::new(Io::Plain(stream), place, None)
    }

    /// Counts what was read until the first bytes are there; an error where they are late.
    fn opened(&mut self, context: &mut Context<'_>, read: Option<usize>) -> io::Result<()> {
        let Some(opening) = &mut self.opening else { return Ok(()) };
        opening.missing = opening.missing.saturating_sub(read.unwrap_or(0));
        if opening.missing == 0 {
            self.opening = None;
        } else if opening.deadline.as_mut().poll(context).is_ready() {
            METRICS.refused(Refused::TooSlow);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        };
        let read = matches!(polled, Poll::Ready(Ok(()))).then(|| buffer.filled().len() - before);
        match self.opened(context, read) {
            Ok(()) => polled,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(context),
            Io::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(context),
            Io::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
