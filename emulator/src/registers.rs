//! The registers of one warp: 32 lanes side by side, typeless, 128 bytes a slot. A 64-bit
//! register takes two slots. Predicates are masks, one bit per lane.

/// A mask with every lane of a warp in it.
pub(crate) const FULL: u32 = u32::MAX;

#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Slot([u32; 32]);

#[derive(Clone, Default)]
pub(crate) struct Registers {
    slots: Box<[Slot]>,
    pub predicates: Box<[u32]>,
}

mod sealed {
    pub trait Word: Copy + Default + 'static {
        const SLOTS: usize;
        fn blend(keep: Self, put: Self, on: bool) -> Self;
    }
    impl Word for u32 {
        const SLOTS: usize = 1;
        #[inline(always)]
        fn blend(keep: u32, put: u32, on: bool) -> u32 {
            let mask = 0u32.wrapping_sub(u32::from(on));
            (put & mask) | (keep & !mask)
        }
    }
    impl Word for u64 {
        const SLOTS: usize = 2;
        #[inline(always)]
        fn blend(keep: u64, put: u64, on: bool) -> u64 {
            let mask = 0u64.wrapping_sub(u64::from(on));
            (put & mask) | (keep & !mask)
        }
    }
}
/// What a register lane can hold: `u32` or `u64`.
pub(crate) use sealed::Word;

impl Registers {
    pub(crate) fn new(slots: usize, predicates: usize) -> Self {
        // One slot to spare: a 64-bit view of the last slot stays inside the box.
        Self {
            slots: vec![Slot([0; 32]); slots + 1].into_boxed_slice(),
            predicates: vec![0; predicates].into_boxed_slice(),
        }
    }

    /// Zeroes the slots from `first` on, and every predicate.
    pub(crate) fn clear_from(&mut self, first: usize) {
        for slot in self.slots.iter_mut().skip(first) {
            slot.0 = [0; 32];
        }
        self.predicates.fill(0);
    }

    #[inline(always)]
    pub(crate) fn read<W: Word>(&self, slot: u16) -> &[W; 32] {
        let slot = slot as usize;
        assert!(slot + W::SLOTS <= self.slots.len());
        // SAFETY: `W` is u32 or u64 (the trait is sealed), every bit pattern of either is valid,
        // a slot is 128 bytes aligned to 128, and `W::SLOTS` slots from `slot` are in the box.
        unsafe { &*self.slots.as_ptr().add(slot).cast::<[W; 32]>() }
    }

    #[inline(always)]
    pub(crate) fn write<W: Word>(&mut self, slot: u16) -> &mut [W; 32] {
        let slot = slot as usize;
        assert!(slot + W::SLOTS <= self.slots.len());
        // SAFETY: as in `read`; the exclusive borrow covers the whole box.
        unsafe { &mut *self.slots.as_mut_ptr().add(slot).cast::<[W; 32]>() }
    }

    /// `read` for an operation that is being run.
    ///
    /// # Safety
    /// The slot is below the number that these registers were made with.
    #[inline(always)]
    pub(crate) unsafe fn operand<W: Word>(&self, slot: u16) -> &[W; 32] {
        debug_assert!(slot as usize + 1 < self.slots.len());
        // SAFETY: as in `read`; there is a slot to spare.
        unsafe { &*self.slots.as_ptr().add(slot as usize).cast::<[W; 32]>() }
    }

    /// `put` for an operation that is being run.
    ///
    /// # Safety
    /// As for `operand`.
    #[inline(always)]
    pub(crate) unsafe fn put_result<W: Word>(&mut self, slot: u16, values: &[W; 32], mask: u32) {
        debug_assert!(slot as usize + 1 < self.slots.len());
        // SAFETY: as in `write`; there is a slot to spare.
        let target = unsafe { &mut *self.slots.as_mut_ptr().add(slot as usize).cast::<[W; 32]>() };
        blend(target, values, mask);
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn put<W: Word>(&mut self, slot: u16, values: &[W; 32], mask: u32) {
        blend(self.write::<W>(slot), values, mask);
    }

    #[inline(always)]
    pub(crate) fn put_predicate(&mut self, index: u16, value: u32, mask: u32) {
        let target = &mut self.predicates[index as usize];
        *target = (*target & !mask) | (value & mask);
    }
}

#[inline(always)]
fn blend<W: Word>(target: &mut [W; 32], values: &[W; 32], mask: u32) {
    if mask == FULL {
        *target = *values;
    } else {
        for lane in 0..32 {
            target[lane] = W::blend(target[lane], values[lane], mask >> lane & 1 != 0);
        }
    }
}

/// The lower halves of 64-bit values.
#[inline(always)]
pub(crate) fn halved(values: &[u64; 32]) -> [u32; 32] {
    let mut out = [0u32; 32];
    for lane in 0..32 {
        out[lane] = values[lane] as u32;
    }
    out
}
