//! CRC-32 as zlib and Ethernet have it.

/// A checksum under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc32(u32);

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0xEDB8_8320
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

impl Crc32 {
    pub(crate) const fn new() -> Self {
        Self(u32::MAX)
    }

    /// The checksum with `data` behind what was added before.
    pub(crate) fn add(self, data: &[u8]) -> Self {
        Self(data.iter().fold(self.0, |crc, &byte| {
            (crc >> 8) ^ TABLE[((crc ^ u32::from(byte)) & 0xFF) as usize]
        }))
    }

    pub(crate) const fn value(self) -> u32 {
        !self.0
    }
}
