//! Tensor maps in the driver's own 128 bytes, whose bits are nobody else's business: the one call
//! that makes them, [`cuTensorMapEncodeTiled`].
//!
//! [`cuTensorMapEncodeTiled`]: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Fill,
    CUtensorMapSwizzle as Permutation,
};
use spanforge_emulator::{OutOfBoundsFill, Swizzle, TensorElement, TensorMap};

/// The map as the driver encodes it: not interleaved, with the L2 left to fetch what it likes. The
/// caller has checked its values; where the tensor ends the driver cannot know.
pub(super) fn encode(map: &TensorMap) -> Result<CUtensorMap, DriverError> {
    if map.rank > map.shape.len() {
        return Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
    }
    let mut encoded = CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have room for as many dimensions as the rank says, the strides for one
    // fewer, and the driver reads no more. The address is not followed, only encoded.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            element(map.element),
            map.rank as u32,
            map.address as *mut std::ffi::c_void,
            map.shape.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            map.element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            permutation(map.swizzle),
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            fill(map.fill),
        )
    };
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(encoded),
        other => Err(DriverError(other)),
    }
}

fn element(element: TensorElement) -> Type {
    match element {
        TensorElement::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        TensorElement::U16 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        TensorElement::U32 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        TensorElement::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        TensorElement::U64 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT64,
        TensorElement::I64 => Type::CU_TENSOR_MAP_DATA_TYPE_INT64,
        TensorElement::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        TensorElement::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        TensorElement::F64 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        TensorElement::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        TensorElement::Tf32 => Type::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
    }
}

fn permutation(swizzle: Swizzle) -> Permutation {
    match swizzle {
        Swizzle::None => Permutation::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => Permutation::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => Permutation::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => Permutation::CU_TENSOR_MAP_SWIZZLE_128B,
    }
}

fn fill(fill: OutOfBoundsFill) -> Fill {
    match fill {
        OutOfBoundsFill::Zero => Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        OutOfBoundsFill::Nan => Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
    }
}
