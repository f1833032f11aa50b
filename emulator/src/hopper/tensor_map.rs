//! Tensor maps (PTX ISA 5.5.8, 9.7.9.27): the 128 bytes that tell a tensor copy where a tensor lies,
//! and the way of such a copy through a box of it.
//!
//! The bits of a GPU's own `CUtensorMap` are opaque, so this is a structure of the emulator's with
//! the meaning, and with the conditions, of `cuTensorMapEncodeTiled` (CUDA driver API, "Tensor Map
//! Object Management"). A kernel takes it as a `const __grid_constant__` parameter of 128 bytes,
//! aligned to 64. Without interleaving; im2col maps do not exist here. Half of the file is its tests.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of an encoded map.
pub const TENSOR_MAP_BYTES: usize = 128;
/// How an encoded map begins.
const MAGIC: [u8; 8] = *b"SPANTMAP";
/// Dimensions a tensor can have.
const MOST_RANK: usize = 5;

/// What a tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum TensorElement {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
    Bf16,
    /// f32 whose low 13 bits a tensor core ignores; copied as it is.
    Tf32,
}

impl TensorElement {
    const ALL: [Self; 11] = [
        Self::U8,
        Self::U16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F16,
        Self::F32,
        Self::F64,
        Self::Bf16,
        Self::Tf32,
    ];

    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 | Self::Tf32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F64 | Self::Bf16 | Self::Tf32)
    }
}

/// How the 16-byte chunks of a box are permuted in shared memory, so that a column of it lies in
/// different banks: bits of the address that number chunks are combined, by exclusive or, with bits
/// that number rows of 128 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Swizzle {
    /// As they come.
    #[default]
    #[serde(rename = "none")]
    None,
    /// Address bit 4 with bit 7.
    #[serde(rename = "32B")]
    Bytes32,
    /// Bits 4 and 5 with bits 7 and 8.
    #[serde(rename = "64B")]
    Bytes64,
    /// Bits 4 to 6 with bits 7 to 9.
    #[serde(rename = "128B")]
    Bytes128,
}

impl Swizzle {
    const ALL: [Self; 4] = [Self::None, Self::Bytes32, Self::Bytes64, Self::Bytes128];

    /// The bytes in which chunks are permuted; `None` where they are not.
    pub fn span(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes32 => Some(32),
            Self::Bytes64 => Some(64),
            Self::Bytes128 => Some(128),
        }
    }

    /// Where the byte that would be at this shared-memory address is.
    pub fn apply(self, address: u64) -> u64 {
        self.apply_from(address, 0)
    }

    /// The same for a pattern that begins `rows` times 128 bytes after an aligned address.
    pub(crate) fn apply_from(self, address: u64, rows: u64) -> u64 {
        let chunks = self.span().map_or(0, |span| span / 16 - 1);
        address ^ ((address >> 7).wrapping_sub(rows) & chunks) << 4
    }
}

/// What a copy puts in the place of elements outside the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutOfBoundsFill {
    /// Zero.
    #[default]
    Zero,
    /// NaN; for floats only.
    Nan,
}

/// A tensor in global memory and the box that copies move. Dimension 0 is the innermost, whose
/// elements lie next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Element type.
    pub element: TensorElement,
    /// Dimensions, 1 to 5; entries of the arrays from `rank` on mean nothing.
    pub rank: usize,
    /// Device address of element 0.
    pub address: u64,
    /// Elements in each dimension.
    pub shape: [u64; MOST_RANK],
    /// Bytes from one element to the next in dimensions 1, 2, ...
    pub strides: [u64; MOST_RANK - 1],
    /// Elements that a copy spans in each dimension.
    pub tile: [u32; MOST_RANK],
    /// Every how many elements a copy takes one; without effect in dimension 0.
    pub element_strides: [u32; MOST_RANK],
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// What stands for elements outside the tensor.
    pub fill: OutOfBoundsFill,
}

/// A tensor map that cannot be encoded, or bytes that are none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TensorMapError {
    /// A value is outside what the hardware accepts.
    #[error("tensor map: {field} is {given}, expected {expected}")]
    Value {
        /// Which value, such as `strides[0]`.
        field: String,
        /// What was given.
        given: u64,
        /// What is accepted.
        expected: String,
    },
    /// The arrays do not fit the rank.
    #[error("tensor map: {field} has {given} entries, expected {expected}")]
    Length {
        /// Which array.
        field: &'static str,
        /// Entries given.
        given: usize,
        /// Entries expected.
        expected: String,
    },
    /// NaN cannot stand for elements of an integer type.
    #[error("tensor map: NaN as the fill of {0:?}, which is no float")]
    NanOfIntegers(TensorElement),
    /// The bytes are not an encoded map.
    #[error("these 128 bytes are no tensor map of the emulator")]
    NotEncoded,
}

impl TensorMap {
    /// A map with dense elements, no swizzle and zero fill: `shape` and `tile` innermost first,
    /// `strides` in bytes from dimension 1 on.
    ///
    /// # Errors
    /// Arrays whose lengths do not agree. Values are checked by [`encode`](Self::encode).
    pub fn new(
        element: TensorElement,
        address: u64,
        shape: &[u64],
        strides: &[u64],
        tile: &[u32],
    ) -> Result<Self, TensorMapError> {
        let rank = shape.len();
        let length =
            |field, given, expected: String| TensorMapError::Length { field, given, expected };
        if rank == 0 || rank > MOST_RANK {
            return Err(length("shape", rank, format!("1 to {MOST_RANK}")));
        }
        if strides.len() != rank - 1 {
            return Err(length("strides", strides.len(), (rank - 1).to_string()));
        }
        if tile.len() != rank {
            return Err(length("tile", tile.len(), rank.to_string()));
        }
        let mut map = Self {
            element,
            rank,
            address,
            shape: [1; MOST_RANK],
            strides: [0; MOST_RANK - 1],
            tile: [1; MOST_RANK],
            element_strides: [1; MOST_RANK],
            swizzle: Swizzle::None,
            fill: OutOfBoundsFill::Zero,
        };
        map.shape[..rank].copy_from_slice(shape);
        map.strides[..rank - 1].copy_from_slice(strides);
        map.tile[..rank].copy_from_slice(tile);
        Ok(map)
    }

    /// Checks every condition of `cuTensorMapEncodeTiled`.
    pub fn check(&self) -> Result<(), TensorMapError> {
        let value = |field: String, given: u64, expected: &str| {
            Err(TensorMapError::Value { field, given, expected: expected.to_owned() })
        };
        if self.rank == 0 || self.rank > MOST_RANK {
            return value("rank".into(), self.rank as u64, "1 to 5");
        }
        if !self.address.is_multiple_of(16) {
            return value("address".into(), self.address, "a multiple of 16");
        }
        for at in 0..self.rank {
            if self.shape[at] == 0 || self.shape[at] > 1 << 32 {
                return value(format!("shape[{at}]"), self.shape[at], "1 to 2^32");
            }
            if self.tile[at] == 0 || self.tile[at] > 256 {
                return value(format!("tile[{at}]"), self.tile[at].into(), "1 to 256");
            }
            let step = self.element_strides[at];
            if step == 0 || step > 8 {
                return value(format!("element_strides[{at}]"), step.into(), "1 to 8");
            }
        }
        for (at, &stride) in self.strides[..self.rank - 1].iter().enumerate() {
            if stride % 16 != 0 || stride >= 1 << 40 {
                let expected = "a multiple of 16 below 2^40";
                return value(format!("strides[{at}]"), stride, expected);
            }
        }
        let row = self.row_bytes();
        if !row.is_multiple_of(16) {
            let expected = "a multiple of 16 (tile[0] times the size of an element)";
            return value("a row of the tile, in bytes,".into(), row, expected);
        }
        if let Some(span) = self.swizzle.span()
            && row > span
        {
            let expected = format!("at most {span}, which is what the swizzle permutes");
            return value("a row of the tile, in bytes,".into(), row, &expected);
        }
        if self.fill == OutOfBoundsFill::Nan && !self.element.is_float() {
            return Err(TensorMapError::NanOfIntegers(self.element));
        }
        Ok(())
    }

    /// The 128 bytes that a kernel takes.
    ///
    /// # Errors
    /// Values that `cuTensorMapEncodeTiled` refuses.
    pub fn encode(&self) -> Result<[u8; TENSOR_MAP_BYTES], TensorMapError> {
        self.check()?;
        let mut out = [0; TENSOR_MAP_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        let element = TensorElement::ALL.iter().position(|&e| e == self.element).unwrap_or(0);
        let swizzle = Swizzle::ALL.iter().position(|&s| s == self.swizzle).unwrap_or(0);
        let fill = u8::from(self.fill == OutOfBoundsFill::Nan);
        put(&[element as u8, self.rank as u8, swizzle as u8, fill, 0, 0, 0, 0]);
        put(&self.address.to_le_bytes());
        for size in self.shape {
            put(&(size.wrapping_sub(1) as u32).to_le_bytes());
        }
        for size in self.tile {
            put(&(size.wrapping_sub(1) as u8).to_le_bytes());
        }
        for step in self.element_strides {
            put(&(step as u8).to_le_bytes());
        }
        for stride in self.strides {
            put(&stride.to_le_bytes());
        }
        Ok(out)
    }

    /// The map that these bytes encode.
    ///
    /// # Errors
    /// Bytes that [`encode`](Self::encode) has not made.
    pub fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<Self, TensorMapError> {
        if bytes[..8] != MAGIC {
            return Err(TensorMapError::NotEncoded);
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let [element, rank, swizzle, fill] = [8, 9, 10, 11].map(|at| usize::from(bytes[at]));
        let map = Self {
            element: *TensorElement::ALL.get(element).ok_or(TensorMapError::NotEncoded)?,
            rank,
            address: word(16),
            shape: std::array::from_fn(|at| (word(24 + 4 * at) & 0xffff_ffff) + 1),
            tile: std::array::from_fn(|at| u32::from(bytes[44 + at]) + 1),
            element_strides: std::array::from_fn(|at| u32::from(bytes[49 + at])),
            strides: std::array::from_fn(|at| word(54 + 8 * at)),
            swizzle: *Swizzle::ALL.get(swizzle).ok_or(TensorMapError::NotEncoded)?,
            fill: if fill == 1 { OutOfBoundsFill::Nan } else { OutOfBoundsFill::Zero },
        };
        map.check().map_err(|_| TensorMapError::NotEncoded)?;
        Ok(map)
    }

    /// Bytes of a row of the box in shared memory.
    fn row_bytes(&self) -> u64 {
        u64::from(self.tile[0]) * self.element.bytes()
    }

    /// Elements that a copy takes in a dimension: all of dimension 0, every so many of the others.
    fn taken(&self, dimension: usize) -> u64 {
        let size = u64::from(self.tile[dimension]);
        if dimension == 0 { size } else { size.div_ceil(self.element_strides[dimension].into()) }
    }

    /// Bytes of a box in shared memory, which is also what a copy of it signals.
    pub fn box_bytes(&self) -> u64 {
        (0..self.rank).map(|at| self.taken(at)).product::<u64>() * self.element.bytes()
    }

    /// Walks the box whose first element has these coordinates, in the order of shared memory:
    /// offset in the box, address of the bytes or `None` outside the tensor, and how many bytes.
    /// Pieces do not cross chunks of 16 bytes where the box is swizzled.
    pub(crate) fn walk(
        &self,
        corner: [i32; MOST_RANK],
        mut visit: impl FnMut(u64, Option<u64>, u64),
    ) {
        let size = self.element.bytes();
        let rows: u64 = (1..self.rank).map(|at| self.taken(at)).product();
        let row_bytes = self.row_bytes();
        let first = i64::from(corner[0]);
        let extent = i64::try_from(self.shape[0]).unwrap_or(i64::MAX);
        let width = i64::from(self.tile[0]);
        // Elements of the row that are inside the tensor, by their place in the row.
        let from = (-first).clamp(0, width);
        let to = (extent - first).clamp(from, width);
        for row in 0..rows {
            let mut left = row;
            let mut start = self.address;
            let mut inside = true;
            for at in 1..self.rank {
                let step = (left % self.taken(at)) * u64::from(self.element_strides[at]);
                left /= self.taken(at);
                let coordinate = i64::from(corner[at]) + step as i64;
                inside &= (0..self.shape[at] as i64).contains(&coordinate);
                start = start.wrapping_add((coordinate as u64).wrapping_mul(self.strides[at - 1]));
            }
            let (from, to) = if inside { (from, to) } else { (width, width) };
            for (begin, end, is_inside) in [(0, from, false), (from, to, true), (to, width, false)]
            {
                let (mut at, end) = (begin as u64 * size, end as u64 * size);
                while at < end {
                    let most = if self.swizzle == Swizzle::None { end } else { (at / 16 + 1) * 16 };
                    let bytes = end.min(most) - at;
                    let address =
                        start.wrapping_add((first as u64).wrapping_mul(size)).wrapping_add(at);
                    visit(row * row_bytes + at, is_inside.then_some(address), bytes);
                    at += bytes;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn map() -> TensorMap {
        TensorMap::new(TensorElement::F16, 1 << 40, &[100, 7], &[256], &[64, 8]).unwrap()
    }

    #[test]
    fn encoding_is_undone_by_decoding() {
        let mut map = map();
        map.swizzle = Swizzle::Bytes128;
        map.fill = OutOfBoundsFill::Nan;
        map.element_strides[1] = 2;
        assert_eq!(TensorMap::decode(&map.encode().unwrap()), Ok(map));
        assert_eq!(TensorMap::decode(&[0; 128]), Err(TensorMapError::NotEncoded));
    }

    #[test]
    fn what_the_driver_refuses_is_refused_by_name() {
        let refused = |change: fn(&mut TensorMap)| {
            let mut changed = map();
            change(&mut changed);
            changed.encode().unwrap_err().to_string()
        };
        type Change = fn(&mut TensorMap);
        let cases: [(Change, &str); 9] = [
            (|m| m.address += 8, "address is"),
            (|m| m.shape[1] = 0, "shape[1] is 0"),
            (|m| m.tile[0] = 257, "tile[0] is 257"),
            (|m| m.element_strides[1] = 9, "element_strides[1] is 9"),
            (|m| m.strides[0] = 200, "strides[0] is 200, expected a multiple of 16"),
            (|m| m.tile[0] = 9, "in bytes, is 18, expected a multiple of 16"),
            (|m| m.swizzle = Swizzle::Bytes64, "in bytes, is 128, expected at most 64"),
            (|m| m.rank = 6, "rank is 6"),
            (
                |m| (m.element, m.fill) = (TensorElement::U16, OutOfBoundsFill::Nan),
                "NaN as the fill of U16",
            ),
        ];
        for (change, expected) in cases {
            assert!(refused(change).contains(expected), "{}", refused(change));
        }
        let strides = TensorMap::new(TensorElement::U8, 0, &[16, 16], &[], &[16, 16]);
        assert!(matches!(strides, Err(TensorMapError::Length { field: "strides", .. })));
    }

    #[test]
    fn swizzles_by_the_table() {
        // Row 1 of a 128-byte swizzle exchanges neighbouring chunks; row 8 begins the pattern anew.
        assert_eq!(Swizzle::Bytes128.apply(128), 128 + 16);
        assert_eq!(Swizzle::Bytes128.apply(7 * 128 + 5), 7 * 128 + 7 * 16 + 5);
        assert_eq!(Swizzle::Bytes128.apply(1024), 1024);
        assert_eq!(Swizzle::Bytes64.apply(2 * 128), 2 * 128 + 32);
        assert_eq!(Swizzle::Bytes64.apply(4 * 128), 4 * 128);
        assert_eq!(Swizzle::Bytes32.apply(3 * 128 + 16), 3 * 128);
        assert_eq!(Swizzle::None.apply(1234), 1234);
    }

    proptest! {
        /// Within its period a swizzle moves every byte to a place of its own, keeps chunks whole,
        /// and is its own inverse.
        #[test]
        fn a_swizzle_is_a_bijection(
            which in 0usize..4, base in (0u64..200).prop_map(|n| n * 1024), rows in 0u64..8,
        ) {
            let swizzle = Swizzle::ALL[which];
            let mut seen = HashSet::new();
            for at in base..base + 1024 {
                let to = swizzle.apply_from(at, rows);
                prop_assert!(seen.insert(to) && (base..base + 1024).contains(&to));
                prop_assert_eq!(to % 16, at % 16);
                prop_assert_eq!(swizzle.apply_from(to, rows), at);
            }
        }

        /// The walk covers each byte of the box once, and names for each element the address that
        /// the plain formula gives.
        #[test]
        fn the_walk_agrees_with_the_index_formula(
            rank in 1usize..=5,
            shape in prop::array::uniform5(1u64..9),
            tile in prop::array::uniform5(1u32..5),
            steps in prop::array::uniform5(1u32..4),
            corner in prop::array::uniform5(-4i32..9),
            swizzle in 0usize..4,
        ) {
            let mut map = map();
            map.element = TensorElement::F32;
            map.rank = rank;
            (map.shape, map.tile, map.element_strides) = (shape, tile, steps);
            map.shape[0] *= 3;
            map.tile[0] = [4, 4, 8, 4, 4][tile[0] as usize];
            map.strides = [112, 112 * 9 + 16, 112 * 100, 112 * 1000];
            map.swizzle = Swizzle::ALL[swizzle];
            prop_assume!(map.encode().is_ok());
            let mut found = HashMap::new();
            let mut next = 0;
            map.walk(corner, |at, address, bytes| {
                assert_eq!(at, next);
                next += bytes;
                for byte in 0..bytes {
                    found.insert(at + byte, address.map(|address| address + byte));
                }
            });
            prop_assert_eq!(next, map.box_bytes());
            let mut index = 0;
            let counts: Vec<i64> = (0..5)
                .map(|d| match d {
                    0 => i64::from(map.tile[0]),
                    d if d < rank => i64::from(map.tile[d].div_ceil(map.element_strides[d])),
                    _ => 1,
                })
                .collect();
            for e in 0..counts[4] {
                for d in 0..counts[3] {
                    for c in 0..counts[2] {
                        for b in 0..counts[1] {
                            for a in 0..counts[0] {
                                let mut address = Some(map.address as i64);
                                for (axis, step) in [a, b, c, d, e].into_iter().enumerate().take(rank) {
                                    let each = if axis == 0 { 1 } else { i64::from(map.element_strides[axis]) };
                                    let at = i64::from(corner[axis]) + step * each;
                                    let inside = at >= 0 && at < map.shape[axis] as i64;
                                    let stride = if axis == 0 { 4 } else { map.strides[axis - 1] as i64 };
                                    address = address.filter(|_| inside).map(|sum| sum + at * stride);
                                }
                                for byte in 0..4 {
                                    let wanted = address.map(|address| (address + byte) as u64);
                                    prop_assert_eq!(found[&(index * 4 + byte as u64)], wanted);
                                }
                                index += 1;
                            }
                        }
                    }
                }
            }
        }
    }
}
