//! `cuda:0`, against what every device must do and against the emulated device.

mod suite;

use spanforge_device::{
    Argument, Device, DeviceError, Image, Launch, Target, TensorElement, TensorMap, open,
};

fn gpu() -> Box<dyn Device> {
    open("cuda:0").expect("cuda:0 opens")
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn saxpy_is_right_to_the_bit_and_the_same_as_emulated() {
    let device = gpu();
    let emulated = open("emulated:h200").unwrap();
    assert_eq!(suite::saxpy(device.as_ref()), suite::saxpy(emulated.as_ref()));
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn arguments_of_every_type_arrive() {
    suite::arguments_of_every_type_arrive(gpu().as_ref());
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn tensor_maps_carry_boxes() {
    let device = gpu();
    let architecture = &device.properties().architecture;
    if !architecture.starts_with("sm_8") {
        return suite::tensor_maps_carry_boxes(device.as_ref());
    }
    // Before Hopper there are none, which is said.
    let text = "struct __align__(64) Map { char opaque[128]; };\n\
                extern \"C\" __global__ void k(const __grid_constant__ Map map) {}";
    let module = device.load(&suite::compile(text, architecture)).unwrap();
    let map = TensorMap::new(TensorElement::U8, 0, &[16], &[], &[16]).unwrap();
    let launch = Launch {
        module,
        kernel: "k".into(),
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        arguments: vec![Argument::TensorMap(map)],
    };
    let error = device.launch(&launch).unwrap_err();
    assert!(matches!(error, DeviceError::NoTensorMaps { index: 0, .. }), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn shared_memory_beyond_48_kib() {
    suite::shared_memory_beyond_48_kib(gpu().as_ref());
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn recorded_work_is_replayed() {
    suite::recorded_work_is_replayed(gpu().as_ref());
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn what_cannot_be_done_is_refused() {
    suite::what_cannot_be_done_is_refused(gpu().as_ref());
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn code_that_is_not_code_is_refused() {
    suite::code_that_is_not_code_is_refused(gpu().as_ref());
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn a_gpu_that_is_not_there_is_refused_with_the_number_of_those_that_are() {
    let Err(DeviceError::NoSuchDevice { ordinal, count }) = open("cuda:4000") else {
        panic!("there is no such GPU")
    };
    assert!(ordinal == 4000 && count >= 1);
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn code_for_another_architecture_runs_from_its_ptx() {
    let device = gpu();
    // sm_75 is older than every GPU that the project names, so its cubin never fits.
    let image = suite::kernels("sm_75");
    let module = device.load(&image).expect("the driver translates older PTX");
    device.unload(module).unwrap();
    let without_ptx = Image { ptx: String::new(), ..image };
    let error = device.load(&without_ptx).unwrap_err();
    assert!(error.to_string().contains("compile it for sm_"), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn times_grow_with_the_size_and_stay_above_the_bandwidth() {
    let device = gpu();
    let elements = [1 << 22, 1 << 24, 1 << 26];
    let times = suite::saxpy_times(device.as_ref(), &elements, true);
    eprintln!("saxpy of 16, 64 and 256 MiB per array: {times:.1?} us");
    assert!(times.is_sorted(), "{times:?}");
    // Three transfers of four bytes per element, at no more than the data sheet's bandwidth.
    let bandwidth = device.properties().dram_bytes_per_second;
    for (n, time) in elements.into_iter().zip(times) {
        assert!(time * 1e-6 * bandwidth * 1.05 > f64::from(n) * 8.0, "{n} in {time} us");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn short_kernels_are_timed_alone_and_in_a_row_and_conditions_are_absent_or_sane() {
    for timing in suite::short_timings(gpu().as_ref()) {
        eprintln!("{:.2} us, {:?}", timing.median_us(), timing.conditions);
        assert_eq!(timing.samples_us.len(), 20);
        let Some(conditions) = timing.conditions else { continue };
        for [low, high] in [conditions.sm_mhz, conditions.memory_mhz].into_iter().flatten() {
            assert!(100 <= low && low <= high && high < 30_000, "{low} to {high} MHz");
        }
        assert!(conditions.temperature_c.is_none_or(|celsius| (1..120).contains(&celsius)));
        assert!(conditions.joules_per_sample.is_none_or(|joules| (0.0..1e4).contains(&joules)));
        // Three more batches at most.
        assert!(conditions.repeated_samples.is_multiple_of(20));
        assert!(conditions.repeated_samples <= 60);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: run scripts/gpu"]
fn properties_are_plausible() {
    let properties = gpu().properties().clone();
    eprintln!("{properties:#?}");
    assert!(properties.multiprocessors > 0 && properties.l2_bytes > 1 << 20);
    assert!(properties.shared_bytes_per_block > 48 * 1024);
    assert!(properties.dram_bytes_per_second > 1e11 && properties.float32_per_second > 1e12);
    // The GPU's own architecture is one that the compiler knows.
    let target = Target::Cubin(properties.architecture);
    suite::kernels(target.architecture());
}
