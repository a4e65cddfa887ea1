use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf};

use crate::Stream;

/// Returns the stream of a TLS connection.
pub(super) fn stream(tls: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Stream {
    let (reader, writer) = tokio::io::split(tls);
    Stream::new(TlsReader(reader), writer)
}

/// Reading half of a TLS connection. A connection that ends without a notice of TLS ends like a plain one, whose readers see
/// from the length of a message if it is complete.
struct TlsReader<T>(ReadHalf<T>);

impl<T: AsyncRead> AsyncRead for TlsReader<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buf) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            polled => polled,
        }
    }
}
