//! Products of matrices by cuBLASLt. A product of a shape is set up once: descriptors, layouts and
//! the algorithm that the library's heuristic takes for it.

use crate::error::DeviceError;
use crate::product::{Element, Product};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::collections::BTreeMap;
use std::ffi::c_void;

/// Memory that an algorithm may use: what NVIDIA advises for its largest GPUs.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// The library, and the products that it has been set up for.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    prepared: BTreeMap<Shape, Prepared>,
}

// SAFETY: handles and descriptors of cuBLASLt belong to no thread; they are used by one at a time,
// which holds the device's lock.
unsafe impl Send for Library {}

/// What a preparation depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    rows: usize,
    columns: usize,
    inner: usize,
    element: Element,
    out_element: Element,
}

struct Prepared {
    description: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Library {
    /// Opens the library. `workspace` has [`WORKSPACE_BYTES`].
    pub fn open(workspace: CudaSlice<u8>) -> Result<Self, DeviceError> {
        // SAFETY: the library's initialisers have no preconditions. cudarc panics where it is not
        // there, so it is looked for first.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoCublas { reason: "no libcublasLt was found".to_owned() });
        }
        let refused = |error: CublasError| DeviceError::NoCublas { reason: error.to_string() };
        let handle = result::create_handle().map_err(refused)?;
        Ok(Self { handle, workspace, prepared: BTreeMap::new() })
    }

    /// Queues a product that has been checked, whose buffers are live. The stream's context must be
    /// current.
    pub fn multiply(&mut self, stream: &CudaStream, product: &Product) -> Result<(), CublasError> {
        let Product { rows, columns, inner, element, out_element, .. } = *product;
        let shape = Shape { rows, columns, inner, element, out_element };
        if !self.prepared.contains_key(&shape) {
            let prepared = Prepared::new(self.handle, shape)?;
            self.prepared.insert(shape, prepared);
        }
        let Some(prepared) = self.prepared.get(&shape) else { return Ok(()) };
        let (alpha, beta) = (1.0_f32, if product.accumulate { 1.0_f32 } else { 0.0 });
        let pointer = |address: u64| address as *mut c_void;
        let out = pointer(product.out.address);
        // SAFETY: handle, descriptors and layouts are live, the layouts are those of matrices that
        // fit the buffers, and the two factors are f32 as the description says. Whether the buffers
        // are live is the caller's business, as with a kernel's arguments.
        unsafe {
            result::matmul(
                self.handle,
                prepared.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(product.w.address),
                prepared.w,
                pointer(product.x.address),
                prepared.x,
                out,
                prepared.out,
                out,
                prepared.out,
                &raw const prepared.algorithm,
                pointer(self.workspace.device_ptr(stream).0),
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.prepared.clear();
        // SAFETY: nothing uses the handle any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

const fn data_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F16 => sys::cudaDataType::CUDA_R_16F,
        Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

impl Prepared {
    /// The library has matrices column by column: `out^T = w x^T`, where `w` and `x` row by row are
    /// their own transposes, so that `w` is transposed once more.
    fn new(handle: sys::cublasLtHandle_t, shape: Shape) -> Result<Self, CublasError> {
        let Shape { rows, columns, inner, element, out_element } = shape;
        let layout = |element, rows: usize, columns: usize| {
            result::create_matrix_layout(
                data_type(element),
                rows as u64,
                columns as u64,
                rows as i64,
            )
        };
        let description = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )?;
        let transposed: i32 = 1; // CUBLAS_OP_T
        let most = WORKSPACE_BYTES;
        // SAFETY: the attributes' values are of the sizes given and live during the calls; what was
        // just created is live, the preference until it is destroyed.
        unsafe {
            result::set_matmul_desc_attribute(
                description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )?;
            let (w, x) = (layout(element, inner, columns)?, layout(element, inner, rows)?);
            let out = layout(out_element, columns, rows)?;
            let preference = result::create_matmul_pref()?;
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const most).cast(),
                size_of_val(&most),
            )?;
            let found =
                result::get_matmul_algo_heuristic(handle, description, w, x, out, out, preference);
            result::destroy_matmul_pref(preference)?;
            Ok(Self { description, w, x, out, algorithm: found?.algo })
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: nothing uses them any more.
        unsafe {
            for layout in [self.w, self.x, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.description);
        }
    }
}
