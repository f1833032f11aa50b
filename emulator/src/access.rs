//! Loads, stores, atomics and asynchronous copies of a warp: addresses, checks, counting, data.
//!
//! Most warps access one contiguous range or one address; both are recognised once and checked,
//! counted and moved as a whole. Everything else goes lane by lane.
//!
//! The file is long because all of it is one inner loop: every kind of access takes the same steps,
//! and each step is inlined into the two compiled copies of `machine`'s loop.

use crate::atomic;
use crate::findings::{Check, Fault};
use crate::hazards::{excuse, scope, suspect};
use crate::machine::{Copy, Machine, Warp};
use crate::memory::{
    Allocation, LOCAL_BASE, MODULE_BASE, PARAMETER_BASE, SHARED_BASE, WINDOW_BITS, WINDOW_MASK,
};
use crate::op::{NON_COHERENT, Op, SIGNED, STRONG, WIDE_ADDRESS, WIDE_DATA};
use crate::races::Kind;
use crate::registers::{FULL, Registers, Word, halved};
use crate::shadow::Shadow;
use crate::syntax::Space;
use crate::transactions::{Pattern, bank_passes, pattern, sectors, wavefronts};

pub(crate) type Outcome = Result<(), Box<Fault>>;

#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}

#[inline(always)]
pub(crate) fn addresses(registers: &Registers, slot: u16, wide: bool, offset: i64) -> [u64; 32] {
    let mut out = [0u64; 32];
    if wide {
        let base = registers.read::<u64>(slot);
        for lane in 0..32 {
            out[lane] = base[lane].wrapping_add(offset as u64);
        }
    } else {
        let base = registers.read::<u32>(slot);
        for lane in 0..32 {
            out[lane] = u64::from(base[lane].wrapping_add(offset as u32));
        }
    }
    out
}

/// Gives lanes that are off the offset of one that is on, so that whole-warp arithmetic is safe.
#[inline(always)]
fn settle(offsets: &mut [u64; 32], mask: u32) -> usize {
    let first = mask.trailing_zeros() as usize & 31;
    if mask != FULL {
        let stand_in = offsets[first];
        for lane in 0..32 {
            offsets[lane] = u64::blend(stand_in, offsets[lane], mask >> lane & 1 != 0);
        }
    }
    first
}

#[inline(always)]
fn any_beyond(offsets: &[u64; 32], limit: u64) -> bool {
    let mut beyond = 0u64;
    for lane in 0..32 {
        beyond |= u64::from(offsets[lane] > limit);
    }
    beyond != 0
}

pub(crate) fn lanes_where(mask: u32, test: impl Fn(usize) -> bool) -> u32 {
    lanes(mask).filter(|&lane| test(lane)).fold(0, |out, lane| out | 1 << lane)
}

/// A part of memory that one space access resolved to.
struct Place<'m> {
    data: &'m mut [u8],
    shadow: &'m mut Shadow,
    /// Bytes that belong to a variable; red zones do not. `None` where all do.
    valid: Option<&'m Shadow>,
    whole: bool,
}

#[cold]
#[inline(never)]
pub(crate) fn describe_shared(machine: &crate::kernel::Kernel, offset: u64) -> String {
    let dynamic = u64::from(machine.dynamic_base);
    if offset >= dynamic && offset < 1 << 30 {
        return format!("dynamic shared memory + {}", offset - dynamic);
    }
    match machine.shared.iter().rev().find(|v| u64::from(v.start) <= offset) {
        Some(v) => format!("shared `{}` + {}", v.name, offset - u64::from(v.start)),
        None => format!("shared memory + {offset}"),
    }
}

/// Lanes whose addresses are in one memory window.
struct Part {
    space: Space,
    window: u64,
    /// Offsets in the window; those of other lanes mean nothing.
    offsets: [u64; 32],
    mask: u32,
}

/// The first lanes of a mask whose addresses are in one window: nearly always all of them.
#[inline(always)]
fn part(space: Space, address: &[u64; 32], mask: u32) -> Part {
    if !matches!(space, Space::Generic | Space::Global | Space::Const) {
        return Part { space, window: 0, offsets: *address, mask };
    }
    let (number, offset) = (!WINDOW_MASK, WINDOW_MASK);
    let base = address[mask.trailing_zeros() as usize & 31] & number;
    let mut other = 0u64;
    let mut offsets = [0u64; 32];
    for lane in 0..32 {
        offsets[lane] = address[lane] & offset;
        let on = 0u64.wrapping_sub(u64::from(mask >> lane & 1));
        other |= ((address[lane] & number) ^ base) & on;
    }
    let these = match other {
        0 => mask,
        _ => lanes_where(mask, |lane| address[lane] & number == base),
    };
    let space = match base {
        _ if space != Space::Generic => space,
        SHARED_BASE => Space::Shared,
        LOCAL_BASE => Space::Local,
        PARAMETER_BASE => Space::Param,
        _ => Space::Global,
    };
    Part { space, window: base >> WINDOW_BITS, offsets, mask: these }
}

impl Machine<'_> {
    /// The allocation of a window, as an index into the allocations or the module's variables.
    #[inline(always)]
    pub(crate) fn window(&mut self, window: u64) -> Option<&mut Allocation> {
        let module = MODULE_BASE >> WINDOW_BITS;
        if window >= module {
            self.module.get_mut((window - module) as usize)
        } else {
            self.allocations.get_mut((window as usize).wrapping_sub(1))?.as_mut()
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn name_of(&mut self, space: Space, window: u64, offset: u64) -> String {
        match space {
            Space::Shared => describe_shared(self.kernel, offset),
            Space::Local => format!("local memory + {offset}"),
            Space::Param => format!("parameters + {offset}"),
            _ => match self.window(window) {
                Some(allocation) => format!("`{}` + {offset}", allocation.name),
                None => format!("{:#x}, which is in no allocation", window << WINDOW_BITS | offset),
            },
        }
    }

    /// Bounds, alignment, and for local memory the move to the lane's own part. Afterwards every
    /// offset, those of inactive lanes included, is inside the place.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn bound<const CHECK: bool>(
        &mut self,
        warp: &Warp,
        space: Space,
        window: u64,
        offsets: &mut [u64; 32],
        mask: u32,
        width: u64,
        align: u64,
        verb: &str,
    ) -> Outcome {
        settle(offsets, mask);
        let length = match space {
            Space::Shared => self.shared.len() as u64,
            Space::Local => u64::from(self.kernel.local_bytes),
            Space::Param => self.parameters.len() as u64,
            _ => self.window(window).map_or(0, |a| a.data.len() as u64),
        };
        let limit = length.wrapping_sub(width);
        if length < width || any_beyond(offsets, limit) {
            let bad = lanes_where(mask, |lane| length < width || offsets[lane] > limit);
            let offset = offsets[bad.trailing_zeros() as usize & 31];
            return Err(Fault::new(
                Check::OutOfBounds,
                bad,
                format!("{verb} of {width} bytes outside its {length} bytes"),
            )
            .at(self.name_of(space, window, offset)));
        }
        if CHECK {
            let mut low = 0u64;
            for offset in offsets.iter() {
                low |= offset;
            }
            if low & (align - 1) != 0 {
                let bad = lanes_where(mask, |lane| offsets[lane] & (align - 1) != 0);
                let offset = offsets[bad.trailing_zeros() as usize & 31];
                return Err(Fault::new(
                    Check::Misaligned,
                    bad,
                    format!(
                        "{verb} of {align} bytes at an address that is not a multiple of {align}"
                    ),
                )
                .at(self.name_of(space, window, offset)));
            }
        }
        if space == Space::Local {
            let stride = u64::from(self.kernel.local_bytes);
            for (lane, offset) in offsets.iter_mut().enumerate() {
                *offset += lane as u64 * stride;
            }
            // Lanes that are off moved too; they stay inside, each in its own part.
            let _ = warp;
        }
        Ok(())
    }

    #[inline(always)]
    fn place<'m>(&'m mut self, warp: &'m mut Warp, space: Space, window: u64) -> Place<'m> {
        match space {
            Space::Shared => Place {
                data: &mut self.shared,
                shadow: &mut self.shared_shadow,
                valid: self.shared_valid.as_ref(),
                whole: false,
            },
            Space::Local => Place {
                data: &mut warp.local,
                shadow: &mut warp.local_shadow,
                valid: None,
                whole: false,
            },
            Space::Param => Place {
                data: &mut self.parameters,
                shadow: &mut self.no_shadow,
                valid: None,
                whole: true,
            },
            _ => {
                let module = MODULE_BASE >> WINDOW_BITS;
                let allocation = if window >= module {
                    self.module.get_mut((window - module) as usize)
                } else {
                    self.allocations
                        .get_mut((window as usize).wrapping_sub(1))
                        .and_then(Option::as_mut)
                };
                match allocation {
                    Some(allocation) => Place {
                        data: &mut allocation.data,
                        shadow: &mut allocation.shadow,
                        valid: None,
                        whole: allocation.whole,
                    },
                    // Not reached: `bound` has refused the access.
                    None => Place {
                        data: &mut [],
                        shadow: &mut self.no_shadow,
                        valid: None,
                        whole: true,
                    },
                }
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn unwritten(
        &mut self,
        warp: &mut Warp,
        space: Space,
        window: u64,
        offsets: &[u64; 32],
        mask: u32,
        width: usize,
    ) -> Box<Fault> {
        let place = self.place(warp, space, window);
        let bad = lanes_where(mask, |lane| !place.shadow.has_range(offsets[lane] as usize, width));
        let outside = place.valid.is_some_and(|valid| {
            lanes(bad).any(|lane| !valid.has_range(offsets[lane] as usize, width))
        });
        let lane = bad.trailing_zeros() as usize & 31;
        let mut offset = offsets[lane];
        if space == Space::Local {
            offset -= lane as u64 * u64::from(self.kernel.local_bytes);
        }
        let name = self.name_of(space, window, offset);
        let stored = self.stored_undefined(warp, space, offset, width, lane);
        if let Some(fault) = stored {
            return fault.at(name);
        }
        if outside {
            return Fault::new(
                Check::OutOfBounds,
                bad,
                format!("read of {width} bytes past the end of a shared variable"),
            )
            .at(name);
        }
        if space == Space::Shared && self.in_flight(offset, width as u64) {
            let message =
                format!("read of {width} bytes that a bulk copy writes which was not waited for");
            return Fault::new(Check::AsyncHazard, bad, message).at(name);
        }
        let message = format!("read of {width} bytes that were never written");
        Fault::new(Check::Uninitialised, bad, message).at(name)
    }

    /// Checks that what is read has been written.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn written(
        &mut self,
        warp: &mut Warp,
        space: Space,
        window: u64,
        offsets: &[u64; 32],
        mask: u32,
        width: usize,
        pattern: Pattern,
    ) -> Outcome {
        let place = self.place(warp, space, window);
        if place.whole {
            return Ok(());
        }
        let shadow = &*place.shadow;
        let fine = match pattern {
            Pattern::Contiguous => shadow.has_range(offsets[0] as usize, 32 * width),
            Pattern::Uniform => shadow.has(offsets[0] as usize, width),
            Pattern::Scattered => {
                let mut fine = true;
                for lane in 0..32 {
                    fine &= shadow.has(offsets[lane] as usize, width) | (mask >> lane & 1 == 0);
                }
                fine
            }
        };
        if fine { Ok(()) } else { Err(self.unwritten(warp, space, window, offsets, mask, width)) }
    }

    #[inline(always)]
    pub(crate) fn load<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let lead = mask & mask.wrapping_neg();
        let address = addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm);
        let width = u64::from(op.size) * u64::from(op.count);
        let mut left = mask;
        while left != 0 {
            let Part { space, window, mut offsets, mask } = part(op.space, &address, left);
            left &= !mask;
            let offsets = &mut offsets;
            self.bound::<CHECK>(warp, space, window, offsets, mask, width, width, "read")?;
            let pattern = if CHECK || COUNT || width == 4 {
                pattern(offsets, mask, width)
            } else {
                Pattern::Scattered
            };
            if CHECK {
                let kind = match op.order {
                    0 => Kind::Read,
                    order if order & NON_COHERENT != 0 => Kind::ConstantRead,
                    order if order & STRONG != 0 => Kind::StrongRead(scope(order)),
                    _ => Kind::Read,
                };
                let place = (space, window);
                let outcome =
                    self.ordered(warp, place, offsets, mask, width as usize, pattern, kind, pc);
                if let Err(fault) = outcome {
                    suspect(warp, place, offsets, fault, pc)?;
                }
                self.written(warp, space, window, offsets, mask, width as usize, pattern)?;
                if op.order & STRONG != 0 {
                    self.synchronise(warp, place, offsets, mask, op.order, true, false);
                }
            }
            if COUNT {
                self.count_load(
                    op.space, space, window, offsets, mask, width, pattern, op.batch, lead,
                );
            }
            // The registers are lent out while the place may be the warp's own local memory.
            let mut registers = std::mem::take(&mut warp.registers);
            let place = self.place(warp, space, window);
            fetch(&mut registers, op, place.data, offsets, mask, pattern);
            warp.registers = registers;
        }
        Ok(())
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn count_load(
        &mut self,
        stated: Space,
        space: Space,
        window: u64,
        offsets: &[u64; 32],
        mask: u32,
        width: u64,
        pattern: Pattern,
        batch: u32,
        lead: u32,
    ) {
        let active = u64::from(mask.count_ones());
        match space {
            Space::Shared => {
                let (passes, ideal) = wavefronts(offsets, mask, width, pattern);
                let count = &mut self.counters.shared_load;
                count.requests += 1;
                count.wavefronts += passes;
                count.ideal_wavefronts += ideal;
            }
            Space::Global if stated != Space::Const => {
                let sectors = sectors(offsets, mask, width, pattern);
                let count = &mut self.counters.global_load;
                // A warp may address several allocations at once; it is one request.
                count.requests += u64::from(mask & lead != 0);
                count.sectors += sectors;
                count.bytes += active * width;
                self.counters.load_bytes_in_flight += active * width * u64::from(batch) * active;
                if let Some(allocation) = self.window(window) {
                    allocation.traffic.read_bytes += active * width;
                    allocation.traffic.read_sectors += sectors;
                }
            }
            _ => {}
        }
    }

    #[inline(always)]
    fn count_store(
        &mut self,
        space: Space,
        window: u64,
        offsets: &[u64; 32],
        mask: u32,
        width: u64,
        pattern: Pattern,
    ) {
        let active = u64::from(mask.count_ones());
        match space {
            Space::Shared => {
                let (passes, ideal) = wavefronts(offsets, mask, width, pattern);
                let count = &mut self.counters.shared_store;
                count.requests += 1;
                count.wavefronts += passes;
                count.ideal_wavefronts += ideal;
            }
            Space::Global => {
                let sectors = sectors(offsets, mask, width, pattern);
                let count = &mut self.counters.global_store;
                count.requests += 1;
                count.sectors += sectors;
                count.bytes += active * width;
                if let Some(allocation) = self.window(window) {
                    allocation.traffic.written_bytes += active * width;
                    allocation.traffic.written_sectors += sectors;
                }
            }
            _ => {}
        }
    }

    /// Checks that a write stays inside one shared variable, and marks it written.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn mark(
        &mut self,
        warp: &mut Warp,
        space: Space,
        window: u64,
        offsets: &[u64; 32],
        mask: u32,
        width: usize,
        pattern: Pattern,
    ) -> Outcome {
        let place = self.place(warp, space, window);
        if let Some(valid) = place.valid {
            let fine = match pattern {
                Pattern::Contiguous => valid.has_range(offsets[0] as usize, 32 * width),
                Pattern::Uniform => valid.has(offsets[0] as usize, width),
                Pattern::Scattered => {
                    lanes(mask).all(|lane| valid.has(offsets[lane] as usize, width))
                }
            };
            if !fine {
                let bad = lanes_where(mask, |lane| !valid.has_range(offsets[lane] as usize, width));
                let offset = offsets[bad.trailing_zeros() as usize & 31];
                let message = format!("write of {width} bytes past the end of a shared variable");
                return Err(Fault::new(Check::OutOfBounds, bad, message)
                    .at(self.name_of(space, window, offset)));
            }
        }
        if place.whole {
            return Ok(());
        }
        match pattern {
            Pattern::Contiguous => place.shadow.set_range(offsets[0] as usize, 32 * width),
            Pattern::Uniform => place.shadow.set(offsets[0] as usize, width),
            Pattern::Scattered => {
                for lane in lanes(mask) {
                    place.shadow.set(offsets[lane] as usize, width);
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn store<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let address = addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm);
        let width = u64::from(op.size) * u64::from(op.count);
        let mut left = mask;
        while left != 0 {
            let Part { space, window, mut offsets, mask } = part(op.space, &address, left);
            left &= !mask;
            let offsets = &mut offsets;
            if space == Space::Param {
                return Err(Fault::new(Check::OutOfBounds, mask, "write to kernel parameters"));
            }
            self.bound::<CHECK>(warp, space, window, offsets, mask, width, width, "write")?;
            let pattern =
                if CHECK || COUNT { pattern(offsets, mask, width) } else { Pattern::Scattered };
            if CHECK {
                self.mark(warp, space, window, offsets, mask, width as usize, pattern)?;
                let place = (space, window);
                if op.order & STRONG != 0 {
                    let kind = Kind::StrongWrite(scope(op.order));
                    self.ordered(warp, place, offsets, mask, width as usize, pattern, kind, pc)?;
                    self.synchronise(warp, place, offsets, mask, op.order, false, true);
                } else {
                    self.ordered_store(warp, op, place, offsets, mask, pattern, pc)?;
                }
            }
            if COUNT {
                self.count_store(space, window, offsets, mask, width, pattern);
            }
            let registers = std::mem::take(&mut warp.registers);
            let place = self.place(warp, space, window);
            deposit(&registers, op, place.data, offsets, mask);
            warp.registers = registers;
        }
        Ok(())
    }

    pub(crate) fn atomic<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let address = addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm);
        let width = u64::from(op.size);
        let wide = op.flags & WIDE_DATA != 0;
        let mut left = mask;
        while left != 0 {
            let Part { space, window, mut offsets, mask } = part(op.space, &address, left);
            left &= !mask;
            let offsets = &mut offsets;
            if space == Space::Param {
                return Err(Fault::new(Check::OutOfBounds, mask, "write to kernel parameters"));
            }
            self.bound::<CHECK>(warp, space, window, offsets, mask, width, width, "atomic update")?;
            if CHECK {
                let (place, scattered) = ((space, window), Pattern::Scattered);
                let kind = Kind::Atomic(scope(op.order));
                self.ordered(warp, place, offsets, mask, width as usize, scattered, kind, pc)?;
                self.written(warp, space, window, offsets, mask, width as usize, scattered)?;
                self.synchronise(warp, place, offsets, mask, op.order, true, true);
                excuse(warp, place, offsets, mask);
            }
            if COUNT {
                let pattern = pattern(offsets, mask, width);
                let active = u64::from(mask.count_ones());
                if space == Space::Global {
                    let sectors = sectors(offsets, mask, width, pattern);
                    let count = &mut self.counters.global_atomic;
                    count.requests += 1;
                    count.sectors += sectors;
                    count.bytes += active * width;
                    if let Some(allocation) = self.window(window) {
                        allocation.traffic.read_bytes += active * width;
                        allocation.traffic.read_sectors += sectors;
                        allocation.traffic.written_bytes += active * width;
                        allocation.traffic.written_sectors += sectors;
                    }
                } else {
                    self.count_store(space, window, offsets, mask, width, pattern);
                }
            }
            let read = |registers: &Registers, slot: u16, lane: usize| {
                if wide {
                    registers.read::<u64>(slot)[lane]
                } else {
                    u64::from(registers.read::<u32>(slot)[lane])
                }
            };
            let mut old = [0u64; 32];
            for lane in lanes(mask) {
                let operand = read(&warp.registers, op.s[1], lane);
                let second = read(&warp.registers, op.s[2], lane);
                let place = self.place(warp, space, window);
                let at = offsets[lane] as usize;
                let bytes = &mut place.data[at..at + width as usize];
                let mut word = [0u8; 8];
                word[..width as usize].copy_from_slice(bytes);
                old[lane] = u64::from_le_bytes(word);
                let new = atomic::apply(op.count, old[lane], operand, second);
                bytes.copy_from_slice(&new.to_le_bytes()[..width as usize]);
            }
            if wide {
                warp.registers.put(op.d[0], &old, mask);
            } else {
                warp.registers.put(op.d[0], &halved(&old), mask);
            }
        }
        Ok(())
    }

    /// `cp.async`: checked and queued now, done when it is waited for.
    #[inline(always)]
    pub(crate) fn copy<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
        mask: u32,
    ) -> Outcome {
        let width = u64::from(op.size);
        let mut to =
            addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm >> 32);
        let from = addresses(&warp.registers, op.s[1], true, i64::from(op.imm as i32));
        // With a source size, lanes of size 0 read nothing.
        let mut bytes = [width as u32; 32];
        let mut reading = mask;
        let mut fewer = 0u32;
        if op.flags & SIGNED != 0 {
            bytes = *warp.registers.read::<u32>(op.s[2]);
            for lane in 0..32 {
                fewer |= bytes[lane] ^ width as u32;
            }
        }
        if fewer != 0 {
            let bad = lanes_where(mask, |lane| bytes[lane] > width as u32);
            if bad != 0 {
                let size = bytes[bad.trailing_zeros() as usize & 31];
                return Err(Fault::new(
                    Check::InvalidArgument,
                    bad,
                    format!("cp.async of {width} bytes with a source size of {size}"),
                ));
            }
            reading = lanes_where(mask, |lane| bytes[lane] != 0);
        }
        self.bound::<CHECK>(
            warp,
            Space::Shared,
            0,
            &mut to,
            mask,
            width,
            width,
            "asynchronous write",
        )?;
        let to_pattern = pattern(&to, mask, width);
        if CHECK {
            self.mark(warp, Space::Shared, 0, &to, mask, width as usize, to_pattern)?;
            let place = (Space::Shared, 0);
            let kind = Kind::CopyWrite;
            self.ordered(warp, place, &to, mask, width as usize, to_pattern, kind, pc)?;
            match to_pattern {
                Pattern::Contiguous => {
                    self.shared_shadow.unset_range(to[0] as usize, 32 * width as usize);
                }
                _ => {
                    for lane in lanes(mask) {
                        self.shared_shadow.unset(to[lane] as usize, width as usize);
                    }
                }
            }
        }
        if COUNT {
            let (passes, ideal) = wavefronts(&to, mask, width, to_pattern);
            let count = &mut self.counters.shared_store;
            count.requests += 1;
            count.wavefronts += passes;
            count.ideal_wavefronts += ideal;
        }
        let mut copy = Copy {
            mask,
            size: op.size,
            group: warp.commits,
            from,
            to: [0; 32],
            bytes: [0; 32],
            alike: false,
            landed: self.land_early,
        };
        let mut other = 0u64;
        for lane in 0..32 {
            copy.to[lane] = to[lane] as u32;
            copy.bytes[lane] = bytes[lane] as u8;
            other |= (from[lane] ^ from[0]) & !WINDOW_MASK | u64::from(bytes[lane] ^ 16);
        }
        copy.alike = mask == FULL && other == 0;
        // Lanes usually copy the same number of bytes; those that copy fewer are bounded by theirs.
        let lead = reading & reading.wrapping_neg();
        let mut left = reading;
        while left != 0 {
            let Part { space, window, mut offsets, mask } = part(Space::Global, &from, left);
            let offsets = &mut offsets;
            let size = bytes[mask.trailing_zeros() as usize & 31];
            let mask = match fewer {
                0 => mask,
                _ => lanes_where(mask, |lane| bytes[lane] == size),
            };
            left &= !mask;
            let read = u64::from(size);
            let verb = "asynchronous read";
            self.bound::<CHECK>(warp, space, window, offsets, mask, read, width, verb)?;
            let pattern = pattern(offsets, mask, read);
            if CHECK {
                let (place, kind) = ((space, window), Kind::Read);
                self.ordered(warp, place, offsets, mask, read as usize, pattern, kind, pc)?;
                self.written(warp, space, window, offsets, mask, read as usize, pattern)?;
            }
            if COUNT {
                let sectors = sectors(offsets, mask, read, pattern);
                let asked = read * u64::from(mask.count_ones());
                let count = &mut self.counters.async_copy;
                count.requests += u64::from(mask & lead != 0);
                count.sectors += sectors;
                count.bytes += asked;
                if let Some(allocation) = self.window(window) {
                    allocation.traffic.read_bytes += asked;
                    allocation.traffic.read_sectors += sectors;
                }
            }
            let place = self.place(warp, space, window);
            prefetch(place.data, offsets, mask);
        }
        if COUNT {
            warp.bytes_in_flight += bytes_of(&copy, mask);
            warp.copied = true;
        }
        if copy.landed {
            self.put_in_place(&copy, mask);
        }
        warp.copies.push(copy);
        Ok(())
    }

    /// Puts the bytes of lanes of a copy in place. Both sides were bounded when it was issued.
    #[inline(always)]
    fn put_in_place(&mut self, copy: &Copy, mask: u32) {
        if copy.alike && mask == FULL {
            let window = copy.from[0] >> WINDOW_BITS;
            let mut from = copy.from;
            from.iter_mut().for_each(|address| *address &= WINDOW_MASK);
            let source = bytes_of_window(self.allocations, self.module, window);
            for (bytes, &to) in words::<16>(source, &from, 0).iter().zip(&copy.to) {
                self.shared[to as usize..to as usize + 16].copy_from_slice(bytes);
            }
            return;
        }
        self.put_each_in_place(copy, mask);
    }

    fn put_each_in_place(&mut self, copy: &Copy, mask: u32) {
        let size = copy.size as usize;
        let mut source: (u64, &[u8]) = (0, &[]);
        for lane in lanes(mask) {
            let to = copy.to[lane] as usize;
            let read = copy.bytes[lane] as usize;
            let window = copy.from[lane] >> WINDOW_BITS;
            if read != 0 && window != source.0 {
                source = (window, bytes_of_window(self.allocations, self.module, window));
            }
            let at = (copy.from[lane] & WINDOW_MASK) as usize;
            if read == 16 {
                let bytes: [u8; 16] = word(source.1, at);
                self.shared[to..to + 16].copy_from_slice(&bytes);
            } else {
                let target = &mut self.shared[to..to + size];
                if read != 0 {
                    target[..read].copy_from_slice(&source.1[at..at + read]);
                }
                target[read..].fill(0);
            }
        }
    }

    /// Lands, in the lanes of `mask`, all copies but those of the last `groups` groups.
    #[inline(always)]
    pub(crate) fn wait<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        groups: u32,
        all: bool,
    ) {
        if COUNT {
            self.counters.async_waits += 1;
            self.counters.async_bytes_in_flight += warp.bytes_in_flight;
        }
        let mut landed_all = true;
        for copy in &mut warp.copies {
            let mut due = 0u32;
            for lane in 0..32 {
                // Groups up to commits - groups - 1 must be complete.
                let old = copy.group[lane].wrapping_add(groups) < warp.commits[lane];
                due |= u32::from(old | all) << lane;
            }
            due &= mask & copy.mask;
            if due == 0 {
                landed_all &= copy.mask == 0;
                continue;
            }
            let size = copy.size as usize;
            if !copy.landed {
                self.put_in_place(copy, due);
            }
            if CHECK {
                let mut apart = due ^ FULL;
                for lane in 0..32 {
                    apart |= copy.to[lane] ^ (copy.to[0] + (lane * size) as u32);
                }
                let start = copy.to[0] as usize;
                if apart == 0 {
                    self.shared_cells.land_contiguous(start, size, warp.order.warp, self.now);
                    self.shared_shadow.set_range(start, 32 * size);
                } else {
                    for lane in lanes(due) {
                        let (at, thread) = (copy.to[lane] as usize, (warp.order.warp, lane));
                        self.shared_cells.land(at, size, thread, self.now);
                        self.shared_shadow.set(at, size);
                    }
                }
            }
            if COUNT {
                warp.bytes_in_flight -= bytes_of(copy, due);
            }
            copy.mask &= !due;
            landed_all &= copy.mask == 0;
        }
        if landed_all {
            warp.copies.clear();
        } else {
            warp.copies.retain(|copy| copy.mask != 0);
        }
    }

    /// `ldmatrix`: lane 8 i + r holds the address of row r of matrix i; every lane receives two
    /// neighbouring elements of each matrix.
    pub(crate) fn matrix_load<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
    ) -> Outcome {
        let count = op.count as usize;
        let mut offsets = addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm);
        let rows = if count == 4 { FULL } else { (1u32 << (8 * count)) - 1 };
        self.bound::<CHECK>(warp, Space::Shared, 0, &mut offsets, rows, 16, 16, "matrix read")?;
        if CHECK {
            self.ordered_rows(warp, &offsets, rows, Kind::Read, pc)?;
            let fine = lanes(rows).all(|lane| self.shared_shadow.has(offsets[lane] as usize, 16));
            if !fine {
                return Err(self.unwritten(warp, Space::Shared, 0, &offsets, rows, 16));
            }
        }
        if COUNT {
            self.counters.shared_load.requests += 1;
            for matrix in 0..count {
                let (passes, ideal) = bank_passes(&offsets, 0xff << (8 * matrix), 16);
                self.counters.shared_load.wavefronts += passes;
                self.counters.shared_load.ideal_wavefronts += ideal;
            }
        }
        let transposed = op.flags & SIGNED != 0;
        for matrix in 0..count {
            let mut words = [0u32; 32];
            for row in 0..8 {
                let at = offsets[8 * matrix + row] as usize;
                for (column, pair) in self.shared[at..at + 16].chunks_exact(4).enumerate() {
                    let word = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]);
                    if transposed {
                        // Element (row, c) goes to lane 4 c + row / 2, half row % 2.
                        let shift = 16 * (row & 1);
                        words[4 * (2 * column) + row / 2] |= (word & 0xffff) << shift;
                        words[4 * (2 * column + 1) + row / 2] |= (word >> 16) << shift;
                    } else {
                        words[4 * row + column] = word;
                    }
                }
            }
            warp.registers.put(op.d[matrix], &words, FULL);
        }
        Ok(())
    }

    /// `stmatrix`, the reverse of `ldmatrix`.
    pub(crate) fn matrix_store<const CHECK: bool, const COUNT: bool>(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        pc: usize,
    ) -> Outcome {
        let count = op.count as usize;
        let mut offsets = addresses(&warp.registers, op.s[0], op.flags & WIDE_ADDRESS != 0, op.imm);
        let rows = if count == 4 { FULL } else { (1u32 << (8 * count)) - 1 };
        self.bound::<CHECK>(warp, Space::Shared, 0, &mut offsets, rows, 16, 16, "matrix write")?;
        if CHECK {
            self.mark(warp, Space::Shared, 0, &offsets, rows, 16, Pattern::Scattered)?;
            self.ordered_rows(warp, &offsets, rows, Kind::Write, pc)?;
        }
        if COUNT {
            self.counters.shared_store.requests += 1;
            for matrix in 0..count {
                let (passes, ideal) = bank_passes(&offsets, 0xff << (8 * matrix), 16);
                self.counters.shared_store.wavefronts += passes;
                self.counters.shared_store.ideal_wavefronts += ideal;
            }
        }
        let transposed = op.flags & SIGNED != 0;
        for matrix in 0..count {
            let words = *warp.registers.read::<u32>(op.s[1 + matrix]);
            for row in 0..8 {
                let at = offsets[8 * matrix + row] as usize;
                for column in 0..8 {
                    let half = if transposed {
                        words[4 * column + row / 2] >> (16 * (row & 1))
                    } else {
                        words[4 * row + column / 2] >> (16 * (column & 1))
                    };
                    self.shared[at + 2 * column..at + 2 * column + 2]
                        .copy_from_slice(&(half as u16).to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

/// The memory of a window, as `Machine::window` has it.
fn bytes_of_window<'m>(
    allocations: &'m [Option<Allocation>],
    module: &'m [Allocation],
    window: u64,
) -> &'m [u8] {
    let first = MODULE_BASE >> WINDOW_BITS;
    let allocation = if window >= first {
        module.get((window - first) as usize)
    } else {
        allocations.get((window as usize).wrapping_sub(1)).and_then(Option::as_ref)
    };
    allocation.map_or(&[], |allocation| &allocation.data)
}

/// Bytes that lanes of a copy read.
fn bytes_of(copy: &Copy, mask: u32) -> u64 {
    lanes(mask).map(|lane| u64::from(copy.bytes[lane])).sum()
}

/// Has the processor fetch what a copy will read when it lands.
#[inline(always)]
fn prefetch(data: &[u8], offsets: &[u64; 32], mask: u32) {
    #[cfg(target_arch = "x86_64")]
    for lane in lanes(mask) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // Neighbours read the same 64 bytes.
        if lane == 0 || offsets[lane] >> 6 != offsets[lane - 1] >> 6 {
            let address = data.as_ptr().wrapping_add(offsets[lane] as usize);
            // SAFETY: a prefetch reads nothing, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, offsets, mask);
}

#[inline(always)]
fn word<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&data[at..at + N]);
    out
}

/// Words of `N` bytes at the offsets of all lanes, the inactive ones included, and `skip` bytes on.
/// The offsets are looked at once for all, and not before each word.
#[inline(always)]
fn words<const N: usize>(data: &[u8], offsets: &[u64; 32], skip: usize) -> [[u8; N]; 32] {
    let length = data.len() as u64;
    let needed = (skip + N) as u64;
    assert!(length >= needed && !any_beyond(offsets, length - needed));
    let mut out = [[0; N]; 32];
    for lane in 0..32 {
        // SAFETY: the offset is at most the length less `skip + N`, and bytes have no alignment.
        out[lane] = unsafe {
            data.as_ptr().add(offsets[lane] as usize + skip).cast::<[u8; N]>().read_unaligned()
        };
    }
    out
}

/// Memory to registers.
#[inline(always)]
fn fetch(
    registers: &mut Registers,
    op: &Op,
    data: &[u8],
    offsets: &[u64; 32],
    mask: u32,
    pattern: Pattern,
) {
    let count = op.count as usize;
    match op.size {
        4 if op.flags & WIDE_DATA == 0 => {
            if pattern == Pattern::Uniform {
                for k in 0..count {
                    let value = u32::from_le_bytes(word(data, offsets[0] as usize + 4 * k));
                    registers.put(op.d[k], &[value; 32], mask);
                }
                return;
            }
            match count {
                1 => {
                    let mut out = [0u32; 32];
                    if pattern == Pattern::Contiguous {
                        let bytes: [u8; 128] = word(data, offsets[0] as usize);
                        for lane in 0..32 {
                            out[lane] = u32::from_le_bytes(word(&bytes, 4 * lane));
                        }
                    } else {
                        let words = words::<4>(data, offsets, 0);
                        for lane in 0..32 {
                            out[lane] = u32::from_le_bytes(words[lane]);
                        }
                    }
                    registers.put(op.d[0], &out, mask);
                }
                2 => split_in_two(registers, op, data, offsets, mask),
                _ => split_in_four(registers, op, data, offsets, mask),
            }
        }
        8 => {
            for k in 0..count {
                let mut out = [0u64; 32];
                let words = words::<8>(data, offsets, 8 * k);
                for lane in 0..32 {
                    out[lane] = u64::from_le_bytes(words[lane]);
                }
                registers.put(op.d[k], &out, mask);
            }
        }
        size => {
            let signed = op.flags & SIGNED != 0;
            for k in 0..count {
                let mut out = [0u64; 32];
                for lane in 0..32 {
                    let at = offsets[lane] as usize + size as usize * k;
                    out[lane] = match (size, signed) {
                        (1, false) => u64::from(data[at]),
                        (1, true) => data[at] as i8 as u64,
                        (2, false) => u64::from(u16::from_le_bytes(word(data, at))),
                        (2, true) => i16::from_le_bytes(word(data, at)) as u64,
                        (_, false) => u64::from(u32::from_le_bytes(word(data, at))),
                        (_, true) => i32::from_le_bytes(word(data, at)) as u64,
                    };
                }
                if op.flags & WIDE_DATA != 0 {
                    registers.put(op.d[k], &out, mask);
                } else {
                    registers.put(op.d[k], &halved(&out), mask);
                }
            }
        }
    }
}

/// Loads of two words of 4 bytes.
#[inline(always)]
fn split_in_two(registers: &mut Registers, op: &Op, data: &[u8], offsets: &[u64; 32], mask: u32) {
    let words = words::<8>(data, offsets, 0).map(u64::from_le_bytes);
    registers.put(op.d[0], &halved(&words), mask);
    registers.put(op.d[1], &halved(&words.map(|word| word >> 32)), mask);
}

/// Loads of four words of 4 bytes.
#[inline(always)]
fn split_in_four(registers: &mut Registers, op: &Op, data: &[u8], offsets: &[u64; 32], mask: u32) {
    let words = words::<16>(data, offsets, 0);
    let mut out = [[0u32; 32]; 4];
    for (block, four) in words.as_chunks::<4>().0.iter().enumerate() {
        for (out, row) in out.iter_mut().zip(transposed(four)) {
            out[4 * block..4 * block + 4].copy_from_slice(&row);
        }
    }
    for (&slot, out) in op.d.iter().zip(&out) {
        registers.put(slot, out, mask);
    }
}

/// Four words of each of four lanes, by word: compilers take this apart, so it is spelt out.
#[inline(always)]
fn transposed(lanes: &[[u8; 16]; 4]) -> [[u32; 4]; 4] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
        };
        // SAFETY: every x86-64 has SSE2; 16 bytes, four words and a vector are of one size, and
        // every bit pattern of each is valid.
        unsafe {
            let [a, b, c, d]: [__m128i; 4] = std::mem::transmute(*lanes);
            let (low, high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
            let (lower, higher) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
            std::mem::transmute([
                _mm_unpacklo_epi64(low, lower),
                _mm_unpackhi_epi64(low, lower),
                _mm_unpacklo_epi64(high, higher),
                _mm_unpackhi_epi64(high, higher),
            ])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|k| {
        std::array::from_fn(|lane| u32::from_le_bytes(word(&lanes[lane], 4 * k)))
    })
}

/// Registers to memory, in lane order: the last of lanes with one address wins.
#[inline(always)]
fn deposit(registers: &Registers, op: &Op, data: &mut [u8], offsets: &[u64; 32], mask: u32) {
    let size = op.size as usize;
    if (op.size, op.count) == (4, 4) && op.flags & WIDE_DATA == 0 {
        let values: [&[u32; 32]; 4] = std::array::from_fn(|k| registers.read::<u32>(op.s[1 + k]));
        for lane in lanes(mask) {
            let at = offsets[lane] as usize;
            let mut bytes = [0; 16];
            for k in 0..4 {
                bytes[4 * k..4 * k + 4].copy_from_slice(&values[k][lane].to_le_bytes());
            }
            data[at..at + 16].copy_from_slice(&bytes);
        }
        return;
    }
    for k in 0..op.count as usize {
        if op.flags & WIDE_DATA != 0 {
            let values = registers.read::<u64>(op.s[1 + k]);
            for lane in lanes(mask) {
                let at = offsets[lane] as usize + size * k;
                data[at..at + size].copy_from_slice(&values[lane].to_le_bytes()[..size]);
            }
        } else {
            let values = registers.read::<u32>(op.s[1 + k]);
            if size == 4 {
                for lane in lanes(mask) {
                    let at = offsets[lane] as usize + 4 * k;
                    data[at..at + 4].copy_from_slice(&values[lane].to_le_bytes());
                }
            } else {
                for lane in lanes(mask) {
                    let at = offsets[lane] as usize + size * k;
                    data[at..at + size].copy_from_slice(&values[lane].to_le_bytes()[..size.min(4)]);
                }
            }
        }
    }
}
