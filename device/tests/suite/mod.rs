//! What every device must do, emulated or not: the same kernels, the same refusals.

use spanforge_device::{
    Argument, Buffer, Compiler, Device, DeviceError, Element, Image, Launch, ModuleId, Nvrtc,
    Product, Settings, Source, Swizzle, Target, TensorElement, TensorMap, TimeOptions, Timing,
    Work,
};

const KERNELS: &str = r#"
extern "C" __global__ void saxpy(float* y, const float* x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// Reverses each block's elements through `bytes` of shared memory, the first and the last of it.
extern "C" __global__ void reverse(int* y, const int* x, unsigned bytes) {
    extern __shared__ int memory[];
    int* end = memory + bytes / 4 - blockDim.x;
    int base = blockIdx.x * blockDim.x;
    end[threadIdx.x] = x[base + threadIdx.x];
    __syncthreads();
    memory[threadIdx.x] = end[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
    y[base + threadIdx.x] = memory[threadIdx.x];
}

extern "C" __global__ void types(long long* y, int a, unsigned b, long long c,
                                 unsigned long long d, float e, double f) {
    y[0] = a; y[1] = b; y[2] = c; y[3] = (long long)d; y[4] = (long long)(e * 4);
    y[5] = (long long)(f * 8);
}
"#;

/// One thread, and tensors of words in rows of 32 or more.
const CARRY: &str = include_str!("carry.cu");

pub fn kernels(architecture: &str) -> Image {
    compile(KERNELS, architecture)
}

pub fn compile(text: &str, architecture: &str) -> Image {
    let settings = Settings::from_environment().with_progress(|line| eprintln!("{line}"));
    let nvrtc = Nvrtc::find(&settings).expect("NVRTC is found or fetched");
    let source = Source::new("suite.cu", text);
    Compiler::without_cache(nvrtc)
        .compile(&source, &Target::Cubin(architecture.into()))
        .expect("the kernels compile")
}

fn load(device: &dyn Device) -> ModuleId {
    device.load(&kernels(&device.properties().architecture)).expect("the kernels load")
}

fn bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

fn filled(device: &dyn Device, name: &str, data: &[u8]) -> Buffer {
    let buffer = device.allocate(name, data.len()).unwrap();
    assert_eq!(buffer.address % 256, 0);
    device.upload(buffer, 0, data).unwrap();
    buffer
}

fn read(device: &dyn Device, buffer: Buffer) -> Vec<u8> {
    let mut data = vec![0; buffer.bytes];
    device.download(buffer, 0, &mut data).unwrap();
    data
}

fn launch(module: ModuleId, kernel: &str, blocks: u32, arguments: Vec<Argument>) -> Launch {
    Launch {
        module,
        kernel: kernel.into(),
        grid: [blocks, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 0,
        arguments,
    }
}

/// Kept work does, with what the buffers hold when it is replayed, what it did when it was queued:
/// a kernel adds one, and a product eight.
pub fn recorded_work_is_replayed(device: &dyn Device) {
    let module = load(device);
    let ones = filled(device, "ones", &bytes(&[half::f16::ONE; 8], half::f16::to_le_bytes));
    let x = filled(device, "x", &bytes(&[1.0f32], f32::to_le_bytes));
    let y = filled(device, "y", &bytes(&[0.0f32], f32::to_le_bytes));
    let arguments = vec![y.at(0), x.at(0), Argument::F32(1.0), Argument::I32(1)];
    let product = Product {
        x: ones,
        w: ones,
        out: y,
        rows: 1,
        columns: 1,
        inner: 8,
        element: Element::F16,
        out_element: Element::F32,
        accumulate: true,
    };
    let work = [Work::Launch(launch(module, "saxpy", 1, arguments)), Work::Multiply(product)];
    device.queue(&work).unwrap();
    let recording = device.record(&work).unwrap().expect("a recording");
    let holds = |expected: f32| assert_eq!(read(device, y), expected.to_le_bytes());
    holds(9.0); // recording does nothing
    device.replay(recording).unwrap();
    holds(18.0);
    device.upload(y, 0, &[0; 4]).unwrap();
    device.replay(recording).unwrap();
    device.replay(recording).unwrap();
    holds(18.0);
    device.forget(recording).unwrap();
    for refused in [device.replay(recording), device.forget(recording)] {
        assert!(matches!(refused, Err(DeviceError::UnknownRecording(_))), "{refused:?}");
    }
    [ones, x, y].into_iter().for_each(|buffer| device.free(buffer).unwrap());
    device.unload(module).unwrap();
}

/// The result as bits, so that devices can be compared.
pub fn saxpy(device: &dyn Device) -> Vec<u8> {
    let module = load(device);
    let n = 1000;
    let x: Vec<f32> = (0..n).map(|i| i as f32 * 0.25).collect();
    let y: Vec<f32> = (0..n).map(|i| 1.0 - i as f32).collect();
    let x_buffer = filled(device, "x", &bytes(&x, f32::to_le_bytes));
    let y_buffer = filled(device, "y", &bytes(&y, f32::to_le_bytes));
    let arguments = vec![y_buffer.at(0), x_buffer.at(0), Argument::F32(3.0), Argument::I32(n)];
    device.launch(&launch(module, "saxpy", 8, arguments)).unwrap();
    let result = read(device, y_buffer);
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 3.0 * x + y).collect();
    assert_eq!(result, bytes(&expected, f32::to_le_bytes));

    // A part of it, from its middle.
    let mut middle = [0; 8];
    device.download(y_buffer, 400, &mut middle).unwrap();
    assert_eq!(middle, result[400..408]);
    device.upload(y_buffer, 400, &[7; 8]).unwrap();
    assert_eq!(
        read(device, y_buffer)[396..412],
        [&result[396..400], &[7; 8], &result[408..412]].concat()
    );
    for buffer in [x_buffer, y_buffer] {
        device.free(buffer).unwrap();
    }
    device.unload(module).unwrap();
    result
}

pub fn arguments_of_every_type_arrive(device: &dyn Device) {
    let module = load(device);
    let y = device.allocate("y", 48).unwrap();
    let arguments = vec![
        y.at(0),
        Argument::I32(-5),
        Argument::U32(u32::MAX),
        Argument::I64(i64::MIN),
        Argument::U64(1 << 40),
        Argument::F32(-0.75),
        Argument::F64(1e10),
    ];
    let mut one_thread = launch(module, "types", 1, arguments);
    one_thread.block = [1, 1, 1];
    device.launch(&one_thread).unwrap();
    let expected = [-5, i64::from(u32::MAX), i64::MIN, 1 << 40, -3, 80_000_000_000];
    assert_eq!(read(device, y), bytes(&expected, i64::to_le_bytes));
}

/// A box of a tensor by way of shared memory, which is swizzled in between; for sm_90 and later.
pub fn tensor_maps_carry_boxes(device: &dyn Device) {
    let module = device.load(&compile(CARRY, &device.properties().architecture)).unwrap();
    let x: Vec<i32> = (0..48 * 6).collect();
    let x_buffer = filled(device, "x", &bytes(&x, i32::to_le_bytes));
    // The box begins at (8, 1): the last columns and its last row are outside.
    let y_buffer = filled(device, "y", &[0xff; 512]);
    let map = |buffer: Buffer, shape: [u64; 2], row_bytes| {
        let map =
            TensorMap::new(TensorElement::I32, buffer.address, &shape, &[row_bytes], &[32, 4]);
        TensorMap { swizzle: Swizzle::Bytes128, ..map.unwrap() }
    };
    let (from, to) = (map(x_buffer, [38, 4], 192), map(y_buffer, [32, 4], 128));
    let arguments = vec![Argument::TensorMap(from), Argument::TensorMap(to)];
    let good = Launch { block: [1, 1, 1], ..launch(module, "carry", 1, arguments) };
    device.launch(&good).unwrap();
    let expected: Vec<i32> = (0..128)
        .map(|i| (8 + i % 32, 1 + i / 32))
        .map(|(column, row)| if column < 38 && row < 4 { 48 * row + column } else { 0 })
        .collect();
    assert_eq!(read(device, y_buffer), bytes(&expected, i32::to_le_bytes));

    let odd = TensorMap { address: x_buffer.address + 4, ..from };
    let arguments = vec![Argument::TensorMap(from), Argument::TensorMap(odd)];
    let error = device.launch(&Launch { arguments, ..good.clone() }).unwrap_err();
    assert!(matches!(error, DeviceError::BadTensorMap { index: 1, .. }), "{error}");
    let arguments = vec![x_buffer.at(0), Argument::TensorMap(to)];
    let error = device.launch(&Launch { arguments, ..good }).unwrap_err();
    assert!(error.to_string().contains("argument 0 has 8 bytes, the parameter 128"), "{error}");
}

/// All of the shared memory that a block can have, first much, then little, then much again.
pub fn shared_memory_beyond_48_kib(device: &dyn Device) {
    let module = load(device);
    let x: Vec<i32> = (0..256).collect();
    let x_buffer = filled(device, "x", &bytes(&x, i32::to_le_bytes));
    let y_buffer = device.allocate("y", 1024).unwrap();
    let expected: Vec<i32> = (0..128).rev().chain((128..256).rev()).collect();
    let most = device.properties().shared_bytes_per_block;
    assert!(most > 48 * 1024);
    for shared_bytes in [60 * 1024, 1024, most] {
        device.upload(y_buffer, 0, &[0; 1024]).unwrap();
        let arguments = vec![y_buffer.at(0), x_buffer.at(0), Argument::U32(shared_bytes)];
        device.launch(&Launch { shared_bytes, ..launch(module, "reverse", 2, arguments) }).unwrap();
        assert_eq!(read(device, y_buffer), bytes(&expected, i32::to_le_bytes), "{shared_bytes}");
    }
}

pub fn what_cannot_be_done_is_refused(device: &dyn Device) {
    let module = load(device);
    let y = device.allocate("y", 1024).unwrap();
    let good = launch(module, "reverse", 2, vec![y.at(0), y.at(0), Argument::U32(1024)]);
    let most = device.properties().shared_bytes_per_block;

    let refused = |launch: Launch, part: &str| {
        let message = device.launch(&launch).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
        let kernel = launch.kernel.escape_debug().to_string();
        assert!(message.contains(&kernel), "{message}");
    };
    refused(Launch { grid: [0, 1, 1], ..good.clone() }, "the grid has 0 in x");
    refused(Launch { block: [1025, 1, 1], ..good.clone() }, "the block has 1025 in x");
    refused(Launch { block: [64, 32, 1], ..good.clone() }, "2048 threads");
    refused(Launch { shared_bytes: most + 1, ..good.clone() }, "shared memory");
    refused(Launch { arguments: vec![y.at(0)], ..good.clone() }, "1 argument(s), expected 3");
    let wide = vec![y.at(0), y.at(0), Argument::U64(1024)];
    refused(Launch { arguments: wide, ..good.clone() }, "argument 2 has 8 bytes, the parameter 4");
    refused(Launch { kernel: "backward".into(), ..good.clone() }, "reverse");
    refused(Launch { kernel: "re\0verse".into(), ..good.clone() }, "reverse");

    let gone = ModuleId(u64::MAX);
    let error = device.launch(&Launch { module: gone, ..good.clone() }).unwrap_err();
    assert!(matches!(error, DeviceError::UnknownModule(_)), "{error}");
    assert!(matches!(device.unload(gone), Err(DeviceError::UnknownModule(_))));

    let error = device.upload(y, 1020, &[0; 5]).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfBuffer { .. }), "{error}");
    let error = device.download(y, usize::MAX, &mut [0; 2]).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfBuffer { .. }), "{error}");
    device.free(y).unwrap();
    assert!(matches!(device.free(y), Err(DeviceError::UnknownBuffer { .. })));
    assert!(matches!(device.upload(y, 0, &[1]), Err(DeviceError::UnknownBuffer { .. })));

    let error = device.allocate("everything", usize::MAX / 4).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("everything"));
    // Nothing of this broke the device, and a buffer may be empty.
    let empty = device.allocate("empty", 0).unwrap();
    device.upload(empty, 0, &[]).unwrap();
    assert!(read(device, empty).is_empty());
    saxpy(device);
}

pub fn code_that_is_not_code_is_refused(device: &dyn Device) {
    let mut image = kernels(&device.properties().architecture);
    image.cubin = None;
    for ptx in ["", "this is not PTX", ".version 9.0\n\0"] {
        image.ptx = ptx.into();
        let error = device.load(&image).unwrap_err();
        assert!(matches!(error, DeviceError::BadImage { .. }), "{error}");
    }
}

/// Times of saxpy over so many elements, a median in microseconds each.
pub fn saxpy_times(device: &dyn Device, elements: &[i32], cold_l2: bool) -> Vec<f64> {
    let module = load(device);
    let options = TimeOptions { cold_l2, samples: 10, ..TimeOptions::default() };
    let mut times = Vec::new();
    for &n in elements {
        let zeros = vec![0; n as usize * 4];
        let (x, y) = (filled(device, "x", &zeros), filled(device, "y", &zeros));
        let arguments = vec![y.at(0), x.at(0), Argument::F32(2.0), Argument::I32(n)];
        let launches = [launch(module, "saxpy", n.cast_unsigned().div_ceil(128), arguments)];
        let timing = device.time(&launches, &options).unwrap();
        assert!(timing.samples_us.iter().all(|time| *time > 0.0));
        assert_eq!(timing.basis, device.properties().basis);
        times.push(timing.median_us());
        device.free(x).unwrap();
        device.free(y).unwrap();
    }
    times
}

/// How many launches [`short_timings`] times in a row.
pub const ROW: usize = 8;

/// A short kernel timed alone, and so many launches of it in a row.
pub fn short_timings(device: &dyn Device) -> [Timing; 2] {
    let module = load(device);
    let n = 1 << 12;
    let zeros = vec![0; n as usize * 4];
    let (x, y) = (filled(device, "x", &zeros), filled(device, "y", &zeros));
    let arguments = vec![y.at(0), x.at(0), Argument::F32(2.0), Argument::I32(n)];
    let row = vec![launch(module, "saxpy", n.cast_unsigned().div_ceil(128), arguments); ROW];
    let time = |launches| device.time(launches, &TimeOptions::default()).unwrap();
    let timings = [time(&row[..1]), time(&row)];
    let [alone, in_a_row] = timings.each_ref().map(Timing::median_us);
    assert!(0.0 < alone && alone < in_a_row, "{alone} us, {in_a_row} us in a row");
    // The events around it take time once; what the first launch fetched is there for the others.
    assert!(in_a_row < 1.25 * ROW as f64 * alone, "{alone} us, {in_a_row} us in a row");
    // Timing leaves the device as it was: what is queued next runs.
    assert_eq!(read(device, y), zeros);
    timings
}
