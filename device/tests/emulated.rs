//! Emulated devices, against what every device must do, and what only they do: find faults, count,
//! predict.

mod suite;

use spanforge_device::{
    Argument, Basis, Compiler, Device, DeviceError, EmulatedOptions, Image, Launch, Nvrtc,
    Settings, Source, Target, TimeOptions, open, open_with,
};

fn h200() -> Box<dyn Device> {
    open("emulated:h200").unwrap()
}

#[test]
fn saxpy_is_right_to_the_bit_on_every_profile() {
    for spec in spanforge_device::emulated_specs() {
        suite::saxpy(open(&spec).unwrap().as_ref());
    }
}

#[test]
fn arguments_of_every_type_arrive() {
    suite::arguments_of_every_type_arrive(h200().as_ref());
}

#[test]
fn tensor_maps_carry_boxes() {
    suite::tensor_maps_carry_boxes(h200().as_ref());
}

#[test]
fn shared_memory_beyond_48_kib() {
    suite::shared_memory_beyond_48_kib(h200().as_ref());
}

#[test]
fn recorded_work_is_replayed() {
    suite::recorded_work_is_replayed(h200().as_ref());
}

#[test]
fn what_cannot_be_done_is_refused() {
    suite::what_cannot_be_done_is_refused(h200().as_ref());
}

#[test]
fn code_that_is_not_code_is_refused() {
    suite::code_that_is_not_code_is_refused(h200().as_ref());
}

fn compile(text: &str, target: Target) -> Image {
    let nvrtc = Nvrtc::find(&Settings::from_environment()).unwrap();
    Compiler::without_cache(nvrtc).compile(&Source::new("fault.cu", text), &target).unwrap()
}

/// A launch of `kernel`, a kernel of a pointer and a count, over 1024 floats in blocks of 32.
fn launch_over_1024(device: &dyn Device, image: &Image, kernel: &str, n: i32) -> Launch {
    let y = device.allocate("floats", 4096).unwrap();
    device.upload(y, 0, &[0; 4096]).unwrap();
    Launch {
        module: device.load(image).unwrap(),
        kernel: kernel.into(),
        grid: [32, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
        arguments: vec![y.at(0), Argument::I32(n)],
    }
}

const TOUCH: &str = "extern \"C\" __global__ void touch(float* y, int n) {\n\
                     \x20   int i = blockIdx.x * blockDim.x + threadIdx.x;\n\
                     \x20   y[i + n] += 1.0f;\n}\n";

#[test]
fn a_fault_fails_the_launch_and_names_kernel_line_and_buffer() {
    let device = h200();
    let image = compile(TOUCH, Target::Ptx("sm_90a".into()));
    assert!(device.launch(&launch_over_1024(device.as_ref(), &image, "touch", 0)).is_ok());
    let error = device.launch(&launch_over_1024(device.as_ref(), &image, "touch", 1)).unwrap_err();
    let message = error.to_string();
    let DeviceError::Findings { kernel, findings } = error else { panic!("{message}") };
    assert_eq!(kernel, "touch");
    assert!(!findings.is_empty());
    for part in ["kernel touch", "fault.cu:3", "floats"] {
        assert!(message.contains(part), "{part} in: {message}");
    }
}

#[test]
fn launches_are_counted_where_counting_is_on() {
    let image = compile(TOUCH, Target::Ptx("sm_90a".into()));
    let counted = |counters| {
        let options = EmulatedOptions { counters, ..EmulatedOptions::default() };
        let device = open_with("emulated:a100", options).unwrap();
        let launch = launch_over_1024(device.as_ref(), &image, "touch", 0);
        device.launch(&launch).unwrap().counters
    };
    assert_eq!(counted(false), None);
    let counters = counted(true).unwrap();
    assert_eq!((counters.blocks, counters.warps), (32, 32));
    assert_eq!((counters.global_load.bytes, counters.global_store.bytes), (4096, 4096));
    assert_eq!(counters.global_load.sectors, 128);
}

#[test]
fn a_prediction_is_the_same_every_time_and_says_that_it_is_one() {
    let device = h200();
    let image = suite::kernels("sm_90a");
    let module = device.load(&image).unwrap();
    let n = 1 << 16;
    let x = device.allocate("x", n * 4).unwrap();
    let y = device.allocate("y", n * 4).unwrap();
    for buffer in [x, y] {
        device.upload(buffer, 0, &vec![0; n * 4]).unwrap();
    }
    let launch = Launch {
        module,
        kernel: "saxpy".into(),
        grid: [512, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 0,
        arguments: vec![y.at(0), x.at(0), Argument::F32(2.0), Argument::I32(n as i32)],
    };
    let options = TimeOptions { sampled_blocks: 4, ..TimeOptions::default() };
    let timing = device.time(&[launch.clone(), launch.clone()], &options).unwrap();
    assert_eq!(timing.basis, Basis::Predicted);
    assert_eq!(timing, device.time(&[launch.clone(), launch.clone()], &options).unwrap());
    assert_eq!(timing.samples_us.len(), 1);
    assert_eq!(timing.predictions.len(), 2);
    let [first, second] = &timing.predictions[..] else { unreachable!() };
    assert_eq!(first, second);
    assert_eq!(timing.samples_us[0], first.estimate.time_us + second.estimate.time_us);
    assert_eq!((first.kernel.as_str(), first.executed_blocks), ("saxpy", 4));
    assert_eq!(first.counters.blocks, 512);
    // 128 threads of a few registers: 16 blocks fill the 2048 threads of a multiprocessor.
    assert_eq!(first.estimate.occupancy.blocks_per_multiprocessor, 16);
    // No faster than moving the bytes: 8 read and 4 written per element.
    let floor_us = 12.0 * n as f64 / device.properties().dram_bytes_per_second * 1e6;
    assert!(first.estimate.time_us > floor_us);
}

#[test]
fn launches_in_a_row_take_as_long_as_each_and_nobody_claims_conditions() {
    let [alone, in_a_row] = suite::short_timings(h200().as_ref());
    assert!((in_a_row.median_us() / alone.median_us() - suite::ROW as f64).abs() < 1e-6);
    assert_eq!((alone.conditions, in_a_row.conditions), (None, None));
}

#[test]
fn predicted_times_grow_with_the_size() {
    let times = suite::saxpy_times(h200().as_ref(), &[1 << 16, 1 << 20, 1 << 24], true);
    assert!(times.is_sorted() && times[2] > 10.0 * times[0], "{times:?}");
}

/// A small kernel writes how much the large one after it is to do.
const PLAN_AND_WORK: &str = r#"
extern "C" __global__ void plan(int* todo) { *todo = 100; }
extern "C" __global__ void work(float* y, const int* todo) {
    float sum = 0;
    for (int i = 0; i < *todo; i++) sum += y[i * 32 + threadIdx.x];
    y[threadIdx.x] = sum;
}
"#;

#[test]
fn a_small_launch_is_executed_in_full_for_the_ones_after_it() {
    let device = h200();
    let module = device.load(&compile(PLAN_AND_WORK, Target::Cubin("sm_90a".into()))).unwrap();
    let todo = device.allocate("todo", 4).unwrap();
    let y = device.allocate("y", 100 * 32 * 4).unwrap();
    device.upload(y, 0, &[0; 100 * 32 * 4]).unwrap();
    device.upload(todo, 0, &[0; 4]).unwrap();
    let launch = |kernel: &str, blocks, arguments| Launch {
        module,
        kernel: kernel.into(),
        grid: [blocks, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
        arguments,
    };
    let plan = launch("plan", 1, vec![todo.at(0)]);
    let work = launch("work", 1000, vec![y.at(0), todo.at(0)]);
    let options = TimeOptions::default();
    let idle = device.time(std::slice::from_ref(&work), &options).unwrap();
    let busy = device.time(&[plan, work], &options).unwrap();
    let bytes = |timing: &spanforge_device::Timing| {
        let work = timing.predictions.last().unwrap();
        let y = work.counters.buffers.iter().find(|buffer| buffer.name == "y");
        y.map_or(0, |buffer| buffer.read_bytes) / work.counters.blocks
    };
    assert_eq!((bytes(&idle), bytes(&busy)), (0, 100 * 128));
}

#[test]
fn a_time_needs_the_registers_of_a_cubin_that_runs_on_the_gpu() {
    let device = h200();
    for target in [Target::Ptx("sm_90a".into()), Target::Cubin("sm_80".into())] {
        let image = compile(TOUCH, target);
        let launch = launch_over_1024(device.as_ref(), &image, "touch", 0);
        assert!(device.launch(&launch).is_ok());
        let error = device.time(&[launch], &TimeOptions::default()).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, DeviceError::ResourcesUnknown { .. }));
        assert!(message.contains("touch") && message.contains("compile it to a cubin for sm_90a"));
    }
    let image = compile(TOUCH, Target::Cubin("sm_90".into()));
    let launch = launch_over_1024(device.as_ref(), &image, "touch", 0);
    assert!(device.time(&[launch], &TimeOptions::default()).is_ok());
}

/// Every block reads the same few bytes.
const SHARED_READS: &str = r#"
extern "C" __global__ void sum(const float4* __restrict__ x, float* y) {
    float s = 0;
    for (int i = threadIdx.x; i < 4096; i += 128) s += x[i].x + x[i].w;
    if (s == 1.5f) y[0] = s;
}
"#;

/// A small buffer that stands for a large one was once taken at its own size, and predictions fell
/// below what the DRAM can do.
#[test]
fn a_buffer_that_stands_for_a_larger_one_is_read_from_dram() {
    let device = h200();
    let module = device.load(&compile(SHARED_READS, Target::Cubin("sm_90a".into()))).unwrap();
    let bytes = 4096 * 16;
    let x = device.allocate("x", bytes).unwrap();
    let y = device.allocate("y", 4).unwrap();
    device.upload(x, 0, &vec![0; bytes]).unwrap();
    let blocks = 10_000;
    let launch = Launch {
        module,
        kernel: "sum".into(),
        grid: [blocks, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 0,
        arguments: vec![x.at(0), y.at(0)],
    };
    let predict = |distinct: &[u64]| {
        let distinct_bytes = distinct.iter().map(|bytes| ("x".to_owned(), *bytes)).collect();
        let options = TimeOptions { distinct_bytes, ..TimeOptions::default() };
        device.time(std::slice::from_ref(&launch), &options).unwrap().median_us()
    };
    let floor_us =
        f64::from(blocks) * bytes as f64 / device.properties().dram_bytes_per_second * 1e6;
    assert!(predict(&[]) < floor_us, "one copy of the buffer stays in L2");
    assert!(predict(&[u64::MAX]) > floor_us, "every byte comes from DRAM");
    assert!(predict(&[bytes as u64 / 2]) <= predict(&[]), "half of it is read");
}
