//! One bit per byte of memory: has it been written?

#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    bits: Vec<u8>,
}

impl Shadow {
    pub(crate) fn new(bytes: usize) -> Self {
        // Two bytes to spare let an aligned 16-byte granule be read as one word.
        Self { bits: vec![0; bytes / 8 + 3] }
    }

    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
    }

    /// The bits of `count` bytes (at most 16) from `start`, aligned to the next power of two of
    /// `count`.
    #[inline(always)]
    fn granule(&self, start: usize, count: usize) -> u32 {
        let at = start >> 3;
        let word = u32::from(self.bits[at]) | u32::from(self.bits[at + 1]) << 8;
        (word >> (start & 7)) & ((1 << count) - 1)
    }

    /// Whether `count` bytes are set; `count` is 1 to 16 and `start` a multiple of it.
    #[inline(always)]
    pub(crate) fn has(&self, start: usize, count: usize) -> bool {
        self.granule(start, count) == (1 << count) - 1
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, start: usize, count: usize) {
        let at = start >> 3;
        let bits = ((1u32 << count) - 1) << (start & 7);
        self.bits[at] |= bits as u8;
        self.bits[at + 1] |= (bits >> 8) as u8;
    }

    #[inline(always)]
    pub(crate) fn unset(&mut self, start: usize, count: usize) {
        let at = start >> 3;
        let bits = ((1u32 << count) - 1) << (start & 7);
        self.bits[at] &= !bits as u8;
        self.bits[at + 1] &= !(bits >> 8) as u8;
    }

    /// Whether a range of any length is set.
    pub(crate) fn has_range(&self, start: usize, count: usize) -> bool {
        if count == 0 {
            return true;
        }
        let (first, last) = (start >> 3, (start + count - 1) >> 3);
        let head = 0xffu8 << (start & 7);
        let tail = 0xffu8 >> (7 - ((start + count - 1) & 7));
        if first == last {
            let mask = head & tail;
            return self.bits[first] & mask == mask;
        }
        self.bits[first] & head == head
            && self.bits[last] & tail == tail
            && self.bits[first + 1..last].iter().all(|&b| b == 0xff)
    }

    pub(crate) fn set_range(&mut self, start: usize, count: usize) {
        self.edit_range(start, count, |byte, mask| *byte |= mask);
    }

    pub(crate) fn unset_range(&mut self, start: usize, count: usize) {
        self.edit_range(start, count, |byte, mask| *byte &= !mask);
    }

    #[inline(always)]
    fn edit_range(&mut self, start: usize, count: usize, edit: impl Fn(&mut u8, u8)) {
        if count == 0 {
            return;
        }
        let (first, last) = (start >> 3, (start + count - 1) >> 3);
        let head = 0xffu8 << (start & 7);
        let tail = 0xffu8 >> (7 - ((start + count - 1) & 7));
        if first == last {
            edit(&mut self.bits[first], head & tail);
            return;
        }
        edit(&mut self.bits[first], head);
        edit(&mut self.bits[last], tail);
        for byte in &mut self.bits[first + 1..last] {
            edit(byte, 0xff);
        }
    }
}
