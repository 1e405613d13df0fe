//! Bytes in which every loss and every swap shows.

/// xorshift64, from a fixed seed: the same bytes every time.
pub struct Noise(u64);

impl Noise {
    /// So many bytes.
    pub fn bytes(len: usize) -> Vec<u8> {
        let mut all: Vec<u8> = Noise(0x2545_f491_4f6c_dd1d).take(len.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
        all.truncate(len);
        all
    }
}

impl Iterator for Noise {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_asked_and_does_not_repeat() {
        let bytes = Noise::bytes(8195);
        assert_eq!(bytes.len(), 8195);
        assert_ne!(bytes[..4096], bytes[4096..8192]);
    }
}
