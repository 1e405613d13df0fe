//! Questions for a name server of the host's, and its answers, on a stream that begins with
//! [`crate::channel::StreamHeader::Names`].
//!
//! ```text
//! guest ──> host, questions; host ──> guest, answers:
//!   length (u16, big endian) of the message | number (u16), the same in the answer | 0: by UDP, 1: by TCP | DNS message
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How somebody has asked, and so how the server is asked: an answer by UDP may be cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// A datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// A question or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameMessage {
    /// Chosen by the guest; of its open questions only one has it.
    pub number: u16,
    /// How.
    pub over: Over,
    /// The DNS message (RFC 1035, section 4), at most 65,535 bytes.
    pub bytes: Vec<u8>,
}

impl NameMessage {
    /// Reads one. Not safe to be cancelled.
    ///
    /// # Errors
    /// `UnexpectedEof` at the stream's end, `InvalidData`, or the stream's.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<NameMessage> {
        let mut head = [0; 5];
        io.read_exact(&mut head).await?;
        let [l0, l1, n0, n1, over] = head;
        let over = match over {
            0 => Over::Udp,
            1 => Over::Tcp,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let mut bytes = vec![0; usize::from(u16::from_be_bytes([l0, l1]))];
        io.read_exact(&mut bytes).await?;
        Ok(NameMessage { number: u16::from_be_bytes([n0, n1]), over, bytes })
    }

    /// Writes it.
    ///
    /// # Errors
    /// `InvalidInput` for one that is too long, or the stream's.
    pub async fn write<T: AsyncWrite + Unpin>(&self, io: &mut T) -> io::Result<()> {
        let length = u16::try_from(self.bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut all = Vec::with_capacity(self.bytes.len() + 5);
        all.extend(length.to_be_bytes());
        all.extend(self.number.to_be_bytes());
        all.push(u8::from(self.over == Over::Tcp));
        all.extend(&self.bytes);
        io.write_all(&all).await?;
        io.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_rubbish_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut bytes = Vec::new();
            let all = [(Over::Udp, 0), (Over::Tcp, 65_535), (Over::Udp, 12)].map(|(over, n)| NameMessage {
                number: 0x1234,
                over,
                bytes: vec![7; n],
            });
            for message in &all {
                message.write(&mut bytes).await.unwrap();
            }
            let mut io = &bytes[..];
            for message in &all {
                assert_eq!(&NameMessage::read(&mut io).await.unwrap(), message);
            }
            assert_eq!(NameMessage::read(&mut io).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let too_long = NameMessage { bytes: vec![0; 65_536], ..all[0].clone() };
            assert_eq!(too_long.write(&mut Vec::new()).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            for bad in [&[0, 1, 0, 0, 2, 9][..], &[0, 9, 0, 0, 0, 1], &[0, 1]] {
                assert!(NameMessage::read(&mut &bad[..]).await.is_err());
            }
        });
    }
}
